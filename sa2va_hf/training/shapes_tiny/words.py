"""Lesson on text alone, and the tokenizer: the words of the drawn world, before any image."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from ...data.prompts.templates import NO_TARGET_ANSWERS, SEG_ANSWERS, SEG_QUESTIONS, referring_turn
from ...data.shapes.scene import Options, draw_scene
from ...data.shapes.source import TASKS, shapes
from ...data.shapes.text import expressions
from ...model.configuration_sa2va import (
    IGNORE_INDEX,
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    SEG_TOKEN,
    SPECIAL_TOKENS,
)
from ...model.modeling_sa2va import Sa2VAForConditionalGeneration
from ...model.processing_sa2va import Sa2VAProcessor, get_template
from .lesson import Lesson

FILLERS = ("the", "all", "of", "from")


def corpus(scenes: int = 2000) -> list[str]:
    """What the model will read or say about that many scenes, in the words of the default world."""
    texts = [text for pool in (SEG_QUESTIONS, SEG_ANSWERS, NO_TARGET_ANSWERS) for text in pool]
    for sample in shapes(None, "train", count=scenes, seed=1, tasks=TASKS, clip_fraction=0.3):
        texts += [expression.text for expression in sample.expressions]
        texts += [text for turn in sample.turns for text in (turn.question, turn.answer)]
    return texts


def make_tokenizer(vocab_size: int, texts: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE: whole words of `texts` (default: `corpus()`), bytes for everything else."""
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
    tokenizer.train_from_iterator(corpus() if texts is None else texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_tokens(marks, special_tokens=True)
    return fast


class Words(Lesson):
    """After [SEG] the model says some word of the phrase that it was asked for.

    Which word is random, so the [SEG] state must hold them all. Without this it says nothing about its question at
    random weights, the mask decoder learns to do without the text, and both stay so for tens of thousands of images.
    """

    name = "words"

    def __init__(self, model: Sa2VAForConditionalGeneration, processor: Sa2VAProcessor, batch: int = 64) -> None:
        super().__init__(model, processor)
        self.batch, self.options = batch, Options(min_objects=2, max_objects=3)
        model.requires_grad_(False)
        for module in self.trained():
            module.requires_grad_(True)

    def trained(self) -> Iterable[nn.Module]:
        return [self.model.mllm.model.language_model, self.model.mllm.lm_head]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        pairs = [self._conversation(rng) for _ in range(self.batch)]
        ids = pad_sequence([torch.tensor(pair[0]) for pair in pairs], True)
        labels = pad_sequence([torch.tensor(pair[1]) for pair in pairs], True, IGNORE_INDEX)
        language, embed = self.model.mllm.model.language_model, self.model.get_input_embeddings()
        logits = self.model.mllm.lm_head(language(inputs_embeds=embed(ids)).last_hidden_state)[:, :-1].float()
        after = (ids == self.processor.seg_token_id)[:, :-1]
        chosen = F.cross_entropy(logits[after], labels[:, 1:][after])
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
        return loss, {"after [SEG]": chosen.item()}

    def _conversation(self, rng: random.Random) -> tuple[list[int], list[int]]:
        scene, words = draw_scene(rng, self.options), np.random.default_rng(rng.getrandbits(32))
        phrases = [e.text for e in expressions(scene, rng, ("attribute", "several", "ordinal", "relation"))]
        turns = []
        for phrase in rng.sample(phrases, min(len(phrases), rng.randint(1, 3))):
            said = rng.choice([word for word in phrase.split() if word not in FILLERS])
            question, answer = referring_turn(phrase, True, words)
            turns.append((question, answer.replace(SEG_TOKEN, f"{SEG_TOKEN} {said}")))
        return conversation(turns, self.processor)


def conversation(turns: list[tuple[str, str]], processor: Sa2VAProcessor) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation about an image of one tile; only answers are learned."""
    template = get_template(processor.template)
    ids = processor.tokenizer(IMAGE_START + IMAGE_CONTEXT * processor.tokens_per_tile + IMAGE_END)["input_ids"]
    labels = [IGNORE_INDEX] * len(ids)
    for question, answer in turns:
        asked = processor.tokenizer(template.instruction.format(input=question))["input_ids"]
        said = processor.tokenizer(answer + template.suffix)["input_ids"]
        ids, labels = ids + asked + said, labels + [IGNORE_INDEX] * len(asked) + said
    return ids, labels
