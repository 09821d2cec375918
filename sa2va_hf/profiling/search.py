"""Visual search on drawn 4K scenes: found rate and crops by order, false alarms, and crops per forward pass.

Every order gets the same crops to choose from, the same model and the same budget; only the sliding window has crops
of its own, all of the smallest size. The score that counts as a hit is set on scenes without the target.

--model pixels needs no weights: it knows a shape by its colour and outline, as far as the crop shows them.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from sa2va_hf.boxes import Box, box_iou
from sa2va_hf.components import components, masks_to_boxes
from sa2va_hf.data.shapes.scene import Options, Scene, Shape, render
from sa2va_hf.data.shapes.world import WORLDS
from sa2va_hf.inference import Sa2VAPredictor
from sa2va_hf.masks import mask_to_box
from sa2va_hf.profiling.report import table
from sa2va_hf.search import Located, SearchModel, SearchResult, SearchSettings, Visit, search
from sa2va_hf.search.locator import Sa2VALocator
from sa2va_hf.search.overlay import draw_search
from sa2va_hf.search.patches import Crop
from sa2va_hf.search.picture import LargePicture

WIDTH, HEIGHT = 3840, 2160
TARGET = 0.0005  # of the picture's area
OTHERS, LARGEST = 40, 0.004  # shapes that are not meant, and the area of the largest
HIT = 0.5  # IoU from which on a box is of the target
WORLD = WORLDS["default"]


@dataclass
class Scenery:
    """A picture, what is searched in it, and where it is (None: nowhere)."""

    pixels: np.ndarray
    target: str
    box: Box | None


def run(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.model == "pixels":
        model: SearchModel = PixelModel(arguments.crop_size)
    else:
        predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device)
        model = Sa2VALocator(predictor, arguments.crop_size, arguments.generate)
    smallest = {"minimum_size": arguments.minimum_size, "minimum_size_scale": 1000.0}
    settings = SearchSettings(**smallest, contextual_cue=False, overlap=0.0)
    threshold = _calibrated(model, settings, arguments)
    settings = replace(settings, confidence_high=threshold, confidence_low=threshold, max_crops=arguments.max_crops)
    yield (
        f"Scenes of {WIDTH} x {HEIGHT}, a target of {TARGET:.2%} of the area among {OTHERS} other shapes. A score "
        f"above {threshold:.3f} is a hit, which {arguments.false_alarms:.0%} of {arguments.calibration} scenes "
        f"without the target have in all their crops. Budget: {arguments.max_crops} crops."
    )
    yield _orders(model, settings, arguments)
    yield _at_once(model, settings, arguments)


# ---------------------------------------------------------------- scenes


def scenery(seed: int, present: bool) -> Scenery:
    """A scene drawn at random. Other shapes have the target's kind or its colour at most, never both."""
    rng = random.Random(seed)
    kind, colour = rng.choice(list(WORLD.kinds)), rng.choice(list(WORLD.palette))
    shapes: list[Shape] = []
    if present:
        shapes.append(_shape(rng, kind, colour, TARGET, shapes))
    while len(shapes) < OTHERS + present:
        look = rng.choice(list(WORLD.kinds)), rng.choice(list(WORLD.palette))
        if look != (kind, colour):
            shapes.append(_shape(rng, *look, rng.uniform(TARGET, LARGEST), shapes))
    low, high = WORLD.background
    corners = tuple(tuple(rng.randint(a, b) for a, b in zip(low, high, strict=True)) for _ in range(4))
    picture, masks = render(Scene(Options(size=WIDTH), tuple(shapes), corners))
    return Scenery(picture[:HEIGHT], f"{colour} {kind}", mask_to_box(masks[0]) if present else None)


def _shape(rng: random.Random, kind: str, colour: str, area: float, others: Sequence[Shape]) -> Shape:
    """A shape of a share of the picture's area, apart from the others. Lengths are shares of the picture's width."""
    radius = (area * WIDTH * HEIGHT / WORLD.kinds[kind].area) ** 0.5 / WIDTH
    rotation, margin = rng.uniform(-1, 1) * WORLD.kinds[kind].turn, 1.3 * radius
    while True:
        x, y = rng.uniform(margin, 1 - margin), rng.uniform(margin, HEIGHT / WIDTH - margin)
        apart = (np.hypot(x - one.centre[0], y - one.centre[1]) - 1.3 * one.radius - margin for one in others)
        if all(gap > 0 for gap in apart):
            return Shape(kind, colour, "plain", "small", radius, rotation, ((x, y),))


