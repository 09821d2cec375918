"""Pictures with boxes, captions, regions or dialogues."""

import shutil
from dataclasses import replace

import test_box_json
import test_describe_anything
import test_gcg
import test_llava
import test_mdetr
import test_objects365
import test_osprey
from fixtures_of_pictures import second_picture
from on_disk import Fixture, block, cut, drop, plain, put, said, text, thing, with_options
from PIL import Image

from sa2va_hf.data.prompts.templates import GCG_QUESTIONS, REGION_QUESTIONS
from sa2va_hf.data.schema import Object, Sample, Turn

SMALL, WIDE, TINY = (40, 30), (64, 48), (12, 8)
LEFT, RIGHT = (0, 0, 32, 48), (32, 0, 64, 48)


def boxed(*box, category=None):
    """An object of a picture without a mask."""
    return Object([None], [tuple(map(float, box))], category)


# ---------------------------------------------------------------- boxes


def objects365():
    module = test_objects365
    file, folder = module.V2[0], "train/patch50"
    picture = f"{folder}/objects365_v2_02278994.jpg"

    def make(root):
        annotations = [
            module.annotation(1, 1, [2.5, 3, 10, 20]),
            module.annotation(2, 38, [-0.25, -0.5, 8.25, 4.5]),
            module.annotation(3, 1, [30, 10, 10.2, 20.3]),
        ]
        module.write(root, annotations)
        second_picture(root, file, picture, "10.jpg", file_name="images/v2/patch50/10.jpg")

    def expected(root):
        objects = [
            boxed(2.5, 3, 12.5, 23, category="Person"),
            boxed(0, 0, 8, 4, category="Moniter/TV"),
            boxed(30, 10, 40, 30, category="Person"),
        ]
        expressions = said(("every person", 0, 2), ("moniter", 1), ("tv", 1), kind="category")
        return [
            plain("9", SMALL, root / picture, objects, expressions, "objects365"),
            plain("10", SMALL, root / folder / "10.jpg", objects, expressions, "objects365"),
        ]

    return Fixture(
        make,
        expected,
        {
            "its box [2, 3, 0, 20] (xywh) is 0 x 20 pixels: no object": put(
                file, "annotations", 0, "bbox", [2, 3, 0, 20]
            ),
            "its category_id 366 has no name among the categories": put(file, "annotations", 0, "category_id", 366),
            "objects365_v2_02278994.jpg not found; looked in": drop(picture),
        },
        {"must hold a dict at its top level": text(file, "[]"), "option one must contain {}": with_options(one="it")},
    )


def mdetr(name):
    module = test_mdetr
    file, picture = module.FILES[name]

    def make(root):
        # the numbers are neither places in the list nor in its order
        images = [module.image(7, module.CAPTION), module.image(3, "No box here."), module.image(1, "a cat")]
        annotations = [
            module.annotation(1, [module.MEN], [2, 3, 10, 20]),
            module.annotation(2, [[0, 5]], [0, 0, 5, 5], image_id=1),
            module.annotation(3, [module.MEN], [20, 3, 10, 20]),
            module.annotation(4, [module.DOG], [2, 3, 10, 20]),
        ]
        module.write(root, name, images, annotations)

    def expected(root):
        men, dog = [boxed(2, 3, 12, 23), boxed(20, 3, 30, 23)], ("a dog", 0)
        first = said(("Two men", 0, 1), dog, kind="phrase")
        cat = said(("a cat", 0), kind="phrase")
        return [
            plain(f"{name}/100#7", SMALL, root / picture, men, first, name),
            plain(f"{name}/100#1", SMALL, root / picture, [boxed(0, 0, 5, 5)], cat, name),
        ]

    return Fixture(
        make,
        expected,
        {
            "the span [31, 40] is none of the caption of 31 characters": put(
                file, "annotations", 0, "tokens_positive", [[31, 40]]
            ),
            "its box [2, 3, 4, 0] (xywh) is 4 x 0 pixels": put(file, "annotations", 0, "bbox", [2, 3, 4, 0]),
            "its image_id 8 is not among the images": put(file, "annotations", 0, "image_id", 8),
            "image 7: 'caption' must be str, got None": put(file, "images", 0, "caption", None),
        },
        {"is not JSON": text(file, "{"), "must have a list 'images'": cut(file, "images")},
    )


