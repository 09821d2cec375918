"""A predictor that draws what it is told to, for tests of evaluation; and benchmarks of made-up records."""

from types import SimpleNamespace

import numpy as np
import torch

from sa2va_hf.evaluation import referring
from sa2va_hf.evaluation.benchmarks import Benchmark
from sa2va_hf.evaluation.items import Settings
from sa2va_hf.evaluation.referring import Referring
from sa2va_hf.inference import History, Prediction

SETTINGS = Settings()
PICTURES = Referring(referring.picture_prompt, (referring.PICTURE_PROMPT,))
CLIPS = Referring(referring.clip_prompt, (referring.CLIP_PROMPT, referring.QUESTION_PROMPT))


class Drawer:
    """Answers with `text` and draws `mask` (H, W), on every frame, for each [SEG]; keeps what it was asked."""

    def __init__(self, mask, text="Sure, [SEG]."):
        self.mask, self.text, self.asked = mask, text, []
        self.model = SimpleNamespace(device=torch.device("cpu"))
        self.processor = SimpleNamespace(check_region=lambda mask: None)

    def __call__(self, image=None, video=None, text=None, **options):
        self.asked += text
        counts = [1] * len(text) if image is not None else [len(frames) for frames in video]
        return [self._prediction(count) for count in counts]

    def segment(self, answer, **given):
        assert answer == [referring.GIVEN_ANSWER] * len(given["text"])
        return self(**given)

    def _prediction(self, frames):
        drawn = np.repeat(self.mask[None], frames, 0)
        drawn = np.stack([drawn] * self.text.count("[SEG]")) if "[SEG]" in self.text else drawn[None][:0]
        boxes, ones = np.zeros((len(drawn), frames, 4)), np.ones(len(drawn))
        return Prediction(self.text, drawn, boxes, ones, History(), drawn, object_scores=ones)


def given(task, *records, **options):
    return Benchmark(lambda root, split: iter(records), "val", task, options, needs_root=False)
