"""Laws of training: what should change does and nothing else; the number of processes and interruptions do not matter.

The slow ones start processes: pytest -m slow tests/training/sa2va/test_trainer.py
"""

import json
import math

import pytest
import torch
from toy_run import build, evaluation, launch, losses, records, run, tiny_folder

from sa2va_hf.arguments import Sa2VATrainingArguments
from sa2va_hf.training.meter import Meter
from sa2va_hf.training.sa2va.progress import COUNTS, batch_counts, box_counts, logged, mask_counts

RANDOM = {"lora_dropout": 0.1, "num_points": 64}  # draws random numbers in every step


@pytest.fixture(scope="session")
def model(toy_runs):
    return str(tiny_folder(toy_runs))


def snapshot(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("train_llm", ["lora", "full"])
def test_trained_weights_change_and_frozen_ones_stay_bit_identical(model, tmp_path, train_llm):
    # `iou_token` and the like are reached only through the argmax' winner, hence samples with masks and some steps
    chosen = {"train_llm": train_llm, "num_points": 0}
    trainer = build(output_dir=tmp_path, model=model, model_arguments=chosen, max_steps=3, warmup_steps=0)
    trainer.train_dataset.kinds = (2, 2, 4)
    before = snapshot(trainer.model)
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained - changed == set(), "trained, but did not change"
    assert changed - trained == set(), "frozen, but changed"
    for part in (
        "multi_modal_projector",
        "text_hidden_fcs",
        "sam_mask_decoder.transformer",
        "lm_head",
        "embed_tokens",
    ):
        assert any(part in name for name in changed)
    for part in ("vision_tower", "image_encoder", "iou_prediction_head", "memory_attention"):
        assert not any(part in name for name in changed)


def test_loss_parts_add_up_to_the_loss_and_tokens_are_counted(model, tmp_path):
    trainer = run(output_dir=tmp_path, model=model, max_steps=5, gradient_accumulation_steps=2)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 5 and any("mask_loss" in entry for entry in logs)
    for entry in logs:
        masks = entry.get("mask_loss", 0) + entry.get("dice_loss", 0)
        assert entry["lm_loss"] + entry["mask_batches"] * masks == pytest.approx(entry["loss"], rel=1e-5)
        assert 0 < entry["padding_efficiency"] <= 1 and entry["tokens_per_second"] > 0
        assert (entry["masks"] > 0) == (entry["mask_batches"] > 0)


def test_the_meter_averages_mask_losses_over_batches_with_masks():
    class Alone:
        device, num_processes = torch.device("cpu"), 1

        @staticmethod
        def reduce(sums):
            return sums

    meter = Meter((*COUNTS, "lm_loss", "mask_loss"))
    meter.add(batch_counts({"lm_loss": 1.0, "mask_loss": 4.0}, masks=3, tokens=30, padded=40, samples=2))
    meter.add(batch_counts({"lm_loss": 2.0, "mask_loss": 0.0}, masks=0, tokens=10, padded=10, samples=2))
    read = logged(meter.totals(Alone), 1, 1, Alone.device)
    assert read["lm_loss"] == 1.5 and read["mask_loss"] == 4.0 and read["mask_batches"] == 0.5
    assert read["masks"] == 3 and read["padding_efficiency"] == 40 / 50
    meter.add({"seconds": 8.0, "waiting": 2.0})
    read = logged(meter.totals(Alone), 1, 1, Alone.device)
    assert (read["samples_per_second"], read["masks_per_second"], read["data_wait"]) == (0.5, 0.375, 0.25)


def test_masks_are_counted_as_their_losses_weigh_them():
    """Two objects on three frames, of which all pixels of one and some of another are ignored; one on one; none."""
    ignore = torch.zeros(3, 4, 4, dtype=torch.bool)
    ignore[0], ignore[1, 2] = True, True
    masks = [torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(0, 1, 1, 1)]
    assert mask_counts({"mask_labels": masks, "ignore_labels": [ignore, None, None]}) == [[2, 2], [1], []]
    assert mask_counts({"mask_labels": masks}) == [[2, 2, 2], [1], []]
    assert mask_counts({}) == []
    known = torch.tensor([[True, False, True], [True, False, False]])
    assert mask_counts({"mask_labels": masks, "mask_known": [known, None, None]}) == [[2, 1], [1], []]
    boxes = torch.tensor([[1.0, 1, 0, 0, 0.5, 0.5], [1, 1, 0.6, 0.6, 1, 1], [0, 1, 0, 0, 1, 1], [1, 2, 0, 0, 1, 1]])
    assert box_counts({"box_labels": [boxes, None, None]}) == [[2, 1], [], []]


EXACT = {"model_arguments": {"lora_dropout": 0.0, "num_points": 0}, "max_steps": 3, "warmup_steps": 0}


def farthest(one, other):
    """How far trained weights are from each other, in units of how far they went: the largest over all tensors."""
    settings = {"output_dir": one.args.output_dir, "model": one.start, "model_arguments": EXACT["model_arguments"]}
    start, end, found = snapshot(build(**settings).model), snapshot(one.model), snapshot(other.model)
    moved = [name for name in end if not torch.equal(end[name], start[name])]
    return max(float((end[name] - found[name]).norm() / (end[name] - start[name]).norm()) for name in moved)


def test_global_normalisation_does_not_know_how_a_step_is_cut(model, tmp_path):
    """Means over all tokens and masks of a step; `batch`, as released, weighs every micro-batch alike."""

    def train(name, **settings):
        settings = EXACT | {"optim": "sgd", "learning_rate": 0.1, "output_dir": tmp_path / name} | settings
        trainer = run(model=model, **settings)
        trainer.start = model
        return trainer

    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    whole = {"per_device_train_batch_size": 4}
    one = train("whole", loss_normalization="global", **whole)
    other = train("cut", loss_normalization="global", **cut)
    assert losses(other.args.output_dir) == pytest.approx(losses(one.args.output_dir), rel=1e-5)
    assert farthest(one, other) < 1e-4
    released = train("released", **cut)
    assert farthest(one, released) > 1e-3
    for entry in (entry for entry in one.state.log_history if "loss" in entry):  # a step is one micro-batch here
        masks = entry.get("mask_loss", 0) + entry.get("dice_loss", 0)
        assert entry["lm_loss"] + masks == pytest.approx(entry["loss"], rel=1e-5)


def test_activations_of_every_second_layer_are_computed_again_and_nothing_else_changes(model, tmp_path):
    settings = EXACT | {"model": model}
    kept = run(output_dir=tmp_path / "kept", **settings)
    chosen = {"gradient_checkpointing": True, "recompute_every": 2}
    again = run(output_dir=tmp_path / "again", **settings, **chosen)
    assert losses(again.args.output_dir) == pytest.approx(losses(kept.args.output_dir), rel=1e-5)
    llm = again.model.get_base_model().mllm.model.language_model
    assert [layer.gradient_checkpointing for layer in llm.layers] == [True, False]
    with pytest.raises(ValueError, match="`recompute_every`: expected 1, or more together with"):
        Sa2VATrainingArguments(str(tmp_path), recompute_every=2)


def test_joined_samples_train_as_padded_ones(model, tmp_path):
    settings = EXACT | {"model": model, "evaluate": True, "count_flops": True}
    padded = run(output_dir=tmp_path / "padded", **settings)
    joined = run(output_dir=tmp_path / "joined", join=True, **settings)
    assert losses(joined.args.output_dir) == pytest.approx(losses(padded.args.output_dir), rel=1e-4)
    assert evaluation(joined.args.output_dir)["eval_loss"] == pytest.approx(
        evaluation(padded.args.output_dir)["eval_loss"], rel=1e-3
    )
    logs = [entry for entry in joined.state.log_history if "padding_efficiency" in entry]
    assert [entry["padding_efficiency"] for entry in logs] == [1.0] * 3 and logs[0]["samples_per_second"] > 0
    assert all(entry["tflops"] > 0 and "mfu" not in entry for entry in logs)  # no peak is known of a CPU


def test_gradient_checkpointing_changes_the_memory_and_not_the_losses(model, tmp_path):
    settings = {"model": model, "model_arguments": {"lora_dropout": 0.0, "num_points": 0}, "max_steps": 3}
    plain = run(output_dir=tmp_path / "plain", **settings)
    checkpointed = run(output_dir=tmp_path / "checkpointed", gradient_checkpointing=True, **settings)
    assert losses(checkpointed.args.output_dir) == pytest.approx(losses(plain.args.output_dir), rel=1e-5)


def test_in_half_precision_what_is_trained_stays_float32(model, tmp_path):
    trainer = build(output_dir=tmp_path, model=model, max_steps=2, bf16=True)
    before = snapshot(trainer.model)
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            assert weight.dtype == torch.float32
        elif "mllm" in name:
            assert weight.dtype == torch.bfloat16 and torch.equal(weight, before[name])
    assert all(math.isfinite(loss["loss"]) for loss in trainer.state.log_history if "loss" in loss)


def test_weight_decay_reaches_norms_and_biases(model, tmp_path):
    trainer = build(output_dir=tmp_path, model=model, max_steps=1)
    groups = trainer.create_optimizer().param_groups
    decayed = sum(weight.numel() for group in groups for weight in group["params"] if group["weight_decay"] == 0.05)
    assert decayed == sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)


