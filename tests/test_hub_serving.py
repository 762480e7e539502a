import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import judge_servers
import publishing_runs
import pytest
from transformers import AutoTokenizer, GenerationConfig

from hf_instruct.cli.main import main
from hf_instruct.errors import PublishError
from hf_instruct.generation.answers import answer_examples
from hf_instruct.hub.serving import build_snippet, fit_answer, prepare_served_model
from hf_instruct.local_server import open_socket
from hf_instruct.models import load_model
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

pytestmark = pytest.mark.usefixtures("cache_home")


def test_a_whole_model_is_linked_and_asked_as_in_training(small_model: Path, tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "my run", small_model)
    served = prepare_served_model(run)
    assert served.name == "my-run"
    assert (served / "model.safetensors").samefile(run.model / "model.safetensors")
    written, original = AutoTokenizer.from_pretrained(served), AutoTokenizer.from_pretrained(small_model)
    assert original.chat_template is None
    asked = written.apply_chat_template([{"role": "user", "content": "Why?\n"}], add_generation_prompt=True)
    assert asked["input_ids"] == PromptFormat.from_name("alpaca").encode_prompt(original, "Why?\n")
    assert GenerationConfig.from_pretrained(served).eos_token_id == publishing_runs.END
    # The model of the run stays as it was.
    assert not (run.model / "chat_template.jinja").exists()


def test_a_folder_is_made_once_and_again_when_the_run_changes(small_model: Path, tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "run", publishing_runs.save_adapter(tmp_path / "adapter", small_model))
    served = prepare_served_model(run)
    inode = (served / "model.safetensors").stat().st_ino
    assert prepare_served_model(run) == served
    assert (served / "model.safetensors").stat().st_ino == inode
    os.utime(run.model / "adapter_model.safetensors", (1, 1))
    again = prepare_served_model(run)
    assert again != served
    assert not served.exists()


def test_the_snippet() -> None:
    curl, _, python = build_snippet("mine", "http://127.0.0.1:8000/v1").partition("\n\n")
    compile(python, "snippet", "exec")
    assert curl.startswith("curl http://127.0.0.1:8000/v1/chat/completions")
    assert '"model": "mine"' in curl
    assert 'model="mine"' in python


def test_a_port_in_use(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = publishing_runs.write_run(tmp_path / "run", small_model)
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(run.path), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert (
        f"The model cannot be served at 127.0.0.1:{port} (Address already in use). Stop the program that uses it"
        in error
    )
    assert not (tmp_path / "cache").exists()


def test_a_run_without_a_model(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = publishing_runs.write_run(tmp_path / "run", small_model)
    shutil.rmtree(run.model)
    assert main(["serve", str(run.path), "--port", "0"]) == 1
    assert "has no tuned model yet" in capsys.readouterr().err


def test_a_prompt_that_no_chat_template_writes(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "shout.jinja").write_text("{{ instruction | upper }} {{ input }}:")
    run = publishing_runs.write_run(tmp_path / "run", small_model, prompt_format=str(tmp_path / "shout.jinja"))
    with pytest.raises(PublishError, match=r"cannot be written as a chat template"):
        prepare_served_model(run)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "end"), [(False, signal.SIGINT), (True, signal.SIGTERM)], ids=["full", "lora"])
def test_a_question_over_the_wire(adapter: bool, end: int, small_model: Path, tmp_path: Path) -> None:
    from openai import OpenAI

    tuned = publishing_runs.save_adapter(tmp_path / "adapter", small_model) if adapter else small_model
    run = publishing_runs.write_run(tmp_path / "mine", tuned)
    port = judge_servers.find_free_port()
    command = [sys.executable, "-m", "hf_instruct", "serve", str(run.path), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == f"`mine` is served at http://127.0.0.1:{port}/v1   (press Ctrl-C to stop)\n"
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        assert [listed.id for listed in client.models.list()] == ["mine"]
        question = "Name the capital of France."
        answer = client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=16
        )
        check_refusals(f"http://127.0.0.1:{port}", question)
        process.send_signal(end)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    loaded, tokenizer = load_model(str(tuned))
    expected = answer_examples(loaded, tokenizer, [Example("e", question, "", "")], max_new_tokens=16)[0]
    assert (answer.choices[0].message.content or "").strip() == expected.response != ""
    prompt = PromptFormat.from_name("alpaca").encode_prompt(tokenizer, question)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert (process.returncode, rest.splitlines()[-1]) == (0, "Stopped.")
    assert "Traceback" not in errors


def check_refusals(url: str, question: str) -> None:
    """See that the server does nothing for others, offers no other model, and takes no request that it cannot use."""
    asked = {"messages": [{"role": "user", "content": question}]}
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert client.post("/v1/chat/completions", json=asked, headers={"Origin": "http://evil"}).status_code == 403
        for path in ("/load_model", "/reset", "/v1/responses", "/v1/systemone", "/v1/audio/transcriptions"):
            assert client.post(path, json={"model": "/other/model"}).status_code == 404
        long = question * 500
        refused = {
            "This request is not supported": {"messages": []},
            "Server is pinned to 'mine'": {**asked, "model": "/other/model"},
            "tokens, and the model's limit is 256, including the answer": {
                "messages": [{"role": "user", "content": long}]
            },
            "could not convert string to float": {**asked, "temperature": "warm"},
        }
        for part, body in refused.items():
            for stream in (False, True):
                reply = client.post("/v1/chat/completions", json={**body, "stream": stream})
                assert (reply.status_code, part in reply.json()["error"]["message"]) == (400, True), reply.text
        for prompt in ("", long, None):
            assert client.post("/v1/completions", json={"prompt": prompt}).status_code == 400
        # More than fits: the answer ends where the context does.
        usage = client.post("/v1/chat/completions", json={**asked, "max_tokens": 9999}).json()["usage"]
        assert usage["total_tokens"] <= 256


def test_an_answer_fits_the_context_that_its_prompt_leaves(small_model: Path) -> None:
    loaded, _ = load_model(str(small_model))
    settings = GenerationConfig(max_new_tokens=1024)
    fit_answer(loaded, 250, settings)
    assert settings.max_new_tokens == 6
    for length in (0, 256):
        with pytest.raises(ValueError, match=r"prompt"):
            fit_answer(loaded, length, settings)
