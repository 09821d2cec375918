"""Laws of fine-tuning SAM 2: what learns, what stays, what a resumed run repeats, and what is written.

Run: pytest tests/training/sam2/test_trainer.py
"""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from clips import rows, sample, tiny_clip_model
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from sa2va_hf.checkpoints.card import head_of
from sa2va_hf.checkpoints.sam2 import load
from sa2va_hf.data.clips.dataset import ClipDataset, ClipEntry
from sa2va_hf.data.clips.transforms import Augmentation
from sa2va_hf.data.clips.vos import VosClips
from sa2va_hf.model.grounding import build_sam2
from sa2va_hf.training.sam2.arguments import Sam2TrainingArguments
from sa2va_hf.training.sam2.networks import set_dropout
from sa2va_hf.training.sam2.trainable import has_lora, make_trainable, merged_state
from sa2va_hf.training.sam2.trainer import Sam2Trainer
from sa2va_hf.training.saving import newest_complete

ALL = {"image_encoder": "full", "memory_attention": "full", "sam_mask_decoder": "full"}
LORA = dict.fromkeys(ALL, "lora")


@pytest.fixture
def parts(tmp_path):
    clips = [sample(tmp_path / "data", f"c{number}", frames=5) for number in range(3)]
    pictures = [sample(tmp_path / "data", f"p{number}", frames=1) for number in range(4)]
    return ClipEntry(rows(*clips)), ClipEntry(rows(*pictures), batch_size=2)


def trainer(parts, folder, modes=ALL, others=True, clips=None, dropout=0.1, **settings):
    model = tiny_clip_model(num_correction_pt_per_frame=2)
    set_dropout(model.sam, dropout, dropout)
    torch.manual_seed(0)
    make_trainable(model.sam, modes, others, rank=4, alpha=8)
    defaults = {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "vision_learning_rate": 1e-3,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Sam2Trainer(
        model=model,
        args=Sam2TrainingArguments(**(defaults | settings)),
        train_dataset=ClipDataset(parts, image_size=128, num_frames=3, augmentation=Augmentation()),
        eval_dataset=clips,
    )


def state(run):
    return {name: tensor.clone() for name, tensor in run.model.sam.state_dict().items()}


def logged(run, name="loss"):
    return [entry[name] for entry in run.state.log_history if name in entry]


def test_what_is_trained_changes_and_what_is_frozen_does_not(parts, tmp_path):
    run = trainer(parts, tmp_path / "run", ALL | {"image_encoder": "none"}, others=False)
    before = state(run)
    run.train()
    after = state(run)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"memory_attention", "sam_mask_decoder"}
    assert set(run.state.log_history[0]) >= {"mask_loss", "dice_loss", "iou_loss", "score_loss", "objects"}


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing is trained"):
        make_trainable(tiny_clip_model().sam, dict.fromkeys(ALL, "none"), False)


@pytest.mark.parametrize("modes", [ALL, LORA], ids=["full", "lora"])
def test_a_resumed_run_is_the_same_run(parts, tmp_path, modes):
    """From the middle of an epoch of 5 steps, with dropout, clicks and variations drawn at random."""
    whole = trainer(parts, tmp_path / "whole", modes, save_strategy="steps", save_steps=2)
    whole.train()
    second = trainer(parts, tmp_path / "second", modes)
    second.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert logged(second)[-2:] == logged(whole)[-2:]
    expected, found = state(whole), state(second)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_would_lose_its_place_in_the_data_says_so(parts, tmp_path):
    trainer(parts, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2).train()
    assert json.loads((tmp_path / "run/checkpoint-2/checkpoint.json").read_text())["files"]["model.safetensors"] > 0
    other = trainer(parts, tmp_path / "run", per_device_train_batch_size=1, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"written with 1 x 1 x 1 = 1 samples per step, this run has 1 x 1 x 2 = 2"):
        other.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))


def test_a_signal_ends_the_run_with_a_checkpoint(parts, tmp_path):
    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    run = trainer(parts, tmp_path / "run")
    run.add_callback(Signal())
    run.train()
    assert run.stopped_by == signal.SIGTERM and run.state.global_step == 2
    assert newest_complete(tmp_path / "run") == str(tmp_path / "run/checkpoint-2")


