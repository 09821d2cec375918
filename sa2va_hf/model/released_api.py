"""`predict_forward` as in the released Sa2VA code: the same inputs and outputs, so that its callers need no change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .answering import AnsweringMixin
from .configuration_sa2va import PLACEHOLDER, bundled
from .conversations import get_template
from .processing_sa2va import Sa2VAProcessor
from .video_modes import get_video_mode
from .visuals import Clip

MAX_NEW_TOKENS = 2048
KEY_FRAMES = 5  # of a clip, the first ones
MODE = "memory"
FOR_SAM2 = ("grounding_pixel_values", "num_frames")  # of a processor's inputs; here SAM 2 reads all frames later
# What the released code writes for the pictures (one block per frame), and after it for regions.
_BLOCK = r"<img>(?:<IMG_CONTEXT>)+</img>|<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>|(?:<image>){2,}"
_BLOCKS = re.compile(rf"(?:{_BLOCK})(?:\n?(?:{_BLOCK}))*")
_REGIONS = re.compile(
    r"\n?There are \d+ part regions in the picture: (?:region\d+<vp>.*?</vp>(?:, )?)+\.\n", re.DOTALL
)


class ReleasedApiMixin(AnsweringMixin):
    """`predict_forward` for the model that inherits it."""

    def predict_forward(
        self,
        image: Any = None,
        video: Any = None,
        text: str | None = None,
        past_text: str = "",
        mask_prompts: Sequence[np.ndarray] | None = None,
        tokenizer: Any = None,
        processor: Any = None,
    ) -> dict[str, Any]:
        """The entry point of the released code: one question, answered greedily, masks in the video mode "memory".

        Args:
            image: a picture.
            video: a list of frames; the LLM reads the first five.
            text: the question; `<image>` marks where the picture comes in the text, by default first.
            past_text: what the call before returned as "past_text"; give its image or video again.
            mask_prompts: [array (regions, H, W)] of the image, called region1, region2 ... in the text.
            tokenizer, processor: a `Sa2VAProcessor`, or the checkpoint's tokenizer; needed where the model was not
                loaded from a folder that has one.

        Returns:
            "prediction", the answer with its special tokens; "prediction_masks", per [SEG] a bool array (frames, H,
            W); and "past_text". Unlike in the released code, a [SEG] as the very last token has a mask, the history
            is returned, and nothing is moved to another device.

        Raises:
            ValueError: no question, both image and video, or a `past_text` or regions without their picture.
        """
        processor = find_processor(self, tokenizer, processor)
        if not text or not text.strip():
            raise ValueError(f"text: expected a question, got {text!r}")
        if image is not None and video is not None:
            raise ValueError("give image or video, not both")
        clip = Clip([image]) if image is not None else Clip(video) if video is not None else None
        regions = _regions(mask_prompts)
        turns = read_history(past_text, processor.template)
        _check_past(past_text, text, clip, regions)
        key_frames = get_video_mode(MODE).key_frames(len(clip), KEY_FRAMES) if video is not None else []
        messages = _messages(clip, key_frames, regions, [*turns, (text, None)])
        inputs = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = {name: value.to(self.device) for name, value in inputs.items() if name not in FOR_SAM2}
        was_training = self.training
        self.eval()
        try:
            [answer] = self.answer(processor, inputs, max_new_tokens=MAX_NEW_TOKENS)
            [masks] = self.predict_clips(processor, [clip], [key_frames], [answer.states], MODE)
        finally:
            self.train(was_training)
        past_text += write_turn(text, answer.text, processor.template, clip is not None and not turns)
        return {"prediction": answer.raw_text, "prediction_masks": list(masks.masks.unpack()), "past_text": past_text}


def _messages(
    clip: Clip | None, key_frames: list[int], regions: list[np.ndarray], turns: list[tuple[str, str | None]]
) -> list[dict[str, Any]]:
    """The conversation in the Hugging Face form. key_frames: none for a picture."""
    visuals = []
    if key_frames:
        visuals = [{"type": "video", "video": [clip[index] for index in key_frames]}]
    elif clip is not None:
        visuals = [{"type": "image", "image": clip[0]}, *({"type": "region", "mask": mask} for mask in regions)]
    messages = []
    for question, reply in turns:
        question = question if clip is not None else question.replace(PLACEHOLDER, "")
        messages.append({"role": "user", "content": [*visuals, {"type": "text", "text": question}]})
        visuals = []
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
    return messages


def _regions(mask_prompts: Any) -> list[np.ndarray]:
    """[array (regions, H, W)] -> bool masks (H, W)."""
    masks = []
    for group in mask_prompts or []:
        if np.ndim(group) != 3:
            raise ValueError(
                f"mask_prompts: expected [array (regions, H, W)], got an array of shape {np.shape(group)}"
            )
        masks += list(np.asarray(group, dtype=bool))
    return masks


def _check_past(past_text: str, text: str, clip: Clip | None, regions: list[np.ndarray]) -> None:
    if past_text and PLACEHOLDER in text:
        raise ValueError(f"text: {PLACEHOLDER} belongs to the first turn, but past_text is not empty; leave it out")
    if clip is None and (PLACEHOLDER in past_text or _BLOCKS.search(past_text)):
        raise ValueError("past_text refers to a picture: give its image or video again")
    if not regions and _REGIONS.search(past_text):
        raise ValueError("past_text refers to regions: give their mask_prompts again")
    if regions and (clip is None or len(clip) != 1):
        raise ValueError("mask_prompts mark regions of an image; give one")


def read_history(past_text: str, template: str) -> list[tuple[str, str]]:
    """Turns of a `past_text`: of ours, or of the released code, which writes every picture token out.

    Raises: ValueError if it is no sequence of whole turns of this template.
    """
    form = get_template(template)
    before, middle = form.instruction.split("{input}")
    end = form.suffix + form.separator
    turn = re.compile(f"{re.escape(before)}(.*?){re.escape(middle)}(.*?){re.escape(end)}", re.DOTALL)
    turns, done = [], 0
    for found in turn.finditer(past_text):
        if found.start() != done:
            break
        question = _REGIONS.sub("\n", _BLOCKS.sub(PLACEHOLDER, found[1]))
        turns.append((question, found[2]))
        done = found.end()
    if done != len(past_text):
        shape, rest = f"{form.instruction!r} + answer + {end!r}", past_text[done : done + 80]
        raise ValueError(f"past_text: expected turns of {template!r}, {shape}; got {rest!r} at character {done}")
    return turns


def write_turn(question: str, answer: str, template: str, visual: bool) -> str:
    """One turn of a `past_text`, which the next call takes. Pictures are written as `<image>`."""
    form = get_template(template)
    if visual and PLACEHOLDER not in question:
        question = f"{PLACEHOLDER}\n{question}"
    return form.instruction.format(input=question) + answer + form.suffix + form.separator


def find_processor(model: Any, tokenizer: Any, processor: Any) -> Sa2VAProcessor:
    """The processor that was given, or the one beside the model's weights, or one made of the tokenizer."""
    # By name: transformers loads the code beside the weights of a local folder once for the model and once for the
    # processor, as two classes.
    if type(processor).__name__ == Sa2VAProcessor.__name__:
        return processor
    beside = bundled(model.name_or_path)
    if beside and (Path(beside) / "processor_config.json").is_file():
        return Sa2VAProcessor.from_pretrained(beside)
    if tokenizer is None:
        if processor is None:
            raise ValueError("give a Sa2VAProcessor as processor, or the checkpoint's tokenizer")
        tokenizer = processor.tokenizer  # of the LLM's own processor, which callers of Qwen-VL releases give
    llama = model.config.get_text_config().model_type in ("llama", "phi3")
    return Sa2VAProcessor.for_model(model.config, tokenizer, add_bos=llama and tokenizer.bos_token_id is not None)