def box_json():
    module, file = test_box_json, "boxes.json"

    def make(root):
        first = {"image": "a.jpg", "boxes": [module.WRITTEN["xywh"], [20, 3, 5, 5]], "text": ["every dog", "a cat"]}
        second = {"image": "b.jpg", "boxes": [module.WRITTEN["xywh"]], "text": ["dog"]}
        module.write(root, file, [first, second])

    def expected(root):
        first = said(("every dog", 0), ("a cat", 1), kind="phrase")
        objects = [boxed(*module.BOX), boxed(20, 3, 25, 8)]
        alone = [boxed(*module.BOX)], said(("dog", 0), kind="phrase")
        return [
            plain("a.jpg", SMALL, root / "images/a.jpg", objects, first, "box_json"),
            plain("b.jpg", SMALL, root / "images/b.jpg", *alone, "box_json"),
        ]

    return Fixture(
        make,
        expected,
        {
            "'boxes' has 0 entries and 'text' has 2": put(file, 0, "boxes", []),
            "its box must be 4 numbers (xywh)": put(file, 0, "boxes", 0, [4, 3, 10]),
            "image c.jpg not found": put(file, 0, "image", "c.jpg"),
            "record 0 must be a dict with image, got int": put(file, 0, 7),
        },
        {"is not JSON": text(file, "{"), "boxes must be": with_options(boxes="cxcywh")},
    )


# ---------------------------------------------------------------- grounded captions


def gcg(name, content, expected, records):
    """content: of its file. expected: (root) -> samples. A second picture, 10.jpg, is a copy of the first."""
    module = test_gcg
    file = f"annotations/{module.FILES[name].format(split='train')}"

    def make(root):
        module.write(root, name, content)
        shutil.copy(root / module.FOLDER[name] / "9.jpg", root / module.FOLDER[name] / "10.jpg")

    by_message = {message: put(file, *where) for message, where in records.items()}
    by_message["image 9.jpg not found; looked in"] = drop(f"{module.FOLDER[name]}/9.jpg")
    return Fixture(
        make, expected, by_message, {"is not JSON": text(file, "{"), "annotation file not found": drop(file)}
    )


def captioned(root, name, sample_id, picture, question, answer, targets, *objects):
    return Sample(
        f"{name}/{sample_id}",
        "grounded_caption",
        *TINY,
        frames=[str(root / test_gcg.FOLDER[name] / picture)],
        objects=list(objects),
        turns=[Turn(GCG_QUESTIONS[question], answer, targets)],
        source=name,
    )


MAN, SEA, HORSES = (thing(TINY, box) for box in ((0, 1, 2, 4), (9, 1, 11, 4), (2, 1, 8, 4)))
HORSE, OTHER_HORSE = (thing(TINY, box) for box in ((2, 1, 4, 4), (6, 1, 8, 4)))


