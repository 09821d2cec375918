"""`pipeline("image-text-to-mask", model=...)`: text and masks in the manner of transformers' pipelines."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForImageTextToText, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .inference import Sa2VAPredictor
from .prediction import Prediction

TASK = "image-text-to-mask"
ASKING = ("max_new_tokens", "num_frames", "video_mode", "max_objects", "answer")


class Sa2VAPipeline(Pipeline):
    """Questions about pictures and clips -> what is said, and a mask per [SEG].

    Call it with `image=` or `video=` and `text=`, or with a list of such dicts. It returns per question {"text",
    "masks": bool (objects, frames, H, W), "boxes": xyxy (objects, frames, 4), "scores": (objects,)}. Options: those of
    `Sa2VAPredictor`, and `answer`, whose masks are predicted instead of generating one.
    """

    _load_processor, _load_tokenizer, _load_image_processor = True, False, False

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """inputs: a dict with image or video, and text, or a list of them; they may come as keywords as well."""
        if inputs is None:
            names = ("image", "video", "text", "regions")
            inputs = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if unknown := sorted(kwargs.keys() - set(ASKING)):
            raise TypeError(f"{TASK}: unknown arguments {unknown}; expected {', '.join(ASKING)}")
        return {}, kwargs, {}

    def preprocess(self, inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {"question": inputs}

    def _forward(self, inputs: dict[str, Any], answer: str | None = None, **options: Any) -> dict[str, Any]:
        predictor, question = Sa2VAPredictor(self.model, self.processor), inputs["question"]
        if answer is None:
            return {"prediction": predictor(**question, **options)}
        return {"prediction": predictor.segment(**question, answer=answer, **options)}

    def postprocess(self, outputs: dict[str, Prediction], **_: Any) -> dict[str, Any]:
        found = outputs["prediction"]
        return {"text": found.text, "masks": found.masks, "boxes": found.boxes, "scores": found.scores}


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=Sa2VAPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
)
