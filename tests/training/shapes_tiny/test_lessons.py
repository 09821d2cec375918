"""The lessons of shapes-tiny: what they ask for is true of the scene, they teach, and a resumed one goes on as before.

Run: pytest tests/training/shapes_tiny
"""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sa2va_hf.boxes import BOX_TOKENS
from sa2va_hf.data.schema import Expression
from sa2va_hf.data.shapes.scene import Options, Shape
from sa2va_hf.data.shapes.source import shapes
from sa2va_hf.data.shapes.text import FAMILIES, expressions
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN
from sa2va_hf.training.shapes_tiny import probe
from sa2va_hf.training.shapes_tiny.chats import WEIGHTS, chain_of, dialogue_chat, group_of, joined, referring_chats
from sa2va_hf.training.shapes_tiny.choosing import Choosing, steps
from sa2va_hf.training.shapes_tiny.code import WORD_NORM, PromptCode
from sa2va_hf.training.shapes_tiny.memory import Following, imperfect
from sa2va_hf.training.shapes_tiny.muon import Muon, orthogonalized
from sa2va_hf.training.shapes_tiny.ordering import Ordering
from sa2va_hf.training.shapes_tiny.outlining import Outlining
from sa2va_hf.training.shapes_tiny.places import Place, places_of
from sa2va_hf.training.shapes_tiny.placing import DIGITS, Placing, one_token
from sa2va_hf.training.shapes_tiny.recipe import LESSONS, install, load_start, make_model, run, save
from sa2va_hf.training.shapes_tiny.scenes import CONTRAST, COVERED, cell_cover, draw_scenes, label_cells, words_of
from sa2va_hf.training.shapes_tiny.seen import seen_scenes
from sa2va_hf.training.shapes_tiny.sight import Sight
from sa2va_hf.training.shapes_tiny.spoken import Spoken
from sa2va_hf.training.shapes_tiny.threads import ThreadWriter
from sa2va_hf.training.shapes_tiny.words import Words, corpus

SIZES = {
    "vision": {
        "model_type": "dinov3_convnext",
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "image_size": [128, 128],
        "patch_size": [8, 8],
        "layer_scale_init_value": 0.2,
        "initializer_range": 0.05,
    },
    "downsample_ratio": 0.5,
    "text": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.08,
    },
    "grounding": {
        "size": "tiny",
        "image_size": 128,
        "hidden_dim": 32,
        "embed_dim": 8,
        "num_heads": 1,
        "stages": [1, 1, 2, 1],
        "global_att_blocks": [3],
        "window_spec": [8, 4, 8, 4],
        "window_pos_embed_bkg_spatial_size": [8, 8],
        "memory_dim": 16,
        "memory_layers": 1,
        "memory_feedforward": 32,
        "max_cond_frames_in_attn": 2,
        "tracking_decoder": True,
    },
    "losses": {"num_points": 0, "objects_per_frame": None, "iou_loss_weight": 0.1, "mask_targets": "area"},
    "video_mode": "consistent",
    "vocab_size": 420,
}
TEXTS = ["Please segment the large striped red circle in this image.", f"Sure, it is {SEG_TOKEN}."]


@pytest.fixture
def made():
    return make_model(SIZES, TEXTS)


def test_cells_are_labelled_with_the_shape_that_covers_them():
    drawn = draw_scenes(random.Random(0), Options(min_objects=2, max_objects=4), 6)
    labels, grid = label_cells(drawn, 8), 8
    row = 0
    for one in drawn:
        for cell in range(grid * grid):
            y, x = (16 * side for side in divmod(cell, grid))
            shares = one.masks[:, 0, y : y + 16, x : x + 16].mean((1, 2))
            number = int(shares.argmax())
            shape, covered = one.scene.shapes[number], shares[number] > COVERED
            for name, family in FAMILIES.items():
                word = one.scene.options.words(family).index(getattr(shape, name)) if covered else -1
                assert labels.attributes[name][row] == word
            if covered:
                assert labels.geometry[row, :2].tolist() == pytest.approx(shape.centre, abs=1e-6)
            assert labels.cover[row] == pytest.approx(min(1, shares.sum()), abs=1e-5)
            row += 1


