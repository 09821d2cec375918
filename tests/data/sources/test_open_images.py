"""OpenImages: masks of another size, boxes in an order of their own, names with and without a line of titles.

Run: pytest tests/data/sources/test_open_images.py      (SA2VA_TEST_DATA adds another project's files of this form)
"""

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Expression, Object, Reject, Sample, validate
from sa2va_hf.data.sources.open_images import open_images

TITLES = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
HALF = np.zeros((4, 6), bool)
HALF[:, :3] = True
SPOT = np.zeros((4, 6), bool)
SPOT[1, 4] = True


def line(mask, image="a", code="/m/01", x0="0.0", x1="0.5", y0="0.0", y1="1.0"):
    return f"{mask}.png,{image},{code},ff,{x0},{x1},{y0},{y1},0.9,0.1 0.2 1;"


def write(root, lines, drawn=None, names="/m/01,Person\n/m/02,Human eye\n", image="images/train/a.jpg"):
    """A picture of 12 x 8 and masks of half its size."""
    for folder in ("annotations", "masks/train", image.rpartition("/")[0]):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(root / image)
    for name, mask in (drawn or {"half": HALF, "spot": SPOT}).items():
        Image.fromarray(mask).save(root / f"masks/train/{name}.png")
    text = "\n".join([TITLES, *lines])
    (root / "annotations/train-annotations-object-segmentation.csv").write_text(text + "\n")
    (root / "annotations/class-descriptions.csv").write_text(names)
    return root


def read(root, split="train", **options):
    records = list(open_images(root, split, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def test_the_exact_sample(tmp_path):
    spot = {"x0": "0.6", "x1": "0.9", "y0": "0.125", "y1": "0.5"}
    write(tmp_path, [line("half"), line("spot", **spot), line("spot", code="/m/02", **spot)])
    samples, rejects = read(tmp_path)
    half, dot = np.zeros((8, 12), bool), np.zeros((8, 12), bool)
    half[:, :6] = True
    dot[2:4, 8:10] = True
    expected = Sample("a", "referring", 12, 8, [str(tmp_path / "images/train/a.jpg")], source="open_images")
    box = (0.6 * 12, 1.0, 0.9 * 12, 4.0)
    expected.objects = [
        Object([masks.encode(half)], [(0.0, 0.0, 6.0, 8.0)], "person"),
        Object([masks.encode(dot)], [box], "person"),
        Object([masks.encode(dot)], [box], "human eye"),
    ]
    expected.expressions = [Expression("every person", [0, 1], "category"), Expression("human eye", [2], "category")]
    assert samples == [expected] and not rejects
    (sample,), _ = read(tmp_path, one="a {}", several="all {}")
    assert [one.text for one in sample.expressions] == ["all person", "a human eye"]


def test_names_with_titles_quotes_and_a_byte_order_mark(tmp_path):
    names = '\ufeffLabelName,DisplayName\n/m/01,"Cat, house"\n'
    (sample,), _ = read(write(tmp_path, [line("half")], names=names))
    assert sample.expressions[0].text == "cat, house"


def test_a_mask_of_the_size_of_its_picture_stays_as_it_is(tmp_path):
    mask = np.random.default_rng(0).random((8, 12)) < 0.5
    (sample,), _ = read(write(tmp_path, [line("m")], {"m": mask}))
    assert (masks.decode(sample.objects[0].masks[0]) == mask).all()


def test_other_places(tmp_path):
    write(tmp_path, [line("half")], image="train/a.png")
    (tmp_path / "masks/train").rename(tmp_path / "masks/train-masks-0")
    (tmp_path / "annotations/class-descriptions.csv").rename(tmp_path / "names.csv")
    file = "train-annotations-object-segmentation.csv"
    (tmp_path / "annotations" / file).rename(tmp_path / file)
    (sample,), _ = read(tmp_path, classes=tmp_path / "names.csv")
    assert sample.frames == [str(tmp_path / "train/a.png")]
    (sample,), _ = read(tmp_path, classes=tmp_path / "names.csv", annotations=file, images=tmp_path / "train")
    with pytest.raises(ValueError, match="the names of the classes not found; .*option classes=FILE"):
        read(tmp_path)
    with pytest.raises(ValueError, match="looked for .*validation-annotations-object-segmentation.csv"):
        read(tmp_path, "val")


BAD = [
    (line("spot", code="/m/99"), "its LabelName '/m/99' is not among the names of the classes"),
    (line("spot", x1="wide"), "BoxXMin, BoxXMax, BoxYMin, BoxYMax must be numbers, got 0.0, wide"),
    (line("spot", x0="0.7"), "must lie in 0..1, got 0.7, 0.5"),
    (line("spot", y1="1.2"), "must lie in 0..1, got 0.0, 0.5, 0.0, 1.2"),
    (line("none"), "image none.png not found; looked in"),
    (line("empty"), "empty.png has no pixel"),
    (line("turned"), "turned.png is 4 x 6 (width x height) and its picture 12 x 8: they differ in shape"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_mask_is_one_reject_and_the_rest_remains(tmp_path, bad, message):
    drawn = {"half": HALF, "spot": SPOT, "empty": HALF & SPOT, "turned": HALF.T}
    (sample,), (reject,) = read(write(tmp_path, [line("half"), bad, line("spot", code="/m/02")], drawn))
    assert len(sample.objects) == 2 and message in reject.reason
    known = "so 'person' is not asked for in this picture" in reject.reason  # the other one could not be used
    assert [one.text for one in sample.expressions] == ["human eye"] if known else ["person", "human eye"]
    assert reject.id.startswith("a/") and reject.file.endswith("train-annotations-object-segmentation.csv")


def test_a_missing_picture_is_a_reject(tmp_path):
    samples, (reject,) = read(write(tmp_path, [line("half", image="b")]))
    assert not samples and "image b.jpg not found; looked in" in reject.reason


def test_bad_tables_raise(tmp_path):
    write(tmp_path, [line("half")])
    table = tmp_path / "annotations/train-annotations-object-segmentation.csv"
    table.write_text(f"{TITLES}\nhalf.png,a\n")
    with pytest.raises(ValueError, match="segmentation.csv line 2 has 2 columns, expected 10"):
        read(tmp_path)
    table.write_text("ImageID,XMin\n")
    with pytest.raises(
        ValueError, match="has no column MaskPath, LabelName, BoxXMin.*its first line is 'ImageID,XMin'"
    ):
        read(tmp_path)
    (tmp_path / "annotations/class-descriptions.csv").write_text("Person,/m/01\n")
    with pytest.raises(ValueError, match=r"line 1 must be CODE,NAME as in '/m/01g317,Person', got \['Person'"):
        read(tmp_path)


def test_files_of_another_project(shared_data):
    root = shared_data / "datumaro_fixtures/open_images_dataset/v6"
    (sample,), rejects = read(root)
    assert not rejects and sample.id == "b" and sample.expressions[0].text == "generic label #0"
    assert masks.area(sample.objects[0].masks[0]) == 4 and sample.objects[0].boxes == [(1.6, 0.6, 8.0, 1.0)]
