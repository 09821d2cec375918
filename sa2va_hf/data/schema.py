"""The one sample type, and its row in Arrow.

Every dataset becomes `Sample`s and nobody downstream asks where they came from. An image is a one-frame video. Masks
and boxes are given per annotated frame, each with its own "not known" (None): box-only, mask-only and no-target data
are no special cases.
"""

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from datasets import Features, List, Value

from sa2va_hf import masks
from sa2va_hf.masks import RLE, Box
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

TASKS = ("referring", "conversation", "grounded_caption", "region_caption", "question")

IMAGE_TAG = "<image>"  # places the visuals inside a text, see Sa2VAProcessor

Media = str | bytes  # a path, or the encoded file itself


@dataclass
class Object:
    """One object, with one entry per annotated frame of the sample.

    masks: None where it was not annotated (no loss there); an RLE without pixels where it is known to be absent.
    boxes: (x0, y0, x1, y1) in pixels of the upright picture, x1 and y1 exclusive; None where unknown; one without area
        where it is known to be absent.
    """

    masks: list[RLE | None]
    boxes: list[Box | None]
    category: str | None = None


@dataclass
class Expression:
    """A phrase and the objects (by index) whose union it means; no targets: the phrase matches nothing.

    kind ("attribute", "ordinal", "relation", "motion", ...) separates scores in evaluation; it may be empty.
    """

    text: str
    targets: list[int]
    kind: str = ""


@dataclass
class Turn:
    """A question and its answer; targets holds, for each [SEG] of the answer in order, the objects it stands for."""

    question: str
    answer: str
    targets: list[list[int]] = field(default_factory=list)


@dataclass
class Sample:
    """One image, clip or text, with what is to be learnt from it.

    id: unique within a source and split.
    task: one of `TASKS`.
    width, height: pixels of the upright (EXIF-applied) picture; 0, 0 for text only.
    frames: image files in order, each a path or the encoded bytes; one frame is an image.
    video: a video file (path or bytes) instead of frames. Neither: text only.
    num_frames: frames of the clip; default len(frames), must be given for a video file.
    annotated: numbers of the frames that the entries of masks and boxes belong to; default all.
    expressions: phrases whose questions and answers are sampled from templates; or turns: a fixed dialogue; never
        both.
    regions: objects (by index) given as region prompts, called region1, region2, ... in the question; the prompt is
        their mask on the first annotated frame.
    ignore: per annotated frame the pixels that do not count, None where all do; [] when there are none at all.
    source: key of SOURCES.
    """

    id: str
    task: str
    width: int = 0
    height: int = 0
    frames: list[Media] = field(default_factory=list)
    video: Media | None = None
    num_frames: int = 0
    annotated: list[int] | None = None
    objects: list[Object] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    ignore: list[RLE | None] = field(default_factory=list)
    source: str = ""

    def __post_init__(self) -> None:
        if self.frames and not self.num_frames:
            self.num_frames = len(self.frames)
        if self.annotated is None:
            self.annotated = list(range(self.num_frames))


@dataclass
class Reject:
    """A record that cannot be used: its id, why (what was expected, what came), and the file at fault."""

    id: str
    reason: str
    file: str = ""


# ---------------------------------------------------------------- Arrow

_MEDIA = {"path": Value("string"), "bytes": Value("binary")}
_RLE = {"size": List(Value("int32")), "counts": Value("string")}

FEATURES = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "source": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        "num_frames": Value("int32"),
        "annotated": List(Value("int32")),
        "frames": List(_MEDIA),
        "video": _MEDIA,
        "objects": List({"category": Value("string"), "masks": List(_RLE), "boxes": List(List(Value("float64")))}),
        "expressions": List({"text": Value("string"), "targets": List(Value("int32")), "kind": Value("string")}),
        "turns": List({"question": Value("string"), "answer": Value("string"), "targets": List(List(Value("int32")))}),
        "regions": List(Value("int32")),
        "ignore": List(_RLE),
        # for planning without touching masks or media: selecting these columns reads nothing else of the file
        "num_objects": Value("int32"),
        "num_masks": Value("int32"),  # annotated masks, over objects and frames
        "is_video": Value("bool"),
    }
)


def to_row(sample: Sample) -> dict[str, Any]:
    """The sample as a row of FEATURES; `from_row` gives back an equal sample."""
    row = {name: getattr(sample, name) for name in FEATURES if hasattr(sample, name)}
    row["frames"] = [_to_media(frame) for frame in sample.frames]
    row["video"] = None if sample.video is None else _to_media(sample.video)
    row["objects"] = [
        {
            "category": instance.category,
            "masks": instance.masks,
            "boxes": [None if box is None else list(box) for box in instance.boxes],
        }
        for instance in sample.objects
    ]
    row["expressions"] = [asdict(expression) for expression in sample.expressions]
    row["turns"] = [asdict(turn) for turn in sample.turns]
    row["num_objects"] = len(sample.objects)
    row["num_masks"] = sum(mask is not None for instance in sample.objects for mask in instance.masks)
    row["is_video"] = sample.video is not None or sample.num_frames > 1
    return row


