"""A run whose answers are boxes: tokens that are added are trained and kept, and SAM 2 is not there.

Run: pytest tests/training/sa2va/test_box_answers.py
"""

import io

import datasets
import pytest
import torch
from PIL import Image
from toy_run import tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor
from sa2va_hf.arguments import DataArguments, ModelArguments, Sa2VATrainingArguments
from sa2va_hf.boxes import BOX_TOKENS
from sa2va_hf.checkpoints.merge import merge
from sa2va_hf.checkpoints.vocabulary import extend_vocabulary
from sa2va_hf.data.schema import FEATURES, Expression, Object, Sample, to_row
from sa2va_hf.training.sa2va.build import build_trainer


@pytest.fixture(scope="session")
def model(toy_runs):
    return str(tiny_folder(toy_runs))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pictures and clips with boxes alone."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "PNG")
    samples = [
        Sample(
            f"s{number}", "referring", 40, 20, frames=[buffer.getvalue()] * frames,
            objects=[Object([None] * frames, [(float(number), 2.0, number + 9.0, 15.0)] * frames)],
            expressions=[Expression("the cat", [0])],
        )
        for number, frames in enumerate((1, 3, 1, 3))
    ]  # fmt: skip
    folder = str(tmp_path_factory.mktemp("rows"))
    datasets.Dataset.from_list([to_row(sample) for sample in samples], features=FEATURES).save_to_disk(folder)
    return folder


def trainer_of(model, rows, output, answer="boxes", **arguments):
    chosen = {"model_name_or_path": model, "lora_rank": 4, "train_grounding_encoder": "none"} | arguments
    settings = {"learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    return build_trainer(
        ModelArguments(**chosen),
        DataArguments(train_data=[{"path": rows, "answer": answer}], num_frames=2),
        Sa2VATrainingArguments(output_dir=str(output), max_steps=2, warmup_steps=0, logging_steps=1, **settings),
    )


def test_added_tokens_are_trained_and_kept_and_sam2_is_not_loaded(model, rows, tmp_path):
    trainer = trainer_of(model, rows, tmp_path, box_tokens=True)
    live, processor = trainer.model.get_base_model(), trainer.processing_class
    assert not live.has_grounding and not any("sam2" in name for name, _ in live.named_modules())
    known = Sa2VAProcessor.from_pretrained(model).tokenizer.get_vocab()
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in BOX_TOKENS if token not in known}
    assert set(ids) == set(BOX_TOKENS) and len(processor.tokenizer) == live.config.vocab_size
    before = live.get_input_embeddings().weight.detach().clone()
    trainer.train()
    assert all("mask_loss" not in entry or entry["mask_loss"] == 0 for entry in trainer.state.log_history)
    moved = (live.get_input_embeddings().weight.detach() - before).abs().sum(1)
    assert all(moved[ids[token]] > 0 for token in ("<box>", "</box>", "<next>", "<single_img>"))
    trainer.save_model()
    (tmp_path / "train_config.yaml").write_text(f"model_name_or_path: {model}\n")
    merge(tmp_path, tmp_path / "merged")
    predictor = Sa2VAPredictor.from_pretrained(tmp_path / "merged")
    assert predictor.model.has_grounding and predictor.processor.box_form == "spatial"
    assert predictor.model.config.vocab_size == len(processor.tokenizer)
    rows_now = predictor.model.get_input_embeddings().weight
    torch.testing.assert_close(rows_now[: len(before)], live.get_input_embeddings().weight.detach())
    found = predictor.locate(image=Image.new("RGB", (40, 20)), text="the cat", max_new_tokens=4)
    assert "Give the bounding box of the cat in this image." in found.history.turns[0][0]
    again = trainer_of(str(tmp_path / "merged"), rows, tmp_path / "again")
    assert again.processing_class.box_form == "spatial", "a model that has the tokens goes on writing them"


def test_without_tokens_the_form_is_that_of_the_family(model, rows, tmp_path):
    trainer = trainer_of(model, rows, tmp_path)
    assert trainer.processing_class.box_form == "thousandths"
    answers = [answer for number in range(4) for _, answer in trainer.train_dataset.plan(number).turns]
    assert all("<box>[[" in answer for answer in answers)


def test_masks_and_boxes_together_train_sam2_from_boxes(model, rows, tmp_path):
    trainer = trainer_of(model, rows, tmp_path, answer="both", train_grounding_encoder="decoder")
    assert trainer.model.get_base_model().has_grounding
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["box_loss"] > 0 and entry["boxes"] > 0 and entry["masks"] == 0 for entry in logs)
    assert all(entry["lm_loss"] + entry["box_loss"] == pytest.approx(entry["loss"], rel=1e-4) for entry in logs)


@pytest.mark.parametrize("arguments", [{"train_embeddings": False}, {"train_llm": "none"}])
def test_new_tokens_that_would_not_be_trained_are_refused(model, arguments):
    with pytest.raises(ValueError, match="`box_tokens`: new tokens need trained embeddings"):
        ModelArguments(model_name_or_path=model, box_tokens=True, **arguments)
    with pytest.raises(ValueError, match="`answer` of x: expected masks, boxes, both, got 'box'"):
        DataArguments(train_data=[{"path": "x", "answer": "box"}])


def test_new_rows_are_the_mean_of_the_others(model):
    one = Sa2VAForConditionalGeneration.from_pretrained(model)
    count = one.config.vocab_size
    assert not extend_vocabulary(one, count) and extend_vocabulary(one, count + 3)
    for layer in (one.get_input_embeddings(), one.get_output_embeddings()):
        torch.testing.assert_close(layer.weight[count:], layer.weight[:count].mean(0).expand(3, -1))
    assert one.config.vocab_size == one.mllm.config.text_config.vocab_size == count + 3
