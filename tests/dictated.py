"""A predictor whose LLM says what a test dictates."""

import torch

from sa2va_hf.model.answering import Answer


def said(predictor, monkeypatch, *texts):
    """The predictor generates these texts, one after the other. Returns the options of each call, as they come."""
    answers, asked = list(texts), []

    def answer(processor, inputs, **options):
        asked.append(options)
        count = len(inputs["input_ids"])
        states = torch.zeros(0, predictor.model.config.hidden_size)
        return [Answer(text, text, states) for text in (answers.pop(0) for _ in range(count))]

    monkeypatch.setattr(predictor.model, "answer", answer)
    return asked
