"""SAM 2 or SAM 3 on videos: frames or video files with first masks -> a mask image per frame, in the layouts of
DAVIS (an image with an id per object) and SA-V (a folder per object).

Frames are read and masks are written one by one, so memory does not grow with the length of a video. A video is
written to a temporary folder that is renamed at the end: an output folder that exists is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .components import components
from .data.clips.vos import MaskFolder, to_square
from .data.media import decode_video, load_image, video_shape
from .data.sources.clips import numbered_frames
from .model.grounding_protocol import GroundingEncoder
from .model.postprocessing import object_masks
from .model.tracking import follow_objects

HOLE, FILLED = 8, 0.1  # the largest hole of a low-resolution mask in pixels, and the logit that fills it
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
MAX_PALETTE, MAX_ID = 255, 65535  # the largest object id in a palette image, and in an image of 16 bits
READ_AHEAD = 16  # frames of a video file that are decoded together


@dataclass
class VosOptions:
    """How objects are tracked and written.

    Args:
        score_threshold: a pixel belongs to a mask if its logit is above.
        all_masks: the tracker is given every mask of an object, not only the first one.
        later_objects: the first mask of an object may be on any frame; otherwise it must be on the first one.
        per_object: write a folder per object, in which objects may overlap.
        postprocessing: fill small holes, as SAM 2 does in interactive use.
        resample: how frames are resized; SAM 2's own tools use bicubic, its training bilinear.
    """

    score_threshold: float = 0.0
    all_masks: bool = False
    later_objects: bool = False
    per_object: bool = False
    postprocessing: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR


@dataclass
class VideoFiles:
    """A video from `source`: file stems by frame number, a function that opens a frame, and the masks."""

    source: Path
    stems: dict[int, str]
    open: Callable[[int], Image.Image]
    masks: MaskFolder


def follow_video(
    encoder: GroundingEncoder, files: VideoFiles, output: Path, options: VosOptions, device: torch.device | str
) -> None:
    """Track the objects of one video and write the folder `output`, atomically.

    Raises:
        ValueError: a file of another size than the frames, or masks that the options do not allow.
    """
    numbers = list(files.stems)
    prompts = choose_prompts(files, options)
    width, height = files.open(numbers[0]).size
    for object_id, frames_of_object in prompts.items():
        for mask in frames_of_object.values():
            if mask.shape != (height, width):
                raise ValueError(
                    f"{output.name}: the mask of object {object_id} is {mask.shape[1]} x {mask.shape[0]}, the frames "
                    f"are {width} x {height}"
                )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def open_frame(index: int) -> Tensor:
        return to_square(files.open(numbers[index]), encoder.image_size, options.resample).to(device)

    given = {
        object_id: {numbers.index(n): torch.from_numpy(mask).to(device) for n, mask in masks.items()}
        for object_id, masks in prompts.items()
    }
    palette = files.masks.palette()

    def write(index: int, masks: dict[int, np.ndarray]) -> None:
        put = _write_per_object if options.per_object else _write_together
        put(partial, files.stems[numbers[index]], masks, list(prompts), (height, width), palette)

    waiting = 0
    for index, logits in follow_objects(encoder, open_frame, len(numbers), given):
        for empty in range(waiting, index):  # before the first object
            write(empty, {})
        waiting = index + 1
        write(index, _full_masks(logits, height, width, options))
    partial.rename(output)


def read_video(frames: Path | str, masks: Path | str) -> VideoFiles:
    """The files of a video: `frames/*.jpg` (or png), or else a video file `frames.mp4`, whose frames count from 0; and
    masks as `masks/FRAME.png` with an id per object or `masks/OBJECT/FRAME.png`.

    Raises:
        ValueError: a file that cannot be read, or masks of frames that do not exist.
    """
    frames, masks = Path(frames), Path(masks)
    given = MaskFolder(masks)
    videos = [video for suffix in VIDEO_SUFFIXES if (video := frames.with_name(frames.name + suffix)).is_file()]
    if videos and not frames.is_dir():
        (count, *_), source = video_shape(videos[0]), videos[0]
        files = VideoFiles(
            source, {number: f"{number:05d}" for number in range(count)}, _VideoFile(source, count), given
        )
    else:
        pictures = numbered_frames(frames)
        stems = {number: path.stem for number, path in pictures.items()}
        files = VideoFiles(frames, stems, lambda number: load_image(pictures[number]), given)
    if beyond := sorted(set(given) - set(files.stems)):
        raise ValueError(f"{masks}: there are masks of frames {beyond[:5]}, which are not in {files.source}")
    return files


class _VideoFile:
    """Frames of a video file; READ_AHEAD frames are decoded together, and only these are held."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count, self.held = path, count, {}

    def __call__(self, number: int) -> Image.Image:
        if number not in self.held:
            ahead = range(number, min(number + READ_AHEAD, self.count))
            self.held = dict(zip(ahead, decode_video(self.path, ahead), strict=True))
        return self.held[number]


