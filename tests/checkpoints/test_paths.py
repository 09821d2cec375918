"""Functions that take files and folders take their names as text as well.

Run: pytest tests/checkpoints/test_paths.py
"""

import inspect

import pytest

from sa2va_hf.checkpoints import card, convert, hub, merge, sam2, sam2_transformers, sam3, trackers, weights, zero
from sa2va_hf.data.prepare import manifest
from sa2va_hf.evaluation import coco_results, predictions, results
from sa2va_hf.training import saving

CHECKPOINTS = (card, convert, hub, merge, sam2, sam2_transformers, sam3, trackers, weights, zero)
FUNCTIONS = [
    function
    for module in (*CHECKPOINTS, predictions, results, saving)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == module.__name__
] + [coco_results.write_coco, manifest.Manifest.load, manifest.Manifest.save]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: f"{function.__module__}.{function.__name__}")
def test_a_path_may_be_text(function):
    """The annotations are held; that they are true is held where the tests of these functions pass texts."""
    annotations = {name: str(one.annotation) for name, one in inspect.signature(function).parameters.items()}
    assert not [name for name, kind in annotations.items() if "Path" in kind and "str" not in kind]
