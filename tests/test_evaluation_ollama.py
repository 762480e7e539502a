"""The Ollama judge against a server that answers, and fails, as Ollama does."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fake_judge import QUESTION
from fake_ollama import DIGEST, Answer, FakeOllama

from hf_instruct.config import JudgeSection
from hf_instruct.errors import ConfigError, JudgeError, JudgeUnavailable
from hf_instruct.evaluation.judges import Reply, choose_judge, opened_judge
from hf_instruct.evaluation.ollama import OllamaJudge, parse_ollama_host

CONTEXT_ERROR = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "request (301 tokens) exceeds the available context size (128 tokens), try increasing it",
            "type": "exceed_context_size_error",
        }
    }
)


def ask(server: FakeOllama, *, times: int = 1, **settings: object) -> list[Reply]:
    """Return the replies to one question, asked several times in a row of a prepared judge."""

    async def work() -> list[Reply]:
        judge = OllamaJudge(JudgeSection(backend="ollama", base_url=server.url, **settings))
        try:
            await judge.prepare()
            return [await judge.ask(QUESTION) for _ in range(times)]
        finally:
            await judge.close()

    return asyncio.run(work())


def test_request_pins_everything_that_moves_the_reply(server: FakeOllama) -> None:
    (reply,) = ask(server)
    assert (reply.text, reply.failure) == ('{"score": 85}', None)
    (body,) = server.chats
    assert body == {
        "model": "llama3",
        "messages": [{"role": "user", "content": QUESTION.messages[0]["content"]}],
        "stream": False,
        "truncate": False,
        "think": False,
        "keep_alive": "10m",
        "format": {
            "type": "object",
            "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}},
            "required": ["score"],
            "additionalProperties": False,
        },
        "options": {
            "temperature": 0.0,
            "seed": 123,
            "num_ctx": 4096,
            "num_predict": 512,
            "repeat_penalty": 1.0,
            "top_k": 40,
            "top_p": 0.9,
        },
    }
    loads = [body for path, body in server.requests if path == "/api/chat" and not body["messages"]]
    assert [load["options"] for load in loads] == [body["options"]]


@pytest.mark.parametrize("name", ["LLAMA3", "llama3:latest", None])
def test_identity_names_digest_version_and_options(server: FakeOllama, name: str | None) -> None:
    async def work() -> dict[str, Any]:
        async with opened_judge(JudgeSection(backend="auto", base_url=server.url, num_ctx=2048, model=name)) as judge:
            return judge.identity()

    identity = asyncio.run(work())
    # Names compare as Ollama compares them.
    assert [identity[name] for name in ("backend", "model", "digest", "server_version")] == [
        *("ollama", name or "llama3", DIGEST, "0.33.0")
    ]
    assert identity["options"]["num_ctx"] == 2048


def test_absent_model_is_named_with_the_command(server: FakeOllama) -> None:
    with pytest.raises(JudgeUnavailable, match=r"`phi3` \(it has: `llama3:latest`\)\. Run `ollama pull phi3`"):
        ask(server, model="phi3")
    assert server.chats == []


def test_model_removed_while_judging(server: FakeOllama) -> None:
    server.script = [Answer("model 'llama3' not found", status=404)]
    with pytest.raises(JudgeUnavailable, match=r"says: model 'llama3' not found\. Run `ollama pull llama3`\.$"):
        ask(server)
    assert len(server.chats) == 1


def test_absent_server_is_named_with_the_command(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop()
    with pytest.raises(JudgeUnavailable, match=rf"^No Ollama server answers at {server.url} .* with `ollama serve`"):
        ask(server)
    # With an address of the user's own, `auto` does not fall back to another judge; it asks once.
    monkeypatch.setattr("hf_instruct.servers.DELAYS", [60.0])
    with pytest.raises(JudgeUnavailable, match=rf"^No Ollama server answers at {server.url} \(`base_url`; All"):
        asyncio.run(choose_judge(JudgeSection(base_url=server.url)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(raw="<html>Welcome</html>"), "the answer is not a complete JSON object: <html>Welcome</html>"),
        (Answer(raw='{"status": "fine"}'), 'the answer lacks a valid `version`: {"status": "fine"}'),
        (Answer("no", status=404), "status 404: no"),
    ],
)
def test_something_else_at_the_address(server: FakeOllama, answer: Answer, reason: str) -> None:
    server.version = answer
    with pytest.raises(JudgeUnavailable) as caught:
        ask(server)
    assert f"The server at {server.url} is not an Ollama server ({reason})" in str(caught.value)


def test_busy_server_is_asked_again(server: FakeOllama) -> None:
    busy = Answer("server busy, please try again.  maximum pending requests exceeded", status=503)
    server.script = [busy, busy]
    (reply,) = ask(server)
    assert (reply.text, reply.failure) == ('{"score": 85}', None)
    assert len(server.chats) == 3


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (Answer("stopped", status=500), "the server failed: stopped (status 500)"),
        (Answer(raw='["broken"]', status=500), 'the server failed: ["broken"] (status 500)'),
        (Answer(raw='{"error": "an error"}'), "the server failed: an error (status 200)"),
        # As gpt-oss does when told not to think, which it does not know.
        (Answer("", thinking='{"score": 2}'), "the judge wrote no answer after thinking (`judge.think` is "),
        (
            Answer("", thinking="Hmm", done_reason="length"),
            "the judge was still thinking when its reply was cut off at 64",
        ),
        (Answer('{"score": 8', done_reason="length"), "the reply was cut at 64 tokens (`judge.max_new_tokens`)"),
        (Answer("and and", done=False), "the server stopped the reply"),
    ],
)
def test_failures_of_one_question(server: FakeOllama, answer: Answer, failure: str) -> None:
    server.script = [answer]
    failed, fine = ask(server, times=2, max_new_tokens=64)
    assert (failed.failure or "").startswith(failure)
    assert (failed.final, fine.failure, len(server.chats)) == (False, None, 2)


@pytest.mark.parametrize("think", [False, True, "high"])
def test_thinking_is_asked_for_and_kept_apart(server: FakeOllama, think: bool | str) -> None:
    server.script = [Answer('{"score": 85}', thinking="Perhaps 100.")]
    (reply,) = ask(server, think=think)
    assert (reply.text, reply.failure) == ('{"score": 85}', None)
    assert {body["think"] for path, body in server.requests if path == "/api/chat"} == {think}
    identity = OllamaJudge(JudgeSection(base_url=server.url, think=think)).identity()
    assert identity["options"].get("think") == (think or None)


@pytest.mark.parametrize(
    ("obeyed", "sent", "warning"),
    [
        ({False, None}, False, ""),
        ({None}, None, "ignores the JSON schema if `llama3` is told not to think"),
        (set(), False, "`llama3` on Ollama 0.33.0 does not follow the JSON schema"),
    ],
)
def test_schema_that_is_dropped_is_found(
    server: FakeOllama, caplog: pytest.LogCaptureFixture, obeyed: set[bool | None], sent: bool | None, warning: str
) -> None:
    server.trial = lambda body: Answer('{"ready": false}' if body.get("think") in obeyed else "Yes.", thinking="Hm.")
    (reply,) = ask(server)
    assert reply.failure is None
    assert server.chats[-1].get("think") == sent
    assert [warning in record.message for record in caplog.records] == [True] * bool(warning)


@pytest.mark.parametrize("answer", [Answer(status=400, content="no"), Answer(cut=True), Answer(raw="<html>")])
def test_schema_that_cannot_be_tried_is_left(
    server: FakeOllama, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    server.trial = lambda body: answer
    assert ask(server)[0].failure is None
    assert server.chats[-1]["think"] is False
    assert not caplog.records


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ('"llama3" does not support chat', ""),
        ('think value "low" is not supported for this model', "Set `judge.think` to a value that this model accepts: "),
        ("temperature: only the default (1) is supported", "Set `judge.temperature: null`"),
        ("unknown option: seed", "Set `judge.seed: null` to leave the seed to the server."),
    ],
)
def test_refused_setting_is_named(server: FakeOllama, refusal: str, advice: str) -> None:
    server.script = [Answer(refusal, status=400)]
    with pytest.raises(JudgeError) as caught:
        ask(server)
    assert f"refuses the question: {refusal} (status 400)." in str(caught.value)
    assert advice in str(caught.value)


def test_settings_that_are_left_to_the_server(server: FakeOllama) -> None:
    ask(server, temperature=None, seed=None)
    assert set(server.chats[0]["options"]) == {"num_ctx", "num_predict", "repeat_penalty", "top_k", "top_p"}
    judge = OllamaJudge(JudgeSection(base_url=server.url, temperature=None))
    assert "temperature" not in judge.identity()["options"]
    judge.reseed(7)
    judge.reseed(None)
    assert "seed" not in judge.identity()["options"]


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (lambda server: server.models.update({"llama3:latest": "f" * 64}), "ffffffffffff on Ollama 0.33.0"),
        (lambda server: server.models.pop("llama3:latest"), "none on Ollama 0.33.0"),
        (lambda server: setattr(server, "version", "0.34.0"), "365c0bd3c000 on Ollama 0.34.0"),
    ],
)
def test_judge_that_changes_before_its_reply_is_no_judge(
    server: FakeOllama, change: Callable[[FakeOllama], object], now: str
) -> None:
    def reply(body: dict[str, Any]) -> Answer:
        change(server)
        return Answer()

    server.reply = reply
    with pytest.raises(JudgeError) as caught:
        ask(server)
    assert f"changed during judging (digest 365c0bd3c000 on Ollama 0.33.0; now {now})" in str(caught.value)


def test_server_that_no_longer_tells_its_models(server: FakeOllama) -> None:
    def reply(body: dict[str, Any]) -> Answer:
        server.listing = Answer("out of memory", status=500)
        return Answer()

    server.reply = reply
    (failed,) = ask(server)
    assert (failed.text, failed.failure) == (
        "",
        "cannot check that the model is still the same: out of memory",
    )


def test_cut_connection_is_tried_again(server: FakeOllama) -> None:
    server.script = [Answer(cut=True)]
    (reply,) = ask(server)
    assert (reply.text, reply.failure) == ('{"score": 85}', None)
    server.reply = lambda body: Answer(cut=True)
    (reply,) = ask(server)
    assert reply.failure is not None
    assert reply.failure.startswith("the connection broke (")
    assert len(server.chats) == 2 + 4


def test_too_long_question_is_a_failure_of_its_own(server: FakeOllama) -> None:
    server.script = [Answer(CONTEXT_ERROR, status=400)]
    too_long, fine = ask(server, times=2, num_ctx=128)
    assert too_long.failure is not None
    assert "exceeds the available context size" in too_long.failure
    assert "`judge.num_ctx` is 128" in too_long.failure
    assert (too_long.final, fine.failure, len(server.chats)) == (True, None, 2)


@pytest.mark.parametrize(
    ("num_ctx", "read", "is_cut"),
    [
        (128, 128, True),
        (128, 127, False),
        # Half the window and two tokens, of a question that such a number of tokens cannot hold, and of one it can.
        (96, 50, True),
        (204, 104, False),
    ],
)
def test_question_that_the_server_cut_is_a_failure(server: FakeOllama, num_ctx: int, read: int, is_cut: bool) -> None:
    server.reply = lambda body: Answer(prompt_tokens=read)
    (reply,) = ask(server, num_ctx=num_ctx)
    characters = len(QUESTION.messages[0]["content"])
    assert 6 * 50 < characters < 6 * 104
    assert (reply.final, "the server cut it" in (reply.failure or "")) == (is_cut, is_cut)


def test_dead_server_ends_judging(server: FakeOllama) -> None:
    server.dies_after = 1
    with pytest.raises(JudgeUnavailable, match=r"no longer answers"):
        ask(server, times=2)


PULL_START = [
    {"status": "pulling manifest"},
    {"status": "pulling 6a07", "digest": "sha256:6a07", "total": 1000},
    {"status": "pulling 6a07", "digest": "sha256:6a07", "total": 1000, "completed": 500},
]


def test_pull(server: FakeOllama, caplog: pytest.LogCaptureFixture) -> None:
    server.pull_lines = [*PULL_START, {"status": "writing manifest"}, {"status": "success"}]
    server.pulled = "phi3:latest"
    with caplog.at_level(logging.INFO, logger="hf_instruct"):
        (reply,) = ask(server, model="phi3", pull=True)
    assert reply.failure is None
    assert "Pulling phi3 (percent): 100/100, success" in caplog.text
    (body,) = [body for path, body in server.requests if path == "/api/pull"]
    assert (body["model"], body["stream"]) == ("phi3", True)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ([{"error": "pull model manifest: file does not exist"}], "cannot pull `phi3`: pull model manifest: file does"),
        ([], "stopped pulling `phi3` at 'pulling 6a07'. Run `ollama pull phi3`"),
    ],
)
def test_pull_that_fails_or_breaks_off(server: FakeOllama, last: list[dict[str, Any]], text: str) -> None:
    server.pull_lines = [*PULL_START, *last]
    with pytest.raises(JudgeUnavailable) as caught:
        ask(server, model="phi3", pull=True)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("  ", "http://127.0.0.1:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("host", "http://host:11434"),
        ("host:", "http://host:11434"),
        ("host:80", "http://host:80"),
        (' "host:8080"\n', "http://host:8080"),
        ("' 10.0.0.1 '", "http://10.0.0.1:11434"),
        ("http://host", "http://host:80"),
        ("https://host", "https://host:443"),
        ("http://", "http://127.0.0.1:80"),
        ("https://host:8443/ollama/", "https://host:8443/ollama"),
        ("host/ollama", "http://host:11434/ollama"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("http://0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1234", "http://[::1]:1234"),
        ("::", "http://[::1]:11434"),
        ("[::]:1234", "http://[::1]:1234"),
        ("fe80:0:0::2", "http://[fe80::2]:11434"),
        ("me:pass@host:1", "http://me:pass@host:1"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(host: str, url: str) -> None:
    assert parse_ollama_host(host) == url


@pytest.mark.parametrize("host", ["localhost:x", "host:99999", "ftp://host", "[::1", "host:-1"])
def test_addresses_that_are_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises(ConfigError, match=r"^OLLAMA_HOST `.*` is not usable\. It looks like http://127"):
        OllamaJudge(JudgeSection())


@pytest.mark.parametrize("host", ["0.0.0.0", "'127.0.0.1'", "[::]"])
def test_no_proxy_is_asked_for_this_machine(server: FakeOllama, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OLLAMA_HOST", f"{host.rstrip(chr(39))}:{server.url.rpartition(':')[2]}")

    async def work() -> str | None:
        judge = OllamaJudge(JudgeSection())
        try:
            return await judge.find_problem()
        finally:
            await judge.close()

    problem = asyncio.run(work())
    # The fake server has no IPv6 address; a proxy would be another error.
    assert problem == ("All connection attempts failed" if host == "[::]" else None)
