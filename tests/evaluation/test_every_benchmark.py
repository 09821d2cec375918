"""The laws of a benchmark, for every name in BENCHMARKS: from a folder in its true form to all files, by the command.

A new benchmark needs a root in `ROOTS`. Run: pytest tests/evaluation/test_every_benchmark.py
"""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_coco_json
import test_grefcoco
import test_reason_seg
import test_refcoco
import test_spatial_relations
import test_video_referring
import test_video_tubes as stvg
import test_vos_folders
from PIL import Image
from records import picture
from tiny import tiny_processor, tiny_talker

from sa2va_hf import masks
from sa2va_hf.commands import evaluate as script
from sa2va_hf.data.sources.options import parse_options
from sa2va_hf.evaluation import describing
from sa2va_hf.evaluation.benchmarks import BENCHMARKS, load_items
from sa2va_hf.evaluation.describing import Choice, GroundedCaption, RegionCaption
from sa2va_hf.evaluation.following import Following
from sa2va_hf.evaluation.items import Settings, true_boxes
from sa2va_hf.evaluation.locating import Locating, frames_read
from sa2va_hf.evaluation.presence import Presence
from sa2va_hf.evaluation.report import flat
from sa2va_hf.evaluation.submission import Submission

EVERY = pytest.mark.parametrize("name", BENCHMARKS)
SECRET = {name for name, benchmark in BENCHMARKS.items() if isinstance(benchmark.task, Submission)}


@dataclass(frozen=True)
class Root:
    """A benchmark's folder as it comes from its publishers, and what is in it.

    make: writes it. questions: some of what must be asked of a model, to the byte. counts: the whole numbers among the
    figures. other: figures of a perfect prediction that are not 100.
    """

    make: Callable[[Path], Any]
    questions: tuple[str, ...]
    counts: dict[str, int]
    other: dict[str, float] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


# ---------------------------------------------------------------- pictures


def refcoco(name, split, split_by):
    def make(root):
        refs = [
            test_refcoco.ref(10, 1, "Left dog.", "dog at 12:00", split=split),
            test_refcoco.ref(11, 2, "right dog", split=split),
            test_refcoco.ref(12, 3, "other picture", image_id=2, split=split),
            test_refcoco.ref(13, 4, "not this split", split="train"),
        ]
        annotations = [test_refcoco.annotation(n, image_id) for n, image_id in ((1, 1), (2, 1), (3, 2), (4, 1))]
        test_refcoco.write(root, refs, annotations, name, split_by)

    return make


def referring_pictures(name, split, split_by):
    return Root(
        refcoco(name, split, split_by), ("<image>\n Please segment left dog. in this image.",), {"expressions": 4}
    )


def coco(root):
    annotations = [
        test_coco_json.annotation(1),
        test_coco_json.annotation(2),
        test_coco_json.annotation(3, image_id=2),
    ]
    test_coco_json.write(root, annotations, "annotations/instances_val.json", "val")


def region_caption(root):
    """Regions that the model's small grid has cells for."""
    refs = [
        test_refcoco.ref(10, 1, "Left dog", "left dog", split="val"),
        test_refcoco.ref(11, 2, "right dog", split="val"),
    ]
    halves = [[[0, 0, 20, 0, 20, 30, 0, 30]], [[20, 0, 40, 0, 40, 30, 20, 30]]]
    annotations = [test_refcoco.annotation(number, segmentation=half) for number, half in enumerate(halves, 1)]
    test_refcoco.write(root, refs, annotations, "refcocog", "umd")


