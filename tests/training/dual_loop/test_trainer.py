"""Laws of the dual loop's trainer: what is trained, what the teacher is, and that neither interruptions nor the number
of processes change a run.

The slow ones start processes: pytest -m slow tests/training/dual_loop/test_trainer.py
"""

from pathlib import Path

import pytest
import torch
from loop_run import build, launch
from safetensors.torch import load_file
from toy_run import FSDP2, PRESETS, tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration
from sa2va_hf.checkpoints.merge import merge


@pytest.fixture(scope="module")
def model(toy_runs):
    return str(tiny_folder(toy_runs))


def weights(trainer):
    trained = trainer.model.sa2va.named_parameters()
    return {name: weight.detach().clone() for name, weight in trained if weight.requires_grad}


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run of 3 steps with everything in it, and the student's weights before the first and after every step."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = build(folder, model, max_steps=3, loop={"ema_decay": 0.9, "cosine_weight": 0.1, "denoising_weight": 0.1})
    history = [weights(trainer)]
    frozen = {n: w.detach().clone() for n, w in trainer.model.named_parameters() if not w.requires_grad}
    step = trainer.callback_handler.on_step_end

    def on_step_end(*args):
        history.append(weights(trainer))
        return step(*args)

    trainer.callback_handler.on_step_end = on_step_end
    trainer.train()
    trainer.save_model()
    return trainer, history, frozen


def test_what_is_trained_changes_and_the_rest_stays(finished):
    trainer, history, frozen = finished
    assert len(history) == 4
    assert all(not torch.equal(history[0][name], history[-1][name]) for name in history[0])
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())


def test_the_teacher_is_the_closed_form_of_the_students(finished):
    trainer, history, _ = finished
    decay, steps = 0.9, len(history) - 1
    for name, average in trainer.ema.averages.items():
        expected = decay**steps * history[0][name]
        for step in range(1, steps + 1):
            expected = expected + (1 - decay) * decay ** (steps - step) * history[step][name]
        assert torch.allclose(average, expected, rtol=1e-5, atol=1e-7), name
    student = dict(trainer.model.sa2va.named_parameters())
    with trainer.ema.applied(trainer.model.sa2va):
        assert all(torch.equal(student[name], average) for name, average in trainer.ema.averages.items())
    assert all(torch.equal(student[name], weight) for name, weight in history[-1].items()), "the student is back"


def test_the_log_says_what_the_loops_did(finished):
    logs = [entry for entry in finished[0].state.log_history if "loss" in entry]
    loops = [entry for entry in logs if "loops" in entry]
    assert len(logs) == 3 and len(loops) == 2, "a supervised step first, then two of pairs"
    for entry in loops:
        parts = {name: value for name, value in entry.items() if name.startswith("loop_")}
        captions = parts.pop("loop_caption_loss") + parts.pop("loop_caption_answer_loss")
        assert set(parts) == {f"loop_{n}_loss" for n in ("mask", "dice", "answer", "denoising", "cosine")}
        assert sum(parts.values()) + 0.5 * captions == pytest.approx(entry["loss"], rel=1e-4)
        assert 1 <= entry["caption_length"] <= 5 and 0 < entry["distinct_tokens"] <= 1
        assert all(0 <= entry[name] <= 1 for name in ("seg_emission", "cross_cIoU", "agreement"))


def test_what_is_saved_is_a_sa2va_adapter(finished, model, tmp_path):
    trainer, history, _ = finished
    folder = trainer.args.output_dir
    merge_folder = tmp_path / "merged"

    merge(Path(folder), merge_folder, base=model)
    loaded = Sa2VAForConditionalGeneration.from_pretrained(merge_folder)
    name = next(
        name for name in history[-1] if "text_hidden_fcs.0.modules_to_save" in name and name.endswith("weight")
    )
    assert torch.equal(loaded.text_hidden_fcs[0].weight, history[-1][name])


def test_evaluation_finds_what_was_described(finished):
    trainer = finished[0]
    scores = trainer.evaluate()
    assert scores["eval_pairs"] == 4 and 0 <= scores["eval_cross_cIoU"] <= 1
    assert scores == trainer.evaluate(), "nothing random is in it"