def test_shapes_can_be_seen_on_backgrounds_of_any_shade():
    shades = []
    for one in draw_scenes(random.Random(0), Options(min_objects=2, max_objects=4), 40, shades=1.0):
        ground = one.frames[0][~one.masks[:, 0].any(0)].reshape(-1, 3).astype(int)
        shades.append(np.median(ground))
        for shape in one.scene.shapes:
            colour = np.array(one.scene.world.palette[shape.colour])
            corners = np.array(one.scene.background)
            assert (np.abs(corners - colour).max(1) >= CONTRAST).all() or corners.std(1).max() == 0
    assert min(shades) < 40 and max(shades) > 215


def test_scenes_of_two_worlds_are_labelled_together():
    words = words_of(("default", "shifted"))
    assert words["size"] == ["small", "large"] and {"star", "heart"} <= set(words["kind"])
    (one,) = draw_scenes(random.Random(0), Options(world="shifted", min_objects=1, max_objects=1), 1)
    labels = label_cells([one], 8, ("default", "shifted"))
    cell = int(labels.cover.argmax())
    assert words["colour"][labels.attributes["colour"][cell]] == one.scene.shapes[0].colour
    assert words["kind"][labels.attributes["kind"][cell]] == one.scene.shapes[0].kind


def test_a_chat_has_a_target_for_every_seg_and_a_group_for_every_expression():
    rng, kinds = random.Random(3), set()
    for number in range(60):
        options = Options(min_objects=2, max_objects=3, num_frames=8 if number % 4 == 0 else 1)
        (one,) = draw_scenes(rng, options, 1)
        chats = referring_chats(one.scene, rng, 5, WEIGHTS)
        other = dialogue_chat(one.scene, rng, lambda shape: True)
        for chat in [*chats, joined(chats), *([other] if other else [])]:
            assert sum(answer.count(SEG_TOKEN) for _, answer in chat.turns) == len(chat.targets)
            assert len(chat.kinds) == len(chat.turns) == len(chat.groups) == len(chat.chains)
            for kind, (_, answer) in zip(chat.kinds, chat.turns, strict=True):
                assert kind != "no_target" or SEG_TOKEN not in answer
            kinds |= set(chat.kinds)
    assert {"attribute", "ordinal", "relation", "no_target", "motion", "region_caption"} <= kinds


@pytest.mark.parametrize(
    ("text", "kind", "targets", "chain"),
    [
        ("the third circle from the left", "ordinal", [1], [[2], [0], [1]]),
        ("the second shape from the bottom", "ordinal", [1], [[2], [1]]),
        ("the first circle from the top", "ordinal", [0], [[0]]),
        ("the leftmost circle", "ordinal", [2], [[2]]),
        ("the circle left of the green circle", "relation", [2], [[0], [2]]),
        ("the red circles", "several", [1, 2], [[1, 2]]),
        ("the striped star", "no_target", [], [[]]),
    ],
)
def test_a_chain_leads_to_the_target(text, kind, targets, chain):
    shapes = [
        Shape("circle", colour, "plain", "small", radius=0.1, rotation=0.0, path=(centre,))
        for colour, centre in (("green", (0.5, 0.2)), ("red", (0.8, 0.5)), ("red", (0.2, 0.8)))
    ]
    scene = replace(draw_scenes(random.Random(0), Options(min_objects=1, max_objects=1), 1)[0].scene, shapes=shapes)
    assert chain_of(scene, Expression(text, targets, kind)) == chain


def test_the_layers_above_follow_a_chain():
    chain = [[2], [0], [1]]
    assert steps(chain, 1) == [[1]] and steps(chain, 2) == [[0], [1]] and steps(chain, 3) == chain
    assert steps([[4]], 3) == [[4], [4], [4]] and steps(chain[:2], 3) == [[2], [0], [0]]


def test_the_group_of_an_expression_holds_its_targets():
    rng, larger = random.Random(0), 0
    for number in range(40):
        options = Options(min_objects=2, max_objects=4, num_frames=8 if number % 4 == 0 else 1)
        (one,) = draw_scenes(rng, options, 1)
        for expression in expressions(one.scene, rng, limit=24):
            group = group_of(one.scene, expression)
            assert set(expression.targets) <= set(group)
            if expression.kind in ("attribute", "several"):
                assert group == expression.targets
            larger += len(group) > len(expression.targets) > 0
    assert larger > 20


