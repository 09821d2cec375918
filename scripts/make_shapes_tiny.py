"""Train shapes-tiny, the model that ships with the package, from random weights by the stages of a recipe.

    python scripts/make_shapes_tiny.py configs/shapes_tiny.yaml --output outputs/shapes_tiny [--install]

Run the same command again after an interruption: finished stages are skipped, the open one goes on from its last
checkpoint. --install copies the result (bfloat16) to sa2va_hf/pretrained/shapes-tiny.
"""

import argparse
import io
import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import InternVLConfig, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup, set_seed

from sa2va_hf import Sa2VAConfig, Sa2VAForConditionalGeneration, Sa2VAProcessor
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.prompts import templates as prompts
from sa2va_hf.data.shapes.dialogue import DIALOGUES
from sa2va_hf.data.shapes.scene import MIN_VISIBLE
from sa2va_hf.data.shapes.source import TASKS, Options, Scene, draw, draw_scene, expressions, shapes
from sa2va_hf.data.shapes.text import ATTRIBUTES, FAMILIES
from sa2va_hf.model.configuration_sa2va import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SEG_TOKEN, SPECIAL_TOKENS
from sa2va_hf.model.processing_sa2va import get_template

ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger("make_shapes_tiny")


def corpus() -> list[str]:
    """Everything the model will read or say, in the words of the default world."""
    texts = [text for pool in (prompts.SEG_QUESTIONS, prompts.SEG_ANSWERS, prompts.NO_TARGET_ANSWERS) for text in pool]
    for sample in shapes(None, "train", count=2000, seed=1, tasks=TASKS, clip_fraction=0.3):
        texts += [expression.text for expression in sample.expressions]
        texts += [text for turn in sample.turns for text in (turn.question, turn.answer)]
    return texts


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: whole words of the default world, bytes for everything else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", "<|im_end|>", IMAGE_START, IMAGE_CONTEXT, IMAGE_END, *SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(marks),
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_tokens(marks, special_tokens=True)
    return fast


