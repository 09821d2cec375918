"""Token counts of an epoch, kept on disk: a run that is started again, and each of its ranks, need not count anew."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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

    A file that cannot be read or written costs time, never the run: it is computed again.
    """
    if folder is None:
        return compute()
    path = folder / f"{key}.npy"
    try:
        lengths = np.load(path, allow_pickle=False)
        if lengths.shape == (count,):
            return lengths.astype(np.int64)
        logger.warning("%s holds %s lengths instead of %d: counting again", path, lengths.shape, count)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be read (%s): counting again", path, error)
    lengths = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{key}.{os.getpid()}.npy"
        np.save(beside, lengths.astype(np.int32))
        beside.replace(path)  # ranks may write at once: each a whole file
        _forget_oldest(sorted(folder.glob("[!.]*.npy"), key=lambda file: file.stat().st_mtime))
    except OSError as error:
        logger.warning("lengths cannot be kept in %s: %s", folder, error)
    return lengths


def _forget_oldest(files: Sequence[Path]) -> None:
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)