def test_learning_rate_scales_reach_the_parameters_they_name(model, tmp_path):
    scales = {"lora_A": 0.5, "lora_": 0.1}  # the first match wins
    trainer = build(output_dir=tmp_path, model=model, max_steps=1, learning_rate_scales=scales)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    rates = {names[id(weight)]: group["lr"] for group in groups for weight in group["params"]}
    assert rates.keys() == {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    for name, rate in rates.items():
        assert rate == pytest.approx(1e-3 * (0.5 if "lora_A" in name else 0.1 if "lora_B" in name else 1)), name
    assert {group["weight_decay"] for group in groups} == {0.05}
    trainer.optimizer, trainer.args.learning_rate_scales = None, {"lora_C": 0.5}
    with pytest.raises(ValueError, match="no trained parameter has a name that matches .*lora_C"):
        trainer.create_optimizer()


def test_a_loss_that_is_not_finite_names_the_samples(model, tmp_path):
    trainer = build(output_dir=tmp_path, model=model, max_steps=1)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"step 0: loss nan .*toy-\d+"):
        trainer.train()


def test_evaluating_does_not_change_the_training(model, tmp_path):
    settings = {"model": model, "model_arguments": RANDOM, "max_steps": 4}
    plain = run(output_dir=tmp_path / "plain", **settings)
    often = run(output_dir=tmp_path / "often", evaluate=True, eval_strategy="steps", eval_steps=1, **settings)
    assert losses(often.args.output_dir) == losses(plain.args.output_dir)