def test_a_code_tells_places_and_looks_apart(made):
    code = PromptCode(made[0])
    looks = code.words @ code.words.T
    assert torch.allclose(looks, WORD_NORM**2 * torch.eye(len(looks)), atol=1e-3)
    main = torch.linalg.svd(code.places)[2][: code.places.shape[1] - len(code.words)]
    assert (code.words @ main.T).abs().max() < 1e-3


def test_threads_read_the_image_and_themselves_as_alone(made):
    """A row of several conversations gives every one of them what the model gives it in a row of its own."""
    model, processor = made
    model.eval()
    (one,) = seen_scenes(model, processor, "a", 1, [3], grounding=False)
    chats = referring_chats(one.scene, random.Random(1), 3, WEIGHTS)
    chats.append(joined(chats[:2]))
    lesson = Choosing(model, processor, pictures=1, clips=0)
    with torch.no_grad():
        together = lesson.rows([one], [chats])
        states, at = lesson.read([one], together)[0], len(lesson.writer.prefix(1))
        for chat in chats:
            alone = lesson.rows([one], [[chat]])
            own = lesson.read([one], alone)[0, len(lesson.writer.prefix(1)) :]
            torch.testing.assert_close(states[at : at + len(own)], own, atol=1e-5, rtol=1e-4)
            at += len(own)


def test_a_decision_is_what_greedy_decoding_says(made):
    lesson = Choosing(*made, pictures=1, clips=0)
    (one,) = seen_scenes(*made, "a", 1, [3], grounding=False)
    chats = referring_chats(one.scene, random.Random(1), 5, WEIGHTS)
    with torch.no_grad():
        rows = lesson.rows([one], [chats])
        hidden = lesson.read([one], rows)
        hidden = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)) + hidden
        first = made[0].mllm.lm_head(hidden[rows.starts[:, 0], rows.starts[:, 1]]).argmax(1)
        declined = torch.isin(first, lesson.declines)
        absent = torch.tensor([chat.kinds[0] == "no_target" for chat in chats])
        assert lesson.decisions(hidden, rows, chats)[1].item() == pytest.approx((declined != absent).float().mean())