def written(turns: list[tuple[str, str]], processor: Sa2VAProcessor) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation about a picture of one tile, answers alone being learned."""
    template = get_template(processor.template)
    ids = processor.tokenizer(IMAGE_START + IMAGE_CONTEXT * processor.tokens_per_tile + IMAGE_END)["input_ids"]
    learned = [-100] * len(ids)
    for question, answer in turns:
        asked = processor.tokenizer(template.instruction.format(input=question))["input_ids"]
        said = processor.tokenizer(answer + template.suffix)["input_ids"]
        ids, learned = ids + asked + said, learned + [-100] * len(asked) + said
    return ids, learned


def teach_words(model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, steps: int, batch: int) -> None:
    """Text alone, before any picture: after [SEG] the model says some word of the phrase that was asked for.

    Which word is a coin toss, so the [SEG] state must hold them all. Without this it says nothing about its question
    at random weights, the mask decoder learns to do without the text, and both stay so for tens of thousands of
    pictures. It takes two minutes.
    """
    rng, choose = np.random.default_rng(3), random.Random(3)
    language, head, embed = model.mllm.model.language_model, model.mllm.lm_head, model.get_input_embeddings()
    parameters = [*language.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    options = Options(min_objects=2, max_objects=3)
    for step in range(steps):
        rows, labels = [], []
        for _ in range(batch):
            scene = draw_scene(choose, options)
            phrases = [e.text for e in expressions(scene, choose, ("attribute", "several", "ordinal", "relation"))]
            turns = []
            for phrase in choose.sample(phrases, min(len(phrases), choose.randint(1, 3))):
                words = [word for word in phrase.split() if word not in ("the", "all", "of", "from")]
                question, answer = prompts.referring_turn(phrase, True, rng)
                turns.append((question, answer.replace(SEG_TOKEN, f"{SEG_TOKEN} {choose.choice(words)}")))
            ids, learned = written(turns, processor)
            rows.append(torch.tensor(ids))
            labels.append(torch.tensor(learned))
        ids, wanted = pad_sequence(rows, True), pad_sequence(labels, True, -100)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 30)
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = head(language(inputs_embeds=embed(ids)).last_hidden_state)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            after = (ids == processor.seg_token_id)[:, :-1]
            choice = F.cross_entropy(logits[:, :-1][after].float(), wanted[:, 1:][after])
            logger.info("words: step %d, loss %.3f, after [SEG] %.3f", step, loss, choice)


# ---------------------------------------------------------------- lessons: what masks alone teach too slowly
GRID = 4  # cells per side of a picture: one per token
FREQUENCIES = (0.5, 1, 2)


class Symbols:
    """What a picture's tokens ought to say: in every cell the words for the shapes that lie there, and where and how
    large these are, as input embeddings that the LLM knows already."""

    def __init__(self, model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor) -> None:
        self.words = model.get_input_embeddings().weight.detach().clone()
        self.tokenizer = processor.tokenizer
        waves = 4 * len(FREQUENCIES) + 1
        generator = torch.Generator().manual_seed(11)  # the same directions in every lesson
        self.places = torch.randn(waves, self.words.shape[1], generator=generator) * self.words.std() * 0.5

    def word(self, text: str) -> Tensor:
        return self.words[self.tokenizer(f" {text}")["input_ids"]].mean(0)

    def of(self, scene: Scene, masks: list[list[np.ndarray]]) -> Tensor:
        """(GRID * GRID, D)"""
        size = scene.options.size
        cover = torch.from_numpy(np.stack([of_shape[0] for of_shape in masks])).float()
        cover = F.avg_pool2d(cover, size // GRID).flatten(1)  # (shapes, cells)
        contents = []
        for shape in scene.shapes:
            x, y = (2 * np.pi * (side - 0.5) for side in shape.centre)
            waves = [wave(f * side) for f in FREQUENCIES for side in (x, y) for wave in (np.sin, np.cos)]
            where = torch.tensor([*waves, 4 * shape.radius], dtype=torch.float32) @ self.places
            contents.append(sum(self.word(getattr(shape, name)) for name in ATTRIBUTES) / 2 + where)
        return (3 * cover).clamp(max=1).T @ torch.stack(contents)

    def misread(self, tokens: Tensor, scenes: list[tuple[Scene, Any, list[list[np.ndarray]]]]) -> Tensor:
        """Cross-entropy of the words that `tokens` (B, GRID * GRID, D) are nearest to, where a shape fills a cell.

        Squared distance alone hardly asks for kinds and textures: places and colours are most of it.
        """
        losses, options = [], scenes[0][0].options
        filled = []  # (token, shape)
        for number, (scene, _, masks) in enumerate(scenes):
            cover = torch.from_numpy(np.stack([of_shape[0] for of_shape in masks])).float()
            share, shape = F.avg_pool2d(cover, options.size // GRID).flatten(1).max(0)
            filled += [(tokens[number, cell], scene.shapes[shape[cell]]) for cell in (share > 0.3).nonzero()[:, 0]]
        read = torch.stack([token for token, _ in filled])
        for name in ATTRIBUTES:
            family = list(options.words(FAMILIES[name]))
            words = torch.stack([self.word(word) for word in family])
            said = torch.tensor([family.index(getattr(shape, name)) for _, shape in filled])
            losses.append(F.cross_entropy(read @ words.T - words.square().sum(1) / 4, said))
        return torch.stack(losses).mean()


def questions_about(
    scene: Scene, masks: list[list[np.ndarray]], choose: random.Random, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """One to three turns about a picture. After [SEG] the answer goes on with a word for one of the shapes meant: not
    of those in the question, so that the state at [SEG] must know which shape that is."""
    if choose.random() < 0.25:
        visible = [i for i, of_shape in enumerate(masks) if np.count_nonzero(of_shape[0]) >= MIN_VISIBLE]
        dialogue = DIALOGUES[choose.choice(("question", "grounded_caption", "conversation"))](scene, choose, visible)
        if dialogue is not None:
            return [(turn.question, turn.answer) for turn in dialogue[0]]
    kinds = ("attribute", "several", "ordinal", "relation", "no_target")
    turns = []
    asked = expressions(scene, choose, kinds)
    for expression in choose.sample(asked, min(len(asked), choose.randint(1, 3))):
        question, answer = prompts.referring_turn(expression.text, bool(expression.targets), rng)
        if expression.targets:
            meant = scene.shapes[choose.choice(expression.targets)]
            answer = answer.replace(SEG_TOKEN, f"{SEG_TOKEN} {getattr(meant, choose.choice(ATTRIBUTES))}")
        turns.append((question, answer))
    return turns


def read_symbols(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, steps: int, batch: int, learning_rate: float
) -> None:
    """The LLM learns to answer about pictures whose tokens are written by hand (`Symbols`): order, relations, what is
    not there. No picture is seen yet, so it takes as long as text does."""
    rng, choose, symbols = np.random.default_rng(5), random.Random(5), Symbols(model, processor)
    language, head, embed = model.mllm.model.language_model, model.mllm.lm_head, model.get_input_embeddings()
    context = model.config.mllm_config.image_token_id
    parameters = [p for p in (*language.parameters(), *head.parameters()) if p is not embed.weight]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, 30, steps)
    options = Options(min_objects=1, max_objects=4)
    for step in range(steps):
        rows, labels, pictures = [], [], []
        for _ in range(batch):
            scene, _, masks = draw(choose, options)
            pictures.append(symbols.of(scene, masks))
            ids, learned = written(questions_about(scene, masks, choose, rng), processor)
            rows.append(torch.tensor(ids))
            labels.append(torch.tensor(learned))
        ids, wanted = pad_sequence(rows, True), pad_sequence(labels, True, -100)
        embeddings = embed(ids).detach()
        embeddings = embeddings.masked_scatter((ids == context).unsqueeze(-1), torch.cat(pictures))
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = head(language(inputs_embeds=embeddings).last_hidden_state)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            after = (ids == processor.seg_token_id)[:, :-1] & (wanted[:, 1:] != -100)
            choice = F.cross_entropy(logits[:, :-1][after].float(), wanted[:, 1:][after])
            logger.info("symbols: step %d, loss %.3f, after [SEG] %.3f", step, loss, choice)


def see_symbols(
    model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, steps: int, batch: int, learning_rate: float
) -> None:
    """The vision tower and projector learn to write the tokens that `read_symbols` has taught the LLM to read."""
    choose, symbols = random.Random(7), Symbols(model, processor)
    parameters = [*model.mllm.model.vision_tower.parameters(), *model.mllm.model.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, 30, steps)
    options = Options(min_objects=1, max_objects=4)
    for step in range(steps):
        scenes = [draw(choose, options) for _ in range(batch)]
        wanted = torch.stack([symbols.of(scene, masks) for scene, _, masks in scenes])
        chats = [messages(Image.fromarray(frames[0]), [("What is this?", "")]) for _, frames, _ in scenes]
        pixels = processor.apply_chat_template(chats, add_generation_prompt=False, padding=True)["pixel_values"]
        with torch.autocast(pixels.device.type, torch.bfloat16):
            tokens = model.mllm.get_image_features(pixels, return_dict=True).pooler_output
        error = (tokens.float() - wanted).square().mean() / wanted.var()
        misread = symbols.misread(tokens.float(), scenes)
        (error + 2 * misread).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            logger.info(
                "sight: step %d, unexplained variance %.3f, misread %.3f", step, error.detach(), misread.detach()
            )


LESSONS = {"read_symbols": read_symbols, "see_symbols": see_symbols}


def run_lesson(number: int, stage: dict[str, Any], start: Path, output: Path) -> Path:
    """A stage that is not a training run of its own, but a function of this file; returns the folder of its model."""
    folder = output / f"{number}-{stage['name']}"
    if (folder / "done").exists():
        logger.info("stage %s: done before", stage["name"])
        return folder / "run"
    set_seed(number)
    torch.backends.cuda.enable_flash_sdp(False)
    model = Sa2VAForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    processor = Sa2VAProcessor.from_pretrained(start)
    LESSONS[stage["lesson"]](model, processor, **stage["options"])
    model.save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    (folder / "done").touch()
    return folder / "run"


@torch.no_grad()
def whiten(model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, options: dict, keep: int) -> None:
    """Data-dependent start of `text_hidden_fcs`: random features of the `keep` directions in which [SEG] states
    differ most, each at the same strength, without what all states share (which the decoder's norms would see most).
    """
    chats = []
    for sample in shapes(None, "train", seed=2, **(options | {"count": 192})):
        picture = Image.open(io.BytesIO(sample.frames[0])).convert("RGB")
        turns = [(f"Please segment {e.text}.", "Sure, [SEG].") for e in sample.expressions if e.targets][:5]
        chats.append(messages(picture, turns))
    states = []
    for start in range(0, len(chats), 32):
        batch = chats[start : start + 32]
        inputs = processor.apply_chat_template(batch, add_generation_prompt=False, padding=True)
        visible = {key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}
        states.append(model(**visible).seg_hidden_states)
    states = torch.cat(states)
    mean = states.mean(0)
    _, scale, directions = torch.linalg.svd(states - mean, full_matrices=False)
    first, _, last, _ = model.text_hidden_fcs
    mixing = torch.randn(first.out_features, keep) / keep**0.5
    first.weight.copy_(mixing @ (directions[:keep] / scale[:keep, None] * len(states) ** 0.5))
    first.bias.copy_(-first.weight @ mean)
    last.weight.normal_(0, (2 / last.in_features) ** 0.5)
    last.bias.copy_(-last.weight @ torch.relu(first(states)).mean(0))


def messages(picture: Image.Image, turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = []
    for question, answer in turns:
        visuals = [] if chat else [{"type": "image", "image": picture}]
        chat.append({"role": "user", "content": [*visuals, {"type": "text", "text": question}]})
        chat.append({"role": "assistant", "content": answer})
    return chat


def make_model(recipe: dict[str, Any], options: dict[str, Any], folder: Path) -> None:
    """A model that knows the words and nothing else, for `from_pretrained`; options: of the first stage's data."""
    tokenizer = make_tokenizer(recipe["vocab_size"])
    vision, grounding = recipe["vision"], recipe["grounding"]
    side, patch = vision["image_size"][0], vision["patch_size"][0]
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    mllm = InternVLConfig(
        vision_config=vision,
        initializer_range=recipe["text"]["initializer_range"],
        text_config=recipe["text"] | ids | {"vocab_size": len(tokenizer), "tie_word_embeddings": False},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT),
        image_seq_length=(side // patch // 2) ** 2,
        tie_word_embeddings=False,
    )
    config = Sa2VAConfig(
        mllm_config=mllm,
        grounding_config=grounding,
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
        video_mode=recipe["video_mode"],
        **recipe["losses"],
    )
    set_seed(0)
    torch.backends.cuda.enable_flash_sdp(False)  # slow backwards on a CPU, see train.py
    model = Sa2VAForConditionalGeneration(config)
    processor = Sa2VAProcessor(
        tokenizer, tile_size=side, patch_size=patch, max_tiles=1, grounding_image_size=grounding["image_size"]
    )
    teach_words(model, processor, **recipe["words"])
    whiten(model, processor, options, recipe["whitened_directions"])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def run_stage(number: int, stage: dict[str, Any], common: dict[str, Any], start: Path, output: Path) -> Path:
    """Draw the stage's data, train on it, and return the folder of its model."""
    folder = output / f"{number}-{stage['name']}"
    if (folder / "done").exists():
        logger.info("stage %s: done before", stage["name"])
        return folder / "run"
    parts = []
    for part, options in enumerate(stage["data"]):
        options = dict(options)
        repeats, cache = options.pop("repeats", 1), folder / f"data-{part}"
        if not (cache / "manifest.json").exists():
            logger.info("stage %s: drawing %s samples", stage["name"], options["count"])
            prepare("shapes", None, "train", cache, num_proc=2, options={"seed": 100 * number + part} | options)
        parts.append({"path": str(cache), "repeats": repeats})
    settings = common | stage.get("training", {}) | {"model_name_or_path": str(start), "train_data": parts}
    settings["output_dir"] = str(folder / "run")
    (folder / "stage.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, ROOT / "scripts/train.py", folder / "stage.yaml", "--resume_from_checkpoint", "auto"]
    subprocess.run([str(word) for word in command], check=True)
    (folder / "done").touch()
    return folder / "run"


def install(folder: Path) -> Path:
    """The model in bfloat16 as package data, so that `from_pretrained("shapes-tiny")` finds it."""
    target = ROOT / "sa2va_hf/pretrained/shapes-tiny"
    shutil.rmtree(target, ignore_errors=True)
    model = Sa2VAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(target)
    Sa2VAProcessor.from_pretrained(folder).save_pretrained(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--install", action="store_true", help="copy the result into the package")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = yaml.safe_load(arguments.recipe.read_text())
    model = arguments.output / "0-words"
    if not (model / "processor_config.json").exists():
        make_model(recipe["model"], recipe["stages"][0]["data"][0], model)
    for number, stage in enumerate(recipe["stages"], start=1):
        if "lesson" in stage:
            model = run_lesson(number, stage, model, arguments.output)
        else:
            model = run_stage(number, stage, recipe["common"], model, arguments.output)
    if arguments.install:
        logger.info("installed as %s", install(model))


if __name__ == "__main__":
    main()
