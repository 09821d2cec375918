"""A prepared dataset -> the Hub: parquet files with the schema, and a card from the manifest."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from huggingface_hub import DatasetCard, HfApi
from pyarrow import compute

from sa2va_hf.data.prepare.manifest import NAME, Manifest
from sa2va_hf.data.prepare.verification import open_folder

TAGS = ["sa2va", "referring-segmentation"]
COUNTS = ("samples", "frames", "objects", "masks", "expressions", "turns")


def push_dataset(folder: Path | str, repo_id: str, *, private: bool = False, license: str | None = None) -> str:
    """Upload a prepared folder as a split of a dataset on the Hub; returns the dataset's address.

    The split is the manifest's. `hf://datasets/REPO` in a mixture trains on it.

    Raises:
        ValueError: the folder is not a prepared one, or names media files instead of holding them.
        OSError: the Hub refuses.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file():
        raise ValueError(f"{folder}: expected a folder that prepare_data.py wrote, there is no {NAME}")
    rows, manifest = open_folder(folder), Manifest.load(folder)
    _check_embedded(rows, folder)
    api = HfApi()
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    rows.push_to_hub(repo_id, split=manifest.split, commit_message=f"Split {manifest.split}")
    card = DatasetCard.load(repo_id)  # it holds the schema of all splits
    card.data.tags, card.data.task_categories = TAGS, ["image-segmentation"]
    if license:
        card.data.license = license
    card.text = _text(repo_id, manifest)
    api.upload_file(
        path_or_fileobj=str(card).encode("utf-8"),
        path_in_repo="README.md",
        repo_id=repo_id,
        repo_type="dataset",
        commit_message="Dataset card",
    )
    return f"{api.endpoint}/datasets/{repo_id}"


def _check_embedded(rows: Dataset, folder: Path) -> None:
    """Errors: ValueError where media lie in files of this machine."""
    frames, videos = compute.list_flatten(rows.data.column("frames")), rows.data.column("video")
    outside = compute.struct_field(frames, "bytes").null_count
    outside += len(videos.filter(compute.and_(videos.is_valid(), compute.struct_field(videos, "bytes").is_null())))
    if outside:
        raise ValueError(
            f"{folder}: {outside} frames or videos are files of this machine, which the Hub would not have: prepare "
            "it again with --embed_media"
        )


def _text(repo_id: str, manifest: Manifest) -> str:
    rows = "\n".join(f"| {name} | {getattr(manifest, name)} |" for name in COUNTS)
    return f"""
# {repo_id.split("/")[-1]}

Prepared for Sa2VA from the source `{manifest.source}`, split `{manifest.split}`. Masks are COCO run-length codes, and
media are embedded. Train on it with `train_data: [{{path: hf://datasets/{repo_id}, split: {manifest.split}}}]`.

| | count |
|---|---|
{rows}
"""
