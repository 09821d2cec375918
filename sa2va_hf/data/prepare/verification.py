"""Opening a prepared folder so that a file of it which is missing, cut or changed is named before training starts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, load_from_disk

from sa2va_hf.data.prepare.manifest import NAME, Manifest, read_json

REPAIR = "copy it again, or prepare the data again (scripts/prepare_data.py)"


def open_folder(folder: Path | str, verify: bool = False) -> Dataset:
    """The rows of a folder that prepare_data.py or `datasets.save_to_disk` wrote.

    Always: all files are there and have the form of Arrow files from the first byte to the last. verify: their content
    is what the manifest says as well, at the price of reading them all (1 GB/s or so).

    Raises:
        ValueError: naming the files, what is wrong with them and what to do.
    """
    folder = Path(folder)
    files = [folder / entry["filename"] for entry in read_json(folder / "state.json").get("_data_files", [])]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such file, but {folder / 'state.json'} lists it; {REPAIR}")
    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        problems = _unreadable(files)
        raise ValueError(f"{'; '.join(problems) or f'{folder}: {error}'}; {REPAIR}") from error
    if verify:
        _check_content(folder)
    return rows


def _unreadable(files: Sequence[Path]) -> list[str]:
    problems = []
    for path in files:
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                stream.read_all()
        except (OSError, ValueError) as error:
            problems.append(f"{path} is no whole Arrow file: {error}")
    return problems


def _check_content(folder: Path) -> None:
    if not (folder / NAME).is_file():
        raise ValueError(f"`verify_data`: {folder} has no {NAME}, so nobody knows what its files should hold")
    changed = []
    for name, digest in Manifest.load(folder).shards.items():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                changed.append(str(folder / name))
    if changed:
        raise ValueError(f"{', '.join(changed)}: not what was prepared (sha256 differs from {NAME}); {REPAIR}")
