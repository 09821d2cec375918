"""What is trained on: prepared datasets, and how much each counts.

A mixture is a list, in a run's YAML or in a file of its own. `repeats`: how often each sample occurs in an epoch;
2.5 is every one twice and a random half once more. `samples`: how many an epoch has of it, whatever its size. Both
hold over the samples that the run can use.

    - {path: data/prepared/refcoco_train, repeats: 4}
    - {path: hf://datasets/me/my-segmentation-data, samples: 10000}  # a prepared one, pushed to the Hub

`answer`: what its expressions are answered with: masks (the default), boxes as text, or both. Fixed dialogues stay as
they are.

    - {path: data/prepared/refcoco_train, answer: boxes}

A file may give weights instead, which may be nested; entries without a weight count alike (as in LISA's
`sample_rates`):

    samples_per_epoch: 80000
    parts:
      - weight: 9
        parts: [{path: data/prepared/ade20k_train}, {path: data/prepared/cocostuff_train}]
      - {path: data/prepared/reason_seg_train, weight: 1}

With `sampling: rates` beside them, the samples of each dataset are sampled with replacement, as in LISA's training;
without it (`sampling: interleave`) every sample of a dataset is used before one is used twice. The shares of an epoch
are the stated ones in both cases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from .yaml_values import coerce, read_yaml, suggest

__all__ = ["MixtureEntry", "mixture"]

HUB = "hf://datasets/"  # in front of a dataset's id on the Hub
ANSWERS = ("masks", "boxes", "both")
_EXPECTED = "expected {path: DIR, repeats: 1.0}"


@dataclass
class MixtureEntry:
    """One dataset of a mixture: a folder that prepare_data.py wrote or one on the Hub, and how much it counts."""

    path: str
    repeats: float = 1.0
    samples: float | None = None
    split: str = "train"  # of a Hub dataset; a folder holds one
    answer: str = "masks"  # of its expressions
    replacement: bool = False  # set by `sampling: rates`

    def __post_init__(self) -> None:
        for name in ("repeats", "samples"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"`{name}` of {self.path}: expected a number above 0, got {getattr(self, name)}")
        if self.answer not in ANSWERS:
            raise ValueError(f"`answer` of {self.path}: expected {', '.join(ANSWERS)}, got {self.answer!r}")
        if self.samples is not None and self.repeats != 1:
            raise ValueError(f"{self.path}: `samples` and `repeats` exclude each other, both are given")


Entry = TypeVar("Entry", bound=MixtureEntry)


def mixture(value: list[dict[str, Any]] | str | None, name: str, kind: type[Entry] = MixtureEntry) -> list[Entry]:
    """`value` as a list of entries: such a list, a YAML file (of a list, or of weights), or one prepared folder.

    kind: the dataclass of an entry; its fields are the keys that an entry may have.

    Raises:
        ValueError: naming `name` or the file, the entry, and what an entry looks like.
    """
    source = f"`{name}`"
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        source, value = value, read_yaml(value, (list, dict))
    elif isinstance(value, str) and value.lstrip().startswith("["):
        value = _read_json(value, source)
    elif isinstance(value, str):
        value = [{"path": value}]
    if isinstance(value, dict):
        return _by_weight(value, source, kind)
    return [_entry(entry, f"{source} entry {number}", kind) for number, entry in enumerate(value or [], start=1)]


def _read_json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: {_EXPECTED} in a JSON list, got {text!r:.80} ({error})") from error


def _entry(entry: Any, source: str, kind: type[Entry]) -> Entry:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict) or "path" not in entry:
        raise ValueError(f"{source}: {_EXPECTED}, got {entry!r}")
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key != "replacement"}
    _check_keys(entry, hints, source)
    return kind(**{key: coerce(item, hints[key], key, source) for key, item in entry.items()})


def _by_weight(value: dict[str, Any], source: str, kind: type[Entry]) -> list[Entry]:
    _check_keys(value, ("samples_per_epoch", "parts", "sampling"), source)
    if not {"samples_per_epoch", "parts"} <= set(value):
        raise ValueError(f"{source}: expected `samples_per_epoch` and `parts`, got {', '.join(value)}")
    amount = coerce(value["samples_per_epoch"], float, "samples_per_epoch", source)
    if amount <= 0:
        raise ValueError(f"{source}: `samples_per_epoch` expected a number above 0, got {amount}")
    sampling = value.get("sampling", "interleave")
    if sampling not in ("interleave", "rates"):
        raise ValueError(f"{source}: `sampling` expected interleave or rates, got {sampling!r}")
    found = _shares(value["parts"], amount, source, kind)
    for entry in found:
        entry.replacement = sampling == "rates"
    return found


def _shares(entries: Any, amount: float, source: str, kind: type[Entry]) -> list[Entry]:
    """The entries of a list of {weight, path} or {weight, parts}, which together give `amount` samples."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{source}: `parts` expected a non-empty list, got {entries!r:.80}")
    entries = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
    weights = [_weight(entry, f"{source} entry {number}", kind) for number, entry in enumerate(entries, start=1)]
    found: list[Entry] = []
    for number, (entry, weight) in enumerate(zip(entries, weights, strict=True), start=1):
        where, share = f"{source} entry {number}", amount * weight / sum(weights)
        if "parts" in entry:
            found += _shares(entry["parts"], share, where, kind)
        else:
            given = {key: entry[key] for key in entry if key != "weight"} | {"samples": share}
            found.append(_entry(given, where, kind))
    return found


def _weight(entry: Any, where: str, kind: type[Entry]) -> float:
    """The weight of one entry of a list with weights, whose keys are checked."""
    if not isinstance(entry, dict) or ("path" in entry) == ("parts" in entry):
        raise ValueError(f"{where}: expected {{path: DIR, weight: 1}} or {{weight: 1, parts: [...]}}, got {entry!r}")
    known = [key for key in get_type_hints(kind) if key not in ("path", "repeats", "samples", "replacement")]
    _check_keys(entry, ("weight", "path", *known) if "path" in entry else ("weight", "parts"), where)
    weight = coerce(entry.get("weight", 1.0), float, "weight", where)
    if not weight > 0:
        raise ValueError(f"{where}: `weight` expected a number above 0, got {weight}")
    return weight


def _check_keys(entry: dict[str, Any], known: Any, source: str) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{source}: unknown key `{key}`{suggest(key, known)}; known: {', '.join(known)}")
