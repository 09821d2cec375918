"""RefCOCO: every sentence of every ref arrives, pictures are found by id, a pickle can do no harm.

Run: pytest tests/data/sources/test_refcoco.py      (SA2VA_TEST_DATA adds the genuine files)
"""

import json
import pickle

import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Reject, Sample, validate
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.refcoco import load_refs, refcoco

SQUARE = [0, 0, 10, 0, 10, 10, 0, 10]


def ref(ref_id, ann_id, *sentences, image_id=1, split="train", **changes):
    raws = [{"raw": raw, "sent": raw.lower(), "sent_id": number} for number, raw in enumerate(sentences)]
    names = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": raws}
    # as in the published files: no such file exists
    return names | {"file_name": f"COCO_train2014_00000000000{image_id}_{ref_id}.jpg", "category_id": 3} | changes


def annotation(ann_id, image_id=1, **changes):
    shifted = [value + 2 * ann_id for value in SQUARE]
    return {"id": ann_id, "image_id": image_id, "category_id": 3, "segmentation": [shifted], "iscrowd": 0} | changes


def write(root, refs, annotations, name="refcoco", split_by="unc", images="images/train2014", protocol=0):
    (root / name).mkdir(parents=True)
    (root / name / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol))
    pictures = [{"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30} for number in (1, 2)]
    instances = {"images": pictures, "annotations": annotations, "categories": [{"id": 3, "name": "dog"}]}
    (root / name / "instances.json").write_text(json.dumps(instances))
    (root / images).mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (40, 30)).save(root / images / f"{number}.jpg")
    return root


def split_up(records):
    records = list(records)
    samples = [record for record in records if isinstance(record, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [record for record in records if isinstance(record, Reject)]


def test_one_sample_per_picture_with_every_sentence_of_every_ref(tmp_path):
    refs = [
        ref(10, 1, "Left dog.", "dog at 12:00"),
        ref(11, 2, "right dog"),
        ref(12, 1, "the brown one"),  # a second ref on the annotation of the first
        ref(13, 3, "other picture", image_id=2),
        ref(14, 4, "not this split", image_id=2, split="val"),
    ]
    root = write(tmp_path, refs, [annotation(1), annotation(2), annotation(3, 2), annotation(4, 2)])
    (first, second), rejects = split_up(refcoco(root, "train"))
    assert not rejects
    assert [(one.text, one.targets) for one in first.expressions] == [
        ("Left dog.", [0]),
        ("dog at 12:00", [0]),
        ("right dog", [1]),
        ("the brown one", [0]),
    ]
    assert (first.id, first.source, first.width, first.height) == ("refcoco/1", "refcoco", 40, 30)
    assert first.frames == [str(tmp_path / "images/train2014/1.jpg")]
    assert [masks.area(thing.masks[0]) for thing in first.objects] == [100, 100]
    assert first.objects[1].boxes == [(4, 4, 14, 14)] and first.objects[1].category == "dog"
    assert [one.text for one in second.expressions] == ["other picture"]


@pytest.mark.parametrize("images", ["images/train2014", "train2014", "refcoco/coco2014/train2014", "elsewhere"])
def test_the_usual_places_of_pictures(tmp_path, images):
    root = write(tmp_path, [ref(1, 1, "a dog")], [annotation(1)], images=images)
    options = {"images": tmp_path / images} if images == "elsewhere" else {}
    (sample,), _ = split_up(refcoco(root, "train", **options))
    assert sample.frames == [str(tmp_path / images / "1.jpg")]


def test_root_may_be_the_datasets_own_folder(tmp_path):
    write(tmp_path, [ref(1, 1, "a dog")], [annotation(1)], images="refcoco/images")
    assert len(split_up(refcoco(tmp_path / "refcoco", "train"))[0]) == 1


def test_split_by_and_name_choose_the_file(tmp_path):
    write(tmp_path, [ref(1, 1, "by umd")], [annotation(1)], name="refcocog", split_by="umd")
    google = tmp_path / "refcocog" / "refs(google).p"
    google.write_bytes(pickle.dumps([ref(1, 1, "by google", split="val")], 0))
    assert split_up(SOURCES["refcocog"](tmp_path, "train"))[0][0].expressions[0].text == "by umd"
    by_google = SOURCES["refcocog"](tmp_path, "val", split_by="google")
    assert split_up(by_google)[0][0].expressions[0].text == "by google"
    with pytest.raises(ValueError, match=r"the refs of refcocog \(unc\) not found; looked for .*refs\(unc\).p"):
        list(SOURCES["refcocog"](tmp_path, "train", split_by="unc"))


def test_an_unknown_split_lists_those_there_are(tmp_path):
    write(tmp_path, [ref(1, 1, "a"), ref(2, 1, "b", split="testA")], [annotation(1)])
    with pytest.raises(ValueError, match=r"refs\(unc\).p has no split 'test'; it has testA, train"):
        list(refcoco(tmp_path, "test"))


BAD = [
    (ref(2, 9, "x"), [], "annotation 9 of the ref is missing in instances.json"),
    (ref(2, 5, "x"), [annotation(5), annotation(5)], "annotation 5 of the ref occurs twice"),
    (ref(2, 5, "x"), [annotation(5, image_id=2)], "annotation 5 is of image 2, not of image 1"),
    (ref(2, 5, "x"), [annotation(5, segmentation=[[1, 1, 5, 5]])], "annotation 5: polygon 0 has 2 points"),
    (ref(2, 5, "x"), [annotation(5, segmentation={"size": [30, 40], "counts": "zz"})], "annotation 5: RLE garbage"),
    (ref(2, 5, "x"), [annotation(5, segmentation={"size": [40, 30], "counts": [1200]})], "the mask is 30 x 40"),
    (ref(2, 5, "x"), [annotation(5, segmentation=[])], "annotation 5 has no segmentation"),
    (ref(2, 5, "x"), [annotation(5, segmentation=[[1, 1, 1.01, 1, 1, 1.01]])], "covers no pixel"),
    (ref(1, 1, "x"), [], "ref_id 1 occurs twice"),
    (ref(2, 1, " . "), [], "'raw' must be a non-empty text"),
    (ref(2, 1, "x", sentences=[{"sent": "x"}]), [], "'raw' must be a non-empty text, got None"),
    (ref(2, 1, "x", sentences="x"), [], "'sentences' must be list"),
    (ref(2, "1", "x"), [], "'ann_id' must be int, got '1'"),
    ({"ref_id": 2, "split": "train"}, [], "has no 'ann_id'"),
    (7, [], "ref number 1 must be a dict"),
    (ref(2, 5, "x", image_id=99), [annotation(5, image_id=99)], "image 99 is not among the images"),
]


@pytest.mark.parametrize(("bad", "annotations", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_a_bad_record_is_one_reject_and_the_rest_remains(tmp_path, bad, annotations, message):
    write(tmp_path, [ref(1, 1, "good"), bad], [annotation(1), *annotations])
    (sample,), (reject,) = split_up(refcoco(tmp_path, "train"))
    assert [one.text for one in sample.expressions] == ["good"]
    assert message in reject.reason and reject.file.endswith(("refs(unc).p", "instances.json"))


def test_missing_and_doubled_pictures(tmp_path):
    root = write(tmp_path, [ref(1, 1, "a"), ref(2, 2, "b", image_id=2)], [annotation(1), annotation(2, 2)])
    (root / "images/train2014/1.jpg").unlink()
    (sample,), (reject,) = split_up(refcoco(root, "train"))
    assert sample.id == "refcoco/2"
    assert reject.id == "refcoco/1" and f"image 1.jpg not found; looked in {root}/images/train2014" in reject.reason
    instances = json.loads((root / "refcoco/instances.json").read_text())
    instances["images"].append(instances["images"][1])
    (root / "refcoco/instances.json").write_text(json.dumps(instances))
    assert "image id 2 occurs twice" in [reject.reason for reject in split_up(refcoco(root, "train"))[1]]


# ---------------------------------------------------------------- the pickle


class Harmful:
    """Pickles as a call of open(file, "w")."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_a_function_is_refused_before_it_runs(tmp_path, protocol):
    path, written = tmp_path / "refs(unc).p", tmp_path / "written"
    path.write_bytes(pickle.dumps([{"sentences": Harmful(written)}], protocol))
    with pytest.raises(ValueError, match=r"refs\(unc\).p cannot be read .* it names the global \w+\.open"):
        load_refs(path)
    assert not written.exists()
    pickle.loads(path.read_bytes())  # the file is harmful indeed
    assert written.exists()


@pytest.mark.parametrize("content", [b"", b"(lp0\n(dp1", b"no pickle at all", b"\x80\x04."])
def test_a_damaged_pickle_is_named(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\(unc\).p cannot be read as a pickle of plain data"):
        load_refs(path)


def test_the_top_level_must_be_a_list(tmp_path):
    (tmp_path / "r.p").write_bytes(pickle.dumps({"a": 1}, 0))
    with pytest.raises(ValueError, match="must hold a list of refs, got a dict"):
        load_refs(tmp_path / "r.p")


def test_python_2_byte_strings_are_text_in_utf8_or_latin1(tmp_path):
    for number, name in enumerate((b"caf\\xc3\\xa9", b"caf\\xe9")):
        path = tmp_path / f"{number}.p"
        path.write_bytes(b"(lp0\nS'" + name + b"'\np1\na.")
        assert load_refs(path) == ["café"]


# ---------------------------------------------------------------- genuine files


def check_areas(objects, areas):
    """Pixels against the file's areas, which are of the polygons: they differ along the outline."""
    pixels = sorted(masks.area(thing.masks[0]) for thing in objects)
    assert all(abs(a - b) <= 2 * b**0.5 for a, b in zip(pixels, sorted(areas), strict=True))


@pytest.mark.parametrize(("split", "counts"), [("train", (2, 3, 5)), ("val", (2, 2, 2)), ("testA", (1, 1, 1))])
@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_genuine_form_with_pictures(shared_data, name, split, counts):
    root = shared_data / "shaped" / "grefcoco"
    samples, rejects = split_up(SOURCES[name](root, split))
    objects = [thing for sample in samples for thing in sample.objects]
    expressions = [one for sample in samples for one in sample.expressions]
    assert not rejects
    assert (len(samples), len(objects), len(expressions)) == counts
    refs = load_refs(next((root / name).glob("*.p")))
    instances = json.loads((root / name / "instances.json").read_text())
    areas = {one["id"]: one["area"] for one in instances["annotations"]}
    check_areas(objects, [areas[ann_id] for ann_id in {one["ann_id"] for one in refs if one["split"] == split}])


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_genuine_pickles_equal_their_json(shared_data, name):
    folder = shared_data / "refcoco_real" / name
    pickles = sorted(folder.glob("*.p"))
    assert pickles
    for path in pickles:
        assert load_refs(path) == json.loads(path.with_suffix(".json").read_text())


def test_genuine_refs_whose_pictures_are_absent_are_all_rejects(shared_data):
    root = shared_data / "refcoco_real"
    refs = load_refs(root / "refcoco" / "refs(unc).p")
    for split in sorted({one["split"] for one in refs}):
        samples, rejects = split_up(SOURCES["refcoco"](root, split))
        images = {one["image_id"] for one in refs if one["split"] == split}
        assert not samples
        assert {reject.id for reject in rejects} == {f"refcoco/{image}" for image in images}
        assert all("not found; looked in" in reject.reason for reject in rejects)


def test_genuine_polygons_and_sentences_arrive_once_the_pictures_are_there(shared_data, tmp_path):
    root, name = shared_data / "refcoco_real", "refcocog"
    instances = json.loads((root / name / "instances.json").read_text())
    for picture in instances["images"]:
        Image.new("RGB", (picture["width"], picture["height"])).save(tmp_path / picture["file_name"])
    areas = {one["id"]: one["area"] for one in instances["annotations"]}
    for split_by in ("google", "umd"):
        refs = load_refs(root / name / f"refs({split_by}).p")
        for split in {one["split"] for one in refs}:
            chosen = [one for one in refs if one["split"] == split]
            samples, rejects = split_up(SOURCES[name](root, split, split_by=split_by, images=tmp_path))
            sentences = [sentence["raw"].strip() for one in chosen for sentence in one["sentences"]]
            assert not rejects
            assert sorted(one.text for sample in samples for one in sample.expressions) == sorted(sentences)
            objects = [thing for sample in samples for thing in sample.objects]
            check_areas(objects, [areas[ann_id] for ann_id in {one["ann_id"] for one in chosen}])