def test_evaluation_alone_is_the_trainers_own_to_the_last_digit(model, tmp_path):
    """Of the same live model; tests/scripts/test_train.py loads it anew, which may change the last bits."""
    trainer = run(output_dir=tmp_path, model=model, evaluate=True, max_steps=1)
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    own, alone = (
        {name: score for name, score in found.items() if name not in timed}
        for found in (trainer.evaluate(), trainer.only_evaluate(None))
    )
    assert "eval_cIoU" in own and alone == own
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_loss"] == own["eval_loss"]


def test_the_best_checkpoint_is_chosen_by_ciou_and_loaded(model, tmp_path):
    trainer = build(
        output_dir=tmp_path, model=model, evaluate=True, max_steps=2, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, model_arguments={"train_llm": "full"},
    )  # fmt: skip
    assert trainer.args.metric_for_best_model == "cIoU" and trainer.args.greater_is_better
    fixed = iter([0.7, 0.2, 0.2])
    trainer.compute_metrics = lambda prediction: {"cIoU": next(fixed)}
    kept = {}
    original = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *a: (kept.setdefault("first", snapshot(trainer.model)), original(*a))
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, kept["first"][name]), name


@pytest.mark.parametrize("train_llm", ["lora", "full"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(model, tmp_path, train_llm):
    settings = {"model": model, "model_arguments": RANDOM | {"train_llm": train_llm}, "size": 15}
    settings |= {"max_steps": 12, "save_strategy": "steps", "save_steps": 5}  # an epoch is 9 steps
    whole = run(output_dir=tmp_path / "whole", **settings)
    part = tmp_path / "part"
    part.mkdir()
    (tmp_path / "whole" / "checkpoint-5").rename(part / "checkpoint-5")
    resumed = run(output_dir=part, resume_from_checkpoint="auto", **settings)
    assert records(part)["0"] == records(tmp_path / "whole")["0"][5:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_sample_is_seen_once_an_epoch(model, tmp_path):
    run(output_dir=tmp_path, model=model, size=20, num_train_epochs=2, model_arguments={"train_llm": "none"})
    seen = [name for line in records(tmp_path)["0"] for name in line["ids"]]
    assert sorted(seen) == sorted(f"toy-{virtual}" for virtual in range(40))
    assert seen[:20] != [f"toy-{int(name[4:]) - 20}" for name in seen[20:]], "each epoch has its own order"


# ---- several processes ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "extra"),
    [
        (1, {"dataloader_num_workers": 2}),  # which have read ahead when the run is killed
        (2, {}),
    ],
    ids=["workers", "ddp"],
)
def test_a_killed_run_resumes_exactly(model, tmp_path, processes, extra):
    settings = {"model": model, "model_arguments": RANDOM, "size": 30, "max_steps": 4}
    settings |= {"save_strategy": "steps", "save_steps": 2} | extra
    whole, part = tmp_path / "whole", tmp_path / "part"
    launch(whole, processes, **settings)
    launch(part, processes, expect="killed", faults={"die_at": 3}, **settings)  # kill -9, a step after checkpoint-2
    before = {rank: len(lines) for rank, lines in records(part).items()}
    launch(part, processes, resume_from_checkpoint="auto", **settings)
    assert len(before) == processes
    for rank, lines in records(whole).items():
        assert records(part)[rank][before[rank] :] == [line for line in lines if line["step"] >= 2]