def choose_prompts(files: VideoFiles, options: VosOptions) -> dict[int, dict[int, np.ndarray]]:
    """{object: {frame number: mask}}: the masks that the tracker is given under these options.

    Raises:
        ValueError: objects that appear later than the options allow, ids that are too large, or no mask.
    """
    first = next(iter(files.stems))
    where = f"the first frame, {files.stems[first]} of {files.source}"
    prompts: dict[int, dict[int, np.ndarray]] = {}
    late = set()
    for number in files.masks:
        for object_id, mask in files.masks[number].items():
            if object_id in prompts and options.all_masks:
                prompts[object_id][number] = mask
            elif object_id not in prompts and mask.any():
                if number == first or options.later_objects:
                    prompts[object_id] = {number: mask}
                else:
                    late.add(object_id)
    if late:
        raise ValueError(f"objects {sorted(late)} are not on {where}; give --track_object_appearing_later_in_video")
    if prompts and max(prompts) > MAX_ID and not options.per_object:
        raise ValueError(
            f"object {max(prompts)} of {files.source}: expected an id of at most {MAX_ID}; give --per_obj_png_file"
        )
    if not prompts:
        raise ValueError(f"expected a mask of at least one object on {where}, got none")
    return dict(sorted(prompts.items()))


def _full_masks(logits: dict[int, Tensor], height: int, width: int, options: VosOptions) -> dict[int, np.ndarray]:
    """Masks at the frames' size; without overlap unless objects are written apart."""
    small = torch.stack([*logits.values()]).float()
    if options.postprocessing:
        small = torch.stack([_without_holes(mask) for mask in small])
    masks = object_masks(small, (height, width), options.score_threshold, overlap=options.per_object)
    return dict(zip(logits, masks.cpu().numpy(), strict=True))


def _without_holes(logits: Tensor) -> Tensor:
    labels = components((logits <= 0).cpu().numpy())
    small = np.bincount(labels.ravel())[labels] <= HOLE
    return logits.masked_fill(torch.from_numpy(small & (labels > 0)).to(logits.device), FILLED)


def _write_together(
    folder: Path,
    stem: str,
    masks: dict[int, np.ndarray],
    objects: list[int],
    size: tuple[int, int],
    palette: list[int] | None,
) -> None:
    wide = max(objects) > MAX_PALETTE  # then every frame is an image of 16 bits, which has no palette
    ids = np.zeros(size, np.uint16 if wide else np.uint8)
    for object_id, mask in masks.items():
        ids[mask] = object_id
    image = Image.fromarray(ids)
    if not wide:
        image.putpalette(palette or davis_palette())
    image.save(folder / f"{stem}.png")


def _write_per_object(
    folder: Path,
    stem: str,
    masks: dict[int, np.ndarray],
    objects: list[int],
    size: tuple[int, int],
    palette: list[int] | None,
) -> None:
    for object_id in objects:
        own_folder = folder / f"{object_id:03d}"
        own_folder.mkdir(exist_ok=True)
        mask = masks.get(object_id, np.zeros(size, bool))
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette(davis_palette())
        image.save(own_folder / f"{stem}.png")


def davis_palette() -> list[int]:
    """The palette of PASCAL VOC and DAVIS: 256 colours as 768 values.

    The bits of an id go to red, green and blue in turn, the lowest bits with the largest weight, so that neighbouring
    ids have different colours.
    """
    colours = []
    for number in range(256):
        colour = [0, 0, 0]
        for bit in range(8):
            colour[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        colours += colour
    return colours
