"""The same files whoever answers what, interrupted or not; predictions that do not fit are named.

Run: pytest tests/evaluation/test_runner.py      (-m slow: real processes, killed and started again)
"""

import json
import runpy
import sys
import time
from pathlib import Path

import datasets
import forks
import numpy as np
import pyarrow as pa
import pytest
from drawer import PICTURES, SETTINGS, Drawer, given
from records import clip, picture, sample

from sa2va_hf.evaluation import predictions, runner
from sa2va_hf.evaluation.benchmarks import load_items
from sa2va_hf.evaluation.items import Settings, cost

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate.py"
MASK = np.zeros((30, 40), bool)
MASK[2:9, 5:11] = True


class Interrupted(Exception):
    pass


class Breaking(Drawer):
    """Is switched off after a number of questions."""

    def __init__(self, after):
        super().__init__(MASK)
        self.after = after

    def __call__(self, **given):
        if len(self.asked) >= self.after:
            raise Interrupted
        return super().__call__(**given)


@pytest.fixture
def benchmark(tmp_path):
    frame = picture(tmp_path / "a.png")
    return given(PICTURES, *(sample(f"s{number}", frame) for number in range(7)), clip("c", [frame] * 2))


def evaluate(benchmark, predictor, output, settings=SETTINGS, **options):
    items, rejects = load_items(benchmark, None, settings)
    return runner.run(
        "given", benchmark, items, rejects, lambda device: predictor, settings, {"model": "m"}, output, **options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "m.run.json"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_interrupted_run_goes_on_and_writes_the_same(benchmark, tmp_path, batch_size):
    whole = Drawer(MASK)
    evaluate(benchmark, whole, tmp_path / "whole" / "m.json", batch_size=batch_size)
    parts = []
    for after in (2, 3, 99):
        parts.append(Breaking(after))
        try:
            evaluate(benchmark, parts[-1], tmp_path / "parts" / "m.json", batch_size=batch_size)
        except Interrupted:
            with next((tmp_path / "parts" / "m.parts").glob("*.jsonl")).open("a") as file:
                file.write('{"key": "s0/0", "answ')  # cut off while it was written
    assert sum(len(part.asked) for part in parts) == len(whole.asked) == 8  # nothing was asked twice
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert set(contents(tmp_path / "whole")) == {"m.json", "m.md", "m.predictions.arrow", "m.samples.png"}


def test_another_run_is_not_continued(benchmark, tmp_path):
    with pytest.raises(Interrupted):
        evaluate(benchmark, Breaking(2), tmp_path / "m.json")
    with pytest.raises(ValueError, match=r"m.parts is of another run \(settings differ\)"):
        evaluate(benchmark, Drawer(MASK), tmp_path / "m.json", Settings(mode="teacher"))
    with pytest.raises(ValueError, match=r"\(weights differ\): remove it"):
        evaluate(benchmark, Drawer(MASK), tmp_path / "m.json", weights=[("model.safetensors", 1, 2)])
    with pytest.raises(ValueError, match="expected a file NAME.json"):
        evaluate(benchmark, Drawer(MASK), tmp_path / "m.txt")


def test_a_run_that_answered_nothing_is_in_nobodys_way(benchmark, tmp_path):
    with pytest.raises(Interrupted):  # as when the model was misspelt
        evaluate(benchmark, Breaking(0), tmp_path / "m.json")
    assert evaluate(benchmark, Drawer(MASK), tmp_path / "m.json", Settings(mode="teacher"))


def test_files_that_changed_are_other_weights(tmp_path):
    assert runner.weights_of("no-such-folder") == []
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = runner.weights_of(tmp_path)
    assert before == runner.weights_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert before != runner.weights_of(tmp_path)


def test_predictions_are_rows_of_arrow_and_can_be_scored_again(benchmark, tmp_path):
    result = evaluate(benchmark, Drawer(MASK), tmp_path / "m.json")
    rows = datasets.Dataset.from_file(str(tmp_path / "m.predictions.arrow"))
    assert rows["key"][:2] == ["s0/0", "s1/0"] and rows[7]["masks"][0][1]["size"] == [30, 40]
    items, rejects = load_items(benchmark, None, SETTINGS)
    given = ("given", benchmark, items, rejects, tmp_path / "m.predictions.arrow", SETTINGS, result["recipe"])
    runner.rescore(*given, tmp_path / "again" / "m.json")
    again = contents(tmp_path / "again")
    assert again == {name: content for name, content in contents_of_run(tmp_path).items()}


def contents_of_run(folder):
    names = ("m.json", "m.md", "m.predictions.arrow", "m.samples.png")
    return {name: (folder / name).read_bytes() for name in names}


def changed(tmp_path, change, keep_note=True, schema=None):
    """The rows of m.predictions.arrow as `change` makes them."""
    with pa.memory_map(str(tmp_path / "m.predictions.arrow")) as file:
        stream = pa.ipc.open_stream(file)
        schema = schema or (stream.schema if keep_note else predictions.SCHEMA)
        rows = change(stream.read_all().to_pylist())
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return tmp_path / "other.arrow"


def rescore(benchmark, file, output, settings=SETTINGS, name="given", **recipe):
    items, rejects = load_items(benchmark, None, settings)
    return runner.rescore(name, benchmark, items, rejects, file, settings, recipe, output)


def resized(rows):
    rows[3]["masks"] = [[{"size": [3, 4], "counts": "<"}]]
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:3] + rows[4:], "other.arrow: predictions do not fit the benchmark; 1 missing: s3/0"),
        (lambda rows: [*rows, rows[0] | {"key": "s9/0"}], "1 unknown: s9/0"),
        (lambda rows: [*rows, rows[0]], "expected one prediction of 's0/0', got two"),
        (resized, r"s3/0: expected a mask of \[30, 40\] \(height, width\), got \[3, 4\]"),
        (
            lambda rows: rows[:7] + [rows[7] | {"masks": [rows[0]["masks"][0][:0]]}],
            "c/0: expected .* frame 0, got 0",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_named(benchmark, tmp_path, change, message):
    evaluate(benchmark, Drawer(MASK), tmp_path / "m.json")
    file = changed(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        rescore(benchmark, file, tmp_path / "n.json")
    (tmp_path / "none.arrow").write_text("no")
    with pytest.raises(ValueError, match="none.arrow: expected predictions"):
        predictions.read_predictions(tmp_path / "none.arrow")


# ---------------------------------------------------------------- what predictions say of themselves


def test_what_was_asked_is_what_the_predictions_say(benchmark, tmp_path):
    """Not what the settings of today would ask: the prompts and the recipe are those of the run that answered."""
    asked = Settings(mode="teacher", num_frames=3)
    made = evaluate(benchmark, Drawer(MASK), tmp_path / "m.json", asked)
    note = predictions.read_note(tmp_path / "m.predictions.arrow")
    assert (note.benchmark, note.recipe, note.asked) == ("given", made["recipe"], made["asked"])
    assert predictions.settings_of(note, "m") == asked
    elsewhere = {"root": "elsewhere", "split": "val", "options": {}}
    again = rescore(benchmark, tmp_path / "m.predictions.arrow", tmp_path / "n.json", model=None, **elsewhere)
    assert again["asked"] == made["asked"] == {"prompts": PICTURES.record(asked)["prompts"], "answer": "Sure, [SEG]."}
    assert again["recipe"] == made["recipe"] | {"scored": elsewhere}
    back = rescore(benchmark, tmp_path / "n.predictions.arrow", tmp_path / "o.json")
    assert back == made
    assert json.loads((tmp_path / "o.run.json").read_text())["predictions"] == str(tmp_path / "n.predictions.arrow")


def another_question(rows):
    for row in rows[2:4]:
        row["question"] = "<image>\nWhat is it?"
    return rows


def test_predictions_of_another_benchmark_or_to_other_questions_are_refused(benchmark, tmp_path):
    evaluate(benchmark, Drawer(MASK), tmp_path / "m.json")
    with pytest.raises(ValueError, match="arrow: expected predictions of the benchmark x, got those of given"):
        rescore(benchmark, tmp_path / "m.predictions.arrow", tmp_path / "n.json", name="x")
    file = changed(tmp_path, another_question)
    with pytest.raises(ValueError, match=r"other.arrow: its questions .* is s2/0: expected '.*, got '.*What is it\?'"):
        rescore(benchmark, file, tmp_path / "n.json")
    broken = predictions.SCHEMA.with_metadata({predictions.NOTE: '{"benchmark": 1}'})
    file = changed(tmp_path, lambda rows: rows, schema=broken)
    with pytest.raises(ValueError, match="other.arrow: its note is not in the form"):
        rescore(benchmark, file, tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()


def test_of_predictions_without_a_note_it_is_not_known_how_they_were_asked(benchmark, tmp_path):
    evaluate(benchmark, Drawer(MASK), tmp_path / "m.json")
    file = changed(tmp_path, another_question, keep_note=False)
    found = rescore(benchmark, file, tmp_path / "n.json", model=None)
    assert found["asked"] == {"unknown": "the predictions do not say how they were asked"}
    assert "settings" not in found["recipe"]
    rows = datasets.Dataset.from_file(str(tmp_path / "n.predictions.arrow"))
    assert rows["question"][2] == "<image>\nWhat is it?"  # theirs stays
    assert predictions.read_note(tmp_path / "n.predictions.arrow") is None


def test_a_part_that_was_asked_is_said_to_be_one(benchmark, tmp_path):
    items, rejects = load_items(benchmark, None, SETTINGS, limit=3)
    how = (lambda device: Drawer(MASK), SETTINGS, {"limit": 3}, tmp_path / "m.json")
    runner.run("given", benchmark, items, rejects, *how)
    with pytest.raises(ValueError, match=r"m.predictions.arrow \(made with --limit 3\): .* 5 missing: s3/0"):
        rescore(benchmark, tmp_path / "m.predictions.arrow", tmp_path / "n.json")


def test_batches_are_of_a_kind_and_work_is_shared_by_cost(benchmark):
    items, _ = load_items(benchmark, None, SETTINGS)
    batches = runner.make_batches(items, 3)
    assert [len(batch) for batch in batches] == [3, 3, 1, 1]  # the clip is alone
    assert cost([items[0], items[1]]) == 100 + 2 * len(items[0].question)  # they look at one picture
    assert runner.share([[0], [1], [2], [3]], [5, 9, 4, 3], 2) == [[[1], [3]], [[0], [2]]]
    assert runner.share([[0]], [1], 3) == [[[0]], [], []]


def test_questions_about_one_picture_are_asked_together(tmp_path):
    class Seeing(Drawer):
        def __init__(self):
            super().__init__(MASK)
            self.seen = []

        def __call__(self, **given):
            self.seen.append(len({id(one) for one in given.get("image") or given["video"]}))
            return super().__call__(**given)

    shown = [picture(tmp_path / f"{number}.png") for number in range(3)]
    records = [sample(f"s{number}", shown[number % 3]) for number in range(6)]
    records += [clip(f"c{number}", [shown[number // 2]] * 2) for number in (0, 2, 1)]
    items, _ = load_items(given(PICTURES, *records), None, SETTINGS)
    batches = runner.make_batches(items, 2)
    found = [[items[number].sample.id for number in batch] for batch in batches]
    assert found == [["s0", "s3"], ["s1", "s4"], ["s2", "s5"], ["c0", "c1"], ["c2"]]
    seeing = Seeing()
    evaluate(given(PICTURES, *records), seeing, tmp_path / "m.json", batch_size=2)
    assert seeing.seen == [1] * 5


# ---------------------------------------------------------------- real processes


def command(output):
    data = ["--benchmark", "shapes", "--option", "count=1", "--option", "clips=1", "--limit", "9"]
    options = ["--device", "cpu", "--max_new_tokens", "12", "--output", str(output)]
    return [str(SCRIPT), "--model", "shapes-tiny", *data, *options]


@pytest.mark.slow
def test_one_process_two_and_a_killed_one_write_the_same_files(tmp_path):
    one, two, killed = (tmp_path / name / "m.json" for name in ("one", "two", "killed"))
    assert (found := forks.run(command(one))).returncode == 0, found.stderr[-2000:]
    found = forks.run(command(two), 2)
    assert two.is_file(), found.stderr[-2000:]  # gloo may abort at exit, when all is written
    process = forks.start(command(killed), "/dev/null", "/dev/null")
    parts = tmp_path / "killed" / "m.parts" / "00000.jsonl"
    while process.exitcode is None and not (parts.is_file() and parts.read_text().count("\n") >= 3):
        time.sleep(0.05)
    forks.kill(process)
    assert not killed.exists()
    found = forks.run(command(killed), 2)  # by other ones than began it
    assert killed.is_file(), found.stderr[-2000:]
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "killed")
    assert json.loads((tmp_path / "two" / "m.run.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "refcoco"], "expected one of refcoco_val, refcoco_testA, refcoco_testB"),
        (["--benchmark", "refcoco_val"], "--root: expected the folder of the benchmark's data, got none"),
        (["--benchmark", "refcoco_val", "--root", "/nowhere"], "--root /nowhere: expected an existing folder"),
        (["--benchmark", "shapes", "--option", "count"], "--option expects KEY=VALUE"),
        (["--benchmark", "shapes", "--option", "count=["], "--option count=["),
        (["--benchmark", "shapes", "--option", "size=many"], "options of shapes: "),
        (
            ["--benchmark", "shapes", "--option", "count=1", "--limit", "1", "--model", "no-such-model"],
            "--model no-such-model: it is no folder, no bundled model, and no Hub repository that opens: ",
        ),
        (["--benchmark", "shapes", "--option", "colour=red"], "options of shapes: colour: expected some of "),
        (["--benchmark", "refcoco_val", "--output", "m.txt"], "--output: expected a file NAME.json, got m.txt"),
        (["--benchmark", "vstar_bench", "--root", "/nowhere", "--mode", "teacher"], "do not apply"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), "--model", "shapes-tiny", "--output", str(tmp_path / "m.json"), *arguments]
    )
    with pytest.raises(SystemExit, match="error: ") as raised:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert message in str(raised.value)
    assert not (tmp_path / "m.json").exists()


def test_leaving_out_everything_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "direct_attributes").mkdir()
    (tmp_path / "direct_attributes" / "a.json").write_text('{"question": "Which?"}')
    arguments = ["--model", "shapes-tiny", "--benchmark", "vstar_bench", "--root", str(tmp_path), "--skip_bad"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit, match="none of 1 records can be used, a.json has no 'options'"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit: expected a whole number from 1 on, got '0'"),
        (["--batch_size", "-1"], "--batch_size: expected a whole number"),
        (["--dtype", "float31"], "--dtype: invalid choice: 'float31'"),
        (["--video_mode", "backwards"], "--video_mode: invalid choice: 'backwards'"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model", "m", "--benchmark", "shapes", *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert message in capsys.readouterr().err
