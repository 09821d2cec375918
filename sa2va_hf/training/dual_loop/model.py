"""Both passes of the student, and the writing of the teacher, as forward calls of one module.

Whatever an engine does around a module, all that is trained goes through one forward per micro-batch, so that DDP,
ZeRO-2 and FSDP2 reduce its gradients.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ..sa2va.scores import first_tokens, predicted_ids
from .arguments import LoopSettings
from .captions import caption_loss, corrupt, denoising_loss, straight_through
from .regions import region_cells
from .tokens import Rows, Vocabulary, embedded, labels_at, rows_of, seeded, write

PARTS = ("mask_loss", "dice_loss", "answer_loss", "denoising_loss", "cosine_loss")  # of the first loop
LOSSES = (*PARTS, "caption_loss", "caption_answer_loss")
COUNTS = ("intersection", "union", "seg_said", "seg_total", "agreed", "tokens")
PIXELS = ("pixel_values", "region_masks", "region_tiles")


class DualLoopModel(nn.Module):
    """A Sa2VA model, plain or wrapped by peft, with the two loops as its forward.

    forward(**inputs of Sa2VA): that model's own. forward(pairs=, captions=, captioned=): the losses of the loops, see
    `loops`. forward(write=): captions.
    """

    accepts_loss_kwargs = False
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    trained_parts_are_set = True

    def __init__(self, sa2va: nn.Module, settings: LoopSettings, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.sa2va, self.settings, self.vocabulary = sa2va, settings, vocabulary

    @property
    def base(self) -> Sa2VAForConditionalGeneration:
        return self.sa2va.get_base_model() if isinstance(self.sa2va, PeftModel) else self.sa2va

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def mllm(self) -> nn.Module:
        return self.base.mllm

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.base.is_gradient_checkpointing

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.sa2va.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.sa2va.gradient_checkpointing_disable()

    def forward(
        self,
        pairs: dict[str, Any] | None = None,
        captions: list[Tensor] | None = None,
        captioned: dict[str, Any] | None = None,
        write: dict[str, Any] | None = None,
        answer: dict[str, Any] | None = None,
        may_end_early: bool = True,
        **inputs: Any,
    ) -> Any:
        if write is not None:
            return self.write(write, may_end_early)
        if answer is not None:
            return self.answered(answer, captions)
        return self.sa2va(**inputs) if pairs is None else self.loops(pairs, captions, captioned)

    # ---------------------------------------------------------------- the teacher
    @torch.no_grad()
    def write(self, describe: dict[str, Any], may_end_early: bool) -> list[Tensor]:
        """A caption (n,) of each region, greedy, of at most `caption_length` tokens."""
        rows = self._asked(describe, [describe["head"][0][:0]] * len(describe["head"]))
        order = rows.attention_mask.argsort(dim=1, stable=True)  # padding to the left: decoding continues at the end
        ids, mask = rows.input_ids.gather(1, order), rows.attention_mask.gather(1, order)
        visuals = {name: describe[name] for name in PIXELS}
        embeddings = self.base.backbone.llm_inputs(self.mllm, ids, visuals)["inputs_embeds"]
        words = self.vocabulary
        return write(
            self.mllm.model.language_model,
            self.mllm.lm_head,
            embeddings,
            mask,
            self.settings.caption_length,
            stops=words.stops,
            banned=words.special,
            may_end_early=may_end_early,
        )

    # ---------------------------------------------------------------- the student
    def loops(
        self, pairs: dict[str, Any], captions: list[Tensor], captioned: dict[str, Any] | None
    ) -> dict[str, Tensor]:
        """Losses of a micro-batch. first, second: of the two loops; loss: first + caption_weight * second. Beside them
        the parts, with their weights, and sums for the log (`COUNTS`), none of which has a gradient.

        captions: the ids (n,) that describe each pair's region.
        """
        parts, counts = self.caption_to_mask(pairs, captions)
        first = sum(parts[name] for name in PARTS)
        second = first.new_zeros(())
        if captioned is not None:
            of_captions = self.mask_to_caption(captioned)
            parts |= of_captions
            second = sum(of_captions.values())
        shown = {name: part.detach() for name, part in parts.items()}
        return {
            "loss": first + self.settings.caption_weight * second,
            "first": first,
            "second": second,
            **{name: shown.get(name, first.new_zeros(())) for name in LOSSES},
            **counts,
        }

    def caption_to_mask(
        self, pairs: dict[str, Any], captions: list[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loop 1: the caption of a region in one picture has to lead to its object in the other."""
        settings, words, seeds = self.settings, self.vocabulary, pairs["seeds"]
        needs_reading = settings.caption_gradient or settings.denoising_weight > 0 or settings.cosine_weight > 0
        embeddings, denoising, region, agreed = None, None, None, captions[0].new_zeros((), dtype=torch.float32)
        if needs_reading:
            corrupted = self._corrupted(captions, seeds)
            logits, region = self.read_region(pairs["describe"], corrupted)
            wanted = torch.cat(captions)
            agreed = (logits.detach().argmax(-1) == wanted).sum().float()
            if settings.denoising_weight > 0:
                denoising = denoising_loss(logits[None], wanted[None], torch.cat(corrupted)[None], words.pad)
            if settings.caption_gradient:
                embeddings = self._straight_through(logits, [len(one) for one in captions], seeds)
        output, rows, said = self.segment(pairs["segment"], captions, embeddings, pairs=pairs)
        zero = output.mask_loss.new_zeros(())
        scores = [part for part in (output.iou_loss, output.object_score_loss) if part is not None]
        cosine = zero
        if settings.cosine_weight > 0:
            cosine = 1 - F.cosine_similarity(region.float(), output.seg_hidden_states.float()).mean()
        parts = {
            "mask_loss": output.mask_loss,
            "dice_loss": output.dice_loss + sum(scores, start=zero),
            "answer_loss": settings.answer_weight * output.lm_loss,
            "denoising_loss": zero if denoising is None else settings.denoising_weight * denoising,
            "cosine_loss": settings.cosine_weight * cosine,
        }
        counts = overlap(output.pred_masks, pairs) | {"agreed": agreed}
        counts |= self._emission(rows, said) | {"tokens": zero + sum(map(len, captions))}
        return parts, counts

    def mask_to_caption(self, captioned: dict[str, Any]) -> dict[str, Tensor]:
        """Loop 2: the mask that a given caption leads to has to lead back to that caption. The mask's cells pass no
        gradient on: this loop trains what describes, and the answer."""
        settings, captions = self.settings, captioned["captions"]
        output, _, _ = self.segment(captioned["segment"], captions)
        logits = torch.cat([masks[:, 0] for masks in output.pred_masks]).detach()
        cells = region_cells(logits, captioned["describe"]["region_masks"].shape[-1])
        said, _ = self.read_region(captioned["describe"] | {"region_masks": cells}, captions)
        return {
            "caption_loss": caption_loss(said[None], torch.cat(captions)[None], pad=-1),
            "caption_answer_loss": settings.answer_weight * output.lm_loss,
        }

    def read_region(self, describe: dict[str, Any], captions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the LLM says at each token of the captions, from those before it: logits (sum of n, V); and the mean
        state of each region's tokens (B, D)."""
        rows = self._asked(describe, captions)
        hidden = self.base.hidden_states(rows.input_ids, rows.attention_mask, *(describe[name] for name in PIXELS))
        of_region = self._asked(describe, captions, place=1).places.to(hidden.dtype)
        region = (hidden * of_region.unsqueeze(-1)).sum(1) / of_region.sum(1, keepdim=True)
        return self.mllm.lm_head(rows.states(hidden)), region

    def segment(
        self,
        segment: dict[str, Any],
        captions: list[Tensor],
        embeddings: Tensor | None = None,
        pairs: dict[str, Any] | None = None,
    ) -> tuple[Any, Rows, Tensor | None]:
        """The answer to a caption: the model's output, the rows that it read, and the likeliest ids of the answer.

        embeddings: (sum of n, D) that stand for the captions. pairs: whose masks the losses compare with.
        """
        blank = [torch.full_like(one, self.vocabulary.pad) for one in captions]
        shown = captions if embeddings is None else blank
        pieces = [
            [head, caption, tail, segment["answer"]]
            for head, caption, tail in zip(segment["head"], shown, segment["tail"], strict=True)
        ]
        asked, slots = rows_of(pieces, place=3), rows_of(pieces, place=1).places
        given = {name: segment[name] for name in ("pixel_values", "grounding_pixel_values", "num_frames")}
        if pairs is not None:
            given |= {name: pairs[name] for name in ("mask_labels", "ignore_labels") if name in pairs}
        inputs = {"input_ids": asked.input_ids, "attention_mask": asked.attention_mask, "labels": labels_at(asked)}
        spoken = nullcontext() if embeddings is None else embedded(self.base.get_input_embeddings(), slots, embeddings)
        with spoken, first_tokens(self.mllm.lm_head) as firsts:
            output = self.base(**inputs, **given, return_logits=False)
        return output, asked, predicted_ids(torch.cat(firsts), inputs["labels"])

    @torch.no_grad()
    def answered(self, segment: dict[str, Any], captions: list[Tensor]) -> dict[str, Any]:
        """masks: (B, h, w) logits of the object that each caption means; seg_said, seg_total: see `COUNTS`."""
        output, rows, said = self.segment(segment, captions)
        return {"masks": torch.cat([masks[:, 0] for masks in output.pred_masks]), **self._emission(rows, said)}

    def _asked(self, describe: dict[str, Any], captions: list[Tensor], place: int = 3) -> Rows:
        """The question about a region, its tokens, and a caption as the answer."""
        context = torch.full((1,), self.vocabulary.context, device=describe["head"][0].device)
        cells = describe["region_masks"].flatten(1).sum(1).tolist()
        return rows_of(
            [
                [head, context.expand(count), tail, caption]
                for head, count, tail, caption in zip(describe["head"], cells, describe["tail"], captions, strict=True)
            ],
            place,
        )

    def _corrupted(self, captions: list[Tensor], seeds: list[int]) -> list[Tensor]:
        settings, words = self.settings, self.vocabulary

        def one(number: int, generator: torch.Generator) -> Tensor:
            caption = captions[number].cpu()[None]
            return corrupt(
                caption,
                settings.corruption,
                pad=words.pad,
                forbidden=words.special,
                uniform=torch.rand(caption.shape, generator=generator),
                sample=lambda count: torch.randint(words.size, (count,), generator=generator),
            )[0].to(captions[number].device)

        return seeded(seeds, one)

    def _straight_through(self, logits: Tensor, lengths: list[int], seeds: list[int]) -> Tensor:
        """Embeddings (sum of n, D) of a caption sampled from `logits`, special tokens excluded."""
        settings, weights = self.settings, self._embedding_weights()
        special = torch.tensor(self.vocabulary.special, device=logits.device)
        words = logits.float().index_fill(-1, special, torch.finfo(torch.float32).min)
        k = min(settings.top_k, logits.shape[-1] - len(special))
        others = [seed + 1 for seed in seeds]  # the corruption has those of the seeds themselves
        noise = seeded(others, lambda number, generator: torch.rand(lengths[number], k, generator=generator))
        embeddings, _ = straight_through(
            words[None],
            weights,
            k=k,
            tau=settings.temperature,
            uniform=torch.cat(noise)[None].to(logits.device),
            chunk=settings.chunk,
        )
        return embeddings[0]

    def _embedding_weights(self) -> Tensor:
        """(V, D), those that are trained where peft holds a copy."""
        embedding = self.base.get_input_embeddings()
        copies = getattr(embedding, "modules_to_save", None)
        return embedding.weight if copies is None else copies["default"].weight

    def _emission(self, rows: Rows, said: Tensor) -> dict[str, Tensor]:
        wanted = rows.input_ids[:, 1:] == self.config.seg_token_id
        return {
            "seg_said": (said[wanted] == self.config.seg_token_id).sum().float(),
            "seg_total": wanted.sum().float(),
        }


@torch.no_grad()
def overlap(pred_masks: list[Tensor], pairs: dict[str, Any]) -> dict[str, Tensor]:
    """Cells of intersection and union of the predicted masks and the true ones, at the predicted size."""
    logits = torch.cat([masks[:, 0] for masks in pred_masks])
    size = logits.shape[-2:]
    truth = torch.cat([F.interpolate(masks.float(), size)[:, 0] for masks in pairs["mask_labels"]]).bool()
    predicted = logits > 0
    return {
        "intersection": (predicted & truth.to(logits.device)).sum().float(),
        "union": (predicted | truth.to(logits.device)).sum().float(),
    }
