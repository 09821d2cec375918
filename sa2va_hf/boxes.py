"""Boxes: numbers of files and texts of models <-> (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; their overlap.

The forms of text, each with one writer (`write`); one reader (`read`) reads them all:

    spatial      <box>0.1000,0.2000,0.3000,0.4000</box>, in shares of the picture. Frames are separated by <next>,
                 boxes of a frame by <box_sep>, a frame without a box is <no_box>, and <switch> comes before a frame on
                 which another object is meant than on the frame before.
    thousandths  <box>[[100, 200, 300, 400]]</box>, InternVL's form, frames as above
    json         [{"bbox_2d": [100, 200, 300, 400]}], Qwen's form; entries of a clip have a "frame", and an entry
                 without a box has null
    plain        [100, 200, 300, 400], one box within a sentence
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]

SPATIAL, THOUSANDTHS, JSON, PLAIN = "spatial", "thousandths", "json", "plain"
TEXT_FORMS = (SPATIAL, THOUSANDTHS, JSON, PLAIN)
NUMBER_FORMS = ("xywh", "xyxy", "xyxy_normalized", "xxyy_normalized")
ENDS = ("inclusive", "exclusive")  # whether x1 and y1 of a box are the last pixel in it, or the first one behind it

GRID = 1000  # the integers of every form but "spatial" are thousandths of the picture's sides
DECIMALS = 4
MIN_SIDE = 1.0  # pixels, as in MDETR's and mmdet's readers: what is thinner is a slip of the mouse
MIN_INSIDE = 0.5  # share of a box that must lie in the picture: with less, the form or the picture is the wrong one
ABSENT_BOX: Box = (0.0, 0.0, 0.0, 0.0)  # a box without area, like a mask without pixels: known to be absent

OPEN, CLOSE, NEXT, SEPARATOR, NO_BOX, SWITCH = "<box>", "</box>", "<next>", "<box_sep>", "<no_box>", "<switch>"
SINGLE_IMAGE = "<single_img>"  # behind the boxes of a picture, in answers of the spatial form
BOX_TOKENS = (OPEN, CLOSE, SEPARATOR, NEXT, NO_BOX, SWITCH, SINGLE_IMAGE)  # of that form; one token each
OWN_FORMS = {"internvl": THOUSANDTHS, "qwen2_5_vl": JSON, "qwen3_vl": JSON}  # by LLM; others: SPATIAL
MAX_PROBLEMS = 20


# ---------------------------------------------------------------- overlap, sides


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes (..., 4), pairwise by broadcasting -> float64 (...). Two boxes without area: 0."""
    inside, union, _ = _areas(boxes, others)
    return np.divide(inside, union, out=np.zeros_like(union), where=union > 0)


