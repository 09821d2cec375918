"""The command: what it says, what it returns, what it leaves behind."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from released import edit, write

from sa2va_hf import Sa2VAGroundingConfig
from sa2va_hf.model.grounding import build_sam2

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"


@pytest.fixture
def command(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_what_does_not_fit_is_listed(command, tmp_path):
    (tmp_path / "released").mkdir()
    source = write(tmp_path / "released")
    with pytest.raises(SystemExit, match=r"error: (.|\n)*SAM 2\.0 of no published size"):
        command("--source", source, "--output", tmp_path / "ours")
    edit(source, lambda config: config.pop("template"))
    with pytest.raises(SystemExit, match="error: "):  # whichever of the two it meets first
        command("--source", source, "--output", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_sam2_there_and_back(command, tmp_path, capsys):
    config = Sa2VAGroundingConfig(version="2.1", size="tiny")
    source = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": build_sam2(config).state_dict()}, source)
    with pytest.raises(SystemExit, match=r"expected SAM 2\.0 tiny"):
        command("--source", source, "--output", tmp_path / "wrong", "--sam2", "2.0-tiny")
    assert not (tmp_path / "wrong").exists()
    command("--source", source, "--output", tmp_path / "ours", "--sam2", "2.1-tiny")
    command("--source", tmp_path / "ours", "--output", tmp_path / "back", "--to", "sam2")
    assert f"written to {tmp_path / 'back'}" in capsys.readouterr().out
    first, second = (
        torch.load(path, weights_only=True)["model"] for path in (source, tmp_path / "back" / source.name)
    )
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
