"""Pictures with masks: referring expressions, classes, instances and parts."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import test_ade20k_full
import test_coco_json
import test_folder_parts
import test_grefcoco
import test_lvis
import test_open_images
import test_panoptic
import test_parts
import test_reason_seg
import test_refcoco
import test_sa1b
import test_semantic_png
from on_disk import (
    Fixture,
    block,
    change,
    cut,
    drawn,
    drop,
    grey,
    load,
    plain,
    put,
    said,
    save,
    text,
    thing,
    with_options,
)
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Object, Sample, Turn

SMALL = (40, 30)
NO_PIXEL = {"size": [30, 40], "counts": [1200]}


# ---------------------------------------------------------------- referring expressions


def refcoco(name, split_by):
    def make(root):
        refs = [
            test_refcoco.ref(10, 1, "Left dog.", "dog at 12:00"),
            test_refcoco.ref(11, 2, "right dog"),
            test_refcoco.ref(12, 3, "other picture", image_id=2),
            test_refcoco.ref(13, 4, "not this split", split="val"),
        ]
        annotations = [test_refcoco.annotation(n, image_id) for n, image_id in ((1, 1), (2, 1), (3, 2), (4, 1))]
        test_refcoco.write(root, refs, annotations, name, split_by)

    def expected(root):
        objects = [thing(SMALL, (2 * n, 2 * n, 2 * n + 10, 2 * n + 10), "dog") for n in (1, 2, 3)]
        first = said(("Left dog.", 0), ("dog at 12:00", 0), ("right dog", 1))
        pictures = [root / f"images/train2014/{number}.jpg" for number in (1, 2)]
        return [
            plain(f"{name}/1", SMALL, pictures[0], objects[:2], first, name),
            plain(f"{name}/2", SMALL, pictures[1], objects[2:], said(("other picture", 0)), name),
        ]

    refs, instances = f"{name}/refs({split_by}).p", f"{name}/instances.json"
    return Fixture(
        make,
        expected,
        {
            "annotation 9 of the ref is missing in instances.json": put(refs, 0, "ann_id", 9),
            "'raw' must be a non-empty text, got ' . '": put(refs, 0, "sentences", 0, "raw", " . "),
            "annotation 1: polygon 0 has 2 points": put(instances, "annotations", 0, "segmentation", [[1, 1, 5, 5]]),
            "image 1.jpg not found; looked in": drop("images/train2014/1.jpg"),
            "annotation 1: 'category_id' must be int, got ['x']": put(
                instances, "annotations", 0, "category_id", ["x"]
            ),
        },
        {
            "cannot be read as a pickle of plain data": text(refs, "no pickle"),
            "instances.json is not JSON": text(instances, "{"),
            "must have a list 'annotations'": cut(instances, "annotations"),
        },
    )


def make_many_meant(root, name, file, refs, picture):
    """test_grefcoco's root with a second picture."""
    annotations = [test_grefcoco.annotation(n) for n in (0, 1)] + [test_grefcoco.annotation(2, image_id=2)]
    test_grefcoco.write(root, refs, annotations, name, file, picture)
    shutil.copy(root / picture, (root / picture).with_name("2.jpg"))
    second = {"id": 2, "file_name": "2.jpg", "width": 40, "height": 30}
    change(root / name / "instances.json", lambda content: content["images"].append(second))


def squares(*numbers):
    return [thing(SMALL, (12 * n, 0, 12 * n + 10, 10), "dog") for n in numbers]


def grefcoco():
    ref = test_grefcoco.ref
    refs = [ref(1, [0, 1], "both"), ref(2, [-1], "a cat", no_target=True), ref(3, [2], "the other", image_id=2)]
    folder = "images/train2014"

    def expected(root):
        first = said(("both", 0, 1), ("a cat",))
        return [
            plain("grefcoco/1", SMALL, root / folder / "1.jpg", squares(0, 1), first, "grefcoco"),
            plain("grefcoco/2", SMALL, root / folder / "2.jpg", squares(2), said(("the other", 0)), "grefcoco"),
        ]

    file, instances = "grefcoco/grefs(unc).json", "grefcoco/instances.json"
    return Fixture(
        lambda root: make_many_meant(root, "grefcoco", "grefs(unc).json", refs, f"{folder}/1.jpg"),
        expected,
        {
            "says both that nothing matches (-1) and what does: [-1, 0]": put(file, 0, "ann_id", [-1, 0]),
            "'ann_id' must be a list of at least one int, got []": put(file, 1, "ann_id", []),
            "annotation 0: RLE garbage": put(
                instances, "annotations", 0, "segmentation", {"size": [30, 40], "counts": "zz"}
            ),
        },
        {"grefs(unc).json is not JSON": text(file, "["), "has no split 'train'": text(file, "[]")},
    )


