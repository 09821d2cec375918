"""Grounded captions: phrases marked where the caption has them, one [SEG] each, nothing dropped without a reason.

Run: pytest tests/data/sources/test_gcg.py      (SA2VA_TEST_DATA adds files in the genuine form)
"""

import json

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.prompts.templates import GCG_QUESTIONS
from sa2va_hf.data.schema import Object, Reject, Sample, Turn, validate
from sa2va_hf.data.sources.gcg import FILES, gcg, trimmed

CAPTION = "A man rides two horses by the sea."
MAN, HORSES, SEA = [2, 5], [12, 22], [30, 33]
FOLDER = {
    "grand_f": "images/grandf/train",
    "openpsg_gcg": "images/coco2017",
    "refcocog_gcg": "images/coco2014/train2014",
    "flickr_gcg": "images/flickr30k/Flickr30K",
}


def rle(column):
    """Two columns of a picture of 12 x 8."""
    mask = np.zeros((8, 12), bool)
    mask[1:4, column : column + 2] = True
    return masks.encode(mask)


def thing(column):
    return Object([rle(column)], [(float(column), 1.0, column + 2.0, 4.0)])


def write(root, name, content):
    path = root / "annotations" / FILES[name].format(split="train")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    (root / FOLDER[name]).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8)).save(root / FOLDER[name] / "9.jpg")
    return path


def of_spans(groundings, caption=CAPTION, **changes):
    record = {"file_name": "9.jpg", "height": 8, "width": 12, "image_id": "9", "caption": caption}
    return record | {"groundings": groundings} | changes


def grounding(span, *columns):
    return {"token_positives": span, "rle_masks": [rle(column) for column in columns]}


def flickr(annotations, caption=CAPTION):
    picture = {"file_name": "9.jpg", "height": 8, "width": 12, "id": 4, "caption": caption, "dataset_name": "flickr"}
    categories = [{"supercategory": "object", "id": 1, "name": "object"}]
    tables = {"info": [], "licenses": [], "categories": categories}
    return tables | {"images": [picture], "annotations": annotations}


def of_flickr(number, spans, column, **changes):
    own = {"id": number, "image_id": 4, "category_id": 1, "iscrowd": 0, "area": 6, "bbox": [column, 1, 2, 3]}
    return own | {"tokens_positive": spans, "sam_mask": rle(column)} | changes


def read(root, name, **options):
    records = list(gcg(root, "train", name=name, **options))
    samples = [one for one in records if isinstance(one, Sample)]
    for sample in samples:
        validate(sample)
    return samples, [one for one in records if isinstance(one, Reject)]


def expected(root, name, sample_id, answer, targets, objects):
    return Sample(
        id=sample_id,
        task="grounded_caption",
        width=12,
        height=8,
        frames=[str(root / FOLDER[name] / "9.jpg")],
        objects=objects,
        turns=[Turn("?", answer, targets)],
        source=name,
    )


def one_sample(root, name, **options):
    (sample,), rejects = read(root, name, **options)
    assert sample.turns[0].question in GCG_QUESTIONS
    sample.turns[0].question = "?"
    return sample, rejects


@pytest.mark.parametrize("name", ["grand_f", "openpsg_gcg"])
@pytest.mark.parametrize("caption", [CAPTION, f'"{CAPTION}"', f' {CAPTION}"'])
def test_the_exact_sample_of_spans(tmp_path, name, caption):
    if caption.startswith(" "):
        caption = caption.strip()  # a mark at one end only
    groundings = {"two horses": grounding(HORSES, 2, 6), "man": grounding(MAN, 0), "sea": grounding(SEA, 9)}
    write(tmp_path, name, [of_spans(groundings, caption)])
    sample, rejects = one_sample(tmp_path, name)
    assert not rejects
    both = masks.union([rle(2), rle(6)], 8, 12)
    answer = "A <p> man </p> [SEG] rides <p> two horses </p> [SEG] by the <p> sea </p> [SEG]."
    things = [thing(0), Object([both], [(2.0, 1.0, 8.0, 4.0)]), thing(9)]
    assert sample == expected(tmp_path, name, f"{name}/9", answer, [[0], [1], [2]], things)


