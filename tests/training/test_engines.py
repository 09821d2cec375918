"""The engine does not matter: DDP, ZeRO-2, ZeRO-3 and FSDP2 learn what one process learns, on CPUs with gloo.

Compared with one process that accumulates as many micro-batches as there are ranks, over the same samples, without
dropout and random points. Tolerances: logged losses to 1e-5 of their value; a trained weight to 2e-5, and to 2 % of
the largest change that a weight of the same tensor has seen (float32 sums in another order, times AdamW's division
by gradients that may be close to zero). Every run has a time limit: a rank that waits for ever fails the test.

pytest -m slow tests/training/test_engines.py
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sam3s import SIDE, tiny_sam3_model
from tiny import tiny_processor
from toy_run import (
    EXACT,
    FSDP2,
    PRESETS,
    SAME,
    ToyDataset,
    evaluation,
    finished,
    launch,
    losses,
    records,
    run,
    tiny_folder,
)  # fmt: skip

ENGINES = {
    "ddp": {},
    "zero2": {"deepspeed": str(PRESETS / "zero2.json")},
    "zero3": {"deepspeed": str(PRESETS / "zero3.json")},
    "fsdp2": {"environment": FSDP2},
}


@pytest.fixture(scope="session")
def model(toy_runs):
    return str(tiny_folder(toy_runs))


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def start(model, tmp_path_factory):
    """The trained weights before the first step."""
    folder = tmp_path_factory.mktemp("start")
    run(output_dir=folder, model=model, model_arguments=EXACT, max_steps=1, learning_rate=0)
    return adapter(folder)


def assert_same_weights(one, other, start, tolerance=0.02):
    """A key's bias adds the same to all of a query's logits: its gradient is 0 but for rounding, which AdamW blows up
    to a step. It is held to the absolute tolerance alone."""
    assert one.keys() == other.keys() == start.keys()
    moved = 0
    for name, weight in one.items():
        change, difference = (weight - start[name]).abs().max(), (weight - other[name]).abs().max()
        assert difference <= 2e-5, name
        assert difference <= tolerance * change + 1e-7 or name.endswith("k_proj.bias"), name
        moved += bool(change > 5e-4)
    assert moved > len(one) / 2, "the tolerance is small beside what the weights have moved"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_end_with_the_losses_and_weights_of_one(toy_runs, start, engine):
    one, two = finished(toy_runs, "one"), finished(toy_runs, engine)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same_weights(adapter(one), adapter(two), start)


@pytest.mark.slow
def test_two_processes_train_all_of_sam3_as_one(tmp_path):
    """Two steps of SGD, through its vision encoder too, with samples that have no masks among the others."""
    pytest.importorskip("transformers.models.sam3_tracker_video", reason="this transformers has no SAM 3")
    tiny_sam3_model(num_points=0).save_pretrained(tmp_path / "model")
    tiny_processor(grounding_image_size=SIDE).save_pretrained(tmp_path / "model")
    settings = {"model": str(tmp_path / "model"), "model_arguments": EXACT | {"train_grounding_encoder": "all"}}
    settings |= {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0, "weight_decay": 0.0}
    settings |= {"loss_normalization": "global", "lr_scheduler_type": "constant", "warmup_steps": 0}
    run(output_dir=tmp_path / "one", per_device_train_batch_size=4, **settings)
    launch(tmp_path / "two", 2, per_device_train_batch_size=2, **settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two, before = adapter(tmp_path / "one"), adapter(tmp_path / "two"), tiny_sam3_model(num_points=0).state_dict()
    moved = {}
    for name, weight in one.items():
        assert (weight - two[name]).abs().max() <= 2e-5, name
        key = name.removeprefix("base_model.model.").replace(".modules_to_save", "")
        if "vision_encoder" in name and key in before:
            moved[key] = (weight - before[key]).abs().max().item()
    assert moved and max(moved.values()) > 1e-4, sorted(one)[:20]


def samples_by_step(folder):
    lines = [line for rank in records(folder).values() for line in rank]
    return {step: sorted(name for line in lines if line["step"] == step for name in line["ids"]) for step in range(4)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_two_processes_learn_as_one_with_the_same_global_batch(toy_runs, name):
    one, two = finished(toy_runs, "one"), finished(toy_runs, name)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert samples_by_step(two) == samples_by_step(one)
    for score in ("eval_cIoU", "eval_gIoU", "eval_seg_emission", "eval_token_accuracy"):
        assert evaluation(two)[score] == pytest.approx(evaluation(one)[score], abs=2e-3), score
    assert evaluation(two)["eval_masks"] == evaluation(one)["eval_masks"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_boxes_alone_teach_two_processes_as_one(toy_runs, engine):
    one, two = finished(toy_runs, "one_boxes"), finished(toy_runs, f"{engine}_boxes")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    first, other = (
        json.loads((folder / "logs.json").read_text())[0] for folder in (one, two)
    )  # objects are in step 1
    assert first["box_loss"] > 0 and first["boxes"] > 0 and first["masks"] == 0
    assert other["box_loss"] == pytest.approx(first["box_loss"], rel=1e-5)


def test_accumulation_does_not_change_a_step(model, start, tmp_path):
    """4 micro-batches of 1 and 1 of 4, the same samples. Normalised over the whole step: by micro-batch, means of
    batches of unequal length are averaged, and the two differ."""
    settings = {"model": model, "model_arguments": EXACT, "max_steps": 3, "loss_normalization": "global"}
    shapes = {"one": (4, 1), "four": (1, 4)}
    for name, (batch, steps) in shapes.items():
        run(
            output_dir=tmp_path / name,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            **settings,
        )
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert_same_weights(adapter(tmp_path / "one"), adapter(tmp_path / "four"), start)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_ranks_with_text_pictures_clips_and_no_masks_do_not_wait_for_each_other(model, tmp_path, engine):
    """In the toy data's own order one rank has masks and the other text only, or a clip and a picture."""
    launch(tmp_path / "run", 2, model=model, max_steps=3, mixed=True, per_device_train_batch_size=1, **ENGINES[engine])
    kinds = {
        rank: [ToyDataset.kind(ToyDataset(None), int(line["ids"][0][4:])) for line in lines]
        for rank, lines in records(tmp_path / "run").items()
    }
    assert kinds["0"] != kinds["1"] and 0 in kinds["0"] and len(kinds["0"]) == len(kinds["1"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero3"])
def test_a_loss_that_is_not_finite_on_one_rank_is_left_out_by_all(model, tmp_path, engine):
    settings = {"model": model, "max_steps": 3, "mixed": True, "per_device_train_batch_size": 1, "size": 10}
    settings |= {"nonfinite_loss": "skip", "faults": {"nan": [3]}, "model_arguments": EXACT}
    launch(tmp_path / "run", 2, **settings, **ENGINES[engine])
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped_samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"], line["ids"], line["finite"]) for line in listed] == [
        (1, 0, ["toy-2"], True),
        (1, 1, ["toy-3"], False),
    ]
    assert all(torch.isfinite(weight).all() for weight in adapter(tmp_path / "run").values())
    logged = [entry for entry in json.loads((tmp_path / "run/logs.json").read_text()) if "loss" in entry]
    assert [entry["loss"] == 0 for entry in logged] == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp"])
def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_the_run_goes_on(toy_runs, model, tmp_path, engine):
    settings = SAME | {"model": model, "model_arguments": EXACT, "save_strategy": "no"} | ENGINES[engine]
    stopped = tmp_path / "run"
    launch(stopped, 2, **settings, faults={"signal_at": [1, 1, 10]})
    assert [path.name for path in stopped.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert {rank: len(lines) for rank, lines in records(stopped).items()} == {"0": 2, "1": 2}
    (stopped / "logs.json").unlink()
    launch(stopped, 2, **settings, resume_from_checkpoint="auto")
    assert losses(stopped) == pytest.approx(losses(finished(toy_runs, engine)), rel=1e-6)
    whole, resumed = adapter(finished(toy_runs, engine)), adapter(stopped)
    assert all(torch.allclose(whole[name], weight, rtol=0, atol=1e-7) for name, weight in resumed.items())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2"])
def test_a_full_disk_ends_all_ranks_and_leaves_the_checkpoint_before_it(model, tmp_path, engine):
    settings = {"model": model, "model_arguments": EXACT, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    launch(tmp_path / "run", 2, expect=1, **settings, **ENGINES[engine], faults={"disk_full_at": [4, 200_000]})
    log = (tmp_path / "run/log.txt").read_text()
    assert "checkpoint-4 could not be written" in log and "checkpoint-2 is complete: make room" in log
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(toy_runs, model, tmp_path):
    """The same samples in every step, since batches and accumulation make up for the rank that is gone."""
    whole, part = finished(toy_runs, "ddp"), tmp_path / "part"
    settings = SAME | {"model": model, "model_arguments": EXACT}
    launch(part, 2, **settings, faults={"signal_at": [1, 0, 15]})
    (part / "logs.json").unlink()
    launch(part, 1, **settings, gradient_accumulation_steps=2, resume_from_checkpoint="auto")
    assert losses(part) == pytest.approx(losses(whole), rel=1e-5)


# Each engine with the way of training that its weights make hard, and FSDP2, which spreads them in either case, with
# both. LoRA under DDP and ZeRO-2 is resumed in the tests above and in tests/training/test_faults.py.
RESUMED = [("ddp", "full"), ("zero2", "full"), ("zero3", "lora"), ("fsdp2", "lora"), ("fsdp2", "full")]


def trained_weights(folder, trained):
    name = "adapter_model.safetensors" if trained == "lora" else "model.safetensors"
    return load_file(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "trained"), RESUMED)
def test_a_resumed_run_ends_as_one_that_was_not_and_with_its_best_checkpoint(model, tmp_path, engine, trained):
    """Resumed from checkpoint-1 of 2. The checkpoint with the greater loss counts as the best: it is not the last."""
    random = {"lora_dropout": 0.1, "num_points": 64}  # numbers are drawn in every step: their state comes back too
    settings = {"model": model, "model_arguments": random | {"train_llm": trained}, "max_steps": 2, "save_steps": 1}
    settings |= {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "evaluate": True}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    settings |= {"learning_rate": 0.005, "warmup_steps": 0} | ENGINES[engine]
    whole = launch(tmp_path / "whole", 2, **settings)
    state = json.loads((whole / "checkpoint-2/trainer_state.json").read_text())
    best = whole / Path(state["best_model_checkpoint"]).name
    assert best.name == "checkpoint-1"
    for name, weight in trained_weights(whole, trained).items():
        assert torch.equal(weight, trained_weights(best, trained)[name]), name
    shutil.copytree(whole / "checkpoint-1", tmp_path / "part/checkpoint-1")
    part = launch(tmp_path / "part", 2, **settings, resume_from_checkpoint="auto")
    assert losses(part) == pytest.approx(losses(whole), rel=1e-6)
    for name, weight in trained_weights(part / "checkpoint-2", trained).items():
        other = trained_weights(whole / "checkpoint-2", trained)[name]
        assert torch.allclose(weight, other, rtol=0, atol=1e-7), name


FLAGS = {
    "count_flops": True,
    "gradient_checkpointing": True,
    "recompute_every": 2,
    "loss_normalization": "global",
    "nonfinite_loss": "skip",
    "bad_samples": "skip",
    "learning_rate_scales": {"lora_": 0.5},
    "join": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
}


# What `Sa2VATrainingArguments` refuses; the refusals are held in tests/test_arguments.py.
NOT_WITH = {"zero3": {"count_flops"}, "fsdp2": {"count_flops"}}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_all_flags_work_together_with_bad_samples_and_losses(model, tmp_path, engine):
    """All that the engine takes at once, with a loss that is not finite and a micro-batch whose only sample is bad."""
    refused = NOT_WITH.get(engine, set())
    flags = {name: value for name, value in FLAGS.items() if name not in refused}
    settings = {"model": model, "max_steps": 3, "size": 12, "faults": {"nan": [6], "bad": [5]}} | ENGINES[engine]
    folder = launch(tmp_path / "run", 2, **flags, **settings)
    logged = [entry for entry in json.loads((folder / "logs.json").read_text()) if "loss" in entry]
    assert len(logged) == 3 and logged[-1]["skipped_batches"] == 1
    assert logged[-1]["bad_samples"] == 1
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    assert ("tflops" in logged[0]) is ("count_flops" not in refused)
