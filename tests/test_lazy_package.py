"""`import sa2va_hf` costs nothing, and does all that an eager import did.

Run: pytest tests/test_lazy_package.py
"""

import subprocess
import sys
from importlib.resources import files

import pytest

import sa2va_hf
from sa2va_hf import auto_classes

AUTO = "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor\n"
LOAD = """
folder = {folder!r}
config = AutoConfig.from_pretrained(folder)
assert type(config) is sa2va_hf.Sa2VAConfig
assert type(AutoProcessor.from_pretrained(folder)) is sa2va_hf.Sa2VAProcessor
for auto in (AutoModel, AutoModelForImageTextToText):
    assert type(auto.from_pretrained(folder)) is sa2va_hf.Sa2VAForConditionalGeneration
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_package_imports_neither_torch_nor_transformers():
    run("import sys, sa2va_hf\nassert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()")


@pytest.mark.parametrize("first", ["package", "transformers"])
def test_auto_classes_know_the_model_whatever_is_imported_first(first):
    package = "import sys, sa2va_hf\n"
    head = package + AUTO if first == "package" else AUTO + package
    lazy = "assert 'sam2' not in sys.modules and 'sa2va_hf.model.modeling_sa2va' not in sys.modules\n"
    run(head + lazy + LOAD.format(folder=str(files("sa2va_hf") / "pretrained/shapes-tiny")))


def test_public_names():
    assert sa2va_hf.__all__ == sorted(sa2va_hf._MODULES)
    for name in sa2va_hf.__all__:
        assert getattr(sa2va_hf, name).__name__ == name
    assert set(sa2va_hf.__all__) <= set(dir(sa2va_hf))
    with pytest.raises(AttributeError, match="module 'sa2va_hf' has no attribute 'Sa2VATrainee'"):
        sa2va_hf.Sa2VATrainee  # noqa: B018
    assert (files("sa2va_hf") / "py.typed").is_file()


def test_registering_twice_changes_nothing():
    before = list(sys.meta_path)
    auto_classes.register()
    assert sys.meta_path == before
    assert sa2va_hf.Sa2VAConfig.model_type == auto_classes.MODEL_TYPE
