"""What goes wrong while a run is under way, done to it on purpose.

The slow ones start processes: pytest -m slow tests/training/test_faults.py
"""

import errno
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file
from toy_run import build, records, run, tiny_folder
from transformers import TrainerCallback

from sa2va_hf.data.schema import Reject
from sa2va_hf.data.tolerance import REJECTS, TolerantCollator, TolerantDataset
from sa2va_hf.training import faults, saving
from sa2va_hf.training.faults import explained, signals_noted
from sa2va_hf.training.safe_trainer import SKIPPED

EXACT = {"lora_dropout": 0.0, "num_points": 64}
SETTINGS = {"model_arguments": EXACT, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="session")
def model(toy_runs):
    return str(tiny_folder(toy_runs))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that nothing happens to: its folder, and its trained weights."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(run(output_dir=folder, model=model, **SETTINGS))


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def assert_same_but_for_rounding(one, other):
    """To 2e-5; a step that is lost or repeated moves most weights by about the learning rate, 1e-3. The gradient of a
    key's bias is 0 but for rounding, which AdamW makes a step of: it says nothing."""
    assert one.keys() == other.keys()
    off = {name: float((weight - other[name]).abs().max()) for name, weight in one.items()}
    far = {name: value for name, value in off.items() if value > 2e-5 and not name.endswith("k_proj.bias")}
    assert not far, f"{len(far)} of {len(off)} weights differ: {far}"


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / SKIPPED).read_text().splitlines()]


def seen(folder):
    """{step: ids} of one process."""
    return {line["step"]: line["ids"] for line in records(folder)["0"]}


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_the_step_and_the_next_one_goes_on(model, whole, tmp_path, number):
    handler = signal.getsignal(number)
    settings = SETTINGS | {"output_dir": tmp_path, "model": model}
    stopped = run(**settings, faults={"signal_at": [2, 0, int(number)]})
    assert stopped.stopped_by == number and stopped.state.global_step == 3 and sorted(seen(tmp_path)) == [0, 1, 2]
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "adapter_model.safetensors").exists(), "an unfinished run leaves no result"
    resumed = run(**settings, resume_from_checkpoint="auto")
    assert resumed.stopped_by is None and resumed._globalstep_last_logged == 4
    assert_equal(weights(resumed), whole[1])


def test_a_stopped_run_keeps_its_last_checkpoint_beside_the_best(model, tmp_path):
    """With save_total_limit 1 Trainer deletes all but the best one when it ends; here it has not ended."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_strategy": "steps"}
    settings |= {"load_best_model_at_end": True, "save_total_limit": 1, "max_steps": 5, "evaluate": True}
    trainer = build(output_dir=tmp_path, model=model, faults={"signal_at": [2, 0, int(signal.SIGUSR1)]}, **settings)
    scores = iter([0.9, 0.1, 0.1])
    trainer.compute_metrics = lambda prediction: {"cIoU": next(scores)}
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    assert trainer.args.load_best_model_at_end and trainer.args.save_total_limit == 1
    assert next(scores) == 0.1, "no evaluation after the signal"


def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(model, whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    settings = SETTINGS | {"output_dir": tmp_path, "model": model, "lr_scheduler_type": "constant"}
    resumed = run(**settings, resume_from_checkpoint="auto")
    assert resumed.state.global_step == 4 and not records(tmp_path)
    assert_equal(weights(resumed), whole[1])


def test_signals_are_left_alone_outside_the_main_thread():
    noted = []

    def inside():
        with signals_noted(noted.append):
            noted.append("ran")

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert noted == ["ran"]


# ---- a disk that is full ----


@pytest.mark.parametrize(("train_llm", "limit"), [("lora", 20_000), ("lora", 500_000), ("full", 300_000)])
def test_a_full_disk_leaves_the_checkpoint_before_it(model, tmp_path, train_llm, limit):
    """No file may get larger than `limit` bytes: the weights fail, or the optimiser's state after them."""
    settings = SETTINGS | {"output_dir": tmp_path, "model": model}
    settings["model_arguments"] = EXACT | {"train_llm": train_llm}
    with pytest.raises(saving.CheckpointError, match=r"checkpoint-4 could not .*checkpoint-2 is complete: make room"):
        run(**settings, faults={"disk_full_at": [4, limit]})
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert saving.problems(tmp_path / "checkpoint-2") == []
    trainer = run(**settings, resume_from_checkpoint="auto")
    assert trainer.state.global_step == 4 and saving.problems(tmp_path / "checkpoint-4") == []


