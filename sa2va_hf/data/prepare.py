"""A source's samples, checked once and written as Arrow: what training reads is known to be good.

output/data-00000.arrow, ...    rows of `schema.FEATURES`; `datasets.load_from_disk(output)` opens them
output/manifest.json            what it was made from and what is in it (`Manifest`)
"""

import hashlib
import inspect
import json
import logging
import multiprocessing
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import DatasetInfo

from sa2va_hf.data.media import load_image, video_shape
from sa2va_hf.data.schema import FEATURES, Media, Reject, Sample, to_row, validate
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.files import recorded_hashes

logger = logging.getLogger(__name__)

UNIT = 32  # records checked together and written as one Arrow batch: fixed, so that bytes do not depend on num_proc
SHARD_BYTES = 500 * 2**20

Unit = list | Callable[[], Iterable]  # records, or what yields them


@dataclass
class Manifest:
    """What a prepared folder was made from and holds (manifest.json). masks: those annotated, per object and frame."""

    source: str
    split: str
    root: str | None
    options: dict[str, Any]
    embed_media: bool
    limit: int | None
    samples: int = 0
    frames: int = 0
    objects: int = 0
    masks: int = 0
    expressions: int = 0
    turns: int = 0
    tasks: dict[str, int] = field(default_factory=dict)  # samples per task
    kinds: dict[str, int] = field(default_factory=dict)  # expressions per kind
    annotation_files: dict[str, str] = field(default_factory=dict)  # path -> sha256
    shards: dict[str, str] = field(default_factory=dict)  # file name -> sha256
    rejects: list[Reject] = field(default_factory=list)

    def count(self, rows: pa.RecordBatch) -> None:
        """Enters some samples."""
        self.samples += rows.num_rows
        self.frames += sum(rows["num_frames"].to_pylist())
        self.objects += sum(rows["num_objects"].to_pylist())
        self.masks += sum(rows["num_masks"].to_pylist())
        self.turns += sum(map(len, rows["turns"].to_pylist()))
        self.tasks = dict(Counter(self.tasks) + Counter(rows["task"].to_pylist()))
        expressions = [expression for of_row in rows["expressions"].to_pylist() for expression in of_row]
        self.expressions += len(expressions)
        self.kinds = dict(Counter(self.kinds) + Counter(expression["kind"] for expression in expressions))


class PrepareError(ValueError):
    """Records that cannot be used; `rejects` holds all of them."""

    def __init__(self, message: str, rejects: list[Reject]) -> None:
        super().__init__(message)
        self.rejects = rejects


