"""The judge behind OpenAI's API, against a small server that answers as such servers do."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hf_instruct.config import JudgeSection
from hf_instruct.errors import ConfigError, JudgeError, JudgeUnavailable
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.openai import OpenAIJudge
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.records import Response

QUESTION = load_rubric("course").build_question(Response("a", "Name a color.", "", "Red.", "Blue."))
Outcome = tuple[int, Any]


def completion(content: str | None = '{"score": 85}', **message: Any) -> Outcome:
    reason = message.pop("finish_reason", "stop")
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content, **message}}
    return 200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def fault(status: int, message: str) -> Outcome:
    return status, {"error": {"message": message, "type": "error"}}


class FakeServer:
    def __init__(self) -> None:
        self.models: Outcome = (200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
        self.reply: Callable[[dict[str, Any]], Outcome] = lambda body: completion()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._build_handler())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def _build_handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None: ...

            def do_GET(self) -> None:
                self._send(*fake.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                fake.keys.add(self.headers["Authorization"])
                self._send(*fake.reply(body))

            def _send(self, status: int, value: Any) -> None:
                page = isinstance(value, str)
                data = value.encode() if page else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if page else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                # A client that has waited long enough is gone.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(data)

        return Handler

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeServer()
    fake.thread.start()
    yield fake
    if fake.thread.is_alive():
        fake.stop()


def ask(server: FakeServer, before: Callable[[], None] = lambda: None, **settings: Any) -> tuple[Reply, dict[str, Any]]:
    """Return the reply of a prepared judge to one question, and its identity; `before` runs between the two."""

    async def work() -> tuple[Reply, dict[str, Any]]:
        judge = OpenAIJudge(JudgeSection(backend="openai", base_url=server.url, **{"retries": 0, **settings}))
        try:
            await judge.prepare()
            before()
            return await judge.ask(QUESTION), judge.identity()
        finally:
            await judge.close()

    return asyncio.run(work())


def test_request_and_identity(server: FakeServer) -> None:
    reply, identity = ask(server, model="m")
    assert (reply.text, reply.failure) == ('{"score": 85}', None)
    body = server.bodies[-1]
    assert body["messages"] == QUESTION.messages
    assert {name: body[name] for name in ("model", "temperature", "seed", "max_completion_tokens")} == {
        "model": "m",
        "temperature": 0.0,
        "seed": 123,
        "max_completion_tokens": 512,
    }
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "verdict", "schema": QUESTION.schema, "strict": True},
    }
    assert identity["options"]["base_url"] == server.url
    assert server.keys == {"Bearer EMPTY"}


def test_no_proxy_is_asked_for_this_machine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    reply, _ = ask(server)
    assert json.loads(reply.text) == {"score": 85}


def test_address_without_its_password(server: FakeServer) -> None:
    server.url = server.url.replace("http://", "http://me:secret@")
    _, identity = ask(server, model="m")
    assert "secret" not in json.dumps(identity)


def test_only_model_is_taken(server: FakeServer) -> None:
    assert ask(server)[1]["model"] == "m"
    server.models = (200, {"object": "list", "data": [{"id": name, "object": "model"} for name in ("b", "a")]})
    with pytest.raises(JudgeUnavailable) as caught:
        ask(server)
    assert str(caught.value) == (
        f"Name the model that {server.url} should judge with: `--model NAME`. It has: `a`, `b`."
    )


def test_server_without_schemas_is_used_and_said(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    def reply(body: dict[str, Any]) -> Outcome:
        return fault(400, "response_format is not supported") if "response_format" in body else completion("85")

    server.reply = reply
    answer, identity = ask(server, model="m")
    assert answer.text == "85"
    assert identity["options"]["response_format"] is None
    assert "does not take a JSON schema" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [
        (completion('{"score": 8', finish_reason="length"), "the reply was cut at 512 tokens (`judge.max_new_tokens`)"),
        (completion(None, refusal="I may not."), "the judge refused: I may not"),
        (fault(500, "out of memory"), "the server failed: out of memory (status 500)"),
        ((200, "<html>Log in</html>"), "the answer is not JSON but text/html: <html>Log in</html>"),
        (
            fault(400, "This model's maximum context length is 128 tokens"),
            "the server refuses the question: This model's maximum context length is 128 tokens",
        ),
    ],
)
def test_failures_of_one_question(server: FakeServer, outcome: Outcome, failure: str) -> None:
    def fail() -> None:
        server.reply = lambda body: outcome

    reply, _ = ask(server, before=fail, model="m")
    assert reply.failure is not None
    assert reply.failure.startswith(failure)


def test_reply_of_another_model_ends_judging(server: FakeServer) -> None:
    def swap() -> None:
        status, value = completion()
        server.reply = lambda body: (status, {**value, "model": "another"})

    with pytest.raises(JudgeError) as caught:
        ask(server, before=swap)
    assert str(caught.value) == (
        f"{server.url} answered as `m` before and now as `another`, so the scores would be those of two judges. Name "
        "one of them with `--model`, and judge again."
    )


def test_model_behind_a_tag_is_part_of_the_identity(server: FakeServer) -> None:
    assert "answered_as" not in ask(server, model="m")[1]["options"]
    assert ask(server, model="latest")[1]["options"]["answered_as"] == "m"


def test_thinking_is_asked_for_and_no_answer(server: FakeServer) -> None:
    def think() -> None:
        server.reply = lambda body: completion("", reasoning_content='{"score": 2}')

    reply, identity = ask(server, before=think, think="high")
    assert reply.failure is not None
    assert reply.failure.startswith('the judge thought and then wrote no answer (`judge.think` is "high"; ')
    assert server.bodies[-1]["reasoning_effort"] == identity["options"]["think"] == "high"
    reply, identity = ask(server)
    assert "reasoning_effort" not in server.bodies[-1]
    assert "think" not in identity["options"]


def test_refused_setting_is_named_and_can_be_left_out(server: FakeServer) -> None:
    def reply(body: dict[str, Any]) -> Outcome:
        for name in ("temperature", "seed"):
            if name in body:
                return fault(400, f"Unsupported value: '{name}' does not support {body[name]} with this model.")
        return completion()

    server.reply = reply
    with pytest.raises(JudgeError, match=r"`judge\.temperature: null` leaves the temperature to the server\.$"):
        ask(server)
    with pytest.raises(JudgeError, match=r"`judge\.seed: null` leaves the seed to the server\.$"):
        ask(server, temperature=None)
    answer, identity = ask(server, temperature=None, seed=None)
    assert answer.failure is None
    assert (identity["options"]["temperature"], identity["options"]["seed"]) == (None, None)


def test_a_timeout_is_not_waited_for_again_with_each_retry(server: FakeServer) -> None:
    released = threading.Event()

    def hang() -> None:
        server.reply = lambda body: completion() if released.wait(30) else fault(500, "never")

    start = time.monotonic()
    reply, _ = ask(server, hang, retries=3, timeout_seconds=0.5)
    released.set()
    assert reply.failure == "no reply within 0.5 s"
    assert time.monotonic() - start < 10
    # One question finds out about schemas.
    assert len(server.bodies) == 2


def test_faults_that_end_judging(server: FakeServer) -> None:
    with pytest.raises(JudgeUnavailable, match=r"^The server at .* no longer answers \("):
        ask(server, before=server.stop, model="m")
    with pytest.raises(
        JudgeUnavailable, match=r"^No server answers at .* with `--base-url` \(it mostly ends in /v1\)\.$"
    ):
        ask(server, model="m")


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (fault(404, "no such model"), "has no model `m`, or no chat: "),
        (fault(401, "bad key"), "refuses the question for the model `m`: "),
        (fault(400, "temperature is unsupported"), "refuses the question for the model `m`: "),
    ],
)
def test_refusals_before_the_first_question(server: FakeServer, outcome: Outcome, text: str) -> None:
    server.reply = lambda body: outcome
    with pytest.raises(JudgeError) as caught:
        ask(server, model="m")
    assert text in str(caught.value)


@pytest.mark.parametrize("port", ["99999", "abc"])
def test_an_address_that_cannot_be(port: str) -> None:
    with pytest.raises(ConfigError, match=rf"address `http://127.0.0.1:{port}` is not usable") as caught:
        OpenAIJudge(JudgeSection(backend="openai", base_url=f"http://me:secret@127.0.0.1:{port}"))
    assert "secret" not in str(caught.value)


def test_key_is_needed_for_openai_itself(server: FakeServer) -> None:
    with pytest.raises(JudgeUnavailable, match=r"^OPENAI_API_KEY is not set\."):
        OpenAIJudge(JudgeSection(backend="openai"))
