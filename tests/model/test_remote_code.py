"""model/ as it lies beside the weights: what it asks for, and what it reads of a repository.

Run: pytest tests/model/test_remote_code.py
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_imports

import sa2va_hf.model
from sa2va_hf.model import zero3

FILES = sorted(Path(sa2va_hf.model.__file__).parent.glob("*.py"))


def test_it_asks_for_few_packages():
    """transformers refuses remote code whose imports are not installed, even where they are never needed."""
    asked = {name for file in FILES for name in get_imports(file)} - set(sys.stdlib_module_names)
    assert asked == {"PIL", "numpy", "sam2", "torch", "transformers"}


def test_buffers_come_from_the_revision_that_is_loaded(tmp_path, monkeypatch):
    save_file({"mean": torch.arange(3.0)}, tmp_path / "model.safetensors")
    seen = {}

    def cached_file(path, name, **where):
        seen.update(where, path=path)
        return str(tmp_path / name)

    monkeypatch.setattr(zero3, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(zero3, "cached_file", cached_file)
    model = torch.nn.Module()
    model.register_buffer("mean", torch.zeros(3))
    missing = {"mean", "weight"}
    assert zero3.load_buffers(model, "org/repo", missing, revision="v2", cache_dir="there") == {"weight"}
    assert model.mean.tolist() == [0, 1, 2]
    assert seen == {"path": "org/repo", "revision": "v2", "cache_dir": "there", "subfolder": ""}
