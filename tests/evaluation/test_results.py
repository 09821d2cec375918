"""The results page: every run has its row, and what is published stands beside it; tables and sheets of a run.

Run: pytest tests/evaluation/test_results.py
"""

import json

import pytest
from drawer import PICTURES, SETTINGS, Drawer, given
from records import picture, sample

from sa2va_hf.data.schema import Expression
from sa2va_hf.evaluation import report, results, runner
from sa2va_hf.evaluation.benchmarks import BENCHMARKS, load_items
from sa2va_hf.evaluation.items import Answer
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


def test_worst_and_best_are_of_different_pictures(tmp_path):
    frame, expressions = picture(tmp_path / "a.png"), [Expression("it", [0]), Expression("a ghost", [])]
    records = [sample(f"s{number:02}", frame, expressions=expressions) for number in range(9)]
    items, _ = load_items(given(PICTURES, *records), None, SETTINGS)
    answers = []  # s00/0: 0.00, s00/1: 1.00, s01/0: 0.01, ...: the ghosts are all rightly not seen
    for item in items:
        number = int(item.sample.id[1:])
        answers.append(Answer("", figures={"score": number / 100 if item.targets else 1.0}))
    shown = [item.key for item, _ in report.worst_and_best(items, answers)]
    worst, best = shown[: report.SHOWN], shown[report.SHOWN :]
    assert worst == [f"s{number:02}/0" for number in range(report.SHOWN)]
    assert best[-3:] == ["s06/0", "s07/0", "s08/0"]  # those that mean something and are not among the worst
    assert {key[-1] for key in best[:-3]} == {"1"} and len(best) == report.SHOWN


def test_the_table_has_a_row_for_each_group():
    text = report.table("revos", {"expressions": 3, "referring": {"J&F": 2.0}, "overall": {"J&F": 1.0, "A": 3.126}})
    assert text.splitlines()[2] == "| expressions | 3 |"
    assert text.splitlines()[4:] == [
        "|  | J&F | A |",
        "|---|---|---|",
        "| referring | 2.00 |  |",
        "| overall | 1.00 | 3.13 |",
    ]
    nested = report.table("shapes", {"by_kind": {"a": {"cIoU": 1.0}}})
    assert nested.splitlines() == ["| shapes | cIoU |", "|---|---|", "| a | 1.00 |"]


def test_what_is_no_run_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"cIoU": 1}))
    (tmp_path / "b.json").write_text("[")
    for name in ("a", "b", "none"):
        with pytest.raises(ValueError, match=f"{name}.json: expected a metrics.json"):
            results.page([tmp_path / f"{name}.json"])
