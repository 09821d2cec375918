"""What an item of the dataset will be: expressions sampled, questions chosen, frames selected; no media are opened."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sa2va_hf import masks
from sa2va_hf.data.dataset.box_turns import BoxScribe, scribe_of, stretch
from sa2va_hf.data.dataset.entries import Item
from sa2va_hf.data.dataset.rows import Facts, Row
from sa2va_hf.data.dataset.token_counts import TokenCounter, Turn
from sa2va_hf.data.prompts.templates import NO_TARGET_ANSWERS, SEG_ANSWERS, SEG_QUESTIONS, referring_turn
from sa2va_hf.data.schema import Expression
from sa2va_hf.model.frames import uniform_frames

TEMPLATE_BYTES = max(map(len, SEG_QUESTIONS)) + max(map(len, (*SEG_ANSWERS, *NO_TARGET_ANSWERS)))
BOX_BYTES = 60  # of a box or of a frame without one, with the tags around it, in the longest form
BOX_TEMPLATE_BYTES = 200
DRAWS = 32  # of question and answer, when the shortest turn for an expression is looked for


@dataclass
class Ask:
    """One turn, and for each [SEG] of its answer the objects (by index) whose union is meant.

    expression: that is to be answered by boxes. Its turn is written when the frames are chosen.
    """

    turn: Turn
    targets: list[list[int]]
    expression: Expression | None = None

    @property
    def meant(self) -> list[list[int]]:
        """The objects of each [SEG], or those whose boxes are asked for."""
        return self.targets if self.expression is None else [self.expression.targets]


@dataclass
class Plan:
    """What an index stands for: everything chosen, nothing opened.

    size: (width, height), None for text only. frames: numbers of the chosen frames, rising. turns: (question, answer).
    targets: for each [SEG] of the answers in order, the objects (by index) whose union is meant.
    row: reads the rest when it is needed.
    """

    sample_id: str
    size: tuple[int, int] | None
    is_video: bool
    frames: list[int]
    turns: list[Turn]
    targets: list[list[int]]
    row: Row = field(repr=False)


@dataclass
class Planner:
    """Turns items into plans; see `Sa2VADataset` for the rules. All chance comes from the generator passed in."""

    counter: TokenCounter
    num_frames: int
    max_expressions: int
    max_length: int
    train: bool
    _scribes: dict[str, BoxScribe] = field(default_factory=dict, repr=False)  # by answer

    def plan(self, item: Item, rng: np.random.Generator | None) -> Plan:
        """What the item will be. rng: None where it has no choices."""
        asks = self.asks(item, rng)
        if item.num_expressions:
            asks = _with_common_frames(item, asks) if self.train else asks[item.span]
        if item.asks_boxes:
            frames, asks = self._with_boxes(item, asks, rng)
        else:
            asks = self._fitting(item, asks) if item.tight else asks
            frames = self._frames(item, asks, rng) if item.size else []
        targets = [meant for ask in asks for meant in ask.targets]
        return Plan(item.row["id"], item.size, item.is_video, frames, [ask.turn for ask in asks], targets, item.row)

    def asks(self, item: Item, rng: np.random.Generator | None) -> list[Ask]:
        """A row's dialogue; or asks for its expressions: sampled ones in training, all of them in evaluation."""
        if not item.num_expressions:
            return [Ask((turn["question"], turn["answer"]), turn["targets"]) for turn in item.row["turns"]]
        texts, has_target = item.row.phrases()
        usable = list(range(len(texts)))
        if self.train and not item.complete:
            known = item.row.located()
            usable = [n for n in usable if not has_target[n] or _share_a_frame(known, item.row.targets(n))] or usable
        if item.asks_boxes:
            chosen = rng.permutation(len(usable))[: self.max_expressions] if self.train else range(len(usable))
            return [Ask(("", ""), [], item.row.expression(usable[n])) for n in chosen]
        numbers, turns = self.sample_turns([texts[n] for n in usable], [has_target[n] for n in usable], rng)
        return [
            Ask(turn, [item.row.targets(usable[n])] if has_target[usable[n]] else [])
            for n, turn in zip(numbers, turns, strict=True)
        ]

    def sample_turns(
        self, texts: Sequence[str], has_target: Sequence[bool], rng: np.random.Generator
    ) -> tuple[list[int], list[Turn]]:
        """Which expressions are asked for, and how."""
        numbers = list(range(len(texts)))
        if self.train and len(texts) > 1:  # of a single one nothing is sampled: the generator stays as it is
            numbers = rng.permutation(len(texts))[: self.max_expressions].tolist()
        return numbers, [referring_turn(texts[n], bool(has_target[n]), rng) for n in numbers]

    def _with_boxes(self, item: Item, asks: list[Ask], rng: np.random.Generator) -> tuple[list[int], list[Ask]]:
        """The frames, and the asks written for them: as many as fit max_length, from the first; of one that is too
        long by itself, as many frames."""
        choices, chance = _choices(item, asks), rng if self.train else None
        scribe = self.scribe(item.answer)
        frames = stretch(choices, self.num_frames, chance)
        written = [_written(item, ask, frames, scribe, chance) for ask in asks]
        while len(written) > 1 and self._tokens(item, written, len(frames)) > self.max_length:
            written = written[:-1]
        while len(frames) > 1 and self._tokens(item, written, len(frames)) > self.max_length:
            frames = frames[:-1]
            written = [_written(item, asks[0], frames, scribe, chance)]
        return frames, written

    def _tokens(self, item: Item, written: Sequence[Ask], frames: int) -> int:
        return self.counter.count([ask.turn for ask in written], item.size, frames, item.is_video)

    def scribe(self, answer: str) -> BoxScribe:
        if answer not in self._scribes:
            self._scribes[answer] = scribe_of(self.counter.processor, answer)
        return self._scribes[answer]

    def least(self, item: Item) -> int:
        """Tokens of the shortest conversation that a row can give."""
        if not item.asks_boxes:
            return self.count(item, [self.shortest(item)])
        asks = [Ask(("", ""), [], item.row.expression(n)) for n in range(item.num_expressions)]
        return min(
            self._tokens(item, [_written(item, ask, _choices(item, [ask])[:1].tolist(), self.scribe(item.answer))], 1)
            for ask in asks
            if is_located(item, ask.expression.targets)
        )

    def shortest(self, item: Item) -> Ask:
        """The ask of a row with the fewest tokens; of a dialogue the first, on which the others build."""
        if not item.num_expressions:
            return self.asks(item, np.random.default_rng(0))[0]
        rng = np.random.default_rng(0)
        texts, has_target = item.row.phrases()
        turns = [
            (n, referring_turn(text, bool(has_target[n]), rng)) for n, text in enumerate(texts) for _ in range(DRAWS)
        ]
        number, turn = min(turns, key=lambda option: self.counter.turn(option[1]))
        return Ask(turn, [item.row.targets(number)] if has_target[number] else [])

    def count(self, item: Item, asks: Sequence[Ask]) -> int:
        """Tokens of the conversation, exactly; of one with boxes, as evaluation asks for them."""
        if item.size is None:
            return self.counter.count([ask.turn for ask in asks], None)
        if item.asks_boxes:
            frames = stretch(_choices(item, asks), self.num_frames, None)
            written = [_written(item, ask, frames, self.scribe(item.answer)) for ask in asks]
            return self._tokens(item, written, len(frames))
        frames = min(self.num_frames, len(_choices(item, asks)))
        regions = self.regions(item.row) if item.num_regions else ()
        return self.counter.count([ask.turn for ask in asks], item.size, frames, item.is_video, regions)

    def length(self, plan: Plan) -> int:
        """Tokens of a plan, exactly."""
        regions = self.regions(plan.row) if plan.size else ()
        return self.counter.count(plan.turns, plan.size, len(plan.frames), plan.is_video, regions)

    def regions(self, row: Row) -> list[np.ndarray]:
        """The region prompts of a row as the processor counts them: bool (grid, grid), which it leaves as they are."""
        return region_cells(row, self.counter.processor.pictures.region_grid) if row["regions"] else []

    def usual_frames(self, facts: Facts) -> np.ndarray:
        """Frames that an item gets where nothing is missing: (n,)."""
        return np.minimum(np.where(facts.has_targets, facts.num_annotated, facts.num_frames), self.num_frames)

    def may_be_too_long(self, facts: Facts, boxes: bool = False) -> np.ndarray:
        """Rows whose conversation might exceed max_length, by a bound that is cheap and never too low: (n,) bool.

        boxes: expressions are answered by boxes.
        """
        phrased = facts.num_expressions > 0
        turns = np.where(phrased, np.minimum(facts.num_expressions, self.max_expressions), facts.num_turns)
        drawn = turns * (TEMPLATE_BYTES + 2 * facts.expression_bytes)  # the answer may repeat the phrase
        frames = np.minimum(facts.num_frames, self.num_frames)
        if boxes:
            drawn = drawn + turns * (BOX_TEMPLATE_BYTES + BOX_BYTES * np.maximum(frames, 1) * (1 + facts.num_objects))
        keys = np.stack([facts.width, facts.height, frames, facts.is_video, facts.num_regions], axis=1)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        visuals = np.zeros(len(unique), np.int64)
        for i, (width, height, count, is_video, regions) in enumerate(unique.tolist()):
            if width and not (regions and (is_video or not self.counter.processor.takes_regions)):
                whole = [np.ones((height, width), bool)] * regions
                visuals[i] = self.counter.visuals((width, height), count, bool(is_video), whole)
        text = self.counter.bound(np.where(phrased, drawn, facts.turn_bytes), turns)
        return text + visuals[inverse.reshape(-1)] > self.max_length

    def _fitting(self, item: Item, asks: list[Ask]) -> list[Ask]:
        """As many asks, from the first, as fit max_length."""
        while self.count(item, asks) > self.max_length:
            if len(asks) == 1:
                return [self.shortest(item)]  # it fits: other rows are rejected at construction
            asks = asks[:-1]
        return asks

    def _frames(self, item: Item, asks: Sequence[Ask], rng: np.random.Generator | None) -> list[int]:
        if not item.is_video:
            return [0]
        choices = _choices(item, asks)
        count = min(self.num_frames, len(choices))
        if self.train:
            return np.sort(choices[rng.permutation(len(choices))[:count]]).tolist()
        return choices[uniform_frames(len(choices), count)].tolist()  # as in inference