def box_giou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Generalized IoU, in -1..1: IoU less the share of the box around both that neither covers."""
    inside, union, hull = _areas(boxes, others)
    overlap = np.divide(inside, union, out=np.zeros_like(union), where=union > 0)
    return overlap - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def _areas(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(intersection, union, box around both) of boxes (..., 4)."""
    boxes, others = np.asarray(boxes, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if boxes.shape[-1:] != (4,) or others.shape[-1:] != (4,):
        raise ValueError(f"boxes: expected [x0, y0, x1, y1], got the shapes {boxes.shape} and {others.shape}")

    def area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.clip(high - low, 0, None).prod(-1)

    low, high = (boxes[..., :2], others[..., :2]), (boxes[..., 2:], others[..., 2:])
    inside = area(np.maximum(*low), np.minimum(*high))
    union = area(low[0], high[0]) + area(low[1], high[1]) - inside
    return inside, union, area(np.minimum(*low), np.maximum(*high))


def normalized(box: Sequence[float], width: float, height: float) -> Box:
    """A box in pixels as shares of the picture, cut at its edges.

    ValueError when these are not four finite numbers, the corners are reversed, or the picture has no size.
    """
    if len(box) != 4 or width <= 0 or height <= 0:
        raise ValueError(f"a box needs 4 values and a picture of positive size, got {box} in {width} x {height}")
    if not all(map(math.isfinite, box)) or box[2] < box[0] or box[3] < box[1]:
        raise ValueError(f"expected a box [x0, y0, x1, y1] of finite numbers, x0 <= x1 and y0 <= y1, got {list(box)}")
    return tuple(min(max(value / side, 0.0), 1.0) for value, side in zip(box, (width, height) * 2, strict=True))


def to_pixels(box: Sequence[float], width: float, height: float) -> Box:
    """A box in shares of the picture in pixels: cut at the picture's edges, swapped corners put right."""
    x0, y0, x1, y1 = (min(max(float(value), 0.0), 1.0) for value in box)
    return min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height


# ---------------------------------------------------------------- numbers of files


def check_number_form(form: str, option: str) -> None:
    """ValueError when the value of an option is none of `NUMBER_FORMS`."""
    if form not in NUMBER_FORMS:
        raise ValueError(f"option {option} must be one of {', '.join(NUMBER_FORMS)}, got {form!r}")


def from_numbers(numbers: Any, form: str, height: int, width: int) -> Box:
    """Four numbers of a file as a box, cut at the picture's edges.

    form: "xywh" (COCO) or "xyxy" in pixels, "xyxy_normalized" or "xxyy_normalized" (OpenImages) in shares of the
    picture. ValueError when they are no numbers, the box is thinner than a pixel, or more of it is out of the picture
    than within.
    """
    check_number_form(form, "boxes")
    if not _are_numbers(numbers) or len(numbers) != 4:
        raise ValueError(f"its box must be 4 numbers ({form}), got {numbers!r:.80}")
    first, second, third, fourth = map(float, numbers)
    if form == "xywh":
        x0, y0, x1, y1 = first, second, first + third, second + fourth
    elif form == "xxyy_normalized":
        x0, x1, y0, y1 = first * width, second * width, third * height, fourth * height
    else:
        x0, y0, x1, y1 = first, second, third, fourth
        if form == "xyxy_normalized":
            x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    if x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        raise ValueError(f"its box {list(numbers)} ({form}) is {x1 - x0:g} x {y1 - y0:g} pixels: no object")
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    inside = max(cut[2] - cut[0], 0.0) * max(cut[3] - cut[1], 0.0)
    if inside < MIN_INSIDE * (x1 - x0) * (y1 - y0):
        raise ValueError(f"its box {list(numbers)} ({form}) is mostly out of its picture of {width} x {height}")
    return cut


def pixel_box(box: Any, height: int, width: int, ends: str) -> Box:
    """A box of a file in pixels. ends: see `ENDS`. ValueError when it is none or beyond the picture."""
    if ends not in ENDS:
        raise ValueError(f"ends must be {' or '.join(ENDS)}, got {ends!r}")
    if not _are_numbers(box) or len(box) != 4:
        raise ValueError(f"expected [x0, y0, x1, y1] in pixels or null, got {box!r:.80}")
    past = 1 if ends == "inclusive" else 0
    x0, y0, x1, y1 = float(box[0]), float(box[1]), float(box[2] + past), float(box[3] + past)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        hint = "; if x1 and y1 are not within the box, give the option ends=exclusive" if past else ""
        raise ValueError(f"{list(box)} is no box within {width} x {height} (ends {ends}){hint}")
    return x0, y0, x1, y1


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


# ---------------------------------------------------------------- boxes -> text


def write(
    frames: Sequence[Sequence[Box]], width: int, height: int, form: str = SPATIAL, switches: Collection[int] = ()
) -> str:
    """The boxes of each frame as a text of one form (see the module's docstring).

    Args:
        frames: boxes in pixels per frame; a frame without a box is empty. A picture is one frame.
        switches: indices of frames on which another object is meant than on the frame before.

    Raises:
        ValueError: for an unknown form, no frame, what is no box (see `normalized`), or, in the form "plain", more or
            less than one box.
    """
    if form not in TEXT_FORMS:
        raise ValueError(f"form: expected one of {', '.join(TEXT_FORMS)}, got {form!r}")
    if not frames:
        raise ValueError("frames: expected the boxes of at least one frame, got none")
    shares = [[normalized(box, width, height) for box in boxes] for boxes in frames]
    if form == PLAIN:
        if len(shares) != 1 or len(shares[0]) != 1:
            raise ValueError(f"form plain: expected one box, got {[len(boxes) for boxes in shares]} per frame")
        return str(_grid(shares[0][0]))
    if form == JSON:
        return _write_json(shares, switches)
    one_frame = _spatial_frame if form == SPATIAL else _grid_frame
    marks = [SWITCH if number in switches else "" for number in range(len(shares))]
    return OPEN + NEXT.join(mark + one_frame(boxes) for mark, boxes in zip(marks, shares, strict=True)) + CLOSE


def _spatial_frame(boxes: list[Box]) -> str:
    return SEPARATOR.join(",".join(f"{value:.{DECIMALS}f}" for value in box) for box in boxes) or NO_BOX


def _grid_frame(boxes: list[Box]) -> str:
    return str([_grid(box) for box in boxes]) if boxes else NO_BOX


def _grid(box: Box) -> list[int]:
    return [round(GRID * value) for value in box]


def _write_json(shares: list[list[Box]], switches: Collection[int]) -> str:
    entries = []
    for number, boxes in enumerate(shares):
        frame = {"frame": number} if len(shares) > 1 else {}
        mark = {"switch": True} if number in switches else {}
        entries += [frame | mark | {"bbox_2d": _grid(box)} for box in boxes] or [frame | mark | {"bbox_2d": None}]
    return json.dumps(entries)


_MENTION = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")


def switch_frames(present: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the frames on which other objects are there than on the last frame before that had any.

    present: the objects of each frame, in one order on all of them.
    """
    found, before = [], None
    for index, here in enumerate(present):
        if here and before not in (None, here):
            found.append(index)
        before = here or before
    return found


def mention(text: str, form: str, strict: bool = False) -> str:
    """A text with its boxes, [67, 314, 177, 658] in thousandths as in the form "plain", in another form.

    In the form "json" they stay as they are: Qwen-VL reads them so. Four numbers that are no box stay too.

    Raises:
        ValueError: with `strict`, for a box beyond the picture or without area.
    """

    def rewritten(match: re.Match) -> str:
        box = tuple(int(number) for number in match.groups())
        if not (box[0] < box[2] <= GRID and box[1] < box[3] <= GRID):
            if strict:
                raise ValueError(
                    f"{match[0]}: expected a box [x0, y0, x1, y1] in thousandths of the picture's sides, with x0 < x1 "
                    "and y0 < y1"
                )
            return match[0]
        return match[0] if form in (JSON, PLAIN) else write([[box]], GRID, GRID, form)

    return _MENTION.sub(rewritten, text)


# ---------------------------------------------------------------- text -> boxes


@dataclass(frozen=True)
class BoxAnswer:
    """What a text says of boxes.

    Args:
        frames: boxes in pixels per frame; empty where the text says that there is none, None where nothing could be
            read.
        switches: indices of the frames that are marked by <switch>.
        problems: what could not be read, one line each.
    """

    frames: list[list[Box] | None]
    switches: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


def read(
    text: str, width: float, height: float, frames: int | None = None, sides: tuple[float, float] = (GRID, GRID)
) -> BoxAnswer:
    """All boxes written in a text, in any of the forms. Nothing raises: what is not readable is in `problems`.

    Numbers beyond the picture are cut at its edges and swapped corners are put right: what a model writes is not
    always a box. Of several <box> groups the first counts, but those in InternVL's double brackets are objects of one
    frame.

    Args:
        width, height: of the picture, in pixels; 1 and 1 give boxes in shares.
        frames: how many frames are asked for; the answer then has as many.
        sides: what integers call the width and the height of the picture: 1000, or the pixels of a resized one.
    """
    reader = _Reader(width, height, sides)
    reader.read(text)
    return reader.answer(frames)


_TAGS = re.compile(r"<\s*(/?)\s*(box|next|box_sep|no_box|switch)\s*>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_GROUP = re.compile(rf"{OPEN}((?:(?!{CLOSE}).)*)({CLOSE})?", re.DOTALL)
_HEADLESS = re.compile(rf"((?:[-+\d.,;\s\[\]()]|{NEXT}|{SEPARATOR}|{NO_BOX}|{SWITCH})+){CLOSE}")
_LIST = re.compile(r"\[([^\[\]{}]*)(\])?")
_ENTRY = re.compile(r"\{[^{}]*\}?")
_FRAME = re.compile(r'"(?:frame|frame_id|frame_index)"\s*:\s*(\d{1,9})')
_BBOX = re.compile(r'"(?:bbox_2d|bbox|box)"\s*:\s*(null|\[[^\[\]{}]*\]?)')
_SHOWN = 40


class _Reader:
    """Collects boxes and problems of one text; see `read`."""

    def __init__(self, width: float, height: float, sides: tuple[float, float]) -> None:
        self.size, self.sides = (width, height), sides
        self.frames: list[list[Box] | None] = []
        self.switches: list[int] = []
        self.problems: list[str] = []

    def answer(self, frames: int | None) -> BoxAnswer:
        found = self.frames
        if frames is not None and len(found) != frames:
            if found:
                self.problems.append(f"expected boxes of {frames} frames, got {len(found)}")
            found = (found + [None] * frames)[:frames]
        kept = self.problems[:MAX_PROBLEMS]
        if len(self.problems) > MAX_PROBLEMS:
            kept.append(f"and {len(self.problems) - MAX_PROBLEMS} more")
        return BoxAnswer(found, tuple(number for number in self.switches if number < len(found)), tuple(kept))

    def read(self, text: str) -> None:
        text = _TAGS.sub(lambda match: f"<{match[1]}{match[2].lower()}>", text)
        text = re.sub(rf"{OPEN}(\s*{OPEN})+", OPEN, text)
        groups = list(_GROUP.finditer(text))
        if groups:
            self._groups(groups)
        elif CLOSE in text and (headless := _HEADLESS.search(text)):
            self.problems.append(f"there is no {OPEN} before {CLOSE}")
            self._group(headless[1], closed=True)
        elif _BBOX.search(text):
            self._entries(text)
        else:
            self._sentence(text)

    def _groups(self, groups: list[re.Match]) -> None:
        lists = [group for group in groups if group[1].lstrip().startswith("[[") and NEXT not in group[1]]
        if len(groups) > 1 and len(lists) == len(groups):
            for group in groups:
                self._group(group[1], closed=bool(group[2]))
            joined = [box for frame in self.frames for box in frame or ()]
            self.frames = [joined or None]
            return
        if len(groups) > 1:
            self.problems.append(f"the text has {len(groups)} groups {OPEN}...{CLOSE}: only the first is read")
        self._group(groups[0][1], closed=bool(groups[0][2]))

    def _group(self, content: str, closed: bool) -> None:
        if not closed:
            self.problems.append(f"the text ends before {CLOSE}: it may have been cut at max_new_tokens")
            content = re.sub(r"<[a-z_/]*$", "", content)  # a tag that is cut
        pieces = content.split(NEXT)
        for number, piece in enumerate(pieces):
            if SWITCH in piece:
                self.switches.append(len(self.frames))
                piece = piece.replace(SWITCH, "")
            self.frames.append(self._frame(piece, cut=not closed and number == len(pieces) - 1))

    def _frame(self, piece: str, cut: bool) -> list[Box] | None:
        where = f"frame {len(self.frames)}"
        absent, piece = NO_BOX in piece, piece.replace(NO_BOX, "")
        parts = piece.split(SEPARATOR)
        if absent and not "".join(parts).strip():
            return []
        if absent:
            self.problems.append(f"{where}: {NO_BOX} and a box")
        found = []
        for number, part in enumerate(parts):
            found += self._part(part, where, cut and number == len(parts) - 1)
        return found or None

    def _part(self, part: str, where: str, cut: bool) -> Iterator[Box]:
        if part.lstrip().startswith("[["):
            for match in _LIST.finditer(part.lstrip()[1:]):
                yield from self._box(match[1], where, grid=True, cut=not match[2])
        else:
            yield from self._box(part, where, grid=False, cut=cut)

    def _entries(self, text: str) -> None:
        """Qwen's JSON, read entry by entry: one that is cut does not take the others with it."""
        frames: dict[int, list[Box] | None] = {}
        for entry in _ENTRY.findall(text):
            found, frame = _BBOX.search(entry), _FRAME.search(entry)
            if found is None:
                continue
            number = int(frame[1]) if frame else 0
            if number > 100_000:
                self.problems.append(f"frame {number} is no frame of a clip")
                continue
            if re.search(r'"switch"\s*:\s*true', entry) and number not in self.switches:
                self.switches.append(number)
            if found[1] == "null":
                frames[number] = frames.get(number) or []
                continue
            boxes = list(self._box(found[1].strip("[]"), f"frame {number}", True, not found[1].endswith("]")))
            frames[number] = [*(frames.get(number) or []), *boxes] or frames.get(number)
        self.frames = [frames.get(number) for number in range(max(frames, default=-1) + 1)]

    def _sentence(self, text: str) -> None:
        found: list[Box] = []
        for match in _LIST.finditer(text):
            if len(_NUMBER.findall(match[1])) > 1:
                found += self._box(match[1], "the text", grid=True, cut=not match[2])
        if found:
            self.frames = [found]
        elif not self.problems:
            self.problems.append(f"no box is written in {_shown(text)}")

    def _box(self, text: str, where: str, grid: bool, cut: bool) -> list[Box]:
        """The box of four numbers, or none and a problem. grid: integers are of `sides` even if all are 0 or 1."""
        words = re.split(r"\s*[,;]\s*|\s+", text.strip(" \t\n\r[]()").replace("(", " ").replace(")", " ").strip())
        words = words[:-1] if words[-1] == "" and len(words) > 1 else words
        if not all(_NUMBER.fullmatch(word) for word in words) or len(words) != 4:
            return self._unreadable(f"{where}: expected 4 numbers, got {_shown(text)}")
        if cut and (grid or len(words[-1].partition(".")[2]) < len(words[0].partition(".")[2])):
            return self._unreadable(f"{where}: the last box is cut, {_shown(text)}")
        values = [float(word) for word in words]
        if not all(map(math.isfinite, values)):
            return self._unreadable(f"{where}: a number is too large in {_shown(text)}")
        integers = all(word.lstrip("+-").isdigit() for word in words)
        shares = max(values) <= 1 and not grid if integers else max(values) <= 2
        scale = (1.0, 1.0) if shares else self.sides
        return [to_pixels([value / side for value, side in zip(values, scale * 2, strict=True)], *self.size)]

    def _unreadable(self, problem: str) -> list[Box]:
        self.problems.append(problem)
        return []


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