def refclef():
    ref = test_grefcoco.ref
    refs = [ref(1, 0, "a"), ref(2, 1, "b"), ref(3, 2, "c", image_id=2)]
    folder = "images/saiapr_tc-12/02/images"

    def expected(root):
        first = said(("a", 0), ("b", 1))
        return [
            plain("refclef/1", SMALL, root / folder / "1.jpg", squares(0, 1), first, "refclef"),
            plain("refclef/2", SMALL, root / folder / "2.jpg", squares(2), said(("c", 0)), "refclef"),
        ]

    file, instances = "refclef/refs(unc).p", "refclef/instances.json"
    return Fixture(
        lambda root: make_many_meant(root, "refclef", "refs(unc).p", refs, f"{folder}/1.jpg"),
        expected,
        {
            "'ann_id' must be int, got '0'": put(file, 0, "ann_id", "0"),
            "annotation 1 is of image 2, not of image 1": put(instances, "annotations", 1, "image_id", 2),
            "covers no pixel": put(instances, "annotations", 0, "segmentation", NO_PIXEL),
        },
        {"cannot be read as a pickle of plain data": text(file, "")},
    )


def reason_seg():
    def make(root):
        shapes = [test_reason_seg.shape("ignore_1", 2, 2, 5, 5), test_reason_seg.TARGET]
        test_reason_seg.write(root, test_reason_seg.record(*shapes, text=["what barks"]), "a")
        (root / "explanatory").mkdir()
        explanation = [{"image": "a.jpg", "query": "what barks", "outputs": "Dogs bark."}]
        (root / "explanatory/train.json").write_text(json.dumps(explanation))
        second = test_reason_seg.record(test_reason_seg.TARGET, text=["Which?", " what "], is_sentence=True)
        test_reason_seg.write(root, second, "b", "cp1252")

    def expected(root):
        hole = masks.decode(block(SMALL, 2, 2, 6, 6))
        target = drawn(masks.decode(block(SMALL, 0, 0, 10, 10)) & ~hole)
        turn = Turn("what barks. Please segment it and explain why.", "It is [SEG]. Dogs bark.", [[0]])
        phrase, ignore = said(("what barks", 0), kind="phrase"), [masks.encode(hole)]
        sentences = said(("Which?", 0), ("what", 0), kind="sentence")
        first = plain("a", SMALL, root / "train/a.jpg", [target], phrase, "reason_seg", ignore=ignore)
        explained = replace(first, id="a/explained", task="conversation", expressions=[], turns=[turn])
        whole = [thing(SMALL, (0, 0, 10, 10))]
        return [first, explained, plain("b", SMALL, root / "train/b.jpg", whole, sentences, "reason_seg")]

    return Fixture(
        make,
        expected,
        {
            "label must be 'target', 'flag' or contain 'ignore', got 'dog'": put(
                "train/b.json", "shapes", 0, "label", "dog"
            ),
            "has no 'shapes'": cut("train/b.json", "shapes"),
            "is not JSON": text("train/b.json", "{"),
            "explanation 0: 'outputs' is empty": put("explanatory/train.json", 0, "outputs", " "),
        },
        {"train.json must hold a list": text("explanatory/train.json", "{}")},
    )


# ---------------------------------------------------------------- a class per pixel


