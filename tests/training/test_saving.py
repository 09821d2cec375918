"""Laws of checkpoints: whole or not there, found by what is in them, refused where a run cannot go on from them."""

import json
import os
import socket
from types import SimpleNamespace

import pytest

from sa2va_hf.arguments import Sa2VATrainingArguments
from sa2va_hf.training import saving
from sa2va_hf.training.saving import NOTE, STATE, check_fits, facts, find_checkpoint, problems, remove_partial, rotate


def checkpoint(folder, step, **run):
    """A small complete one."""
    folder = folder / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    files = {STATE: "{}", "model.safetensors": "weights", "global_step/zero_rank_0.pt": "state"}
    for name, text in files.items():
        (folder / name).write_text(text)
    note = {"step": step, "run": run, "files": {name: len(text) for name, text in files.items()}}
    (folder / NOTE).write_text(json.dumps(note))
    return folder


def arguments(folder):
    return Sa2VATrainingArguments(output_dir=str(folder))


def test_auto_is_the_complete_one_of_the_highest_step(tmp_path):
    assert find_checkpoint(None, arguments(tmp_path)) is None and find_checkpoint("auto", arguments(tmp_path)) is None
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "partial-checkpoint-200").mkdir()
    assert find_checkpoint("auto", arguments(tmp_path)) == str(tmp_path / "checkpoint-100")
    (tmp_path / "checkpoint-100/global_step/zero_rank_0.pt").unlink()
    assert find_checkpoint("auto", arguments(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_a_missing_and_a_cut_shard_are_named(tmp_path):
    folder = checkpoint(tmp_path, 5)
    assert problems(folder) == [] and find_checkpoint(str(folder), arguments(tmp_path)) == str(folder)
    (folder / "global_step/zero_rank_0.pt").unlink()
    (folder / "model.safetensors").write_text("wei")
    with pytest.raises(ValueError, match=r"checkpoint-5 is no complete .*model\.safetensors has 3 bytes instead of 7"):
        find_checkpoint(str(folder), arguments(tmp_path))
    assert "global_step/zero_rank_0.pt is missing" in problems(folder)


def test_a_run_does_not_begin_anew_where_all_checkpoints_are_damaged(tmp_path):
    (checkpoint(tmp_path, 5) / STATE).unlink()
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints in .* is complete; .*checkpoint-5: no tr"):
        find_checkpoint("auto", arguments(tmp_path))


def test_one_that_another_trainer_wrote_counts_when_it_has_its_state(tmp_path):
    (checkpoint(tmp_path, 5) / NOTE).unlink()
    assert find_checkpoint("auto", arguments(tmp_path)) == str(tmp_path / "checkpoint-5")


def test_clocks_and_host_names_do_not_matter(tmp_path, monkeypatch):
    """Times on the disk backwards, as after a clock was set or files were copied; another machine's name."""
    for age, step in enumerate((10, 20, 30, 40)):
        folder = checkpoint(tmp_path, step)
        os.utime(folder, (2e9 - 1e6 * age, 2e9 - 1e6 * age))
    monkeypatch.setenv("HOSTNAME", "another")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert find_checkpoint("auto", arguments(tmp_path)) == str(tmp_path / "checkpoint-40")
    rotate(tmp_path / "checkpoint-40", 2, str(tmp_path / "checkpoint-10"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-40"]


@pytest.mark.parametrize(
    ("limit", "left"), [(None, {1, 2, 3, 4}), (0, {1, 2, 3, 4}), (1, {2, 3}), (2, {2, 3}), (3, {2, 3, 4})]
)
def test_the_oldest_are_deleted_but_never_the_best_and_the_one_just_written(tmp_path, limit, left):
    """3 was just written: 4 is of a run before this one."""
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    rotate(tmp_path / "checkpoint-3", limit, str(tmp_path / "checkpoint-2"))
    assert {int(path.name[11:]) for path in tmp_path.iterdir()} == left


def test_a_kill_while_an_old_one_is_deleted_leaves_no_half_of_it(tmp_path, monkeypatch):
    """Without its list of files a half would count as one that another trainer wrote."""
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)

    def killed(folder, **_):
        if folder.exists():
            (folder / NOTE).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(saving.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        rotate(tmp_path / "checkpoint-3", 2, None)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_what_was_never_finished_is_removed(tmp_path):
    (tmp_path / "partial-checkpoint-7/deep").mkdir(parents=True)
    checkpoint(tmp_path, 5)
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


class Data:
    """So many items; fingerprint None: a dataset that has none."""

    def __init__(self, samples, fingerprint):
        self.samples, self.fingerprint = samples, fingerprint

    def __len__(self):
        return self.samples


def trainer(
    processes=2, batch=3, accumulation=4, seed=0, samples=50, engine="DDP", skip=False, by_rank=False, data=None
):
    """As much of a trainer as is looked at."""
    args = SimpleNamespace(
        world_size=processes,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        seed=seed,
        data_seed=None,
        ignore_data_skip=skip,
    )
    stage = int(engine[-1]) if engine.startswith("ZeRO") else 0
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    return SimpleNamespace(
        args=args,
        steps_depend_on_processes=by_rank,
        train_dataset=Data(samples, data),
        is_deepspeed_enabled=stage > 0,
        is_fsdp_enabled=engine == "FSDP",
        accelerator=SimpleNamespace(state=state),
    )


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({}, {}),
        ({}, {"processes": 4, "accumulation": 2}),
        ({"engine": "FSDP"}, {"engine": "FSDP", "processes": 1, "batch": 6}),
        ({"engine": "ZeRO-3"}, {"engine": "ZeRO-3", "batch": 6, "accumulation": 2}),
        ({}, {"seed": 1, "samples": 7, "skip": True}),
        ({"data": "a"}, {"data": "a"}),
        ({"data": "a"}, {"data": "b", "skip": True}),
        ({}, {"data": "b"}),  # a checkpoint from before it was noted
    ],
)
def test_a_run_goes_on_while_each_step_has_the_samples_it_would_have_had(tmp_path, then, now):
    check_fits(trainer(**now), checkpoint(tmp_path, 5, **facts(trainer(**then))))


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({}, {"processes": 1}, r"2 x 3 x 4 = 24 samples per step, this run has 1 x 3 x 4 = 12: .* product is 24"),
        ({}, {"processes": 4, "accumulation": 2, "by_rank": True}, r"depends on each of these .processes, per_dev"),
        ({}, {"seed": 1}, r"with seed 0, this run has 1: .*Restore `seed` or `data_seed`"),
        ({"data": "a"}, {"data": "b"}, r"with other training items, though as many.*`max_expressions`"),
        ({}, {"samples": 51}, r"with samples 50, this run has 51: .*Restore `train_data`"),
        ({}, {"engine": "ZeRO-2"}, r"written by DDP, this run uses ZeRO-2"),
        ({"engine": "ZeRO-2"}, {"engine": "ZeRO-3"}, r"written by ZeRO-2, this run uses ZeRO-3"),
        ({"engine": "ZeRO-2"}, {"engine": "ZeRO-2", "processes": 1, "batch": 6}, r"in 2 pieces, this run has 1 proc"),
    ],
)
def test_where_it_would_lose_its_place_it_says_what_differs(tmp_path, then, now, message):
    with pytest.raises(ValueError, match=message):
        check_fits(trainer(**now), checkpoint(tmp_path, 5, **facts(trainer(**then))))
