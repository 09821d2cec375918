"""Model folders for other people: complete with code and card (`export`), and uploaded to the Hub (`push`).

An exported folder holds sharded safetensors, config, processor, generation_config.json, a card and the files of
`model/`, so that `AutoModel.from_pretrained(folder, trust_remote_code=True)` needs transformers and sam2 only.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from pathlib import Path

from huggingface_hub import HfApi, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError
from transformers import GenerationConfig

from ..model import configuration_sa2va
from ..model.processing_sa2va import Sa2VAProcessor
from .card import HERE, Facts, amended, facts_of_run, model_card, with_model_id
from .files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CARD,
    CONFIG,
    GENERATION,
    INDEX,
    PROCESSOR,
    WEIGHTS,
    read_json,
    write_json,
)
from .names import published_name
from .weights import read_folder, write_folder

logger = logging.getLogger(__name__)

_MODEL, _PROCESSOR = "modeling_sa2va.Sa2VAForConditionalGeneration", "processing_sa2va.Sa2VAProcessor"
AUTO_MAP = {
    "AutoConfig": "configuration_sa2va.Sa2VAConfig",
    "AutoModel": _MODEL,
    "AutoModelForImageTextToText": _MODEL,
    "AutoProcessor": _PROCESSOR,
}
_RELATIVE = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
# What is uploaded. The rest of a run's folder (settings, logs, optimiser states) names paths of this machine.
PUBLISHED = [
    *("*.safetensors", INDEX, CONFIG, GENERATION, PROCESSOR, ADAPTER_CONFIG, CARD, "*.py", "LICENSE*"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "chat_template*", "tokenizer*"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.png", "*.jpg"),
]
TRIES, FIRST_WAIT, LONGEST_WAIT = 6, 1.0, 30.0  # of an upload; seconds


def export(
    folder: Path | str, facts: Facts | None = None, *, repo_id: str | None = None, max_shard_size: str = "5GB"
) -> None:
    """Complete a model folder, or an adapter folder, so that it can be published.

    Args:
        folder: what `save_pretrained` of model and processor wrote (or of an adapter and processor).
        facts: what the card says; default: the card that is there is kept, and where there is none one without a
            training is written.
        repo_id: the model's name on the Hub, in the card's snippets; default: "." (they run in the folder).
        max_shard_size: larger weights are split into several files, with an index.

    Raises:
        ValueError: the folder lacks config, weights or processor.
    """
    folder = Path(folder)
    _check_complete(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        _reshard(folder, max_shard_size)
        _write_code(folder)
        _publish_config(folder)
        write_json(folder / PROCESSOR, read_json(folder / PROCESSOR) | {"auto_map": {"AutoProcessor": _PROCESSOR}})
        _write_generation_config(folder)
    _write_card(folder, facts, repo_id)


def code_files() -> list[Path]:
    """The modules of `model/`, which are exported beside the weights."""
    return sorted(path for path in Path(configuration_sa2va.__file__).parent.glob("*.py") if path.stem != "__init__")


def amend_card(folder: Path | str, facts: Facts) -> None:
    """Write a licence, languages, a base model and scores into the card of an exported folder."""
    folder = Path(folder)
    card = folder / CARD
    card.write_text(amended(card.read_text(encoding="utf-8"), facts, _title(folder, None)), encoding="utf-8")


def push(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Sa2VA model",
    token: str | None = None,
) -> str:
    """Export a model folder and upload it to the Hub (or to HF_ENDPOINT); returns the address of the commit.

    All files arrive in one commit, so nobody ever loads a half. Shards are uploaded first; a second call, after an
    error or in another process, uploads only the files that the Hub does not have yet. A conflict with another commit
    and errors of the server are retried.

    Args:
        repo_id: "owner/name", or "name" of the owner of the token. The repository is created where it is missing.
        token: default: the logged-in one.

    Raises:
        ValueError: the folder is not complete.
        OSError: the Hub refuses, or still fails after several tries.
    """
    folder, api = Path(folder), HfApi(token=token)
    _check_complete(folder)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    export(folder, repo_id=repo_id)
    return upload(api, folder, repo_id, revision=revision, message=message)


def upload(api: HfApi, folder: Path | str, repo_id: str, *, revision: str | None = None, message: str) -> str:
    """Upload the published files of an exported folder in one commit; see `push`."""
    folder = Path(folder)
    for attempt in range(1, TRIES + 1):
        try:
            commit = api.upload_folder(
                folder_path=folder,
                repo_id=repo_id,
                revision=revision,
                commit_message=message,
                allow_patterns=PUBLISHED,
                ignore_patterns=["*/*"],
            )
            return str(commit)
        except HfHubHTTPError.__base__ as error:  # the base class of connection errors, too
            if attempt == TRIES or not _passes(error):
                raise
            wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
            logger.warning("upload to %s: %s; try %d of %d in %g s", repo_id, error, attempt + 1, TRIES, wait)
            time.sleep(wait)
    raise AssertionError


def _passes(error: Exception) -> bool:
    """Whether an error may be gone at the next try: another commit came between, the server or the line failed."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 409, 412, 429) or response.status_code >= 500


