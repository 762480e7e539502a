"""A server that answers as Ollama's does, its OpenAI-compatible part included, and fails on request; it has no model.

Answers to `/api/chat` are taken from `script`, one for each call, then from `reply`; every request is kept in
`requests`.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIGEST = "365c0bd3c000a25d28ddbf732fe1c6add414de7275464c4e4d1c3b5fcb5d8ad1"


@dataclasses.dataclass
class Answer:
    """One answer of the server.

    Attributes:
        content: What the model says.
        status: HTTP status; other than 200, `content` is the error.
        raw: Sent as it is, in place of JSON.
        headers: Sent with it; it is called JSON unless they say otherwise.
        endless: Repeat it until the client leaves.
        pause: Seconds between two repetitions.
        wire: Sent in place of a response, and the connection closed.
        thinking: What the model thought before.
        done: As Ollama sends it; False when the server stopped the reply.
        done_reason: `stop`, or `length` when the reply was cut.
        cut: Close the connection without an answer.
        seconds: How long the answer takes.
        prompt_tokens: How many tokens of the prompt the model has read, as the server tells.
    """

    content: str = '{"score": 85}'
    status: int = 200
    raw: str | bytes | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    endless: bool = False
    pause: float = 0.0
    wire: bytes | None = None
    thinking: str | None = None
    done: bool = True
    done_reason: str = "stop"
    cut: bool = False
    seconds: float = 0.0
    prompt_tokens: int = 101


class FakeOllama:
    """The server's state, shared by its threads."""

    def __init__(self) -> None:
        self.models = {"llama3:latest": DIGEST}
        self.version: str | Answer = "0.33.0"
        self.listing: Answer | None = None
        self.script: list[Answer] = []
        self.reply: Callable[[dict[str, Any]], Answer] = lambda body: Answer()
        # To the question whether the schema of a reply is obeyed.
        self.trial: Callable[[dict[str, Any]], Answer] = lambda body: Answer('{"ready": true}')
        self.pull_lines: list[dict[str, Any]] = []
        self.pull: Answer | None = None
        self.pulled: str | None = None
        self.latency_seconds = 0.0
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self.dies_after: int | None = None
        self.peak = 0
        self.sent = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        # A short poll makes stopping quick.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def chats(self) -> list[dict[str, Any]]:
        """Bodies of the questions asked, without those that load the model and try the schema of a reply."""
        chats = ("/api/chat", "/v1/chat/completions")
        return [body for path, body in self.requests if path in chats and body["messages"] and not is_trial(body)]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def die(self) -> None:
        """Refuse connections from now on."""
        self._server.socket.close()
        threading.Thread(target=self.stop, daemon=True).start()

    def take_answer(self, body: dict[str, Any]) -> Answer:
        if is_trial(body):
            return self.trial(body)
        with self._lock:
            if self.dies_after is not None and len(self.chats) > self.dies_after:
                self.die()
                return Answer(cut=True)
            return self.script.pop(0) if self.script else self.reply(body)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1


def is_trial(body: dict[str, Any]) -> bool:
    """Return whether a chat only asks whether the schema of a reply is obeyed."""
    return "ready" in (body.get("format") or {}).get("properties", {})


class _Server(ThreadingHTTPServer):
    fake: FakeOllama
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients that give up early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Without it every answer waits 40 ms for an acknowledgement of its header.
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        fake = self.server.fake
        fake.requests.append((self.path, {}))
        if self.path == "/api/version":
            if isinstance(fake.version, Answer):
                self._send_answer(fake.version, lambda: {})
            else:
                self._send_json({"version": fake.version})
        elif self.path == "/api/tags" and fake.listing:
            self._send_answer(fake.listing, lambda: {})
        elif self.path == "/api/tags":
            models = [
                {"name": name, "model": name, "digest": digest, "size": 1, "details": {"format": "gguf"}}
                for name, digest in fake.models.items()
            ]
            self._send_json({"models": models})
        elif self.path == "/v1/models" and fake.listing:
            self._send_answer(fake.listing, lambda: {})
        elif self.path == "/v1/models":
            self._send_json({"object": "list", "data": [{"id": name, "object": "model"} for name in fake.models]})
        else:
            self._send_text("404 page not found", 404)

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.keys.add(self.headers["Authorization"])
        fake.requests.append((self.path, body))
        known = body["model"] in fake.models or f"{body['model']}:latest" in fake.models
        if self.path == "/api/pull" and fake.pull:
            self._send_answer(fake.pull, lambda: {})
        elif self.path == "/api/pull":
            self._send_pull()
        elif not known:
            self._send_json({"error": f"model '{body['model']}' not found"}, 404)
        elif self.path == "/api/show":
            self._send_json({"capabilities": ["completion"], "details": {}, "model_info": {}})
        elif not body["messages"]:
            done = {"done": True, "done_reason": "load"}
            self._send_json({"model": body["model"], "message": {"role": "assistant", "content": ""}, **done})
        else:
            with fake.counted():
                time.sleep(fake.latency_seconds)
                answer = fake.take_answer(body)
                build = build_completion if self.path == "/v1/chat/completions" else build_chat
                self._send_answer(answer, lambda: build(body["model"], answer))

    def _send_answer(self, answer: Answer, build: Callable[[], dict[str, Any]]) -> None:
        time.sleep(answer.seconds)
        if answer.cut:
            self.close_connection = True
            self.connection.shutdown(2)
        elif answer.wire is not None:
            self.close_connection = True
            self.wfile.write(answer.wire)
        elif answer.raw is not None:
            self._send_raw(answer)
        elif answer.status != 200:
            self._send_json({"error": answer.content}, answer.status)
        else:
            self._send_json(build())

    def _send_pull(self) -> None:
        fake = self.server.fake
        if any(line.get("status") == "success" for line in fake.pull_lines) and fake.pulled:
            fake.models[fake.pulled] = DIGEST
        text = "".join(json.dumps(line) + "\n" for line in fake.pull_lines)
        self._send_text(text, 200, kind="application/x-ndjson")

    def _send_raw(self, answer: Answer) -> None:
        data = answer.raw.encode() if isinstance(answer.raw, str) else answer.raw or b""
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        if answer.endless:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        with contextlib.suppress(OSError):
            while answer.endless:
                self.wfile.write(data)
                self.server.fake.sent += len(data)
                time.sleep(answer.pause)

    def _send_json(self, value: dict[str, Any], status: int = 200) -> None:
        self._send_text(json.dumps(value), status, kind="application/json")

    def _send_text(self, text: str, status: int, *, kind: str = "text/html") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def build_chat(model: str, answer: Answer) -> dict[str, Any]:
    chat: dict[str, Any] = {
        "model": model,
        "created_at": "2026-08-01T10:00:00.1Z",
        "message": {"role": "assistant", "content": answer.content},
        "done": answer.done,
    }
    if answer.thinking is not None:
        chat["message"]["thinking"] = answer.thinking
    if answer.done:
        chat |= {"done_reason": answer.done_reason, "prompt_eval_count": answer.prompt_tokens, "eval_count": 7}
    return chat


def build_completion(model: str, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.content}
    choice = {"index": 0, "finish_reason": answer.done_reason, "message": message}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