def _pictures(count: int, present: bool, first: int) -> Iterator[tuple[Scenery, LargePicture]]:
    for seed in range(first, first + count):
        scene = scenery(seed, present)
        yield scene, LargePicture(Image.fromarray(scene.pixels))


# ---------------------------------------------------------------- a model without weights


class PixelModel:
    """Knows "red circle" by its colour and outline. It sees no more than a picture of `side` pixels of a crop.

    The heat is the likeness of each pixel's colour. A candidate is a connected part of that colour; its score is the
    IoU with the best of several turns of the outline, less for parts of few pixels.
    """

    TURNS, CELLS, SURE = 12, 24, 60  # outlines per shape, their side, and pixels from which on size does not count
    NEAR, WARM = 40, 90  # of a colour's three values: still this colour; still a little of it
    STRONGEST = 8.0  # heat where the colour is met: SAM 2's logits are of this size

    def __init__(self, side: int) -> None:
        self.side = side
        self.outlines = {kind: np.stack(list(self._turned(kind))) for kind in WORLD.kinds}

    def ask(self, crops: Sequence[Crop], questions: Sequence[str]) -> list[str]:
        return [""] * len(crops)

    def locate(self, crops: Sequence[Crop], texts: Sequence[str]) -> list[Located]:
        return [
            self._locate(crop.source.read(crop, self.side), *text.split())
            for crop, text in zip(crops, texts, strict=True)
        ]

    def _locate(self, image: Image.Image, colour: str, kind: str) -> Located:
        pixels = np.asarray(image, np.int16)
        distance = np.abs(pixels - np.array(WORLD.palette[colour], np.int16)).max(-1)
        mask = distance < self.NEAR
        labels, sides = components(mask), (image.width, image.height) * 2
        scores, boxes = [], []
        for part in masks_to_boxes(mask, 3):
            x0, y0, x1, y1 = (int(value) for value in part.box)
            shape = Image.fromarray((labels[y0:y1, x0:x1] == part.number).astype(np.uint8) * 255)
            shown = np.asarray(shape.resize((self.CELLS, self.CELLS), Image.Resampling.BILINEAR)) > 127
            both = (self.outlines[kind] & shown).sum((1, 2)) / (self.outlines[kind] | shown).sum((1, 2))
            scores.append(float(both.max()) * min(1.0, part.area / self.SURE))
            boxes.append([value / side for value, side in zip(part.box, sides, strict=True)])
        heat = self.STRONGEST * np.clip(1 - distance / self.WARM, 0, 1)
        return Located(np.array(scores), np.array(boxes).reshape(-1, 4), heat)

    def _turned(self, kind: str) -> Iterator[np.ndarray]:
        """The outline in its tight box, bool (CELLS, CELLS), at several turns."""
        for turn in np.linspace(-1, 1, self.TURNS) * WORLD.kinds[kind].turn:
            shape = Shape(kind, "red", "plain", "large", 0.4, float(turn), ((0.5, 0.5),))
            _, (mask,) = render(Scene(Options(size=128), (shape,), ((0, 0, 0),) * 4))
            x0, y0, x1, y1 = (int(value) for value in mask_to_box(mask))
            tight = Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8) * 255)
            yield np.asarray(tight.resize((self.CELLS, self.CELLS), Image.Resampling.BILINEAR)) > 127


# ---------------------------------------------------------------- searches


def _calibrated(model: SearchModel, settings: SearchSettings, arguments: argparse.Namespace) -> float:
    """The score that only `false_alarms` of the scenes without the target exceed in any of their crops."""
    everything = replace(settings, confidence_high=1.0, confidence_low=1.0)
    best = []
    for scene, picture in _pictures(arguments.calibration, False, 10_000 + arguments.seed):
        found = search(picture, scene.target, model, everything)
        best.append(max((one.score for one in found.near_misses), default=0.0))
    return float(np.quantile(best, 1 - arguments.false_alarms, method="higher"))