def semantic(name, bad_value, meaning):
    """meaning: of its LAYOUTS, what is no class there."""
    folder, photos, names, _, values = test_semantic_png.LAYOUTS[name]
    ids = np.resize([value for value in values for _ in range(3)], (4, 6))

    def make(root):
        test_semantic_png.write(root, name, ids, "a")
        test_semantic_png.write(root, name, ids[::-1], "b")

    def expected(root):
        samples = []
        for stem, of_picture in (("a", ids), ("b", ids[::-1])):
            classes = [(word, of_picture == value) for value, word in values.items() if word]
            expressions = said(*((word, n) for n, (word, _) in enumerate(classes)), kind="category")
            void = masks.encode(np.isin(of_picture, [value for value, word in values.items() if word is None]))
            objects = [drawn(mask, word) for word, mask in classes]
            path = root / photos / f"{stem}.jpg"
            samples.append(plain(stem, (6, 4), path, objects, expressions, name, ignore=[void]))
        return samples

    def foreign(root):
        picture = Image.open(root / folder / "a.png")
        Image.fromarray(np.full((4, 6), bad_value, np.uint8)).convert(picture.mode).save(root / folder / "a.png")

    return Fixture(
        make,
        expected,
        {
            meaning: foreign,
            "a.png is 5 x 5 (width x height) but its photo is 6 x 4": grey(f"{folder}/a.png", 5, 5),
            "there is no photo a.jpg; looked in": drop(f"{photos}/a.jpg"),
            "a.png cannot be read as a picture": text(f"{folder}/a.png", "no picture"),
        },
        {f"the names of the classes of {name} not found": drop(names)},
    )


def ade20k_full():
    module, street = test_ade20k_full, "images/ADE/training/urban/street"

    def make(root):
        shutil.copytree(module.write(root, "2021"), root / street.replace("street", "park"))

    def expected(root):
        first = Sample("urban/park/ADE_1", "referring", 6, 4, source="ade20k_full")
        first.ignore = [masks.encode(module.THINGS[..., 0] == 0)]
        first.objects = [
            module.thing(module.THINGS, module.CAR, 40, "car"),
            module.thing(module.THINGS, module.CAR, 80, "car"),
            module.thing(module.THINGS, module.PERSON, 120, "person"),
            module.thing(module.PARTS, module.WHEEL, 30, "car:wheel"),
            module.thing(module.PARTS, module.WHEEL, 60, "car:wheel"),
            module.thing(module.RIMS, module.RIM, 255, "wheel:rim"),
        ]
        first.expressions = said(("car", 0, 1), ("person", 2), kind="category")
        first.expressions += said(("wheel of the car", 3, 4), ("rim of the wheel", 5), kind="part")
        shown = {"num_frames": 1, "annotated": [0]}
        frames = [[str(root / street.replace("street", place) / "ADE_1.jpg")] for place in ("park", "street")]
        first = replace(first, frames=frames[0], **shown)
        return [first, replace(first, id="urban/street/ADE_1", frames=frames[1])]

    record = f"{street}/ADE_1.json"
    return Fixture(
        make,
        expected,
        {
            "ADE_1.json is not JSON": text(record, "{"),
            "there is neither ADE_1_atr.txt (2017) nor ADE_1.json": drop(record),
            "image ADE_1.jpg not found": drop(f"{street}/ADE_1.jpg"),
            "class 401 of its PNGs is no name_ndx of ADE_1.json": put(
                record, "annotation", "object", 0, "name_ndx", 9
            ),
        },
        {"the pictures of ADE20K not found; looked for": drop("images")},
    )


def coco_panoptic():
    module, file = test_panoptic, "annotations/panoptic_val2017.json"

    def make(root):
        module.write(root, module.segments())
        for folder, suffix in (("annotations/panoptic_val2017", "png"), ("val2017", "jpg")):
            shutil.copy(root / folder / f"a.{suffix}", root / folder / f"b.{suffix}")
        content = load(root / file)
        content["images"].append(content["images"][0] | {"id": 2, "file_name": "b.jpg"})
        content["annotations"].append(content["annotations"][0] | {"image_id": 2, "file_name": "b.png"})
        save(root / file, content)

    def expected(root):
        names = {7: "dog", 300: "wall", 70000: "dog", 255: "wall", 9: "sky"}
        objects = [drawn(module.IDS == value, name) for value, name in names.items()]
        expressions = said(("every dog", 0, 2), ("wall", 1, 3), ("sky", 4), kind="category")
        void = [masks.encode(module.IDS == 0)]
        return [
            plain(n, (4, 4), root / f"val2017/{name}.jpg", objects, expressions, "coco_panoptic", ignore=void)
            for n, name in (("1", "a"), ("2", "b"))
        ]

    segment = ("annotations", 0, "segments_info", 0)
    return Fixture(
        make,
        expected,
        {
            "its area is 4, but the PNG has 3 pixels of it": put(file, *segment, "area", 4),
            "no pixel of the PNG has the id 8": put(file, *segment, "id", 8),
            "'category_id' must be int, got None": put(file, *segment, "category_id", None),
            "'id' must be int, got [7]": put(file, *segment, "id", [7]),
            "a.png is 5 x 5": lambda root: Image.new("RGB", (5, 5)).save(root / "annotations/panoptic_val2017/a.png"),
        },
        {"must have a list 'annotations'": put(file, "annotations", {}), "is not JSON": text(file, "")},
        split="val",
    )


