"""Own data as people have it: every form as its tool writes it, and with what systems and tools add to it.

The files are written by hand from the documentation of the tools. Run: pytest tests/data/sources/test_own_forms.py
"""

import base64
import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.labelstudio import unpack
from sa2va_hf.data.sources.recognise import recognise

WIDTH, HEIGHT = 64, 48
X0, Y0, X1, Y1 = 10, 8, 34, 28  # the dog of every picture
POLYGON = [X0, Y0, X1, Y0, X1, Y1, X0, Y1]
POINTS = [[X0, Y0], [X1, Y0], [X1, Y1], [X0, Y1]]
DOG = np.zeros((HEIGHT, WIDTH), bool)
DOG[Y0:Y1, X0:X1] = True
NAMES = [f"{number}.jpg" for number in range(5)]


class Folder:
    """What a form is written with. bom: texts begin with a byte order mark, as Windows tools write them."""

    def __init__(self, root, bom=False, ids=int):
        self.root, self.encoding, self.ids = root, "utf-8-sig" if bom else "utf-8", ids

    def text(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding=self.encoding)

    def picture(self, name, image=None):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 200))).save(path)

    def coco(self, file, folder, prefix="", **fields):
        images = [
            {"id": self.ids(n), "file_name": prefix + name, "width": WIDTH, "height": HEIGHT}
            for n, name in enumerate(NAMES)
        ]
        for name in NAMES:
            self.picture(f"{folder}/{name}")
        annotations = [
            {"id": n, "image_id": self.ids(n), "category_id": 1, "iscrowd": 0, "segmentation": [POLYGON]} | fields
            for n in range(len(NAMES))
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
        self.text(file, content)


def coco(folder):
    folder.coco("annotations/instances_train.json", "train")


def labelme2coco(folder):
    folder.coco("annotations.json", "JPEGImages", "JPEGImages/")


def roboflow(folder):
    for split in ("train", "valid"):
        folder.coco(f"{split}/_annotations.coco.json", split)


def roboflow_without_validation(folder):
    folder.coco("train/_annotations.coco.json", "train")


def cvat_coco(folder):
    folder.coco("annotations/instances_default.json", "images/default")


def cvat_coco_of_brushes(folder):
    rle = masks.normalize(masks.encode(DOG))
    folder.coco("annotations/instances_default.json", "images/default", iscrowd=1, segmentation=rle)


def labelstudio_coco(folder):
    folder.coco("result.json", "images", "images/")


def labelstudio_coco_of_windows(folder):
    folder.coco("result.json", "images", "images\\")


def fiftyone_coco(folder):
    folder.coco("labels.json", "data")


def finetune(folder):
    for name in NAMES:
        folder.picture(f"images/{name}")
    folder.text("annotations.json", [{"image": name, "mask": [[POLYGON]], "text": ["dog"]} for name in NAMES])


def labelme(folder, **changes):
    for name in NAMES:
        folder.picture(name)
        shape = {"label": "dog", "points": POINTS, "group_id": None, "shape_type": "polygon", "flags": {}} | changes
        content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": name, "imageData": None}
        folder.text(name.replace(".jpg", ".json"), content | {"imageHeight": HEIGHT, "imageWidth": WIDTH})


def labelme_with_a_mask(folder):
    buffer = io.BytesIO()
    Image.fromarray(DOG[Y0:Y1, X0:X1]).save(buffer, "PNG")
    part = base64.b64encode(buffer.getvalue()).decode()
    labelme(folder, shape_type="mask", points=[[X0, Y0], [X1 - 1, Y1 - 1]], mask=part)


def pack(values):
    """A brush RLE of Label Studio: one block of counts of 16 bits per run."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    cuts = np.flatnonzero(np.diff(values)) + 1
    for run in np.split(values, cuts):
        if len(run) <= 3:  # as it stands
            bits += "0" + "00" + f"{len(run) - 1:03b}" + "".join(f"{value:08b}" for value in run)
        else:
            bits += "1" + "11" + f"{len(run) - 1:016b}" + f"{run[0]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


SHARES = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in POINTS]


def labelstudio_tasks(folder, value, kind):
    region = {"id": "r1", "type": kind, "from_name": "tag", "to_name": "image", "image_rotation": 0}
    region |= {"original_width": WIDTH, "original_height": HEIGHT, "value": value | {kind: ["dog"]}}
    tasks = []
    for number, name in enumerate(NAMES):
        folder.picture(f"images/{name}")
        data = {"image": f"/data/upload/1/3f2a9c1{number}-{name}"}
        cancelled = {"id": 1, "was_cancelled": True, "result": []}
        done = {"id": 2, "was_cancelled": False, "result": [region]}
        tasks.append({"id": number, "data": data, "annotations": [cancelled, done], "predictions": []})
    folder.text("project-1-at-2026-11-30.json", tasks)


def labelstudio_brush(folder):
    rgba = np.repeat(np.where(DOG, 255, 0).astype(np.uint8).ravel(), 4)
    labelstudio_tasks(folder, {"format": "rle", "rle": pack(rgba)}, "brushlabels")


def labelstudio_polygons(folder):
    labelstudio_tasks(folder, {"points": SHARES, "closed": True}, "polygonlabels")


def labelstudio_min(folder):
    region = {"points": SHARES, "polygonlabels": ["dog"], "original_width": WIDTH, "original_height": HEIGHT}
    for name in NAMES:
        folder.picture(f"photos/{name}")
    tasks = [
        {"id": n, "image": f"/data/local-files/?d=photos/{name}", "tag": [region], "annotator": 1, "lead_time": 3.2}
        for n, name in enumerate(NAMES)
    ]
    folder.text("export.json", tasks)


def cvat_xml(folder, shape=None):
    shape = shape or f'<polygon label="dog" source="manual" points="{";".join(f"{x},{y}" for x, y in POINTS)}" />'
    images = "".join(
        f'<image id="{n}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shape}</image>'
        for n, name in enumerate(NAMES)
    )
    meta = "<version>1.1</version><meta><task><id>1</id><name>dogs</name></task></meta>"
    folder.text("annotations.xml", f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{images}</annotations>')
    for name in NAMES:
        folder.picture(f"images/{name}")


def cvat_xml_with_masks(folder):
    runs = f"{(X1 - X0) * (Y1 - Y0)}"
    place = f'left="{X0}" top="{Y0}" width="{X1 - X0}" height="{Y1 - Y0}"'
    cvat_xml(folder, f'<mask label="dog" source="manual" occluded="0" rle="0, {runs}" {place} z_order="0"></mask>')


def datumaro(folder):
    items = []
    for name in NAMES:
        folder.picture(f"images/default/{name}")
        shape = {"id": 0, "type": "polygon", "attributes": {"occluded": False}, "group": 0, "label_id": 0}
        media = {"path": name, "size": [HEIGHT, WIDTH]}
        items.append({"id": name[:-4], "annotations": [shape | {"points": POLYGON}], "image": media})
    labels = {"label": {"labels": [{"name": "dog", "parent": "", "attributes": []}], "attributes": []}}
    folder.text("annotations/default.json", {"info": {}, "categories": labels, "items": items})


def yolo(
    folder, roots=("images/train", "images/val"), yaml="path: /data/dogs\ntrain: images/train\nval: images/val\n"
):
    folder.text("data.yaml", yaml + "names:\n  0: cat\n  1: dog\n")
    line = " ".join(f"{value / side:.6f}" for value, side in zip(POLYGON, [WIDTH, HEIGHT] * 4, strict=True))
    for place in roots:
        for name in NAMES:
            folder.picture(f"{place}/{name}")
            folder.text(f"{place.replace('images', 'labels')}/{name[:-4]}.txt", f"1 {line}\n")


def roboflow_yolo(folder):
    yolo(folder, ("train/images", "valid/images"), "train: ../train/images\nval: ../valid/images\nnc: 2\n")


def png_masks(folder, picture=None):
    for name in NAMES:
        folder.picture(f"images/{name}")
        folder.picture(f"masks/{name[:-4]}_dog.png", picture or Image.fromarray(DOG))


def grey_png_masks(folder):
    soft = np.where(DOG, 255, 0).astype(np.uint8)
    soft[Y0 - 1, X0:X1], soft[Y1, X0:X1] = 64, 32
    png_masks(folder, Image.fromarray(soft))


FORMS = {
    "coco_json": [
        *(coco, labelme2coco, roboflow, roboflow_without_validation, cvat_coco, cvat_coco_of_brushes),
        *(labelstudio_coco, labelstudio_coco_of_windows, fiftyone_coco),
    ],
    "finetune_json": [finetune],
    "labelme": [labelme, labelme_with_a_mask],
    "labelstudio": [labelstudio_brush, labelstudio_polygons, labelstudio_min],
    "cvat": [cvat_xml, cvat_xml_with_masks, datumaro],
    "yolo_seg": [yolo, roboflow_yolo],
    "png_masks": [png_masks, grey_png_masks],
}
EVERY = [(source, write) for source, writers in FORMS.items() for write in writers]
NAMED = [f"{source}-{write.__name__}" for source, write in EVERY]


def read(root, split, val_fraction=0.2):
    form = recognise(root)
    records = list(SOURCES[form.source](root, split, **form.options(split, val_fraction)))
    for one in records:
        if isinstance(one, Sample):
            validate(one)
    return [one for one in records if isinstance(one, Sample)], [one for one in records if isinstance(one, Reject)]


def check(root, source):
    """Five pictures or ten, each with one dog where it is; and of no picture two readings."""
    assert recognise(root).source == source
    (train, rejects), (val, more) = read(root, "train"), read(root, "val")
    assert not rejects + more and train and val
    assert not {one.frames[0] for one in train} & {one.frames[0] for one in val}
    assert len(train) + len(val) in (5, 10)
    for sample in train + val:
        assert [(one.text, one.targets) for one in sample.expressions] == [("dog", [0])]
        difference = masks.decode(sample.objects[0].masks[0]) ^ DOG
        assert difference.sum() <= 2 * (X1 - X0 + Y1 - Y0)  # an edge of a polygon may be half a pixel away


@pytest.mark.parametrize(("source", "write"), EVERY, ids=NAMED)
def test_a_form_is_recognised_and_read_as_it_comes(tmp_path, source, write):
    write(Folder(tmp_path))
    check(tmp_path, source)


@pytest.fixture(scope="module")
def read_own():
    """The step of the quickstart that prepares a folder of the user's."""
    return runpy.run_path(str(Path(__file__).parents[3] / "scripts/quickstart.py"))["read_own"]


ONE_OF_EACH_TOOL = [roboflow, fiftyone_coco, finetune, labelme, labelstudio_brush, labelstudio_polygons, cvat_xml]
ONE_OF_EACH_TOOL += [datumaro, roboflow_yolo, png_masks]


@pytest.mark.parametrize("write", ONE_OF_EACH_TOOL, ids=lambda write: write.__name__)
def test_the_quickstart_prepares_it_without_an_option(tmp_path, read_own, capsys, write):
    write(Folder(tmp_path / "mine"))
    read_own(tmp_path / "mine", tmp_path / "out", None)
    shown = capsys.readouterr().out
    source = next(source for source, writers in FORMS.items() if write in writers)
    assert f"as `{source}`, told by" in shown and "skipped" not in shown
    rows = [row for split in ("train", "val") for row in load_from_disk(str(tmp_path / "out" / split))]
    assert len(rows) in (5, 10) and {one["text"] for row in rows for one in row["expressions"]} == {"dog"}


@pytest.mark.parametrize(("source", "write"), EVERY, ids=NAMED)
def test_with_a_byte_order_mark_and_what_systems_leave_behind(tmp_path, source, write):
    write(Folder(tmp_path, bom=True))
    for path in [tmp_path, *tmp_path.rglob("*")]:
        if path.is_dir():
            for name in ("._0.jpg", "._0.png", "._annotations.json", ".DS_Store"):
                (path / name).write_bytes(b"\0\5\x16\7")
    for name in (".ipynb_checkpoints/0.jpg", "__MACOSX/._0.jpg", "__MACOSX/0.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    check(tmp_path, source)


@pytest.mark.parametrize("ids", [float, lambda n: f"{n:04d}"], ids=["1.0", "0001"])
@pytest.mark.parametrize(
    "write", [write for source, write in EVERY if source == "coco_json"], ids=lambda one: one.__name__
)
def test_with_ids_of_any_kind(tmp_path, write, ids):
    write(Folder(tmp_path, ids=ids))
    check(tmp_path, "coco_json")


WRONG = {  # what a folder holds: what is said of it
    "nothing": ([], "it is empty"),
    "other files": (["notes.txt"], r"no image among its files \(notes.txt\)"),
    "another JSON": (["notes.json"], r"no image among its files \(notes.json\)"),
    "a JSON that is cut off": (["images/a.jpg", "annotations.json"], "annotations.json is not JSON"),
    "photos alone": (["a.jpg", "b.jpg"], r"photos \(a.jpg and 1 more\) and no mask image"),
    "masks alone": (["masks/a.png"], r"mask images \(masks/a.png\) and no photo"),
    "other names": (["images/a.jpg", "masks/x.png"], r"no mask image has the name of a photo \(mask images masks/x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_of_no_known_form_is_told_what_is_missing(tmp_path, name):
    """In one line, with the forms that there are."""
    files, said = WRONG[name]
    for file in map(tmp_path.joinpath, files):
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"a": 1}' if file.stem == "notes" else "{")
    with pytest.raises(ValueError, match=f"has no form that is known: {said}") as error:
        recognise(tmp_path)
    assert "\n" not in str(error.value) and all(source in str(error.value) for source in FORMS)


def test_what_is_no_folder_is_told(tmp_path):
    (tmp_path / "a.zip").touch()
    for name, said in {"a.zip": "this is a file", "absent": "there is none"}.items():
        with pytest.raises(ValueError, match=f"{name}: expected a folder, {said}"):
            recognise(tmp_path / name)


def test_the_quickstart_names_its_own_option(tmp_path, read_own, monkeypatch, capsys):
    """A mask that nothing says the meaning of: `--phrase`, where prepare_data.py has `--option phrase=`."""
    for name in ("images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / name)
    monkeypatch.setattr("sys.argv", ["quickstart.py", "--data", str(tmp_path), "--output", str(tmp_path / "out")])
    assert read_own.__globals__["main"]() == 1
    said = capsys.readouterr().err
    assert 'give --phrase "the lesion"' in said and "--option" not in said


def test_two_forms_in_one_folder_are_not_guessed_at(tmp_path):
    labelme(Folder(tmp_path))
    coco(Folder(tmp_path))
    with pytest.raises(ValueError, match=r"several forms: coco_json \(annotations/instances_train.json\), labelme"):
        recognise(tmp_path)


# ---------------------------------------------------------------- of single tools


def test_a_shape_that_is_no_mask_takes_its_label_with_it(tmp_path):
    """Two dogs, one of them as a box: "dog" would be true of the box as well."""
    labelme(Folder(tmp_path))
    file = tmp_path / "0.json"
    content = json.loads(file.read_text())
    content["shapes"] += [content["shapes"][0] | {"shape_type": "rectangle"}, content["shapes"][0] | {"label": "cat"}]
    file.write_text(json.dumps(content))
    records = list(SOURCES["labelme"](tmp_path, "train"))
    (reject,) = [one for one in records if isinstance(one, Reject)]
    assert "a rectangle is no mask" in reject.reason and "so 'dog' is not asked for in this picture" in reject.reason
    first = next(one for one in records if isinstance(one, Sample))
    assert [one.text for one in first.expressions] == ["cat"]


def test_pieces_of_a_group_are_one_object(tmp_path):
    labelme(Folder(tmp_path))
    file = tmp_path / "0.json"
    content = json.loads(file.read_text())
    pieces = [POINTS, [[x + 25, y] for x, y in POINTS]]
    content["shapes"] = [content["shapes"][0] | {"points": piece, "group_id": 3} for piece in pieces]
    file.write_text(json.dumps(content))
    first = next(iter(SOURCES["labelme"](tmp_path, "train")))
    assert len(first.objects) == 1 and first.expressions[0].text == "dog"
    assert masks.area(first.objects[0].masks[0]) >= 1.9 * DOG.sum()


def test_an_attribute_of_cvat_is_a_phrase(tmp_path):
    points = ";".join(f"{x},{y}" for x, y in POINTS)
    attribute = '<attribute name="phrase">the dog on the left</attribute>'
    cvat_xml(Folder(tmp_path), f'<polygon label="dog" points="{points}">{attribute}</polygon>')
    first = next(iter(SOURCES["cvat"](tmp_path, "train")))
    assert [(one.text, one.kind) for one in first.expressions] == [
        ("dog", "category"),
        ("the dog on the left", "phrase"),
    ]


def test_the_text_of_a_region_of_label_studio_is_a_phrase(tmp_path):
    labelstudio_polygons(Folder(tmp_path))
    (file,) = tmp_path.glob("*.json")
    tasks = json.loads(file.read_text())
    text = {"id": "r1", "type": "textarea", "value": {"text": ["the dog on the left"]}}
    tasks[0]["annotations"][1]["result"].append(text)
    file.write_text(json.dumps(tasks))
    first = next(iter(SOURCES["labelstudio"](tmp_path, "train")))
    assert [one.text for one in first.expressions] == ["dog", "the dog on the left"]


def test_the_brush_rle_of_label_studio_stands_for_its_bytes():
    values = np.random.default_rng(0).integers(0, 3, 4000).astype(np.uint8).repeat(3)
    assert np.array_equal(unpack(pack(values)), values)
    for wrong, message in ((pack(values)[:50], "ends too early"), (["a"], "must be a list of bytes")):
        with pytest.raises(ValueError, match=message):
            unpack(wrong)