def from_row(row: dict[str, Any]) -> Sample:
    """The sample of an Arrow row. Inverse of `to_row`."""
    return Sample(
        id=row["id"],
        task=row["task"],
        width=row["width"],
        height=row["height"],
        frames=[_from_media(frame) for frame in row["frames"]],
        video=_from_media(row["video"]),
        num_frames=row["num_frames"],
        annotated=list(row["annotated"]),
        objects=[
            Object(
                masks=[_from_rle(mask) for mask in instance["masks"]],
                boxes=[None if box is None else tuple(box) for box in instance["boxes"]],
                category=instance["category"],
            )
            for instance in row["objects"]
        ],
        expressions=[Expression(**expression) for expression in row["expressions"]],
        turns=[Turn(**turn) for turn in row["turns"]],
        regions=list(row["regions"]),
        ignore=[_from_rle(mask) for mask in row["ignore"]],
        source=row["source"],
    )


def _to_media(media: Media) -> dict[str, Media | None]:
    return {"path": None, "bytes": media} if isinstance(media, bytes) else {"path": str(media), "bytes": None}


def _from_media(media: dict | None) -> Media | None:
    if media is None:
        return None
    return media["bytes"] if media["bytes"] is not None else media["path"]


def _from_rle(rle: dict | None) -> RLE | None:
    # a null struct may come back as a struct of nulls
    return None if rle is None or rle["counts"] is None else {"size": list(rle["size"]), "counts": rle["counts"]}


# ---------------------------------------------------------------- validation


def validate(sample: Sample) -> None:
    """ValueError naming the sample, the field, what was expected and what came, when the sample contradicts itself.

    Opens no media: that the files exist and have the size is for `prepare` to check.
    """
    try:
        _check_media(sample)
        for number, instance in enumerate(sample.objects):
            _check_object(sample, instance, f"objects[{number}]")
        _check_ignore(sample)
        _check_text(sample)
        _check_regions(sample)
    except ValueError as error:
        raise ValueError(f"sample {sample.id!r}: {error}") from error


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_media(sample: Sample) -> None:
    _expect(isinstance(sample.id, str) and sample.id != "", f"id must be a non-empty str, got {sample.id!r}")
    _expect(sample.task in TASKS, f"task must be one of {', '.join(TASKS)}, got {sample.task!r}")
    _expect(not (sample.frames and sample.video is not None), "frames and video exclude each other, both are given")
    if not sample.frames and sample.video is None:
        size = (sample.width, sample.height, sample.num_frames)
        _expect(size == (0, 0, 0), f"width, height, num_frames must be 0 without frames or video, got {size}")
        _expect(not sample.objects, f"objects need frames or a video, got {len(sample.objects)} objects and neither")
    else:
        size = f"{sample.width} x {sample.height}"
        _expect(sample.width > 0 and sample.height > 0, f"width x height must be positive, got {size}")
        _expect(max(sample.width, sample.height) < 2**31, f"width and height must fit 32 bits, got {size}")
        _expect(
            sample.num_frames > 0, f"num_frames must be positive, got {sample.num_frames} (a video without frames)"
        )
    if sample.frames:
        counts = (len(sample.frames), sample.num_frames)
        _expect(counts[0] == counts[1], f"num_frames must be the number of frames {counts[0]}, got {counts[1]}")
    for number, media in enumerate([*sample.frames, sample.video]):
        _expect(media is None or len(media) > 0, f"frames[{number}] is empty: it must be a path or an encoded file")
    numbers = sample.annotated
    ordered = all(a < b for a, b in zip(numbers, numbers[1:], strict=False))
    inside = all(0 <= number < sample.num_frames for number in numbers)
    _expect(ordered and inside, f"annotated must rise within 0..{sample.num_frames - 1}, got {numbers!r:.80}")
    _expect(not sample.objects or len(numbers) > 0, "annotated is empty although there are objects")


def _check_object(sample: Sample, instance: Object, name: str) -> None:
    for kind, entries in (("masks", instance.masks), ("boxes", instance.boxes)):
        counts = f"{len(sample.annotated)} entries, one per annotated frame, got {len(entries)}"
        _expect(len(entries) == len(sample.annotated), f"{name}.{kind} must have {counts}")
    for number, mask in enumerate(instance.masks):
        _check_mask(sample, mask, f"{name}.masks[{number}]")
    for number, box in enumerate(instance.boxes):
        _check_box(sample, box, f"{name}.boxes[{number}]")
    known = any(entry is not None for entry in [*instance.masks, *instance.boxes])
    _expect(known, f"{name} has neither a mask nor a box on any frame")


