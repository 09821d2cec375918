"""The model as a whole: what it promises to files, to batches, to gradients and to the Trainer.

Run: pytest tests/model/test_modeling.py
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import loud, tiny_config, tiny_model, tiny_processor, tiny_talker
from transformers import AutoModel, AutoModelForImageTextToText

from sa2va_hf import Sa2VAForConditionalGeneration
from sa2va_hf.model import losses
from sa2va_hf.model.box_losses import box_cells, projection_loss

PROCESSOR = tiny_processor()
ONE, TWO = "Sure, it is [SEG].", "The dog [SEG] and the cat [SEG]."


def picture(seed: int = 0, size: tuple[int, int] = (100, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def chat(answer: str | None, image=None, video=None, regions=(), text: str = "Segment it.") -> list[dict]:
    content = [{"type": "image", "image": image}] if image is not None else []
    content += [{"type": "video", "video": video}] if video is not None else []
    content += [{"type": "region", "mask": mask} for mask in regions]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    return messages + ([] if answer is None else [{"role": "assistant", "content": answer}])


def inputs(*chats: list[dict], **options) -> dict:
    answered = chats[0][-1]["role"] == "assistant"
    options = {"padding": True, "return_labels": answered, "add_generation_prompt": not answered} | options
    return dict(PROCESSOR.apply_chat_template(list(chats), **options))


def masks(objects: int, frames: int = 1, size: tuple[int, int] = (60, 100), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(objects, frames, 4, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size) > 0.6


@pytest.fixture(scope="module")
def model() -> Sa2VAForConditionalGeneration:
    """Shared: tests that change it take their own."""
    return loud(tiny_model()).requires_grad_(False)


@pytest.fixture
def encoded(model):
    """Batch sizes of SAM 2's image encoder's calls."""
    calls: list[int] = []
    encoder = model.grounding_encoder.sam2_model.image_encoder
    hook = encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    yield calls
    hook.remove()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("auto", [Sa2VAForConditionalGeneration, AutoModel, AutoModelForImageTextToText])
def test_saved_and_loaded_is_the_same_to_the_last_bit(model, auto, tmp_path):
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is Sa2VAForConditionalGeneration and not again.training
    old, new = model.state_dict(), again.state_dict()
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == []
    batch = inputs(chat(ONE, picture()), chat(TWO, video=[picture(1), picture(2)]))
    a, b = model(**batch), again(**batch)
    assert torch.equal(a.logits, b.logits)
    assert all(torch.equal(x, y) for x, y in zip(a.pred_masks, b.pred_masks, strict=True))


def test_sam_2s_memory_survives_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    side, results = 8, []
    current, memory = torch.ones(side * side, 1, 64), torch.ones(side * side, 1, 32)
    for one in (model, again):  # rotary tables are plain attributes, which a model built on meta would lose
        attention = one.grounding_encoder.sam2_model.memory_attention
        results.append(attention(curr=[current], curr_pos=[current], memory=memory, memory_pos=memory))
    assert torch.equal(*results)


def test_loading_lists_every_key_that_does_not_fit(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["text_hidden_fcs.2.bias"], weights["grounding_encoder.sam2_model.no_mem_embed"]
    weights["grounding_encoder.stranger"] = torch.zeros(1)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    missing, unexpected = message.split("unexpected_keys")
    assert "missing_keys" in missing and "text_hidden_fcs.2.bias" in missing and "no_mem_embed" in missing
    assert "grounding_encoder.stranger" in unexpected


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["text_hidden_fcs.2.bias"] = torch.zeros(3)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="text_hidden_fcs.2.bias|mismatch"):
        Sa2VAForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_sam_2_whole_and_runs(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    half = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    whole = [*half.grounding_encoder.parameters(), *half.text_hidden_fcs.parameters()]
    assert {p.dtype for p in whole} == {torch.float32}
    assert {p.dtype for p in half.mllm.parameters()} == {dtype}
    batch = inputs(chat(TWO, picture()), chat(ONE, video=[picture(1), picture(2)]))
    out = half(**batch, mask_labels=[masks(2), masks(1, 2)])
    assert torch.isfinite(out.loss) and all(torch.isfinite(m).all() for m in out.pred_masks)
    assert {m.dtype for m in out.pred_masks} == {torch.float32}
    out.loss.backward()
    grads = {name: p.grad for name, p in half.named_parameters() if p.grad is not None}
    assert grads and all(torch.isfinite(g).all() for g in grads.values())
    exact = model(**batch)
    assert (out.logits.float() - exact.logits).abs().mean() < 0.1 * exact.logits.std()


# ---------------------------------------------------------------- batches


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_neighbours(model):
    region = np.zeros((60, 100), bool)
    region[:40, 10:] = True
    chats = [
        chat(ONE, picture(0)),
        chat("A dog is an animal; there is none.", text="What is a dog, said at some length?"),
        chat(TWO, video=[picture(1), picture(2), picture(3)]),
        chat(TWO, picture(4, (60, 200))),
        chat(ONE, picture(5), regions=[region, ~region]),
        chat("No.", picture(6)),
    ]
    together = model(**inputs(*chats))
    hidden, embeddings = together.seg_hidden_states, together.seg_embeddings
    for i, one in enumerate(chats):
        batch = inputs(one)
        alone, length = model(**batch), batch["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[i, :length], alone.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.pred_masks[i], alone.pred_masks[0], rtol=1e-4, atol=1e-3)
        n = len(alone.seg_hidden_states)
        torch.testing.assert_close(hidden[:n], alone.seg_hidden_states, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(embeddings[:n], alone.seg_embeddings, rtol=1e-4, atol=1e-3)
        hidden, embeddings = hidden[n:], embeddings[n:]
    assert not len(hidden)
    assert [tuple(m.shape) for m in together.pred_masks] == [
        (objects, frames, 32, 32) for objects, frames in [(1, 1), (0, 0), (2, 3), (2, 1), (1, 1), (0, 1)]
    ]


@torch.no_grad()
def test_a_clip_is_drawn_as_its_frames_one_by_one(model):
    frames = torch.randint(0, 255, (3, 3, 128, 128), dtype=torch.uint8)
    embeddings = torch.randn(2, 64)
    clip, _ = model.predict_masks(embeddings, torch.tensor([2]), frames, torch.tensor([3]))
    clip = clip.masks.view(2, 3, 32, 32)
    for number in range(3):
        single, _ = model.predict_masks(embeddings, torch.tensor([2]), frames[[number]], torch.tensor([1]))
        torch.testing.assert_close(clip[:, number], single.masks, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_object_has_its_own_prompt_and_frame(model):
    out = model(**inputs(chat(TWO, picture(0)), chat(TWO, video=[picture(1), picture(2)])))
    flat = torch.cat([m.flatten(0, 1) for m in out.pred_masks])
    for i in range(len(flat)):
        for j in range(i):
            assert (flat[i] - flat[j]).abs().max() > 1e-2, f"masks {i} and {j} are the same"


@torch.no_grad()
def test_the_seg_state_is_where_seg_is_the_input(model):
    batch = inputs(chat(TWO, picture()))
    hidden = model.hidden_states(batch["input_ids"], batch["attention_mask"], batch["pixel_values"])
    out = model(**batch)
    torch.testing.assert_close(out.logits, model.mllm.lm_head(hidden))
    torch.testing.assert_close(out.seg_hidden_states, hidden[batch["input_ids"] == PROCESSOR.seg_token_id])
    torch.testing.assert_close(out.seg_embeddings, model.text_hidden_fcs(out.seg_hidden_states))


@torch.no_grad()
def test_each_frame_is_encoded_once_however_many_objects(model, encoded):
    answer = " ".join(["[SEG]"] * 6)
    model(**inputs(chat(answer, video=[picture(n) for n in range(3)]), chat(answer, picture(4))))
    assert encoded == [4]


@torch.no_grad()
def test_frames_without_objects_are_not_encoded(model, encoded):
    model(**inputs(chat("No.", video=[picture(n) for n in range(3)]), chat(ONE, picture(4))))
    assert encoded == [1]


@torch.no_grad()
def test_features_of_regions_stand_behind_their_tile(model):
    region = np.zeros((60, 100), bool)
    region[:30] = True  # the upper of two rows of cells
    batch = inputs(chat(ONE, picture(0, (100, 60)), regions=[region, ~region]), chat(ONE, picture(1, (50, 50))))
    features = model.backbone.features(model.mllm, batch["pixel_values"], batch["region_masks"], batch["region_tiles"])
    plain = model.backbone.features(model.mllm, batch["pixel_values"]).view(-1, 4, 64)
    last = int(batch["region_tiles"][0])  # the thumbnail of the first picture
    expected = [plain[: last + 1].flatten(0, 1), plain[last, :2], plain[last, 2:], plain[last + 1 :].flatten(0, 1)]
    torch.testing.assert_close(features, torch.cat(expected))


# ---------------------------------------------------------------- losses


def test_the_loss_is_the_sum_of_its_weighted_parts(model):
    batch = inputs(chat(TWO, picture()))
    torch.manual_seed(0)
    out = model(**batch, mask_labels=[masks(2)])
    torch.testing.assert_close(out.loss, out.lm_loss + out.mask_loss + out.dice_loss)
    torch.manual_seed(0)
    config = tiny_config(mask_loss_weight=4.0, dice_loss_weight=0.25)
    heavier = Sa2VAForConditionalGeneration(config).eval()
    heavier.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    again = heavier(**batch, mask_labels=[masks(2)])
    torch.testing.assert_close(again.mask_loss, 2 * out.mask_loss)
    torch.testing.assert_close(again.dice_loss, out.dice_loss / 2)


def test_the_text_loss_is_the_mean_over_answer_tokens(model):
    batch = inputs(chat(ONE, picture()), chat("A longer answer without any mask.", text="What?"))
    out = model(**batch)
    log_p = out.logits.log_softmax(-1)
    picked = [
        -log_p[row, at - 1, batch["labels"][row, at]] for row, at in (batch["labels"] != -100).nonzero().tolist()
    ]
    torch.testing.assert_close(out.lm_loss, torch.stack(picked).mean())
    torch.testing.assert_close(out.loss, out.lm_loss)
    assert out.mask_loss is None


def own(model, **changes):
    """A copy of the shared model with other config fields."""
    copy = Sa2VAForConditionalGeneration(tiny_config(**changes)).eval()
    copy.load_state_dict(model.state_dict())
    return copy


def test_few_objects_weigh_as_their_cyclic_copies(model):
    copy = own(model, num_points=0)
    wanted = [masks(2, seed=1), masks(1, 3, seed=2)]
    out = copy(**inputs(chat(TWO, picture()), chat(ONE, video=[picture(n) for n in (1, 2, 3)])), mask_labels=wanted)
    logits, targets = [], []
    for predicted, given in zip(out.pred_masks, wanted, strict=True):
        small = torch.nn.functional.interpolate(given.float(), size=(32, 32))
        for frame in range(given.shape[1]):
            for copy_number in range(5):  # 2 objects: 0 1 0 1 0
                logits.append(predicted[copy_number % len(given), frame])
                targets.append(small[copy_number % len(given), frame])
    bce, dice = losses.mask_losses(torch.stack(logits), torch.stack(targets))
    torch.testing.assert_close(out.mask_loss, 2.0 * bce)
    torch.testing.assert_close(out.dice_loss, 0.5 * dice)


def test_of_many_objects_each_frame_takes_a_random_five():
    known = [torch.ones(8, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)]
    weights = losses.pair_weights(known, 5)
    many, few = weights[:24].view(8, 3), weights[24:].view(2, 2)
    assert (many.sum(0) == 5).all() and set(many.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(few, torch.tensor([[3.0, 3.0], [2.0, 2.0]]))
    draws = torch.stack([losses.pair_weights(known[:1], 5).view(8, 3) for _ in range(30)])
    assert (draws.mean((0, 2)) > 0.3).all(), "every object gets its turn"
    assert (draws[:, :, 0] != draws[:, :, 1]).any(), "frames draw for themselves"


def test_every_object_counts_once_when_nothing_is_repeated(model):
    copy = own(model, num_points=0, objects_per_frame=None)
    wanted = [masks(2, seed=1), masks(1, seed=2)]
    out = copy(**inputs(chat(TWO, picture()), chat(ONE, picture(1))), mask_labels=wanted)
    logits = torch.cat([m.flatten(0, 1) for m in out.pred_masks])
    small = torch.nn.functional.interpolate(torch.cat(wanted).float(), size=(32, 32))[:, 0]
    bce, _ = losses.mask_losses(logits, small)
    torch.testing.assert_close(out.mask_loss, 2.0 * bce)


def test_targets_may_have_any_size(model):
    copy, coarse = own(model, num_points=0), masks(2, size=(32, 32))
    batch = inputs(chat(TWO, picture()))
    expected = copy(**batch, mask_labels=[coarse])
    finer = coarse.repeat_interleave(4, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(copy(**batch, mask_labels=[finer]).loss, expected.loss)
    by_area = own(model, num_points=0, mask_targets="area")
    torch.testing.assert_close(by_area(**batch, mask_labels=[finer]).loss, expected.loss)


def test_pixels_to_ignore_have_no_say(model):
    copy = own(model, num_points=0)
    batch, wanted = inputs(chat(TWO, picture()), chat(ONE, picture(1))), [masks(2), masks(1, seed=3)]
    ignore = torch.zeros(1, 60, 100, dtype=torch.bool)
    ignore[:, 20:50, 30:80] = True
    changed = [wanted[0] ^ ignore, wanted[1]]
    with_ignore = [copy(**batch, mask_labels=m, ignore_labels=[ignore, None]).loss for m in (wanted, changed)]
    torch.testing.assert_close(*with_ignore)
    without = [copy(**batch, mask_labels=m).loss for m in (wanted, changed)]
    assert (without[0] - without[1]).abs() > 1e-3


@pytest.mark.parametrize("changes", [{"num_points": 0}, {"objects_per_frame": None}, {"iou_loss_weight": 1.0}])
def test_a_mask_that_is_not_known_weighs_nothing_and_learns_from_its_box(model, changes):
    copy = own(model, **changes)
    known = torch.tensor([[True], [False]])
    boxes = torch.tensor([[1, 0, 0.25, 0.25, 0.75, 0.75]])

    def of(wanted, **labels):
        torch.manual_seed(0)
        return copy(**inputs(chat(TWO, picture())), mask_labels=[wanted], mask_known=[known], **labels)

    wanted, other = masks(2), masks(2)
    other[1] = ~other[1]
    out = of(wanted)
    assert out.box_loss is None
    torch.testing.assert_close(out.loss, of(other).loss)
    taught = of(wanted, box_labels=[boxes])
    assert 0 < taught.box_loss < 2
    torch.testing.assert_close(taught.loss, out.loss + taught.box_loss)
    gradient = torch.autograd.grad(taught.box_loss, taught.seg_embeddings)[0]
    assert gradient[1].abs().sum() > 0 and not gradient[0].any()
    if not changes.get("iou_loss_weight"):
        found = projection_loss(taught.pred_masks[0][1], box_cells(boxes[:, 2:], torch.tensor([0]), 1, 32))
        torch.testing.assert_close(taught.box_loss, found[0])


def test_nothing_known_of_a_batch_is_a_loss_of_zero_that_reaches_all(model):
    copy = own(model)
    copy.freeze_for_training()
    unknown = torch.zeros(2, 1, dtype=torch.bool)
    out = copy(**inputs(chat(TWO, picture())), mask_labels=[masks(2)], mask_known=[unknown])
    assert out.mask_loss == out.dice_loss == 0 and out.box_loss is None
    out.loss.backward()
    assert all(weight.grad is not None for weight in copy.text_hidden_fcs.parameters())


def test_without_sam2_the_text_is_the_same_and_masks_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    alone = Sa2VAForConditionalGeneration.from_pretrained(tmp_path, grounding=False)
    assert not any("grounding" in name for name in alone.state_dict())
    alone.freeze_for_training("none")
    batch = inputs(chat("No.", picture()))
    out, whole = (one(**batch, mask_labels=[masks(0)]) for one in (alone, model))
    torch.testing.assert_close(out.loss, whole.loss)
    with pytest.raises(ValueError, match="SAM 2 was not loaded"):
        alone(**inputs(chat(ONE, picture())))
    with pytest.raises(ValueError, match="loaded without SAM 2"):
        alone.save_pretrained(tmp_path / "again")


def test_the_iou_head_learns_when_it_has_a_weight(model):
    copy = own(model, iou_loss_weight=1.0)
    copy.freeze_for_training()
    out = copy(**inputs(chat(TWO, picture())), mask_labels=[masks(2)])
    torch.testing.assert_close(out.loss, out.lm_loss + out.mask_loss + out.dice_loss + out.iou_loss)
    out.loss.backward()
    head = copy.grounding_encoder.sam2_model.sam_mask_decoder.iou_prediction_head
    assert all(p.grad is not None for p in head.parameters()) and head.layers[-1].bias.grad.abs().sum() > 0


SOFT = -math.log(0.3)  # the cross entropy of "it is there with 30 %" where it is, and ...
HARD = -math.log(0.7)  # ... where it is not


@pytest.mark.parametrize(
    ("empty", "known", "ignored", "errors"),
    [
        ((False, False), (True, True), False, [SOFT, SOFT]),
        ((False, True), (True, True), False, [SOFT, HARD]),
        ((True, True), (True, False), False, [HARD]),  # what is not known counts for nothing
        ((False, True), (False, False), False, [0]),
        ((False, True), (True, True), True, [0]),
    ],
)
def test_the_object_score_learns_what_is_there(model, empty, known, ignored, errors):
    copy = own(model, object_score_loss_weight=0.5, objects_per_frame=None)
    copy.freeze_for_training()
    head = copy.grounding_encoder.sam2_model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    assert all(p.requires_grad for p in head.parameters())
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(math.log(0.3 / 0.7))
    wanted = masks(2)
    wanted[torch.tensor(empty)] = False
    labels = {"mask_known": [torch.tensor(known)[:, None]]}
    if ignored:
        labels["ignore_labels"] = [torch.ones(1, 60, 100, dtype=torch.bool)]
    out = copy(**inputs(chat(TWO, picture())), mask_labels=[wanted], **labels)
    assert out.object_score_loss.item() == pytest.approx(0.5 * sum(errors) / len(errors), rel=1e-4)
    torch.testing.assert_close(out.loss, out.lm_loss + out.mask_loss + out.dice_loss + out.object_score_loss)
    out.loss.backward()
    assert bool(head.bias.grad.any()) == any(errors)


# ---------------------------------------------------------------- gradients


def gradients(model, batch, wanted) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    model(**batch, mask_labels=wanted).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_what_is_trained_is_what_the_recipe_says():
    model = tiny_model()
    model.freeze_for_training()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    decoder = "grounding_encoder.sam2_model.sam_mask_decoder."
    rooms = ("mllm.model.multi_modal_projector.", "text_hidden_fcs.", decoder)
    assert all(name.startswith(rooms) for name in trained)
    assert all(any(name.startswith(room) for name in trained) for room in rooms)
    unreached = ("iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps.0.")
    assert not [name for name in trained if name.removeprefix(decoder).startswith(unreached)]
    with pytest.raises(ValueError, match="'half'"):
        model.freeze_for_training(grounding="half")


@pytest.mark.parametrize("grounding", ["decoder", "none", "all"])
@pytest.mark.parametrize(
    "chats",
    [
        [chat(TWO, picture()), chat(ONE, video=[picture(1), picture(2)])],
        [chat("No.", picture())],
        [chat("Hello.", text="Hi."), chat("Bye.", text="Good night.")],
    ],
    ids=["masks", "no masks", "no picture"],
)
def test_every_trainable_parameter_gets_a_gradient_from_every_batch(grounding, chats):
    model = tiny_model().train()
    model.config.object_score_loss_weight = 0.5
    model.freeze_for_training(grounding)
    model.mllm.model.language_model.requires_grad_(True)
    wanted = [masks(2), masks(1, 2)] if len(chats) > 1 and "image" in str(chats) else [masks(0)] * len(chats)
    grads = gradients(model, inputs(*chats), wanted)
    assert [name for name, grad in grads.items() if grad is None] == []
    decoder = [grad for name, grad in grads.items() if "sam2_model" in name]
    assert any(grad.any() for grad in decoder) == ("[SEG]" in str(chats) and grounding != "none")
    moved = grads["text_hidden_fcs.0.weight"].any()
    assert bool(moved) == ("[SEG]" in str(chats))


def test_a_batch_without_masks_rests_sam_2(model, encoded):
    batch = inputs(chat("No.", picture()), chat("Hello.", text="Hi."))
    out = model(**batch, mask_labels=[masks(0), torch.zeros(0, 1, 1, 1, dtype=torch.bool)])
    assert not encoded
    assert out.mask_loss == 0 and out.dice_loss == 0
    torch.testing.assert_close(out.loss, out.lm_loss)
    assert [len(m) for m in out.pred_masks] == [0, 0]


def test_mask_losses_reach_the_llm_and_frozen_parts_stay_out():
    model = tiny_model()
    model.freeze_for_training()
    model.mllm.model.language_model.requires_grad_(True)
    batch = inputs(chat(ONE, picture()))
    del batch["labels"]  # masks only
    grads = gradients(model, batch, [masks(1)])
    first = grads["mllm.model.language_model.layers.0.self_attn.q_proj.weight"]
    assert first.any(), "the mask must teach the LLM what [SEG] means"
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


def test_checkpointing_changes_memory_not_gradients():
    batch, wanted = inputs(chat(TWO, picture()), chat(ONE, picture(1))), [masks(2), masks(1)]
    results = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        model.freeze_for_training()
        model.mllm.model.language_model.requires_grad_(True)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert model.is_gradient_checkpointing
        results.append(gradients(model, batch, wanted))
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, rtol=1e-4, atol=1e-6, msg=name)


# ---------------------------------------------------------------- mistakes


def test_as_many_masks_as_seg(model):
    batch = inputs(chat(ONE, picture()), chat(TWO, picture(1)))
    with pytest.raises(ValueError, match=r"sample 1: 2 \[SEG\] in the text, 3 objects"):
        model(**batch, mask_labels=[masks(1), masks(3)])
    cut = {key: value[:, :-4] if key in ("input_ids", "attention_mask", "labels") else value
           for key, value in inputs(chat(ONE, picture())).items()}  # fmt: skip
    with pytest.raises(ValueError, match=r"was the text cut.*0 \[SEG\] in the text, 1 objects"):
        model(**cut, mask_labels=[masks(1)])


def test_as_many_image_tokens_as_features(model):
    batch = inputs(chat(ONE, picture(0, (200, 60))))
    fewer = batch | {"pixel_values": batch["pixel_values"][1:]}
    tokens = int((batch["input_ids"] == model.config.mllm_config.image_token_id).sum())
    with pytest.raises(ValueError, match=f"{tokens} tokens in input_ids, {tokens - 4} features"):
        model(**fewer)
    with pytest.raises(ValueError, match=f"{tokens} image tokens, but there are no pixel_values"):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


# ---------------------------------------------------------------- generation


@pytest.fixture(scope="module")
def talker() -> Sa2VAForConditionalGeneration:
    return tiny_talker()


@torch.no_grad()
def test_generation_is_the_likeliest_token_after_another(model):
    batch = inputs(chat(None, picture()))
    new = model.generate_new_tokens(**batch, max_new_tokens=5, eos_token_id=[], pad_token_id=0)
    ids = batch["input_ids"]
    for token in new[0]:
        logits = model(ids, torch.ones_like(ids), batch["pixel_values"]).logits
        assert token == logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
    assert len(new[0]) == 5


@torch.no_grad()
def test_generation_does_not_depend_on_padding(model):
    region = np.zeros((60, 100), bool)
    region[:40, 10:] = True
    chats = [
        chat(None, picture(0)),
        chat(None, text="What is a dog, said at some length, please?"),
        chat(None, video=[picture(1), picture(2)]),
        chat(None, picture(3), regions=[region]),
    ]
    options = {"max_new_tokens": 6, "eos_token_id": [], "pad_token_id": 0}
    together = model.generate_new_tokens(**inputs(*chats), **options)
    alone = [model.generate_new_tokens(**inputs(one), **options)[0] for one in chats]
    assert together.tolist() == [ids.tolist() for ids in alone]
    assert len({tuple(ids.tolist()) for ids in alone}) > 1, "one answer for all would prove nothing"


@torch.no_grad()
def test_a_trained_model_stops_by_itself(talker):
    new = talker.generate_new_tokens(
        **inputs(chat(None, picture())), max_new_tokens=30, eos_token_id=PROCESSOR.stop_ids
    )
    assert PROCESSOR.decode(new[0]) == "Sure, it is [SEG].<|im_end|>"


def test_special_seg_id_is_the_processors(model):
    assert model.config.seg_token_id == PROCESSOR.seg_token_id
