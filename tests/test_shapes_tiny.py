"""shapes-tiny, the model in the package: asked for a thing by name, it finds that thing."""

import io

import numpy as np
import pytest
from PIL import Image

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAPredictor, Sa2VAProcessor
from sa2va_hf.data.shapes.source import shapes
from sa2va_hf.evaluation.metrics import CumulativeIoU
from sa2va_hf.masks import decode
from sa2va_hf.model.configuration_sa2va import bundled


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    return Sa2VAPredictor.from_pretrained("shapes-tiny")


def test_it_loads_by_name_and_is_small(tmp_path, monkeypatch):
    folder = bundled("shapes-tiny")
    assert folder != "shapes-tiny"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes-tiny").mkdir()
    assert bundled("shapes-tiny") == "shapes-tiny", "a folder of that name here comes first"
    model = Sa2VAForConditionalGeneration.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8e6
    assert Sa2VAProcessor.from_pretrained(folder).template == model.config.template


def test_it_finds_the_shape_of_the_colour_it_is_asked_for(predictor):
    """Two shapes; a model that ignored the words would draw both, or either, and score below 0.5."""
    options = {"min_objects": 2, "max_objects": 2, "kinds": ("attribute",), "attributes": ("colour",)}
    images, texts, targets = [], [], []
    for sample in shapes(None, "val", count=24, seed=7, **options):
        for expression in [e for e in sample.expressions if e.targets][:2]:
            images.append(Image.open(io.BytesIO(sample.frames[0])).convert("RGB"))
            texts.append(f"Please segment {expression.text}.")
            targets.append(np.any([decode(sample.objects[t].masks[0]) for t in expression.targets], axis=0))
    predictions = predictor(image=images, text=texts, max_new_tokens=12)
    said = [len(prediction.masks) == 1 for prediction in predictions]
    assert np.mean(said) > 0.95, "answers without [SEG]"
    total = CumulativeIoU()
    for prediction, target in zip(predictions, targets, strict=True):
        total.add(prediction.masks.any(0)[0] if len(prediction.masks) else np.zeros_like(target), target)
    assert total.ciou() > 0.65
