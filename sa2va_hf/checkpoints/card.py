"""The README.md of a published model: its origin, its training and its scores, from what the run left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from ..model.configuration_sa2va import bundled
from .files import ADAPTER_CONFIG, CARD, TRAIN_CONFIG, TRAINER_STATE, read_json, read_settings
from .names import published_name

# The task by which transformers' `pipeline(model=...)` loads the model; "mask-generation" is SAM's automatic mode.
PIPELINE = "image-text-to-text"
TAGS = ["sa2va", "mask-generation", "image-segmentation", "referring-segmentation", "video-segmentation"]
FORCED = "evaluation data of the run (teacher-forced: each reference answer is given, its masks are compared)"
SCORES = ("cIoU", "gIoU", "J&F", "J", "F", "seg_emission", "seg_precision", "token_accuracy")
HERE = "."  # the model's name in the snippets of a card that was not pushed: they run in its folder
_MODEL_ID = re.compile(r'^model_id = "[^"]*"$', re.MULTILINE)
_SCORES = re.compile(r"^## Scores\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)

_TEMPLATE = """\
---
{head}
---

# {title}

A Sa2VA model: it answers questions about images and videos, and predicts masks of the objects in its answers.
{origin}

## Usage
{usage}
{training}{scores}"""

_WITH_PACKAGE = """
With the package `sa2va_hf`:

