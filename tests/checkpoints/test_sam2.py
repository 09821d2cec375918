"""Laws of SAM 2's own files: what the `sam2` package saved is loaded by us, what we save it loads, bit by bit."""

import logging
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from released import GROUNDING, write
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAGroundingConfig
from sa2va_hf.checkpoints.convert import convert
from sa2va_hf.checkpoints.sam2 import _state_dict, recognise
from sa2va_hf.checkpoints.weights import WEIGHTS, read_pickle
from sa2va_hf.model.configuration_sa2va import SAM2_VERSIONS
from sa2va_hf.model.grounding import build_sam2

YAMLS = {"2.0": "configs/sam2/sam2_hiera_t.yaml", "2.1": "configs/sam2.1/sam2.1_hiera_t.yaml"}


def official(version, checkpoint=None):
    """SAM 2 tiny as its own package builds it, from its own YAML."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sam2.build_sam import build_sam2 as build
    return build(YAMLS[version], None if checkpoint is None else str(checkpoint), device="cpu")


def saved(path, state, **others):
    torch.save({"model": state, **others}, path)
    return path


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("version", SAM2_VERSIONS)
def test_there_and_back_by_way_of_the_sam2_package(version, tmp_path):
    torch.manual_seed(0)
    state = official(version).state_dict()
    source = saved(tmp_path / "downloaded.pt", state)
    convert(source, tmp_path / "ours")
    config = Sa2VAGroundingConfig.from_pretrained(tmp_path / "ours")
    assert (config.version, config.size) == (version, "tiny")
    same(load_file(tmp_path / "ours" / WEIGHTS), state)
    convert(tmp_path / "ours", tmp_path / "pt", "sam2")
    (path,) = (tmp_path / "pt").iterdir()
    assert path.name == {"2.0": "sam2_hiera_tiny.pt", "2.1": "sam2.1_hiera_tiny.pt"}[version]
    torch.manual_seed(1)
    same(official(version, path).state_dict(), state)  # it loads strictly or raises


def test_what_was_converted_fits_into_a_sa2va_and_comes_out_again(tmp_path):
    torch.manual_seed(3)
    state = {name: torch.randn_like(tensor) for name, tensor in build_sam2(GROUNDING).state_dict().items()}
    convert(saved(tmp_path / "sam2.pt", state), tmp_path / "sam2", grounding_config=GROUNDING)
    model = tiny_model()
    model.grounding_encoder.sam2_model.load_state_dict(load_file(tmp_path / "sam2" / WEIGHTS))
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out", "sam2")
    same(torch.load(tmp_path / "out" / "sam2_hiera_tiny.pt", weights_only=True)["model"], state)


@pytest.mark.parametrize("two_decoders", [False, True], ids=["one decoder", "two decoders"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_sam2_put_into_a_sa2va_comes_out_as_it_went_in(tmp_path, form, two_decoders):
    """Everything else stays, bit by bit: the language model, and the decoder that draws [SEG] where there are two."""
    (tmp_path / "released").mkdir()
    convert(write(tmp_path / "released", two_decoders=two_decoders), tmp_path / "model", grounding_config=GROUNDING)
    before = load_file(tmp_path / "model" / WEIGHTS)
    torch.manual_seed(3)
    state = {name: torch.randn_like(tensor) for name, tensor in build_sam2(GROUNDING).state_dict().items()}
    given = saved(tmp_path / "fine_tuned.pt", state)
    if form == "folder":
        convert(given, tmp_path / "fine_tuned", grounding_config=GROUNDING)
        given = tmp_path / "fine_tuned"
    convert(tmp_path / "model", tmp_path / "joined", with_sam2=given)
    convert(tmp_path / "joined", tmp_path / "out", "sam2")
    same(torch.load(tmp_path / "out" / "sam2_hiera_tiny.pt", weights_only=True)["model"], state)
    after, sam2 = load_file(tmp_path / "joined" / WEIGHTS), "grounding_encoder.sam2_model."
    kept = {name for name in before if "grounding_encoder" not in name}
    if two_decoders:
        kept |= {name for name in before if name.startswith(f"{sam2}sam_mask_decoder.")}
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in kept)
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("model", "joined")]
    assert files[0] == files[1]
    model = Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "joined")
    name = "image_encoder.trunk.patch_embed.proj.weight"
    assert torch.equal(model.grounding_encoder.sam2_model.state_dict()[name], state[name])


def test_a_sam2_that_does_not_fit_into_a_sa2va(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    newer = Sa2VAGroundingConfig(**(GROUNDING.to_dict() | {"version": "2.1"}))
    build = build_sam2(newer)
    convert(saved(tmp_path / "newer.pt", build.state_dict()), tmp_path / "newer", grounding_config=newer)
    said = "newer: the weights do not fit the SAM 2 of .*model: unexpected: no_obj_embed_spatial"
    refused(tmp_path / "model", tmp_path, said, with_sam2=tmp_path / "newer")
    refused(tmp_path / "newer", tmp_path, "only a model of this package", with_sam2=tmp_path / "newer.pt")
    refused(tmp_path / "model", tmp_path, "only a model of this package", to="sam2", with_sam2=tmp_path / "newer")
    refused(tmp_path / "model", tmp_path, "gone: no such file or folder", with_sam2=tmp_path / "gone")


def test_of_two_mask_decoders_sam2_gets_its_own(tmp_path, caplog):
    (tmp_path / "released").mkdir()
    source = write(tmp_path / "released", two_decoders=True)
    convert(source, tmp_path / "ours", grounding_config=GROUNDING)
    with caplog.at_level("INFO"):
        convert(tmp_path / "ours", tmp_path / "out", "sam2")
    assert "skipped, not part of SAM 2" in caplog.text and "mllm.language_model" in caplog.text.replace(
        "mllm.model", "mllm.language_model"
    )
    released, name = load_file(source / WEIGHTS), "sam_mask_decoder.iou_token.weight"
    state = torch.load(tmp_path / "out" / "sam2_hiera_tiny.pt", weights_only=True)["model"]
    assert torch.equal(state[name], released[f"grounding_encoder.sam2_model.{name}"])
    assert set(state) == set(build_sam2(GROUNDING).state_dict())


def shapes(version, blocks, width):
    """What tells a SAM 2 from another."""
    names = {f"image_encoder.trunk.blocks.{block}.norm1.weight": (width,) for block in range(blocks)}
    newer = {"no_obj_embed_spatial": (1, 64)} if version == "2.1" else {}
    return names | newer | {"image_encoder.trunk.patch_embed.proj.weight": (width, 3, 7, 7)}


@pytest.mark.parametrize(
    ("size", "blocks", "width"), [("tiny", 12, 96), ("small", 16, 96), ("base_plus", 24, 112), ("large", 48, 144)]
)
@pytest.mark.parametrize("version", SAM2_VERSIONS)
def test_every_published_size_is_recognised(version, size, blocks, width):
    config = recognise(shapes(version, blocks, width), "here")
    assert (config.version, config.size) == (version, size)


def test_another_size_or_version_than_asked_for_is_refused(tmp_path):
    small = shapes("2.1", 16, 96)
    asked = Sa2VAGroundingConfig(version="2.1", size="base_plus")
    said = "SAM 2.1 base_plus (trunk of 24 blocks, width 112), got SAM 2.1 with a trunk of 16 blocks, width 96"
    with pytest.raises(ValueError, match=re.escape(said)):
        recognise(small, "x.pt", asked)
    with pytest.raises(ValueError, match=r"x\.pt: expected SAM 2\.0 small .* got SAM 2\.1"):
        recognise(small, "x.pt", Sa2VAGroundingConfig(version="2.0", size="small"))
    with pytest.raises(ValueError, match="of no published size .*width 97"):
        recognise(shapes("2.1", 16, 97), "x.pt")
    with pytest.raises(ValueError, match="not a SAM 2"):
        recognise({"model.weight": (3, 4)}, "x.pt")


def refused(source, tmp_path, said, **what):
    with pytest.raises(ValueError, match=said):
        convert(source, tmp_path / "out", **what)
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_are_all_named(tmp_path):
    state = build_sam2(GROUNDING).state_dict()
    del state["no_mem_embed"]
    state |= {"critic": torch.zeros(2), "no_obj_ptr": torch.zeros(1, 3)}
    source = saved(tmp_path / "odd.pt", state)
    with pytest.raises(ValueError) as error:
        convert(source, tmp_path / "out", grounding_config=GROUNDING)
    assert "odd.pt: the weights do not fit SAM 2.0" in str(error.value)
    for said in ("unexpected: critic [2]", "missing: no_mem_embed", "wrong shape: no_obj_ptr is [1, 3]"):
        assert said in str(error.value)
    half = build_sam2(Sa2VAGroundingConfig(**(GROUNDING.to_dict() | {"version": "2.1"}))).state_dict()
    del half["no_obj_embed_spatial"]  # still a 2.1, by its other addition
    asked = Sa2VAGroundingConfig(**(GROUNDING.to_dict() | {"version": "2.1"}))
    refused(saved(tmp_path / "half.pt", half), tmp_path, "missing: no_obj_embed_spatial", grounding_config=asked)


def test_other_entries_of_a_training_file_are_left_and_named(tmp_path, caplog):
    state = build_sam2(GROUNDING).state_dict()
    source = saved(tmp_path / "training.pt", state, epoch=3, optimizer={"state": {}})
    with caplog.at_level("INFO"):
        convert(source, tmp_path / "out", grounding_config=GROUNDING)
    assert "skipped, not weights of SAM 2: epoch, optimizer" in caplog.text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "best": np.float64(0.5), "step": np.int64(7), "lr": np.float32(0.1)},
        lambda state: {"model": state, "config": {"lr": 0.1, "layers": [1, 2]}, "note": None},
    ],
    ids=["bare", "model", "state_dict", "numpy scalars", "plain values"],
)
def test_common_wrappings_of_a_pt_are_read(wrap, tmp_path):
    state = build_sam2(GROUNDING).state_dict()
    torch.save(wrap(state), tmp_path / "sam2.pt")
    content, _ = _state_dict(read_pickle(tmp_path / "sam2.pt"), tmp_path / "sam2.pt")
    same(content, state)


def test_a_long_list_of_tensors_that_do_not_fit_is_cut(tmp_path):
    wrong = {f"layer.{number}.weight": torch.zeros(1) for number in range(300)}
    state = build_sam2(GROUNDING).state_dict() | wrong
    source = saved(tmp_path / "odd.pt", state)
    with pytest.raises(ValueError, match=r"unexpected: layer\.19\.weight \[1\]; \.\.\. \(300 in total\)") as error:
        convert(source, tmp_path / "out", grounding_config=GROUNDING)
    assert len(str(error.value)) < 1500


class Trap:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_is_read_as_tensors_or_not_at_all(tmp_path, capsys):
    state = build_sam2(GROUNDING).state_dict()
    trap = saved(tmp_path / "trap.pt", state, extra=Trap())
    refused(trap, tmp_path, r"trap\.pt: not read, since it holds objects other than tensors")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    refused(tmp_path / "plain.pt", tmp_path, r"plain\.pt: not read, since it holds objects other than tensors")
    assert "run" not in capsys.readouterr().out


def test_a_damaged_or_foreign_file_is_named(tmp_path):
    source = saved(tmp_path / "cut.pt", build_sam2(GROUNDING).state_dict())
    source.write_bytes(source.read_bytes()[:4000])
    refused(source, tmp_path, r"cut\.pt: cannot be read, it may be cut short")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", tmp_path, r"empty\.pt: cannot be read")
    (tmp_path / "text.pt").write_text("no tensors")
    refused(tmp_path / "text.pt", tmp_path, r"text\.pt: not read")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", tmp_path, r"other\.pt: not a SAM 2")
    torch.save({"epoch": 3, "args": [1]}, tmp_path / "state.pt")
    refused(tmp_path / "state.pt", tmp_path, r"state\.pt: expected a state dict.*not tensors: epoch, args")
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(tmp_path / "lfs.pt", tmp_path, r"lfs\.pt: a git-lfs pointer, not the file itself: run `git lfs pull`")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", tmp_path, r"list\.pt: expected a state dict.* got a list")
    refused(tmp_path / "gone.pt", tmp_path, r"gone\.pt.*no config\.json")


def test_a_pt_becomes_ours_only(tmp_path):
    source = saved(tmp_path / "sam2.pt", build_sam2(GROUNDING).state_dict())
    for to in ("sa2va", "sam2"):
        refused(source, tmp_path, f"is a file, which cannot be written as '{to}'", to=to)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("sam2").setLevel(logging.ERROR)
