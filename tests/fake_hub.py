"""A server that answers as the Hugging Face Hub does to `huggingface_hub`, and fails as it does on request.

It keeps repositories in memory: branches, commits, files, and the large files that go by way of LFS. Requests are kept
in `requests`; a request that it does not know is answered with 501, so that no test passes for lack of an endpoint.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

# Made up here, and shaped as the Hub's are.
TOKEN = "hf_" + "fake" * 8
READ_TOKEN = "hf_" + "read" * 8
# The Hub takes smaller files without LFS where they are text.
LFS_BYTES = 100_000
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".png")


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a commit."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        blob = b"blob %d\0" % len(self.content) + self.content
        return self.sha256 if self.is_lfs else hashlib.sha1(blob).hexdigest()


_NUMBERS = itertools.count()


@dataclasses.dataclass
class Repo:
    """One repository: each commit holds all files, and branches name commits."""

    private: bool = False
    commits: dict[str, dict[str, File]] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        self.messages.append(message)
        # As with git, where the time goes in: no two commits share their hash.
        sha = hashlib.sha1(f"{next(_NUMBERS)}{message}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    @property
    def files(self) -> dict[str, File]:
        """What `main` holds."""
        return self.commits[self.branches["main"]]


class FakeHub(ThreadingHTTPServer):
    """The server and its state, shared by its threads."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users = {TOKEN: "write", READ_TOKEN: "read"}
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.put_headers: list[dict[str, str]] = []
        self.full = False
        # Routes, by the name of their method, at which the connection breaks before anything is done, or after all was.
        self.cut: set[str] = set()
        self.cut_answer: set[str] = set()
        self.fail: dict[str, tuple[int, str]] = {}
        self.before: dict[str, Callable[[], None]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # Where large files are kept: to clients another host, as the Hub's is, which is told no token.
        self.store = self.url.replace("127.0.0.1", "localhost")
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()

    def mend(self) -> None:
        """Fail no more."""
        self.full = False
        for trouble in (self.cut, self.cut_answer, self.fail, self.before):
            trouble.clear()

    def add_repo(self, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """Put a repository there, as if somebody had pushed it."""
        repo = self.repos[repo_id] = Repo(private)
        kept = {name: File(content, name.endswith(LFS_SUFFIXES)) for name, content in files.items()}
        repo.commit("main", kept, "initial commit")
        return repo

    def count(self, method: str, pattern: str) -> int:
        """Return how many requests there were of a method to paths that match."""
        return sum(m == method and re.search(pattern, path) is not None for m, path in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: connections cut on request are part of the tests."""


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+|[\w.-]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<branch>.+)", "branch"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/models/{_REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/upload/(?P<oid>\w+)", "upload"),
    ("POST", r"/lfs/verify", "verify"),
    ("GET", r"/lfs/(?P<oid>\w+)", "download"),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
# What only a token that may write is let do.
_WRITING = ("create", "branch", "preupload", "commit", "batch")


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    # The route that is being answered.
    answering = ""

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.requests.append((self.command, unquote(parts.path)))
        method = {"HEAD": "GET"}.get(self.command, self.command)
        for verb, pattern, name in _ROUTES:
            # Revisions are quoted once more where they hold a slash.
            if verb == method and (match := re.fullmatch(pattern, parts.path)):
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return self._answer(name, values)
        self._body()
        return self._send_json({"error": f"the fake does not know {self.command} {parts.path}"}, 501)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  (called by the server by these names)

    def _answer(self, name: str, values: dict[str, str]) -> None:
        fake, self.answering = self.server, name
        if name in fake.cut:
            self.rfile.read(1000 if name == "upload" else 0)
            return self._cut()
        if name in fake.before:
            fake.before.pop(name)()
        role = fake.users.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        failure = fake.fail.get(name)
        if name in _WRITING and role != "write":
            failure = (403, "You may not write") if role else (401, "Invalid credentials in Authorization header")
        if failure is not None:
            self._body()
            return self._send_json({"error": failure[1]}, failure[0])
        if (new := fake.renamed.get(values.get("repo", ""))) is not None:
            self._body()
            return self._send(b"", 307, {"Location": f"{fake.url}{self.path.replace(values['repo'], new)}"})
        if "repo" in values and name != "batch":
            repo = fake.repos.get(values.pop("repo"))
            revision = values.pop("revision", "main")
            if repo is None or (repo.private and role is None):
                return self._send_json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            sha = repo.branches.get(revision) or revision
            if sha not in repo.commits:
                return self._send_json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return getattr(self, f"_{name}")(repo, revision, sha, **values)
        values.pop("repo", None)
        return getattr(self, f"_{name}")(**values)

    # What is there

    def _info(self, repo: Repo, revision: str, sha: str) -> None:
        files = repo.commits[sha]
        name = self._name(repo)
        info: dict[str, Any] = {"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": []}
        info["siblings"] = [{"rfilename": name} for name in sorted(files)]
        if "README.md" in files:
            info["cardData"] = _read_card(files["README.md"].content.decode())
        self._send_json(info)

    def _name(self, repo: Repo) -> str:
        return next(name for name, known in self.server.repos.items() if known is repo)

    def _tree(self, repo: Repo, revision: str, sha: str, path: str = "") -> None:
        rows = [
            {"type": "file", "path": name, "size": len(file.content), "oid": file.etag}
            for name, file in sorted(repo.commits[sha].items())
            if not path or name.startswith(f"{path}/")
        ]
        if path and not rows:
            return self._send_json({"error": f"{path} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self._send_json(rows)

    def _resolve(self, repo: Repo, revision: str, sha: str, path: str) -> None:
        commit = {"X-Repo-Commit": sha}
        if (file := repo.commits[sha].get(path)) is None:
            return self._send_json({"error": "Entry not found"}, 404, {**commit, "X-Error-Code": "EntryNotFound"})
        if not file.is_lfs:
            return self._send(file.content, headers={**commit, "ETag": f'"{file.etag}"'})
        # As the Hub sends readers on to its content network.
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        self.server.objects[file.sha256] = file.content
        return self._send(b"", 302, {**commit, **linked, "Location": f"{self.server.store}/lfs/{file.sha256}"})

    def _download(self, oid: str) -> None:
        self._send(self.server.objects[oid], headers={"ETag": f'"{oid}"'})

    # How it gets there

    def _create(self) -> None:
        body = json.loads(self._body())
        repo_id = f"{body.get('organization') or 'me'}/{body['name']}"
        if repo_id.partition("/")[0] not in ("me", "my-org"):
            return self._send_json({"error": "You don't have the rights to create a model"}, 403)
        found = {"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in (*self.server.repos, *self.server.renamed):
            return self._send_json({"error": "You already created this model repo", **found}, 409)
        private = body.get("visibility") == "private"
        self.server.add_repo(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return self._send_json(found)

    def _validate(self) -> None:
        errors = []
        try:
            card = _read_card(json.loads(self._body())["content"])
        except (yaml.YAMLError, ValueError) as error:
            errors.append({"message": str(error)})
        else:
            if card.get("license") not in ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "unknown", "other", None):
                errors.append({"message": '"license" must be one of the known licenses'})
            for entry in card.get("model-index", []):
                for result in entry["results"]:
                    if not all({"type", "value"} <= set(metric) for metric in result["metrics"]):
                        errors.append({"message": '"model-index" is malformed'})
        self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, repo: Repo, revision: str, sha: str, branch: str) -> None:
        start = json.loads(self._body())["startingPoint"]
        if branch in repo.branches:
            return self._send_json({"error": "Reference already exists"}, 409)
        repo.branches[branch] = start
        return self._send_json({})

    def _preupload(self, repo: Repo, revision: str, sha: str) -> None:
        answer = []
        for file in json.loads(self._body())["files"]:
            there = repo.commits[sha].get(file["path"])
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES
            mode = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            answer.append({**mode, "oid": there.etag if there else None})
        self._send_json({"files": answer})

    def _batch(self) -> None:
        objects = []
        for wanted in json.loads(self._body())["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if self.server.full:
                answer["error"] = {"code": 507, "message": "The storage quota is used up"}
            elif wanted["oid"] not in self.server.objects:
                upload = {"href": f"{self.server.store}/lfs/upload/{wanted['oid']}?signature=secret", "header": {}}
                verify = {"href": f"{self.server.url}/lfs/verify", "header": {}}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        self.server.put_headers.append({name.lower(): value for name, value in self.headers.items()})
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self._send_json({"error": "The content is not what was announced"}, 422)
        self.server.objects[oid] = content
        return self._send(b"")

    def _verify(self) -> None:
        body = json.loads(self._body())
        self._send_json({}, 200 if body["oid"] in self.server.objects else 404)

    def _commit(self, repo: Repo, revision: str, sha: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        header, files = lines[0]["value"], dict(repo.commits[sha])
        if header.get("parentCommit") not in (None, sha):
            return self._send_json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            else:
                files[value["path"]] = File(self.server.objects[value["oid"]], is_lfs=True)
        oid = repo.commit(revision, files, header["summary"])
        url = f"{self.server.url}/{self._name(repo)}/commit/{oid}"
        return self._send_json({"success": True, "commitOid": oid, "commitUrl": url})

    # Sending

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        extra = dict(headers or {})
        if status == 200 and self.answering in self.server.cut_answer:
            return self._cut()
        if isinstance(value, dict) and "error" in value:
            extra["X-Error-Message"] = value["error"]
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **extra})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _read_card(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    card = yaml.safe_load(match[1]) if match else {}
    if not isinstance(card, dict):
        raise ValueError("the metadata is not a mapping")
    return card
