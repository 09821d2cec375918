"""Lesson on which shape is meant: the LLM on visual tokens that were computed once.

A mask says little about why it is wrong, and SAM 2 costs most of a step. So the LLM learns without it: the prompt that
[SEG] becomes is compared with the code of its target (`code.py`), attention heads with where the target is, and the
first word of an answer with whether there is one. With `masks` SAM 2's decoder joins, on features computed once too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model.grounding import MaskPrediction, prompt
from ...model.losses import answer_cross_entropy
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .chats import NAMING, WEIGHTS, Chat, dialogue_chat, joined, referring_chats
from .code import PromptCode
from .lesson import Lesson
from .memory import step_loss
from .pointing import Look, Pointing
from .seen import Seen, seen_file, seen_scenes
from .threads import Rows, ThreadWriter, read

PARTS = ("llm", "prompts", "decoder")
DECLINING = ("I cannot", "Nothing here", "There is")  # how the answers begin that decline
TARGET_LAYER = 3  # the layers from this one on look for the target; the last one, where there are fewer
MARKED = 0.5  # share of a cell that a shape must cover to be marked there as a region


class Choosing(Lesson):
    """See the module.

    Args:
        train: some of PARTS; "prompts" is `text_hidden_fcs`, "decoder" is of SAM 2.
        pictures, clips: scenes that are looked at once. batch, clip_batch: those of a step; one step in `clip_every`
            is one of clips, at random; 0: none.
        questions: conversations about a scene. dialogues: chance that one of another task is among them. chained:
            chance that they are one conversation of several turns.
        code, pointing, masks: weights of the losses; 0 leaves SAM 2 out.
        objects: numbers of shapes in a scene, each equally likely. kinds: how often each kind of expression is asked.
        scenes: which ones are drawn, by a name. shades: share of them whose background may have any shade.
        plain: further images, which SAM 2 does not look at: so many more can be kept. plain_share: share of the steps
            that are about them, without masks. plain_kinds: as `kinds`, in these steps.
        masks_per_step: the most masks of a step that SAM 2 draws, None: all.
    """

    name = "choosing"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        train: Sequence[str] = ("llm", "prompts"),
        pictures: int = 8000,
        clips: int = 500,
        batch: int = 16,
        clip_batch: int = 4,
        clip_every: float = 8,
        questions: int = 6,
        dialogues: float = 0.15,
        chained: float = 0.15,
        code: float = 2.0,
        pointing: float = 1.0,
        masks: float = 0.0,
        objects: Sequence[int] = (1, 2, 2, 3, 3, 3, 4, 5),
        kinds: dict[str, float] | None = None,
        scenes: str = "train",
        shades: float = 0.0,
        plain: int = 0,
        plain_share: float = 0.75,
        plain_kinds: dict[str, float] | None = None,
        masks_per_step: int | None = None,
    ) -> None:
        super().__init__(model, processor)
        self.scenes, self.shades, self.masks_per_step = scenes, shades, masks_per_step
        unknown = set(train) - set(PARTS)
        if unknown:
            raise ValueError(f"train: expected some of {PARTS}, got {sorted(unknown)}")
        self.train, self.batch, self.clip_batch, self.clip_every = train, batch, clip_batch, clip_every
        self.counts, self.objects = {False: pictures, True: clips}, objects
        self.questions, self.dialogues, self.chained = questions, dialogues, chained
        self.code_weight, self.pointing_weight, self.masks = code, pointing, masks
        self.kinds = dict(kinds or WEIGHTS)
        self.plain_count, self.plain_share, self.plain_kinds = plain, plain_share, dict(plain_kinds or self.kinds)
        self.code, self.writer = PromptCode(model), ThreadWriter(processor)
        self.language = model.mllm.model.language_model
        self.pointing = Pointing(self.language)
        self.declines = torch.tensor([processor.tokenizer(text)["input_ids"][0] for text in DECLINING])
        self.seen: dict[bool, list[Seen]] = {}
        self.plain: list[Seen] = []
        model.requires_grad_(False)
        for module in self.trained():
            module.requires_grad_(True)
        for name in ("conv_s0", "conv_s1"):  # already applied to the features that are kept
            getattr(model.grounding_encoder.sam2_model.sam_mask_decoder, name).requires_grad_(False)

    def trained(self) -> Iterable[nn.Module]:
        modules = {
            "llm": [self.language, self.model.mllm.lm_head],
            "prompts": [self.model.text_hidden_fcs],
            "decoder": [self.model.grounding_encoder.sam2_model.sam_mask_decoder],
        }
        return [module for part in self.train for module in modules[part]]

    def prepare(self, folder: Path | None) -> None:
        """Looks at all scenes, or reads what an earlier stage of the same run kept beside its own folder."""
        for clip, count in self.counts.items():
            if count and (not clip or self.clip_every):
                self.seen[clip] = self._look_at("clips" if clip else "pictures", count, folder)
        if self.plain_count:
            self.plain = self._look_at("plain", self.plain_count, folder)

    def _look_at(self, kind: str, count: int, folder: Path | None) -> list[Seen]:
        """kind: "pictures", "clips" or "plain"."""
        clip, masks = kind == "clips", bool(self.masks) and kind != "plain"
        name = f"{self.scenes}-{kind}-{count}-{'masks' if masks else 'tokens'}"
        name += f"-shades{self.shades:g}" if self.shades else ""
        file = folder and seen_file(folder.parent, self.model, name)
        objects = [n for n in self.objects if n <= 3] if clip else self.objects
        seed = f"{self.scenes}/{kind if kind == 'plain' else clip}"
        return seen_scenes(self.model, self.processor, seed, count, objects, clip, masks, file, self.shades)

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        if self.plain and rng.random() < self.plain_share:
            seen, count, kinds = self.plain, self.batch, self.plain_kinds
        else:
            clip = bool(self.clip_every) and rng.random() < 1 / self.clip_every
            seen, count, kinds = self.seen[clip], self.clip_batch if clip else self.batch, self.kinds
        scenes = rng.sample(seen, min(len(seen), count))
        return self.loss_of(scenes, [self._chats(one, rng, kinds) for one in scenes], rng)

    def _chats(self, one: Seen, rng: random.Random, kinds: dict[str, float] | None = None) -> list[Chat]:
        chats = referring_chats(one.scene, rng, self.questions, kinds or self.kinds)
        if rng.random() < self.chained:
            chats = [joined(chats)]
        if rng.random() < self.dialogues:
            other = dialogue_chat(one.scene, rng, lambda shape: bool((one.cover[shape, 0] > MARKED).any()))
            chats = [*chats[: self.questions - 1], other] if other else chats
        return chats

    def loss_of(
        self, scenes: list[Seen], chats: list[list[Chat]], rng: random.Random
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss on conversations about scenes, a list for each. rng: samples the frames whose masks are drawn."""
        rows = self.rows(scenes, chats)
        with self.pointing:
            hidden = self.read(scenes, rows)
        flat = [chat for of_scene in chats for chat in of_scene]
        owners = [one for one, of_scene in zip(scenes, chats, strict=True) for _ in of_scene]
        lm_loss = answer_cross_entropy(hidden, rows.labels, self.model.mllm.lm_head)
        decided, wrong = self.decisions(hidden, rows, flat)
        pointed, shares = self._pointed(rows, flat, owners)
        prompts = self.model.project(hidden[rows.segs[:, 0], rows.segs[:, 1]])
        coded, hits = self._coded(prompts, flat, owners)
        total = 0.5 * lm_loss + decided + self.pointing_weight * pointed + self.code_weight * coded
        shown = {"lm": lm_loss.item(), "wrong": wrong.item(), "code": coded.item()} | shares | hits
        if self.masks and scenes[0].levels and len(prompts):
            drawing, iou = self._drawn(prompts, flat, owners, rng)
            total, shown = total + self.masks * drawing, shown | {"IoU": iou}
        return total, shown

    # ---------------------------------------------------------------- the LLM
    def rows(self, scenes: list[Seen], chats: list[list[Chat]]) -> Rows:
        """The conversations as rows of the LLM."""
        threads = []
        for one, of_scene in zip(scenes, chats, strict=True):
            threads.append([])
            for chat in of_scene:
                cells = [(one.cover[shape, 0] > MARKED).nonzero()[:, 0].tolist() for shape in chat.regions]
                threads[-1].append(self.writer.thread(chat, cells))
        return self.writer.rows(threads, len(scenes[0].tokens))

    def read(self, scenes: list[Seen], rows: Rows) -> Tensor:
        """Hidden states (B, L, D)."""
        return read(self.model, [one.tokens for one in scenes], rows)

    def decisions(self, hidden: Tensor, rows: Rows, chats: list[Chat]) -> tuple[Tensor, Tensor]:
        """Whether the first word of an answer declines or not, as a binary cross-entropy, and the share of errors.

        The words of an answer are sampled from a pool, so their own cross-entropy is mostly noise. The most probable
        words of both kinds are compared, because greedy decoding says the one of them that is more probable: the pool
        of declining answers is spread over more first words than the other.
        """
        kinds = [kind for chat in chats for kind in chat.kinds]
        asked = torch.tensor([kind in WEIGHTS for kind in kinds])
        if not asked.any():
            return hidden.sum() * 0.0, torch.zeros(())
        row, index = rows.starts[asked].unbind(1)
        first = self.model.mllm.lm_head(hidden[row, index]).float()
        absent = torch.tensor([kind == "no_target" for kind in kinds])[asked]
        others = first.scatter(1, self.declines.expand(len(first), -1), -torch.inf).amax(1)
        difference = first[:, self.declines].amax(1) - others
        wrong = ((difference > 0) != absent).float().mean()
        return F.binary_cross_entropy_with_logits(difference, absent.float()), wrong

    # ---------------------------------------------------------------- where it looks
    def _pointed(self, rows: Rows, chats: list[Chat], owners: list[Seen]) -> tuple[Tensor, dict[str, float]]:
        losses, shares = [], {}
        for name, look in self._looks(rows, chats, owners).items():
            if not len(look.at):
                continue
            loss, found = self.pointing.loss(look, rows)
            losses.append(loss)
            shares[name] = found.mean().item()
            if look.layer == len(self.language.layers) - 1:
                for kind in sorted(set(look.kinds)):
                    shares[f"at {kind}"] = found[[other == kind for other in look.kinds]].mean().item()
        return torch.stack(losses).mean() if losses else torch.zeros(()), shares

    def _looks(self, rows: Rows, chats: list[Chat], owners: list[Seen]) -> dict[str, Look]:
        """The second layer looks for what is named, the third for all that the attributes fit, the last for the one.

        Layers between these look for what leads to it, one after another. The tokens that look are [SEG] and the one
        that decides about the answer; with no target, before the image.
        """
        last = len(self.language.layers) - 1
        first = min(last, TARGET_LAYER)
        layers = {"named": (max(0, first - 2), 1), "group": (max(0, first - 1), 2)}
        layers |= {f"target {layer}": (layer, 2) for layer in range(first, last + 1)}
        aims = list(layers)[2:]
        found: dict[str, list[tuple[Tensor, Tensor, str]]] = {name: [] for name in layers}
        sink = torch.zeros(rows.ids.shape[1])
        sink[rows.sink] = 1.0

        def look_for(shapes: dict[str, list[int]], one: Seen, kind: str, tokens: list[Tensor]) -> None:
            for name, wanted in shapes.items():
                where = self._where(rows, one, wanted) if wanted else sink
                found[name] += [(token, where, kind) for token in tokens]

        targets = [target for chat in chats for target in chat.targets]  # of each [SEG]
        segs_of: dict[int, list[int]] = {}
        for seg, turn in enumerate(rows.seg_turns):
            segs_of.setdefault(turn, []).append(seg)
        for turn, (one, kind, group, chain) in enumerate(_turns(chats, owners)):
            segs = segs_of.get(turn, [])
            if kind not in WEIGHTS:
                for seg in segs:
                    look_for(dict.fromkeys(aims, targets[seg]), one, kind, [rows.segs[seg]])
                continue
            target = targets[segs[0]] if segs else []
            wanted = dict(zip(aims, steps(chain, len(aims)) if target else [[]] * len(aims), strict=True))
            wanted |= {"group": group} | ({"named": target} if kind in NAMING else {})
            look_for(wanted, one, kind, [rows.starts[turn], *(rows.segs[seg] for seg in segs)])
        return {name: self._look(*layers[name], pairs, rows) for name, pairs in found.items()}

    @staticmethod
    def _look(layer: int, heads: int, found: list[tuple[Tensor, Tensor, str]], rows: Rows) -> Look:
        if not found:
            return Look(layer, heads, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, rows.ids.shape[1]))
        places, wanted, kinds = zip(*found, strict=True)
        return Look(layer, heads, torch.stack(places), torch.stack(wanted), list(kinds))

    def _where(self, rows: Rows, one: Seen, shapes: list[int]) -> Tensor:
        """(L,): the visual tokens of some shapes, as a distribution; the image as a whole if they cover none."""
        cover = one.cover[shapes].float().amax(0).flatten()
        wanted = torch.zeros(rows.ids.shape[1])
        wanted[rows.visual] = cover / cover.sum() if cover.sum() > 0 else 1 / len(cover)
        return wanted

    # ---------------------------------------------------------------- what [SEG] says
    def _coded(self, prompts: Tensor, chats: list[Chat], owners: list[Seen]) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the prompts (N, C), and how often they say the right shape, by kind of expression."""
        if not len(prompts):
            return prompts.sum() * 0.0, {}
        targets = [(one, target) for chat, one in zip(chats, owners, strict=True) for target in chat.targets]
        cover = torch.stack([one.cover[target].float().amax(0).sum(0) for one, target in targets])
        looks = torch.stack([self.code.looks([one.scene.shapes[i] for i in target]) for one, target in targets])
        loss = F.mse_loss(prompts, self.code.encode(cover, looks))
        kinds = [kind for chat in chats for kind in _seg_kinds(chat)]
        hits: dict[str, list[bool]] = {}
        for said, kind, (one, target) in zip(prompts.detach(), kinds, targets, strict=True):
            if len(target) == 1 and len(one.cover) > 1:
                hits.setdefault(kind, []).append(self._nearest(said, one) == target[0])
        return loss, {kind: sum(values) / len(values) for kind, values in sorted(hits.items())}

    def _nearest(self, said: Tensor, one: Seen) -> int:
        """The shape whose code is nearest to a prompt."""
        looks = torch.stack([self.code.looks([shape]) for shape in one.scene.shapes])
        codes = self.code.encode(one.cover.float().sum(1), looks)
        return int((codes - said).square().sum(1).argmin())

    def _drawn(
        self, prompts: Tensor, chats: list[Chat], owners: list[Seen], rng: random.Random
    ) -> tuple[Tensor, float]:
        """Loss and mean IoU of the masks that the prompts bring about, on one frame each."""
        targets = [(one, target) for chat, one in zip(chats, owners, strict=True) for target in chat.targets]
        drawn = rng.sample(range(len(targets)), min(len(targets), self.masks_per_step or len(targets)))
        scenes, shapes = zip(*(targets[index] for index in drawn), strict=True)
        frames = [rng.randrange(len(one.tokens)) for one in scenes]
        return outline(self.model, prompts[drawn], scenes, shapes, frames)


def _turns(chats: list[Chat], owners: list[Seen]) -> Iterator[tuple]:
    """(scene, kind, group, chain) of every turn."""
    for chat, one in zip(chats, owners, strict=True):
        for kind, group, chain in zip(chat.kinds, chat.groups, chat.chains, strict=True):
            yield one, kind, group, chain


def steps(chain: list[list[int]], count: int) -> list[list[int]]:
    """A chain spread over `count` layers: the last links of a longer one, the target again after a shorter one."""
    return chain[-count:] + chain[-1:] * (count - len(chain))


def outline(
    model: Sa2VAForConditionalGeneration,
    prompts: Tensor,
    scenes: Sequence[Seen],
    targets: Sequence[list[int]],
    frames: Sequence[int],
) -> tuple[Tensor, float]:
    """Loss and mean IoU of the masks of N prompts (N, C): of `targets`, each on one frame of its scene."""
    levels = levels_of(scenes, frames)
    masks = [one.masks[shapes, f].amax(0) for one, shapes, f in zip(scenes, targets, frames, strict=True)]
    return step_loss(decode(model, levels, prompts), torch.stack(masks).float())


def levels_of(scenes: Sequence[Seen], frames: Sequence[int]) -> list[Tensor]:
    """SAM 2's features of one frame of every scene, (N, C, h, w) of three levels."""
    chosen = [[level[frame] for level in one.levels] for one, frame in zip(scenes, frames, strict=True)]
    return [torch.stack(level).float() for level in zip(*chosen, strict=True)]


def decode(model: Sa2VAForConditionalGeneration, levels: list[Tensor], prompts: Tensor) -> MaskPrediction:
    """Masks of N prompts (N, C) on features (N, C, h, w) of three levels."""
    sam = model.grounding_encoder.sam2_model
    image = levels[-1] + sam.no_mem_embed.view(1, -1, 1, 1)
    return prompt(sam, image, levels[:2], embeddings=prompts)


def _seg_kinds(chat: Chat) -> list[str]:
    """The kind of every [SEG] of a conversation."""
    kinds = [kind for kind in chat.kinds if kind != "no_target"]
    return kinds if kinds and kinds[0] in WEIGHTS else ["dialogue"] * len(chat.targets)