def test_a_disk_that_is_full_when_it_is_asked_to_keep_what_it_took(model, tmp_path, monkeypatch):
    """With delayed allocation writing succeeds and fsync fails."""
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(saving.CheckpointError, match=r"checkpoint-2 .*No space left on device.*there is no complete"):
        run(output_dir=tmp_path, model=model, **SETTINGS)
    assert not list(tmp_path.glob("*checkpoint-*"))


def test_a_run_that_is_killed_while_it_saves_has_the_checkpoint_before_it(model, tmp_path, monkeypatch):
    settings = SETTINGS | {"output_dir": tmp_path, "model": model}

    class Killed(BaseException):
        pass

    def kill(trainer, partial, final):
        if final.name == "checkpoint-4":
            raise Killed
        return original(trainer, partial, final)

    original = saving._finish
    monkeypatch.setattr(saving, "_finish", kill)
    with pytest.raises(Killed):
        run(**settings)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-2", "partial-checkpoint-4"]
    monkeypatch.undo()
    run(**settings, resume_from_checkpoint="auto")
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_files_are_on_the_disk_before_the_checkpoint_has_its_name(model, tmp_path, monkeypatch):
    synced, there = set(), []

    def note(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.add(path.name)
        there.append(any(tmp_path.glob("checkpoint-*")))

    monkeypatch.setattr(saving.os, "fsync", note)
    run(output_dir=tmp_path, model=model, **(SETTINGS | {"max_steps": 2}))
    files = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert files <= synced and {"optimizer.pt", saving.STATE, saving.NOTE} <= files
    assert there[:-1] == [False] * (len(there) - 1) and there[-1], "the folder of the new name comes last"


# ---- losses that are not finite ----


def test_a_loss_that_is_not_finite_is_left_out_and_listed(model, tmp_path):
    """Its step is one of zero gradient; the samples of all other steps are the same."""
    trainer = run(output_dir=tmp_path, model=model, nonfinite_loss="skip", faults={"nan": [1]}, max_steps=10)
    (left,) = lines(tmp_path)
    assert "toy-1" in left["ids"] and left["loss"] == "nan" and left["parts"]["lm_loss"] == "nan"
    assert left["ids"] == seen(tmp_path)[left["step"]] and left["rank"] == 0 and not left["finite"]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 10 and history[left["step"]]["loss"] == history[left["step"]]["grad_norm"] == 0
    assert history[-1]["skipped_batches"] == 1 and "skipped_batches" not in history[0] or left["step"] == 0
    assert all(torch.isfinite(weight).all() for weight in weights(trainer).values())


def test_too_many_of_them_stop_the_run(model, tmp_path):
    broken = {"nan": [1, 2, 3, 4]}
    with pytest.raises(FloatingPointError, match=r"loss nan .*toy-.* 2 micro-batches .* `max_skipped` is 1: see"):
        run(output_dir=tmp_path, model=model, nonfinite_loss="skip", max_skipped=1, faults=broken, max_steps=10)
    assert len(lines(tmp_path)) == 2


def test_broken_weights_are_not_skipped_and_never_saved(model, tmp_path):
    trainer = build(output_dir=tmp_path, model=model, nonfinite_loss="skip", max_steps=2)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="on any text, so the weights are not finite; no step was made yet"):
        trainer.train()
    with pytest.raises(
        FloatingPointError, match="samples \\['a'\\]; the weight .*lm_head.* is not finite: no step was"
    ):
        trainer.skips_batch(math.nan, {}, ["a"], training=False)
    assert "lower learning rate" not in saving.mend(0) and "lower learning rate" in saving.mend(1)
    with pytest.raises(FloatingPointError, match=r"step 0: the weight .*lm_head.* is not finite and was not saved"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list(tmp_path.glob("*checkpoint-*"))


# ---- bad samples ----


@pytest.mark.parametrize(("workers", "batch"), [(0, 2), (2, 2), (0, 1)])
def test_bad_samples_are_skipped_counted_and_listed_at_every_batch_size(model, tmp_path, workers, batch):
    settings = {"model": model, "max_steps": 20 // batch, "dataloader_num_workers": workers}
    settings |= {"per_device_train_batch_size": batch, "loss_normalization": "global" if batch == 1 else "batch"}
    run(output_dir=tmp_path / "good", **settings)
    trainer = run(output_dir=tmp_path / "bad", bad_samples="skip", faults={"bad": [3, 5]}, **settings)
    good, left = seen(tmp_path / "good"), seen(tmp_path / "bad")
    assert left == {step: [name for name in ids if name not in ("toy-3", "toy-5")] for step, ids in good.items()}
    listed = {line["id"]: line for line in lines(tmp_path / "bad")}
    assert sorted(listed) == ["toy-3", "toy-5"] and "it is spoilt" in listed["toy-3"]["reason"]
    assert all(name in good[line["step"]] for name, line in listed.items())
    assert trainer.bad == 2 and trainer.state.log_history[-2]["bad_samples"] == 2


def test_too_many_bad_samples_stop_the_run_and_one_is_enough_by_default(model, tmp_path):
    settings = {"model": model, "max_steps": 10, "faults": {"bad": [3, 5]}}
    with pytest.raises(ValueError, match="2 samples could not be read, `max_bad_samples` is 1: see .*skipped_samples"):
        run(output_dir=tmp_path / "limit", bad_samples="skip", max_bad_samples=1, **settings)
    with pytest.raises(ValueError, match=r"sample 'toy-\d': it is spoilt"):
        run(output_dir=tmp_path / "default", **settings)


class Items:
    """Numbers as samples; negative ones cannot be read, odd ones not be collated, and 4 not with others."""

    def __len__(self):
        return 9

    def sample_id(self, index):
        return f"n{index}"

    def __getitem__(self, index):
        if index < 0:
            raise ValueError("negative")
        return {"sample_id": f"n{index}", "number": index}


def collate(examples):
    numbers = [example["number"] for example in examples]
    if any(number % 2 for number in numbers) or (4 in numbers and len(numbers) > 1):
        raise ValueError(f"cannot: {numbers}")
    return {"numbers": numbers}


def test_a_batch_has_the_samples_that_can_be_used_and_says_which_cannot():
    dataset, collator = TolerantDataset(Items()), TolerantCollator(collate)
    assert isinstance(dataset[-1], Reject) and len(dataset) == 9
    assert collator([dataset[0], dataset[2]]) == {"numbers": [0, 2]}
    batch = collator([dataset[index] for index in (0, -1, 3, 2)])
    assert batch["numbers"] == [0, 2] and batch[REJECTS] == [
        {"id": "n-1", "reason": "negative"},
        {"id": "n3", "reason": "cannot: [3]"},
    ]
    none_left = collator([dataset[-1], dataset[1]])
    assert list(none_left) == [REJECTS] and [one["id"] for one in none_left[REJECTS]] == ["n-1", "n1"]
    with pytest.raises(ValueError, match=r"cannot: \[0, 4\]"):
        collator([dataset[0], dataset[4]])


# ---- loading processes ----


def test_a_loading_process_that_is_killed_is_explained_and_the_run_can_go_on(model, whole, tmp_path):
    settings = SETTINGS | {"output_dir": tmp_path, "model": model, "dataloader_num_workers": 1}
    last = int(seen(whole[0])[3][0][4:])
    with pytest.raises(ChildProcessError, match=r"worker .*killed.*dataloader_num_workers.*--resume_from_checkpoint"):
        run(**settings, faults={"kills_loader": [last]}, dataloader_prefetch_factor=1)
    (tmp_path / "record_0.jsonl").unlink()
    resumed = run(**settings, resume_from_checkpoint="auto")
    assert_equal(weights(resumed), whole[1])


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"dataloader_persistent_workers": True}, None),
        ({"dataloader_persistent_workers": True, "evaluate": True, "eval_strategy": "steps", "eval_steps": 2}, None),
        ({"faults": {"bad": [7]}}, ValueError),
        ({"dataloader_persistent_workers": True, "faults": {"nan": [7]}}, FloatingPointError),
    ],
    ids=["persistent", "evaluated", "bad sample", "failing step"],
)
def test_no_loading_process_is_left_when_a_run_has_ended(model, tmp_path, settings, error):
    """Python would wait for them at its exit, for ever: they ignore the SIGTERM that it sends."""
    trainer = build(output_dir=tmp_path, model=model, max_steps=10, dataloader_num_workers=1, **settings)
    with pytest.raises(error) if error else nullcontext():
        trainer.train()
    assert not multiprocessing.active_children()
    if error is None and settings.get("evaluate"):
        assert trainer.evaluate()["eval_masks"] > 0  # its workers ended with the training, others begin
        assert not multiprocessing.active_children()