def refcoco_m(root):
    """A row with its picture inside and sentences as texts, and one with a path and sentences as records."""
    inside, below = Path(picture(root / "x.jpg")), picture(root / "data/images/y.jpg")
    squares = [np.zeros((30, 40), dtype=bool) for _ in range(2)]
    squares[0][2:20, 3:18], squares[1][5:25, 20:39] = True, True
    drawn = [dict(masks.encode(square)) for square in squares]
    box = [0.0, 0.0, 1.0, 1.0]
    texts = [{"sentences": ["the left square", "left"], "mask": drawn[0], "bbox": box}]
    texts.append({"sentences": ["the right one"], "mask": drawn[1], "bbox": box})
    raw = [{"sentences": [{"raw": "a square"}], "mask": drawn[1], "bbox": box}]
    rows = [
        {"image": {"bytes": inside.read_bytes(), "path": None}, "image_id": 1, "samples": texts},
        {"image": {"bytes": None, "path": "images/y.jpg"}, "image_id": 2, "samples": raw},
    ]
    inside.unlink()
    assert Path(below).is_file()
    for number, row in enumerate(rows):  # the two forms of sentences are of one file each
        pq.write_table(pa.Table.from_pylist([row]), root / f"data/validation-{number:05d}-of-00002.parquet")


def grefcoco(split):
    def make(root):
        refs = [
            test_grefcoco.ref(1, [0, 1], "both", split),
            test_grefcoco.ref(2, [-1], "a cat", split, no_target=True),
            test_grefcoco.ref(3, [1], "the right one", split),
        ]
        test_grefcoco.write(root, refs, [test_grefcoco.annotation(number) for number in (0, 1)])

    return Root(make, ("<image>\n Please segment a cat in this image.",), {"expressions": 3})


def reason_seg(split):
    def make(root):
        shapes = [test_reason_seg.shape("ignore_1", 2, 2, 5, 5), test_reason_seg.TARGET]
        test_reason_seg.write(root, test_reason_seg.record(*shapes, text=["what barks", "unasked"]), "a", split=split)
        second = test_reason_seg.record(test_reason_seg.TARGET, text=["What barks?"], is_sentence=True)
        test_reason_seg.write(root, second, "b", "cp1252", split)

    questions = (
        "<image>\n Please segment what barks in this image.",
        "<image>\n What barks? Please respond with a segmentation mask.",
    )
    kinds = {f"by_kind / {kind} / expressions": 1 for kind in ("phrase", "sentence")}
    return Root(make, questions, {"expressions": 2} | kinds)


def gcg(split):
    def make(root):
        picture(root / "GranDf_HA_images/val_test/sa_1.jpg")
        picture(root / "GranDf_HA_images/val_test/sa_2.jpg")
        squares = [[[0, 0, 9, 0, 9, 9, 0, 9]], [[20, 5, 35, 5, 35, 25, 20, 25]]]
        parts = [("sa_1", squares[0]), ("sa_1", squares[1]), ("sa_2", squares[1])]
        drawn = [
            {"id": number, "image_id": image, "category_id": 1, "segmentation": polygon}
            for number, (image, polygon) in enumerate(parts)
        ]
        said = [
            {"id": 0, "image_id": "sa_1", "caption": "A cat beside a mat.", "labels": ["A cat", "a mat"]},
            {"id": 1, "image_id": "sa_2", "caption": "A dog sleeps.", "labels": ["A dog"]},
        ]
        for what, content in (("mask", drawn), ("caption", said)):
            (root / f"{split}_gcg_coco_{what}_gt.json").write_text(json.dumps({"annotations": content}))

    return Root(make, (describing.GCG_PROMPT,), {"captions": 2}, arguments=("--text_encoder", "bert"))


def vstar_bench(root):
    for kind, options in (("direct_attributes", ["red", "blue"]), ("relative_position", ["left of it", "right"])):
        picture(root / kind / "sa_1.jpg")
        record = {"question": "Where is it?", "options": options, "target_object": ["it"], "bbox": [[1, 2, 5, 5]]}
        (root / kind / "sa_1.json").write_text(json.dumps(record))


# ---------------------------------------------------------------- clips

SIZE = (test_video_referring.WIDTH, test_video_referring.HEIGHT)
FRAMES = test_video_referring.FRAMES
LEFT, RIGHT = test_video_referring.LEFT, test_video_referring.RIGHT  # squares; the first one leaves


def said_of_clip(texts, video="zoo", frames=FRAMES):
    """`videos` of a meta_expressions file. texts: (text, further fields) of each expression."""
    expressions = {str(number): {"exp": text} | more for number, (text, more) in enumerate(texts)}
    return {video: {"frames": frames, "expressions": expressions, "vid_id": 0, "height": SIZE[1], "width": SIZE[0]}}


