"""The most frequent box of other data as the answer to every question.

Run: pytest tests/evaluation/test_position_baseline.py
"""

import json

import pytest
from records import sample

from sa2va_hf.commands import evaluate as script
from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import Expression, Object
from sa2va_hf.evaluation.items import Item, Settings
from sa2va_hf.evaluation.position_baseline import LEAST, FrequentBoxes, most_frequent

LEFT, RIGHT = (0.0, 0.0, 10.0, 10.0), (20.0, 10.0, 40.0, 30.0)  # of a picture of 40 x 30


def data(*pairs):
    """A sample per (text, box)."""
    made = [(Object([None], [box]), Expression(text, [0])) for text, box in pairs]
    return [sample(str(n), "x", objects=[thing], expressions=[one]) for n, (thing, one) in enumerate(made)]


def asked(text, size=(40, 30)):
    return Item("k", sample("s", "x", size), text)


def test_the_most_frequent_box_overlaps_the_others_most():
    near = [(0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.52), (0.1, 0.1, 0.5, 0.48)]
    assert most_frequent([(0.8, 0.8, 0.9, 0.9), *near[1:], near[0]]) == near[0]


def test_a_phrase_has_its_own_box_where_it_is_frequent():
    often = [("the first to the left of the one at [1, 2, 3, 4]", LEFT)] * LEAST
    samples = data(*often, *[("another", RIGHT)] * 2 * LEAST, *[("rare", LEFT)] * (LEAST - 1))
    everything, by_phrase = FrequentBoxes(samples), FrequentBoxes(samples, by_phrase=True)
    same = asked("The first to the left of the one at [500, 600, 700, 800]")
    assert everything.of_item(same) == RIGHT and by_phrase.of_item(same) == LEFT
    assert by_phrase.of_item(asked("rare")) == by_phrase.of_item(asked("new")) == RIGHT
    assert everything.of_item(asked("new", (80, 60))) == tuple(2 * value for value in RIGHT)
    with pytest.raises(ValueError, match="positions_of: expected expressions with boxes, got none"):
        FrequentBoxes(data(("gone", (0.0, 0.0, 0.0, 0.0))))


def test_the_command_needs_no_model(tmp_path):
    folder, output = str(tmp_path / "arrow"), tmp_path / "m.json"
    prepare("shapes", None, "train", folder, options={"count": 3})
    shapes = ["--benchmark", "shapes", "--option", "count=2", "--option", "clips=1", "--output", str(output)]
    baseline = ["--baseline", "position_of_phrase", "--positions_of", folder, "--device", "cpu", "--batch_size", "4"]
    with pytest.raises(SystemExit, match="positions_of, a prepared dataset, goes with a baseline of position"):
        script.main([*shapes, "--positions_of", folder])
    with pytest.raises(SystemExit, match="--baseline position_of_phrase is of boxes: give --answer_with boxes"):
        script.main([*shapes, *baseline])
    script.main([*shapes, *baseline, "--answer_with", "boxes"])
    result = json.loads(output.read_text())
    assert result["recipe"]["settings"]["positions_of"] == folder and result["metrics"]["read"] == 100
    assert 0 < result["metrics"]["mIoU"] < 100 and (tmp_path / "m.samples.png").is_file()


def test_a_baseline_and_its_data_go_together():
    for wrong in ({"baseline": "position"}, {"positions_of": "x"}, {"baseline": "box", "positions_of": "x"}):
        with pytest.raises(ValueError, match="positions_of, a prepared dataset, goes with a baseline of position"):
            Settings(**wrong)