def test_the_error_of_a_loading_process_is_one_line(model, tmp_path):
    with pytest.raises(ValueError) as caught:
        run(output_dir=tmp_path, model=model, max_steps=10, dataloader_num_workers=1, faults={"bad": [3]})
    assert str(caught.value).startswith("sample 'toy-3'") and "\n" not in str(caught.value)


def test_a_worker_ignores_the_signal_of_the_job_and_ends_on_one_of_its_own(monkeypatch):
    monkeypatch.setattr(faults, "SAME_SIGNAL", 1.0)
    started = multiprocessing.get_context("fork").Event()

    def work():
        faults.begin_worker(lambda worker: started.set(), 0)
        while True:
            time.sleep(0.01)

    worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    worker.start()
    assert started.wait(60)
    for _ in range(2):  # a launcher passes it on
        os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.2)
    assert worker.is_alive()
    time.sleep(1.0)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60)
    assert worker.exitcode == 128 + signal.SIGTERM


def test_a_run_extended_by_steps_resumes_at_the_rate_of_its_own_schedule(model, tmp_path, caplog):
    """A finished run's rate is 0: it would hold for one more step."""
    settings = {"output_dir": tmp_path, "model": model, "warmup_steps": 0, "lr_scheduler_type": "linear"}
    settings |= {"save_strategy": "steps", "save_steps": 2}
    run(**settings, max_steps=2)
    rates = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = build(**settings, max_steps=4)
    trainer.add_callback(Watch())
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rates == pytest.approx([5e-4, 2.5e-4])
    assert "the schedule of the learning rate is another one" in caplog.text