def means(*ids, **more):
    return {"anno_id": list(ids), "obj_id": list(ids)} | more


def mevis_val_u(root):
    texts = [("The bird flying away. ", means(0)), ("Which move?", means(0, 7))]
    test_video_referring.write_mevis(root, said_of_clip(texts), {"0": LEFT, "7": RIGHT}, "valid_u")


def mevis_v2_val_u(root):
    """Both versions beside each other; in the second one an expression means nothing."""
    mevis_val_u(root)
    texts = [("The bird flying away. ", means(0)), ("Which move?", means(0, 7)), ("a fish", means())]
    (root / "valid_u/meta_expressions_v2.json").write_text(json.dumps({"videos": said_of_clip(texts)}))


def unmasked(place, frames, file="meta_expressions.json"):
    """MeViS's and Ref-YouTube-VOS's validation: no anno_id, no masks."""

    def make(root):
        test_video_referring.draw_frames(root / frames / "zoo")
        (root / place).mkdir(parents=True, exist_ok=True)
        texts = [("a bird. ", {}), ("what flies?", {})]
        (root / place / file).write_text(json.dumps({"videos": said_of_clip(texts)}))

    questions = ("<image>\nPlease segment a bird. .", "<image>\n what flies? Please respond with a segmentation mask.")
    return Root(make, questions, {"expressions": 2})


def revos(root):
    first = [("left one.", means(0, type_id=0)), ("Which falls first?", means(1, type_id=1)), ("x", means(type_id=2))]
    videos = said_of_clip(first, "TAO/frames/a") | said_of_clip([("right", means(1, type_id=0))], "OVIS/b")
    for video in videos:
        test_video_referring.draw_frames(root / video)
    (root / "meta_expressions_valid_.json").write_text(json.dumps({"videos": videos}))
    (root / "mask_dict.json").write_text(json.dumps({"0": LEFT, "1": RIGHT}))


def ref_sav(root):
    texts = [("A long sentence about the cup.", means(0, type_id=0)), ("the cup", means(1, type_id=1))]
    test_video_referring.draw_frames(root / "videos/zoo")
    (root / "meta_expressions_valid.json").write_text(json.dumps({"videos": said_of_clip(texts)}))
    (root / "mask_dict.json").write_text(json.dumps({"0": LEFT, "1": RIGHT}))


CLIP = (test_vos_folders.WIDTH, test_vos_folders.HEIGHT)
ids = test_vos_folders.ids


def palettes(root, frames, annotations, video="zoo", tracks=((1, 0), (2, 4)), count=5):
    """A clip and its pictures of indices: objects that move to the right by a pixel per frame."""
    test_vos_folders.draw_frames(root / frames / video, count)
    for number in range(count):
        moved = [(value, x + min(number, 2)) for value, x in tracks]
        test_vos_folders.save(root / annotations / video / f"{number:05d}.png", ids(*moved))


def davis(root):
    for video in ("zoo", "den"):
        palettes(root, "JPEGImages/480p", "Annotations/480p", video)
    palettes(root, "JPEGImages/480p", "Annotations/480p", "other")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("zoo\nden\n")


def ref_davis17(root):
    davis(root)
    (root / "ImageSets/2017/val.txt").write_text("zoo\n")
    (root / "davis_text_annotations").mkdir()
    for name in ("annot1", "annot1_full_video", "annot2", "annot2_full_video"):
        lines = [f'{video} {number} "{name} thing {number}"' for video in ("zoo", "den") for number in (1, 2)]
        (root / "davis_text_annotations" / f"Davis17_{name}.txt").write_text("\n".join(lines))


def sav(split):
    """Frames at 24 a second, masks at 6: a folder per object, and one of them comes later. Objects overlap."""

    def make(root):
        base = root / f"sav_{split}"
        test_vos_folders.draw_frames(base / "JPEGImages_24fps/sav_001", 13)
        for thing, places in (("000", (0, 1, 2, 3)), ("001", (None, 1, 3, 4))):
            for number, x in enumerate(places):
                mask = ids() if x is None else ids((255, x))
                file = base / "Annotations_6fps/sav_001" / thing / f"{4 * number:05d}.png"
                test_vos_folders.save(file, mask, "L")
        (base / f"sav_{split}.txt").write_text("sav_001\n")

    return Root(make, ("",), {"clips": 1, "objects": 2})


