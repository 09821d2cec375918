"""Pseudo-labels: the model's masks land beside the pictures, those of people are never touched, a run can be resumed.

Run: pytest tests/test_pseudo_labels.py
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sam2.sam2_image_predictor import SAM2ImagePredictor
from tiny import tiny_model, tiny_processor

from sa2va_hf import Sa2VAPredictor, masks
from sa2va_hf.data.schema import validate
from sa2va_hf.data.sources.folder_parts import Shapes, folder_parts
from sa2va_hf.pseudo_labels import NAME, Filter, prompted_mask, pseudo_label

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "pseudo_label.py"
LOOSE = Filter(min_area_ratio=0.0, max_area_ratio=1.0, min_score=0.0)
BOX = (40, 44, 80, 84)  # x0, y0, x1, y1 of the shape, inclusive


@pytest.fixture(scope="module")
def predictor() -> Sa2VAPredictor:
    """The model in the package, which knows coloured shapes: the folders are blue/square and red/circle."""
    return Sa2VAPredictor.from_pretrained("shapes-tiny", device="cpu")


@pytest.fixture(scope="module")
def random_predictor() -> Sa2VAPredictor:
    """For prompts of SAM 2, which the model in the package has not learned."""
    return Sa2VAPredictor(tiny_model(seed=4), tiny_processor())  # a seed whose masks are neither empty nor full


def picture(shift=0, size=(128, 128), circle=False):
    image = Image.new("RGB", (128, 128), (235, 235, 235))
    pen, box = ImageDraw.Draw(image), [side + shift for side in BOX]
    pen.ellipse(box, fill=(220, 30, 30)) if circle else pen.rectangle(box, fill=(30, 60, 220))
    return image.resize(size)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "red/circle").mkdir(parents=True)
    (tmp_path / "blue/square").mkdir(parents=True)
    picture().save(tmp_path / "blue/square/a.png")
    picture(8).save(tmp_path / "blue/square/b.jpg", quality=95)
    picture(4, (160, 100), circle=True).save(tmp_path / "red/circle/c.webp", lossless=True)
    return tmp_path


def run(predictor, root, filters=LOOSE, part="{part} {object}", **options):
    return pseudo_label(predictor, root, model_name="shapes-tiny", part=part, filters=filters, **options)


def shapes(path, kind, *points):
    record = {"label": "target", "shape_type": kind, "points": [list(point) for point in points]}
    path.write_text(json.dumps({"shapes": [record]}))


class Untouched:
    """A predictor that must not be asked."""

    def segment(self, **_):
        raise AssertionError("a mask was drawn again")


def test_masks_are_those_of_the_phrase_and_the_source_reads_them(predictor, root):
    manifest = run(predictor, root)
    assert manifest == json.loads((root / NAME).read_text())
    assert list(manifest["pictures"]) == ["blue/square/a", "blue/square/b", "red/circle/c"]
    samples = list(folder_parts(root, "train", part="{part} {object}"))
    names = (("a.png", "blue square"), ("b.jpg", "blue square"), ("c.webp", "red circle"))
    for sample, (file, thing) in zip(samples, names, strict=True):
        validate(sample)
        asked = f"Please segment the {thing} in this image."
        drawn = predictor.segment(image=sample.frames[0], text=asked, answer="Sure, [SEG].")
        assert Path(sample.frames[0]).name == file and sample.expressions[0].text == thing
        mask = Path(sample.frames[0]).with_name(f"{file[0]}_mask.png")
        np.testing.assert_array_equal(np.asarray(Image.open(mask)), drawn.masks[0, 0] * 255)
        entry = manifest["pictures"][sample.id]
        assert entry == {"status": "drawn", "prompt": "text", "score": round(float(drawn.scores[0]), 4),
                         "area": int(drawn.masks.sum()), "area_ratio": float(drawn.masks.mean()),
                         "box": [float(side) for side in drawn.boxes[0, 0]]}  # fmt: skip
        assert sample.objects[0].boxes == [tuple(entry["box"])]


def test_a_second_run_draws_nothing_and_overwrite_draws_again(predictor, root):
    first = run(predictor, root)
    before = {path: path.read_bytes() for path in root.rglob("*_mask.png")}
    assert run(Untouched(), root) == first
    picture(-4).save(root / "blue/square/a.png")
    again = run(predictor, root, overwrite=True)
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {"a_mask.png"} and again["pictures"]["blue/square/b"] == first["pictures"]["blue/square/b"]


def test_a_run_that_was_stopped_goes_on(predictor, root):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(predictor, root, progress=stop)
    assert list(json.loads((root / NAME).read_text())["pictures"]) == ["blue/square/a"]
    (root / NAME).unlink()  # killed before it was written: the masks know all of it
    steps = []
    manifest = run(predictor, root, progress=steps.append)
    assert steps == [1, 1, 1]
    assert (
        manifest["pictures"]["blue/square/a"]["status"] == "drawn" and "score" in manifest["pictures"]["blue/square/a"]
    )


def test_masks_and_polygons_of_people_are_never_touched(predictor, root):
    mine = root / "blue/square/a_mask.png"
    Image.fromarray(np.eye(128, dtype=np.uint8) * 255).save(mine)
    shapes(root / "blue/square/b.json", "polygon", (0, 0), (9, 0), (9, 9))
    before = mine.read_bytes()
    manifest = run(predictor, root, overwrite=True)
    assert [entry["status"] for entry in manifest["pictures"].values()] == ["given", "given", "drawn"]
    assert mine.read_bytes() == before and not (root / "blue/square/b_mask.png").exists()


@pytest.mark.parametrize(("filters", "reason"), [
    ({"min_score": 1.0}, "SAM 2 predicts a low IoU: 0."),
    ({"max_area_ratio": 0.0001}, "the mask covers too much of the image: 0."),
    ({"min_area_ratio": 0.99}, "no component of the mask has 16221 pixels (min_area_ratio)"),
])  # fmt: skip
def test_what_is_not_good_enough_is_rejected_and_not_tried_again(predictor, root, filters, reason):
    strict = Filter(**({"min_area_ratio": 0.0, "max_area_ratio": 1.0, "min_score": 0.0} | filters))
    manifest = run(predictor, root, strict)
    assert {entry["status"] for entry in manifest["pictures"].values()} == {"rejected"}
    assert manifest["pictures"]["blue/square/a"]["reason"].startswith(reason)
    assert not list(root.rglob("*_mask.png"))
    assert run(Untouched(), root, strict)["pictures"] == manifest["pictures"]
    assert {one["status"] for one in run(predictor, root)["pictures"].values()} == {"drawn"}  # other filters
    redrawn = run(predictor, root, strict, overwrite=True)  # a mask that is now rejected does not stay
    assert redrawn == manifest and not list(root.rglob("*_mask.png"))


def test_the_masks_are_of_what_is_in_the_pictures(predictor, root):
    run(predictor, root, Filter())
    truth = np.zeros((128, 128), bool)
    truth[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = True
    mask = np.asarray(Image.open(root / "blue/square/a_mask.png")) > 0
    assert masks.iou(mask, truth) > 0.8


def test_small_pieces_are_left_out_of_what_is_written(predictor, root, monkeypatch):
    specks = np.zeros((128, 128), bool)
    specks[:50, :50] = specks[100:110, 100:110] = specks[80:82, 80:82] = True
    drawn = predictor.segment(image=picture(), text="the blue square", answer="Sure, [SEG].")
    drawn.masks = specks[None, None]
    monkeypatch.setattr(Sa2VAPredictor, "segment", lambda *_, **__: drawn)
    for filters, area in (
        (LOOSE, 2500 + 100 + 4),
        (Filter(min_area_ratio=0.0005), 2500 + 100),  # 9 pixels
        (Filter(min_area_ratio=0.0, largest=True), 2500),
    ):
        manifest = run(predictor, root, filters, overwrite=True)
        assert manifest["pictures"]["blue/square/a"]["area"] == area
        assert (np.asarray(Image.open(root / "blue/square/a_mask.png")) > 0).sum() == area


@pytest.mark.parametrize("prompt", [
    Shapes(boxes=[(20.0, 30.0, 90.0, 100.0)]),
    Shapes(points=[(40.0, 50.0, True), (100.0, 10.0, False)]),
    Shapes(boxes=[(20.0, 30.0, 90.0, 100.0)], points=[(40.0, 50.0, True)]),
])  # fmt: skip
def test_prompts_give_what_sam_2_itself_gives(random_predictor, prompt):
    """At SAM 2's own input size, so that no picture is resized on the way."""
    image = picture()
    original = SAM2ImagePredictor(random_predictor.model.grounding_encoder.sam2_model)
    original._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]  # it has those of 1024 pixels
    original.set_image(image)
    points = np.array([point[:2] for point in prompt.points]) if prompt.points else None
    labels = np.array([int(point[2]) for point in prompt.points]) if prompt.points else None
    box = np.array(prompt.boxes[0]) if prompt.boxes else None
    candidates, scores, _ = original.predict(points, labels, box, multimask_output=True)
    mask, score = prompted_mask(random_predictor, image, prompt)
    assert score == pytest.approx(scores.max(), abs=1e-5)
    assert 0 < mask.sum() < mask.size
    assert (mask != (candidates[scores.argmax()] > 0)).mean() < 1e-3