@pytest.mark.parametrize(
    "text", ["something else", "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ..."]
)
def test_other_errors_are_passed_on_as_they_are(text):
    with pytest.raises(RuntimeError) as caught, explained("runs/x"):
        raise RuntimeError(text)
    assert str(caught.value) == text


# ---- kill -9 ----


@pytest.mark.slow
def test_a_run_killed_at_20_random_points_ends_with_the_weights_of_one_that_was_not(model, tmp_path):
    """At any point: while the model is loaded, in a step, in the middle of a checkpoint, in between."""
    settings = {"model": model, "max_steps": 6, "size": 12, "save_strategy": "steps", "save_steps": 1}
    settings |= {"save_total_limit": 2, "model_arguments": {"lora_dropout": 0.1, "num_points": 64}}
    file = tmp_path / "lives.in.json"
    file.write_text(json.dumps({"output_dir": str(tmp_path), "kills": 20, "seed": 0, "run": settings}))
    done = forks.run([forks.TESTS / "killed_run.py", file], patience=4 * forks.PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    lives = json.loads((tmp_path / "lives.json").read_text())
    assert sum(one["killed"] is not None for one in lives) == 20
    assert sum(one["from"] > 0 for one in lives) >= 3, "some went on from a checkpoint"
    expected = load_file(tmp_path / "whole/adapter_model.safetensors")
    order = seen(tmp_path / "whole")
    for number in {one["run"] for one in lives}:
        trained = records(tmp_path / f"killed-{number}")["0"]
        assert all(line["ids"] == order[line["step"]] for line in trained), "a batch was lost or repeated"
        assert_same_but_for_rounding(load_file(tmp_path / f"killed-{number}/adapter_model.safetensors"), expected)