def spatial(kind, *expressions):
    """Two videos, of which one is held out."""

    def make(root):
        test_spatial_relations.write(root, kind, *expressions)
        file = root / f"all_vos2_{kind}_step2.json"
        videos = json.loads(file.read_text())["videos"]
        file.write_text(json.dumps({"videos": videos | {"den": videos["zoo"]}}))
        shutil.copytree(root / "JPEGImages/zoo", root / "JPEGImages/den")

    return make


def relations(root):
    """Two objects that keep their order, and what is said of them."""
    palettes(root, "valid/JPEGImages", "valid/Annotations")
    for folder in ("JPEGImages", "Annotations"):
        (root / "valid" / folder).rename(root / folder)


def mose(root):
    palettes(root, "valid/JPEGImages", "valid/Annotations")


def hc_stvg(file, question, **changes):
    """A clip as pictures."""

    def make(root):
        stvg.write_hc_stvg(root, {"a.mp4": stvg.person(frames=4) | changes}, file)
        stvg.draw_frames(root / "frames/a", 4)

    return Root(make, (question,), {"expressions": 1}, arguments=FROM_FRAMES)


def vidstg(split):
    """A segment with a sentence and a question."""

    def make(root):
        stvg.write_vidor(root)
        stvg.write_vidstg(root, stvg.segment(first=1), file=f"{split}_annotations.json")
        stvg.draw_frames(root / "frames/7", 6)

    kinds = {f"by_kind / {kind} / expressions": 1 for kind in ("declarative", "interrogative")}
    return Root(make, ("A child waves.", "what does it hold?"), {"expressions": 2} | kinds, arguments=FROM_FRAMES)


FROM_FRAMES = ("--option", "frames=frames")


