"""Laws of merging: the merged model says what the unmerged one says, and a wrong folder is told apart."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from toy_run import logits, tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.arguments import ModelArguments, Sa2VATrainingArguments
from sa2va_hf.checkpoints.merge import find_base, merge
from sa2va_hf.training.sa2va.trainable import load


@pytest.fixture(scope="session")
def base_model(toy_runs):
    return tiny_folder(toy_runs)


@pytest.fixture(scope="session")
def adapter(base_model, tmp_path_factory):
    """An adapter folder as a run leaves it, and the live model: every trained weight moved by chance."""
    folder = tmp_path_factory.mktemp("adapter")
    arguments = ModelArguments(model_name_or_path=str(base_model), lora_rank=4)
    model, processor = load(arguments, Sa2VATrainingArguments(output_dir=str(folder)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "train_config.yaml").write_text(f"model_name_or_path: {base_model}\n")
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 12, "epoch": 1.0, "log_history": [{"step": 12, "eval_cIoU": 0.75}]})
    )
    return folder, model


def test_the_merged_model_says_what_the_unmerged_one_says(base_model, adapter, tmp_path):
    folder, live = adapter
    merge(str(folder), str(tmp_path))
    merged = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    processor = Sa2VAProcessor.from_pretrained(tmp_path)
    assert not isinstance(merged, PeftModel)
    said, before = logits(merged, processor), logits(live, processor)
    assert (said - before).abs().max() < 1e-5
    assert (said - logits(Sa2VAForConditionalGeneration.from_pretrained(base_model), processor)).abs().max() > 1e-2
    masks = live.get_base_model().grounding_encoder.state_dict()
    trained = {name.replace("modules_to_save.default.", ""): weight for name, weight in masks.items()}
    for name, weight in merged.grounding_encoder.state_dict().items():
        assert torch.equal(weight, trained[name]), name


def test_the_card_tells_where_the_model_comes_from(adapter, tmp_path):
    merge(adapter[0], tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "LoRA (rank 4, alpha 8)" in card and "12 steps" in card and "| cIoU | 0.7500 |" in card
    assert "base_model" not in card, "a local folder is no name in a public file"
    for file in [
        *adapter[0].glob("*.json"),
        adapter[0] / "README.md",
        *tmp_path.glob("*.json"),
        tmp_path / "README.md",
    ]:
        assert str(tmp_path.parent) not in file.read_text(), file


def test_half_precision_is_the_language_models_alone(adapter, tmp_path):
    merged = merge(adapter[0], tmp_path, dtype="bfloat16")
    assert {weight.dtype for weight in merged.mllm.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in merged.grounding_encoder.parameters()} == {torch.float32}
    again = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    for one, other in zip(again.state_dict().values(), merged.state_dict().values(), strict=True):
        assert torch.equal(one, other.to(one.dtype))


def test_a_base_that_moved_is_given_by_hand(base_model, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == ""
    assert find_base(folder) == str(base_model), "from train_config.yaml"
    (folder / "train_config.yaml").write_text("model_name_or_path: moved/far/away\n")
    with pytest.raises(ValueError, match="base model moved/far/away is not there: give its folder with --base"):
        find_base(folder)
    (folder / "train_config.yaml").unlink()
    with pytest.raises(ValueError, match=r"names no base model, and neither does a train_config\.yaml .* --base"):
        find_base(folder)
    assert find_base(folder, str(base_model)) == str(base_model)


def test_the_base_of_a_checkpoint_is_the_one_of_its_run(tmp_path):
    checkpoint = tmp_path / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "adapter_config.json").write_text("{}")
    (tmp_path / "train_config.yaml").write_text("model_name_or_path: owner/model\n")
    assert find_base(checkpoint) == "owner/model"
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/other"}')
    assert find_base(checkpoint) == "owner/other"


def test_weights_that_are_not_finite_are_named(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    broken = next(iter(weights))
    weights[broken][0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"not finite: {broken}; the run had diverged.*merge an earlier checkpoint-N"):
        merge(folder, tmp_path / "merged")


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "rank_pattern": {"q_proj": 2}},
    ],
    ids=["dora and rslora", "pissa", "olora and ranks"],
)
def test_every_kind_of_lora_is_merged(options, base_model, tmp_path):
    arguments = ModelArguments(str(base_model), lora_rank=4, lora_options=options)
    model, processor = load(arguments, Sa2VATrainingArguments(output_dir=str(tmp_path)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    merged = merge(tmp_path / "adapter", tmp_path / "merged", base=str(base_model))
    assert (logits(merged, processor) - logits(model, processor)).abs().max() < 1e-4


def test_folders_that_are_no_adapter_are_told_apart(base_model, adapter, tmp_path):
    with pytest.raises(ValueError, match="is a whole model, not an adapter"):
        merge(base_model, tmp_path / "out")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "latest").write_text("global_step4")
    with pytest.raises(ValueError, match=r"first run python scripts/zero_to_fp32\.py .*shards FOLDER"):
        merge(shards, tmp_path / "out")
    shutil.copytree(adapter[0], tmp_path / "run" / "checkpoint-7")
    with pytest.raises(ValueError, match=r"no adapter_config\.json .* did you mean one of checkpoint-7"):
        merge(tmp_path / "run", tmp_path / "out")


def test_an_adapter_that_fits_in_part_is_refused(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    lost = next(name for name in weights if name.endswith("lora_A.weight"))
    weights.pop(lost)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not fit the base model; missing: .*{lost}"):
        merge(folder, tmp_path / "merged")