def sliding_window(picture: LargePicture, target: str, model: SearchModel, settings: SearchSettings) -> SearchResult:
    """Crops of the smallest size, row by row, until one has a hit or the budget is spent."""
    width, height = picture.size
    smallest = settings.smallest_side(width, height)
    rows = columns = 2 ** math.ceil(math.log2(height / smallest))  # the smallest crops of the search
    step = width // columns, height // rows
    result = SearchResult(target, picture.size, ended="crops")
    reach = round(settings.overlap * step[0]), round(settings.overlap * step[1])
    for number in range(min(settings.max_crops, rows * columns)):
        row, column = divmod(number, columns)
        x, y = max(column * step[0] - reach[0], 0), max(row * step[1] - reach[1], 0)
        x1, y1 = min((column + 1) * step[0] + reach[0], width), min((row + 1) * step[1] + reach[1], height)
        (found,) = model.locate([Crop(x, y, x1 - x, y1 - y, picture)], [target])
        result.visits.append(Visit(Crop(x, y, x1 - x, y1 - y), 1, -1, None))
        if len(found.scores) and found.scores.max() > settings.confidence_high:
            shares = found.boxes[found.scores.argmax()] * ([x1 - x, y1 - y] * 2)
            result.found, result.box = True, tuple(shares + [x, y, x, y])
            result.ended, result.score = "found", float(found.scores.max())
            break
    return result


def _searches(settings: SearchSettings, seed: int) -> dict[str, Callable[..., SearchResult]]:
    rng = random.Random(seed)
    return {
        "heat (V*)": lambda *given: search(*given, settings),
        "random": lambda *given: search(*given, settings, priority=lambda visit: rng.random()),
        "largest first": lambda *given: search(*given, settings, priority=lambda visit: -visit.level),
        "sliding window": lambda *given: sliding_window(*given, settings),
    }


def _orders(model: SearchModel, settings: SearchSettings, arguments: argparse.Namespace) -> str:
    searches = _searches(settings, arguments.seed)
    results = {name: {True: [], False: []} for name in searches}
    for present in (True, False):
        for number, (scene, picture) in enumerate(_pictures(arguments.scenes, present, arguments.seed)):
            for name, look in searches.items():
                found = look(picture, scene.target, model)
                results[name][present].append((found, scene))
                if arguments.sheets and name.startswith("heat") and number < 4:
                    arguments.sheets.mkdir(parents=True, exist_ok=True)
                    sheet = draw_search(picture, found)
                    sheet.save(arguments.sheets / f"{'present' if present else 'absent'}{number}.png")
    rows = [[name, *_figures(of_order)] for name, of_order in results.items()]
    columns = ["order", "found, %", "wrong box, %", "mean crops", "median crops where found", "false alarms, %"]
    return "### Orders at an equal budget\n\n" + table(columns, rows)


def _figures(results: dict[bool, list[tuple[SearchResult, Scenery]]]) -> list[object]:
    here = [(found, found.found and bool(box_iou(found.box, scene.box) >= HIT)) for found, scene in results[True]]
    right = [len(found.visits) for found, is_right in here if is_right]
    wrong = sum(found.found and not is_right for found, is_right in here)
    alarms = sum(found.found for found, _ in results[False])
    mean = statistics.mean(len(found.visits) for found, _ in here)
    count = len(here)
    middle = statistics.median(right) if right else float("nan")
    return [100 * len(right) / count, 100 * wrong / count, mean, middle, 100 * alarms / len(results[False])]


def _at_once(model: SearchModel, settings: SearchSettings, arguments: argparse.Namespace) -> str:
    """Time of the same number of crops, in batches. The hits are left out: every search spends its budget."""
    endless = replace(settings, confidence_high=1.0, confidence_low=1.0)
    ((scene, picture),) = _pictures(1, True, arguments.seed)
    rows = []
    for count in (1, 4, 8):
        batched = replace(endless, crops_at_once=count)
        seconds = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            found = search(picture, scene.target, model, batched)
            seconds.append(time.perf_counter() - start)
        rows.append(
            [count, len(found.visits), statistics.median(seconds), len(found.visits) / statistics.median(seconds)]
        )
    return "### Crops per forward pass\n\n" + table(["at once", "crops", "seconds", "crops a second"], rows)
