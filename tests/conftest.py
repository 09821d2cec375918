"""Fixtures for every test: a model small enough to build in one, and the folder of real samples when there is one."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before transformers is imported: tests never ask the Hub, and a failing test's output is not buried in progress bars.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Before torch is imported, here and in every process that a test starts: MKL's fastest products depend on how their
# operands are aligned in memory, which differs between processes, so last bits would differ too.
os.environ.setdefault("MKL_CBWR", "AUTO")
# What is cached goes where it harms nobody; processes that a test starts share it.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="sa2va-tests-")


def pytest_unconfigure():
    gc.unfreeze()  # or extensions say at the exit that their objects have leaked
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Files with slow tests first: processes get files in this order, and should not end with a long one each."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What was imported stays: collecting garbage, as every training run does at its end, need not go through it."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small samples in the datasets' true on-disk formats. They are not ours to ship."""
    folder = os.environ.get("SA2VA_TEST_DATA")
    if not folder:
        pytest.skip("SA2VA_TEST_DATA is not set: no folder of sample data")
    if not Path(folder).is_dir():
        raise ValueError(f"SA2VA_TEST_DATA={folder!r} is not a folder; unset it to skip the tests that need it")
    return Path(folder)


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory) -> str:
    """The folder of what `toy_run.finished` makes, the same in all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "toy_runs")


@pytest.fixture
def tiny_model():
    """A fresh, randomly initialised model in eval mode; a test may do to it what it likes."""
    from tiny import tiny_model as build

    return build()


@pytest.fixture
def tiny_processor():
    from tiny import tiny_processor as build

    return build()
