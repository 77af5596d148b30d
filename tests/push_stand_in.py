"""The hub as a push sees it: a local server with the endpoints that huggingface_hub's client calls.

It keeps what arrives and answers as the hub does: a repository is created, the card is validated,
each file is said to be regular or LFS by its name, LFS objects are uploaded and verified by their
hash, and a commit names them all. A commit that names an object that has not arrived is refused.
"""

import base64
import contextlib
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler

from local_server import served

TOKEN = "hf_test"
PERMITTED = "me"


class Hub:
    """Repositories {OWNER/NAME: {path: content}}, the requests made, and how to answer wrongly."""

    def __init__(self):
        self.repositories, self.private, self.commits, self.objects = {}, {}, [], {}
        self.requests, self.fails = [], {}  # fails: {part of a path: status}
        self.url = ""

    def head(self, name):
        counted = sum(commit["name"] == name for commit in self.commits)
        return hashlib.sha1(f"{name} {counted}".encode()).hexdigest()


@contextlib.contextmanager
def serving(monkeypatch, token=TOKEN):
    """A running hub, to which the client is directed with `token`."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with served(Handler) as hub.url:
        direct(monkeypatch, hub.url, token)
        # Xet's client is a program of its own that speaks to another service.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def direct(monkeypatch, url, token=TOKEN):
    """Let the client speak to `url`, with a token or without any."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *arguments):
        self.hub.requests.append(f"{self.command} {self.path}")

    def do_GET(self):
        self._handle(b"")

    def do_POST(self):
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PUT = do_POST

    def _handle(self, body):
        for part, status in self.hub.fails.items():
            if part in self.path:
                return self._send({"error": "as the test asked for"}, status)
        if self.path.startswith("/objects/"):  # a signed address: no token is sent there
            return self._store(self.path.rpartition("/")[2], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send({"error": "Invalid credentials"}, 401)
        for method, pattern, answer in ROUTES:
            if self.command == method and (found := re.fullmatch(pattern, self.path)):
                return answer(self, body, *found.groups())
        return self._send({"error": f"no endpoint {self.command} {self.path}"}, 500)

    def _info(self, body, name):
        if name not in self.hub.repositories:
            return self._send({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": path} for path in [".gitattributes", *self.hub.repositories[name]]]
        return self._send(
            {
                "id": name,
                "sha": self.hub.head(name),
                "private": self.hub.private[name],
                "siblings": files,
            }
        )

    def _create(self, body):
        asked = json.loads(body)
        owner = asked.get("organization") or PERMITTED
        name = f"{owner}/{asked['name']}"
        if owner != PERMITTED:
            return self._send({"error": f"no rights under {owner}"}, 403)
        if name in self.hub.repositories:
            return self._send({"error": "there is one", "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = {}
        self.hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        return self._send({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _validate(self, body):
        import yaml

        content = json.loads(body)["content"]
        told = yaml.safe_load(content.split("---")[1])
        assert isinstance(told, dict)
        return self._send({"errors": [], "warnings": []})

    def _preupload(self, body, name):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        return self._send({"files": files})

    def _batch(self, body, name):
        objects = [
            {
                "oid": each["oid"],
                "size": each["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/objects/{each['oid']}"}},
            }
            for each in json.loads(body)["objects"]
        ]
        return self._send({"transfer": "basic", "objects": objects})

    def _store(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send({"error": "the bytes have another hash"}, 422)
        self.hub.objects[oid] = body
        return self._send({})

    def _commit(self, body, name):
        lines = [json.loads(line) for line in body.splitlines()]
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, self.hub.head(name)):
            return self._send({"error": "the parent is not the head"}, 412)
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._send({"error": "the object has not arrived"}, 400)
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.repositories[name] |= files
        self.hub.commits.append({"name": name, "summary": header["summary"], "files": files})
        oid = self.hub.head(name)
        return self._send({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _send(self, content, status=200, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ROUTES = (
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", _Handler._preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler._batch),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", _Handler._commit),
    ("GET", r"/api/models/([^/?]+/[^/?]+)(?:\?.*)?", _Handler._info),
)