def test_a_box_beside_a_picture_is_the_prompt(random_predictor, root):
    shapes(root / "blue/square/b.json", "rectangle", (10, 10), (60, 50))
    manifest = run(random_predictor, root)
    assert [entry["prompt"] for entry in manifest["pictures"].values()] == ["text", "points", "text"]
    image = Image.open(root / "blue/square/b.jpg")
    mask, _ = prompted_mask(random_predictor, image, Shapes(boxes=[(10.0, 10.0, 60.0, 50.0)]))
    assert ((np.asarray(Image.open(root / "blue/square/b_mask.png")) > 0) == mask).all()
    assert run(Untouched(), root) == manifest
    assert len(list(folder_parts(root, "train"))) == 3  # a prompt beside a mask is no second mask


def test_several_boxes_are_several_masks_in_one(random_predictor):
    image, boxes = picture(0, (100, 60)), [(14.0, 10.0, 50.0, 32.0), (58.0, 30.0, 88.0, 50.0)]
    both, score = prompted_mask(random_predictor, image, Shapes(boxes=boxes))
    single = [prompted_mask(random_predictor, image, Shapes(boxes=[box])) for box in boxes]
    assert (both != (single[0][0] | single[1][0])).mean() < 1e-3 and both.shape == (60, 100)
    assert score == pytest.approx(min(single[0][1], single[1][1]), abs=1e-4)
    with pytest.raises(ValueError, match="expected them with at most one box, got 2 boxes"):
        prompted_mask(random_predictor, image, Shapes(boxes=boxes, points=[(1.0, 1.0, True)]))


