"""The zoo source for FiftyOne: registered from an archive, loaded by name, applied to images.

FiftyOne is in no extra: it brings a database server. `pip install fiftyone` into an environment of its own and
run: pytest tests/integrations/test_fiftyone.py
"""

import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sa2va_hf
from sa2va_hf import Sa2VAPredictor

SOURCE = Path(sa2va_hf.__file__).parent / "integrations" / "fiftyone"
NAME, PROMPTS = "sa2va/sa2va", ["the red square", "the blue square"]


def squares(shift=0):
    image = Image.new("RGB", (128, 96 + shift), (245, 245, 245))
    image.paste((220, 30, 30), (16 + shift, 20, 60 + shift, 64))
    image.paste((30, 60, 200), (76, 40, 112, 84))
    return image


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """FiftyOne with folders and a database of its own, and our source registered from an archive on loopback."""
    folder = tmp_path_factory.mktemp("fiftyone")
    os.environ |= {
        "FIFTYONE_DATABASE_DIR": str(folder / "database"),
        "FIFTYONE_MODEL_ZOO_DIR": str(folder / "models"),
        "FIFTYONE_DO_NOT_TRACK": "true",
    }
    pytest.importorskip("fiftyone", reason="needs FiftyOne")
    import fiftyone.zoo as foz

    shutil.make_archive(str(folder / "served" / "sa2va"), "zip", SOURCE.parents[1], "integrations")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    foz.register_zoo_model_source(f"http://127.0.0.1:{server.server_port}/sa2va.zip")
    server.shutdown()
    server.server_close()
    return foz


def test_the_manifest_names_one_model_that_the_source_knows():
    manifest = json.loads((SOURCE / "manifest.json").read_text())
    (model,) = manifest["models"]
    assert manifest["name"] and model["base_name"] == NAME and model["base_filename"]
    assert f'NAME, BUNDLED = "{NAME}"' in (SOURCE / "__init__.py").read_text()


def test_the_source_is_applied_to_two_images(zoo, tmp_path):
    import fiftyone as fo

    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for shift, file in zip((0, 8), files, strict=True):  # of different sizes
        squares(shift).save(file)
    assert NAME in zoo.list_zoo_models()
    model = zoo.load_zoo_model(NAME, prompts=PROMPTS, device="cpu")
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=str(file)) for file in files])
    dataset.apply_model(model, label_field="sa2va", batch_size=2, skip_failures=False)
    predictor = Sa2VAPredictor.from_pretrained("shapes-tiny", device="cpu")
    for sample in dataset:
        image = Image.open(sample.filepath)
        found = sample.sa2va.detections
        assert {one.label for one in found} <= set(PROMPTS) and found
        for prompt in PROMPTS:
            wanted = predictor(image=image, text=f"Please segment {prompt}.", max_new_tokens=64)
            ours = [one for one in found if one.label == prompt]
            seen = [mask for mask in wanted.frame(0) if mask.any()]
            assert len(ours) == len(seen)
            for one, mask in zip(ours, seen, strict=True):
                whole = one.to_segmentation(frame_size=image.size).mask > 0
                assert (whole != mask).mean() < 1e-3, "the box and the mask in it are the mask of the image"
                assert 0 <= one.confidence <= 1


def test_samples_bring_prompts_of_their_own_and_an_image_without_one_is_refused(zoo, tmp_path):
    import fiftyone as fo

    squares().save(tmp_path / "a.png")
    model = zoo.load_zoo_model(NAME, device="cpu")
    dataset = fo.Dataset()
    dataset.add_sample(fo.Sample(filepath=str(tmp_path / "a.png"), asked="the red square"))
    dataset.apply_model(model, label_field="sa2va", prompt_field="asked", skip_failures=False)
    assert {one.label for one in dataset.first().sa2va.detections} == {"the red square"}
    with pytest.raises(ValueError, match="an image has no prompt: give prompts to load_zoo_model, or prompt_field"):
        model.predict(np.asarray(squares()))


def test_the_form_of_the_app_becomes_arguments(zoo):
    model = zoo.get_zoo_model(NAME)
    form = model.resolve_input(SimpleNamespace()).type.properties
    assert list(form) == ["prompts", "model", "question"] and form["prompts"].required
    params = {"prompts": "the dog, every cat,", "model": "", "question": None}
    model.parse_parameters(SimpleNamespace(), params)
    assert params == {"prompts": ["the dog", "every cat"]}
    with pytest.raises(ValueError, match="question: expected {} where the prompt belongs"):
        zoo.load_zoo_model(NAME, question="Please segment.", device="cpu")