def test_the_exact_sample_of_sentences(tmp_path):
    refs = [
        {"sentence": "The horse on the right", "segmentation": [[6, 1, 8, 1, 8, 4, 6, 4]], "bbox": [6, 1, 2, 3]},
        {"sentence": "the horse on the left", "segmentation": rle(2), "bbox": [2, 1, 2, 3]},
        {"sentence": "a cow", "segmentation": rle(2), "bbox": [2, 1, 2, 3]},
    ]
    caption = "The horse on the LEFT follows the horse on the right."
    path = write(tmp_path, "refcocog_gcg", [{"9": {"img_file_name": "9.jpg", "caption": caption, "refs": refs}}])
    sample, rejects = one_sample(tmp_path, "refcocog_gcg")
    answer = "<p> the horse on the left </p> [SEG] follows <p> the horse on the right </p> [SEG]."
    right = masks.from_polygons(refs[0]["segmentation"], 8, 12)
    things = [thing(2), Object([right], [masks.rle_to_box(right)])]
    assert sample == expected(tmp_path, "refcocog_gcg", "refcocog_gcg/9", answer, [[0], [1]], things)
    reason = "its sentence 'a cow' is not in the caption 'the horse on the left follows the horse on the right.'"
    assert rejects == [Reject("refcocog_gcg/9/ref 2", reason, str(path))]


def test_the_exact_sample_of_instances_and_masks_of_one_place(tmp_path):
    annotations = [of_flickr(1, [HORSES, SEA], 2), of_flickr(2, [MAN], 0), of_flickr(3, [HORSES], 6)]
    write(tmp_path, "flickr_gcg", flickr(annotations))
    sample, rejects = one_sample(tmp_path, "flickr_gcg")
    assert not rejects
    answer = "A <p> man </p> [SEG] rides <p> two horses </p> [SEG] by the sea."
    things = [thing(0), thing(2), thing(6)]
    assert sample == expected(tmp_path, "flickr_gcg", "flickr_gcg/9#4", answer, [[0], [1, 2]], things)


def test_the_question_depends_on_the_id_alone(tmp_path):
    records = [of_spans({"man": grounding(MAN, 0)}) for _ in range(40)]
    write(tmp_path, "grand_f", records)
    drawn = {one.id: one.turns[0].question for one in read(tmp_path, "grand_f")[0]}
    assert set(drawn.values()) == set(GCG_QUESTIONS)
    write(tmp_path, "grand_f", [{}] * 5 + records)
    samples, rejects = read(tmp_path, "grand_f")
    assert len(rejects) == 5 and {one.id: one.turns[0].question for one in samples} == drawn


@pytest.mark.parametrize(("spans", "left"), [
    ([(0, 5), (9, 14)], ["A man", "horse"]),
    ([(2, 19), (9, 14)], ["man on", "horse"]),  # the inner one stays whole, the outer one ends before it
    ([(2, 5), (2, 8)], ["", "man on"]),  # both begin here: the longer one stays
    ([(1, 6), (5, 8)], ["man", "on"]),  # blanks do not belong to a phrase
    ([(5, 6)], [""]),
])  # fmt: skip
def test_overlaps(spans, left):
    text = "A man on horse back"
    assert [text[begin:end] for begin, end in trimmed(spans, text)] == left


def test_overlapping_phrases_are_all_marked_once(tmp_path):
    groundings = {
        "two horses by the sea": grounding([12, 33], 2),
        "sea": grounding(SEA, 9),
        "two": grounding([12, 15], 5),
    }
    write(tmp_path, "grand_f", [of_spans(groundings)])
    sample, (reject,) = one_sample(tmp_path, "grand_f")
    answer = "A man rides <p> two horses by the </p> [SEG] <p> sea </p> [SEG]."
    assert sample.turns == [Turn("?", answer, [[0], [1]])]
    assert reject.id == "grand_f/9/two" and "its phrase 'two' cannot be marked" in reject.reason


