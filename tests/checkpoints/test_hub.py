"""Laws of publishing: a folder loads where the package is not installed, and reaches the Hub whole or not at all."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from stub_hub import environment, stub_hub, use
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import sa2va_hf
from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor
from sa2va_hf.checkpoints import hub as hub_module
from sa2va_hf.checkpoints.card import PIPELINE, Facts, Score, facts_of_run, head_of, model_card
from sa2va_hf.checkpoints.hub import amend_card, code_files, export, push

BUNDLED = Path(sa2va_hf.__file__).parent / "pretrained" / "shapes-tiny"
# In the process that loads a published model: neither this package nor what only training and video files need.
ABSENT = ("sa2va_hf", "peft", "deepspeed", "av", "decord", "pycocotools", "datasets")
QUESTION = "Please segment the red circle."


def copied(folder):
    shutil.copytree(BUNDLED, folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = copied(tmp_path_factory.mktemp("export") / "mine")
    facts = Facts(
        base="owner/base", relation="finetune", adapter="LoRA (rank 4, alpha 8)", license="mit", languages=["en"],
        datasets=["owner/data"], sources=["refcoco"], steps=12, epochs=1.5,
        scores=[Score("refcoco_val", "cIoU", 0.75)],
    )  # fmt: skip
    export(folder, facts, max_shard_size="2MB")
    return folder


@pytest.fixture
def stub(monkeypatch):
    with stub_hub() as server:
        use(server, monkeypatch)
        monkeypatch.setattr(hub_module, "FIRST_WAIT", 0.01)
        yield server


def picture():
    image = Image.new("RGB", (96, 72), (200, 200, 200))
    ImageDraw.Draw(image).ellipse((20, 20, 60, 60), fill=(220, 30, 30))
    return image


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)


def test_an_exported_folder_is_complete(exported):
    names = {path.name for path in exported.iterdir()}
    assert len(list(exported.glob("model-*.safetensors"))) > 1 and "model.safetensors" not in names
    assert {"model.safetensors.index.json", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert {path.name for path in code_files()} <= names
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_sa2va.Sa2VAForConditionalGeneration"
    stops = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert Sa2VAProcessor.from_pretrained(exported).stop_ids == stops
    state = Sa2VAForConditionalGeneration.from_pretrained(BUNDLED).state_dict()
    again = Sa2VAForConditionalGeneration.from_pretrained(exported).state_dict()
    assert set(state) == set(again) and all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize(
    ("present", "kept"),
    [
        ({}, {"do_sample": False}),
        ({"max_new_tokens": 7, "do_sample": True}, {"max_new_tokens": 7, "do_sample": True}),
        ({"eos_token_id": [3]}, {"eos_token_id": [3]}),
    ],
)
def test_what_ends_an_answer_is_added_to_a_file_that_lacks_it(exported, tmp_path, present, kept):
    for file in exported.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(present))
    hub_module._write_generation_config(tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found["eos_token_id"] == present.get("eos_token_id", Sa2VAProcessor.from_pretrained(tmp_path).stop_ids)
    assert {name: found.get(name) for name in kept} == kept


@pytest.mark.parametrize("file", code_files(), ids=lambda file: file.name)
def test_the_code_beside_the_weights_needs_few_packages(file):
    standard = set(sys.stdlib_module_names)
    assert set(get_imports(file)) - standard <= {"transformers", "torch", "sam2", "numpy", "PIL", "safetensors"}


@pytest.mark.parametrize("name", ["configuration_sa2va", "modeling_sa2va", "processing_sa2va"])
def test_what_is_loaded_names_all_modules_that_it_needs(exported, name):
    """Of a local folder transformers 5.3 takes no others."""
    file = exported / f"{name}.py"
    needed = {Path(path).stem for path in get_relative_import_files(file)}
    assert set(get_relative_imports(file)) == needed - {name} and (needed or name.startswith("configuration"))


def test_the_card_says_what_the_run_was(exported):
    card = exported / "README.md"
    head, text = head_of(card), card.read_text()
    assert head["base_model"] == "owner/base" and head["base_model_relation"] == "finetune"
    assert head["license"] == "mit" and head["language"] == ["en"] and head["datasets"] == ["owner/data"]
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "image-text-to-text"
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "refcoco_val"
    assert result["metrics"] == [{"type": "cIoU", "value": 0.75, "name": "cIoU"}]
    assert "12 steps, 1.50 epochs" in text and "refcoco" in text and "rank 4" in text
    assert "PATH" not in text and str(exported.parent) not in text


def test_scores_and_licence_are_added_once(exported, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(exported, folder)
    for value in (0.5, 0.6):
        amend_card(folder, Facts(license="apache-2.0", scores=[Score("reason_seg", "gIoU", value)]))
    card = folder / "README.md"
    assert head_of(card)["license"] == "apache-2.0" and head_of(card)["base_model"] == "owner/base"
    assert card.read_text().count("## Scores") == 1 and "| reason_seg | gIoU | 0.6000 |" in card.read_text()
    assert len(snippets(card)) == 2


def test_no_path_of_this_machine_gets_into_a_card(tmp_path):
    run, data, base = tmp_path / "run", tmp_path / "data", tmp_path / "base"
    for folder in (run / "checkpoint-3", data, base):
        folder.mkdir(parents=True)
    (data / "manifest.json").write_text('{"source": "refcoco"}')
    parts = f"[{{path: {data}}}, {{path: hf://datasets/me/mine}}]"
    (run / "train_config.yaml").write_text(f"model_name_or_path: {base}\ntrain_data: {parts}\n")
    adapter = {"r": 4, "lora_alpha": 8, "base_model_name_or_path": ""}
    (run / "checkpoint-3" / "adapter_config.json").write_text(json.dumps(adapter))
    facts = facts_of_run(run / "checkpoint-3")
    assert (facts.base, facts.datasets, facts.sources) == (None, ["me/mine"], ["refcoco"])
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: en\nbase_model: owner/release\n---\n")
    facts = facts_of_run(run / "checkpoint-3", relation="adapter")
    assert (facts.base, facts.license, facts.languages) == ("owner/release", "mit", ["en"])
    for is_adapter in (False, True):
        assert str(tmp_path) not in model_card(facts, title="mine", is_adapter=is_adapter)


def test_what_is_no_model_is_not_published(tmp_path, stub):
    with pytest.raises(ValueError, match=r"expected a model folder or an adapter; there is no config\.json"):
        push(tmp_path, "user/mine")
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="expected a Sa2VA model folder of this package, got model_type 'llava'"):
        push(tmp_path, "user/mine")
    assert not stub.requests


def test_the_first_snippet_runs_as_it_stands(exported, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    shutil.copytree(exported, folder)
    picture().save(folder / "picture.jpg")
    monkeypatch.chdir(folder)
    names = {}
    exec(snippets(folder / "README.md")[0], names)
    assert names["prediction"].masks.shape[1:] == (1, 72, 96)


FRESH = """
import sys
sys.modules.update(dict.fromkeys({absent}))
import re, torch
from huggingface_hub import hf_hub_download
card = open(hf_hub_download("user/mine", "README.md")).read()
snippet = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)[1]
exec(snippet)
assert type(model).__module__.startswith("transformers_modules.user"), type(model)
answer = model.predict_forward(image=image, text="<image>{question}", processor=processor)
content = [{{"type": "image", "image": image}}, {{"type": "text", "text": "{question}"}}]
messages = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
with torch.no_grad():
    logits = model(**inputs).logits
