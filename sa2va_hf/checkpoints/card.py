"""The README.md of a merged model: where it comes from, what it was trained with, how to call it."""

from __future__ import annotations

import json
from pathlib import Path

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [sa2va, segmentation, referring-segmentation, video]
base_model: {base}
---

# Sa2VA

Answers questions about pictures and videos, and segments what it speaks of. Fine-tuned from `{base}`{adapter}; the
adapter is merged into the weights.

```python
from sa2va_hf import Sa2VAPredictor

predictor = Sa2VAPredictor.from_pretrained("PATH_OR_REPO_OF_THIS_MODEL")
prediction = predictor(image="picture.jpg", text="Please segment the dog.")
prediction.text, prediction.masks
```
{training}"""


def model_card(base: str, checkpoint: Path) -> str:
    """Markdown with a YAML head, from the adapter's config and, where it lies beside it, the training's state."""
    settings = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    adapter = f" with LoRA (rank {settings['r']}, alpha {settings['lora_alpha']})"
    name = Path(base).name if Path(base).is_dir() else base  # no local folders in a public file
    return _TEMPLATE.format(base=name, adapter=adapter, training=_training(checkpoint / "trainer_state.json"))


def _training(path: Path) -> str:
    if not path.is_file():
        return ""
    state = json.loads(path.read_text(encoding="utf-8"))
    evaluations = [entry for entry in state.get("log_history", []) if any(key.startswith("eval_") for key in entry)]
    lines = ["", "## Training", "", f"{state['global_step']} steps, {state['epoch']:.2f} epochs."]
    if evaluations:
        last = evaluations[-1]
        lines += ["", f"Evaluated at step {last['step']}:", "", "| score | value |", "|---|---|"]
        wanted = ("cIoU", "gIoU", "seg_emission", "seg_precision", "token_accuracy")
        lines += [f"| {key[5:]} | {last[key]:.4f} |" for key in sorted(last) if key.endswith(wanted)]
    return "\n".join(lines) + "\n"