BAD = [
    ({"sea": None}, "its grounding is null"),
    ({"sea": {"token_positives": SEA}}, "its grounding has no 'rle_masks'"),
    ({"sea": grounding([34, 40], 2)}, "the span [34, 40] is none of the caption of 34 characters"),
    ({"sea": grounding([30], 2)}, "a span must be [start, end] in characters, got [30]"),
    ({"sea": grounding(SEA)}, "its mask covers no pixel"),
    ({"sea": {"token_positives": SEA, "rle_masks": [masks.empty(8, 12)]}}, "its mask covers no pixel"),
    ({"sea": {"token_positives": SEA, "rle_masks": [masks.empty(8, 13)]}}, "the mask is 13 x 8"),
    ({"sea": {"token_positives": SEA, "rle_masks": [{"size": [8, 12], "counts": "zz"}]}}, "RLE garbage"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
@pytest.mark.parametrize("name", ["grand_f", "openpsg_gcg"])
def test_a_bad_grounding_is_a_reject_and_the_others_remain(tmp_path, name, bad, message):
    path = write(tmp_path, name, [of_spans({"man": grounding(MAN, 0)} | bad)])
    sample, (reject,) = one_sample(tmp_path, name)
    assert sample.turns[0].answer == "A <p> man </p> [SEG] rides two horses by the sea."
    assert reject.id == f"{name}/9/sea" and message in reject.reason and reject.file == str(path)


BAD_RECORDS = [
    ("grand_f", [of_spans({})], "no phrase of its caption has a mask: 'A man rides"),
    ("grand_f", [of_spans({"man": grounding(MAN, 0)}, '""')], "its caption is empty"),
    ("grand_f", [of_spans({"man": grounding(MAN, 0)}, file_name="8.jpg")], "image 8.jpg not found; looked in"),
    ("grand_f", [of_spans([])], "record 0: 'groundings' must be dict, got []"),
    ("refcocog_gcg", [{"9": {}, "10": {}}], "record 0 must be a dict with one id, got {'9'"),
    ("refcocog_gcg", [{"9": {"caption": "A man."}}], "record 0 (9) has no 'img_file_name'; it has caption"),
    ("flickr_gcg", flickr([of_flickr(1, [[0, 5]], 2)], "A man"), "its caption has fewer than 3 words: 'A man'"),
    ("flickr_gcg", flickr([of_flickr(1, [MAN], 2, image_id=5)]), "its image_id 5 is not among the images"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_RECORDS, ids=[one[2][:40] for one in BAD_RECORDS])
def test_a_bad_record_is_a_reject(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    samples, (reject,) = read(tmp_path, name)
    assert not samples and message in reject.reason and reject.file == str(path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"tokens_positive": []}, "a span must be [start, end] in characters, got None"),
    ({"tokens_positive": [[40, 50]]}, "the span [40, 50] is none of the caption"),
    ({"sam_mask": None}, "annotation 2: 'sam_mask' must be dict or list, got None"),
])  # fmt: skip
def test_a_bad_annotation_is_a_reject(tmp_path, changes, message):
    write(tmp_path, "flickr_gcg", flickr([of_flickr(1, [MAN], 0), of_flickr(2, [SEA], 2, **changes)]))
    sample, (reject,) = one_sample(tmp_path, "flickr_gcg")
    assert len(sample.objects) == 1 and reject.id == "flickr_gcg/9#4/annotation 2" and message in reject.reason


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(ValueError, match="annotation file not found; looked for .*OpenPsgGCG_train.json"):
        read(tmp_path, "openpsg_gcg")


@pytest.mark.parametrize(("name", "count", "left_out"), [
    ("grand_f", 5, 0), ("openpsg_gcg", 5, 0), ("flickr_gcg", 5, 0), ("refcocog_gcg", 1, 1)
])  # fmt: skip
def test_files_in_the_genuine_form(shared_data, name, count, left_out):
    pictures = shared_data / "coco2017_tiny"
    images = pictures if name == "openpsg_gcg" else pictures / "val2017"
    file = shared_data / "shaped" / "gcg" / FILES[name].format(split="train")
    samples, rejects = read(file.parent, name, annotations=file, images=images)
    assert len(samples) == count and len(rejects) == left_out
    for sample in samples:
        turn = sample.turns[0]
        assert turn.answer.count("<p> ") == turn.answer.count(" </p> [SEG]") == len(turn.targets) == 2
    if name != "refcocog_gcg":
        answer = "A <p> man </p> [SEG] drives a <p> motorcycle </p> [SEG] down a road in the fog."
        assert samples[0].turns[0].answer == answer
