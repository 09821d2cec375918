"""Pictures -> what a multimodal LLM reads of them: one small class per family, chosen by the LLM's `model_type`.

A class says which tokens stand for a picture, how many (from its size alone, so that lengths are known before a file
is opened), and makes the pixels. `backbones.py` has the other half: where those pixels go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from .configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, PLACEHOLDER

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

Frames = tuple[Sequence[Image.Image], bool]  # the frames of a conversation, and whether they are a clip's


def choose_grid(width: int, height: int, min_tiles: int, max_tiles: int, tile_size: int) -> tuple[int, int]:
    """Columns and rows of the tile grid whose aspect ratio is nearest to the picture's (InternVL's rule).

    Of two equally near grids the larger wins only if the picture has more than half its pixels.
    """
    grids = {
        (i, j) for n in range(min_tiles, max_tiles + 1) for i in range(1, n + 1) for j in range(1, n + 1)
        if min_tiles <= i * j <= max_tiles
    }  # fmt: skip
    aspect, best, best_difference = width / height, (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(aspect - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and width * height > 0.5 * tile_size**2 * columns * rows:
            best = (columns, rows)
    return best


def to_tiles(image: Image.Image, grid: tuple[int, int], size: int, thumbnail: bool) -> list[Image.Image]:
    """Row-major crops of the picture stretched over the grid, then the whole picture where there is more than one."""
    columns, rows = grid
    stretched = image.resize((size * columns, size * rows))
    tiles = [
        stretched.crop((size * c, size * r, size * (c + 1), size * (r + 1)))
        for r in range(rows)
        for c in range(columns)
    ]
    return tiles + [image.resize((size, size))] if thumbnail and len(tiles) > 1 else tiles


@dataclass
class InternVLPictures:
    """Square tiles and a thumbnail of an image, one squashed tile of a video frame; PIL's bicubic filter.

    Fields: see `Sa2VAProcessor`.
    """

    start: ClassVar[str] = IMAGE_START
    context: ClassVar[str] = IMAGE_CONTEXT
    end: ClassVar[str] = IMAGE_END
    takes_regions: ClassVar[bool] = True

    tile_size: int = 448
    patch_size: int = 14
    downsample_ratio: float = 0.5
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True
    pixel_mean: Sequence[float] = IMAGENET_MEAN
    pixel_std: Sequence[float] = IMAGENET_STD

    @staticmethod
    def settings(mllm_config: Any) -> dict[str, Any]:
        """The fields that an LLM's config decides."""
        vision = mllm_config.vision_config
        return {
            "tile_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "downsample_ratio": mllm_config.downsample_ratio,
        }

    @property
    def region_grid(self) -> int:
        """Cells per side on which a region is marked: one cell per token of a tile."""
        return int(self.tile_size // self.patch_size * self.downsample_ratio)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return choose_grid(width, height, self.min_tiles, self.max_tiles, self.tile_size)

    def num_tiles(self, width: int, height: int) -> int:
        columns, rows = self.grid(width, height)
        return columns * rows + (self.use_thumbnail and columns * rows > 1)

    def block(self, width: int, height: int, is_video: bool) -> int:
        """How many tokens an image, or a frame of a clip, takes."""
        return (1 if is_video else self.num_tiles(width, height)) * self.region_grid**2

    def inputs(self, conversations: Sequence[Frames]) -> dict[str, Tensor]:
        """`pixel_values` (tiles, 3, s, s)."""
        size, tiles = self.tile_size, []
        for frames, is_video in conversations:
            for image in frames:
                squashed = [image.resize((size, size))] if is_video else None
                tiles += squashed or to_tiles(image, self.grid(*image.size), size, self.use_thumbnail)
        return {"pixel_values": _normalised([np.asarray(tile) for tile in tiles], self.pixel_mean, self.pixel_std)}


@dataclass
class LlavaPictures:
    """One square per image or frame, its aspect ratio not kept; PIL's bicubic filter. Fields: see `Sa2VAProcessor`.

    The token of a picture is written as the placeholder is.
    """

    start: ClassVar[str] = ""
    context: ClassVar[str] = PLACEHOLDER
    end: ClassVar[str] = ""
    takes_regions: ClassVar[bool] = False  # the released model was not trained for it

    tile_size: int = 336
    patch_size: int = 14
    pixel_mean: Sequence[float] = CLIP_MEAN
    pixel_std: Sequence[float] = CLIP_STD

    @staticmethod
    def settings(mllm_config: Any) -> dict[str, Any]:
        """The fields that an LLM's config decides, and that its tokenizer's bos is written."""
        vision = mllm_config.vision_config
        return {"tile_size": vision.image_size, "patch_size": vision.patch_size, "add_bos": True}

    @property
    def region_grid(self) -> int:
        """Tokens per side of a picture."""
        return self.tile_size // self.patch_size

    def block(self, width: int, height: int, is_video: bool) -> int:
        """How many tokens an image, or a frame of a clip, takes."""
        return self.region_grid**2

    def inputs(self, conversations: Sequence[Frames]) -> dict[str, Tensor]:
        """`pixel_values` (pictures, 3, s, s)."""
        size = (self.tile_size, self.tile_size)
        squares = [np.asarray(image.resize(size)) for frames, _ in conversations for image in frames]
        return {"pixel_values": _normalised(squares, self.pixel_mean, self.pixel_std)}


def _normalised(pictures: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pictures (H, W, 3) of one size -> float (N, 3, H, W)."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (stacked.float() / 255 - mean) / std


@dataclass
class QwenVLPictures:
    """One grid of patches per picture, its sides near the picture's own; the image processor of transformers.

    A frame of a clip is an image of fewer pixels: the released models were trained without Qwen's video tokens.
    Fields: see `Sa2VAProcessor`.
    """

    start: ClassVar[str] = "<|vision_start|>"
    context: ClassVar[str] = "<|image_pad|>"
    end: ClassVar[str] = "<|vision_end|>"
    takes_regions: ClassVar[bool] = False  # the released models were not trained for it

    patch_size: int = 14
    downsample_ratio: float = 0.5
    image_pixels: Sequence[int] = (512 * 28 * 28, 2048 * 28 * 28)
    frame_pixels: Sequence[int] = (128 * 28 * 28, 512 * 28 * 28)
    pixel_mean: Sequence[float] = CLIP_MEAN
    pixel_std: Sequence[float] = CLIP_STD

    def __post_init__(self) -> None:
        for name in ("image_pixels", "frame_pixels"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f"{name}: expected [least, most] pixels, got {limits!r}")

    @staticmethod
    def settings(mllm_config: Any) -> dict[str, Any]:
        """The fields that an LLM's config decides."""
        vision = mllm_config.vision_config
        return {"patch_size": vision.patch_size, "downsample_ratio": 1 / vision.spatial_merge_size}

    @property
    def merge_size(self) -> int:
        """Patches per side that become one token."""
        return round(1 / self.downsample_ratio)

    def processor(self, is_video: bool) -> Any:
        """For images, or for the frames of a clip."""
        limits, numbers = self.frame_pixels if is_video else self.image_pixels, (self.pixel_mean, self.pixel_std)
        return _qwen_processor(*limits, self.patch_size, self.merge_size, *map(tuple, numbers))

    def block(self, width: int, height: int, is_video: bool) -> int:
        """How many tokens an image, or a frame of a clip, takes."""
        return self.processor(is_video).get_number_of_image_patches(height, width, {}) // self.merge_size**2

    def inputs(self, conversations: Sequence[Frames]) -> dict[str, Tensor]:
        """`pixel_values` (patches, 3 * 2 * p * p) and `image_grid_thw` (pictures, 3), in patches."""
        parts = [
            self.processor(is_video)(images=list(frames), return_tensors="pt")
            for frames, is_video in conversations
            if len(frames)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in ("pixel_values", "image_grid_thw")}


@lru_cache
def _qwen_processor(least: int, most: int, patch: int, merge: int, mean: tuple, std: tuple) -> Any:
    # transformers 5.0 means Pillow's by the plain name, later ones mean torchvision's, which the models learned from
    plain = hasattr(transformers, "Qwen2VLImageProcessorPil")
    kind = transformers.Qwen2VLImageProcessor if plain else transformers.Qwen2VLImageProcessorFast
    size = {"shortest_edge": least, "longest_edge": most}
    return kind(size=size, patch_size=patch, merge_size=merge, image_mean=list(mean), image_std=list(std))


@dataclass
class Qwen3VLPictures(QwenVLPictures):
    """As Qwen2.5-VL's, with larger patches and another normalisation; the released limits on pixels are the same."""

    patch_size: int = 16
    pixel_mean: Sequence[float] = HALF
    pixel_std: Sequence[float] = HALF


PICTURES: dict[str, type[InternVLPictures] | type[LlavaPictures] | type[QwenVLPictures]] = {
    "internvl": InternVLPictures,
    "llava": LlavaPictures,
    "qwen2_5_vl": QwenVLPictures,
    "qwen3_vl": Qwen3VLPictures,
}
