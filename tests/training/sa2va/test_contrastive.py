"""The contrastive term of objects and the names of their classes: its closed form, and the same over ranks.

The slow one starts processes: pytest -m slow tests/training/sa2va/test_contrastive.py
"""

import math

import pytest
import torch
from clips import rows
from loop_run import captioned
from safetensors.torch import load_file
from tiny import tiny_processor
from toy_run import EXACT, FSDP2, launch, losses, run, tiny_folder

from sa2va_hf.arguments import Sa2VATrainingArguments
from sa2va_hf.data.collator import Sa2VACollator, phrase_of
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.schema import Expression
from sa2va_hf.training.sa2va.contrastive import contrastive_over_ranks, labels_of, multi_label_contrastive

CATEGORIES = ["mug:handle", "mug", "pot:Handle", "dog", "dog"]


def test_classes_that_share_a_part_or_an_object_are_positives():
    handle, mug, other, dog, _ = map(labels_of, CATEGORIES)
    assert handle & mug and handle & other and not mug & other and not dog & handle
    assert not labels_of("handle") & handle, "an object called as a part is no part"
    assert [phrase_of(one) for one in CATEGORIES[:2]] == ["handle of the mug", "mug"]


def test_the_term_is_its_closed_form():
    """Two objects at right angles, their names exactly so: cosine 1 with the own name, 0 with the other."""
    axes = torch.eye(2) * torch.tensor([[3.0], [0.5]])
    for temperature in (1.0, 0.2):
        right = math.exp(1 / temperature) / (math.exp(1 / temperature) + 1)
        apart = multi_label_contrastive(axes, axes, [labels_of("mug"), labels_of("dog")], temperature)
        assert apart.item() == pytest.approx(-math.log(right), abs=1e-5)
        alike = multi_label_contrastive(axes, axes, [labels_of("mug"), labels_of("mug:lid")], temperature)
        assert alike.item() == pytest.approx(-(math.log(right) + math.log(1 - right)) / 2, rel=1e-4)
    assert multi_label_contrastive(axes[:0], axes[:0], [], 0.1).item() == 0
    assert multi_label_contrastive(axes[:1], axes[1:], [labels_of("mug")], 0.1).item() == 0, "nothing to tell apart"


@pytest.mark.parametrize("cuts", [(0, 2, 5), (0, 5, 5), (0, 1, 2, 5)])
def test_the_mean_gradient_of_the_ranks_is_that_of_all_objects_together(cuts):
    """Also where a rank has no object. Tolerance: float32 rounding."""
    torch.manual_seed(0)
    objects, names = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    whole = multi_label_contrastive(objects, names, list(map(labels_of, CATEGORIES)), 0.2)
    expected = torch.autograd.grad(whole, (objects, names))
    shares = [slice(*pair) for pair in zip(cuts, cuts[1:], strict=False)]
    parts = [(objects[own].detach(), names[own].detach(), CATEGORIES[own]) for own in shares]
    found = [torch.zeros(5, 4), torch.zeros(5, 4)]
    for rank, own in enumerate(shares):
        given = (objects[own], names[own], CATEGORIES[own], 0.2)
        loss = contrastive_over_ranks(*given, lambda mine: parts, rank, len(shares))
        assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
        for total, gradient in zip(found, torch.autograd.grad(loss, (objects, names)), strict=True):
            total += gradient / len(shares)
    for gradient, total in zip(expected, found, strict=True):
        assert torch.allclose(gradient, total, rtol=1e-4, atol=1e-6)


def test_examples_and_batches_say_the_class_of_each_seg():
    made = captioned("picture")
    made.objects[0].category = "mug:handle"
    made.expressions.append(Expression("all of them", [0, 1]))
    processor = tiny_processor()
    dataset = Sa2VADataset([(rows(made), 1)], processor, train=False, classes=True)
    assert dataset[0]["seg_classes"] == ["mug:handle", None, None]
    batch = Sa2VACollator(processor, classes=True)([dataset[0]])
    assert (batch["class_names"], batch["class_index"]) == (["mug:handle"], [0, None, None])
    assert processor.tokenizer.decode(batch["class_ids"][0]) == "handle of the mug"


@pytest.fixture(scope="module")
def model(toy_runs):
    return str(tiny_folder(toy_runs))


STEPS = {"model_arguments": EXACT, "max_steps": 2, "loss_normalization": "global", "contrastive_weight": 0.5}
STEPS |= {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0, "weight_decay": 0.0}
STEPS |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "optim_args": "momentum=0.9"}


@pytest.fixture(scope="module")
def in_one_process(model, tmp_path_factory):
    """Two steps of one process with batches of 4: the trainer and its folder."""
    folder = tmp_path_factory.mktemp("one")
    trainer = run(output_dir=folder, model=model, per_device_train_batch_size=4, **STEPS)
    return trainer, folder


def test_the_term_is_logged_and_part_of_the_loss(in_one_process):
    trainer, _ = in_one_process
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any(entry.get("contrastive_loss", 0) > 0.01 for entry in logged)  # 0 of a batch with one object
    batch = trainer.data_collator([trainer.train_dataset[number] for number in (1, 4)])
    assert [batch["class_names"][row] for row in batch["class_index"]] == [
        name for number in (1, 4) for name in trainer.train_dataset[number]["seg_classes"]
    ]
    without = Sa2VACollator(trainer.processing_class)
    with pytest.raises(ValueError, match=r"`contrastive_weight`: .* use Sa2VACollator\(classes=True\)"):
        type(trainer)(trainer.model, trainer.args, without, trainer.train_dataset)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"contrastive_weight": -1.0}, "`contrastive_weight`: expected 0 or more"),
        ({"contrastive_temperature": 0.0}, "`contrastive_temperature`: expected more than 0"),
        ({"contrastive_weight": 1.0, "bad_samples": "skip"}, "`contrastive_weight`: not with `bad_samples: skip`"),
    ],
)
def test_settings_that_cannot_be_used(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Sa2VATrainingArguments(output_dir=str(tmp_path), **wrong)


ENGINES = {"ddp": {}, "fsdp2": {"environment": FSDP2}}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_learn_as_one_with_the_same_objects(model, in_one_process, tmp_path, engine):
    """Two steps of SGD; tolerance as in test_engines.py."""
    trainer, one = in_one_process
    assert trainer.state.log_history[0]["contrastive_loss"] > 0.1
    two = launch(tmp_path / "two", 2, model=model, per_device_train_batch_size=2, **STEPS | ENGINES[engine])
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    for name, weight in first.items():
        assert (weight - second[name]).abs().max() <= 2e-5, name
