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
    """Ollama's version, blobs and `/api/create`, which answer as they should until `answer` says otherwise."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.created: list[dict] = []
        self.lines: list[dict] = CREATED
        # Status and text of every answer.
        self.answer: tuple[int, str] | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeBlobs

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path[:11]}")
        digest = self.path.rpartition("/")[2]
        if self.server.answer is not None:
            self._send(*self.server.answer)
        elif self.command == "HEAD":
            self._send(200 if digest in self.server.blobs else 404, "")
        elif self.path == "/api/version":
            self._send(200, '{"version": "0.33.0"}')
        elif self.path == "/api/create":
            self.server.created.append(json.loads(body))
            self._send(200, "".join(json.dumps(line) + "\n" for line in self.server.lines))
        else:
            assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.server.blobs[digest] = body
            self._send(201, "")

    do_HEAD = do_POST = do_GET  # noqa: N815  (called by the server by these names)

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Location", "http://me:secret@evil.example/x?key=secret")
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def fake() -> Iterator[FakeBlobs]:
    with FakeBlobs() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    # More than one chunk.
    file.write_bytes(b"GGUF" * 600_000)
    return file


def test_upload_and_create(fake: FakeBlobs, weights: Path) -> None:
    server = OllamaServer(fake.url)
    assert server.check() == "0.33.0"
    told: list[str] = []
    server.create("me/mine:q8", MODELFILE, weights, on_status=told.append)
    assert told == ["parsing GGUF", "writing manifest", "success"]
    ((digest, content),) = fake.blobs.items()
    assert content == weights.read_bytes()
    assert fake.created == [
        {
            "model": "me/mine:q8",
            "files": {"model.gguf": digest},
            "template": "{{ .Prompt }}{{ .Response }}",
            "parameters": {"temperature": 0, "stop": ["<|end|>"]},
        }
    ]
    # What is there already is not sent again.
    server.create("mine", Modelfile("T", "Be brief.", {}, ""), weights)
    assert [asked for asked in fake.requests if "blobs" in asked] == [
        f"{how} /api/blobs/" for how in ("HEAD", "POST", "HEAD")
    ]
    assert fake.created[1]["system"] == "Be brief."


def test_what_the_server_refuses(fake: FakeBlobs, weights: Path) -> None:
    server = OllamaServer(fake.url)

    def refuse(said: str) -> None:
        with pytest.raises(PublishError, match=said):
            server.create("mine", MODELFILE, weights)

    fake.lines = [*CREATED[:1], {"error": "unsupported architecture"}]
    refuse("asked to create `mine`, said: unsupported architecture")
    fake.lines = CREATED[:2]
    refuse("broke off after `writing manifest`")
    fake.answer = 400, '{"error": "supplied file was not in GGUF format"}'
    refuse("given `model.gguf`, said: supplied file was not in GGUF format")
    # No weights are sent elsewhere, and no endless answer is read.
    fake.answer = 307, ""
    refuse("redirects to http://evil.example/x, and redirects are not followed")
    fake.answer = 200, "x" * (9 << 20)
    refuse("the answer is longer than 8 MB")
    fake.answer = 200, "hello"
    with pytest.raises(PublishError, match=r"hello \(which is not Ollama's answer\)"):
        server.check()


def test_no_server() -> None:
    with pytest.raises(
        PublishError, match=r"No Ollama server answers at http://127.0.0.1:9 .* Start it with `ollama se"
    ):
        OllamaServer("http://127.0.0.1:9").check()
    with pytest.raises(ConfigError, match=r"address `http://127.0.0.1:port` is not usable"):
        OllamaServer("http://127.0.0.1:port")


@pytest.mark.parametrize("name", ["mine", "mine:q8_0", "me/mine", "host.example:5000/me/mine:latest", "a" * 80])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "../mine", "my model", "mine:", "-mine", "a" * 81, "mine\n", "ü"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(PublishError, match=r"is not a name for an Ollama model. It looks like `my-model`"):
        check_name(name)