def test_what_is_saved_is_stock_sam2_with_lora_merged(parts, tmp_path):
    run = trainer(parts, tmp_path / "run", LORA)
    run.train()
    run.save_model()
    assert has_lora(run.model.sam)
    stock, config = load(tmp_path / "run")
    assert set(stock.state_dict()) == set(build_sam2(config).state_dict())
    assert config.image_size == 128 and config.version == "2.1"
    image = torch.rand(1, 3, 128, 128)
    run.model.eval()
    with torch.no_grad():
        ours, theirs = (sam2.forward_image(image)["backbone_fpn"] for sam2 in (run.model.sam, stock.eval()))
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, theirs, strict=True))
    untouched = build_sam2(config)
    untouched.load_state_dict(merged_state(tiny_clip_model().sam))
    changed = [
        n
        for n, t in load_file(tmp_path / "run/model.safetensors").items()
        if not torch.equal(t, untouched.state_dict()[n])
    ]
    assert any("attn.qkv.weight" in name for name in changed) and any("q_proj.weight" in name for name in changed)


def test_the_objects_of_all_accumulated_batches_share_one_denominator(parts, tmp_path):
    run = trainer(parts, tmp_path / "run", gradient_accumulation_steps=2, max_steps=1)
    seen = []
    forward = run.model.forward

    def watch(*arguments, **settings):
        seen.append((settings["masks"].shape[1], settings["objects"]))
        return forward(*arguments, **settings)

    run.model.forward = watch
    run.train()
    counts, denominators = zip(*seen, strict=True)
    assert len(counts) == 2 and set(denominators) == {sum(counts) / 2}


def test_learning_rates_follow_their_schedules(parts, tmp_path):
    falling = {"lr": [{"schedule": {"type": "linear", "start": 1e-3, "end": 0}}]}
    run = trainer(parts, tmp_path / "run", optimizer_schedules=falling, layer_decay=1.0)
    run.train()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-4)  # of the last step


@pytest.mark.slow
def test_it_learns_to_follow(tmp_path):
    """Discs over noise: the objects of videos that were not seen are followed better than before."""
    clips = [sample(tmp_path / "data", f"c{number}", frames=5) for number in range(6)]
    held_out = VosClips([rows(sample(tmp_path / "data", "v", frames=8))])
    run = trainer(
        [ClipEntry(rows(*clips))],
        tmp_path / "run",
        clips=held_out,
        dropout=0.0,
        max_steps=60,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=30,
        save_strategy="steps",
        save_steps=30,
        load_best_model_at_end=True,
        layer_decay=1.0,
        max_grad_norm=1.0,
    )
    before = run.evaluate()
    run.train()
    losses, scores = logged(run), logged(run, "eval_J&F")
    assert losses[-1] < 0.7 * losses[0]
    assert max(scores) > before["eval_J&F"] + 0.1
    assert run.state.best_metric == max(scores[1:])
    assert run.evaluate()["eval_J&F"] == pytest.approx(run.state.best_metric, abs=1e-6)
    assert json.loads((tmp_path / "run/checkpoint-60/trainer_state.json").read_text())["best_metric"] == max(
        scores[1:]
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup_steps": 10}, "`warmup_steps`: must stay 0 .compose a warm-up"),
        ({"layer_decay": 0.0}, "`layer_decay`: expected a number above 0"),
        ({"deepspeed": "ds_configs/zero2.json"}, "`deepspeed`: must stay None"),
        ({"lr_scheduler_type": "cosine"}, "`lr_scheduler_type`: must stay linear .see `final_learning_rate`"),
        ({"fsdp": "full_shard"}, "`fsdp`: must stay None"),
    ],
)
def test_settings_that_would_be_ignored(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Sam2TrainingArguments(output_dir=str(tmp_path), **settings)


def test_the_card_is_ours(tmp_path):
    """Not transformers': with the data, steps and scores of the run, and how its weights are used."""
    (tmp_path / "train_config.yaml").write_text("model_name_or_path: facebook/sam2.1-hiera-tiny\ntrain_data: []\n")
    state = TrainerState(global_step=7, epoch=0.5, log_history=[{"eval_J": 0.5, "eval_F": 0.7, "eval_J&F": 0.6}])
    run = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), state=state, hub_model_id="owner/mine")
    Sam2Trainer.create_model_card(run)
    text = (tmp_path / "README.md").read_text()
    assert "# mine" in text and "hf download owner/mine" in text and "7 steps, 0.50 epochs" in text
    assert "| evaluation videos of the run | J&F | 0.6000 |" in text and str(tmp_path) not in text
    head = head_of(tmp_path / "README.md")
    assert head["library_name"] == "sam2" and head["base_model"] == "facebook/sam2.1-hiera-tiny"
