"""The dataset families: each a function (root, split, **options) -> iterator of samples, and of rejects with reasons.

To add one: write the function in a file of its own, enter it in SOURCES, write its test on a fixture of a few records.
A source raises ValueError for a file it cannot use at all and yields a `Reject` for a record it cannot use. It opens
no pictures but for their size; `prepare` does.
"""

from collections.abc import Callable, Iterator
from functools import partial

from sa2va_hf.data.schema import Reject, Sample
from sa2va_hf.data.shapes.source import shapes
from sa2va_hf.data.sources.ade20k_full import ade20k_full
from sa2va_hf.data.sources.box_json import box_json
from sa2va_hf.data.sources.coco_json import coco_json
from sa2va_hf.data.sources.cvat import cvat
from sa2va_hf.data.sources.describe_anything import describe_anything
from sa2va_hf.data.sources.finetune_json import finetune_json
from sa2va_hf.data.sources.folder_parts import folder_parts
from sa2va_hf.data.sources.gcg import gcg
from sa2va_hf.data.sources.hc_stvg import hc_stvg
from sa2va_hf.data.sources.labelme import labelme
from sa2va_hf.data.sources.labelstudio import labelstudio
from sa2va_hf.data.sources.llava import llava
from sa2va_hf.data.sources.lvis import lvis
from sa2va_hf.data.sources.mdetr import mdetr
from sa2va_hf.data.sources.objects365 import objects365
from sa2va_hf.data.sources.open_images import open_images
from sa2va_hf.data.sources.osprey import osprey
from sa2va_hf.data.sources.paired_frames import paired_frames
from sa2va_hf.data.sources.panoptic import panoptic
from sa2va_hf.data.sources.parts import parts
from sa2va_hf.data.sources.png_masks import png_masks
from sa2va_hf.data.sources.prepared import prepared
from sa2va_hf.data.sources.reason_seg import reason_seg
from sa2va_hf.data.sources.ref_sav import ref_sav
from sa2va_hf.data.sources.refcoco import refcoco
from sa2va_hf.data.sources.sa1b import sa1b
from sa2va_hf.data.sources.sav import sav
from sa2va_hf.data.sources.semantic_png import semantic_png
from sa2va_hf.data.sources.spatial_relations import spatial_relations
from sa2va_hf.data.sources.target_crops import target_crops
from sa2va_hf.data.sources.video_referring import video_referring
from sa2va_hf.data.sources.vidstg import vidstg
from sa2va_hf.data.sources.vos_folders import vos_folders
from sa2va_hf.data.sources.vos_relations import vos_relations
from sa2va_hf.data.sources.yolo_seg import yolo_seg
from sa2va_hf.data.sources.youtube_vos import youtube_vos

SOURCES: dict[str, Callable[..., Iterator[Sample | Reject]]] = {
    "shapes": shapes,
    "refcoco": partial(refcoco, name="refcoco"),
    "refcoco+": partial(refcoco, name="refcoco+"),
    "refcocog": partial(refcoco, name="refcocog"),
    "refclef": partial(refcoco, name="refclef"),
    "grefcoco": partial(refcoco, name="grefcoco"),
    "reason_seg": reason_seg,
    "cocostuff": partial(semantic_png, name="cocostuff"),
    "ade20k": partial(semantic_png, name="ade20k"),
    "mapillary": partial(semantic_png, name="mapillary"),
    "ade20k_full": ade20k_full,
    "open_images": open_images,
    "coco_panoptic": panoptic,
    "lvis": lvis,
    "paco_lvis": partial(parts, name="paco_lvis"),
    "pascal_part": partial(parts, name="pascal_part"),
    "folder_parts": folder_parts,
    "objects365": objects365,
    "flickr30k": partial(mdetr, name="flickr30k"),
    "gqa_grounding": partial(mdetr, name="gqa_grounding"),
    "box_json": box_json,
    "grand_f": partial(gcg, name="grand_f"),
    "openpsg_gcg": partial(gcg, name="openpsg_gcg"),
    "refcocog_gcg": partial(gcg, name="refcocog_gcg"),
    "flickr_gcg": partial(gcg, name="flickr_gcg"),
    "osprey_conversation": partial(osprey, name="osprey_conversation"),
    "osprey_detail": partial(osprey, name="osprey_detail"),
    "osprey_short": partial(osprey, name="osprey_short"),
    "osprey_part": partial(osprey, name="osprey_part"),
    "osprey_positive_neg": partial(osprey, name="osprey_positive_neg"),
    "describe_anything": describe_anything,
    "llava": partial(llava, name="llava"),
    "vstar_possible_locations": partial(llava, name="vstar_possible_locations"),
    "chatunivi": partial(llava, name="chatunivi"),
    "finetune_json": finetune_json,
    "coco_json": coco_json,
    "png_masks": png_masks,
    "labelme": labelme,
    "labelstudio": labelstudio,
    "cvat": cvat,
    "yolo_seg": yolo_seg,
    "mevis": partial(video_referring, name="mevis"),
    "revos": partial(video_referring, name="revos"),
    "ref_youtube_vos": partial(video_referring, name="ref_youtube_vos"),
    "ref_davis17": partial(video_referring, name="ref_davis17"),
    "ref_sav": ref_sav,
    "ref_sav_eval": partial(video_referring, name="ref_sav_eval"),
    "hc_stvg": hc_stvg,
    "vidstg": vidstg,
    "vos_folders": vos_folders,
    "youtube_vos": youtube_vos,
    "sav": sav,
    "sa1b": sa1b,
    "paired_frames": paired_frames,
    "spatial_relative": partial(spatial_relations, kind="relative"),
    "spatial_absolute": partial(spatial_relations, kind="absolute"),
    "spatial_switch": partial(spatial_relations, kind="switch"),
    "prepared": prepared,
}
SOURCES["vos_relations"] = partial(vos_relations, SOURCES)  # these two are of any of the others
SOURCES["target_crops"] = partial(target_crops, SOURCES)

__all__ = ["SOURCES"]
