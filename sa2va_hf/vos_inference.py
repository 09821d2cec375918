"""Videos in, masks out: folders of frames and of first masks -> a mask picture per frame, in the layouts of DAVIS (one
picture, an index per object) and SA-V (a folder per object).

Frames are read as they come and masks are written at once, so the length of a video costs no memory. A video is
written beside its place and moved there when it is complete: what is there is finished.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from .data.media import load_image
from .data.sources.clips import numbered_frames
from .data.vos_clips import to_square
from .masks import components, read_ids
from .model.tracking import follow_objects

HOLE, FILLED = 8, 0.1  # cells of a small mask that are a hole at most, and what they are filled with
VOID = 255  # beside other values: no object


@dataclass
class VosOptions:
    """score_threshold: of the mask logits. all_masks: every mask that is there is given, not only the first one.
    later_objects: objects may first have a mask on any frame; without it a new one there is an error. per_object: a
    folder per object is written, and objects may overlap. postprocessing: as SAM 2's own for interactive use: small
    holes are filled. resample: of the frames; SAM 2's own tools take bicubic, its training bilinear."""

    score_threshold: float = 0.0
    all_masks: bool = False
    later_objects: bool = False
    per_object: bool = False
    postprocessing: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR


@dataclass
class VideoFiles:
    """A video's frames by number, its masks by frame number and object, and the palette they came with."""

    frames: dict[int, Path]
    masks: dict[int, dict[int, np.ndarray]]
    palette: list[int] | None


def follow_video(
    sam2: SAM2Base, files: VideoFiles, output: Path, options: VosOptions, device: torch.device | str
) -> None:
    """Follow the objects of one video and write the folder `output`, complete or not at all.

    Errors: ValueError for a file that does not fit, or masks that the options do not allow for.
    """
    numbers = list(files.frames)
    prompts = choose_prompts(files, options)
    with Image.open(files.frames[numbers[0]]) as first:
        width, height = first.size
    for things in files.masks.values():
        for thing, mask in things.items():
            if mask.shape != (height, width):
                raise ValueError(
                    f"{output.name}: the mask of object {thing} is {mask.shape[1]} x {mask.shape[0]}, the frames are "
                    f"{width} x {height}"
                )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def open_frame(place: int) -> Tensor:
        picture = load_image(files.frames[numbers[place]])
        return to_square(picture, sam2.image_size, options.resample).to(device)

    given = {
        thing: {numbers.index(n): torch.from_numpy(mask).to(device) for n, mask in masks.items()}
        for thing, masks in prompts.items()
    }
    write = _write_per_object if options.per_object else _write_together
    waiting = 0
    for place, logits in follow_objects(sam2, open_frame, len(numbers), given):
        for empty in range(waiting, place):  # before the first object
            write(partial, files.frames[numbers[empty]].stem, {}, list(prompts), (height, width), files.palette)
        waiting = place + 1
        masks = _full_masks(logits, height, width, options)
        write(partial, files.frames[numbers[place]].stem, masks, list(prompts), (height, width), files.palette)
    partial.rename(output)


def read_video(frames: Path, masks: Path) -> VideoFiles:
    """The files of a video: `frames/*.jpg` (or png), and masks as `masks/FRAME.png` with an index per object or
    `masks/OBJECT/FRAME.png`. Errors: ValueError naming the file."""
    pictures = numbered_frames(frames)
    folders = sorted(path for path in masks.iterdir() if path.is_dir()) if masks.is_dir() else []
    found: dict[int, dict[int, np.ndarray]] = {}
    palette = None
    if folders:
        for folder in folders:
            if not folder.name.isdigit():
                raise ValueError(f"{folder}: a folder of one object's masks must have its number as name")
            for number, path in numbered_frames(folder, (".png",)).items():
                found.setdefault(number, {})[int(folder.name)] = read_ids(path) > 0
    else:
        for number, path in numbered_frames(masks, (".png",)).items():
            ids = read_ids(path)
            values = [int(value) for value in np.unique(ids) if value]
            things = values if values == [VOID] else [value for value in values if value != VOID]
            found[number] = {value: ids == value for value in things}
            with Image.open(path) as image:
                palette = palette or image.getpalette()
    if beyond := sorted(set(found) - set(pictures)):
        raise ValueError(f"{masks}: there are masks of frames {beyond[:5]}, which are not in {frames}")
    return VideoFiles(pictures, dict(sorted(found.items())), palette)


def choose_prompts(files: VideoFiles, options: VosOptions) -> dict[int, dict[int, np.ndarray]]:
    """{object: {frame number: mask}} of those masks that the options let the tracker see."""
    first = next(iter(files.frames))
    seen = {n: {t: m for t, m in things.items() if m.any()} for n, things in files.masks.items()}
    things = sorted({thing for of_frame in seen.values() for thing in of_frame})
    if not options.later_objects:
        late = sorted(set(things) - set(seen.get(first, {})))
        if options.all_masks and late:
            raise ValueError(
                f"objects {late} are not on the first frame, {files.frames[first]}; give --track_object_appearing_"
                "later_in_video"
            )
        things = [thing for thing in things if thing not in late]
    if not things:
        raise ValueError(f"there is no mask on the first frame, {files.frames[first]}")
    prompts = {}
    for thing in things:
        start = min(number for number, of_frame in seen.items() if thing in of_frame)
        numbers = [n for n in files.masks if n >= start and thing in files.masks[n]] if options.all_masks else [start]
        prompts[thing] = {number: files.masks[number][thing] for number in numbers}
    return prompts


def _full_masks(logits: dict[int, Tensor], height: int, width: int, options: VosOptions) -> dict[int, np.ndarray]:
    """Masks at the frames' size; without overlap unless objects are written apart."""
    small = torch.stack([*logits.values()]).float()
    if options.postprocessing:
        small = torch.stack([_without_holes(mask) for mask in small])
    full = F.interpolate(small.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    masks = full > options.score_threshold
    if not options.per_object:
        masks &= torch.arange(len(full), device=full.device).view(-1, 1, 1) == full.argmax(0)
    return dict(zip(logits, masks.cpu().numpy(), strict=True))


def _without_holes(logits: Tensor) -> Tensor:
    labels = components((logits <= 0).cpu().numpy())
    small = np.bincount(labels.ravel())[labels] <= HOLE
    return logits.masked_fill(torch.from_numpy(small & (labels > 0)).to(logits.device), FILLED)


def _write_together(
    folder: Path,
    stem: str,
    masks: dict[int, np.ndarray],
    things: list[int],
    size: tuple[int, int],
    palette: list[int] | None,
) -> None:
    ids = np.zeros(size, np.uint8)
    for thing, mask in masks.items():
        ids[mask] = thing
    image = Image.fromarray(ids)
    image.putpalette(palette or davis_palette())
    image.save(folder / f"{stem}.png")


def _write_per_object(
    folder: Path,
    stem: str,
    masks: dict[int, np.ndarray],
    things: list[int],
    size: tuple[int, int],
    palette: list[int] | None,
) -> None:
    for thing in things:
        place = folder / f"{thing:03d}"
        place.mkdir(exist_ok=True)
        mask = masks.get(thing, np.zeros(size, bool))
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette(davis_palette())
        image.save(place / f"{stem}.png")


def davis_palette() -> list[int]:
    """256 colours in which neighbouring numbers differ: the bits of the number dealt out to red, green and blue, the
    first ones weighing most (as PASCAL VOC's and DAVIS')."""
    colours = []
    for number in range(256):
        colour = [0, 0, 0]
        for bit in range(8):
            colour[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        colours += colour
    return colours
