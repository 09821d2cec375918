"""Training from Python: what is missing gets a default, what cannot work is refused in one line before it starts."""

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model, tiny_processor
from toy_run import ToyDataset
from transformers import TrainingArguments

from sa2va_hf.arguments import ModelArguments, Sa2VATrainingArguments
from sa2va_hf.data.collator import Sa2VACollator
from sa2va_hf.data.dataset.dataset import Sa2VADataset
from sa2va_hf.data.schema import FEATURES, Sample, Turn, to_row
from sa2va_hf.training.sa2va.build import EvalSelection
from sa2va_hf.training.sa2va.given import settle_metric
from sa2va_hf.training.sa2va.scores import scores
from sa2va_hf.training.sa2va.trainable import make_trainable
from sa2va_hf.training.sa2va.trainer import Sa2VATrainer


@pytest.fixture(scope="module")
def model():
    return make_trainable(tiny_model(num_points=16), ModelArguments("tiny", train_llm="none"))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def arguments(folder, **settings):
    return Sa2VATrainingArguments(output_dir=str(folder), use_cpu=True, **settings)


def test_a_trainer_needs_a_model_a_dataset_and_a_processor_only(model, processor, tmp_path):
    dataset = ToyDataset(processor, 4)
    trainer = Sa2VATrainer(model=model, args=arguments(tmp_path, max_steps=1), train_dataset=dataset)
    assert isinstance(trainer.data_collator, Sa2VACollator) and trainer.processing_class is processor
    assert trainer.train().global_step == 1


def test_arrow_rows_become_a_dataset(model, processor, tmp_path):
    samples = [Sample(f"t{n}", "question", turns=[Turn("What is this?", "a dog.")]) for n in range(3)]
    rows = Dataset.from_list([to_row(sample) for sample in samples], features=FEATURES)
    given = {"train_dataset": rows, "eval_dataset": {"one": rows}, "processing_class": processor}
    trainer = Sa2VATrainer(model=model, args=arguments(tmp_path), **given)
    for dataset, train in ((trainer.train_dataset, True), (trainer.eval_dataset["one"], False)):
        assert isinstance(dataset, Sa2VADataset) and len(dataset) == 3 and dataset.train is train


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"args": "plain"}, "`args`: expected Sa2VATrainingArguments .* got TrainingArguments"),
        ({"model": "whole"}, "`model`: every weight would be trained.*make_trainable"),
        ({"train_dataset": [1, 2]}, "`train_dataset`: expected a Sa2VADataset.*got list, which lacks lengths"),
        ({"train_dataset": Dataset.from_dict({"a": [1]})}, "schema|column|missing"),
        ({"train_dataset": None, "eval_dataset": None}, "`processing_class`: expected the model's Sa2VAProcessor"),
    ],
)
def test_what_cannot_work_is_refused_by_name(model, processor, tmp_path, change, words):
    given = {"model": model, "args": arguments(tmp_path), "train_dataset": ToyDataset(processor, 4)}
    if change.get("args") == "plain":
        change = {"args": TrainingArguments(output_dir=str(tmp_path), use_cpu=True)}
    if change.get("model") == "whole":
        change = {"model": tiny_model(num_points=16)}
    if isinstance(change.get("train_dataset"), Dataset):
        change |= {"processing_class": processor}
    with pytest.raises(ValueError, match=words):
        Sa2VATrainer(**given | change)


class Modalities:
    def __init__(self, *numbers):
        self.numbers = torch.tensor(numbers).numpy()

    def modalities(self, epoch):
        return self.numbers


@pytest.mark.parametrize(
    ("given", "dataset", "metric"),
    [
        ({}, Modalities(0, 2), "cIoU"),
        ({}, Modalities(0, 1, 3), "loss"),  # images and clips without masks
        ({}, Modalities(4), "cIoU"),
        ({}, EvalSelection(Modalities(0, 2), [0]), "loss"),
        ({}, {"one": Modalities(2), "two": Modalities(0)}, "one_cIoU"),
        ({"metric_for_best_model": "token_accuracy"}, Modalities(0), "token_accuracy"),
        ({"metric_for_best_model": "eval_loss"}, Modalities(0), "eval_loss"),
        ({"prediction_loss_only": True}, Modalities(2), "loss"),
    ],
)
def test_the_best_checkpoint_is_told_by_a_score_that_the_data_give(tmp_path, given, dataset, metric):
    training = arguments(
        tmp_path, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, **given
    )
    settle_metric(training, dataset)
    assert training.metric_for_best_model == metric
    assert training.greater_is_better is ("loss" not in metric)


@pytest.mark.parametrize(
    ("metric", "words"),
    [("cIoU", "cIoU needs masks, no sample"), ("bleu", "expected loss or one of cIoU, .*, got 'bleu'")],
)
def test_a_metric_that_the_data_do_not_give_is_refused(tmp_path, metric, words):
    with pytest.raises(ValueError, match=words):
        settle_metric(arguments(tmp_path, eval_strategy="epoch", metric_for_best_model=metric), Modalities(0))


def test_masks_that_are_empty_and_found_empty_have_a_score():
    class Prediction:
        predictions = torch.tensor([[0.0, 0, 2, 2, 0, 0, 0, 1, 1]]).numpy()

    assert scores(Prediction)["cIoU"] == 1.0 and scores(Prediction)["gIoU"] == 1.0
