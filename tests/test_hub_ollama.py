import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hf_instruct.errors import ConfigError, PublishError
from hf_instruct.hub.ollama import Modelfile, OllamaServer, check_name

CREATED = [{"status": "parsing GGUF"}, {"status": "writing manifest"}, {"status": "success"}]
MODELFILE = Modelfile("{{ .Prompt }}{{ .Response }}", "", {"temperature": 0, "stop": ["<|end|>"]}, "# note")


class FakeBlobs(ThreadingHTTPServer):
    """Ollama's blobs and `/api/create`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.created: list[dict] = []
        self.lines: list[dict] = CREATED
        self.refusal: tuple[int, dict] | None = None
        self.version = '{"version": "0.33.0"}'
        self.target: str | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeBlobs

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._send(307 if self.server.target else 200, self.server.version)

    def do_HEAD(self) -> None:
        self.server.requests.append(("HEAD", self.path))
        if self.server.target:
            self._send(307, "")
        else:
            self.send_response(200 if self.path.rpartition("/")[2] in self.server.blobs else 404)
            self.end_headers()

    def do_POST(self) -> None:
        self.server.requests.append(("POST", self.path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.target:
            self._send(307, "")
        elif self.server.refusal is not None:
            self._send(self.server.refusal[0], json.dumps(self.server.refusal[1]))
        elif self.path.startswith("/api/blobs/"):
            digest = self.path.rpartition("/")[2]
            assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.server.blobs[digest] = body
            self._send(201, "")
        else:
            self.server.created.append(json.loads(body))
            self._send(200, "".join(json.dumps(line) + "\n" for line in self.server.lines))

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if status == 307:
            self.send_header("Location", str(self.server.target))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def fake() -> Iterator[FakeBlobs]:
    server = FakeBlobs()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_upload_and_create(fake: FakeBlobs, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    # More than one chunk.
    file.write_bytes(b"GGUF" * 600_000)
    server = OllamaServer(fake.url)
    assert server.check() == "0.33.0"
    digest = server.upload(file)
    assert fake.blobs[digest] == file.read_bytes()
    # What is there already is not sent again.
    assert server.upload(file) == digest
    assert [method for method, _ in fake.requests] == ["HEAD", "POST", "HEAD"]
    told: list[str] = []
    server.create("me/mine:q8", MODELFILE, digest=digest, on_status=told.append)
    assert told == ["parsing GGUF", "writing manifest", "success"]
    assert fake.created == [
        {
            "model": "me/mine:q8",
            "files": {"model.gguf": digest},
            "template": "{{ .Prompt }}{{ .Response }}",
            "parameters": {"temperature": 0, "stop": ["<|end|>"]},
        }
    ]
    with_system = Modelfile("T", "Be brief.", {}, "")
    server.create("mine", with_system, digest=digest)
    assert fake.created[1]["system"] == "Be brief."


def test_what_the_server_refuses(fake: FakeBlobs, tmp_path: Path) -> None:
    server = OllamaServer(fake.url)
    fake.lines = [*CREATED[:1], {"error": "unsupported architecture"}]
    with pytest.raises(PublishError, match=r"asked to create `mine`, answered 200: unsupported architecture"):
        server.create("mine", MODELFILE, digest="sha256:0")
    fake.lines = CREATED[:2]
    with pytest.raises(PublishError, match=r"broke off while it created `mine` after `writing manifest`. Try again."):
        server.create("mine", MODELFILE, digest="sha256:0")
    fake.refusal = (400, {"error": "supplied file was not in GGUF format"})
    with pytest.raises(PublishError, match=r"asked to create `mine`, answered 400: supplied file was not in GGUF"):
        server.create("mine", MODELFILE, digest="sha256:0")
    (tmp_path / "m.gguf").write_bytes(b"x")
    with pytest.raises(PublishError, match=r"given `m.gguf`, answered 400: supplied file"):
        server.upload(tmp_path / "m.gguf")
    fake.version = "hello"
    with pytest.raises(PublishError, match=r"asked for its version, is not Ollama: the .*: hello\.$"):
        server.check()


def test_no_redirect_is_followed_and_no_endless_answer_read(fake: FakeBlobs, tmp_path: Path) -> None:
    server = OllamaServer(fake.url)
    (tmp_path / "m.gguf").write_bytes(b"x")
    fake.target = "http://me:secret@evil.example/x?key=secret"
    for work in (
        server.check,
        lambda: server.upload(tmp_path / "m.gguf"),
        lambda: server.create("mine", MODELFILE, digest="sha256:0"),
    ):
        with pytest.raises(
            PublishError, match=r"redirects to http://evil\.example/x, and redirects are not followed\.$"
        ):
            work()
    fake.target = None
    fake.version = "x" * (9 << 20)
    with pytest.raises(PublishError, match=r"is not Ollama: the answer is longer than 8 MB\.$"):
        server.check()
    fake.lines = [{"status": "x" * (9 << 20)}]
    with pytest.raises(PublishError, match=r"is not Ollama: the answer is longer than 8 MB\.$"):
        server.create("mine", MODELFILE, digest="sha256:0")


def test_no_server() -> None:
    with pytest.raises(
        PublishError, match=r"No Ollama server answers at http://127.0.0.1:9 .* Start it with `ollama se"
    ):
        OllamaServer("http://127.0.0.1:9").check()
    with pytest.raises(ConfigError, match=r"address `http://127.0.0.1:port` is not usable"):
        OllamaServer("http://127.0.0.1:port")


@pytest.mark.parametrize("name", ["mine", "mine:q8_0", "me/mine", "host.example:5000/me/mine:latest", "a" * 80])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "../mine", "my model", "mine:", "-mine", "a" * 81, "mine\n", "ü"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(PublishError, match=r"is not a name for an Ollama model. It looks like `my-model`"):
        check_name(name)
