"""merge_lora.py: the folder it writes and the one the Hub gets are the model that was trained.

The Hub is a stub on this machine that keeps what is uploaded.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
from stub_hub import stub_hub, use
from toy_run import logits, run, tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.checkpoints.card import head_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "merge_lora.py"


@pytest.fixture
def hub(monkeypatch):
    with stub_hub() as server:
        use(server, monkeypatch)
        yield server


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_runs):
    """The trainer of a short LoRA run; its folder holds the adapter."""
    model = tiny_folder(toy_runs)
    return run(output_dir=tmp_path_factory.mktemp("run"), model=str(model), max_steps=3, warmup_steps=0)


@pytest.fixture
def merge_lora(hub, trained, tmp_path, monkeypatch):
    """The command, in this process; an upload goes to the stub."""

    def merge_lora(*arguments):
        words = [SCRIPT, "--checkpoint", trained.args.output_dir, "--output", tmp_path / "merged", *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return merge_lora


def test_what_is_merged_and_uploaded_is_the_model_that_was_trained(merge_lora, hub, trained, tmp_path, capsys):
    merged, fetched = tmp_path / "merged", tmp_path / "fetched"
    merge_lora("--push_to_hub", "user/merged", "--private")
    printed = capsys.readouterr().out
    assert f"merged model written to {merged}" in printed and "uploaded: http://127.0.0.1" in printed
    created = next(json.loads(body) for _, path, body in hub.requests if path == "/api/repos/create")
    assert created["name"] == "merged"
    assert created.get("private") or created.get("visibility") == "private"  # older and newer huggingface_hub
    files = hub.repos["user/merged"]
    assert files == {file.name: file.read_bytes() for file in merged.iterdir()}
    assert {"modeling_sa2va.py", "generation_config.json", "README.md"} <= set(files)
    assert files["README.md"].decode().count('model_id = "user/merged"') == 2
    fetched.mkdir()
    for name, content in files.items():
        (fetched / name).write_bytes(content)
    processor = Sa2VAProcessor.from_pretrained(fetched)
    said = logits(Sa2VAForConditionalGeneration.from_pretrained(fetched), processor)
    assert (said - logits(trained.model, processor)).abs().max() < 1e-5


def test_a_hub_that_refuses_is_an_error_and_the_merged_model_stays(merge_lora, hub, tmp_path):
    hub.refuses = True
    with pytest.raises((SystemExit, OSError), match="You don't have the rights"):
        merge_lora("--push_to_hub", "user/merged")
    Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged")


def test_a_run_is_pushed_with_our_card_and_without_local_paths(hub, trained):
    """`trainer.push_to_hub()` of a LoRA run: the adapter, the processor and a card; no settings, no optimiser."""
    trained.args.hub_model_id, trained.hub_model_id = "user/adapter", None
    trained.push_to_hub()
    files = hub.repos["user/adapter"]
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "README.md"} <= set(files)
    assert not {"train_config.yaml", "training_args.bin", "trainer_state.json", "config.json"} & set(files)
    folder = Path(trained.args.output_dir)
    assert head_of(folder / "README.md")["library_name"] == "peft"
    for name, content in files.items():
        assert str(folder).encode() not in content and b"toy_runs" not in content, name