# ---------------------------------------------------------------- instances


def second_picture(root, file, picture, name, number=10, **of_picture):
    """Adds to a file of COCO's form a picture that is a copy of its first, with copies of that one's annotations."""
    shutil.copy(root / picture, (root / picture).with_name(name))
    content = load(root / file)
    first = content["images"][0]
    content["images"].append(first | {"id": number} | of_picture)
    own = [one for one in content["annotations"] if one["image_id"] == first["id"]]
    content["annotations"] += [one | {"id": 100 + one["id"], "image_id": number} for one in own]
    save(root / file, content)


def open_images():
    module, folder = test_open_images, "images/train"
    table = "annotations/train-annotations-object-segmentation.csv"
    lines = [
        module.line("half"),
        module.line("spot", x0="0.5", x1="1.0", y0="0.125", y1="0.5"),
        module.line("spot", "b", "/m/02", x0="0.5", x1="1.0", y0="0.125", y1="0.5"),
    ]

    def make(root):
        module.write(root, lines)
        shutil.copy(root / folder / "a.jpg", root / folder / "b.jpg")

    def expected(root):
        half = thing((12, 8), (0, 0, 6, 8), "person")
        spot = replace(thing((12, 8), (8, 2, 10, 4), "person"), boxes=[(6.0, 1.0, 12.0, 4.0)])  # boxes are the file's
        every = said(("every person", 0, 1), kind="category")
        eye = [replace(spot, category="human eye")], said(("human eye", 0), kind="category")
        return [
            plain("a", (12, 8), root / folder / "a.jpg", [half, spot], every, "open_images"),
            plain("b", (12, 8), root / folder / "b.jpg", *eye, "open_images"),
        ]

    def with_line(number, line):
        rows = [module.TITLES, *(line if n == number else one for n, one in enumerate(lines))]
        return text(table, "\n".join(rows) + "\n")

    return Fixture(
        make,
        expected,
        {
            "its LabelName '/m/99' is not among the names of the classes": with_line(
                0, module.line("half", code="/m/99")
            ),
            "BoxXMin, BoxXMax, BoxYMin, BoxYMax must be numbers, got 0.0, wide": with_line(
                0, module.line("half", x1="wide")
            ),
            "image half.png not found; looked in": drop("masks/train/half.png"),
            "image a.jpg not found; looked in": drop(f"{folder}/a.jpg"),
        },
        {"line 2 has 2 columns, expected 10": text(table, f"{module.TITLES}\nhalf.png,a\n")},
    )


def lvis():
    module, file, folder = test_lvis, "annotations/lvis_v1_train.json", "train2017"

    def make(root):
        annotations = [module.annotation(0), module.annotation(1, 1), module.annotation(2), module.annotation(3, 3)]
        module.write(root, annotations, not_exhaustive_category_ids=[3], neg_category_ids=[5])
        url = "http://images.cocodataset.org/train2017/000000000010.jpg"
        second_picture(root, file, f"{folder}/000000000009.jpg", "000000000010.jpg", coco_url=url)

    def expected(root):
        names = ("dog", "bat (animal)", "dog", "cup")
        objects = [thing((12, 8), (2 * n, 0, 2 * n + 2, 3), name) for n, name in enumerate(names)]
        expressions = said(("every dog", 0, 2), ("bat (animal)", 1), ("tea bag",), kind="category")
        return [plain(f"{n}", (12, 8), root / folder / f"{n:012d}.jpg", objects, expressions, "lvis") for n in (9, 10)]

    return Fixture(
        make,
        expected,
        {
            "neg_category_ids says that there is no dog, but annotations show it": put(
                file, "images", 0, "neg_category_ids", [2]
            ),
            "its category_id 99 has no name": put(file, "annotations", 0, "category_id", 99),
            "polygon 0 has 1 points": put(file, "annotations", 0, "segmentation", [[1, 1]]),
            "image 9: 'height' must be int, got 'tall'": put(file, "images", 0, "height", "tall"),
        },
        {"must have a list 'categories'": cut(file, "categories")},
        options={"negatives": 1},
    )


