"""Users' own data, data in our own schema, and drawn data."""

import json
from functools import partial

import datasets
import test_finetune_json
import test_own_forms
import test_png_masks
from on_disk import Fixture, block, cut, drawn, drop, grey, plain, put, said, text, thing, with_options
from PIL import Image
from records import picture

from sa2va_hf import masks
from sa2va_hf.data.schema import FEATURES, Object, to_row

SMALL = (40, 30)


LABEL_STUDIO = "project-1-at-2026-11-30.json"


def exchange(file, old, new):
    """Puts other text in place of the first such text of a file."""
    return lambda root: (root / file).write_text((root / file).read_text().replace(old, new, 1)) and None


def finetune_json():
    module, file = test_finetune_json, "annotations.json"

    def make(root):
        first = module.record(
            "a.jpg", [[module.SQUARE], [module.SQUARE, module.LATER], None], ["left", ["x", "y"], "z"]
        )
        module.write(root, [first, module.record("b.jpg", text=["a dog"])])

    def expected(root):
        both = masks.decode(block(SMALL, 0, 0, 10, 10)) | masks.decode(block(SMALL, 12, 0, 22, 10))
        left, first = thing(SMALL, (0, 0, 10, 10)), said(("left", 0), ("x", 1), ("y", 1), ("z",))
        return [
            plain("a.jpg", SMALL, root / "images/a.jpg", [left, drawn(both)], first, "finetune_json"),
            plain("b.jpg", SMALL, root / "images/b.jpg", [left], said(("a dog", 0)), "finetune_json"),
        ]

    return Fixture(
        make,
        expected,
        {
            "'mask' has 3 entries and 'text' has 1: one of each per object": put(file, 0, "text", ["left"]),
            "object 0: polygon 0 has 2 points": put(file, 0, "mask", 0, [[1, 1, 5, 5]]),
            "image gone.jpg not found; looked in": put(file, 0, "image", "gone.jpg"),
            "record 0 must be a dict with image, mask, text, got str": put(file, 0, "a.jpg"),
        },
        {"annotations.json is not JSON": text(file, "{"), "must hold a list": text(file, "{}")},
    )


def png_masks():
    module = test_png_masks

    def make(root):
        for name in "ab":
            module.photo(root / f"images/{name}.jpg")
        module.mask(root / "masks/a.png", 1, 2, 9)
        module.mask(root / "masks/b.png", 2)
        (root / "labels.json").write_text(json.dumps({"ids": {"1": "road", "2": ["car", "vehicle"], "9": None}}))

    def expected(root):
        road, car = (thing(SMALL, (x, 0, x + 10, 10), name) for x, name in ((0, "road"), (10, "car")))
        first, void = said(("road", 0), ("car", 1), ("vehicle", 1)), [block(SMALL, 20, 0, 30, 10)]
        alone = [thing(SMALL, (0, 0, 10, 10), "car")], said(("car", 0), ("vehicle", 0))
        return [
            plain("a", SMALL, root / "images/a.jpg", [road, car], first, "png_masks", ignore=void),
            plain("b", SMALL, root / "images/b.jpg", *alone, "png_masks"),
        ]

    return Fixture(
        make,
        expected,
        {
            "a.png is 20 x 20 (width x height) but its photo is 40 x 30": grey("masks/a.png", 20, 20),
            "there is no mask for this photo": drop("masks/a.png"),
            "is a colour picture": lambda root: Image.new("RGB", SMALL, (255, 0, 0)).save(root / "masks/a.png"),
            "nothing says what its mask shows at value 1": cut("labels.json", "ids", "1"),
        },
        {"labels.json is not JSON": text("labels.json", "{"), "'ids' must be a dict": put("labels.json", "ids", [])},
    )


def prepared():
    """A folder of datasets.save_to_disk with two rows of the source "mine"."""

    def samples(root):
        pictures = [root / f"pictures/{name}.png" for name in "ab"]
        objects = [thing((40, 30), (3, 2, 11, 9), "dog")]
        return [
            plain(path.stem, (40, 30), path, objects, said(("it", 0), ("a cat",), kind="k"), "mine")
            for path in pictures
        ]

    def save(root, **changes):
        """changes: of the first row."""
        rows = [to_row(sample) for sample in samples(root)]
        rows[0] |= changes
        datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(str(root))

    def make(root):
        for name in "ab":
            picture(root / f"pictures/{name}.png")
        save(root)

    def without_a_column(root):
        rows = datasets.Dataset.from_list([to_row(one) for one in samples(root)], features=FEATURES)
        rows.remove_columns("turns").save_to_disk(str(root))

    return Fixture(
        make,
        samples,
        {"it is not a row of this schema": lambda root: save(root, expressions=None)},
        {
            "'turns' is missing": without_a_column,
            "cannot be opened": text("state.json", "{}"),
            "split 'train' cannot be opened": drop("dataset_info.json"),
        },
        source="mine",
    )


