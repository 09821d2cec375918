"""A wheel, installed beside the dependencies, is useful by itself: outside the repository, with the bundled model.

Run: pytest tests/test_wheel.py -m slow
"""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(command, folder, **environment):
    """In `folder`, without the repository on the path."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools writes beside what it builds
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "sa2va_hf", source / "sa2va_hf", ignore=shutil.ignore_patterns("__pycache__"))
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel):
    target = wheel.parent / "installed"
    run([*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel], wheel.parent)
    return target


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_bundled_model(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "sa2va_hf"
    needed = [*package.rglob("*.py"), *(file for file in (package / "pretrained").rglob("*") if file.is_file())]
    wanted = {str(file.relative_to(ROOT)) for file in [*needed, package / "py.typed"]}
    assert not wanted - held
    assert not [name for name in held if name.split("/")[0] in ("tests", "scripts", "configs")]


@pytest.mark.slow
def test_the_command_predicts_outside_the_repository(installed, tmp_path):
    scene = Image.new("RGB", (128, 128), "gray")
    ImageDraw.Draw(scene).ellipse((30, 30, 80, 80), fill="red")
    scene.save(tmp_path / "photo.png")
    where = run(
        [sys.executable, "-c", "import sa2va_hf; print(sa2va_hf.__file__)"], tmp_path, PYTHONPATH=str(installed)
    )
    assert Path(where.strip()).is_relative_to(installed), "the installed package is the one that is run"
    question = ["--image", "photo.png", "--text", "Please segment the red circle.", "--output", "out"]
    command = [installed / "bin/sa2va", "predict", "--model", "shapes-tiny", "--device", "cpu", *question]
    assert "[SEG]" in run(command, tmp_path, PYTHONPATH=str(installed))
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert written == {"text.txt", "overlay.png", "masks/object1_frame00000.png"}


@pytest.mark.slow
def test_the_wheel_declares_its_command_and_its_extras(installed):
    (one,) = [one for one in distributions(path=[str(installed)]) if one.name == "sa2va_hf"]
    assert [(e.name, e.value) for e in one.entry_points] == [("sa2va", "sa2va_hf.commands:main")]
    assert any(need.startswith("torch>=") for need in one.requires)
    assert "test" in one.metadata.get_all("Provides-Extra")
