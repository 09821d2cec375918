"""Point-sampled losses and LoRA against the original code's numbers, on a checkpoint whose weights are a formula.

Run: SA2VA_TEST_DATA=... pytest -m parity tests/test_golden_training.py
(The folder beside the samples, golden/sa2va, holds the numbers; without it these tests are skipped.)
"""

import json
import re
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.arguments import ModelArguments
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.model.losses import mask_losses, uncertain_points
from sa2va_hf.training.sa2va.trainable import add_lora

pytestmark = [pytest.mark.parity, pytest.mark.slow]  # slow: left out by `-m "not slow"` too
OBJECTS_PER_FRAME, SEED = 5, 0
MASK_WEIGHT, DICE_WEIGHT = 2.0, 0.5


@pytest.fixture(scope="module")
def golden(shared_data) -> dict:
    folder = shared_data.parent / "golden/sa2va"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    cases = json.loads((folder / f"cases_seed{SEED}.json").read_text())
    arrays = np.load(folder / f"goldens_seed{SEED}.npz")
    return {"folder": folder, "meta": cases["meta"], "arrays": arrays, **cases["training"]}


@pytest.fixture(scope="module")
def checkpoint(golden, tmp_path_factory) -> Path:
    released, ours = tmp_path_factory.mktemp("released"), tmp_path_factory.mktemp("ours")
    command = [sys.executable, golden["folder"] / "make_checkpoint.py", released, "--template"]
    run([*map(str, command), golden["meta"]["template"]], check=True)
    convert(released, ours)
    return ours


@pytest.fixture(scope="module")
def encoded() -> list:
    """What the frozen image encoder, SAM 2 large, makes of the frames: half a minute, and the same in every test."""
    return []


@pytest.fixture
def model(checkpoint, encoded) -> Sa2VAForConditionalGeneration:
    """Trainable as the original was: all but SAM 2, and of that the mask decoder."""
    model = Sa2VAForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.grounding_encoder.requires_grad_(False)
    sam2 = model.grounding_encoder.sam2_model
    sam2.sam_mask_decoder.requires_grad_(True)
    encode = sam2.image_encoder.forward

    def once(frames: torch.Tensor) -> dict:
        if not encoded:
            encoded.append((frames, encode(frames)))
        assert torch.equal(frames, encoded[0][0])
        return encoded[0][1]

    sam2.image_encoder.forward = once
    return model