def prepare(
    source: str,
    root: Path | str | None,
    split: str,
    output: Path | str,
    *,
    num_proc: int = 1,
    embed_media: bool = False,
    limit: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Reads `source` (a key of SOURCES) at `root`, checks every record and its media, writes the folder `output`.

    The folder is written beside its place and moved there when complete, and is the same, byte for byte, for any
    num_proc (worker processes). embed_media: store the files themselves instead of their paths. limit: read at most
    that many records. options: the source's own. progress: called with the number of records done since last time.

    Raises:
        PrepareError: records cannot be used (all are listed) and skip_bad is False, or none can. With skip_bad they
            are left out, counted, and listed in the manifest.
        ValueError: unknown source or option, unusable annotation file, or `output` exists and overwrite is False.
    """
    output = Path(output)
    options = dict(options or {})
    _check_arguments(source, root, split, options, num_proc, limit)
    _check_output(output, overwrite)
    manifest = Manifest(source, split, None if root is None else str(root), options, embed_media, limit)
    partial_folder = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)  # of a run that was killed
    partial_folder.mkdir(parents=True)
    try:
        with recorded_hashes() as manifest.annotation_files:
            units = _units(source, root, split, options, limit)
            done = _map_in_order(partial(_check_unit, embed_media=embed_media), units, num_proc)
            _write(done, partial_folder, manifest, skip_bad, progress)
        _judge(manifest, skip_bad)
        _write_json(partial_folder / "manifest.json", asdict(manifest))
        _replace(partial_folder, output)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    logger.info("%s: %d samples, %d rejects", output, manifest.samples, len(manifest.rejects))
    return manifest


# ---------------------------------------------------------------- arguments


def _check_arguments(source: str, root: Any, split: str, options: dict, num_proc: int, limit: int | None) -> None:
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; there are {', '.join(SOURCES)}")
    parameters = inspect.signature(SOURCES[source]).parameters
    own = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if unknown := sorted(set(options) - set(own)) if not open_ended else []:
        raise ValueError(f"source {source!r} has no option {', '.join(unknown)}; it has {', '.join(own)}")
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"root {root} is not a folder")
    if root is None and source != "shapes":
        raise ValueError(f"source {source!r} reads files: a root folder is needed")
    if num_proc < 1 or (limit is not None and limit < 1):
        raise ValueError(f"num_proc and limit must be positive, got {num_proc} and {limit}")


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "manifest.json").is_file():
        raise ValueError(f"{output} exists and is not a prepared folder (no manifest.json): it is not touched")
    if not overwrite:
        raise ValueError(f"{output} is prepared already; add --overwrite to make it again, or name another output")


def _judge(manifest: Manifest, skip_bad: bool) -> None:
    rejects = manifest.rejects
    if rejects and (not skip_bad or manifest.samples == 0):
        shown = "".join(f"\n  {reject.id}: {reject.reason}" for reject in rejects[:20])
        more = f"\n  ... and {len(rejects) - 20} more" if len(rejects) > 20 else ""
        what = "none of the records can" if manifest.samples == 0 else f"{len(rejects)} records cannot"
        advice = "" if skip_bad else "\nNothing was written. Repair them, or leave them out with --skip_bad."
        raise PrepareError(f"{what} be used:{shown}{more}{advice}", rejects)
    if manifest.samples == 0:
        raise ValueError(f"source {manifest.source!r} at {manifest.root} has no samples in split {manifest.split!r}")


# ---------------------------------------------------------------- reading and checking


def _units(source: str, root: Any, split: str, options: dict, limit: int | None) -> Iterator[Unit]:
    """The source's records in portions of UNIT. A source that can start anywhere is left to the workers to run."""
    function = SOURCES[source]
    place = None if root is None else Path(root)
    if {"start", "count"} <= set(inspect.signature(function).parameters):
        defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
        start, count = options.get("start", defaults["start"]), options.get("count", defaults["count"])
        end = start + (count if limit is None else min(count, limit))
        for first in range(start, end, UNIT):
            yield partial(function, place, split, **options | {"start": first, "count": min(UNIT, end - first)})
        return
    records = islice(function(place, split, **options), limit)
    while unit := list(islice(records, UNIT)):
        yield unit


def _map_in_order(function: Callable, units: Iterable[Unit], num_proc: int) -> Iterator[Any]:
    """map() over processes, in order, with a bounded number of units under way (a pool's imap would read them all)."""
    if num_proc == 1:
        yield from map(function, units)
        return
    # forked like the workers of a DataLoader: a fresh process would spend longer on importing torch than on most data
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    with ProcessPoolExecutor(num_proc, mp_context=context) as pool:
        under_way: deque = deque()
        try:
            for unit in units:
                under_way.append(pool.submit(function, unit))
                if len(under_way) >= 4 * num_proc:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_unit(unit: Unit, embed_media: bool) -> tuple[pa.RecordBatch, list[Reject]]:
    """The rows of a unit's good samples, and what is wrong with the others."""
    rows, rejects = [], []
    for record in unit() if callable(unit) else unit:
        if isinstance(record, Reject):
            rejects.append(record)
            continue
        try:
            validate(record)
            rows.append(to_row(_with_media(record, embed_media)))
        except _BadMedia as error:
            rejects.append(Reject(record.id, str(error), error.file))
        except ValueError as error:
            rejects.append(Reject(record.id, str(error).removeprefix(f"sample {record.id!r}: ")))
    return pa.RecordBatch.from_pylist(rows, schema=FEATURES.arrow_schema), rejects


class _BadMedia(ValueError):
    def __init__(self, reason: str, media: Media) -> None:
        super().__init__(reason)
        self.file = media if isinstance(media, str) else ""


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


# ---------------------------------------------------------------- writing


def _write(done: Iterable, folder: Path, manifest: Manifest, skip_bad: bool, progress: Callable | None) -> None:
    """Writes the batches as shards that `datasets.load_from_disk` opens; counts and rejects go into the manifest."""
    seen: set[str] = set()
    shards = _Shards(folder)
    try:
        for batch, rejects in done:
            records = batch.num_rows + len(rejects)
            fresh = []
            for row, sample_id in enumerate(batch["id"].to_pylist()):
                if sample_id in seen:
                    rejects.append(Reject(sample_id, f"id {sample_id!r} occurs twice"))
                else:
                    fresh.append(row)
                    seen.add(sample_id)
            manifest.rejects += rejects
            manifest.count(batch := batch.take(pa.array(fresh, pa.int64())))
            if batch.num_rows and (skip_bad or not manifest.rejects):  # else nothing will be kept anyway
                shards.write(batch)
            if progress is not None:
                progress(records)
    finally:
        manifest.shards = shards.close()
    DatasetInfo(features=FEATURES).write_to_directory(str(folder))
    state = {  # what load_from_disk reads; the fingerprint is of the content, so that caches see a change
        "_data_files": [{"filename": name} for name in manifest.shards],
        "_fingerprint": hashlib.sha256("".join(manifest.shards.values()).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": manifest.split,
    }
    _write_json(folder / "state.json", state)


class _Shards:
    """Arrow stream files of about SHARD_BYTES each, written one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes: dict[str, str] = {}  # finished shards
        self.file = self.stream = None

    def write(self, batch: pa.RecordBatch) -> None:
        if self.stream is None:
            self.path = self.folder / f"data-{len(self.hashes):05d}.arrow"
            self.file = pa.OSFile(str(self.path), "wb")
            self.stream = pa.ipc.new_stream(self.file, FEATURES.arrow_schema)
        self.stream.write_batch(batch)
        if self.file.tell() > SHARD_BYTES:
            self._finish()

    def _finish(self) -> None:
        self.stream.close()
        self.file.close()
        with open(self.path, "rb") as file:
            self.hashes[self.path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        self.stream = None

    def close(self) -> dict[str, str]:
        """File names and their sha256."""
        if self.stream is not None:
            self._finish()
        return self.hashes


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _replace(folder: Path, output: Path) -> None:
    """Moves a complete folder to its place; what was there is deleted only after that."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.rename(output, old)
    os.rename(folder, output)
    shutil.rmtree(old, ignore_errors=True)