def gcg_of_spans(name, questions):
    module = test_gcg
    horses = module.grounding(module.HORSES, 2, 4, 6)
    first = {"two horses": horses, "man": module.grounding(module.MAN, 0), "sea": module.grounding(module.SEA, 9)}
    second = {"file_name": "10.jpg", "image_id": "10"}
    content = [module.of_spans(first), module.of_spans({"sea": module.grounding(module.SEA, 9)}, **second)]

    def expected(root):
        both = "A <p> man </p> [SEG] rides <p> two horses </p> [SEG] by the <p> sea </p> [SEG]."
        sea = "A man rides two horses by the <p> sea </p> [SEG]."
        return [
            captioned(root, name, "9", "9.jpg", questions[0], both, [[0], [1], [2]], MAN, HORSES, SEA),
            captioned(root, name, "10", "10.jpg", questions[1], sea, [[0]], SEA),
        ]

    records = {
        "its grounding is null": (0, "groundings", "sea", None),
        "the span [34, 40] is none of the caption of 34 characters": (
            0, "groundings", "sea", "token_positives", [34, 40],
        ),
        "RLE garbage": (0, "groundings", "sea", "rle_masks", 0, "counts", "zz"),
        "record 0: 'groundings' must be dict, got []": (0, "groundings", []),
    }  # fmt: skip
    return gcg(name, content, expected, records)


def refcocog_gcg(questions):
    module, name = test_gcg, "refcocog_gcg"
    refs = [
        {"sentence": "The horse on the right", "segmentation": module.rle(6), "bbox": [6, 1, 2, 3]},
        {"sentence": "the horse on the left", "segmentation": module.rle(2), "bbox": [2, 1, 2, 3]},
    ]
    caption = "The horse on the LEFT follows the horse on the right."
    record = {"img_file_name": "9.jpg", "caption": caption, "refs": refs}
    second = record | {"img_file_name": "10.jpg", "refs": refs[1:]}

    def expected(root):
        both = "<p> the horse on the left </p> [SEG] follows <p> the horse on the right </p> [SEG]."
        left = "<p> the horse on the left </p> [SEG] follows the horse on the right."
        return [
            captioned(root, name, "9", "9.jpg", questions[0], both, [[0], [1]], HORSE, OTHER_HORSE),
            captioned(root, name, "10", "10.jpg", questions[1], left, [[0]], HORSE),
        ]

    records = {
        "its sentence 'a cow' is not in the caption": (0, "9", "refs", 0, "sentence", "a cow"),
        "RLE garbage": (0, "9", "refs", 0, "segmentation", {"size": [8, 12], "counts": "zz"}),
        "record 0 must be a dict with one id": (0, {}),
    }
    return gcg(name, [{"9": record}, {"10": second}], expected, records)


def flickr_gcg(questions):
    module, name = test_gcg, "flickr_gcg"
    annotations = [
        module.of_flickr(1, [module.HORSES, module.SEA], 2),
        module.of_flickr(2, [module.MAN], 0),
        module.of_flickr(3, [module.HORSES], 6),
        module.of_flickr(4, [module.SEA], 9) | {"image_id": 5},
    ]
    content = module.flickr(annotations)
    content["images"].append(content["images"][0] | {"id": 5, "file_name": "10.jpg"})

    def expected(root):
        horses = "A <p> man </p> [SEG] rides <p> two horses </p> [SEG] by the sea."
        sea = "A man rides two horses by the <p> sea </p> [SEG]."
        return [
            captioned(root, name, "9#4", "9.jpg", questions[0], horses, [[0], [1, 2]], MAN, HORSE, OTHER_HORSE),
            captioned(root, name, "10#5", "10.jpg", questions[1], sea, [[0]], SEA),
        ]

    records = {
        "the span [40, 50] is none of the caption": ("annotations", 1, "tokens_positive", [[40, 50]]),
        "'sam_mask' must be dict or list, got None": ("annotations", 1, "sam_mask", None),
        "its image_id 6 is not among the images": ("annotations", 1, "image_id", 6),
    }
    return gcg(name, content, expected, records)


# ---------------------------------------------------------------- regions


