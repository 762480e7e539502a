"""Judge servers that send anything: each case ends in a recorded failure or a one-line error, never a score or a hang.

`pytest -m slow tests/test_evaluation_attacks.py` counts them.
"""

import asyncio
import functools
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fake_judge import QUESTION, RESPONSE
from fake_ollama import Answer, FakeOllama, build_chat, build_completion

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.ollama import OllamaJudge
from hf_instruct.evaluation.openai import OpenAIJudge
from hf_instruct.evaluation.scoring import judge_with
from hf_instruct.schema import Judgment

# Half a second apiece where a server lets one wait, and there are hundreds.
pytestmark = pytest.mark.slow

KINDS = ("ollama", "openai")
# What Python, and the libraries below, say to programmers.
PROGRAMMERS_WORDS = re.compile(
    r"Traceback|argument after|must be a mapping|has no attribute|Expecting |codec can't|NoneType|ValidationError"
    r"|[A-Z]\w+Error\b|\bb'|bytearray|<class|\bErrno\b|line \d+ column|recursion|For further information"
)
SCORE = '{"score": 100}'

# Anything in place of JSON of the right form.
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n",
    "empty list": b"[]",
    "list": b'[{"score": 100}]',
    "text": b'"Score: 100"',
    "null": b"null",
    "number": b"100",
    "true": b"true",
    "empty object": b"{}",
    "verdict itself": SCORE.encode(),
    "bare score": b"Score: 100",
    "web page": b"<html><title>Score: 100</title></html>",
    "not UTF-8": b'{"message": {"content": "\xff\xfe 100"}, "done": true}',
    "UTF-16": json.dumps({"message": {"content": SCORE}, "done": True}).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "NUL bytes": b"\x00" * 100,
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"message": ' * 50_000,
    "closed nesting": b'{"message": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nesting as error": b'{"error": ' * 900 + b'"x"' + b"}" * 900,
    "huge integer": b"9" * 100_000,
    "huge integer in a field": b'{"message": ' + b"9" * 100_000 + b"}",
    "NaN": b"NaN",
    "two objects": b"{}{}",
    "lines": b'{"message": {"content": "1"}}\n{"message": {"content": "100"}, "done": true}\n',
    "event stream": b'data: {"choices": [{"delta": {"content": "100"}}]}\n\n',
}
HEADERS = {"Content-Type": "application/json"}
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
TRANSPORT: dict[str, Answer] = {
    "closed at once": Answer(cut=True),
    "no HTTP": Answer(wire=b"\x16\x03\x01 hello\r\n\r\n"),
    "no status": Answer(wire=b"HTTP/1.1 abc\r\n\r\n"),
    "endless header": Answer(wire=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000),
    "bad header": Answer(wire=b"HTTP/1.1 200 OK\r\n\x00: x\r\n\r\n"),
    "shorter than said": Answer(wire=HTTP + b"Content-Length: 1000\r\n\r\n" + b'{"message": '),
    "broken chunks": Answer(wire=HTTP + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "chunks that stop": Answer(wire=HTTP + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"),
    "two lengths": Answer(wire=HTTP + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "compressed": Answer(raw=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"}),
    "said to be compressed": Answer(raw="{}", headers={"Content-Encoding": "br"}),
    "no answer": Answer(seconds=0.6),
    "a byte at a time": Answer(raw=" ", endless=True, pause=0.02),
    "endless body": Answer(raw=b"x" * (1 << 20), endless=True),
    "9 MB": Answer(raw=b'{"x": "' + b"x" * (9 << 20) + b'"}'),
    "web page as such": Answer(raw="<html>100</html>", headers={"Content-Type": "text/html"}),
    "unknown type": Answer(raw="{}", headers={"Content-Type": "\xe9" * 500}),
    "unknown character set": Answer(raw="x", headers={"Content-Type": "text/x; charset=no-such"}),
}
STATUSES: dict[str, Answer] = {
    **{f"status {status}": Answer("busy", status=status) for status in (429, 500, 503)},
    **{f"refused with {status}": Answer("no", status=status) for status in (400, 401, 403, 404)},
    **{
        f"redirect {status}": Answer(raw="{}", status=status, headers={"Location": "/v1/models"})
        for status in (302, 307)
    },
    "redirect to nowhere": Answer(raw="{}", status=302),
    "redirect to nonsense": Answer(raw="{}", status=302, headers={"Location": "http://xn--a:b/["}),
    "choices": Answer(raw="{}", status=300),
    "not modified": Answer(raw="", status=304),
    **{f"500 with {name}": Answer(raw=BODIES[name], status=500) for name in ("nothing", "list", "not UTF-8", "null")},
}


def build_reply(kind: str, **changes: Any) -> bytes:
    """Return a server's reply with the score 100, with some fields changed; those set to ... are left out."""
    build = build_chat if kind == "ollama" else build_completion
    reply = build("llama3:latest", Answer(SCORE))
    for path, value in changes.items():
        owner: Any = reply
        *parents, last = path.split("__")
        for part in parents:
            owner = owner[int(part)] if part.isdecimal() else owner[part]
        owner[last] = value
        if value is ...:
            del owner[last]
    return json.dumps(reply).encode()


def list_fields(kind: str) -> dict[str, bytes]:
    """Return replies that are right but for one field."""
    at = "message" if kind == "ollama" else "choices__0__message"
    changes: dict[str, dict[str, Any]] = {
        **{f"message {value!r}": {at: value} for value in (None, [], "100", 100, True, ...)},
        **{
            f"content {value!r}": {f"{at}__content": value}
            for value in (100, [100], {"score": 100}, True, None, "", " ")
        },
        **{
            f"error {value!r}": {"error": value}
            for value in ("failed", {"message": "failed"}, {"a": 1}, ["x"], True, 1)
        },
        "error in text in an error": {"error": json.dumps({"error": {"message": "failed"}})},
        "content of half a character": {f"{at}__content": "\ud83d 100"},
    }
    if kind == "ollama":
        changes |= {
            **{f"done {value!r}": {"done": value} for value in (False, None, "true", 1, ...)},
            **{f"reason {value!r}": {"done_reason": value} for value in ("length", 1, [])},
            **{f"tokens {value!r}": {"prompt_eval_count": value} for value in ("x", 10**30, 1e400, 4096, [])},
            "only thought": {f"{at}__content": "", f"{at}__thinking": SCORE},
            "thinking of another type": {f"{at}__thinking": {"score": 100}},
        }
    else:
        changes |= {
            **{f"choices {value!r}": {"choices": value} for value in ([], None, {}, "100", [None], [[]], [{}], ...)},
            **{f"reason {value!r}": {"choices__0__finish_reason": value} for value in ("length", 1)},
            **{f"refusal {value!r}": {f"{at}__refusal": value} for value in ("I may not.", 1)},
            "another model": {"model": "mallory"},
            "model of another type": {"model": ["llama3"]},
            "only thought": {f"{at}__content": None, f"{at}__reasoning_content": SCORE},
        }
    return {name: build_reply(kind, **change) for name, change in changes.items()}


@functools.cache
def list_answers(kind: str) -> dict[str, Answer]:
    """Return every answer to a question that is no verdict."""
    raw = {**BODIES, **list_fields(kind)}
    whole = build_reply(kind)
    raw |= {f"cut at {share} %": whole[: len(whole) * share // 100] for share in (10, 50, 90, 99)}
    raw |= {"more behind it": whole + b"x", "in a list": b"[" + whole + b"]"}
    verdict = Answer(raw=whole, headers={"Content-Type": "text/html"})
    return {
        **{name: Answer(raw=body) for name, body in raw.items()},
        **TRANSPORT,
        **STATUSES,
        "verdict in a web page": verdict,
        "verdict with status 500": Answer(raw=whole, status=500),
        "verdict behind a redirect": Answer(raw=whole, status=307, headers={"Location": "/api/chat"}),
    }


class Attacked:
    """A judge that was well when it was prepared, its server, and the loop that both questions and answers run in."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.server = FakeOllama()
        self.server.start()
        base_url = self.server.url if kind == "ollama" else f"{self.server.url}/v1"
        self.settings = JudgeSection(base_url=base_url, model="llama3:latest", timeout_seconds=0.3)
        self.runner = asyncio.Runner()
        self.judge = {"ollama": OllamaJudge, "openai": OpenAIJudge}[kind](self.settings)
        self.runner.run(self.judge.prepare())

    def ask(self, answer: Answer) -> Judgment:
        """Return what comes of a question that the server gives this answer to, each time."""
        self.server.requests.clear()
        self.server.reply = lambda body: answer
        options = JudgeOptions(use_cache=False)
        judged = self.runner.run(judge_with(self.judge, [RESPONSE], self.settings, options=options))
        return judged.judgments[0]

    def stop(self) -> None:
        self.runner.run(self.judge.close())
        self.runner.close()
        self.server.stop()


@pytest.fixture(scope="module")
def attacked() -> Iterator[dict[str, Attacked]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_instruct.servers.DELAYS", [0.0] * 4)
        both = {kind: Attacked(kind) for kind in KINDS}
    yield both
    for one in both.values():
        one.stop()


def assert_plain(text: str | None) -> None:
    """Assert that a text is one sentence or two for users."""
    assert text
    assert "\n" not in text
    assert len(text) < 800
    assert not PROGRAMMERS_WORDS.search(text), text


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in list_answers(kind)])
def test_answer_to_a_question(attacked: dict[str, Attacked], kind: str, name: str) -> None:
    one = attacked[kind]
    try:
        answer = one.ask(list_answers(kind)[name])
    except JudgeError as error:
        assert_plain(str(error))
    else:
        assert answer.score is None
        assert sum(map(len, answer.replies)) < 200_000
        assert_plain(answer.failure)
    assert {path for path, _ in one.server.requests} <= {
        "/api/chat",
        "/api/version",
        "/api/tags",
        "/v1/chat/completions",
    }
    # The next question is not harmed by it.
    right = one.ask(Answer(raw=build_reply(kind)))
    assert right.score == 100


# What a server may say when it is asked for something else than a verdict.
OTHER = {
    **{name: Answer(raw=BODIES[name]) for name in ("nothing", "list", "null", "web page", "not UTF-8", "nested lists")},
    **{
        name: TRANSPORT[name]
        for name in ("closed at once", "no HTTP", "shorter than said", "compressed", "endless body")
    },
    **{name: STATUSES[name] for name in ("status 500", "refused with 403", "redirect 307", "choices", "not modified")},
    "list of nothing": Answer(raw='{"models": null, "data": null}'),
    "list of other things": Answer(raw='{"models": [1, null], "data": ["llama3"]}'),
    "number for a version": Answer(raw='{"version": 1}'),
    "error beside it": Answer(raw='{"version": "1", "models": [], "status": "success", "error": "failed"}'),
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("asked", ["version", "listing", "pull", "listing afterwards"])
def test_answer_to_something_else(server: FakeOllama, asked: str, name: str) -> None:
    async def work() -> Reply:
        settings = JudgeSection(base_url=server.url, model="other" if asked == "pull" else None, pull=True)
        judge = OllamaJudge(settings.model_copy(update={"timeout_seconds": 0.3}))
        try:
            if asked != "listing afterwards":
                setattr(server, asked, OTHER[name])
            await judge.prepare()
            server.listing = OTHER[name]
            return await judge.ask(QUESTION)
        finally:
            await judge.close()

    try:
        reply = asyncio.run(work())
    except JudgeError as error:
        assert_plain(str(error))
        assert server.chats == [] or asked == "listing afterwards"
    else:
        assert asked == "listing afterwards"
        assert reply.text == ""
        assert_plain(reply.failure)
