"""A batch is its examples, padded; what the processor refuses is named by its sample."""

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_hf.data.collator import Sa2VACollator

SIZE = 32


def example(name: str, answer: str = "It is [SEG].", visual: str | None = "image", frames: int = 1, **extra) -> dict:
    pictures = [Image.new("RGB", (SIZE, SIZE))] * frames
    content = {"image": [{"type": "image", "image": pictures[0]}], "video": [{"type": "video", "video": pictures}]}
    count = answer.count("[SEG]")
    shape = (count, frames, SIZE, SIZE) if visual else (0, 1, 1, 1)
    return {
        "messages": [
            {"role": "user", "content": [*content.get(visual, []), {"type": "text", "text": "Segment it."}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "mask_labels": torch.ones(shape, dtype=torch.bool),
        "sample_id": name,
    } | extra


def test_a_batch_is_its_examples_padded(tiny_processor):
    collator = Sa2VACollator(tiny_processor, max_length=512)
    examples = [example("a"), example("b", "[SEG] and [SEG].", "video", 3), example("c", "No.", None)]
    batch = collator(examples)
    assert batch["sample_ids"] == ["a", "b", "c"]
    assert [tuple(labels.shape) for labels in batch["mask_labels"]] == [
        (1, 1, SIZE, SIZE), (2, 3, SIZE, SIZE), (0, 1, 1, 1),
    ]  # fmt: skip
    assert batch["num_frames"].tolist() == [1, 3, 0]
    assert len(batch["grounding_pixel_values"]) == 4
    assert "ignore_labels" not in batch
    for row, alone in enumerate(collator([one]) for one in examples):
        length = alone["input_ids"].shape[1]
        assert batch["input_ids"][row, :length].tolist() == alone["input_ids"][0].tolist()
        assert batch["labels"][row, :length].tolist() == alone["labels"][0].tolist()
        assert (batch["labels"][row, length:] == -100).all() and not batch["attention_mask"][row, length:].any()


def test_labels_cover_the_answer(tiny_processor):
    batch = Sa2VACollator(tiny_processor)([example("a")])
    learnt = batch["labels"][0][batch["labels"][0] != -100]
    assert tiny_processor.tokenizer.decode(learnt) == "It is [SEG].<|im_end|>"


def test_ignored_pixels_are_a_list_with_none_for_the_others(tiny_processor):
    ignore = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    batch = Sa2VACollator(tiny_processor)([example("a"), example("b", ignore_labels=ignore)])
    assert batch["ignore_labels"][0] is None and batch["ignore_labels"][1] is ignore


def test_the_model_takes_the_batch(tiny_processor, tiny_model):
    """And the loss has its parts with masks in the batch, without, and with pixels to ignore."""
    collator = Sa2VACollator(tiny_processor)
    ignore = torch.ones(3, SIZE, SIZE, dtype=torch.bool)
    ignored = example("b", "[SEG].", "video", 3, ignore_labels=ignore)
    for examples in ([example("a"), ignored, example("c", "No.", None)], [example("c", "No.", None)]):
        batch = collator(examples)
        batch.pop("sample_ids")
        assert torch.isfinite(tiny_model(**batch).loss)


def test_what_the_processor_refuses_is_named(tiny_processor):
    bad = example("bad")
    bad["messages"][0]["content"].insert(1, {"type": "region", "mask": np.zeros((3, 3), bool)})
    with pytest.raises(ValueError, match=r"sample 'bad': .*region mask is \(3, 3\)"):
        Sa2VACollator(tiny_processor)([example("good"), bad])


def test_a_sample_longer_than_max_length_is_named_not_cut(tiny_processor):
    collator = Sa2VACollator(tiny_processor, max_length=80)
    assert collator([example("short")])["input_ids"].shape[1] <= 80
    with pytest.raises(ValueError, match="sample 'long' has .* tokens, max_length is 80"):
        collator([example("short"), example("long", "word " * 80 + "[SEG]")])