def test_threads_are_written_as_the_processor_writes_conversations(made):
    model, processor = made
    (one,) = draw_scenes(random.Random(2), Options(min_objects=3, max_objects=3), 1)
    chat = joined(referring_chats(one.scene, random.Random(1), 2, WEIGHTS))
    writer = ThreadWriter(processor)
    thread = writer.thread(chat, [])
    content = {"type": "image", "image": Image.fromarray(one.frames[0])}
    messages = []
    for number, (question, answer) in enumerate(chat.turns):
        asked = [*([] if number else [content]), {"type": "text", "text": question}]
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    inputs = processor.apply_chat_template([messages], add_generation_prompt=False, return_labels=True)
    ids, labels = writer.prefix(1) + thread.ids, [-100] * len(writer.prefix(1)) + thread.labels
    assert torch.as_tensor(inputs["input_ids"][0]).tolist()[: len(ids)] == ids
    assert torch.as_tensor(inputs["labels"][0]).tolist()[: len(ids)] == labels


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    values = torch.linalg.svdvals(orthogonalized(torch.randn(6, 20, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.6 and values.max() < 1.3
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (4,)))
    other = vector.detach().clone().requires_grad_()
    ours = Muon([matrix], [vector], lr=0.1, weight_decay=0.1)
    theirs = torch.optim.AdamW([other], lr=0.1, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(3):
        for parameter in (matrix, vector, other):
            parameter.grad = torch.full_like(parameter, 0.5 + step)
        ours.step()
        theirs.step()
    torch.testing.assert_close(vector, other)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Words, {"batch": 4}),
        (Sight, {"batch": 4, "min_objects": 2, "max_objects": 3, "shades": 0.5, "worlds": ("default", "shifted")}),
        (Choosing, {"train": ("llm", "prompts", "decoder"), "batch": 2, "pictures": 2, "clips": 1, "masks": 1.0}),
        (
            Choosing,
            {"batch": 2, "pictures": 0, "clips": 0, "clip_every": 0, "plain": 2, "plain_share": 1.0, "masks": 1.0},
        ),
        (Ordering, {"pictures": 2, "looks_per_step": 8}),
        (Outlining, {"masks_per_step": 4, "pictures": 2, "clips": 1}),
        (Outlining, {"masks_per_step": 4, "encoder": True}),
        (Spoken, {"masks_per_step": 4, "pictures": 2, "clips": 1}),
        (Following, {"clips": 1}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_lesson_lowers_the_loss_of_its_own_scenes(made, kind, options):
    check_that_it_learns(kind(*made, **options))


def check_that_it_learns(lesson):
    lesson.prepare(None)
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=2e-3)
    before = {name: p.detach().clone() for name, p in lesson.model.named_parameters()}
    losses = []
    for _ in range(6):
        loss, shown = lesson.loss(random.Random("the same"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert all(isinstance(value, float) for value in shown.values())
    assert losses[-1] < 0.97 * losses[0]
    changed = {name for name, p in lesson.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {id(p) for p in lesson.parameters()}
    assert changed <= {name for name, p in lesson.model.named_parameters() if id(p) in trained}
    assert changed


def test_the_memory_lesson_leaves_images_as_they_are(made):
    """The same weights that segment an image from a prompt may not change: the lesson has a decoder of its own."""
    lesson = Following(*made, clips=1)
    trained = {id(p) for p in lesson.parameters()}
    sam = made[0].grounding_encoder.sam2_model
    for module in (sam.image_encoder, sam.sam_mask_decoder, made[0].mllm, made[0].text_hidden_fcs):
        assert not any(id(p) in trained for p in module.parameters())


def test_imperfect_masks_are_still_masks():
    masks = torch.zeros(4, 32, 32)
    masks[:, 8:20, 8:20] = 1
    logits = imperfect(masks, random.Random(1), 0.1)
    ious = [
        ((one > 0) & (mask > 0.5)).sum() / ((one > 0) | (mask > 0.5)).sum()
        for one, mask in zip(logits, masks, strict=True)
    ]
    assert np.mean(ious) > 0.7 and logits.shape == masks.shape


def test_a_lesson_that_is_resumed_ends_with_the_same_weights(tmp_path):
    def train(folder, *stops):
        for stop in stops:
            torch.manual_seed(0)
            model, processor = make_model(SIZES, TEXTS)
            lesson = Sight(model, processor, batch=2, min_objects=2, max_objects=3)
            lesson.run(folder, steps=4, learning_rate=1e-3, warmup=1, save_every=2, stop_at=stop)
        return model.state_dict()

    whole = train(tmp_path / "whole", None)
    parts = train(tmp_path / "parts", 0.0, None)  # stops after one step, then goes on
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_recipe_runs_its_stages_once_and_records_their_probes(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "sight", lambda *_: {"kind": 0.5})
    monkeypatch.setattr("sa2va_hf.training.shapes_tiny.recipe.PROBES", {"sight": probe.sight})
    monkeypatch.setattr("sa2va_hf.training.shapes_tiny.words.corpus", lambda: TEXTS)
    stage = {"lesson": "sight", "options": {"batch": 2}, "run": {"steps": 1, "learning_rate": 1e-3}}
    recipe = {"model": SIZES, "stages": [stage | {"name": "one", "probes": ["sight"]}, stage | {"name": "two"}]}
    result = run(recipe, tmp_path)
    assert result == tmp_path / "2-two" / "run"
    assert json.loads((tmp_path / "1-one/probes.json").read_text()) == {"sight": {"kind": 0.5}}
    written = (result / "model.safetensors").stat().st_mtime_ns
    assert run(recipe, tmp_path) == result
    assert (result / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="stage one: lesson: expected one of"):
        run(recipe | {"stages": [stage | {"name": "one", "lesson": "singing"}]}, tmp_path)


def test_a_model_is_installed_in_half_precision_throughout(made, tmp_path):
    save(*made, tmp_path / "run")
    weights = load_file(install(tmp_path / "run", tmp_path / "installed") / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert {path.name for path in (tmp_path / "installed").iterdir()} == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_corpus_holds_every_word_of_the_world():
    words = " ".join(corpus(scenes=150)).split()
    assert {"striped", "triangle", "leftmost", "purple"} <= set(words)
    assert set(LESSONS) == {"words", "sight", "choosing", "ordering", "outlining", "placing", "spoken", "following"}


# ---------------------------------------------------------------- boxes as text


@pytest.fixture
def placing(made, tmp_path):
    save(*made, tmp_path / "start")
    model, processor = load_start({"start": str(tmp_path / "start"), "box_tokens": True})
    return Placing(model, processor, pictures=4, clips=1, batch=2, clip_batch=1, clip_every=2, form=2.0)


def test_the_lesson_on_boxes_lowers_the_loss_of_its_own_scenes(placing):
    check_that_it_learns(placing)


def place(*frames):
    """A place of one target on frames of a grid of 8 x 8; its cover on frame n is cell n alone."""
    cover = torch.zeros(1, len(frames), 64)
    cover[0, range(len(frames)), range(len(frames))] = 1
    known = [None if one is None else [(3, box) for box in one] for one in frames]
    return Place("the circle", "attribute", [3], known, cover)


def test_a_model_that_lessons_go_on_with_gets_the_tokens_of_boxes(placing):
    processor = placing.processor
    assert processor.box_form == "spatial" and set(BOX_TOKENS) <= set(processor.tokenizer.get_vocab())
    assert placing.model.get_input_embeddings().weight.shape[0] == len(processor.tokenizer)
    processor.tokenizer.add_tokens(["0."])
    with pytest.raises(ValueError, match=r"0\.1: expected one token of the tokenizer, got 2"):
        one_token(processor, "0.1")


def test_places_are_those_of_the_objects_and_of_their_relations():
    kinds = set()
    for sample in shapes(None, "train", count=3, clip_fraction=0.5, min_objects=3, max_objects=3):
        shown = [0] if sample.num_frames == 1 else [0, 4, 7]
        places = places_of(sample, shown, 8)
        kinds |= {place.kind for place in places}
        for found, one in zip(places, sample.expressions, strict=False):
            wanted = [[sample.objects[target].boxes[frame] for target in one.targets] for frame in shown]
            wanted = [sorted(tuple(v / 128 for v in box) for box in boxes if box is not None) for boxes in wanted]
            assert [[box for _, box in frame] for frame in found.frames] == wanted
            for frame, boxes in enumerate(found.frames):
                for target, box in boxes:
                    cell = found.cover[found.targets.index(target), frame].view(8, 8)
                    left, top = (int(8 * value) for value in box[:2])
                    assert cell.any() and not cell[:top].any() and not cell[:, :left].any()
    assert {"absolute", "relative", "attribute"} <= kinds


def test_decimals_are_weighed_by_what_they_are_worth_and_unknown_frames_not_at_all(placing):
    found = place([(0.125, 0.25, 0.5, 1.0)], [], None, [(0.0, 0.5, 0.25, 0.75)])
    threads, places = [[placing.thread(found, np.random.default_rng(0))]], [[found]]
    rows = placing.writer.rows(threads, len(found.frames))
    digits, weights = placing._tokens(threads, places, rows)
    texts = placing.processor.tokenizer.convert_ids_to_tokens(rows.ids[0].tolist())
    spelled = "".join(text for text, digit in zip(texts, digits[0], strict=True) if digit)
    once = "1250250050000000"
    assert spelled == once + once + "0000500025007500"  # the unknown frame repeats the first one
    first, second, third = [number for number, text in enumerate(texts) if text == "<next>"]
    assert texts[first + 1] == "<no_box>" and weights[0, first + 1] == weights[0, first + 2] == 2.0
    assert weights[0, first] == weights[0, texts.index("</box>")] == 2.0  # what follows a box or <no_box>
    assert not weights[0, second + 1 : third].any() and weights[0, second] and weights[0, third]
    assert weights[0, digits[0] == 1].tolist() == [DIGITS[0]] * 4 + [0] * 4 + [DIGITS[0]] * 4
    look = placing._looks(threads, places, rows)["target"]
    pointed = [texts[index] for _, index in look.at.tolist()]
    assert pointed == [".", ".", ".", ".", "<box>", ".", ".", ".", ".", "<next>"]
    cells = [int(rows.visual.tolist().index(int(one.argmax()))) for one in look.wanted]
    assert cells == [0] * 5 + [3 * 64 + 3] * 5


def test_cover_of_cells():
    masks = np.zeros((2, 1, 32, 32), bool)
    masks[0, 0, :16, :16] = True
    masks[1, 0, 8:24, 16:] = True
    assert cell_cover(masks, 2).squeeze(1).tolist() == [[1, 0, 0, 0], [0, 0.5, 0, 0.5]]