def osprey(name, turns, **texts):
    """turns: of each of its two records; texts: what these say of their regions, the halves of a picture."""
    module = test_osprey
    file, folder = f"Osprey-724K/{module.FILES[name]}", "coco/train2017"

    def make(root):
        regions = [module.rle(0, 32), {"size": [48, 64], "counts": [48 * 32, 48 * 32]}]
        first = module.record(regions, **texts)
        module.write(root, name, [first, first | {"file_name": "000000000010.jpg"}])
        shutil.copy(root / folder / "000000000009.jpg", root / folder / "000000000010.jpg")

    def expected(root):
        first = module.expected(root, name, turns[0], [block(WIDE, *LEFT), block(WIDE, *RIGHT)])
        frames = [str(root / folder / "000000000010.jpg")]
        return [first, replace(first, id=f"{name}/000000000010", frames=frames, turns=turns[1])]

    texts_key = next(iter(texts))
    bad_texts = {
        "conversations": ("'conversations' must be a list of messages, got []", []),
        "description": ("'description' has 1 texts for 2 regions", ["A dog."]),
    }
    message, value = bad_texts[texts_key]
    small = {"size": [48, 64], "counts": [48 * 64 - 9, 9]}
    return Fixture(
        make,
        expected,
        {
            message: put(file, 0, texts_key, value),
            "region1: it covers 0 of the 16 x 16 cells": put(file, 0, "annotation", 0, "segmentation", small),
            "RLE garbage: its runs are from 1536 to": put(
                file, 0, "annotation", 1, "segmentation", "counts", 0, 10**20
            ),
            "region2: its annotation has no 'segmentation'": cut(file, 0, "annotation", 1, "segmentation"),
            "image 000000000009.jpg not found; looked in": drop(f"{folder}/000000000009.jpg"),
        },
        {"is not JSON": text(file, "{"), "option min_cells must be": with_options(min_cells=0)},
    )


def few_words(name):
    shortly = test_osprey.SHORTLY
    turns = [Turn(f"What is region1 doing?{shortly}", "region1 follows region2.")]
    turns += [Turn(f"How many are there?{shortly}", "Two.")]
    return osprey(name, [turns, turns], conversations=test_osprey.TALK)


def osprey_conversation():
    turns = [Turn("What is region1 doing?", "region1 follows region2."), Turn("How many are there?", "Two.")]
    return osprey("osprey_conversation", [turns, turns], conversations=test_osprey.TALK)


def asked(number, question, answer):
    """A turn about a region with one of the usual questions."""
    return Turn(REGION_QUESTIONS[question].replace("{n}", str(number)), answer)


def osprey_detail(*questions):
    answers = ["A b dog.", "A cat."]
    turns = [[asked(n, one, answers[n - 1]) for n, one in enumerate(of_one, 1)] for of_one in questions]
    return osprey("osprey_detail", turns, description=["A <b> dog.", "A cat."])


def describe_anything(*questions):
    module = test_describe_anything
    file, folder = "COCOStuff/annotations.json", "COCOStuff/images"

    def make(root):
        regions = [module.region("A plate.", 0, 32), module.region("A <cup>.", 32, 64)]
        module.write(root, {"000000000009": regions, "000000000010": [module.region("A cup.", 32, 64)]})
        shutil.copy(root / folder / "000000000009.jpg", root / folder / "000000000010.jpg")

    def expected(root):
        left, right = thing(WIDE, LEFT), thing(WIDE, RIGHT)
        first = Sample("COCOStuff/000000000009", "region_caption", *WIDE, source="describe_anything")
        first = replace(first, frames=[str(root / folder / "000000000009.jpg")], num_frames=1, annotated=[0])
        first = replace(first, objects=[left, right], regions=[0, 1])
        first.turns = [asked(1, questions[0], "A plate."), asked(2, questions[1], "A cup.")]
        frames = [str(root / folder / "000000000010.jpg")]
        second = replace(first, id="COCOStuff/000000000010", frames=frames, objects=[right], regions=[0])
        return [first, replace(second, turns=[asked(1, questions[2], "A cup.")])]

    return Fixture(
        make,
        expected,
        {
            "its caption is empty": put(file, "000000000009", 0, "caption", " "),
            "RLE garbage": put(file, "000000000009", 0, "mask_rle", "counts", "zz"),
            "the region must be a dict with caption, mask_rle, got str": put(file, "000000000009", 0, "A plate."),
            "there is no picture 000000000009.jpg": drop(f"{folder}/000000000009.jpg"),
        },
        {"COCOStuff/images does not exist": drop(folder), "must hold a dict at its top level": text(file, "[]")},
        split="COCOStuff",
    )


