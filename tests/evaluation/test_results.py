"""The results page: every run has its row, and what is published stands beside it.

Run: pytest tests/evaluation/test_results.py
"""

import json

import pytest
from drawer import PICTURES, SETTINGS, Drawer, given
from records import picture, sample

from sa2va_hf.evaluation import report, results, runner
from sa2va_hf.evaluation.benchmarks import BENCHMARKS, load_items
from sa2va_hf.masks import decode


@pytest.fixture
def run(tmp_path):
    """metrics.json of a perfect run under the name of any benchmark."""

    def write(name, folder="a"):
        record = sample("a", picture(tmp_path / "a.png"))
        benchmark = given(PICTURES, record)
        items, rejects = load_items(benchmark, None, SETTINGS)
        drawer, output = Drawer(decode(record.objects[0].masks[0])), tmp_path / folder / "m.json"
        runner.run(name, benchmark, items, rejects, lambda device: drawer, SETTINGS, {"model": folder}, output)
        return output

    return write


def rows(text, heading):
    lines = text.split(f"## {heading}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_a_run_stands_above_the_published_ones(run):
    table = rows(results.page([run("refcoco_testA"), run("refcoco_testA", "b")]), "refcoco_testA")
    assert table[0][:3] == ["model", "cIoU", "gIoU"]
    assert [row[:2] for row in table[1:3]] == [["a", "100.0"], ["b", "100.0"]]
    date, commit = table[1][-2:]
    assert len(date) == 10 and commit == (report.commit() or "") and "generate, 5 frames" in table[1]
    assert ["Sa2VA-InternVL3-8B", "83.3"] in [row[:2] for row in table]
    assert all("split not said" in row[-3] for row in table[3:])
    assert len({len(row) for row in table}) == 1


def test_every_benchmark_has_its_figures_and_only_its_own_numbers(run):
    text = results.page([run(name, name) for name in ("mevis_val_u", "ref_davis17", "shapes")])
    assert ["Sa2VA-InternVL3-14B", "59.2"] in [row[:2] for row in rows(text, "mevis_val_u")]
    assert ["Sa2VA-8B, Sa2VA-i's inference", "79.1"] in [row[:2] for row in rows(text, "ref_davis17")]
    assert len(rows(text, "shapes")) == 2
    assert results.published("grefcoco_val") == results.published("gcg_val") == []
    for name in BENCHMARKS:
        assert results.figures_of(name)
        assert all(figure in results.figures_of(name) for _, figure, *_ in results.published(name))


def test_what_is_no_run_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"cIoU": 1}))
    (tmp_path / "b.json").write_text("[")
    for name in ("a", "b", "none"):
        with pytest.raises(ValueError, match=f"{name}.json: expected a metrics.json"):
            results.page([tmp_path / f"{name}.json"])