def shape_mask(shape: dict, size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    if shape["kind"] == "rect":
        return (shape["x0"] <= x) & (x < shape["x1"]) & (shape["y0"] <= y) & (y < shape["y1"])
    return ((x - shape["cx"]) / shape["rx"]) ** 2 + ((y - shape["cy"]) / shape["ry"]) ** 2 <= 1


@pytest.fixture(scope="module")
def batch(golden, checkpoint, shared_data) -> tuple[dict, list[torch.Tensor]]:
    """Inputs and masks per sample: a picture with two objects, and a clip of three frames with one answer."""
    data, media = golden["data"], shared_data / "sam2_media"
    picture = Image.open(media / data["image"]).convert("RGB")
    frames = [Image.open(media / frame).convert("RGB") for frame in data["frames"]]

    def chat(visual: dict, text: str, answer: str) -> list[dict]:
        user = {"role": "user", "content": [visual, {"type": "text", "text": text}]}
        return [user, {"role": "assistant", "content": answer}]

    chats = [
        chat({"type": "image", "image": picture}, data["image_text"], data["image_answer"]),
        chat({"type": "video", "video": frames}, data["video_text"], data["video_answer"]),
    ]
    inputs = Sa2VAProcessor.from_pretrained(checkpoint).apply_chat_template(
        chats, add_generation_prompt=False, padding=True, return_labels=True
    )
    masks = [
        np.stack([[shape_mask(s, picture.size)] for s in data["image_masks"]]),
        np.stack([[shape_mask(s, frames[0].size) for s in thing] for thing in data["video_masks"]]),
    ]
    return dict(inputs), [torch.from_numpy(m) for m in masks]


def as_in_the_original(masks: list[torch.Tensor]) -> torch.Tensor:
    """Per sample (objects, frames, h, w) -> frames one after the other, each with its objects in turns, up to five."""
    frames = [sample[[i % len(sample) for i in range(OBJECTS_PER_FRAME)]].transpose(0, 1) for sample in masks]
    return torch.cat([frame.flatten(0, 1) for frame in frames])


def targets_of(masks: list[torch.Tensor], size: int) -> torch.Tensor:
    return as_in_the_original([torch.nn.functional.interpolate(m.float(), size=(size, size)) for m in masks])


def assert_gradients(parameters: dict[str, torch.nn.Parameter], golden: dict, case: str) -> None:
    """Norm of all, and the whole gradients of text_hidden_fcs."""
    squares = sum(float(p.grad.double().square().sum()) for p in parameters.values() if p.grad is not None)
    assert squares**0.5 == pytest.approx(golden["cases"][case]["grad_total_norm"], rel=1e-4)
    for layer in ("0.weight", "0.bias", "2.weight", "2.bias"):
        expected = golden["arrays"][f"{case}/grad/text_hidden_fcs.{layer}"]
        name = next(n for n in parameters if re.search(rf"text_hidden_fcs\.{layer[0]}\..*{layer[2:]}$", n))
        difference = np.abs(parameters[name].grad.numpy() - expected).max()
        assert difference < 1e-3 * expected.std()


def assert_losses(golden: dict, case: str, lm: torch.Tensor, bce: torch.Tensor, dice: torch.Tensor) -> None:
    expected = golden["cases"][case]
    assert float(lm) == pytest.approx(expected["llm_loss"], rel=1e-5)
    assert float(bce) == pytest.approx(expected["loss_mask"], rel=1e-5)
    assert float(dice) == pytest.approx(expected["loss_dice"], rel=1e-5)
    assert float(lm + bce + dice) == pytest.approx(expected["total"], rel=1e-5)


def test_point_sampled_losses_and_their_gradients(golden, model, batch):
    """The original draws points for every repetition of an object, so its repetitions are made here by hand."""
    inputs, masks = batch
    out = model(**inputs)
    logits, targets = as_in_the_original(out.pred_masks), targets_of(masks, 256)

    torch.manual_seed(golden["cases"]["train_points_torchseed"]["torch_seed"])
    points = uncertain_points(logits.detach(), 12544, 3.0, 0.75)
    head = golden["arrays"]["train_points_torchseed/coords_head"]
    assert np.isin(np.round(head[0], 5), np.round(points[0].numpy(), 5)).mean() > 0.99
    bce, dice = mask_losses(logits.detach(), targets, points=points)
    assert_losses(golden, "train_points_torchseed", out.lm_loss, MASK_WEIGHT * bce, DICE_WEIGHT * dice)

    given = torch.from_numpy(golden["arrays"]["train_points_given/coords"])
    bce, dice = mask_losses(logits, targets, points=given)
    bce, dice = MASK_WEIGHT * bce, DICE_WEIGHT * dice
    assert_losses(golden, "train_points_given", out.lm_loss, bce, dice)
    (out.lm_loss + bce + dice).backward()
    assert_gradients(dict(model.named_parameters()), golden, "train_points_given")


def test_lora(golden, model, batch):
    """Through peft as a run does it, with the released ranks' names and the golden's own numbers in the matrices."""
    sys.path.insert(0, str(golden["folder"]))
    from make_checkpoint import draw

    sys.path.pop(0)
    for frozen in (model.mllm.model.language_model, model.mllm.model.vision_tower):
        frozen.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    model.config.num_points = 0
    wrapped = add_lora(
        model, ModelArguments(model_name_or_path="x", lora_rank=4, lora_alpha=8, lora_dropout=0.0)
    ).eval()
    names = [name.replace(".default", "") for name in golden["grad_name_lists"]["lora"]]
    norms = dict(zip(names, golden["arrays"]["train_lora/grad_norms"], strict=True))
    matrices = {}
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            released = re.sub(r".*language_model\.", "language_model.model.", name).replace(".default", "")
            scale = parameter.shape[1] ** -0.5 if "lora_A" in name else 0.15
            values = draw(released, parameter.numel(), SEED) * np.float32(scale)
            parameter.data.copy_(torch.from_numpy(values).view_as(parameter))
            matrices[released] = parameter
    assert set(matrices) == {name for name in norms if "lora_" in name}
    inputs, masks = batch
    out = wrapped(**inputs, mask_labels=masks)
    assert_losses(golden, "train_lora", out.lm_loss, out.mask_loss, out.dice_loss)
    out.loss.backward()
    for name, parameter in matrices.items():
        assert float(parameter.grad.norm()) == pytest.approx(norms[name], rel=1e-4, abs=1e-5), name
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert_gradients(trained, golden, "train_lora")