SPLITS = {"refcoco": ("unc", "val", "testA", "testB"), "refcoco+": ("unc", "val", "testA", "testB")}
SPLITS |= {"refcocog": ("umd", "val", "test")}
CLIP_QUESTIONS = (
    "<image>\nPlease segment The bird flying away. .",
    "<image>\n Which move? Please respond with a segmentation mask.",
)
CAPTION_COUNTS = {"regions": 2, "sentences": 3, "unanswered": 0}
ANNOTATORS = ("first_frame_1", "full_video_1", "first_frame_2", "full_video_2")
SHAPES = ("--option", "count=1", "--option", "clips=1", "--option", "size=64", "--option", "num_frames=4")
SHAPES += ("--option", "max_expressions=3")
SHAPES_RELATIONS = ("--option", "count=2", "--option", "min_objects=4", "--option", "size=64")
SHAPES_RELATIONS += ("--option", "num_frames=4", "--option", "per_clip=2")
UNCOUNTED = ("shapes", "shapes_relations")  # what is drawn there is not written down here
ROOTS = {
    **{
        f"{name}_{split}": referring_pictures(name, split, split_by)
        for name, (split_by, *splits) in SPLITS.items()
        for split in splits
    },
    "refcoco_m": Root(refcoco_m, ("<image>\n Please segment the left square in this image.",), {"expressions": 4}),
    **{f"grefcoco_{split}": grefcoco(split) for split in ("val", "testA", "testB")},
    **{f"reason_seg_{split}": reason_seg(split) for split in ("val", "test")},
    **{f"gcg_{split}": gcg(split) for split in ("val", "test")},
    "region_caption": Root(region_caption, (describing.REGION_PROMPT,), CAPTION_COUNTS),
    "vstar_bench": Root(vstar_bench, ("<image>\nWhere is it?",), {"questions": 2}),
    "mevis_val_u": Root(mevis_val_u, CLIP_QUESTIONS, {"expressions": 2}),
    "mevis_val": unmasked("valid", "valid/JPEGImages"),
    "mevis_v2_val_u": Root(mevis_v2_val_u, CLIP_QUESTIONS, {"expressions": 3, "any with a target / expressions": 2}),
    "mevis_v2_val": unmasked("valid", "valid/JPEGImages", "meta_expressions_v2_release.json"),
    "ref_youtube_vos": unmasked("meta_expressions/valid", "valid/JPEGImages"),
    "ref_davis17": Root(
        ref_davis17,
        ("<image>\nPlease segment annot2 thing 1.",),
        {"expressions": 8} | {f"by_kind / {kind} / expressions": 2 for kind in ANNOTATORS},
    ),
    "revos": Root(
        revos,
        ("<image>\nPlease segment left one..",),
        {"expressions": 4}
        | {f"by_kind / {kind} / expressions": n for kind, n in (("referring", 2), ("reasoning", 1), ("no_target", 1))},
    ),
    "ref_sav": Root(
        ref_sav,
        ("<image>\nPlease segment A long sentence about the cup..",),
        {"expressions": 2} | {f"by_kind / {kind} / expressions": 1 for kind in ("long", "short")},
    ),
    "hc_stvg_test": hc_stvg("test.json", "He runs."),
    "hc_stvg_v2_val": hc_stvg("val_v2.json", "She sits.", English="She sits.", img_size=[stvg.HEIGHT, stvg.WIDTH]),
    **{f"vidstg_{split}": vidstg(split) for split in ("val", "test")},
    "davis17_vos": Root(davis, ("",), {"clips": 2, "objects": 4}, {"J_decay": 0.0, "F_decay": 0.0}),
    "sav_val": sav("val"),
    "sav_test": sav("test"),
    "spatial_relative": Root(
        spatial("relative", test_spatial_relations.relative("left_1")),
        ("the first object to the left of the one at [600, 100, 700, 300]",),
        {"expressions": 1, "by_kind / ordinal 01 / expressions": 1, "by_kind / relative / expressions": 1},
    ),
    "spatial_absolute": Root(
        spatial("absolute", test_spatial_relations.absolute("right_2")),
        ("the second object from the right",),
        {"expressions": 1, "by_kind / ordinal 02 / expressions": 1, "by_kind / absolute / expressions": 1},
    ),
    "spatial_switch": Root(
        spatial("switch", test_spatial_relations.switch((0, 0), (4, 1))),
        ("the leftmost object",),
        {"expressions": 1, "by_kind / switch / expressions": 1},
    ),
    "vos_relations": Root(
        relations,
        ("the first object from the right",),
        {"expressions": 2, "by_kind / ordinal 01 / expressions": 2, "by_kind / absolute / expressions": 2},
        arguments=("--option", "kinds=[absolute]", "--option", "per_clip=2"),
    ),
    "shapes_relations": Root(lambda root: None, ("the ",), {}, arguments=SHAPES_RELATIONS),
    "target_crops": Root(
        coco,
        ("Please segment the dog in this image.", "Please segment every dog in this image."),
        {"crops": 4, "with_target": 2},
        {"threshold": 0.0, "calibration_error": 0.0},
        ("--option", "minimum_size=16"),
    ),
    "vos": Root(mose, ("",), {"clips": 1, "objects": 2}),
    "shapes": Root(lambda root: None, ("Please segment ",), {}, arguments=SHAPES),
}


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model that says [SEG] to whatever it is asked."""
    folder = tmp_path_factory.mktemp("model")
    tiny_talker().save_pretrained(folder)
    tiny_processor(template="qwen_chat").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """For what is not installed here: BERT, and the programs that compare captions."""

    def alike(true, said):
        return {"same words": float(np.mean([text in true[key] for key, text in said.items()]))}

    monkeypatch.setattr(describing, "caption_scores", alike)
    monkeypatch.setattr(describing, "text_encoder", lambda folder: lambda texts: [[len(t), 1.0] for t in texts])


@pytest.fixture
def evaluate(monkeypatch, tmp_path, model):
    """evaluate.py on a benchmark's root, into a folder."""

    def command(name, folder, *more, asks=True):
        data = ["--benchmark", name, *ROOTS[name].arguments]
        data += ["--root", str(tmp_path / "raw")] if BENCHMARKS[name].needs_root else []
        asking = ["--model", str(model), "--max_new_tokens", "16", "--device", "cpu"] if asks else []
        output = ["--output", str(tmp_path / folder / "m.json")]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *data, *asking, *output, *more])
        return script.evaluate(script.make_parser().parse_args())

    (tmp_path / "raw").mkdir()
    return command


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "m.run.json"}