# ---- parts of an export ----
def _check_complete(folder: Path) -> None:
    if (folder / ADAPTER_CONFIG).is_file():
        needed = [ADAPTER_WEIGHTS]
    elif (folder / CONFIG).is_file():
        needed = [PROCESSOR] if any((folder / name).is_file() for name in (WEIGHTS, INDEX)) else [WEIGHTS, PROCESSOR]
        kind = read_json(folder / CONFIG).get("model_type")
        if kind != configuration_sa2va.Sa2VAConfig.model_type:
            raise ValueError(f"{folder}: expected a Sa2VA model folder of this package, got model_type {kind!r}")
    else:
        needed = [CONFIG]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise ValueError(f"{folder}: expected a model folder or an adapter; there is no {', '.join(missing)}")


def _reshard(folder: Path, max_shard_size: str) -> None:
    if not (folder / WEIGHTS).is_file():
        return
    tensors = read_folder(folder)
    empty = {name: tensor.empty() for name, tensor in tensors.items()}
    if not split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size).is_sharded:
        return
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        write_folder(tensors, Path(beside), max_shard_size)
        (folder / WEIGHTS).unlink()
        for file in Path(beside).iterdir():
            file.rename(folder / file.name)


def _write_code(folder: Path) -> None:
    """The modules of `model/`. Those of `AUTO_MAP` get a last statement that never runs and names all that they need:
    from a local folder transformers 5.3 takes the modules that the loaded file names, not those that these need."""
    sources = {file.stem: file.read_text(encoding="utf-8") for file in code_files()}
    loaded = {entry.split(".")[0] for entry in AUTO_MAP.values()}
    for name, text in sources.items():
        if indirect := sorted(_needed_by(name, sources) - set(_RELATIVE.findall(text))) if name in loaded else []:
            lines = [f"    from .{other} import *" for other in indirect]
            text += "\n\nif False:  # modules that this file needs indirectly\n" + "\n".join(lines) + "\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def _needed_by(name: str, sources: dict[str, str]) -> set[str]:
    """The modules that one imports, and those that they import, without itself."""
    found, waiting = {name}, [name]
    while waiting:
        new = set(_RELATIVE.findall(sources[waiting.pop()])) - found
        found |= new
        waiting += new
    return found - {name}


def _publish_config(folder: Path) -> None:
    """`auto_map` names the code; the path that a part was once loaded from is no part of the model."""

    def without_paths(section: dict) -> dict:
        kept = {key: without_paths(value) if isinstance(value, dict) else value for key, value in section.items()}
        if "_name_or_path" in kept:
            kept["_name_or_path"] = published_name(kept["_name_or_path"]) or ""
        return kept

    write_json(folder / CONFIG, without_paths(read_json(folder / CONFIG)) | {"auto_map": AUTO_MAP})


def _write_generation_config(folder: Path) -> None:
    """What ends an answer; a file that is there keeps all that it says, and gets what it lacks."""
    present = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    stops = [] if present.get("eos_token_id") is not None else Sa2VAProcessor.from_pretrained(folder).stop_ids
    if stops:
        added = {"eos_token_id": stops, "pad_token_id": stops[0], "do_sample": False}
        given = {name: value for name, value in present.items() if value is not None}
        GenerationConfig(**(added | given)).save_pretrained(folder)


def _write_card(folder: Path, facts: Facts | None, repo_id: str | None) -> None:
    path, is_adapter = folder / CARD, (folder / ADAPTER_CONFIG).is_file()
    if facts is None and path.is_file() and not is_adapter:
        text = path.read_text(encoding="utf-8")
    else:
        facts = facts or (facts_of_run(folder, relation="adapter") if is_adapter else Facts())
        text = model_card(facts, title=_title(folder, repo_id), is_adapter=is_adapter)
    path.write_text(with_model_id(text, repo_id or HERE), encoding="utf-8")


def _title(folder: Path, repo_id: str | None) -> str:
    return repo_id.split("/")[-1] if repo_id else folder.absolute().name