def region_masks(row: Row) -> list[np.ndarray]:
    """The region prompts of a row: bool (H, W) each."""
    return [masks.decode(row.mask(instance, 0)) for instance in row["regions"]]


def region_cells(row: Row, grid: int) -> list[np.ndarray]:
    """The region prompts of a row on the grid of the model's regions: bool (grid, grid) each, by nearest sampling as
    `processor.region_cells`. No mask is painted: a dataset may have millions of regions."""
    cells = []
    for item in row["regions"]:
        rle = row.mask(item, 0)
        cells.append(masks.decode_at(rle, *(masks.spread(side, grid) for side in rle["size"])))
    return cells


def _written(
    item: Item, ask: Ask, frames: list[int], scribe: BoxScribe, rng: np.random.Generator | None = None
) -> Ask:
    """The ask with its turn about these frames."""
    turn = scribe.turn(item.row, ask.expression, frames, item.is_video, rng)
    return Ask(turn, [ask.expression.targets] if scribe.both and ask.expression.targets else [])


def is_located(item: Item, instances: list[int]) -> bool:
    """Whether some frame has a mask or a box of each of these objects."""
    return item.complete or not instances or _share_a_frame(item.row.located(), instances)


def _meant(asks: Sequence[Ask]) -> list[int]:
    return sorted({instance for ask in asks for instances in ask.meant for instance in instances})


