"""Laws of consolidation: out of the shards comes the model that was trained, or an error that names the gap."""

import shutil

import pytest
import torch
from toy_run import finished, logits

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.boxes import BOX_TOKENS
from sa2va_hf.checkpoints.merge import merge
from sa2va_hf.checkpoints.zero import consolidate, find_shards


def shards(folder, stage, world, present):
    """A checkpoint folder with as much of DeepSpeed's files as a look at them needs."""
    inside = folder / "global_step4"
    inside.mkdir(parents=True)
    (folder / "latest").write_text("global_step4")
    state = {"optimizer_state_dict": {"partition_count": world, "zero_stage": stage}}
    for rank in present:
        torch.save(state, inside / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    torch.save({}, inside / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return folder


def test_a_complete_checkpoint_is_found(tmp_path):
    assert find_shards(shards(tmp_path, stage=2, world=2, present=[0, 1])).name == "global_step4"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no file `latest`.*without DeepSpeed"):
        find_shards(tmp_path)
    shards(tmp_path / "checkpoint-4", stage=2, world=3, present=[0, 2])
    with pytest.raises(ValueError, match="did you mean one of checkpoint-4"):
        find_shards(tmp_path)
    with pytest.raises(ValueError, match=r"optim_states\.pt of 3 processes expected, missing of rank 1"):
        find_shards(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match=r"model_states\.pt of 2 processes expected, missing of rank 1"):
        find_shards(shards(tmp_path / "three", stage=3, world=2, present=[0, 1]))
    with pytest.raises(ValueError, match="no .*_optim_states.pt"):
        find_shards(shards(tmp_path / "none", stage=2, world=2, present=[]))
    with pytest.raises(ValueError, match=r"neither config\.json .* nor adapter_config\.json"):
        consolidate(shards(tmp_path / "bare", stage=2, world=1, present=[0]), tmp_path / "out")


def test_a_shard_cut_short_is_named(tmp_path):
    folder = shards(tmp_path, stage=2, world=1, present=[0])
    shard = folder / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"rank_0_mp_rank_00_optim_states\.pt: cannot be read"):
        find_shards(folder)


class Trap:
    def __reduce__(self):
        return print, ("run",)


def test_a_shard_with_other_objects_is_not_unpickled(tmp_path, capsys):
    folder = shards(tmp_path, stage=2, world=1, present=[0])
    shard = folder / "global_step4" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": {}, "extra": Trap()}, shard)
    with pytest.raises(ValueError, match=r"model_states\.pt: not read, since it holds objects other than tensors"):
        find_shards(folder)
    assert "run" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_lora_runs_shards_give_the_live_models_logits(toy_runs, name, tmp_path):
    run = finished(toy_runs, name)
    consolidate(str(run / "checkpoint-4"), str(tmp_path / "adapter"))
    merge(tmp_path / "adapter", tmp_path / "merged")
    said = logits(Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged"), processor(tmp_path / "merged"))
    live = torch.load(run / "logits.pt")
    assert (said - live).abs().max() < 1e-5
    # what Trainer gathered beside the shards is the same here, where nothing is rounded to bf16
    merge(run, tmp_path / "gathered")
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "gathered")
    assert (logits(model, processor(run)) - live).abs().max() < 1e-5


@pytest.mark.slow
def test_tokens_that_a_run_added_keep_their_rows(toy_runs, tmp_path):
    run = finished(toy_runs, "zero2_boxes")
    consolidate(str(run / "checkpoint-2"), str(tmp_path / "adapter"))
    merge(tmp_path / "adapter", tmp_path / "merged")
    merge(run, tmp_path / "gathered")
    model, gathered = (
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("merged", "gathered")
    )
    tokenizer, known = processor(tmp_path / "merged").tokenizer, processor(f"{toy_runs}/tiny").tokenizer
    assert len(tokenizer) == model.config.vocab_size == len(known) + len(BOX_TOKENS)
    for one, other in (
        (model.get_input_embeddings(), gathered.get_input_embeddings()),
        (model.get_output_embeddings(), gathered.get_output_embeddings()),
    ):
        torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=1e-6)
        start = one.weight[: len(known)].mean(
            0
        )  # new rows begin as the mean; that of <box>, which was read, has moved
        assert (one.weight[tokenizer.convert_tokens_to_ids("<box>")] - start).abs().max() > 1e-4
    live = torch.load(run / "logits.pt")
    assert live.shape[-1] == len(tokenizer)
    assert (logits(model, processor(tmp_path / "merged")) - live).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2_full", "zero3_full"])
def test_a_full_runs_shards_give_the_live_models_logits(toy_runs, name, tmp_path):
    run = finished(toy_runs, name)
    consolidate(run / "checkpoint-4", tmp_path / "whole", max_shard_size="2MB")
    assert len(list((tmp_path / "whole").glob("model-*.safetensors"))) > 1
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "whole")
    live = torch.load(run / "logits.pt")
    assert (logits(model, processor(tmp_path / "whole")) - live).abs().max() < 1e-5
    broken = tmp_path / "broken"
    shutil.copytree(run / "checkpoint-4", broken)
    next(broken.glob("global_step*/*rank_1_mp*optim_states.pt")).unlink()
    with pytest.raises(ValueError, match=r"missing of rank 1"):
        consolidate(broken, tmp_path / "out")


def processor(folder):
    return Sa2VAProcessor.from_pretrained(folder)