```python
from sa2va_hf import Sa2VAPredictor

model_id = "{model_id}"
predictor = Sa2VAPredictor.from_pretrained(model_id)
prediction = predictor(image="picture.jpg", text="Please segment the dog.")
print(prediction.text, prediction.masks.shape)  # masks: bool (objects, frames, height, width)
```
"""

_WITHOUT_PACKAGE = """
With `transformers` and `sam2` alone; the code lies beside the weights:

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model_id = "{model_id}"
model = AutoModel.from_pretrained(model_id, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
image = Image.open("picture.jpg").convert("RGB")
answer = model.predict_forward(image=image, text="<image>Please segment the dog.", processor=processor)
print(answer["prediction"], [mask.shape for mask in answer["prediction_masks"]])  # bool (frames, height, width) each
```
"""

_ADAPTER = """
```python
from peft import PeftModel
from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor

model_id = "{model_id}"
base = Sa2VAForConditionalGeneration.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, model_id).merge_and_unload()
predictor = Sa2VAPredictor(model, Sa2VAProcessor.from_pretrained(model_id))
prediction = predictor(image="picture.jpg", text="Please segment the dog.")
print(prediction.text, prediction.masks.shape)  # masks: bool (objects, frames, height, width)
```
"""

_ADAPTER_ALONE = """
This is an adapter, and its base model is not published: merge it where the base is
(`python scripts/merge_lora.py --checkpoint DIR --base DIR --output DIR --push_to_hub NAME`) and publish the result.
"""


_SAM2 = """\
---
{head}
---

# {title}

{network}, fine-tuned on prompted masks of images and videos. {origin}

## Usage

With `scripts/convert_checkpoint.py` of `sa2va_hf`, as {form}:

```bash
hf download {model_id} --local-dir finetuned
python scripts/convert_checkpoint.py --source finetuned --output converted --to {layout}
```
{training}{scores}"""


@dataclass
class Score:
    """A metric of the model on a benchmark or on a run's evaluation data."""

    dataset: str
    metric: str
    value: float
    split: str | None = None


@dataclass
class Facts:
    """What a card says. Nothing in it names a path of this machine.

    Args:
        base: Hub id of the base model. base_name: what `from_pretrained` loads it by (also a bundled model's name).
        relation: "finetune" or "adapter", for the Hub's tree of models.
        adapter: the LoRA settings in words.
        datasets: Hub ids. sources: names of the prepared datasets that are not on the Hub.
    """

    base: str | None = None
    base_name: str | None = None
    relation: str | None = None
    adapter: str = ""
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    steps: int | None = None
    epochs: float | None = None
    scores: list[Score] = field(default_factory=list)


def facts_of_run(folder: Path | str, base: str | None = None, *, relation: str = "finetune") -> Facts:
    """The facts in a run's folder, one of its checkpoints, or what zero_to_fp32.py made of one.

    Args:
        base: the model that was fine-tuned, a folder or Hub id; default: the one in the run's train_config.yaml.
        relation: what the published model is to its base: "finetune" (also when merged) or "adapter".
    """
    folder = Path(folder)
    config, state = read_settings(folder, TRAIN_CONFIG), read_settings(folder, TRAINER_STATE)
    if not base and (folder / ADAPTER_CONFIG).is_file():  # a relative path of another directory looks like a Hub id
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or _folder(config)
    base = base or config.get("model_name_or_path")
    inherited = head_of(Path(str(bundled(base))) / CARD) if base else {}
    datasets, sources = _data(config.get("train_data"))
    known = published_name(base) or inherited.get("base_model")
    return Facts(
        base=known,
        base_name=known if known == base else base if base != bundled(base) else None,
        relation=relation if known else None,
        adapter=_lora(folder),
        license=inherited.get("license"),
        languages=_several(inherited.get("language")),
        datasets=datasets,
        sources=sources,
        steps=state.get("global_step"),
        epochs=state.get("epoch"),
        scores=_evaluation(state),
    )


def scores_of(metrics: Path | str) -> list[Score]:
    """The figures over a whole benchmark in a metrics.json of scripts/evaluate.py.

    Raises:
        ValueError: the file is another one.
    """
    metrics = Path(metrics)
    content = read_json(metrics)
    if not isinstance(content.get("metrics"), dict) or not content.get("benchmark"):
        raise ValueError(f"{metrics}: expected a metrics.json of scripts/evaluate.py, with benchmark and metrics")
    split = content.get("recipe", {}).get("split")
    figures = {name: value for name, value in content["metrics"].items() if isinstance(value, int | float)}
    return [Score(content["benchmark"], name, float(value), split) for name, value in figures.items()]


def head_of(card: Path | str) -> dict[str, Any]:
    """The YAML head of a card; empty where there is none."""
    card = Path(card)
    found = _HEAD.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    content = yaml.safe_load(found[1]) if found else None
    return content if isinstance(content, dict) else {}


def model_card(facts: Facts, *, title: str, model_id: str = HERE, is_adapter: bool = False) -> str:
    """Markdown with a YAML head. is_adapter: the card is of an adapter alone, not of a whole model."""
    if is_adapter:
        usage = _ADAPTER if facts.base_name else _ADAPTER_ALONE
    else:
        usage = _WITH_PACKAGE + _WITHOUT_PACKAGE
    return _TEMPLATE.format(
        head=_yaml(_data_of(facts, title, is_adapter)),
        title=title,
        origin=_origin(facts, is_adapter),
        usage=usage.format(model_id=model_id, base=facts.base_name),
        training=_training(facts),
        scores=_table(facts.scores),
    )


# Of a SAM alone: what its card says, and the library that reads it once it is converted.
_SAMS = {
    False: ("sam2", {"network": "SAM 2", "form": "a checkpoint of the package `sam2`", "layout": "sam2"}),
    True: (
        "transformers",
        {
            "network": "The tracker of SAM 3",
            "form": "a folder for `Sam3TrackerVideoModel` of transformers",
            "layout": "transformers",
        },
    ),
}


def sam2_card(facts: Facts, *, title: str, model_id: str = HERE, is_sam3: bool = False) -> str:
    """The card of a fine-tuned SAM 2, or SAM 3, whose scores are J and F of videos."""
    library, words = _SAMS[is_sam3]
    scores = [replace(score, dataset="evaluation videos of the run") for score in facts.scores]
    facts = replace(facts, scores=scores)
    head = _data_of(facts, title, is_adapter=False) | {"library_name": library, "pipeline_tag": "mask-generation"}
    return _SAM2.format(
        **words,
        head=_yaml(head | {"tags": ["sam3" if is_sam3 else "sam2", "video-segmentation"]}),
        title=title,
        origin=_origin(facts, is_adapter=False),
        model_id=model_id,
        training=_training(facts),
        scores=_table(facts.scores),
    )


def with_model_id(card: str, model_id: str) -> str:
    """The card with this name in its snippets."""
    return _MODEL_ID.sub(f'model_id = "{model_id}"', card)


def amended(card: str, facts: Facts, title: str) -> str:
    """The card with the licence, languages, base model and scores of `facts` in its head, where they are given."""
    found = _HEAD.match(card)
    head = yaml.safe_load(found[1]) if found else {}
    given = {"license": facts.license, "language": facts.languages, "base_model": facts.base}
    head |= {name: value for name, value in given.items() if value} | _model_index(facts.scores, title)
    text = card[found.end() if found else 0 :]
    if facts.scores:
        text = _SCORES.sub("", text).rstrip("\n") + "\n" + _table(facts.scores)
    return f"---\n{_yaml(head)}\n---\n{text}"


# ---- parts of the text ----
def _yaml(data: dict[str, Any]) -> str:
    return yaml_dump(data, sort_keys=False).strip()


def _data_of(facts: Facts, title: str, is_adapter: bool) -> dict[str, Any]:
    data = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": PIPELINE,
        "license": facts.license,
        "language": facts.languages,
        "base_model": facts.base,
        "base_model_relation": facts.relation,
        "datasets": facts.datasets,
        "tags": TAGS,
    }
    return {name: value for name, value in data.items() if value} | _model_index(facts.scores, title)


def _model_index(scores: list[Score], title: str) -> dict[str, Any]:
    results = [
        EvalResult(
            task_type=PIPELINE,
            dataset_type=score.dataset,
            dataset_name=score.dataset,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_name=score.metric,
            metric_value=round(score.value, 4),
        )
        for score in scores
    ]
    return ModelCardData(model_name=title, eval_results=results).to_dict() if results else {}


def _origin(facts: Facts, is_adapter: bool) -> str:
    if not (facts.base or facts.adapter):
        return ""
    start = f"Fine-tuned from `{facts.base}`" if facts.base else "Fine-tuned"
    merged = "" if is_adapter else "; the adapter is merged into the weights"
    return f"{start}{f' with {facts.adapter}{merged}' if facts.adapter else ''}."


def _training(facts: Facts) -> str:
    lines = []
    if facts.steps:
        epochs = "" if facts.epochs is None else f", {facts.epochs:.2f} epochs"
        lines.append(f"{facts.steps} steps{epochs}.")
    if used := [*(f"`{name}`" for name in facts.datasets), *facts.sources]:
        lines.append(f"Data: {', '.join(used)}.")
    return "\n".join(["\n## Training\n", *lines, ""]) if lines else ""


def _table(scores: list[Score]) -> str:
    if not scores:
        return ""
    rows = [f"| {score.dataset} | {score.metric} | {score.value:.4f} |" for score in scores]
    return "\n".join(["\n## Scores\n", "| data | score | value |", "|---|---|---|", *rows, ""])


# ---- what a run left behind ----
def _folder(config: dict[str, Any]) -> str | None:
    """The base model of a run's settings as an absolute path."""
    named = config.get("model_name_or_path")
    return str(Path(str(bundled(named))).absolute()) if named else None


def _lora(folder: Path) -> str:
    if not (folder / ADAPTER_CONFIG).is_file():
        return ""
    settings = read_json(folder / ADAPTER_CONFIG)
    kind = "DoRA" if settings.get("use_dora") else "LoRA"
    return f"{kind} (rank {settings['r']}, alpha {settings['lora_alpha']})"


def _evaluation(state: dict[str, Any]) -> list[Score]:
    """The last evaluation of a run."""
    logged = [entry for entry in state.get("log_history", []) if any(key.startswith("eval_") for key in entry)]
    if not logged:
        return []
    found = {key.removeprefix("eval_"): value for key, value in logged[-1].items()}
    return [Score(FORCED, name, found[name]) for name in sorted(found) if name.endswith(SCORES)]


def _data(train_data: Any) -> tuple[list[str], list[str]]:
    """Hub ids, and the sources of prepared folders, of a run's mixture."""
    hub, sources = [], []
    for path in dict.fromkeys(_paths(train_data)):
        if path.startswith("hf://datasets/"):
            hub.append(path.removeprefix("hf://datasets/"))
        elif (Path(path) / "manifest.json").is_file():
            sources.append(str(read_json(Path(path) / "manifest.json").get("source")))
    return hub, sorted(set(sources))


def _paths(entry: Any) -> Iterable[str]:
    """Every `path` in a mixture, in whichever of its forms."""
    if isinstance(entry, str) and entry.endswith((".yaml", ".yml")):
        entry = yaml.safe_load(Path(entry).read_text(encoding="utf-8")) if Path(entry).is_file() else None
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list):
        for one in entry:
            yield from _paths(one)
    elif isinstance(entry, dict):
        yield from _paths(entry.get("path"))
        yield from _paths(entry.get("parts"))


def _several(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []
