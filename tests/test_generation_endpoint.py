"""Answers from a server: what it is asked, what its replies become, and going on after it failed."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import publishing_runs
import pytest
import tiny_models

from hf_instruct import servers
from hf_instruct.cli.main import main
from hf_instruct.config import GenerateSection
from hf_instruct.evaluation.responses import load_responses
from hf_instruct.generation.endpoint import build_completion_prompts
from hf_instruct.generation.stage import answer
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response

EXAMPLES = tiny_models.tiny_examples(5)
Replies = Callable[[int, dict[str, Any]], tuple[int, dict[str, Any]]]


def echo(number: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer with the end of the question."""
    asked = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    text = f" {str(asked)[-20:]} "
    choice = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    finish = "length" if number == 0 else "stop"
    return 200, {"choices": [{**choice, "finish_reason": finish}], "usage": {"completion_tokens": 7}}


class FakeServer(ThreadingHTTPServer):
    """Notes the path and body of each question; `replies` returns status and body by the question's number."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.replies: Replies = echo
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, format: str, *args: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, body))
        status, reply = self.server.replies(len(self.server.asked) - 1, body)
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(servers, "DELAYS", [0.0] * 4)
    with FakeServer() as started:
        threading.Thread(target=started.serve_forever).start()
        yield started
        started.shutdown()


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> RunFolder:
    return tiny_models.write_run_to_answer(tmp_path / "run", tiny_gpt2, EXAMPLES)


def test_a_run_asks_its_own_prompts(run: RunFolder, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(run.path), "--endpoint", server.url, "--model", "mine", "--concurrency", "1"]
    assert main([*arguments, "--limit", "2"]) == 0
    alpaca = PromptFormat.from_name("alpaca")
    prompts = [alpaca.format_prompt(example.instruction, example.input) for example in EXAMPLES]
    body = {"model": "mine", "max_tokens": 5, "temperature": 0}
    assert server.asked == [("/v1/completions", {**body, "prompt": prompt}) for prompt in prompts[:2]]
    rows = run.read_responses()
    assert [row.response for row in rows] == [prompt[-20:].strip() for prompt in prompts[:2]]
    assert [(row.stopped, row.num_tokens, row.output) for row in rows] == [
        (False, 7, EXAMPLES[0].output),
        (True, 7, EXAMPLES[1].output),
    ]
    # The others, after a first look.
    assert main(arguments) == 0
    assert [row.id for row in run.read_responses()] == [example.id for example in EXAMPLES]
    assert len(server.asked) == 5
    assert main(["generate", str(run.path), "--endpoint", server.url, "--model", "another"]) == 1
    assert "`generate.model` changed" in capsys.readouterr().err


def test_a_chat_model_answers_any_examples(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "test.jsonl", tmp_path / "new" / "llama3.jsonl"
    write_rows(data, EXAMPLES)
    arguments = ["generate", str(data), "--endpoint", f"{server.url}/api/v1/", "--model", "llama3", "--out", str(out)]
    assert main([*arguments, "--strategy", "top-p", "--seed", "3"]) == 0
    path, body = server.asked[0]
    assert path == "/api/v1/chat/completions"
    assert (body["top_p"], body["top_k"], body["temperature"], body["max_completion_tokens"]) == (0.92, 0, 1.0, 256)
    assert len({asked["seed"] for _, asked in server.asked}) == 5
    assert {asked["messages"][0]["content"] for _, asked in server.asked} == {
        f"{example.instruction}\n{example.input}" if example.input else example.instruction for example in EXAMPLES
    }
    assert [(row.id, row.model) for row in read_rows(out, Response)] == [(row.id, "llama3") for row in EXAMPLES]
    assert [row.model for row in load_responses(out)] == ["tuned"] * 5
    assert main(arguments) == 0
    assert len(server.asked) == 5
    assert main([*arguments, "--model", "phi3"]) == 1
    assert "contains answers of `llama3`, not of `phi3`" in capsys.readouterr().err
    assert main([*arguments, "--num-return", "3"]) == 1
    assert "`generate.num_return_sequences` is 3; leave it out" in capsys.readouterr().err


def test_what_was_answered_before_a_failure_is_kept(
    run: RunFolder, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        # Busy at first, which passes; then for good.
        status = {1: 503, 4: 400}.get(number, 200)
        return (status, {"error": {"message": "out of order"}}) if status != 200 else echo(number, body)

    server.replies = fail
    arguments = ["generate", str(run.path), "--endpoint", server.url, "--model", "mine", "--concurrency", "1"]
    assert main(arguments) == 1
    assert f"did not answer example `{EXAMPLES[3].id}`: out of order (status 400)." in capsys.readouterr().err
    assert [row.id for row in run.read_responses()] == [example.id for example in EXAMPLES[:3]]
    server.replies = echo
    assert main(arguments) == 0
    assert len(server.asked) == 7
    assert len(run.read_responses()) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generate.num_beams", "3"], "`generate.num_beams` is 3; leave it out"),
        (["--generate.repetition_penalty", "1.3"], "`generate.repetition_penalty` is 1.3; leave it out"),
        (["--generate.model", "null"], "`generate.model` is not set"),
        (["--endpoint", "ftp://x"], "The endpoint `ftp://x/v1` is not usable"),
        (["--endpoint", "http://127.0.0.1:9"], "No server answers at http://127.0.0.1:9/v1"),
        (["--endpoint", "null"], "`--model` is the name of a model on a server"),
        (["--out", "x.jsonl", "--format", "course"], "cannot be used with `--preset` or `--format`"),
    ],
)
def test_mistakes(
    run: RunFolder, server: FakeServer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["generate", str(run.path), "--endpoint", server.url, "--model", "mine", *words]) == 1
    assert message in capsys.readouterr().err
    assert server.asked == []
    assert not run.responses.exists()


def test_special_tokens_of_a_user_are_text_for_the_server_too(tiny_llama: Path) -> None:
    _, tokenizer = tiny_models.load_copy(tiny_llama)
    alpaca = PromptFormat.from_name("alpaca")
    hostile = Example("x", "Say <|endoftext|> twice.", "", "")
    plain, ids = build_completion_prompts([EXAMPLES[0], hostile], alpaca, tokenizer)
    assert plain == {"prompt": alpaca.format_prompt(EXAMPLES[0].instruction, EXAMPLES[0].input)}
    assert ids == {"prompt": alpaca.encode_prompt(tokenizer, hostile.instruction)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_llama_cpp_answers_as_here(kind: str, tmp_path: Path) -> None:
    from test_hub_llamacpp import start_server

    from hf_instruct.hub.gguf_file import write_gguf
    from hf_instruct.hub.merging import load_run_model

    config = tiny_models.gpt2_config() if kind == "gpt2" else tiny_models.llama_config(num_key_value_heads=1)
    run = publishing_runs.write_run(tmp_path / "run", publishing_runs.save_small(tmp_path / "model", config))
    write_rows(run.split("test"), EXAMPLES)
    write_gguf(load_run_model(run), tmp_path / "model.gguf", tensor_type="F32")
    experiment = run.load_experiment()
    experiment.generate = GenerateSection(max_new_tokens=8, base=False)
    run.responses.unlink(missing_ok=True)
    answer(run, experiment)
    here = run.read_responses()
    run.responses.unlink()
    started = start_server(tmp_path / "model.gguf")
    experiment.generate = GenerateSection(
        max_new_tokens=8, base=False, endpoint=started.listening_address, model="tuned", concurrency=2
    )
    answer(run, experiment)
    there = run.read_responses()
    assert [row.response for row in there] == [row.response for row in here]
    assert [row.stopped for row in there] == [row.stopped for row in here]
    assert [row.num_tokens for row in there] == [row.num_tokens for row in here]
