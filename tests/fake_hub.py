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
from urllib.parse import parse_qs, unquote, urlsplit

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
    def blob_id(self) -> str:
        """Git's name for the content; for LFS, as here, for any content of one kind."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


_NUMBERS = itertools.count()


@dataclasses.dataclass
class Repo:
    """One repository: each commit holds all files and knows the one before it, and branches name commits."""

    private: bool = False
    parents: dict[str, str | None] = dataclasses.field(default_factory=dict)
    commits: dict[str, dict[str, File]] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        self.messages.append(message)
        # As with git, where the time goes in: no two commits share their hash.
        sha = hashlib.sha1(f"{next(_NUMBERS)}{message}".encode()).hexdigest()
        self.commits[sha] = files
        self.parents[sha] = self.branches.get(branch)
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def history(self, sha: str | None) -> list[str]:
        """Return a commit and all before it, the newest first."""
        return [sha, *self.history(self.parents[sha])] if sha else []

    @property
    def files(self) -> dict[str, File]:
        """What `main` holds."""
        return self.commits[self.branches["main"]]


class FakeHub:
    """The server's state, shared by its threads."""

    def __init__(self) -> None:
        self.users = {TOKEN: "write", READ_TOKEN: "read"}
        self.orgs = {"my-org": "write"}
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.put_headers: list[dict[str, str]] = []
        self.deleted: list[str] = []
        self.full = False
        # Routes, by the name of their method, at which the connection breaks before anything is done.
        self.cut: set[str] = set()
        # Routes at which it breaks after all was done, or at which a gateway gives up waiting by then.
        self.cut_answer: set[str] = set()
        self.late_answer: set[str] = set()
        self.fail: dict[str, tuple[int, str]] = {}
        self.fail_headers: dict[str, str] = {}
        self.before: dict[str, Callable[[], None]] = {}
        # Called once all is done, before it is answered.
        self.after: dict[str, Callable[[], None]] = {}
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def store(self) -> str:
        """Where large files are kept: to clients another host, as the Hub's is, which is told no token."""
        return self.url.replace("127.0.0.1", "localhost")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def add_repo(self, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """Put a repository there, as if somebody had pushed it."""
        repo = self.repos[repo_id] = Repo(private)
        kept = {name: File(content, name.endswith(LFS_SUFFIXES)) for name, content in files.items()}
        repo.commit("main", kept, "initial commit")
        return repo

    def count(self, method: str, pattern: str) -> int:
        """Return how many requests there were of a method to paths that match."""
        return sum(m == method and re.search(pattern, path) is not None for m, path in self.requests)


class _Server(ThreadingHTTPServer):
    fake: FakeHub
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: connections cut on request are part of the tests."""


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+|[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<branch>.+)", "branch"),
    ("DELETE", rf"/api/models/{_REPO}/branch/(?P<branch>.+)", "delete_branch"),
    ("GET", rf"/api/models/{_REPO}/refs", "refs"),
    ("GET", rf"/api/models/{_REPO}/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/xet-write-token/(?P<revision>[^/]+)", "xet_token"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/upload/(?P<oid>\w+)", "upload"),
    ("POST", r"/lfs/verify", "verify"),
    ("GET", r"/lfs/(?P<oid>\w+)", "download"),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    # The route that is being answered.
    answering = ""

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def do_DELETE(self) -> None:
        self._route("DELETE")

    def _route(self, method: str) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.fake.requests.append((self.command, path))
        for verb, pattern, name in _ROUTES:
            # Revisions are quoted once more where they hold a slash.
            if verb == method and (match := re.fullmatch(pattern, parts.path)):
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return self._answer(name, values)
        self._body()
        return self._send_json({"error": f"the fake does not know {self.command} {path}"}, 501)

    def _answer(self, name: str, values: dict[str, str]) -> None:
        self.answering = name
        if name in self.fake.cut:
            self.rfile.read(1000 if name == "upload" else 0)
            return self._cut()
        if name in self.fake.before:
            self.fake.before[name]()
        if name in self.fake.fail and not (name == "resolve" and self.command == "HEAD"):
            self._body()
            status, text = self.fake.fail[name]
            return self._send_json({"error": text}, status, self.fake.fail_headers)
        if (new := self.fake.renamed.get(values.get("repo", ""))) is not None:
            self._body()
            path = self.path.replace(values["repo"], new)
            return self._send(b"", 307, {"Location": f"{self.fake.url}{path}"})
        return getattr(self, f"_{name}")(**values)

    @property
    def fake(self) -> FakeHub:
        return self.server.fake

    # Who and where

    def _role(self) -> str | None:
        return self.fake.users.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _whoami(self) -> None:
        if (role := self._role()) is None:
            return self._send_json({"error": "Invalid credentials in Authorization header"}, 401)
        access = {"displayName": "test", "role": role}
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.fake.orgs.items()]
        who = {"type": "user", "name": "me", "orgs": orgs}
        return self._send_json({**who, "auth": {"type": "access_token", "accessToken": access}})

    def _create(self) -> None:
        body = json.loads(self._body())
        repo_id = f"{body.get('organization') or 'me'}/{body['name']}"
        if self._role() != "write":
            return self._send_json({"error": "You don't have the rights to create a model"}, 403)
        if repo_id in self.fake.repos:
            return self._send_json({"error": "You already created this model repo", "url": repo_id}, 409)
        private = body.get("visibility") == "private" or body.get("private") is True
        self.fake.add_repo(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return self._send_json({"url": f"{self.fake.url}/{repo_id}", "name": repo_id, "id": repo_id})

    def _delete(self) -> None:
        body = json.loads(self._body())
        repo_id = f"{body.get('organization') or 'me'}/{body['name']}"
        if self._role() != "write":
            return self._send_json({"error": "You don't have the rights to delete it"}, 403)
        if self._find(repo_id) is None:
            return None
        del self.fake.repos[repo_id]
        self.fake.deleted.append(repo_id)
        return self._send(b"OK")

    def _find(self, repo: str, revision: str = "main") -> tuple[Repo, str] | None:
        """Return a repository and the commit of a revision, or answer that there is none."""
        known = self.fake.repos.get(repo)
        if known is None or (known.private and self._role() is None):
            status = 404 if self._role() else 401
            self._send_json({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        if (sha := known.find(revision)) is None:
            self._send_json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return known, sha

    # What is there

    def _info(self, repo: str, revision: str = "main") -> None:
        if (found := self._find(repo, revision)) is None:
            return None
        known, sha = found
        files = known.commits[sha]
        info: dict[str, Any] = {"id": repo, "modelId": repo, "sha": sha, "private": known.private, "tags": []}
        info["siblings"] = [self._describe(name, files[name]) for name in sorted(files)]
        if "README.md" in files:
            info["cardData"] = _read_card(files["README.md"].content.decode())
        return self._send_json(info)

    def _describe(self, name: str, file: File) -> dict[str, Any]:
        if "blobs" not in self.query:
            return {"rfilename": name}
        told: dict[str, Any] = {"rfilename": name, "size": len(file.content), "blobId": file.blob_id}
        if file.is_lfs:
            # Git holds a pointer in its place, of which this is the name.
            told["blobId"] = hashlib.sha1(file.sha256.encode()).hexdigest()
            told["lfs"] = {"sha256": file.sha256, "size": len(file.content), "pointerSize": 130}
        return told

    def _refs(self, repo: str) -> None:
        if (found := self._find(repo)) is None:
            return None
        rows = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in found[0].branches.items()
            if not name.startswith("refs/")
        ]
        answer: dict[str, Any] = {"branches": rows, "converts": [], "tags": []}
        if "include_prs" in self.query:
            asked = {name: sha for name, sha in found[0].branches.items() if name.startswith("refs/pr/")}
            answer["pullRequests"] = [{"name": n, "ref": n, "targetCommit": sha} for n, sha in asked.items()]
        return self._send_json(answer)

    def _commits(self, repo: str, revision: str) -> None:
        if (found := self._find(repo, revision)) is None:
            return None
        known, sha = found
        row = {"authors": [{"user": "me"}], "date": "2026-01-02T03:04:05.000Z", "title": "a commit", "message": ""}
        return self._send_json([{"id": each, **row} for each in known.history(sha)])

    def _tree(self, repo: str, revision: str, path: str = "") -> None:
        if (found := self._find(repo, revision)) is None:
            return None
        known, sha = found
        rows = []
        for name, file in sorted(known.commits[sha].items()):
            if path and not name.startswith(f"{path}/"):
                continue
            row: dict[str, Any] = {"type": "file", "path": name, "size": len(file.content), "oid": file.blob_id}
            if file.is_lfs:
                row["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
            rows.append(row)
        if path and not rows:
            return self._send_json({"error": f"{path} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self._send_json(rows)

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if (found := self._find(repo, revision)) is None:
            return None
        known, sha = found
        commit = {"X-Repo-Commit": sha}
        if (file := known.commits[sha].get(path)) is None:
            return self._send_json({"error": "Entry not found"}, 404, {**commit, "X-Error-Code": "EntryNotFound"})
        if not file.is_lfs:
            return self._send(file.content, headers={**commit, "ETag": f'"{file.etag}"'})
        # As the Hub sends readers on to its content network.
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        self.fake.objects[file.sha256] = file.content
        return self._send(b"", 302, headers={**commit, **linked, "Location": f"{self.fake.store}/lfs/{file.sha256}"})

    def _download(self, oid: str) -> None:
        self._send(self.fake.objects[oid], headers={"ETag": f'"{oid}"'})

    # How it gets there

    def _validate(self) -> None:
        content = json.loads(self._body())["content"]
        errors = []
        try:
            card = _read_card(content)
        except (yaml.YAMLError, ValueError) as error:
            errors.append({"message": str(error)})
        else:
            known = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "unknown", "other", None}
            if card.get("license") not in known:
                errors.append({"message": '"license" must be one of the known licences'})
            for entry in card.get("model-index", []):
                for result in entry["results"]:
                    if not all({"type", "value"} <= set(metric) for metric in result["metrics"]):
                        errors.append({"message": '"model-index" is malformed'})
        self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, repo: str, branch: str) -> None:
        start = json.loads(self._body() or b"{}").get("startingPoint", "main")
        if (found := self._find(repo, start)) is None:
            return None
        known, sha = found
        if branch.startswith("refs/"):
            return self._send_json({"error": f'Invalid branch name "{branch}"'}, 400)
        if branch in known.branches:
            return self._send_json({"error": "Reference already exists"}, 409)
        known.branches[branch] = sha
        return self._send_json({})

    def _delete_branch(self, repo: str, branch: str) -> None:
        if (found := self._find(repo, branch)) is None:
            return None
        del found[0].branches[branch]
        return self._send(b"OK")

    def _preupload(self, repo: str, revision: str) -> None:
        body = json.loads(self._body())
        if self._role() != "write":
            return self._send_json({"error": "Forbidden: pass a token that may write"}, 403)
        if (found := self._find(repo, revision)) is None:
            return None
        known, sha = found
        answer = []
        for file in body["files"]:
            there = known.commits[sha].get(file["path"])
            is_lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES
            mode = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            answer.append({**mode, "oid": there.etag if there else None})
        return self._send_json({"files": answer})

    def _xet_token(self, repo: str, revision: str) -> None:
        """Refuse: what is uploaded by that protocol goes to servers of its own kind."""
        self._send_json({"error": f"no token for {repo} at {revision}"}, 403)

    def _batch(self, repo: str) -> None:
        body = json.loads(self._body())
        if self._role() != "write":
            return self._send_json({"error": "Forbidden"}, 403)
        objects = []
        for wanted in body["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if self.fake.full:
                answer["error"] = {"code": 507, "message": "The storage quota is used up"}
            elif wanted["oid"] not in self.fake.objects:
                upload = {"href": f"{self.fake.store}/lfs/upload/{wanted['oid']}?signature=secret", "header": {}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.fake.url}/lfs/verify", "header": {}}}
            objects.append(answer)
        return self._send_json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        self.fake.put_headers.append({name.lower(): value for name, value in self.headers.items()})
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self._send_json({"error": "The content is not what was announced"}, 422)
        self.fake.objects[oid] = content
        return self._send(b"")

    def _verify(self) -> None:
        body = json.loads(self._body())
        stored = self.fake.objects.get(body["oid"])
        self._send_json({}, 200 if stored is not None and len(stored) == body["size"] else 404)

    def _commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        if (found := self._find(repo, revision)) is None:
            return None
        if self._role() != "write":
            return self._send_json({"error": "Forbidden: pass a token that may write"}, 403)
        known, sha = found
        header, files = lines[0]["value"], dict(known.commits[sha])
        if header.get("parentCommit") not in (None, sha):
            return self._send_json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif (content := self.fake.objects.get(value["oid"])) is None:
                return self._send_json({"error": f"LFS object {value['oid']} was not uploaded"}, 400)
            else:
                files[value["path"]] = File(content, is_lfs=True)
        with self.fake.lock:
            oid = known.commit(revision, files, header["summary"])
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.fake.url}/{repo}/commit/{oid}"}
        return self._send_json(answer)

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
        if status == 200 and self.answering in self.fake.after:
            self.fake.after.pop(self.answering)()
        if status == 200 and self.answering in self.fake.cut_answer:
            return self._cut()
        if status == 200 and self.answering in self.fake.late_answer:
            return self._send(b"<html>504 Gateway Time-out</html>", 504)
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
    if match is None:
        return {}
    card = yaml.safe_load(match[1])
    if not isinstance(card, dict):
        raise ValueError("the metadata is not a mapping")
    return card