@pytest.mark.parametrize("gradient", [True, False])
def test_a_mask_reaches_the_caption_through_the_straight_through_sample_alone(model, tmp_path, gradient):
    loop = {"caption_gradient": gradient, "answer_weight": 0.0}
    trainer = build(tmp_path, model, second=False, share=0, loop=loop)
    batch = trainer.data_collator([trainer.train_dataset["pairs", 0]])
    read = []
    trainer.model.base.get_input_embeddings().register_forward_hook(
        lambda module, args, output: read.append(output) or output.retain_grad()
    )
    trainer.model(pairs=batch["pairs"], captions=[torch.tensor([70, 71, 72])])["first"].backward()
    assert len(read) == (2 if gradient else 1), "the region is read for the sake of its gradient alone"
    assert all(bool(one.grad.abs().sum() > 0) for one in read)


def test_gradient_surgery_is_the_sum_where_nothing_is_taken_away(model, tmp_path):
    found = []
    for surgery in (False, True):
        loop = {"gradient_surgery": surgery, "caption_weight": 0.3}
        trainer = build(tmp_path, model, share=0, loop=loop, max_steps=1, max_grad_norm=0, learning_rate=0)
        batch = trainer.data_collator([trainer.train_dataset["pairs", 0], trainer.train_dataset["captioned", 0]])
        batch["pairs"]["captions"] = [torch.tensor([70, 71, 72])]
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, batch)
        found.append({n: w.grad for n, w in trainer.model.named_parameters() if w.grad is not None})
    conflict = trainer.loop_meter.sums["cosine"] < 0
    assert found[0].keys() == found[1].keys() and trainer.loop_meter.sums["surgeries"] == 1
    same = all(torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-7) for name in found[0])
    assert same != conflict


SLOW = {"loop": {"ema_decay": 0.9}, "save_strategy": "no"}


def state(folder):
    """Student, and teacher; FSDP2 writes the latter in parts, which are not read."""
    teacher = folder / "ema.safetensors"
    averages = load_file(teacher) if teacher.is_file() else {}
    return load_file(folder / "adapter_model.safetensors") | {f"teacher {n}": one for n, one in averages.items()}


TWO_STEPS = SLOW | {"share": 0, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
TWO_STEPS |= {"weight_decay": 0.0, "lr_scheduler_type": "constant", "optim_args": "momentum=0.9"}
SURGERY = {"gradient_surgery": True, "surgery_on_conflict_only": False, "ema_decay": 0.9}
ENGINES = {
    "ddp": {},
    "ddp, surgery": {"loop": SURGERY},
    "zero2": {"deepspeed": str(PRESETS / "zero2.json")},
    "fsdp2": {"environment": FSDP2},
}


@pytest.fixture(scope="module")
def in_one_process(model, tmp_path_factory):
    """The weights before and after two steps of one process, without and with gradient surgery."""
    found = []
    for settings in ({}, {"loop": SURGERY}):
        folder = tmp_path_factory.mktemp("one")
        trainer = build(folder, model, per_device_train_batch_size=2, **TWO_STEPS | settings)
        trainer.save_model(folder / "start")
        trainer.train()
        trainer.save_model()
        trainer._save_optimizer_and_scheduler(folder)
        found.append((state(folder / "start"), state(folder)))
    (_, plain), (_, combined) = found
    assert any(not torch.allclose(weight, combined[name], atol=1e-4) for name, weight in plain.items())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_end_with_the_weights_of_one(model, in_one_process, tmp_path, engine):
    """Two steps of SGD, so that a weight changes by its gradients: one process with batches of 2, and two with
    batches of 1. Tolerance: 1e-4 of what a tensor has changed at most (float32 sums in another order)."""
    start, one = in_one_process["surgery" in engine]
    two = state(launch(tmp_path / "two", 2, model=model, **TWO_STEPS | ENGINES[engine]))
    assert one.keys() == two.keys() or engine == "fsdp2"
    moved = 0
    for name, before in start.items():
        change = (one[name] - before).abs().max()
        assert (one[name] - two[name]).abs().max() <= 1e-4 * change + 1e-7, name
        moved += bool(change > 1e-5)
    assert moved > len(start) / 4
    for name in (name for name in two if name.startswith("teacher ")):
        assert torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_a_killed_run_resumes_with_its_teacher(model, tmp_path):
    """Student and teacher, after 5 steps of all kinds, are those of a run that was not killed, to the bit."""
    saving = SLOW | {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    whole = state(launch(tmp_path / "whole", 1, model=model, **saving))
    launch(tmp_path / "killed", 1, expect=-9, model=model, die_at=3, **saving)
    resumed = state(launch(tmp_path / "killed", 1, model=model, resume_from_checkpoint="auto", **saving))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