def _share_a_frame(known: np.ndarray, instances: list[int]) -> bool:
    """Whether all objects have a mask or a box on some frame. known: (objects, annotated)."""
    return bool(known[instances].all(axis=0).any())


def _with_common_frames(item: Item, asks: list[Ask]) -> list[Ask]:
    """The asks without the last ones, until some frame tells where all objects are that are meant."""
    if not item.complete:
        known = _known(item, asks)
        while len(asks) > 1 and not _share_a_frame(known, _meant(asks)):
            asks = asks[:-1]
    return asks


def _known(item: Item, asks: Sequence[Ask]) -> np.ndarray:
    """Which object counts as known on which annotated frame, bool (objects, annotated): by its mask, or, where the
    objects of the first ask have no masks together, by a mask or a box."""
    if item.answer == "boxes":
        return item.row.located()
    known = item.row.known()
    first = next((ask for ask in asks if any(ask.meant)), None)
    return known if first is None or _share_a_frame(known, _meant([first])) else item.row.located()


def _choices(item: Item, asks: Sequence[Ask]) -> np.ndarray:
    """Numbers of the frames that may be taken: (n,), rising."""
    if not item.has_targets:
        return np.arange(item.num_frames)
    annotated, meant = item.row.annotated(), _meant(asks)
    if item.complete or not meant:
        return annotated
    known = _known(item, asks)[meant].all(axis=0)
    return annotated[known] if known.any() else annotated