def test_bad_files_are_entries_with_a_reason(predictor, root):
    (root / "blue/square/a.png").write_bytes(b"no picture")
    shapes(root / "blue/square/b.json", "circle", (0, 0))
    (root / "red/circle/c_mask.png").write_bytes(b"no picture")
    picture(1).save(root / "red/stray.jpg")
    manifest = run(predictor, root)
    reasons = [entry["reason"] for entry in manifest["pictures"].values()]
    assert "a.png: cannot be read as a picture" in reasons[0]
    assert "shape_type must be polygon, rectangle or point, got 'circle'" in reasons[1]
    assert reasons[2] == "c_mask.png beside it cannot be read as an image: remove it"
    (problem,) = manifest["problems"]
    assert "expected" in problem["reason"] and problem["file"] == str(root / "red/stray.jpg")


@pytest.mark.parametrize(("options", "message"), [
    ({"min_area_ratio": 0.5, "max_area_ratio": 0.2}, "min_area_ratio must be below max_area_ratio"),
    ({"min_score": 2}, r"min_score must be in \[0, 1\], got 2"),
])  # fmt: skip
def test_filters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Filter(**options)


def test_a_damaged_manifest_and_an_empty_folder_raise(predictor, root, tmp_path_factory):
    (root / NAME).write_text("[]")
    with pytest.raises(ValueError, match="pseudo_labels.json is no manifest of pseudo-labels .*remove it"):
        run(predictor, root)
    with pytest.raises(ValueError, match="there are no pictures in"):
        run(predictor, tmp_path_factory.mktemp("empty"))


def test_the_script(root, monkeypatch, capsys):
    command = [str(SCRIPT), "--model", "shapes-tiny", "--root", str(root), "--device", "cpu"]
    command += ["--phrase", "{part} {object}"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "3 drawn, 0 given, 0 rejected, 0 files" in capsys.readouterr().out
    manifest = json.loads((root / NAME).read_text())
    assert manifest["part"] == "{part} {object}" and manifest["model"] == "shapes-tiny"
    monkeypatch.setattr(sys, "argv", [*command, "--min_score", "3"])
    with pytest.raises(SystemExit, match=r"min_score must be in \[0, 1\], got 3\.0"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
