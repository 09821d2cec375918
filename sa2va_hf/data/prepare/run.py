"""A source's samples, checked once and written as Arrow: what training reads is known to be good.

output/data-00000.arrow, ...    rows of `schema.FEATURES`; `datasets.load_from_disk(output)` opens them
output/manifest.json            what it was made from and what is in it (`Manifest`)

Made by several machines, the Arrow files lie in output/part-1-of-4 and so on, each with a manifest of its own, and the
last machine to finish writes the index over all of them.
"""

import inspect
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sa2va_hf.data.prepare.checking import check_unit, map_in_order, units
from sa2va_hf.data.prepare.exclusion import read_exclusions
from sa2va_hf.data.prepare.manifest import NAME, Manifest, PrepareError, joined, judge
from sa2va_hf.data.prepare.shards import PROGRESS, ShardWriter, resume, sample_ids, write_index
from sa2va_hf.data.schema import Reject
from sa2va_hf.data.sources import SOURCES
from sa2va_hf.data.sources.files import recorded_hashes

logger = logging.getLogger(__name__)

__all__ = ["Manifest", "PrepareError", "check", "prepare"]


def prepare(
    source: str,
    root: Path | str | None,
    split: str,
    output: Path | str,
    *,
    num_proc: int = 1,
    embed_media: bool = False,
    limit: int | None = None,
    exclude: Sequence[Path | str] = (),
    shard: tuple[int, int] | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Reads `source` (a key of SOURCES) at `root`, checks every record and its media, writes the folder `output`.

    The folder is written beside its place and moved there when complete, and is the same, byte for byte, for any
    num_proc (worker processes) and however often the run was killed: the same call resumes after the last finished
    Arrow file. embed_media: store the files themselves instead of their paths. limit: read at most that many records.
    exclude: lists of pictures to exclude (`read_exclusions`). shard: (i, n), 1 <= i <= n: do the i-th of n equal
    parts; when all n are there, they become one. options: the source's own. progress: called with the number of
    records done since last time.

    Returns the manifest of what was written: of the part, while others are missing.

    Raises:
        PrepareError: records cannot be used (all are listed) and skip_bad is False, or none can. With skip_bad they
            are skipped, counted, and listed in the manifest.
        ValueError: unknown source or option, unusable annotation file or list, `output` exists and overwrite is False,
            or parts that do not belong together.
    """
    output = Path(output)
    manifest = _manifest(source, root, split, options, num_proc, limit, embed_media, skip_bad, exclude)
    work = partial(_write, manifest=manifest, num_proc=num_proc, exclude=exclude, progress=progress)
    if shard is None:
        _check_output(output, overwrite)
        done = work(output)
    else:
        done = _prepare_part(output, shard, manifest, overwrite, work)
    logger.info("%s: %d samples, %d rejects, %d excluded", output, done.samples, len(done.rejects), done.excluded)
    if differing := done.departs_from_release():
        logger.warning(differing)
    return done


def check(
    source: str,
    root: Path | str | None,
    split: str,
    *,
    num_proc: int = 1,
    limit: int | None = None,
    exclude: Sequence[Path | str] = (),
    options: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """What `prepare` would find, without writing and without decoding pictures: the manifest, with all rejects.

    Every file that a record names is looked for, so a download can be checked in minutes. Errors as `prepare`, but bad
    records are no error here.
    """
    manifest = _manifest(source, root, split, options, num_proc, limit, False, True, exclude)
    keys, _ = read_exclusions(exclude)
    look = partial(check_unit, embed_media=False, exclude=keys, open_media=False)
    with recorded_hashes() as manifest.annotation_files:
        for checked in map_in_order(look, units(source, root, split, manifest.options, limit), num_proc):
            manifest.rejects += checked.rejects
            manifest.excluded += checked.excluded
            manifest.count(checked.rows)
            if progress is not None:
                progress(len(checked))
    return manifest


# ---------------------------------------------------------------- arguments


def _manifest(
    source: str, root: Any, split: str, options: dict | None, num_proc: int, limit: int | None, *how: Any
) -> Manifest:
    """An empty manifest of a call whose arguments are right. how: embed_media, skip_bad, exclude."""
    options = dict(options or {})
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; there are {', '.join(SOURCES)}")
    parameters = inspect.signature(SOURCES[source]).parameters
    own = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if unknown := sorted(set(options) - set(own)) if not open_ended else []:
        raise ValueError(f"source {source!r} has no option {', '.join(unknown)}; it has {', '.join(own)}")
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"root {root} is not a folder")
    if root is None and parameters["root"].default is inspect.Parameter.empty:
        raise ValueError(f"source {source!r} reads files: a root folder is needed")
    if num_proc < 1 or (limit is not None and limit < 1):
        raise ValueError(f"num_proc and limit must be positive, got {num_proc} and {limit}")
    embed_media, skip_bad, exclude = how
    place = None if root is None else str(root)
    return Manifest(source, split, place, options, embed_media, limit, skip_bad, None, read_exclusions(exclude)[1])


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / NAME).is_file():
        raise ValueError(f"{output} exists and is not a prepared folder (no {NAME}): it is not touched")
    if not overwrite:
        raise ValueError(f"{output} is prepared already; add --overwrite to make it again, or name another output")


# ---------------------------------------------------------------- writing


def _write(
    output: Path,
    manifest: Manifest,
    num_proc: int,
    exclude: Sequence[Path | str],
    progress: Callable | None,
    shard: tuple[int, int] = (1, 1),
) -> Manifest:
    """Writes a folder, or resumes one."""
    folder = output.with_name(f".{output.name}.partial")
    writer = resume(folder, manifest)
    if writer is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        writer = ShardWriter(folder, manifest)
    else:
        logger.info("%s: resumed after %d units of records", folder, writer.units_done)
    try:
        _fill(writer, num_proc, exclude, progress, shard)
        judge(writer.manifest)
        write_index(folder, writer.manifest)
        writer.manifest.save(folder)
        (folder / PROGRESS).unlink(missing_ok=True)
        _replace(folder, output)
    except ValueError:  # a run that failed starts anew; one that was killed is resumed
        shutil.rmtree(folder)
        raise
    finally:
        if folder.exists() and not (folder / PROGRESS).exists():
            shutil.rmtree(folder)
    return writer.manifest


def _fill(writer: ShardWriter, num_proc: int, exclude: Sequence, progress: Callable | None, shard: tuple) -> None:
    manifest, first = writer.manifest, writer.units_done
    keys, _ = read_exclusions(exclude)
    look = partial(check_unit, embed_media=manifest.embed_media, exclude=keys)
    with recorded_hashes() as hashes:
        everything = units(manifest.source, manifest.root, manifest.split, manifest.options, manifest.limit)
        mine = islice(everything, shard[0] - 1, None, shard[1])
        try:
            for checked in map_in_order(look, islice(mine, first, None), num_proc):
                manifest.annotation_files = {**hashes, **manifest.annotation_files}
                writer.write(checked)
                if progress is not None:
                    progress(len(checked))
            manifest.annotation_files = {**hashes, **manifest.annotation_files}
            writer.finish()
        finally:
            writer.close()
    if changed := [file for file, digest in hashes.items() if manifest.annotation_files[file] != digest]:
        raise ValueError(f"{', '.join(changed)} changed since the run that was interrupted: run it again")


def _replace(folder: Path, output: Path) -> None:
    """Moves a complete folder to its place; what was there is deleted only after that."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.rename(output, old)
    os.rename(folder, output)
    shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------- several machines


def _prepare_part(
    output: Path, shard: tuple[int, int], manifest: Manifest, overwrite: bool, work: Callable
) -> Manifest:
    number, count = shard
    if not 1 <= number <= count:
        raise ValueError(f"shard must be i/n with 1 <= i <= n, got {number}/{count}")
    names = [f"part-{one}-of-{count}" for one in range(1, count + 1)]
    parts, own = [output / name for name in names], output / names[number - 1]
    if (output / NAME).exists() and not overwrite:
        raise ValueError(f"{output} is prepared already; add --overwrite to make it again, or name another output")
    foreign = [one.name for one in output.iterdir() if not _of_parts(one.name)] if output.is_dir() else []
    if foreign:
        raise ValueError(f"{output} holds {foreign[0]}, which is no part of a dataset: it is not touched")
    manifest.shard = f"{number}/{count}"
    if overwrite or not (own / NAME).is_file():
        (output / NAME).unlink(missing_ok=True)  # what it says of the whole is no longer so
        _check_output(own, overwrite)
        work(own, shard=shard)
    if missing := [part.name for part in parts if not (part / NAME).is_file()]:
        logger.info("%s: still missing: %s", output, ", ".join(missing))
        return Manifest.load(own)
    whole = joined([Manifest.load(part) for part in parts], names)
    _check_ids(output, whole)
    judge(whole)
    write_index(output, whole)
    whole.save(output)  # last: a folder with a manifest is complete
    return whole


def _check_ids(output: Path, whole: Manifest) -> None:
    """PrepareError when two machines have the same id: which sample is meant is not known."""
    places: dict[str, str] = {}
    rejects = []
    for sample_id, place in sample_ids(output, whole):
        if sample_id in places:
            rejects.append(Reject(sample_id, f"id {sample_id!r} occurs in {places[sample_id]} and in {place}"))
        places[sample_id] = place
    if rejects:
        raise PrepareError(
            f"{len(rejects)} ids occur in two parts, as {rejects[0].id!r}: prepare them as one", rejects
        )


def _of_parts(name: str) -> bool:
    return name.lstrip(".").startswith(("part-", NAME, "state.json", "dataset_info.json"))
