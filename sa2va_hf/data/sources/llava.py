"""Dialogues about a picture, a clip or nothing, in the form of LLaVA-Instruct.

    llava                       ROOT/llava_v1_5_mix665k.json, llava_instruct_150k.json, llava_instruct_80k.json or own
                                ROOT/coco/train2017/000000033471.jpg
    vstar_possible_locations    ROOT/possible_locations_conv_86k.json (V*), pictures of COCO train2017
    chatunivi                   ROOT/video_chat.json, ROOT/Activity_Videos/v_abc.mp4

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",      or "video": "v_abc.mp4", or neither
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "..."}]}, ...]

"<image>" and "<video>" are taken out of the texts: the visuals come first, whatever their place, as in the reference.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sa2va_hf.data.media import video_shape
from sa2va_hf.data.schema import IMAGE_TAG, Reject, Sample, Turn
from sa2va_hf.data.sources.clips import clip_size, numbered_frames, paths
from sa2va_hf.data.sources.dialogue import read_turns
from sa2va_hf.data.sources.files import (
    annotation_file,
    find_picture,
    read_records,
    unique_id,
    upright_size,
)
from sa2va_hf.listings import listed

logger = logging.getLogger(__name__)

FILES = {
    "llava": ("llava_v1_5_mix665k.json", "llava_instruct_150k.json", "llava_instruct_80k.json"),
    "vstar_possible_locations": ("possible_locations_conv_86k.json",),
    "chatunivi": ("video_chat.json",),
}
FILE_FOLDERS = ("", "LLaVA-Instruct-150K", "llava_dataset", "vsm_vqa_data", "annotations")
IMAGE_FOLDERS = (
    "llava_images",
    "images",
    "",
    "coco/train2017",
    "coco2017/train2017",
    "coco_2017/train2017",
    "train2017",
    "../coco/train2017",
    "../coco2017/train2017",
)
VIDEO_FOLDERS = ("Activity_Videos", "videos", "Videos", "")
VIDEO_TAG = "<video>"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


def llava(
    root: Path | str,
    split: str,
    *,
    name: str = "llava",
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    videos: Path | str | None = None,
) -> Iterator[Sample | Reject]:
    """One sample per row, with its whole dialogue.

    A dialogue that begins with an answer loses it, and one that ends with a question loses that: how many messages
    these are is logged at the end. Rows with several pictures are rejected: a sample has one picture or one clip. A
    video may also be a folder of numbered frames, or have another suffix than the row says. annotations, images,
    videos: the file and the folders, where they are elsewhere. Raises ValueError when the file is missing or no list,
    or when several of the usual files are there.
    """
    root = Path(root)
    path = _annotations(root, split, name, annotations)
    picture_folders = [Path(images)] if images else [root / place for place in IMAGE_FOLDERS]
    video_folders = [Path(videos)] if videos else [root / place for place in VIDEO_FOLDERS]
    seen: dict[str, int] = {}
    left_out = 0
    for number, row in enumerate(read_records(path)):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"row {number} must be a dict with conversations, got {type(row).__name__}")
            sample_id = unique_id(f"row {number}" if row.get("id") is None else str(row["id"]), seen)
            sample = Sample(sample_id, "conversation", source=name)
            pairs, single = read_turns(row.get("conversations"))
            sample.turns = _turns(pairs, has_visual=any(row.get(key) for key in ("image", "video")))
            _add_visual(sample, row, picture_folders, video_folders)
            left_out += single
            yield sample
        except ValueError as error:
            label = str(row.get("id", "")) if isinstance(row, dict) else ""
            yield Reject(f"row {number} ({label})" if label else f"row {number}", str(error), str(path))
    if left_out:
        logger.info("%s: %d messages without a question or an answer are skipped", path, left_out)


def _annotations(root: Path, split: str, name: str, given: Path | str | None) -> Path:
    usual = [root / f"{split}.json"]
    if split in ("train", "all"):
        usual += [root / folder / file for folder in FILE_FOLDERS for file in FILES[name]]
    there = [path for path in usual if path.is_file()]
    if given is None and len(there) > 1:
        raise ValueError(f"which of {listed(there)} is meant? Name it with --option annotations=FILE")
    return annotation_file(root, given, usual)


def _turns(pairs: list[tuple[str, str]], has_visual: bool) -> list[Turn]:
    tags = sum(question.count(tag) for question, _ in pairs for tag in (IMAGE_TAG, VIDEO_TAG))
    if tags > 1:
        raise ValueError(f"its questions place {tags} pictures or clips: one can be used")
    if tags and not has_visual:
        raise ValueError("its question places a picture, but the row has neither 'image' nor 'video'")
    turns = []
    for number, (question, answer) in enumerate(pairs):
        text = question.replace(IMAGE_TAG, "").replace(VIDEO_TAG, "").strip()
        if not text:
            raise ValueError(f"question {number} is nothing but the place of a picture")
        turns.append(Turn(text, answer.strip()))
    return turns


def _add_visual(sample: Sample, row: dict, pictures: list[Path], videos: list[Path]) -> None:
    """The row's picture or clip, and its size. None of them: the sample stays text only."""
    image, video = _single(row, "image"), _single(row, "video")
    if image and video:
        raise ValueError(f"it has both a picture and a video: {image!r} and {video!r}")
    if image:
        file = find_picture(image, pictures)
        sample.width, sample.height = upright_size(file)
        sample.frames, sample.num_frames = [os.path.abspath(file)], 1
    elif video:
        clip = _find_video(video, videos)
        if clip.is_dir():
            files = list(numbered_frames(clip).values())
            sample.width, sample.height = clip_size(files)
            sample.frames, sample.num_frames = paths(files), len(files)
        else:
            sample.num_frames, sample.width, sample.height = video_shape(clip)
            sample.video = os.path.abspath(clip)
    sample.annotated = list(range(sample.num_frames))


def _single(row: dict, key: str) -> str | None:
    """The name of the row's picture or video, None without. A list of one is one."""
    value: Any = row.get(key)
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError(f"{key!r} holds {len(value)} files: a sample has one picture or one clip")
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key!r} must be the name of a file, got {value!r:.80}")
    return value or None


def _find_video(name: str, folders: list[Path]) -> Path:
    """The file of a video, also with another suffix (ActivityNet's .mkv come as .mp4), or the folder of its frames."""
    stem = Path(name).with_suffix("")
    for folder in folders:
        for candidate in (folder / name, *(folder / f"{stem}{suffix}" for suffix in VIDEO_SUFFIXES)):
            if candidate.is_file():
                return candidate
        for candidate in (folder / name, folder / stem):
            if candidate.is_dir():
                return candidate
    raise ValueError(f"video {name} not found; looked in {', '.join(map(str, folders))}")
