"""Uploads of a run: the model of `checkpoints/hub.py`, with its card and code, and nothing that names local paths."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from ...checkpoints.card import facts_of_run
from ...checkpoints.files import ADAPTER_CONFIG
from ...checkpoints.hub import PUBLISHED, export, upload


def push_run(trainer: Any, message: str, revision: str | None = None, token: str | None = None) -> str:
    """Export the run's output folder, which holds the saved model, and upload it."""
    folder = Path(trainer.args.output_dir)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))  # steps and scores, for the card
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    facts = facts_of_run(folder, relation="adapter" if is_adapter else "finetune")
    export(folder, facts, repo_id=trainer.hub_model_id)
    api = HfApi(token=token or trainer.args.hub_token)
    return upload(api, folder, trainer.hub_model_id, revision=revision or trainer.args.hub_revision, message=message)


def push_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Upload a checkpoint's model, and with `hub_strategy` (all_)checkpoints the whole checkpoint for resuming.

    The model is copied to the output folder first: a checkpoint is complete only with the files it was written with.
    """
    strategy, folder = trainer.args.hub_strategy, Path(trainer.args.output_dir)
    if strategy == HubStrategy.END:
        return
    for file in checkpoint.iterdir():
        if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in PUBLISHED):
            shutil.copyfile(file, folder / file.name)
    push_run(trainer, f"Training in progress, step {trainer.state.global_step}")
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
        HfApi(token=trainer.args.hub_token).upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=checkpoint,
            path_in_repo=name,
            commit_message=f"Checkpoint of step {trainer.state.global_step}",
            revision=trainer.args.hub_revision,
        )
