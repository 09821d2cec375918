"""manifest.json: what a prepared folder was made from, what is in it, and what the public release has."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from sa2va_hf.data.prepare.releases import RELEASES
from sa2va_hf.data.schema import TASKS, Reject

NAME = "manifest.json"
COUNTS = ("samples", "frames", "objects", "masks", "expressions", "turns", "excluded")
PATH_OPTIONS = {"images", "annotations"}  # where a release lies does not change what is in it


@dataclass
class Manifest:
    """What a prepared folder was made from and holds. masks: those annotated, per object and frame.

    annotation_files: those that many records come from; not the ones of a single picture or clip.
    shard: "2/4" for the second of four machines' parts. exclude: lists of excluded pictures -> their sha256;
    excluded: samples skipped for that. release: counts of the public release, or of a task in it, where known.
    """

    source: str
    split: str
    root: str | None
    options: dict[str, Any]
    embed_media: bool
    limit: int | None
    skip_bad: bool = False
    shard: str | None = None
    exclude: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    frames: int = 0
    objects: int = 0
    masks: int = 0
    expressions: int = 0
    turns: int = 0
    excluded: int = 0
    tasks: dict[str, int] = field(default_factory=dict)  # samples per task
    kinds: dict[str, int] = field(default_factory=dict)  # expressions per kind
    release: dict[str, int] = field(default_factory=dict)
    annotation_files: dict[str, str] = field(default_factory=dict)  # path -> sha256
    shards: dict[str, str] = field(default_factory=dict)  # file name -> sha256
    rejects: list[Reject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rejects = [one if isinstance(one, Reject) else Reject(**one) for one in self.rejects]
        if self.limit is None and set(self.options) <= PATH_OPTIONS:
            self.release = dict(RELEASES.get(self.source, {}).get(self.split, {}))

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

    def recipe(self) -> dict[str, Any]:
        """What the content follows from, the annotation files' own content apart."""
        names = ("source", "split", "root", "options", "embed_media", "limit", "skip_bad", "shard", "exclude")
        return json.loads(json.dumps({name: getattr(self, name) for name in names}, default=str))

    def departs_from_release(self) -> str:
        """In words, how the counts differ from the public release's; "" when they do not or when it is not known."""
        differing = [
            f"{found} {name}, where the public release has {count}"
            for name, count in self.release.items()
            if (found := self.tasks.get(name, 0) if name in TASKS else getattr(self, name)) != count
        ]
        if not differing or self.shard is not None:
            return ""
        left_out = f" ({len(self.rejects)} rejects, {self.excluded} excluded)" if self.rejects or self.excluded else ""
        return f"{self.source} {self.split}: {'; '.join(differing)}{left_out}. Is the download complete?"

    def save(self, folder: Path | str) -> None:
        folder = Path(folder)
        write_json(folder / NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path | str) -> "Manifest":
        """ValueError when the folder has none or it is of another form."""
        folder = Path(folder)
        return cls.from_dict(read_json(folder / NAME), folder / NAME)

    @classmethod
    def from_dict(cls, content: dict[str, Any], name: Path) -> "Manifest":
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"{name} has the fields {', '.join(unknown)}, which no manifest of this version has")
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{name} is not a manifest: {error}") from error


class PrepareError(ValueError):
    """Records that cannot be used; `rejects` holds all of them."""

    def __init__(self, message: str, rejects: list[Reject]) -> None:
        super().__init__(message)
        self.rejects = rejects


def joined(parts: Sequence[Manifest], folders: Sequence[str]) -> Manifest:
    """One manifest of the parts that machines made, in order; their Arrow files lie in these folders.

    Raises:
        ValueError: the parts were not made from the same data in the same way.
    """
    first, recipe = parts[0], parts[0].recipe()
    for part, folder in zip(parts, folders, strict=True):
        for name, value in part.recipe().items():
            if name not in ("shard", "root", "exclude") and value != recipe[name]:
                raise ValueError(f"{folder} was made with {name} {value!r}, {folders[0]} with {recipe[name]!r}")
        for name in ("annotation_files", "exclude"):  # machines may see them under other paths
            if sorted(getattr(part, name).values()) != sorted(getattr(first, name).values()):
                raise ValueError(f"{folder} and {folders[0]} were made with different {name}: their sha256 differ")
    whole = Manifest(**{name: getattr(first, name) for name in recipe} | {"shard": None})
    whole.annotation_files = first.annotation_files
    for part, folder in zip(parts, folders, strict=True):
        for name in COUNTS:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.tasks = dict(Counter(whole.tasks) + Counter(part.tasks))
        whole.kinds = dict(Counter(whole.kinds) + Counter(part.kinds))
        whole.shards |= {f"{folder}/{name}": digest for name, digest in part.shards.items()}
        whole.rejects += part.rejects
    return whole


def judge(manifest: Manifest) -> None:
    """Whether the result may stand. PrepareError for bad records, ValueError when there is nothing at all."""
    rejects = manifest.rejects
    if rejects and (not manifest.skip_bad or (manifest.samples == 0 and manifest.shard is None)):
        shown = "".join(f"\n  {reject.id}: {reject.reason}" for reject in rejects[:20])
        more = f"\n  ... and {len(rejects) - 20} more" if len(rejects) > 20 else ""
        what = "none of the records can" if manifest.samples == 0 else f"{len(rejects)} records cannot"
        advice = "" if manifest.skip_bad else "\nNothing was written. Repair them, or skip them with --skip_bad."
        raise PrepareError(f"{what} be used:{shown}{more}{advice}", rejects)
    if manifest.samples == 0 and manifest.shard is None:
        excluded = f" ({manifest.excluded} excluded)" if manifest.excluded else ""
        where = f"source {manifest.source!r} at {manifest.root}"
        raise ValueError(f"{where} has no samples in split {manifest.split!r}{excluded}")


def write_json(path: Path, content: dict) -> None:
    """Written beside its place and moved there: a reader sees the old one or the whole new one."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    beside.replace(path)


def read_json(path: Path) -> dict:
    """ValueError when it is missing or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content
