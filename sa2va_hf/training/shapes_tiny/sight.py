"""First lesson: the vision tower and projector learn to see, from dense labels on crowded scenes.

Every visual token that a shape covers is asked for the shape's kind, colour, texture and size, and for its place. Ten
shapes give some thirty labelled tokens per picture, where a mask and its phrase give one bit of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.shapes.scene import Options
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor
from .code import dense_positions
from .lesson import Lesson
from .scenes import CellLabels, Drawn, draw_scenes, label_cells, pixel_values, words_of

GEOMETRY = 5  # numbers per cell, see `CellLabels`


class CellReader(nn.Module):
    """Reads a cell's labels off its token; the heads of the attributes start as the embeddings of their words."""

    def __init__(self, words: dict[str, Tensor], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(rows)) for name, rows in words.items()})
        self.geometry, self.cover = nn.Linear(width, GEOMETRY), nn.Linear(width, 1)
        with torch.no_grad():
            for name, rows in words.items():
                self.heads[name].weight.copy_(rows)

    def loss(self, tokens: Tensor, labels: CellLabels) -> tuple[Tensor, dict[str, float]]:
        """tokens (N, D) -> loss, and the accuracy per attribute."""
        losses, shown = [], {}
        covered = labels.attributes["kind"] >= 0
        for name, head in self.heads.items():
            logits, wanted = head(tokens[covered]), labels.attributes[name][covered]
            losses.append(F.cross_entropy(logits, wanted))
            shown[name] = (logits.argmax(1) == wanted).float().mean().item()
        off = F.smooth_l1_loss(self.geometry(tokens[covered]), labels.geometry[covered], beta=0.1)
        cover = F.binary_cross_entropy_with_logits(self.cover(tokens)[:, 0], labels.cover)
        shown["place"] = off.item()
        return sum(losses) + 3 * off + cover, shown


class Sight(Lesson):
    """See the module. batch: pictures per step. shades: share of them whose background may have any shade. worlds:
    the looks that are drawn, each as often; words that no sentence of the other lessons has are only labels here.
    Further arguments are options of `shapes`."""

    name = "sight"

    def __init__(
        self,
        model: Sa2VAForConditionalGeneration,
        processor: Sa2VAProcessor,
        batch: int = 64,
        min_objects: int = 4,
        max_objects: int = 10,
        max_overlap: float = 0.3,
        shades: float = 0.0,
        worlds: Sequence[str] = ("default",),
    ) -> None:
        super().__init__(model, processor)
        self.batch, self.grid, self.shades, self.worlds = batch, processor.pictures.region_grid, shades, worlds
        numbers = {"min_objects": min_objects, "max_objects": max_objects, "max_overlap": max_overlap}
        self.options = [Options(world=world, **numbers) for world in worlds]
        table = model.get_input_embeddings().weight.detach()
        words = {
            name: torch.stack([word_embedding(word, table, processor) for word in family])
            for name, family in words_of(worlds).items()
        }
        self.helpers["reader"] = CellReader(words, table.shape[1])
        # What SAM 2 adds to its image features: a prompt that says the same is a place to it.
        self.places = dense_positions(model)
        self.helpers["place"] = nn.Linear(table.shape[1], self.places.shape[1])
        self.tower, ratio = model.mllm.model.vision_tower, model.config.mllm_config.downsample_ratio
        self.fine_grid, width = round(self.grid / ratio), model.config.mllm_config.vision_config.hidden_size
        self.helpers["fine"] = CellReader({name: torch.zeros(len(rows), width) for name, rows in words.items()}, width)
        self.tower.to(memory_format=torch.channels_last)

    def trained(self) -> Iterable[nn.Module]:
        return self.model.backbone.vision(self.model.mllm)

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        share = self.batch // len(self.options)
        return self.loss_of([one for options in self.options for one in draw_scenes(rng, options, share, self.shades)])

    def loss_of(self, drawn: list[Drawn]) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies on scenes; labels are read off the projected tokens, and off the tower's finer ones."""
        seen: list[Tensor] = []
        hook = self.tower.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
        tokens = self.model.backbone.features(
            self.model.mllm, pixel_values([one.frames for one in drawn], self.processor)
        )
        hook.remove()
        loss, shown = self.helpers["reader"].loss(tokens, label_cells(drawn, self.grid, self.worlds))
        cell = F.mse_loss(self.helpers["place"](tokens), self.places.repeat(len(drawn), 1))
        shown["cell"] = cell.item()
        labels = label_cells(drawn, self.fine_grid, self.worlds)
        fine, fine_shown = self.helpers["fine"].loss(seen[0][:, 1:].flatten(0, 1), labels)
        return loss + fine + 4 * cell, shown | {"fine kind": fine_shown["kind"]}


def word_embedding(word: str, table: Tensor, processor: Sa2VAProcessor) -> Tensor:
    """(D,): the mean input embedding of a word inside a sentence."""
    return table[processor.tokenizer(f" {word}")["input_ids"]].mean(0)
