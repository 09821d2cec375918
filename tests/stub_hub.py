"""A Hub on this machine: as much of its HTTP interface as creating, uploading and downloading a repository needs.

Files arrive inside the commit ("regular") or, when they are large ("lfs"), before it. `faults` are answered first:
(part of a path, status) pairs, each used once.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.path, body = unquote(urlsplit(self.path).path), self._body()
        self.server.requests.append((self.command, self.path, body))
        for fault in self.server.faults:
            if fault[0] in self.path:
                self.server.faults.remove(fault)
                return self._json({"error": f"stub answers {fault[1]}"}, fault[1])
        handler = getattr(self, f"on_{self.command.lower()}")
        return handler(body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # ---- uploads ----
    def on_post(self, body):
        hub, content = self.server, json.loads(body) if not self.path.endswith("/commit/main") and body else {}
        if hub.refuses:
            return self._json({"error": "You don't have the rights to create a model under user"}, 403)
        if self.path == "/api/repos/create":
            kind = "datasets/" if content.get("type") == "dataset" else ""
            repo = f"{content.get('organization') or 'user'}/{content['name']}"
            hub.repos.setdefault(kind + repo, {})
            return self._json({"url": f"{hub.address}/{kind}{repo}", "id": repo})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in content["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith(LARGE) else "regular"} for n in names]
            return self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._json({"transfer": "basic", "objects": [self._lfs(item) for item in content["objects"]]})
        if self.path.endswith("/commit/main"):
            return self._commit(body)
        return self._json({"error": f"stub knows no {self.path}"}, 404)

    def _lfs(self, item):
        entry = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in self.server.objects:
            entry["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{item['oid']}"}}
        return entry

    def on_put(self, body):
        oid = self.path.rsplit("/")[-1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._json({})

    def _commit(self, body):
        kind, repo = self._repository("/commit/")
        files = self.server.repos[kind + repo]
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server.objects[entry["value"]["oid"]]
        self.server.commits += 1
        sha = self._sha()
        self._json(
            {"commitUrl": f"{self.server.address}/{kind}{repo}/commit/{sha}", "commitOid": sha, "success": True}
        )

    def _sha(self):
        return f"{self.server.commits:040x}"

    def _repository(self, before):
        """("datasets/" or "", "owner/name") of /api/models/owner/name/... or /api/datasets/owner/name/..."""
        parts = self.path.split(before)[0].strip("/").split("/")
        kind = "datasets/" if "datasets" in parts[:2] else ""
        return kind, "/".join(parts[-2:])

    # ---- downloads ----
    def on_get(self, _):
        if "/resolve/" in self.path:
            return self._file()
        if self.path.startswith(("/api/models/", "/api/datasets/")):
            return self._listing()
        return self._json({"error": f"stub knows no {self.path}"}, 404)

    on_head = on_get

    def _listing(self):
        path = self.path.split("/revision/")[0].split("/tree/")[0]
        kind = "datasets/" if path.startswith("/api/datasets/") else ""
        repo = "/".join(path.split("/")[3:5])
        files = self.server.repos.get(kind + repo)
        if files is None:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in self.path:
            under = "/".join(self.path.split("/tree/")[1].split("/")[1:])
            names = [name for name in sorted(files) if name.startswith(under)]
            if under and not names:
                return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self._json([{"type": "file", "path": n, "size": len(files[n]), "oid": "0" * 40} for n in names])
        siblings = [{"rfilename": name} for name in sorted(files)]
        return self._json({"id": repo, "sha": self._sha(), "siblings": siblings, "tags": [], "private": False})

    def _file(self):
        repo, name = self.path.strip("/").split("/resolve/")
        content = self.server.repos.get(repo, {}).get(name.split("/", 1)[1])
        if content is None:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(content, 200, {"ETag": etag, "X-Repo-Commit": self._sha(), "Accept-Ranges": "bytes"})

    # ---- answers ----
    def _json(self, answer, status=200, headers=None):
        self._send(json.dumps(answer).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def stub_hub():
    """The running server. repos: {"owner/name" or "datasets/owner/name": {file: content}}; requests: all of them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.objects, server.requests, server.faults = {}, {}, [], []
    server.refuses, server.commits = False, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()


def environment(server):
    """What a process needs in its environment to use the stub as the Hub."""
    return {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": "hf_stub",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }


def use(server, monkeypatch):
    """Make this process use the stub as the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    # Newer transformers keep one HfApi per process, with the address at its first use.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    # Older ones call the functions of huggingface_hub, which are bound to one HfApi with the address at its import.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.address)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
