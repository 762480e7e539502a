"""llama.cpp itself answers like the model: needs `pip install xllamacpp`, which is prebuilt."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import publishing_runs
import pytest
import tiny_models

from hf_instruct.generation.decoding import generate_completions
from hf_instruct.hub.gguf_file import write_gguf
from hf_instruct.hub.merging import RunModel, load_run_model
from hf_instruct.hub.push import write_publication
from hf_instruct.run_folder import RunFolder

pytestmark = pytest.mark.slow
NUM_TOKENS = 8


def start_server(path: Path) -> Any:
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 256
    # Its cache is in F16 by default, which is not what the model computes.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


def ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_llama_cpp_answers_like_the_model(kind: str, tmp_path: Path) -> None:
    config = tiny_models.gpt2_config() if kind == "gpt2" else tiny_models.llama_config(num_key_value_heads=1)
    run = publishing_runs.write_run(tmp_path / "run", publishing_runs.save_small(tmp_path / "model", config))
    source = load_run_model(run)
    write_gguf(source, tmp_path / "model.gguf", tensor_type="F32")
    check_answers(source, tmp_path / "model.gguf")


@pytest.mark.parametrize("tensor_type", ["F16", "Q8_0"])
def test_llama_cpp_answers_like_the_adapter_that_was_pushed(
    tensor_type: str, adapter_run: RunFolder, tmp_path: Path
) -> None:
    write_publication(adapter_run, tmp_path / "out", "me/a", gguf=True, merge=True)
    file = tmp_path / "out" / f"a-{tensor_type}.gguf"
    # Random weights make close choices, which eight bits turn.
    check_answers(load_run_model(adapter_run), file, same_answers=tensor_type == "F16")


def check_answers(source: RunModel, file: Path, *, same_answers: bool = True) -> None:
    """See that llama.cpp reads the same tokens, writes the same prompt and gives the same greedy answers."""
    server = start_server(file)
    url = server.listening_address
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
        assert answer["content"].strip() == expected[0].text or not same_answers
