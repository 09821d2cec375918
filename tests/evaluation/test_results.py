"""The results page: every run has its row, and what is published stands beside it; tables and sheets of a run.

Run: pytest tests/evaluation/test_results.py
"""

import json

import pytest
from drawer import PICTURES, SETTINGS, Drawer, given
from records import picture, sample

from sa2va_hf.data.schema import Expression
from sa2va_hf.evaluation import predictions, report, results, runner
from sa2va_hf.evaluation.benchmarks import BENCHMARKS, load_items
from sa2va_hf.evaluation.items import Answer
from sa2va_hf.masks import decode


@pytest.fixture
def run(tmp_path):
    """metrics.json of a perfect run under the name of any benchmark, as it is or with another recipe."""

    def write(name, folder="a", **more):
        record = sample("a", picture(tmp_path / "a.png"))
        items, rejects = load_items(given(PICTURES, record), None, SETTINGS)
        drawer, output = Drawer(decode(record.objects[0].masks[0])), tmp_path / folder / "m.json"
        recipe = {"model": folder, "split": BENCHMARKS[name].split, "options": dict(BENCHMARKS[name].options)} | more
        own = given(PICTURES, record)
        runner.run(name, own, items, rejects, lambda device: drawer, SETTINGS, recipe, output)
        return output

    return write


def changed(file, folder, **parts):
    """A copy of a metrics.json with other parts, in its own folder."""
    found = json.loads(file.read_text())
    for part, values in parts.items():
        found[part] = found[part] | values if part in ("recipe", "metrics") and isinstance(values, dict) else values
    copy = file.parent.parent / folder / file.name
    copy.parent.mkdir()
    copy.write_text(json.dumps(found))
    return copy


def rows(text, heading, table=0):
    section = text.split(f"## {heading}\n\n")[1].split("\n## ")[0]
    lines = [part for part in section.split("\n\n") if part.startswith("|")][table].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("|---")]


def test_a_run_stands_above_the_published_ones(run):
    table = rows(results.page([run("refcoco_testA"), run("refcoco_testA", "b")]), "refcoco_testA")
    assert table[0][:3] == ["model", "cIoU", "gIoU"]
    assert [row[:2] for row in table[1:3]] == [["a", "100.0"], ["b", "100.0"]]
    date, commit = table[1][-2:]
    assert len(date) == 10 and commit == (report.commit() or "")
    assert ["Sa2VA-InternVL3-8B", "83.3"] in [row[:2] for row in table]
    assert all("split not said" in row[-3] for row in table[3:])
    assert len({len(row) for row in table}) == 1


def test_every_benchmark_has_its_figures_and_only_its_own_numbers(run):
    files = [run(name, name) for name in ("ref_davis17", "shapes", "sav_test")]
    text = results.page([changed(run("mevis_val_u", "b"), "c", recipe={"items": 793}), *files])
    u, davis, sav = (rows(text, name) for name in ("mevis_val_u", "ref_davis17", "sav_test"))
    assert ["Sa2VA-InternVL3-14B", "59.2"] in [row[:2] for row in u]
    assert {row[0]: row[-3] for row in u[2:]}["Sa2VA-8B"] == "model card, split not said"  # the others say val_u
    assert u[1][-3] == "5 frames"
    assert ["Sa2VA-i-8B", "79.1"] in [row[:2] for row in davis]
    assert [row[1] for row in davis if row[0] == "Sa2VA-8B"] == ["75.2", "75.9"]
    assert ["SAM 2.1 large", "79.5"] in [row[:2] for row in sav]
    assert len(rows(text, "shapes")) == 2
    assert ("Sa2VA-8B", "overall / J&F", 57.6, "model card") in results.published("revos")
    assert results.published("grefcoco_val") == results.published("gcg_val") == results.published("sav_val") == []
    families = {name.rsplit("_", 1)[0] for name in BENCHMARKS}
    for table in (results.FIGURES, results.CARD_COLUMNS, results.REREAD_COLUMN):
        assert set(table) <= BENCHMARKS.keys() | families
    for name in BENCHMARKS:
        assert all(figure in results.figures_of(name) for _, figure, *_ in results.published(name))


def test_what_is_no_whole_run_of_the_protocol_stands_apart(run):
    whole = run("refcoco_val", "whole")
    recipe = json.loads(whole.read_text())["recipe"]

    def with_settings(**settings):
        return {"recipe": {"settings": recipe["settings"] | settings}}

    cases = {
        "the first 50 items only": {"recipe": {"limit": 50}},
        "mode teacher": with_settings(mode="teacher"),
        "baseline box": with_settings(baseline="box"),
        "split testA": {"recipe": {"split": "testA"}},
        "text raw": {"recipe": {"options": {"text": "raw"}}},
        "without text": {"recipe": {"options": {}}},
        "1 records skipped": {"rejects": [{"id": "a", "reason": "bad", "file": "f"}]},
        "not known how it was asked": {"asked": predictions.UNKNOWN},
        "split val2": {"recipe": {"scored": {"split": "val2"}}},
    }
    files = [changed(whole, f"other {number}", **parts) for number, parts in enumerate(cases.values())]
    text = results.page([whole, *files])
    assert text.index(results.OTHERS) > text.index("Sa2VA-InternVL3-8B")
    beside, apart = rows(text, "refcoco_val"), rows(text, "refcoco_val", 1)
    assert [row[0] for row in beside[1:3]] == ["whole", "Sa2VA-1B"]
    assert [row[-3] for row in apart[1:]] == list(cases)
    assert not any(row[0].startswith("Sa2VA") for row in apart)
    second = changed(run("mevis_val_u", "v"), "v2", recipe={"items": 907})
    (apart,) = rows(results.page([second]), "mevis_val_u", 1)[1:]
    assert apart[-3] == "907 expressions (of the published data: 793), 5 frames"
    moved = changed(whole, "moved", recipe={"options": {"text": "sent", "images": "/data/train2014"}})
    assert results.OTHERS not in results.page([moved])  # pictures that lie elsewhere are the same pictures


def test_tables_keep_their_columns(run):
    odd = changed(run("shapes"), "odd", recipe={"model": "a|b"}, metrics={"cIoU": None, "gIoU": "x"})
    table = rows(results.page([odd]), "shapes")
    assert table[1][:3] == ["a\\|b", "", ""] and len(table[1]) == len(table[0])
    unknown = changed(run("shapes", "c"), "d", recipe={"model": None})
    assert rows(results.page([unknown]), "shapes")[1][0] == "not said"


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


def test_what_is_no_run_is_an_error(run, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"cIoU": 1}))
    (tmp_path / "b.json").write_text("[")
    (tmp_path / "c.json").write_text("[]")
    for name in ("a", "b", "c", "none"):
        with pytest.raises(ValueError, match=f"{name}.json: expected a {name}.json of scripts/evaluate.py"):
            results.page([tmp_path / f"{name}.json"])
    good = run("shapes")
    for number, (parts, message) in enumerate(
        (
            ({"metrics": [1]}, "'metrics' must be a dict"),
            ({"benchmark": "refcoc"}, "unknown benchmark 'refcoc'"),
            ({"recipe": {"settings": "teacher"}}, "m.json: its recipe is not as"),
        )
    ):
        with pytest.raises(ValueError, match=message) as error:
            results.page([changed(good, f"bad {number}", **parts)])
        assert f"bad {number}/m.json" in str(error.value) and "\n" not in str(error.value)
    good.with_name("m.run.json").write_text("{")
    with pytest.raises(ValueError, match="m.run.json: expected a m.run.json"):
        results.page([good])
