"""The Trainer on Qwen-VL: however the ranks' batches differ, they take the same steps.

Run: pytest -m slow tests/training/test_trainer_backbones.py
"""

import pytest
import torch
from tiny import tiny_model, tiny_processor
from toy_run import EXACT, PRESETS, launch, losses


@pytest.mark.slow
def test_ranks_with_and_without_pictures_go_on_together(tmp_path):
    """All of Qwen3-VL's vision part is trained, its deeper mergers too; ZeRO-3 gathers every weight on every rank."""
    folder = tmp_path / "tiny"
    tiny_model(backbone="qwen3_vl", num_points=64).save_pretrained(folder)
    tiny_processor("qwen3_vl").save_pretrained(folder)
    trained = EXACT | {"train_llm": "full", "train_projector": True, "train_vision": True}
    settings = {"model": str(folder), "model_arguments": trained, "max_steps": 3, "probe": True, "mixed": True}
    ddp = launch(tmp_path / "ddp", 2, **settings)
    zero3 = launch(tmp_path / "zero3", 2, **settings, deepspeed=str(PRESETS / "zero3.json"))
    assert losses(zero3) == pytest.approx(losses(ddp), rel=1e-4)
    said = [torch.load(run / "logits.pt", weights_only=True) for run in (ddp, zero3)]
    torch.testing.assert_close(said[1], said[0], rtol=1e-3, atol=1e-4)
