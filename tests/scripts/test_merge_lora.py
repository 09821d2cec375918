"""merge_lora.py: the folder it writes and the one the Hub gets are the model that was trained.

The Hub is a stub on this machine that keeps what is uploaded.
"""

import base64
import json
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from toy_run import logits, run, tiny_folder

from sa2va_hf import Sa2VAForConditionalGeneration, Sa2VAProcessor

SCRIPT = Path(__file__).parents[2] / "scripts" / "merge_lora.py"


class StubHub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload needs; files arrive inside the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, body))
        if self.server.refuses:
            return self.reply({"error": "You don't have the rights to create a model under user"}, status=403)
        answer = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['Host']}/user/merged", "id": "user/merged"}
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif self.path.endswith("/commit/main"):
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['Host']}/user/merged/commit/1"
            answer = {"commitUrl": address, "commitOid": "1", "success": True}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "user/merged", "siblings": [], "sha": "0"})

    def reply(self, answer, status=200):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubHub)
    server.files, server.requests, server.refuses = {}, [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trainer of a short LoRA run; its folder holds the adapter."""
    model = tiny_folder(str(tmp_path_factory.getbasetemp() / "toy_runs"))
    return run(output_dir=tmp_path_factory.mktemp("run"), model=str(model), max_steps=3, warmup_steps=0)


@pytest.fixture
def merge_lora(hub, trained, tmp_path, monkeypatch):
    """The command, in this process; an upload goes to the stub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    for name, value in {"HF_TOKEN": "hf_stub", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)

    def merge_lora(*arguments):
        words = [SCRIPT, "--checkpoint", trained.args.output_dir, "--output", tmp_path / "merged", *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return merge_lora


def test_what_is_merged_and_uploaded_is_the_model_that_was_trained(merge_lora, hub, trained, tmp_path, capsys):
    merged, fetched = tmp_path / "merged", tmp_path / "fetched"
    merge_lora("--push_to_hub", "user/merged", "--private")
    printed = capsys.readouterr().out
    assert f"merged model written to {merged}" in printed and "uploaded: http://127.0.0.1" in printed
    created = next(json.loads(body) for path, body in hub.requests if path == "/api/repos/create")
    assert created["name"] == "merged"
    assert created.get("private") or created.get("visibility") == "private"  # older and newer huggingface_hub
    assert hub.files == {file.name: file.read_bytes() for file in merged.iterdir()}
    fetched.mkdir()
    for name, content in hub.files.items():
        (fetched / name).write_bytes(content)
    processor = Sa2VAProcessor.from_pretrained(fetched)
    said = logits(Sa2VAForConditionalGeneration.from_pretrained(fetched), processor)
    assert (said - logits(trained.model, processor)).abs().max() < 1e-5


def test_a_hub_that_refuses_is_an_error_and_the_merged_model_stays(merge_lora, hub, tmp_path):
    hub.refuses = True
    with pytest.raises((SystemExit, OSError), match="You don't have the rights"):
        merge_lora("--push_to_hub", "user/merged")
    Sa2VAForConditionalGeneration.from_pretrained(tmp_path / "merged")
