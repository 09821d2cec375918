"""Generated pictures: what is asked for, in folders that `folder_parts` reads, and kept when a run is stopped.

The pipeline is a real one of diffusers, tiny and randomly initialised.
"""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from sa2va_hf.data.schema import Reject
from sa2va_hf.data.sources.folder_parts import find_pictures
from sa2va_hf.generated_images import NAME, generate, requests

PARTS = {"handle": ["mug", "paper bag"], "lid": ["mug"]}
OPTIONS = {"num_inference_steps": 1, "height": 16, "width": 16}


def test_requests_name_folders_prompts_and_seeds():
    wanted = requests(PARTS, ["a {part} of a {object}", "{object}, {part}"], images=3, seed=5)
    assert [one.path for one in wanted[:4]] == [
        *(f"handle/mug/000{n}.png" for n in range(3)),
        "handle/paper_bag/0000.png",
    ]
    assert [one.prompt for one in wanted[:3]] == ["a handle of a mug", "mug, handle", "a handle of a mug"]
    assert len({one.seed for one in wanted}) == 9 and wanted == requests(
        PARTS, ["a {part} of a {object}", "{object}, {part}"], 3, 5
    )
    fewer = requests({"lid": ["mug"]}, ["a {part} of a {object}", "{object}, {part}"], images=2, seed=5)
    assert set(fewer) <= set(wanted), "a picture does not depend on the others"


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        ({}, {}, "`parts`: expected {part: "),
        ({"lid": "pot"}, {}, "lid: expected a list of objects, got 'pot'"),
        ({"lid": ["a/b"]}, {}, "names that can be folders, got 'a/b'"),
        ({"lid": ["pot", "pot"]}, {}, "pot is listed twice"),
        ({"lid": ["pot"]}, {"prompts": ["a pot"]}, "expected {part} and {object} in each"),
        ({"lid": ["pot"]}, {"images": 0}, "`images`: expected at least 1"),
    ],
)
def test_tables_that_cannot_be_used(parts, more, message):
    with pytest.raises(ValueError, match=message):
        requests(parts, **more)


class Pipeline:
    """Pictures of the seed's colour; stops after so many calls."""

    def __init__(self, calls=99):
        self.calls, self.prompts = calls, []

    def __call__(self, prompt, generator, **options):
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.prompts += prompt
        colours = [tuple(one.initial_seed() >> shift & 255 for shift in (0, 8, 16)) for one in generator]
        return type("Output", (), {"images": [Image.new("RGB", (8, 8), colour) for colour in colours]})


def test_a_stopped_run_continues_and_ends_with_the_same_files(tmp_path):
    wanted = requests(PARTS, images=2)
    whole = generate(Pipeline(), wanted, tmp_path / "whole", model_name="m", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        generate(Pipeline(calls=2), wanted, tmp_path / "stopped", model_name="m", batch_size=2)
    (tmp_path / "stopped" / NAME).unlink()  # as if it had been killed
    rest, done = Pipeline(), []
    again = generate(rest, wanted, tmp_path / "stopped", model_name="m", progress=done.append)
    assert len(rest.prompts) == 2 and done == [4, 1, 1] and again == whole
    for one in wanted:
        assert (tmp_path / "whole" / one.path).read_bytes() == (tmp_path / "stopped" / one.path).read_bytes()
    assert json.loads((tmp_path / "whole" / NAME).read_text()) == whole
    with pytest.raises(ValueError, match="the folder was begun with {'model': 'm'"):
        generate(rest, wanted, tmp_path / "whole", model_name="other")
    with pytest.raises(ValueError, match="choose another output folder, or delete it"):
        generate(rest, requests(PARTS, images=2, seed=1), tmp_path / "whole", model_name="m")


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """The folder of a Stable Diffusion with a few thousand random weights."""
    diffusers = pytest.importorskip("diffusers")
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("diffusion")
    letters = [chr(one) for one in range(33, 127)]
    words = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
        )  # fmt: skip
        blocks = {"norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
        pipeline = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4,
                                        down_block_types=["DownEncoderBlock2D"] * 2,
                                        up_block_types=["UpDecoderBlock2D"] * 2),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=diffusers.UNet2DConditionModel(
                block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=2,
                **blocks,
            ),
            scheduler=diffusers.DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipeline.save_pretrained(folder / "model")
    return str(folder / "model")


