"""A source's records in portions, checked in worker processes: good ones as Arrow rows, others with reasons."""

import inspect
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from sa2va_hf.data.media import load_image, video_shape
from sa2va_hf.data.prepare.exclusion import sample_keys
from sa2va_hf.data.schema import FEATURES, Media, Reject, Sample, to_row, validate
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.files import recorded_hashes
from sa2va_hf.data.sources.portions import Portion, portions_of

UNIT = 32  # records checked together and written as one Arrow batch: fixed, so that bytes do not depend on num_proc

Unit = list | Callable[[], Iterable]  # records, or what yields them


@dataclass
class Checked:
    """What became of a unit."""

    rows: pa.RecordBatch
    rejects: list[Reject] = field(default_factory=list)
    excluded: int = 0

    def __len__(self) -> int:
        return self.rows.num_rows + len(self.rejects) + self.excluded


def units(source: str, root: Any, split: str, options: dict, limit: int | None) -> Iterator[Unit]:
    """The source's records in portions of UNIT; slow ones as calls, which the workers make.

    A source that can start anywhere is left to the workers as a whole.
    """
    function = SOURCES[source]
    place = None if root is None else Path(root)
    if {"start", "count"} <= set(inspect.signature(function).parameters):
        defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
        start, count = options.get("start", defaults["start"]), options.get("count", defaults["count"])
        end = start + (count if limit is None else min(count, limit))
        for first in range(start, end, UNIT):
            yield partial(function, place, split, **options | {"start": first, "count": min(UNIT, end - first)})
        return
    records = islice(portions_of(function)(place, split, **options), limit)
    while unit := list(islice(records, UNIT)):
        yield unit


def map_in_order(function: Callable, work: Iterable[Unit], num_proc: int) -> Iterator[Any]:
    """map() over processes, in order, with a bounded number of units under way (a pool's imap would read them all)."""
    if num_proc == 1:
        yield from map(function, work)
        return
    # forked like the workers of a DataLoader: a fresh process would spend longer on importing torch than on most data
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    with ProcessPoolExecutor(num_proc, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        under_way: deque = deque()
        try:
            for unit in work:
                under_way.append(pool.submit(function, unit))
                if len(under_way) >= 4 * num_proc:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """In a worker process: ends it soon after the process that started it, however that one ended. A worker waits at a
    pipe that the other workers hold open as well, so it would stay for ever after a kill of the main process."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_unit(unit: Unit, embed_media: bool, exclude: frozenset[str], open_media: bool = True) -> Checked:
    """The rows of a unit's good samples, what is wrong with the others, and how many were excluded.

    open_media: decode and measure every picture; otherwise only see whether its file is there.
    """
    rows, rejects, excluded = [], [], 0
    for record in (record for item in (unit() if callable(unit) else unit) for record in _made(item)):
        if isinstance(record, Reject):
            rejects.append(record)
            continue
        if exclude and not exclude.isdisjoint(sample_keys(record)):
            excluded += 1
            continue
        try:
            validate(record)
            rows.append(to_row(_with_media(record, embed_media) if open_media else _with_files(record)))
        except _BadMedia as error:
            rejects.append(Reject(record.id, str(error), error.file))
        except ValueError as error:
            rejects.append(Reject(record.id, str(error).removeprefix(f"sample {record.id!r}: ")))
    return Checked(pa.RecordBatch.from_pylist(rows, schema=FEATURES.arrow_schema), rejects, excluded)


def _made(item: Sample | Reject | Portion) -> Iterable[Sample | Reject]:
    if not callable(item):
        return (item,)
    with recorded_hashes():  # files of one picture or clip: not the source's, in whichever process they are read
        return list(item())


class _BadMedia(ValueError):
    def __init__(self, reason: str, media: Media) -> None:
        super().__init__(reason)
        self.file = media if isinstance(media, str) else ""


def _with_files(sample: Sample) -> Sample:
    """The sample, whose files are there."""
    for media in [*sample.frames, sample.video]:
        if isinstance(media, str) and not Path(media).is_file():
            raise _BadMedia(f"{media}: no such file", media)
    return sample


def _with_media(sample: Sample, embed: bool) -> Sample:
    """The sample after its files were opened, decoded and measured; with their bytes in place of paths if `embed`."""
    for number, frame in enumerate(sample.frames):
        try:
            size = load_image(frame).size
        except ValueError as error:
            raise _BadMedia(str(error), frame) from error
        _check_size(f"frame {number}", size, sample, frame)
    if sample.video is not None:
        try:
            count, *size = video_shape(sample.video)
        except ValueError as error:
            raise _BadMedia(str(error), sample.video) from error
        if count != sample.num_frames:
            raise _BadMedia(f"the video has {count} frames, num_frames says {sample.num_frames}", sample.video)
        _check_size("the video", tuple(size), sample, sample.video)
    if not embed:
        return sample
    video = None if sample.video is None else _bytes(sample.video)
    return replace(sample, frames=[_bytes(frame) for frame in sample.frames], video=video)


def _check_size(name: str, size: tuple[int, int], sample: Sample, media: Media) -> None:
    if size == (sample.width, sample.height):
        return
    turned = size == (sample.height, sample.width)
    hint = " (is one of them turned? pictures are turned upright by their EXIF orientation)" if turned else ""
    annotated = f"{sample.width} x {sample.height}"
    raise _BadMedia(f"{name} is {size[0]} x {size[1]} but its annotation is for {annotated}{hint}", media)


def _bytes(media: Media) -> bytes:
    return media if isinstance(media, bytes) else Path(media).read_bytes()
