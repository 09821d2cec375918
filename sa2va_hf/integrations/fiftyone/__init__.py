"""A source of zoo models for FiftyOne, in the form of its remotely-sourced zoo models: this folder with manifest.json.

    import fiftyone.zoo as foz

    foz.register_zoo_model_source("https://github.com/OWNER/sa2va_hf")  # wherever this repository is
    model = foz.load_zoo_model("sa2va/sa2va", model="outputs/mine", prompts=["the dog", "every cat"])
    dataset.apply_model(model, label_field="sa2va")

Every object that an answer has a mask of becomes a `fiftyone.Detection` with that mask; its label is the prompt.
FiftyOne copies this file, so it imports the installed package by its name.

Source: https://docs.voxel51.com/model_zoo/remote.html
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import fiftyone as fo
import fiftyone.core.models as fom
import fiftyone.operators.types as types
import numpy as np
from PIL import Image

from sa2va_hf.inference import Prediction, Sa2VAPredictor
from sa2va_hf.model.configuration_sa2va import bundled

NAME, BUNDLED = "sa2va/sa2va", "shapes-tiny"
QUESTION = "Please segment {}."
PROMPT_FIELD = "prompt_field"  # of `apply_model`: the field of a sample that holds its prompt, or a list of them


def download_model(model_name: str, model_path: str) -> None:
    """Copy the bundled model to `model_path`, which may be there from an earlier call. A model that `load_model` is
    given by its folder or Hub id needs no download by FiftyOne."""
    _check_name(model_name)
    shutil.copytree(bundled(BUNDLED), model_path, dirs_exist_ok=True)


def load_model(
    model_name: str,
    model_path: str,
    model: str | None = None,
    prompts: str | Sequence[str] = (),
    question: str = QUESTION,
    max_new_tokens: int = 64,
    **options: Any,
) -> Sa2VAZooModel:
    """What `fiftyone.zoo.load_zoo_model` calls with its own keyword arguments.

    Args:
        model: a model folder or a Hub id; default: the bundled model, at `model_path`.
        prompts: what is asked for in every image, each in a question of its own; may be left out where samples have
            prompts of their own (`prompt_field` of `apply_model`).
        question: {} stands for the prompt.
        options: of `Sa2VAPredictor.from_pretrained`, as `device` or `dtype`.

    Raises:
        ValueError: another model's name, or a question without {}.
    """
    _check_name(model_name)
    if "{}" not in question:
        raise ValueError(f"question: expected {{}} where the prompt belongs, got {question!r}")
    predictor = Sa2VAPredictor.from_pretrained(model or model_path, **options)
    return Sa2VAZooModel(predictor, _listed(prompts), question, max_new_tokens)


def resolve_input(model_name: str, ctx: Any) -> types.Property:
    """The form in which FiftyOne's App asks for the arguments of `load_model`."""
    inputs = types.Object()
    inputs.str("prompts", label="Prompts", description="What to segment, separated by commas", required=True)
    inputs.str("model", label="Model", description="A model folder or a Hub id; default: the bundled shapes-tiny")
    inputs.str("question", label="Question", description="{} stands for the prompt", default=QUESTION)
    return types.Property(inputs)


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """Turn what was typed into the form into arguments of `load_model`, in place."""
    params["prompts"] = [part.strip() for part in params.get("prompts", "").split(",") if part.strip()]
    for name in ("model", "question"):
        if not params.get(name):
            params.pop(name, None)


class Sa2VAZooModel(fom.SamplesMixin, fom.Model):
    """A predictor under FiftyOne's interface of image models; of a video, frames are asked about one by one."""

    def __init__(
        self, predictor: Sa2VAPredictor, prompts: Sequence[str], question: str = QUESTION, max_new_tokens: int = 64
    ) -> None:
        fom.SamplesMixin.__init__(self)
        self.predictor, self.prompts, self.question = predictor, list(prompts), question
        self.max_new_tokens = max_new_tokens
        self.config = SimpleNamespace()  # FiftyOne looks for thresholds here: it applies them itself

    @property
    def media_type(self) -> str:
        return "image"

    @property
    def ragged_batches(self) -> bool:
        return False  # images of different sizes may come together

    @property
    def transforms(self) -> None:
        return None

    @property
    def preprocess(self) -> bool:
        return True

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        """Nothing to switch: an image goes to the processor as it is."""

    def predict(self, arg: np.ndarray, sample: Any = None) -> fo.Detections:
        """arg: uint8 (H, W, 3)."""
        return self.predict_all([arg], [sample])[0]

    def predict_all(self, args: Sequence[np.ndarray], samples: Sequence[Any] | None = None) -> list[fo.Detections]:
        """All prompts about all images as one batch.

        Raises:
            ValueError: an image without a prompt.
        """
        samples = [None] * len(args) if samples is None else list(samples)
        images = [Image.fromarray(np.asarray(arg)).convert("RGB") for arg in args]
        asked = [(row, prompt) for row, sample in enumerate(samples) for prompt in self._prompts(sample)]
        predictions = self.predictor(
            image=[images[row] for row, _ in asked],
            text=[self.question.format(prompt) for _, prompt in asked],
            max_new_tokens=self.max_new_tokens,
        )
        found: list[list[fo.Detection]] = [[] for _ in args]
        for (row, prompt), prediction in zip(asked, predictions, strict=True):
            found[row] += detections(prediction, prompt)
        return [fo.Detections(detections=one) for one in found]

    def _prompts(self, sample: Any) -> list[str]:
        field = self.needs_fields.get(PROMPT_FIELD)
        prompts = _listed(sample[field]) if field and sample is not None and sample[field] else self.prompts
        if not prompts:
            raise ValueError(
                f"an image has no prompt: give prompts to load_zoo_model, or {PROMPT_FIELD} to apply_model"
            )
        return prompts


def detections(prediction: Prediction, label: str, frame: int = 0) -> list[fo.Detection]:
    """The objects of a frame that have pixels: box as shares of the image's sides, and the mask inside it."""
    masks, found = prediction.frame(frame), []
    for mask, box, score in zip(masks, prediction.boxes[:, frame], prediction.scores, strict=True):
        if np.isnan(box).any():
            continue
        x0, y0, x1, y1 = box.astype(int).tolist()
        height, width = mask.shape
        found.append(
            fo.Detection(
                label=label,
                bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                mask=mask[y0:y1, x0:x1].copy(),
                confidence=float(score),
            )
        )
    return found


def _listed(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _check_name(name: str) -> None:
    if name != NAME:
        raise ValueError(f"expected the zoo model {NAME!r}, got {name!r}")
