"""The progress bar of a run: the loss is in it, and nothing is printed between."""

from types import SimpleNamespace

from transformers import ProgressCallback

from sa2va_hf.training.progress import LossBar


class Bar:
    def __init__(self):
        self.postfix, self.lines = None, []

    def set_postfix(self, shown):
        self.postfix = dict(shown)

    def write(self, line):
        self.lines.append(line)


def test_loss_and_the_last_score_are_in_the_bar():
    callback, state = LossBar(), SimpleNamespace(is_world_process_zero=True)
    callback.training_bar = bar = Bar()
    callback.on_log(None, state, None, {"loss": 1.25, "grad_norm": 3.0})
    callback.on_log(None, state, None, {"eval_cIoU": 0.5, "eval_loss": 2.0})
    callback.on_log(None, state, None, {"loss": 0.75})
    assert bar.postfix == {"loss": "0.750", "cIoU": "0.500"} and not bar.lines
    assert isinstance(callback, ProgressCallback)


def test_an_evaluation_has_no_bar_of_its_own():
    callback = LossBar()
    callback.on_prediction_step(None, SimpleNamespace(is_world_process_zero=True), None, eval_dataloader=[1, 2])
    assert callback.prediction_bar is None
