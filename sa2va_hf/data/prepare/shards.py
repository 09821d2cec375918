"""Arrow files of a prepared folder, written one after the other, and the note from which a killed run is resumed."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from datasets import DatasetInfo

from sa2va_hf.data.prepare.checking import Checked
from sa2va_hf.data.prepare.manifest import Manifest, read_json, write_json
from sa2va_hf.data.schema import FEATURES, Reject

SHARD_BYTES = 500 * 2**20
SHARD_FRAMES = 20_000  # a few minutes of decoding: no more than that is lost when a run is killed
PROGRESS = "progress.json"


class ShardWriter:
    """Writes units into Arrow stream files in `folder` and counts them in `manifest`.

    A file ends when it has SHARD_BYTES or SHARD_FRAMES, so its content does not depend on interruptions. With every
    finished file progress.json says how many units are done.
    """

    def __init__(self, folder: Path, manifest: Manifest, units_done: int = 0) -> None:
        self.folder, self.manifest, self.units_done = folder, manifest, units_done
        self.stream: pa.RecordBatchStreamWriter | None = None
        self.file: pa.NativeFile | None = None
        self.frames = 0
        self.seen = {sample_id for sample_id, _ in sample_ids(folder, manifest)}

    def write(self, checked: Checked) -> None:
        manifest, rows = self.manifest, checked.rows
        fresh = []
        for row, sample_id in enumerate(rows["id"].to_pylist()):
            if sample_id in self.seen:
                checked.rejects.append(Reject(sample_id, f"id {sample_id!r} occurs twice"))
            else:
                fresh.append(row)
                self.seen.add(sample_id)
        if len(fresh) < rows.num_rows:
            rows = rows.take(pa.array(fresh, pa.int64()))
        manifest.rejects += checked.rejects
        manifest.excluded += checked.excluded
        manifest.count(rows)
        self.units_done += 1
        if manifest.rejects and not manifest.skip_bad:
            return  # nothing will be kept: the rest is only looked at, to list all that is wrong
        if rows.num_rows:
            if self.stream is None:
                self.file = pa.OSFile(str(self._path), "wb")
                self.stream = pa.ipc.new_stream(self.file, FEATURES.arrow_schema)
            self.stream.write_batch(rows)
            self.frames += sum(max(count, 1) for count in rows["num_frames"].to_pylist())
            if self.file.tell() >= SHARD_BYTES or self.frames >= SHARD_FRAMES:
                self.finish()

    @property
    def _path(self) -> Path:
        return self.folder / f"data-{len(self.manifest.shards):05d}.arrow"

    def finish(self) -> None:
        """Closes the file that is being written and notes the progress."""
        self.close()
        if self.file is None:
            return
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            self.manifest.shards[self._path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        self.file, self.frames = None, 0
        write_json(self.folder / PROGRESS, {"units": self.units_done, "manifest": asdict(self.manifest)})

    def close(self) -> None:
        """Closes the file that is being written as it is."""
        if self.stream is not None:
            self.stream.close()
            self.file.close()
            self.stream = None


def sample_ids(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(id, Arrow file) of all samples in the files that are written."""
    for name in manifest.shards:
        with pa.memory_map(str(folder / name)) as file:
            for batch in pa.ipc.open_stream(file):
                yield from ((sample_id, name) for sample_id in batch["id"].to_pylist())


def resume(folder: Path, manifest: Manifest) -> ShardWriter | None:
    """The writer that resumes a killed run of the same recipe; None where there is none."""
    try:
        progress = read_json(folder / PROGRESS)
        before = Manifest.from_dict(progress["manifest"], folder / PROGRESS)
    except (ValueError, KeyError):
        return None
    there = all((folder / name).is_file() for name in before.shards)
    if before.recipe() != manifest.recipe() or not there:
        return None
    return ShardWriter(folder, before, int(progress["units"]))


def write_index(folder: Path, manifest: Manifest) -> None:
    """What `datasets.load_from_disk` reads: the features and the list of Arrow files."""
    DatasetInfo(features=FEATURES).write_to_directory(str(folder))
    digests: Iterable[str] = manifest.shards.values()
    state = {  # the fingerprint is of the content, so that caches see a change
        "_data_files": [{"filename": name} for name in manifest.shards],
        "_fingerprint": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": manifest.split,
    }
    write_json(folder / "state.json", state)