def parts(name):
    module = test_parts
    file, picture, file_name = module.FILES[name]

    def make(root):
        module.write(root, name, [module.annotation(0, 1), module.annotation(1, 2), module.annotation(2, 2)])
        second = file_name.replace("09", "10").replace("2008_000001", "10")
        second_picture(root, file, picture, "10.jpg", file_name=second)

    def expected(root):
        names = ("dog", "dog:head", "dog:head")
        objects = [thing((12, 8), (2 * n, 1, 2 * n + 2, 4), word) for n, word in enumerate(names)]
        expressions = said(("dog", 0), kind="category") + said(("head of the dog", 1, 2), kind="part")
        paths = [root / picture, (root / picture).with_name("10.jpg")]
        return [
            plain(n, (12, 8), path, objects, expressions, name) for n, path in zip(("9", "10"), paths, strict=True)
        ]

    garbage = {"size": [8, 12], "counts": "1"}
    return Fixture(
        make,
        expected,
        {
            "its category_id 77 has no name among the categories": put(file, "annotations", 0, "category_id", 77),
            "annotation 0: RLE garbage": put(file, "annotations", 0, "segmentation", garbage),
            "its image_id 3 is not among the images": put(file, "annotations", 0, "image_id", 3),
            " not found; looked in": drop(picture),
        },
        {"is not JSON": text(file, "["), "must hold a dict": text(file, "[]")},
    )


def coco_json():
    module, file = test_coco_json, "annotations/instances_train.json"

    def make(root):
        annotations = [module.annotation(1), module.annotation(2, category_id=90), module.annotation(3)]
        module.write(root, [*annotations, module.annotation(4, image_id=2)])

    def expected(root):
        boxes = [(2 * n, 2 * n, 2 * n + 10, 2 * n + 10) for n in (1, 2, 3, 4)]
        names = ("dog", "cat", "dog", "dog")
        objects = [thing((60, 50), box, name) for box, name in zip(boxes, names, strict=True)]
        first = said(("every dog", 0, 2), ("cat", 1), kind="category")
        return [
            plain("1", (60, 50), root / "train/1.jpg", objects[:3], first, "coco_json"),
            plain("2", (60, 50), root / "train/2.jpg", objects[3:], said(("dog", 0), kind="category"), "coco_json"),
        ]

    return Fixture(
        make,
        expected,
        {
            "annotation 1: polygon 0 has 2 points": put(file, "annotations", 0, "segmentation", [[1, 1, 5, 5]]),
            "its category_id 4 has no name among the categories": put(file, "annotations", 0, "category_id", 4),
            "image 1.jpg not found; looked in": drop("train/1.jpg"),
            "annotations[0] must be a dict": put(file, "annotations", 0, "x"),
            "a picture of 60 x -1 (width x height) pixels": put(file, "images", 0, "height", -1),
        },
        {"is not JSON": text(file, "{"), "must have a list 'annotations'": cut(file, "annotations")},
    )


