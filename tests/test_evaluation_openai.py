"""The judge behind OpenAI's API, against a small server that answers as such servers do."""

import asyncio
import json
import time
from typing import Any

import pytest
from fake_judge import QUESTION
from fake_ollama import Answer, FakeOllama, build_completion

from hf_instruct.config import JudgeSection
from hf_instruct.errors import ConfigError, JudgeError, JudgeUnavailable
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.openai import OpenAIJudge

MODEL = "llama3:latest"


def completion(content: str | None = '{"score": 85}', *, model: str = MODEL, **message: Any) -> Answer:
    reply = build_completion(model, Answer())
    reply["choices"][0]["message"] |= {"content": content, **message}
    return Answer(raw=json.dumps(reply))


def ask(server: FakeOllama, answer: Answer | None = None, **settings: Any) -> tuple[Reply, dict[str, Any]]:
    """Return the reply of a prepared judge to one question, which may get another answer, and its identity."""

    async def work() -> tuple[Reply, dict[str, Any]]:
        given = {"backend": "openai", "base_url": f"{server.url}/v1", "retries": 0, **settings}
        judge = OpenAIJudge(JudgeSection(**given))
        try:
            await judge.prepare()
            server.script += [answer] if answer else []
            return await judge.ask(QUESTION), judge.identity()
        finally:
            await judge.close()

    return asyncio.run(work())


def test_request_and_identity(server: FakeOllama) -> None:
    reply, identity = ask(server)
    assert (reply.text, reply.failure) == ('{"score": 85}', None)
    assert server.chats[-1] == {
        "model": MODEL,
        "messages": QUESTION.messages,
        "temperature": 0.0,
        "seed": 123,
        "max_completion_tokens": 512,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": QUESTION.schema, "strict": True},
        },
    }
    assert (identity["model"], identity["options"]["base_url"]) == (MODEL, f"{server.url}/v1")
    assert server.keys == {"Bearer EMPTY"}


def test_address_without_its_password(server: FakeOllama) -> None:
    _, identity = ask(server, base_url=server.url.replace("http://", "http://me:secret@") + "/v1")
    assert "secret" not in json.dumps(identity)


def test_one_of_several_models_has_to_be_named(server: FakeOllama) -> None:
    server.models = {"b": "", "a": ""}
    with pytest.raises(JudgeUnavailable, match=r"`--judge\.model NAME`\. It has: `a`, `b`\.$"):
        ask(server)
    assert ask(server, model="b")[1]["model"] == "b"


def test_server_without_schemas_is_used_and_said(server: FakeOllama, caplog: pytest.LogCaptureFixture) -> None:
    server.reply = lambda body: (
        Answer("response_format is not supported", status=400) if "response_format" in body else completion("85")
    )
    answer, identity = ask(server)
    assert (answer.text, identity["options"]["response_format"]) == ("85", None)
    assert "does not support a JSON schema" in caplog.text


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (Answer('{"score": 8', done_reason="length"), "the reply was cut at 512 tokens (`judge.max_new_tokens`)"),
        (completion(None, refusal="I may not."), "the judge refused: I may not"),
        (completion("", reasoning_content='{"score": 2}'), "the judge wrote no answer after thinking"),
        (Answer("out of memory", status=500), "the server failed: out of memory (status 500)"),
        (Answer(raw="<html></html>", headers={"Content-Type": "text/html"}), "the answer is not JSON but text/html"),
        (Answer("This model's maximum context length is 128 tokens", status=400), "the question is too long: "),
    ],
)
def test_failures_of_one_question(server: FakeOllama, answer: Answer, failure: str) -> None:
    assert (ask(server, answer)[0].failure or "").startswith(failure)


def test_reply_of_another_model_ends_judging(server: FakeOllama) -> None:
    with pytest.raises(JudgeError, match=f"answered as `{MODEL}` before but now as `another`"):
        ask(server, completion(model="another"))


def test_model_behind_a_tag_is_part_of_the_identity(server: FakeOllama) -> None:
    assert "answered_as" not in ask(server, model=MODEL)[1]["options"]
    server.reply = lambda body: completion(model="gpt-4o-2024")
    assert ask(server, model=MODEL)[1]["options"]["answered_as"] == "gpt-4o-2024"


def test_thinking_is_asked_for(server: FakeOllama) -> None:
    _, identity = ask(server, think="high")
    assert server.chats[-1]["reasoning_effort"] == identity["options"]["think"] == "high"
    _, identity = ask(server)
    assert "reasoning_effort" not in server.chats[-1]
    assert "think" not in identity["options"]


def test_refused_setting_is_named_and_can_be_left_out(server: FakeOllama) -> None:
    def reply(body: dict[str, Any]) -> Answer:
        for name in ("temperature", "seed"):
            if name in body:
                return Answer(f"Unsupported value: '{name}' does not support {body[name]} here.", status=400)
        return completion()

    server.reply = reply
    with pytest.raises(JudgeError, match=r"Set `judge\.temperature: null` to leave the temperature to the server\.$"):
        ask(server)
    with pytest.raises(JudgeError, match=r"Set `judge\.seed: null` to leave the seed to the server\.$"):
        ask(server, temperature=None)
    answer, identity = ask(server, temperature=None, seed=None)
    assert answer.failure is None
    assert (identity["options"]["temperature"], identity["options"]["seed"]) == (None, None)


def test_a_timeout_is_not_waited_for_again_with_each_retry(server: FakeOllama) -> None:
    start = time.monotonic()
    reply, _ = ask(server, Answer(seconds=2), retries=3, timeout_seconds=0.5)
    assert reply.failure == "no reply within 0.5 s"
    assert time.monotonic() - start < 2
    # One question finds out about schemas.
    assert len(server.chats) == 2


def test_server_that_is_gone(server: FakeOllama) -> None:
    server.dies_after = 1
    with pytest.raises(JudgeUnavailable, match=r"^The server at .* no longer answers \("):
        ask(server, retries=4)
    with pytest.raises(JudgeUnavailable, match=r"^No server answers at .* \(it usually ends in /v1\)\.$"):
        ask(server)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer("no such thing", status=404), f"does not have the model `{MODEL}`, or does not support chat: "),
        (Answer("bad key", status=401), "refuses the question: bad key"),
        (Answer("temperature is unsupported", status=400), "refuses the question: "),
    ],
)
def test_refusals_before_the_first_question(server: FakeOllama, answer: Answer, text: str) -> None:
    server.reply = lambda body: answer
    with pytest.raises(JudgeError, match=text):
        ask(server)


@pytest.mark.parametrize("port", ["99999", "abc"])
def test_an_address_that_cannot_be(port: str) -> None:
    with pytest.raises(ConfigError, match=rf"address `http://127.0.0.1:{port}` is not usable") as caught:
        OpenAIJudge(JudgeSection(backend="openai", base_url=f"http://me:secret@127.0.0.1:{port}"))
    assert "secret" not in str(caught.value)


def test_key_is_needed_for_openai_itself() -> None:
    with pytest.raises(JudgeUnavailable, match=r"^OPENAI_API_KEY is not set\."):
        OpenAIJudge(JudgeSection(backend="openai"))
