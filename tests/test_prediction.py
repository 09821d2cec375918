"""A prediction in the forms that other tools read: each holds the masks, boxes and scores of the prediction.

Run: pytest tests/test_prediction.py
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf.masks import decode
from sa2va_hf.model.packed import PackedMasks
from sa2va_hf.model.visuals import Clip
from sa2va_hf.prediction import History, Prediction, boxes_of, packed_boxes, writable

SIZE = (21, 13)  # width, height: no multiple of eight


def prediction(frames: int = 1, is_video: bool = False) -> Prediction:
    """Three objects: a box, another that moves, and one without a pixel."""
    masks = np.zeros((3, frames, SIZE[1], SIZE[0]), bool)
    masks[0, :, 2:7, 3:20] = True
    for frame in range(frames):
        masks[1, frame, 5:13, frame : frame + 4] = frame != 1
    clip = Clip([Image.new("RGB", SIZE, (40 * i, 0, 0)) for i in range(frames)])
    packed = PackedMasks.of(masks)
    scores = np.array([0.9, 0.8, 0.1], dtype=np.float32)
    history = History(clip, is_video)
    return Prediction("a [SEG] b [SEG] c [SEG]", packed, packed_boxes(packed), scores, history, masks[..., ::4, ::4])


def test_packing_keeps_every_pixel_and_takes_an_eighth():
    masks = np.random.default_rng(0).random((3, 4, 13, 21)) > 0.5
    packed = PackedMasks.of(masks)
    assert packed.shape == masks.shape and packed.bits.nbytes == 3 * 4 * 13 * 3
    np.testing.assert_array_equal(packed.unpack(), masks)
    np.testing.assert_array_equal(packed.unpack(frames=2), masks[:, 2])
    np.testing.assert_array_equal(packed.unpack(objects=1, frames=3), masks[1, 3])
    np.testing.assert_array_equal(packed.unpack(objects=slice(1, 3)), masks[1:3])
    again = PackedMasks.empty(*masks.shape)
    assert not again.unpack().any()
    for frame in range(0, 4, 2):
        again.put(slice(frame, frame + 2), masks[:, frame : frame + 2])
    np.testing.assert_array_equal(again.unpack(), masks)
    assert PackedMasks.empty(2, 0, 0, 0).unpack().shape == (2, 0, 0, 0)
    np.testing.assert_array_equal(packed_boxes(packed), boxes_of(masks))


def test_run_lengths_are_the_masks():
    p = prediction(frames=3, is_video=True)
    found = np.array([[decode(rle) for rle in track] for track in p.to_rle()])
    np.testing.assert_array_equal(found, p.masks)
    np.testing.assert_array_equal(p.frame(2), p.masks[:, 2])


def test_coco_results_of_a_picture_are_scored_by_pycocotools(capsys):
    """The truth is the prediction: AP 1. With the wrong mask first in rank it is not."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = prediction().to_coco(image_id=7, category_id=2)
    assert [entry["bbox"] for entry in results] == [[3, 2, 17, 5], [0, 5, 4, 8], [0, 0, 0, 0]]
    size = {"width": SIZE[0], "height": SIZE[1]}
    truth = COCO()
    truth.dataset = {"images": [{"id": 7, **size}], "categories": [{"id": 2, "name": "object"}], "annotations": []}
    for number, entry in enumerate(results[:2], start=1):
        area = int(decode(entry["segmentation"]).sum())
        truth.dataset["annotations"].append(entry | {"id": number, "iscrowd": 0, "area": area})
    truth.createIndex()

    def ap(entries):
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(entries))), "segm")
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        return evaluation.stats[0]

    assert ap(results) == pytest.approx(1.0)
    assert ap([results[0] | {"score": 0.1}, results[2] | {"score": 0.9}]) < 0.5


def test_coco_results_of_a_clip_are_those_of_youtube_vis():
    entries = prediction(frames=3, is_video=True).to_coco(image_id="clip")
    assert [entry["video_id"] for entry in entries] == ["clip"] * 3
    assert [[one is not None for one in entry["segmentations"]] for entry in entries] == [
        [True, True, True],
        [True, False, True],
        [False, False, False],
    ]
    assert entries[0]["score"] == pytest.approx(0.9)


def test_supervision_reads_it():
    supervision = pytest.importorskip("supervision", reason="needs the package supervision")
    p = prediction(frames=3, is_video=True)
    found = p.to_supervision(frame=1)
    np.testing.assert_array_equal(np.asarray(found.mask), p.masks[[0], 1])
    np.testing.assert_array_equal(found.xyxy, [[3, 2, 20, 7]])
    assert found.class_id.tolist() == [0] and found.confidence.tolist() == pytest.approx([0.9])
    assert isinstance(found.mask, getattr(supervision, "CompactMask", np.ndarray))
    both = p.to_supervision(frame=0)
    assert len(both) == 2
    scene = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)
    drawn = supervision.MaskAnnotator(color_lookup=supervision.ColorLookup.INDEX).annotate(scene.copy(), both)
    np.testing.assert_array_equal((drawn != scene).any(-1), p.masks[:, 0].any(0))


@pytest.mark.parametrize("form", ["png", "rle", "coco"])
def test_files(tmp_path, form):
    p = prediction(frames=2, is_video=True)
    p.save(tmp_path / "out", form, name=3, as_frames=True)
    folder = tmp_path / "out"
    assert (folder / "text.txt").read_text() == p.text + "\n"
    assert [path.name for path in sorted((folder / "overlay").iterdir())] == ["00000.png", "00001.png"]
    if form == "png":
        assert len(list((folder / "masks").iterdir())) == 6
        np.testing.assert_array_equal(
            np.asarray(Image.open(folder / "masks/object2_frame00000.png")), p.masks[1, 0] * 255
        )
    elif form == "rle":
        content = json.loads((folder / "masks.json").read_text())
        assert (
            content["masks"] == p.to_rle()
            and content["boxes"][1][1] is None
            and content["boxes"][0][0] == [3, 2, 20, 7]
        )
    else:
        assert json.loads((folder / "coco.json").read_text()) == p.to_coco(3)
    with pytest.raises(ValueError, match="form: expected one of png, rle, coco, got 'npz'"):
        p.save(folder, "npz")


def test_a_picture_has_one_overlay(tmp_path):
    prediction().save(tmp_path, "rle")
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "masks.json", "overlay.png"}


def test_an_output_that_is_a_file_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    assert writable(tmp_path / "a/b") == tmp_path / "a/b" and not (tmp_path / "a").exists()
    for name in ("file", "file/below"):
        with pytest.raises(ValueError, match="file is a file"):
            writable(tmp_path / name)
