"""Our own schema read back: from a prepared folder, from parquet and Arrow files, from the Hub.

Run: pytest tests/data/sources/test_prepared.py      (the Hub is a stub on this machine)
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest

from sa2va_hf.data.prepare.run import prepare
from sa2va_hf.data.schema import FEATURES, Reject, Sample, to_row, validate
from sa2va_hf.data.sources import SOURCES

SHAPES = {"count": 4, "size": 48, "clip_fraction": 0.5, "num_frames": 4}
PATIENCE = 240  # seconds: another process imports everything anew


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def samples():
    return list(SOURCES["shapes"](None, "train", **SHAPES))


@pytest.fixture(scope="module")
def rows(samples):
    return datasets.Dataset.from_list([to_row(sample) for sample in samples], features=FEATURES)


def read(root=None, split="train", **options):
    records = list(SOURCES["prepared"](root, split, **options))
    for record in records:
        if isinstance(record, Sample):
            validate(record)
    return records


def test_a_prepared_folder_gives_back_its_samples_and_prepares_to_the_same(tmp_path, samples):
    first = prepare("shapes", None, "train", tmp_path / "a", options=SHAPES)
    assert read(tmp_path / "a") == samples
    again = prepare("prepared", tmp_path / "a", "train", tmp_path / "b")
    assert list(again.shards.values()) == list(first.shards.values())  # sha256


def test_folders_of_save_to_disk(tmp_path, samples, rows):
    rows.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one", "whatever") == samples  # it does not say which split it is
    splits = {"train": rows.select([0, 1]), "val": rows.select([2, 3])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "splits", "val") == samples[2:]
    with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
        read(tmp_path / "splits", "test")
    prepare("shapes", None, "train", tmp_path / "a", options=SHAPES)
    with pytest.raises(ValueError, match="has no split 'val'; it has train"):
        read(tmp_path / "a", "val")


def test_parquet_files_by_split(tmp_path, samples, rows):
    (tmp_path / "data").mkdir()
    rows.select([0, 1, 2]).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    rows.select([3]).to_parquet(tmp_path / "data/val-00000-of-00001.parquet")
    assert read(tmp_path) == samples[:3]
    assert read(tmp_path, "val") == samples[3:]
    with pytest.raises(ValueError, match="split 'testA' cannot be opened: .*testA"):
        read(tmp_path, "testA")


def test_an_arrow_file_alone(tmp_path, samples, rows):
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "bare").mkdir()
    os.rename(next((tmp_path / "saved").glob("*.arrow")), tmp_path / "bare/rows.arrow")
    assert read(tmp_path / "bare") == samples


def test_columns_of_another_schema_are_named(tmp_path, rows):
    other = rows.remove_columns(["expressions", "num_masks"]).cast_column("width", datasets.Value("int64"))
    other.add_column("licence", ["CC0"] * 4).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError) as error:
        read(tmp_path / "other")
    assert "other is not of this schema (schema.FEATURES): 'width' is Value('int64')" in str(error.value)
    assert "'expressions' is missing" in str(error.value) and "num_masks' is" not in str(error.value)
    assert "It has the columns id, " in str(error.value)


def test_more_columns_and_no_derived_ones_do_not_matter(tmp_path, samples, rows):
    rows.remove_columns(["num_masks"]).add_column("licence", ["CC0"] * 4).save_to_disk(str(tmp_path / "more"))
    assert read(tmp_path / "more") == samples


def test_a_row_with_nulls_is_rejected_and_the_others_stay(tmp_path, samples, rows):
    broken = [to_row(sample) for sample in samples]
    broken[1]["frames"] = None
    broken[2]["expressions"] = None
    datasets.Dataset.from_list(broken, features=FEATURES).save_to_disk(str(tmp_path / "broken"))
    first, *rejects, last = read(tmp_path / "broken")
    assert [first, last] == [samples[0], samples[3]]
    assert [reject.id for reject in rejects] == [sample.id for sample in samples[1:3]]
    assert all(isinstance(one, Reject) and "it is not a row of this schema" in one.reason for one in rejects)


def test_what_is_not_a_dataset(tmp_path):
    with pytest.raises(ValueError, match="must be a folder of datasets.save_to_disk, .* it has neither"):
        read(tmp_path)
    with pytest.raises(ValueError, match="give either a root folder or the option repo_id, got None and None"):
        read()
    with pytest.raises(ValueError, match="give either a root folder or the option repo_id"):
        read(tmp_path, repo_id="me/mine")
    with pytest.raises(ValueError, match="revision is of a dataset on the Hub"):
        read(tmp_path, revision="main")
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be opened"):
        read(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="split 'train' cannot be opened"):
        read(tmp_path / "bad")


# ---------------------------------------------------------------- the Hub


class StubHub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: one dataset of one parquet file."""

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(json.dumps([self.entry()]).encode() if "paths-info" in self.path else b"{}")

    def answer(self):
        path, place = self.path.split("?")[0], "/datasets/user/mine"
        self.server.asked.append(path)
        if path.startswith(f"/api{place}/tree/"):
            self.reply(json.dumps([self.entry()]).encode())
        elif path in (f"/api{place}", *(f"/api{place}/revision/{one}" for one in ("v1", self.server.commit))):
            files = [{"rfilename": self.server.file}]
            info = {"id": "user/mine", "sha": self.server.commit, "siblings": files, "private": False, "tags": []}
            self.reply(json.dumps(info | {"downloads": 0, "likes": 0, "disabled": False, "gated": False}).encode())
        elif path.startswith(place) and path.endswith(self.server.file):
            self.reply(self.server.content, "application/octet-stream")
        else:
            self.reply(b'{"error": "Repository not found"}', status=404)

    def entry(self):
        return {"type": "file", "path": self.server.file, "size": len(self.server.content), "oid": "1" * 40}

    def reply(self, content, kind="application/json", status=200):
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(content),
            "ETag": '"1"',
            "X-Repo-Commit": self.server.commit,
        }
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound" if "user/mine" not in self.path else "EntryNotFound"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, rows):
    rows.to_parquet(tmp_path / "train.parquet")
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubHub)
    server.content, server.file = (tmp_path / "train.parquet").read_bytes(), "train-00000-of-00001.parquet"
    server.commit, server.asked = "c" * 40, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.mark.slow
def test_a_dataset_of_the_hub(hub, tmp_path, samples):
    """In a process of its own, since the Hub's address is read at import."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    script = (
        "import sys; from sa2va_hf.data.prepare import prepare\n"
        "done = prepare('prepared', None, 'train', sys.argv[1], options={'repo_id': 'user/mine', 'revision': 'v1'})\n"
        "print(done.samples)\n"
        "try:\n    prepare('prepared', None, 'train', sys.argv[1] + '2', options={'repo_id': 'user/gone'})\n"
        "except ValueError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "arrow")]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=root)
    assert done.returncode == 0, (done.stderr[-3000:], hub.asked)
    count, error = done.stdout.strip().split("\n")[:2]
    assert count == "4" and error.startswith("user/gone: split 'train' cannot be opened")
    assert read(tmp_path / "arrow") == samples
    assert any(f"/revision/{hub.commit}" in path or "/revision/v1" in path for path in hub.asked)