def target_crops():
    """Of the pictures of `coco_json`, which are black; the places of the crops are sampled by the ids."""
    size, file = (30, 25), "annotations/instances_train.json"

    def pair(number, texts, *things):
        shown = io.BytesIO()
        Image.new("RGB", size).save(shown, "JPEG", quality=95)
        for kind, objects in (
            ("present", things),
            ("absent", [Object([masks.empty(25, 30)], [None], "dog") for _ in things]),
        ):
            expressions = said((texts, *range(len(things))), kind=kind)
            name = f"{number}/0-{kind}"
            yield plain(name, size, "", list(objects), expressions, "target_crops", frames=[shown.getvalue()])

    def expected(root):
        first = [thing(size, (2, 0, 12, 8), "dog"), thing(size, (6, 2, 16, 12), "dog")]
        return [*pair(1, "every dog", *first), *pair(2, "dog", thing(size, (0, 5, 10, 15), "dog"))]

    return Fixture(
        coco_json().make,
        expected,
        {},
        {
            "must have a list 'annotations'": cut(file, "annotations"),
            "base must be a source that gives masks": with_options(base="target_crops"),
            "absent one of mask, words": with_options(absent="silence"),
        },
        options={"minimum_size": 16},
    )


def sa1b():
    module, size = test_sa1b, (test_sa1b.WIDTH, test_sa1b.HEIGHT)

    def make(root):
        module.write(root, "sa_1", module.annotation(7, module.square(0)), module.annotation(8, module.square(5)))
        module.write(root, "sa_2", module.annotation(9, module.square(3)))

    def expected(root):
        objects = [thing(size, (x, 1, x + 2, 3)) for x in (0, 5, 3)]
        return [
            plain("sa_1", size, root / "sa_1.jpg", objects[:2], [], "sa1b"),
            plain("sa_2", size, root / "sa_2.jpg", objects[2:], [], "sa1b"),
        ]

    garbage = {"size": [6, 8], "counts": "!"}
    return Fixture(
        make,
        expected,
        {
            "RLE garbage": put("sa_1.json", "annotations", 0, "segmentation", garbage),
            "gone.jpg not found": put("sa_1.json", "image", "file_name", "gone.jpg"),
            "is not JSON": text("sa_1.json", "{"),
        },
        {"there are no json files below": lambda root: [path.unlink() for path in root.glob("*.json")] and None},
    )


# ---------------------------------------------------------------- pseudo-labelled


def folder_parts():
    module, folder = test_folder_parts, "scroll_wheel/mouse_(computer)"

    def make(root):
        module.photo(root / folder / "1.png")
        module.draw(root / folder / "1_mask.png")
        module.photo(root / folder / "2.jpg")
        module.shapes(root / folder / "2.json", module.polygon())

    def expected(root):
        objects = [thing((12, 8), (3, 2, 9, 5), "mouse:scroll wheel")]
        expressions = said(("scroll wheel of the mouse", 0), kind="part")
        return [
            plain(f"{folder}/{name[0]}", (12, 8), root / folder / name, objects, expressions, "folder_parts")
            for name in ("1.png", "2.jpg")
        ]

    return Fixture(
        make,
        expected,
        {
            "1_mask.png is 8 x 12 (width x height) but its photo is 12 x 8": grey(f"{folder}/1_mask.png", 8, 12),
            "label must be 'target', 'scroll wheel' or contain 'ignore', got 'pot'": put(
                f"{folder}/2.json", "shapes", 0, "label", "pot"
            ),
            "shape_type must be polygon, rectangle or point, got {}": put(
                f"{folder}/2.json", "shapes", 0, "shape_type", {}
            ),
            "2.json holds no shapes": put(f"{folder}/2.json", "shapes", []),
        },
        {"there are no pictures in": drop("scroll_wheel"), "option keep must be": with_options(keep="both")},
    )


PICTURES = {
    "refcoco": refcoco("refcoco", "unc"),
    "refcoco+": refcoco("refcoco+", "unc"),
    "refcocog": refcoco("refcocog", "umd"),
    "refclef": refclef(),
    "grefcoco": grefcoco(),
    "reason_seg": reason_seg(),
    "cocostuff": semantic("cocostuff", 77, "value 77 is no class"),
    "ade20k": semantic("ade20k", 0, "none of its pixels has a class"),
    "mapillary": semantic("mapillary", 5, "value 5 is no class"),
    "ade20k_full": ade20k_full(),
    "open_images": open_images(),
    "coco_panoptic": coco_panoptic(),
    "lvis": lvis(),
    "paco_lvis": parts("paco_lvis"),
    "pascal_part": parts("pascal_part"),
    "folder_parts": folder_parts(),
    "sa1b": sa1b(),
    "coco_json": coco_json(),
    "target_crops": target_crops(),
}