# ---------------------------------------------------------------- dialogues


def llava(name, at):
    """at: the picture, on disk."""
    module = test_llava
    file = module.FILE[name]

    def make(root):
        words = [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5."}]
        image = {"image": at.rpartition("/")[2] if name == "vstar_possible_locations" else at}
        module.write(root, [module.row(**image), {"id": "a_0", "model": "", "conversations": words}], name, at)

    def expected(root):
        of_text = Sample("a_0", "conversation", turns=[Turn("2 + 3?", "5.")], source=name)
        return [module.expected(root, at, name), of_text]

    return Fixture(
        make,
        expected,
        {
            "'image' must be the name of a file, got 7": put(file, 0, "image", 7),
            "message 2 is an answer that follows an answer": put(file, 0, "conversations", 2, "from", "gpt"),
            "'conversations' must be a list of messages, got None": put(file, 0, "conversations", None),
            "9.jpg not found; looked in": drop(at),
            "row 1 must be a dict with conversations, got str": put(file, 1, "x"),
        },
        {"is not JSON": text(file, "{"), "annotation file not found": drop(file)},
    )


def chatunivi():
    module, file, folder = test_llava, test_llava.FILE["chatunivi"], "Activity_Videos/v_a"

    def make(root):
        talk = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A jump."}]
        rows = [{"id": "9", "video": "v_a.mp4", "conversations": talk}, module.row(image="pictures/9.jpg")]
        module.write(root, rows, "chatunivi", "pictures/9.jpg")
        (root / folder).mkdir(parents=True)
        for number in (2, 10):
            Image.new("RGB", TINY, (number, 0, 0)).save(root / folder / f"{number}.jpg")

    def expected(root):
        frames = [str(root / folder / f"{number}.jpg") for number in (2, 10)]
        turns = [Turn("What happens?", "A jump.")]
        clip = Sample("9", "conversation", *TINY, frames=frames, turns=turns, source="chatunivi")
        return [clip, replace(module.expected(root, "pictures/9.jpg", "chatunivi"), id="9#2")]

    return Fixture(
        make,
        expected,
        {
            "video v_a.mp4 not found; looked in": drop(folder),
            "it has both a picture and a video": put(file, 0, "image", "pictures/9.jpg"),
            "its question places a picture, but the row has neither 'image' nor 'video'": cut(file, 0, "video"),
        },
        {"is not JSON": text(file, "{"), "must hold a list": text(file, "{}")},
    )


TEXTS = {
    "objects365": objects365(),
    "flickr30k": mdetr("flickr30k"),
    "gqa_grounding": mdetr("gqa_grounding"),
    "box_json": box_json(),
    # the numbers are of the questions that the ids draw
    "grand_f": gcg_of_spans("grand_f", (5, 3)),
    "openpsg_gcg": gcg_of_spans("openpsg_gcg", (1, 4)),
    "refcocog_gcg": refcocog_gcg((3, 3)),
    "flickr_gcg": flickr_gcg((3, 5)),
    "osprey_conversation": osprey_conversation(),
    "osprey_detail": osprey_detail((2, 2), (4, 1)),
    "osprey_short": few_words("osprey_short"),
    "osprey_part": few_words("osprey_part"),
    "osprey_positive_neg": few_words("osprey_positive_neg"),
    "describe_anything": describe_anything(4, 3, 3),
    "llava": llava("llava", "coco/train2017/9.jpg"),
    "vstar_possible_locations": llava("vstar_possible_locations", "coco2017/train2017/9.jpg"),
    "chatunivi": chatunivi(),
}