def _check_mask(sample: Sample, mask: RLE | None, name: str) -> None:
    if mask is None:
        return
    try:
        masks.area(mask)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    _expect(isinstance(mask["counts"], str), f"{name}: counts must be a compressed str (masks.normalize makes it one)")
    height, width = mask["size"]
    size, wanted = f"{width} x {height}", f"{sample.width} x {sample.height}"
    _expect(size == wanted, f"{name} is {size} (width x height) but the picture is {wanted}")


def _check_box(sample: Sample, box: Box | None, name: str) -> None:
    if box is None:
        return
    _expect(len(box) == 4 and all(math.isfinite(value) for value in box), f"{name} must be 4 numbers, got {box}")
    x0, y0, x1, y1 = box
    inside = 0 <= x0 <= x1 <= sample.width and 0 <= y0 <= y1 <= sample.height
    _expect(inside, f"{name} must be (x0, y0, x1, y1) within {sample.width} x {sample.height}, got {box}")


def _check_ignore(sample: Sample) -> None:
    counts = f"{len(sample.annotated)} entries, one per annotated frame, or none, got {len(sample.ignore)}"
    _expect(len(sample.ignore) in (0, len(sample.annotated)), f"ignore must have {counts}")
    for number, mask in enumerate(sample.ignore):
        _check_mask(sample, mask, f"ignore[{number}]")


def _check_text(sample: Sample) -> None:
    _expect(not (sample.expressions and sample.turns), "expressions and turns exclude each other, both are given")
    nothing = not (sample.expressions or sample.turns or sample.objects)
    _expect(not nothing, "there are no expressions, no turns and no objects: nothing to learn")
    for number, expression in enumerate(sample.expressions):
        name = f"expressions[{number}]"
        _check_words(expression.text, f"{name}.text")
        for tag in (SEG_TOKEN, IMAGE_TAG):
            within = tag in expression.text or tag in expression.text.lower()  # as templates write it
            _expect(not within, f"{name}.text must not contain {tag}, in any case, got {expression.text!r}")
        _check_targets(sample, expression.targets, f"{name}.targets")
    for number, turn in enumerate(sample.turns):
        _check_turn(sample, turn, number)


def _check_words(text: str, name: str) -> None:
    _expect(isinstance(text, str) and text.strip() != "", f"{name} must be a non-empty text, got {text!r}")


def _check_turn(sample: Sample, turn: Turn, number: int) -> None:
    name = f"turns[{number}]"
    _check_words(turn.question, f"{name}.question")
    _check_words(turn.answer, f"{name}.answer")
    _expect(
        SEG_TOKEN not in turn.question, f"{name}.question must not contain {SEG_TOKEN}: only answers point at masks"
    )
    pictures = (turn.question + turn.answer).count(IMAGE_TAG)
    wanted = "at most once, in the first question" if number == 0 else "only in the first question"
    allowed = turn.question.count(IMAGE_TAG) <= (number == 0) and pictures == turn.question.count(IMAGE_TAG)
    _expect(allowed, f"{name}: {IMAGE_TAG} may occur {wanted}; it occurs {pictures} times")
    counts = (turn.answer.count(SEG_TOKEN), len(turn.targets))
    explained = f"{counts[0]} {SEG_TOKEN} but targets has {counts[1]} entries: one list of objects per {SEG_TOKEN}"
    _expect(counts[0] == counts[1], f"{name}.answer has {explained}")
    for place, targets in enumerate(turn.targets):
        _expect(len(targets) > 0, f"{name}.targets[{place}] is empty: a {SEG_TOKEN} must mean at least one object")
        _check_targets(sample, targets, f"{name}.targets[{place}]")


def _check_targets(sample: Sample, targets: list[int], name: str) -> None:
    valid = all(isinstance(target, int) and 0 <= target < len(sample.objects) for target in targets)
    _expect(valid, f"{name} must be indices of the {len(sample.objects)} objects, got {targets}")
    _expect(len(set(targets)) == len(targets), f"{name} names an object twice: {targets}")


def _check_regions(sample: Sample) -> None:
    _check_targets(sample, sample.regions, "regions")
    for number, index in enumerate(sample.regions):
        mask = sample.objects[index].masks[0]
        usable = mask is not None and masks.area(mask) > 0
        _expect(usable, f"regions[{number}] is object {index}, which has no pixels on the first annotated frame")
    if not sample.regions:
        return
    for number, turn in enumerate(sample.turns):
        named = [int(digits) for digits in re.findall(r"\bregion(\d+)\b", turn.question)]
        wrong = [region for region in named if not 1 <= region <= len(sample.regions)]
        _expect(
            not wrong, f"turns[{number}].question names region{(wrong or [0])[0]} of {len(sample.regions)} regions"
        )
