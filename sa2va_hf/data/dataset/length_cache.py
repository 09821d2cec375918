"""Token counts of an epoch, kept on disk: a run that is started again, and each of its ranks, need not count anew."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: every process counts for itself
    fcntl = None

logger = logging.getLogger(__name__)

KEPT = 100  # files; the oldest go first
VERSION = 1  # raise it when the counts of the same data change


def default_folder() -> Path:
    """sa2va_hf/lengths beside the other caches of Hugging Face (HF_HOME)."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "sa2va_hf" / "lengths"


def processor_fingerprint(processor: Any) -> str:
    """A hash of all that token counts follow from: the tokenizer, and the processor's settings."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(processor.tokenizer.get_vocab())
    return fingerprint(vocabulary, json.dumps(processor.to_dict(), sort_keys=True, default=str))


def fingerprint(*facts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, (VERSION, *facts))).encode()).hexdigest()


def cached(folder: Path | None, key: str, count: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The (count,) lengths kept under `key`, or those that are computed, and kept from then on.

    Of several processes that ask at once, one computes and the others wait for its file. A file that cannot be read,
    written or locked costs time, never the run: it is computed again.
    """
    if folder is None:
        return compute()
    path = folder / f"{key}.npy"
    lengths = _read(path, count)
    if lengths is not None:
        return lengths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        logger.warning("lengths cannot be kept in %s: %s", folder, error)
        return compute()
    with lock:
        _wait_for(lock)
        lengths = _read(path, count)
        if lengths is None:
            lengths = compute()
            _keep(path, lengths)
    return lengths


def _read(path: Path, count: int) -> np.ndarray | None:
    try:
        lengths = np.load(path, allow_pickle=False)
        if lengths.shape == (count,):
            return lengths.astype(np.int64)
        logger.warning("%s holds %s lengths instead of %d: counting again", path, lengths.shape, count)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be read (%s): counting again", path, error)
    return None


def _wait_for(lock: IO[str]) -> None:
    """Until no other process has the lock. The system unlocks it when its process ends, however it ends."""
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # a file system without locks: every process counts for itself
        logger.debug("%s cannot be locked: %s", lock.name, error)


def _keep(path: Path, lengths: np.ndarray) -> None:
    try:
        beside = path.parent / f".{path.stem}.{os.getpid()}.npy"
        np.save(beside, lengths.astype(np.int32))
        beside.replace(path)  # a reader finds a whole file or none
        _forget_oldest(sorted(path.parent.glob("[!.]*.npy"), key=lambda file: file.stat().st_mtime))
    except OSError as error:
        logger.warning("lengths cannot be kept in %s: %s", path.parent, error)


def _forget_oldest(files: Sequence[Path]) -> None:
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)
