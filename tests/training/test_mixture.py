"""The entries of a mixture: evaluation data of a run that never evaluates are not opened.

Run: pytest tests/training/test_mixture.py
"""

import logging

import pytest

from sa2va_hf.arguments import BaseTrainingArguments
from sa2va_hf.mixtures import mixture
from sa2va_hf.training.mixture import entries_to_evaluate


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ({"eval_strategy": "no"}, False),
        ({"eval_strategy": "no", "do_eval": True}, True),
        ({"eval_strategy": "no", "eval_only": True}, True),
        ({"eval_strategy": "epoch"}, True),
    ],
)
def test_evaluation_data_are_opened_where_the_run_evaluates(tmp_path, caplog, settings, used):
    entries = mixture("gone", "eval_data")
    arguments = BaseTrainingArguments(output_dir=str(tmp_path), **settings)
    with caplog.at_level(logging.WARNING):
        assert entries_to_evaluate(entries, arguments) == (entries if used else [])
    assert ("`eval_data` is not used" in caplog.text) is not used