def shapes():
    """Nothing is read: what can be wrong are the options."""
    star = Object(
        [{"size": [32, 32], "counts": "c?1o01VOOc02ZOOg050OO2N23N000J[OOe015O]4"}], [(15, 15, 27, 27)], "star"
    )
    square = Object([{"size": [32, 32], "counts": "V=5k000000000Mm<"}], [(13, 6, 19, 11)], "square")
    of_star = ("large striped star", "striped green star", "large striped green shape", "shape")
    of_square = ("striped shape", "small red square", "red square", "small striped shape")

    def expected(root):
        samples = []
        for number, (one, phrases) in enumerate(((star, of_star), (square, of_square))):
            name = f"shapes-default-train-0-{number}"
            expressions = said(*((f"the {phrase}", 0) for phrase in phrases), kind="attribute")
            samples.append(plain(name, (32, 32), root / f"train/{name}-000.png", [one], expressions, "shapes"))
        return samples

    return Fixture(
        lambda root: None,
        expected,
        {},
        {
            "size: expected at least 32": with_options(size=8),
            "tasks: expected some of": with_options(tasks=("segment",)),
            "num_frames: a clip needs": with_options(clip_fraction=0.5, num_frames=3),
        },
        options={"count": 2, "size": 32, "max_objects": 1, "embed": False, "kinds": ("attribute",)},
    )


def of_a_tool(source, write, bad, files, name, file):
    """A form of test_own_forms.py; name: of its first sample; file: of the first picture."""

    def make(root):
        write(test_own_forms.Folder(root))

    def expected(root):
        size, dog = (test_own_forms.WIDTH, test_own_forms.HEIGHT), said(("dog", 0), kind="category")
        mask = masks.from_polygons([test_own_forms.POLYGON], size[1], size[0])
        objects = [Object([mask], [masks.rle_to_box(mask)], "dog")]
        return [
            plain(name.replace("0", str(n)), size, root / file.replace("0", str(n)), objects, dog, source)
            for n in range(5)
        ]

    return Fixture(make, expected, bad, files)


NO_POINTS = {"image 0.jpg not found; looked in": lambda root: next(root.rglob("0.jpg")).unlink()}
TOOLS = {
    "labelme": of_a_tool(
        "labelme",
        test_own_forms.labelme,
        {
            "a rectangle is no mask": put("0.json", "shapes", 0, "shape_type", "rectangle"),
            "shape 0 has no 'points'": cut("0.json", "shapes", 0, "points"),
            "0.json is not JSON": text("0.json", "{"),
        },
        {"there is no labelme json in": lambda root: [path.unlink() for path in root.glob("*.json")] and None},
        "0",
        "0.jpg",
    ),
    "labelstudio": of_a_tool(
        "labelstudio",
        test_own_forms.labelstudio_polygons,
        {
            **NO_POINTS,
            "its shape cannot be read": put(
                LABEL_STUDIO, 0, "annotations", 1, "result", 0, "value", "points", [["x", 1]]
            ),
            "region 0 has no label": cut(LABEL_STUDIO, 0, "annotations", 1, "result", 0, "value", "polygonlabels"),
        },
        {"the annotation file not found": text(LABEL_STUDIO, "{")},
        "task 0",
        "images/0.jpg",
    ),
    "cvat": of_a_tool(
        "cvat",
        test_own_forms.cvat_xml,
        {
            **NO_POINTS,
            "is 64 x 48, but its annotation is for 65 x 48": exchange("annotations.xml", 'width="64"', 'width="65"'),
            "a polygon without usable numbers": exchange("annotations.xml", "10,8;", "x;"),
        },
        {"must hold one annotations.xml of CVAT": text("annotations.xml", "<annotations>")},
        "0",
        "images/0.jpg",
    ),
    "yolo_seg": of_a_tool(
        "yolo_seg",
        partial(test_own_forms.yolo, roots=("images/train",)),
        {
            "four numbers are a box and no mask": text("labels/train/0.txt", "1 0.5 0.5 0.2 0.2"),
            "line 1 is of class 7, which the yaml does not name": text("labels/train/0.txt", "7 0 0 1 0 1 1"),
            "line 1 must be numbers, got 'dog 0": text("labels/train/0.txt", "dog 0 0 1 0 1 1"),
        },
        {"must have 'names'": text("data.yaml", "nc: 2"), "is not YAML": text("data.yaml", "names: [")},
        "0",
        "images/train/0.jpg",
    ),
}

OWN = TOOLS | {
    "shapes": shapes(),
    "finetune_json": finetune_json(),
    "png_masks": png_masks(),
    "prepared": prepared(),
}