def items_of(name, root):
    arguments = ROOTS[name].arguments
    options = parse_options(arguments[1::2], BENCHMARKS[name].samples) if "--option" in arguments else {}
    items, rejects = load_items(BENCHMARKS[name], str(root), Settings(), options=options)
    assert not rejects
    return items


def test_every_benchmark_has_its_root():
    assert set(ROOTS) == set(BENCHMARKS)


@EVERY
def test_from_the_folder_to_the_files_and_from_the_predictions_to_the_same(name, evaluate, tmp_path):
    ROOTS[name].make(tmp_path / "raw")
    result = evaluate(name, "out")
    files = {f"m.{ending}" for ending in ("json", "md", "predictions.arrow", "samples.png", "run.json")}
    files |= {"m.zip"} if name in SECRET else set()
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert json.loads((tmp_path / "out/m.json").read_text()) == json.loads(json.dumps(result))
    figures = dict(flat(result["metrics"]))
    counts = {key: value for key, value in figures.items() if isinstance(value, int)}
    assert name in UNCOUNTED or counts == ROOTS[name].counts
    assert all(np.isfinite(value) for value in figures.values() if isinstance(value, float))
    if isinstance(BENCHMARKS[name].task, Following | Submission) or "cIoU" in figures or "J&F" in figures:
        assert figures.get("emission", 100.0) == 100.0  # it says [SEG]: masks are drawn, and scored
    asked = [row["question"] for row in rows_of(tmp_path / "out/m.predictions.arrow")[1]]
    assert all(any(one.startswith(wanted) for one in asked) for wanted in ROOTS[name].questions)
    assert name in UNCOUNTED or set(ROOTS[name].questions) <= set(asked)

    again = ["--predictions", str(tmp_path / "out/m.predictions.arrow")]
    assert evaluate(name, "again", *again, asks=False) == result
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in SECRET])
def test_the_truth_itself_is_perfect(name, evaluate, tmp_path):
    ROOTS[name].make(tmp_path / "raw")
    items = items_of(name, tmp_path / "raw")
    write_truth(name, items, tmp_path / "truth.arrow")
    figures = dict(flat(evaluate(name, "out", "--predictions", str(tmp_path / "truth.arrow"), asks=False)["metrics"]))
    scores = {key: value for key, value in figures.items() if isinstance(value, float)}
    assert len(scores) >= 1
    assert scores == pytest.approx(dict.fromkeys(scores, 100.0) | ROOTS[name].other, abs=1e-3)
    assert not any(isinstance(value, str) for value in figures.values())


def write_truth(name, items, path):
    """Predictions, as another tool might write them, that are the truth."""
    rows = [{"key": item.key} | truth(BENCHMARKS[name].task, item) for item in items]
    rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    schema = pa.schema([(column, pa.string()) for column in rows[0] if column != "masks"])
    schema = schema.append(pa.field("masks", pa.list_(pa.list_(rle))))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def truth(task, item):
    """The columns that hold the right answer to an item."""
    sample = item.sample
    answer = {"answer": "Sure, [SEG].", "masks": []}
    if isinstance(task, Choice):
        losses = [float(number) for number in range(len(item.more["options"]))]
        return answer | {"answer": item.more["options"][0], "more": json.dumps({"losses": losses})}
    if isinstance(task, RegionCaption):
        return answer | {"answer": f"region1 shows {item.more['references'][0]}"}
    if isinstance(task, Locating):
        boxes = {index: true_boxes(item, index) for index in frames_read(sample, Settings())}
        return answer | {
            "more": json.dumps({"boxes": {key: rows or [] for key, rows in boxes.items()}, "problems": []})
        }
    if isinstance(task, Presence):
        return answer | {"more": json.dumps({"confidence": float(bool(true_boxes(item, 0)))})}
    tracks = [thing.masks for thing in sample.objects]
    if isinstance(task, GroundedCaption):
        said = sample.turns[0].answer
        for thing in sample.objects:
            said = said.replace(thing.category, f"<p> {thing.category}</p>[SEG]")
        return answer | {"answer": said, "masks": tracks}
    if not isinstance(task, Following):
        if not item.targets:
            return answer | {"answer": "There is none."}
        unions = [item.truth(place).any(0) for place in range(len(sample.annotated))]
        tracks = [[masks.encode(mask) for mask in unions]]
    empty = masks.empty(sample.height, sample.width)
    places = {frame: place for place, frame in enumerate(sample.annotated)}
    frames = range(sample.num_frames)
    return answer | {"masks": [[track[places[n]] if n in places else empty for n in frames] for track in tracks]}


