"""Second and third lesson: which shape is meant, first without masks, then with them.

A mask says little about why it is wrong. So the prompt that [SEG] becomes is also asked for what it should know: the
cells of the picture that the target covers, and the target's attributes. Both are linear heads that are thrown away
afterwards, and they cost nothing beside the LLM; SAM 2 joins when the LLM has learned to choose.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.shapes.scene import Options
from ...data.shapes.text import ATTRIBUTES, FAMILIES
from ...model.configuration_sa2va import IGNORE_INDEX
from ...model.losses import answer_cross_entropy
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .chats import WEIGHTS, Chat, make_chat
from .lesson import Lesson
from .pointing import Pointing
from .scenes import Drawn, cell_cover, draw_scenes

CLIP_FRAMES = 8
SHOWN = (0, 1, 3, 5, 7)  # what `uniform_frames` shows the LLM of a clip of eight
PARTS = ("llm", "vision", "prompts", "decoder", "encoder")


class Referring(Lesson):
    """See the module.

    Args:
        train: some of PARTS; "prompts" is `text_hidden_fcs`, "decoder" and "encoder" are of SAM 2.
        batch, clips: pictures of a picture step, clips of a clip step; every `clip_every`-th step is one of clips.
        turns: questions about a picture; about a clip at most three.
        masks: weight of the mask losses, 0 leaves SAM 2 out. hints: of the heads on the prompt. pointing: of the loss
            on where [SEG] looks.
        dialogues: share of conversations of other tasks.
        objects: numbers of shapes in a scene, each equally likely. kinds: how often each kind of expression is asked;
            default: `chats.WEIGHTS`.
    """

    name = "referring"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        train: Sequence[str] = ("llm", "prompts"),
        batch: int = 48,
        clips: int = 12,
        clip_every: int = 4,
        turns: int = 5,
        masks: float = 0.0,
        hints: float = 1.0,
        pointing: float = 1.0,
        dialogues: float = 0.2,
        objects: Sequence[int] = (1, 2, 2, 3, 3, 4, 5),
        kinds: dict[str, float] | None = None,
    ) -> None:
        super().__init__(model, processor)
        self.kinds = dict(kinds or WEIGHTS)
        unknown = set(train) - set(PARTS)
        if unknown:
            raise ValueError(f"train: expected some of {PARTS}, got {sorted(unknown)}")
        self.train, self.batch, self.clips, self.clip_every = train, batch, clips, clip_every
        self.pointing = Pointing(model)
        self.pointing_weight = pointing
        self.turns, self.masks, self.hints, self.dialogues, self.objects = turns, masks, hints, dialogues, objects
        self.grid, width = processor.pictures.region_grid, model.config.grounding_config.hidden_dim
        self.words = {name: list(Options().words(FAMILIES[name])) for name in ATTRIBUTES}
        self.helpers["cells"] = nn.Linear(width, self.grid**2)
        self.helpers["looks"] = nn.Linear(width, sum(map(len, self.words.values())))
        answers = [processor.tokenizer(text)["input_ids"][0] for text in ("I cannot", "Nothing here", "There is")]
        self.declines = torch.tensor(answers)
        model.requires_grad_(False)
        for module in self.trained():
            module.requires_grad_(True)
        model.mllm.model.vision_tower.to(memory_format=torch.channels_last)
        self.steps = 0

    def trained(self) -> Iterable[nn.Module]:
        model, sam = self.model, self.model.grounding_encoder.sam2_model
        modules = {
            "llm": [model.mllm.model.language_model, model.mllm.lm_head],
            "vision": model.backbone.vision(model.mllm),
            "prompts": [model.text_hidden_fcs],
            "decoder": [sam.sam_mask_decoder],
            "encoder": [sam.image_encoder],
        }
        return [module for part in self.train for module in modules[part]]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        clip = bool(self.clip_every) and rng.random() < 1 / self.clip_every
        drawn, chats = self.lesson_of(rng, clip)
        return self.loss_of(drawn, chats)

    def lesson_of(self, rng: random.Random, clip: bool) -> tuple[list[Drawn], list[Chat]]:
        """Scenes and conversations of one step."""
        drawn, chats = [], []
        while len(chats) < (self.clips if clip else self.batch):
            most = rng.choice(self.objects)
            options = Options(min_objects=most, max_objects=most, num_frames=CLIP_FRAMES if clip else 1)
            if clip and most > 3:
                continue
            (one,) = draw_scenes(rng, options, 1)
            frames = list(SHOWN) if clip else [0]
            turns = min(self.turns, 3) if clip else self.turns
            chat = make_chat(one, rng, turns, self.dialogues, frames, self._marks_cell, self.kinds)
            if chat.messages:
                drawn.append(one)
                chats.append(chat)
        return drawn, chats

    def loss_of(self, drawn: list[Drawn], chats: list[Chat]) -> tuple[Tensor, dict[str, float]]:
        """Loss on conversations, and how often the target has the highest score of all shapes."""
        inputs = self.encode(chats)
        with self.pointing:
            hidden, prompts, lm_loss, drawing = self._read(inputs, drawn, chats)
        pointed = self.pointing.loss(inputs["input_ids"], self._targets(drawn, chats), named(chats))
        decided, wrong = self.decisions(hidden, inputs["labels"], chats)
        hint, hits = self._hints(prompts, drawn, chats)
        total = lm_loss + decided + self.hints * hint + self.masks * drawing + self.pointing_weight * pointed
        shown = {"lm": lm_loss, "declines": decided, "wrong": wrong, "hint": hint, "points": pointed, "masks": drawing}
        return total, {name: value.item() for name, value in shown.items()} | hits

    def encode(self, chats: list[Chat]) -> dict[str, Tensor]:
        """Conversations as the model's inputs, with labels."""
        inputs = self.processor.apply_chat_template(
            [chat.messages for chat in chats], add_generation_prompt=False, padding=True, return_labels=True
        )
        inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return inputs

    def predict(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """Mask logits per conversation ([SEG], frames, h, w), and hidden states (B, L, D)."""
        states: list[Tensor] = []
        hook = self.model.watch_states(states.append)
        output = self.model(**inputs, return_logits=False)
        hook.remove()
        return output.pred_masks, states[-1]

    def _read(
        self, inputs: dict[str, Tensor], drawn: list[Drawn], chats: list[Chat]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states (B, L, D), prompts (N, C), the loss of the text and that of the masks."""
        model = self.model
        if self.masks:
            states: list[Tensor] = []
            hook = model.watch_states(states.append)
            masks = [self._masks(one, chat) for one, chat in zip(drawn, chats, strict=True)]
            output = model(**inputs, mask_labels=masks, return_logits=False)
            hook.remove()
            drawing = sum(part for part in (output.mask_loss, output.dice_loss, output.iou_loss) if part is not None)
            return states[-1], output.seg_embeddings, output.lm_loss, drawing
        names = ("input_ids", "attention_mask", "pixel_values", "region_masks", "region_tiles")
        hidden = model.hidden_states(**{name: inputs[name] for name in names if name in inputs})
        prompts = model.project(hidden[inputs["input_ids"] == model.config.seg_token_id])
        lm_loss = answer_cross_entropy(hidden, inputs["labels"], model.mllm.lm_head)
        return hidden, prompts, lm_loss, torch.zeros(())

    def _masks(self, one: Drawn, chat: Chat) -> Tensor:
        """bool ([SEG], frames, S, S)."""
        masks = one.masks[:, chat.frames]
        empty = np.zeros((0, *masks.shape[1:]), bool)
        return torch.from_numpy(np.stack([masks[t].any(0) for t in chat.targets]) if chat.targets else empty)

    def _targets(self, drawn: list[Drawn], chats: list[Chat]) -> list[Tensor]:
        """Per [SEG] the share of every visual token's cell that its targets cover: (frames * cells,) each."""
        found = []
        for one, chat in zip(drawn, chats, strict=True):
            cover = cell_cover(one.masks[:, chat.frames], self.grid)  # (shapes, frames, cells)
            found += [cover[targets].amax(0).flatten() for targets in chat.targets]
        return found

    def decisions(self, hidden: Tensor, labels: Tensor, chats: list[Chat]) -> tuple[Tensor, Tensor]:
        """Whether the first word of an answer declines or not, as a binary cross-entropy, and the share of errors.

        The words of an answer are sampled from a pool, so their own cross-entropy is mostly noise.
        """
        answers = (labels[:, 1:] != IGNORE_INDEX) & (labels[:, :-1] == IGNORE_INDEX)
        kinds = [kind for chat in chats for kind in chat.kinds]
        referring = torch.tensor([kind in REFERRING for kind in kinds])
        if not referring.any():
            return hidden.sum() * 0.0, torch.zeros(())
        first = self.model.mllm.lm_head(hidden[:, :-1][answers][referring]).float()
        absent = torch.tensor([kind == "no_target" for kind in kinds])[referring]
        declines = first[:, self.declines].logsumexp(1)
        others = first.scatter(1, self.declines.expand(len(first), -1), -torch.inf).logsumexp(1)
        difference = declines - others
        wrong = ((difference > 0) != absent).float().mean()
        return F.binary_cross_entropy_with_logits(difference, absent.float()), wrong

    def _hints(self, prompts: Tensor, drawn: list[Drawn], chats: list[Chat]) -> tuple[Tensor, dict[str, float]]:
        """What the prompts (N, C) say about their targets: cross-entropy, and hits by kind of expression."""
        cells, looks, rows = [], [], []
        for one, chat in zip(drawn, chats, strict=True):
            cover = cell_cover(one.masks[:, chat.frames], self.grid).amax(1)  # (shapes, cells)
            kinds = [kind for kind in chat.kinds if kind != "no_target"]
            for index, targets in enumerate(chat.targets):
                cells.append(cover[targets].amax(0))
                looks.append(self._looks(one, targets))
                kind = kinds[index] if kinds and kinds[0] in REFERRING else "dialogue"
                rows.append((kind, cover, targets))
        if not rows:  # a small batch may ask for nothing but text
            return prompts.sum() * 0.0, {}
        wanted, look = torch.stack(cells), torch.stack(looks)
        predicted = self.helpers["cells"](prompts)
        where = F.binary_cross_entropy_with_logits(predicted, wanted, reduction="none").sum(1).mean() / 8
        what = F.binary_cross_entropy_with_logits(self.helpers["looks"](prompts), look, reduction="none").sum(1).mean()
        hits: dict[str, list[bool]] = {}
        for logit, (kind, cover, targets) in zip(predicted.detach(), rows, strict=True):
            if len(targets) < len(cover):
                score = (cover * logit).sum(1) / cover.sum(1).clamp(min=1e-6)
                hits.setdefault(kind, []).append(set(score.topk(len(targets)).indices.tolist()) == set(targets))
        return where + what / 8, {kind: float(np.mean(values)) for kind, values in sorted(hits.items())}

    def _marks_cell(self, mask: np.ndarray) -> bool:
        return bool(self.processor.region_cells(mask).any())

    def _looks(self, one: Drawn, targets: list[int]) -> Tensor:
        """Which attributes occur among the targets, 0 or 1 for every word of the world."""
        shapes = [one.scene.shapes[target] for target in targets]
        said = [any(getattr(shape, name) == word for shape in shapes) for name, f in self.words.items() for word in f]
        return torch.tensor(said, dtype=torch.float32)


def named(chats: list[Chat]) -> list[bool]:
    """Per [SEG] whether its expression tells the target by attributes alone."""
    found = []
    for chat in chats:
        kinds = [kind for kind in chat.kinds if kind != "no_target"]
        found += [bool(kinds) and index < len(kinds) and kinds[index] in NAMING for index in range(len(chat.targets))]
    return found


NAMING = ("attribute", "several")
REFERRING = ("attribute", "several", "ordinal", "relation", "no_target", "motion")