from transformers import pipeline  # what the card's pipeline_tag promises
ask = pipeline("{task}", model="user/mine", trust_remote_code=True)
[said] = ask(text=messages, max_new_tokens=32, return_full_text=False)
assert said["generated_text"] == answer["prediction"].removesuffix("<|im_end|>"), said
torch.save({{"logits": logits, "text": answer["prediction"], "masks": answer["prediction_masks"]}}, "out.pt")
"""


def test_a_pushed_model_is_the_same_where_the_package_is_not_installed(exported, stub, tmp_path):
    """Through errors of the server and a conflict; downloaded and run by the card's second snippet as it stands."""
    folder, there = tmp_path / "mine", tmp_path / "there"
    shutil.copytree(exported, folder)
    (folder / "train_config.yaml").write_text("output_dir: /home/me")
    stub.faults += [("/preupload/main", 500), ("/lfs/", 503), ("/commit/main", 412), ("/commit/main", 502)]
    address = push(folder, "mine", private=True)
    assert not stub.faults and stub.commits == 1 and address.startswith(f"{stub.address}/user/mine/commit/")
    files = stub.repos["user/mine"]
    assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "train_config.yaml"}
    there.mkdir()
    picture().save(there / "picture.jpg")
    variables = os.environ | environment(stub) | {"HF_HOME": str(there / "home"), "PYTHONPATH": ""}
    script = FRESH.format(absent=ABSENT, question=QUESTION, task=PIPELINE)
    command, nothing = [sys.executable, "-c", script], subprocess.DEVNULL
    done = subprocess.run(command, cwd=there, env=variables, capture_output=True, text=True, stdin=nothing)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "custom code" not in done.stdout + done.stderr  # the question whether to trust it was answered
    fresh = torch.load(there / "out.pt", weights_only=False)
    predictor = Sa2VAPredictor.from_pretrained(folder, device="cpu", dtype="auto")
    image = Image.open(there / "picture.jpg").convert("RGB")
    answer = predictor.model.predict_forward(image=image, text=f"<image>{QUESTION}", processor=predictor.processor)
    assert fresh["text"] == answer["prediction"] and "[SEG]" in fresh["text"]
    for one, two in zip(fresh["masks"], answer["prediction_masks"], strict=True):
        assert (one != two).mean() < 0.005
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}]
    inputs = predictor.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        logits = predictor.model(**inputs).logits
    # The weights are equal bit by bit; products in bfloat16 may be rounded otherwise in another process.
    assert torch.allclose(fresh["logits"].float(), logits.float(), rtol=0.02, atol=0.1)


def test_a_second_push_uploads_only_what_is_missing(exported, stub, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(exported, folder)
    stub.faults += [("/commit/main", 503)] * hub_module.TRIES
    with pytest.raises(OSError, match="503"):
        push(folder, "user/mine")
    assert stub.commits == 0 and not stub.repos["user/mine"], "nobody sees a half"
    push(folder, "user/mine")
    shards = list(folder.glob("*.safetensors"))
    assert stub.commits == 1 and sum(method == "PUT" for method, *_ in stub.requests) == len(shards)


def test_a_refusal_is_not_tried_again(exported, stub):
    stub.faults += [("/commit/main", 403)]
    with pytest.raises(OSError, match="403"):
        push(exported, "user/mine")
    assert sum("/commit/main" in path for _, path, _ in stub.requests) == 1