def rows_of(path):
    with pa.memory_map(str(path)) as file:
        stream = pa.ipc.open_stream(file)
        return stream.schema, stream.read_all().to_pylist()


@pytest.mark.parametrize("name", sorted(SECRET))
def test_a_submission_holds_a_picture_of_every_frame_of_every_expression(name, evaluate, tmp_path):
    ROOTS[name].make(tmp_path / "raw")
    evaluate(name, "out")
    with zipfile.ZipFile(tmp_path / "out/m.zip") as archive:
        names = archive.namelist()
        drawn = np.asarray(Image.open(archive.open(names[0])))
    folder = "Annotations/" if name == "ref_youtube_vos" else ""
    assert names == [f"{folder}zoo/{number}/{frame}.png" for number in (0, 1) for frame in FRAMES]
    assert drawn.shape == SIZE[::-1] and set(np.unique(drawn)) <= {0, 255}
    answers = {row["key"]: row["masks"] for row in rows_of(tmp_path / "out/m.predictions.arrow")[1]}
    np.testing.assert_array_equal(drawn > 0, masks.decode(answers["zoo/0/0"][0][0]))


# ---------------------------------------------------------------- predictions by the command


def test_arguments_that_ask_otherwise_than_the_predictions_are_errors(evaluate, tmp_path):
    name = "mevis_val_u"
    ROOTS[name].make(tmp_path / "raw")
    result = evaluate(name, "out", "--num_frames", "2", "--mode", "teacher")
    settings = result["recipe"]["settings"]
    assert (settings["num_frames"], settings["video_mode"]) == (2, "consistent")  # the model's own is said
    file = ["--predictions", str(tmp_path / "out/m.predictions.arrow")]
    assert evaluate(name, "again", *file, "--num_frames", "2", asks=False) == result
    with pytest.raises(ValueError, match=r"--num_frames 5: .* was made with 2; give --model to ask anew"):
        evaluate(name, "again", *file, "--num_frames", "5", asks=False)
    with pytest.raises(ValueError, match="--mode generate: .* was made with teacher"):
        evaluate(name, "again", *file, "--mode", "generate", asks=False)
    with pytest.raises(ValueError, match="predictions of the benchmark ref_sav, got those of mevis_val_u"):
        shutil.rmtree(tmp_path / "raw")
        ROOTS["ref_sav"].make(tmp_path / "raw")
        evaluate("ref_sav", "again", *file, asks=False)


def test_phrases_can_be_compared_later(evaluate, tmp_path, monkeypatch):
    """Recall needs a text encoder: predictions that were made without one get it when they are scored again."""
    name = "gcg_val"
    ROOTS[name].make(tmp_path / "raw")
    with_encoder = evaluate(name, "with")
    monkeypatch.setitem(ROOTS, name, Root(None, (), {}))
    without = evaluate(name, "without")
    assert "recall" in with_encoder["metrics"] and "recall" not in without["metrics"]
    file = ["--predictions", str(tmp_path / "without/m.predictions.arrow")]
    assert evaluate(name, "later", *file, "--text_encoder", "bert", asks=False) == with_encoder
    assert contents(tmp_path / "later") == contents(tmp_path / "with")