def test_the_command_with_a_pipeline_of_diffusers(diffusion, tmp_path, capsys):
    from sa2va_hf.commands.generate_images import main

    config = tmp_path / "parts.yaml"
    config.write_text(yaml.safe_dump({"parts": {"handle": ["paper bag"], "lid": ["pot"]}, "options": OPTIONS}))
    arguments = [
        str(config),
        "--model",
        diffusion,
        "--output",
        str(tmp_path / "made"),
        "--images",
        "2",
        "--device",
        "cpu",
    ]
    main(arguments)
    pictures, problems = find_pictures(tmp_path / "made")
    assert not [one for one in problems if isinstance(one, Reject)]
    assert [one.category for one in pictures] == ["paper bag:handle"] * 2 + ["pot:lid"] * 2
    shown = [np.asarray(Image.open(one.photo)) for one in pictures]
    assert all(one.shape == (16, 16, 3) for one in shown) and not np.array_equal(shown[0], shown[1])
    before = pictures[2].photo.read_bytes()
    pictures[2].photo.unlink()
    main([*arguments, "--batch_size", "4"])
    assert pictures[2].photo.read_bytes() == before, "the same seed gives the same picture"
    config.write_text("parts: {lid: [pot]}\nimages: 3\n")
    with pytest.raises(SystemExit, match="unknown key `images`; known: parts"):
        main(arguments)


def test_a_controlnet_conditions_every_picture(diffusion, tmp_path):
    """Tiny and random: its output layers, which begin as 0, are made not to be."""
    diffusers = pytest.importorskip("diffusers")
    import torch

    from sa2va_hf.commands.generate_images import main

    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion, subfolder="unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4))
    with torch.no_grad():
        for number, block in enumerate(controlnet.controlnet_down_blocks):
            block.weight.fill_(0.1 * (number + 1))
        for weight in controlnet.controlnet_cond_embedding.parameters():
            weight.fill_(0.1)  # so that a brighter picture is a larger number, whatever was sampled
    controlnet.save_pretrained(tmp_path / "controlnet")
    config = tmp_path / "parts.yaml"
    config.write_text(yaml.safe_dump({"parts": {"lid": ["pot"]}, "options": OPTIONS}))
    arguments = [str(config), "--model", diffusion, "--images", "2", "--batch_size", "2", "--device", "cpu"]
    shown = {}
    for name, grey in (("plain", None), ("black", 0), ("white", 255)):
        given = ["--output", str(tmp_path / name)]
        if grey is not None:
            Image.new("RGB", (16, 16), (grey,) * 3).save(tmp_path / f"{name}.png")
            given += ["--controlnet", str(tmp_path / "controlnet"), "--control_image", str(tmp_path / f"{name}.png")]
        main([*arguments, *given])
        shown[name] = [np.asarray(Image.open(tmp_path / name / f"lid/pot/000{number}.png")) for number in range(2)]
    for one, other in (("plain", "black"), ("black", "white")):
        assert all(not np.array_equal(*pictures) for pictures in zip(shown[one], shown[other], strict=True))
    with pytest.raises(SystemExit, match="the folder was begun with .*'control'"):
        main([*arguments, *given[:-1], str(tmp_path / "black.png"), "--output", str(tmp_path / "white")])
    with pytest.raises(SystemExit):
        main([*arguments, "--output", str(tmp_path / "other"), "--controlnet", str(tmp_path / "controlnet")])
