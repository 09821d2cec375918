"""The multimodal LLMs that Sa2VA stands on: what one does differently from another, in one small class each.

Their modules have the same names where it matters (`mllm.model.language_model`, `mllm.lm_head`). What remains is where
the vision part is and how pictures get into the text. A new LLM needs a class here, and one in `pictures.py`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.dinov3_convnext import modeling_dinov3_convnext as convnext


class InternVL:
    """Features of tiles, and of the regions marked on them, stand where the text has context tokens."""

    needs, takes = {"pixel_values"}, {"region_masks", "region_tiles"}
    projector_is_trained = True  # in the released training

    @staticmethod
    def vision(mllm: nn.Module) -> list[nn.Module]:
        """Everything between pixels and the language model."""
        return [mllm.model.vision_tower, mllm.model.multi_modal_projector]

    @staticmethod
    def projector(mllm: nn.Module) -> list[nn.Module]:
        """The part of `vision` that fits pictures to the language model."""
        return [mllm.model.multi_modal_projector]

    def blank(self, mllm: nn.Module, device: torch.device) -> Tensor:
        """A number made of all that the vision part says of the smallest picture."""
        height, width = mllm.config.vision_config.image_size
        return self.features(mllm, torch.zeros(1, 3, height, width, device=device)).sum()

    @staticmethod
    def features(
        mllm: nn.Module, pixel_values: Tensor, region_masks: Tensor | None = None, region_tiles: Tensor | None = None
    ) -> Tensor:
        """(tiles, 3, s, s) -> (N, D): every tile's tokens, and after a tile the tokens its regions cover.

        region_masks: bool (R, g, g) in the order of their sentence; region_tiles: (R,) the tile of each.
        """
        pixel_values = pixel_values.to(mllm.get_input_embeddings().weight.dtype)
        tiles = mllm.get_image_features(pixel_values, return_dict=True)
        tiles = tiles if isinstance(tiles, Tensor) else tiles.pooler_output  # (T, g * g, D); a tensor before 5.1
        if region_masks is None:
            return tiles.flatten(0, 1)
        pieces, start = [], 0
        for mask, tile in zip(region_masks.flatten(1).to(tiles.device), region_tiles.tolist(), strict=True):
            pieces += [tiles[start : tile + 1].flatten(0, 1), tiles[tile][mask]]
            start = tile + 1
        return torch.cat([*pieces, tiles[start:].flatten(0, 1)])

    @staticmethod
    def unread(mllm: nn.Module) -> list[nn.Module]:
        """The parts of `vision` whose output nothing reads, which no loss can train."""
        return []

    def llm_inputs(self, mllm: nn.Module, input_ids: Tensor, visuals: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the LLM takes of ids (B, L) and what belongs to their pictures (nothing: there are none).

        Here input embeddings (B, L, D) with visual features at the context positions.
        """
        embeddings = mllm.get_input_embeddings()(input_ids)
        if not visuals:
            return {"inputs_embeds": embeddings}
        context = input_ids == mllm.config.image_token_id
        features = self.features(mllm, **visuals).to(embeddings)  # a `device_map` may have them on another device
        check_counts(int(context.sum()), len(features), len(visuals["pixel_values"]), "tiles")
        return {"inputs_embeds": embeddings.masked_scatter(context.unsqueeze(-1).to(embeddings.device), features)}

    @staticmethod
    def text_places(position_ids: Tensor) -> Tensor:
        """What the language model takes as positions of text without pictures at `position_ids` (B, L)."""
        return position_ids

    def read(
        self,
        mllm: nn.Module,
        input_ids: Tensor,
        mask: Tensor | None,
        visuals: dict[str, Tensor],
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Ids with pictures -> (B, L, D) after the language model's last norm; padding on the right has `mask` 0.

        position_ids: (1, L) of a row in which conversations follow each other, each from 0; `mask` is None then.
        """
        inputs = self.llm_inputs(mllm, input_ids, visuals)
        llm = mllm.model.language_model
        return llm(**inputs, attention_mask=mask, position_ids=position_ids, use_cache=False).last_hidden_state


class Llava(InternVL):
    """LLaVA-1.5: as InternVL, with one square per picture, read from a layer before the vision tower's last."""

    takes = set[str]()
    projector_is_trained = False  # in the released training

    def blank(self, mllm: nn.Module, device: torch.device) -> Tensor:
        side = mllm.config.vision_config.image_size
        return self.features(mllm, torch.zeros(1, 3, side, side, device=device)).sum()

    @staticmethod
    def features(mllm: nn.Module, pixel_values: Tensor) -> Tensor:
        """(pictures, 3, s, s) -> (N, D): every picture's tokens."""
        pixel_values = pixel_values.to(mllm.get_input_embeddings().weight.dtype)
        pictures = mllm.model.get_image_features(pixel_values, return_dict=True)
        return torch.cat(list(pictures.pooler_output))  # one (g * g, D) per picture

    @staticmethod
    def unread(mllm: nn.Module) -> list[nn.Module]:
        tower = getattr(mllm.model.vision_tower, "vision_model", mllm.model.vision_tower)  # a level less since 5.4
        return [*tower.encoder.layers[mllm.config.vision_feature_layer + 1 :], tower.post_layernorm]


class QwenVL:
    """Qwen2.5-VL: a token of a picture has a row and a column there, not just a place in the text.

    The native model works them out if it gets ids and pixels together, so it does.
    """

    needs, takes = {"pixel_values", "image_grid_thw"}, set[str]()
    projector_is_trained = False  # in the released training: it froze all but the language model

    @staticmethod
    def vision(mllm: nn.Module) -> list[nn.Module]:
        return [mllm.model.visual]

    @staticmethod
    def projector(mllm: nn.Module) -> list[nn.Module]:
        return [mllm.model.visual.merger]

    def blank(self, mllm: nn.Module, device: torch.device) -> Tensor:
        vision, visual = mllm.config.vision_config, mllm.model.visual
        side, length = vision.spatial_merge_size, 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(side * side, length, device=device, dtype=visual.dtype)
        output = visual(pixels, grid_thw=torch.tensor([[1, side, side]], device=device), return_dict=True)
        return sum(features.sum() for features in self.outputs(output))

    @staticmethod
    def unread(mllm: nn.Module) -> list[nn.Module]:
        return []

    @staticmethod
    def outputs(output: Any) -> list[Tensor]:
        """All that leaves the vision part for the language model."""
        return [output.pooler_output]

    def llm_inputs(self, mllm: nn.Module, input_ids: Tensor, visuals: dict[str, Tensor]) -> dict[str, Tensor]:
        if not visuals:
            return {"input_ids": input_ids}
        context = input_ids == mllm.config.image_token_id
        grids = visuals["image_grid_thw"]
        merge = mllm.config.vision_config.spatial_merge_size
        check_counts(int(context.sum()), int(grids.prod(1).sum()) // merge**2, len(grids), "pictures")
        inputs = {"input_ids": input_ids, **visuals}
        if "mm_token_type_ids" in inspect.signature(mllm.forward).parameters:
            inputs["mm_token_type_ids"] = context.int()  # transformers 5.0 looks for pictures in the ids itself
        return inputs

    @staticmethod
    def text_places(position_ids: Tensor) -> Tensor:
        """(4, B, L): see `_joined_places`; three rows alone would not keep joined conversations apart."""
        return position_ids.expand(4, -1, -1)

    def read(
        self,
        mllm: nn.Module,
        input_ids: Tensor,
        mask: Tensor | None,
        visuals: dict[str, Tensor],
        position_ids: Tensor | None = None,
    ) -> Tensor:
        inputs = self.llm_inputs(mllm, input_ids, visuals)
        if position_ids is not None:
            inputs["position_ids"] = self._joined_places(mllm, inputs, position_ids)
        return mllm.model(**inputs, attention_mask=mask, use_cache=False).last_hidden_state

    @staticmethod
    def _joined_places(mllm: nn.Module, inputs: dict[str, Tensor], position_ids: Tensor) -> Tensor:
        """(4, 1, L): places in the text, by which attention keeps joined conversations apart, and time, row, column.

        The native model counts the last three in one conversation per row of ids, so they are taken apart for it.
        """
        starts = (position_ids[0] == 0).nonzero().flatten().tolist()
        lengths = [end - start for start, end in zip(starts, [*starts[1:], position_ids.shape[1]], strict=True)]
        rows = {name: inputs[name][0].split(lengths) for name in ("input_ids", "mm_token_type_ids") if name in inputs}
        padded = {name: nn.utils.rnn.pad_sequence(row, batch_first=True) for name, row in rows.items()}
        real = nn.utils.rnn.pad_sequence([row.new_ones(len(row)) for row in rows["input_ids"]], batch_first=True)
        places, _ = mllm.model.get_rope_index(**padded, image_grid_thw=inputs["image_grid_thw"], attention_mask=real)
        return torch.cat([position_ids.unsqueeze(0), places[:, real.bool()].unsqueeze(1)])


class Qwen3VL(QwenVL):
    """As Qwen2.5-VL, and features of several vision layers are added to the first layers of the language model."""

    @staticmethod
    def projector(mllm: nn.Module) -> list[nn.Module]:
        return [mllm.model.visual.merger, mllm.model.visual.deepstack_merger_list]

    @staticmethod
    def outputs(output: Any) -> list[Tensor]:
        return [output.pooler_output, *output.deepstack_features]


def check_counts(tokens: int, features: int, pictures: int, kind: str) -> None:
    if tokens != features:
        raise ValueError(
            f"image tokens and image features do not match: {tokens} tokens in input_ids, {features} features from "
            f"{pictures} {kind}; was the text cut?"
        )


BACKBONES = {"internvl": InternVL, "llava": Llava, "qwen2_5_vl": QwenVL, "qwen3_vl": Qwen3VL}


def backbone_of(mllm_config: Any) -> InternVL | QwenVL:
    """The class for an LLM's config. Raises: ValueError naming those there are."""
    kind = BACKBONES.get(mllm_config.model_type)
    if kind is None:
        raise ValueError(
            f"mllm_config.model_type: expected one of {sorted(BACKBONES)}, got {mllm_config.model_type!r}"
        )
    return kind()


def names_of_this_version() -> dict[str, str] | None:
    """Pattern of a stored weight's name -> its name in the installed transformers; None where they are the same.

    Since DINOv3's ConvNeXt has an encoder of its own, its stages are `model.stages`; in transformers 5.3 `stages`.
    """
    if hasattr(convnext, "DINOv3ConvNextEncoder"):
        return None
    return {r"vision_tower\.model\.stages": "vision_tower.stages"}
