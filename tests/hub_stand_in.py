"""A hub on this machine: an HTTP server that answers huggingface_hub as the real one does."""

import contextlib
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from local_server import served


class Hub:
    """Data sets {"owner/name": {revision: {path: content}}}, and the requests that were made."""

    def __init__(self):
        self.data_sets, self.gated, self.requests = {}, set(), []
        self.url = ""

    def add(self, name, files, revision="main"):
        self.data_sets.setdefault(name, {})[revision] = {".gitattributes": b"", **files}


def commit_of(name, revision):
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


@contextlib.contextmanager
def serving(monkeypatch, cache):
    """A running hub, at which huggingface_hub looks with `cache` as its local cache."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with served(Handler) as hub.url:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *arguments):
        self.hub.requests.append(self.path)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        # /api/datasets/OWNER/NAME, the same with /revision/REVISION or /tree/REVISION,
        # /datasets/OWNER/NAME/resolve/REVISION/PATH
        is_api = parts[0] == "api"
        if len(parts) < 3 + is_api or parts[is_api] != "datasets":
            return self._fail(404, "EntryNotFound")
        owner, name, *rest = parts[2 if is_api else 1 :]
        action, revision, *path = rest or ["revision", "main"]
        full = f"{owner}/{name}"
        revisions = self.hub.data_sets.get(full)
        if revisions is None:
            return self._fail(404, "RepoNotFound")
        commits = {commit_of(full, known): files for known, files in revisions.items()}
        files = revisions.get(revision, commits.get(revision))
        if files is None:
            return self._fail(404, "RevisionNotFound")
        commit = next(key for key, value in commits.items() if value is files)
        if is_api and action == "tree":
            return self._send(
                json.dumps(
                    [
                        {"type": "file", "path": p, "size": len(c), "oid": _digest(c)}
                        for p, c in files.items()
                    ]
                ).encode()
            )
        if is_api:
            return self._send(json.dumps({"id": full, "sha": commit}).encode())
        path = "/".join(path)
        if full in self.hub.gated:
            return self._fail(403, "GatedRepo")
        if path not in files:
            return self._fail(404, "EntryNotFound")
        content = files[path]
        return self._send(content, {"X-Repo-Commit": commit, "ETag": f'"{_digest(content)}"'})

    def _send(self, content, headers=None):
        self.send_response(200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _fail(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _digest(content):
    return hashlib.sha1(content).hexdigest()
