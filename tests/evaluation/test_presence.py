"""Whether a score tells crops with a target from those without it.

Run: pytest tests/evaluation/test_presence.py
"""

from types import SimpleNamespace

import numpy as np
import pytest

from sa2va_hf.evaluation.items import Answer, Settings
from sa2va_hf.evaluation.presence import Presence, presence_figures


def figures(present, absent):
    scores = np.array([*present, *absent], dtype=float)
    return presence_figures(scores, np.arange(len(scores)) < len(present))


@pytest.mark.parametrize(
    ("present", "absent", "expected"),
    [
        ([1, 1], [0, 0], {"AUC": 1, "Acc@0.5": 1, "found": 1, "threshold": 0, "calibration_error": 0}),
        ([0.2, 0.8], [0.2, 0.6], {"AUC": 0.625, "Acc@0.5": 0.5, "found": 0.5, "threshold": 0.6}),
        # 0.55 in the bins of 0.2 (half is there), 0.6 (none is) and 0.8 (all are): (0.6 + 0.6 + 0.2) / 4
        ([0.2, 0.8], [0.2, 0.6], {"calibration_error": (0.6 + 0.6 + 0.2) / 4}),
        ([0.9], [0.1] * 19 + [0.95], {"threshold": 0.1, "found": 1.0}),  # one false alarm in 20 is allowed
        ([0.9], [0.1] * 18 + [0.95], {"threshold": 0.95, "found": 0.0}),
        ([0.7, 0.4], [], {"Acc@0.5": 0.5, "calibration_error": 0.45}),
    ],
)
def test_figures_by_hand(present, absent, expected):
    found = figures(present, absent)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert ("AUC" in found) == bool(absent)


def test_every_confidence_that_all_answers_have_gets_its_figures(monkeypatch):
    monkeypatch.setattr("sa2va_hf.evaluation.presence._is_there", lambda item: item.there)
    items = [SimpleNamespace(there=there) for there in (True, False)]
    answers = [Answer("", more={"confidence": 0.5, "object_score": float(item.there), "mask": 1.0}) for item in items]
    found = Presence().summarize(items, answers)
    assert (found["crops"], found["with_target"], found["AUC"]) == (2, 1, 50)
    assert found["object_score"]["AUC"] == 100 and found["object_score"]["calibration_error"] == 0
    assert found["mask"]["Acc@0.5"] == 50
    del answers[0].more["mask"]
    assert "mask" not in Presence().summarize(items, answers)


def test_settings_that_do_not_apply():
    with pytest.raises(ValueError, match="--mode and --baseline do not apply"):
        Presence().record(Settings(mode="teacher"))
