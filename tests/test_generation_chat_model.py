"""What a name stands for: a run, its base model, an adapter or a plain model, each with its prompt format."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from hf_instruct.errors import ConfigError, RunError
from hf_instruct.generation.answers import answer_examples
from hf_instruct.generation.chat_model import ChatModel, ChatSettings
from hf_instruct.generation.conversation import Conversation
from hf_instruct.records import Example
from hf_instruct.run_folder import RunFolder

SHORT = ChatSettings(max_new_tokens=6)


def _save_run(folder: Path, base: Path, *, prompt_format: str = "phi3", model: Path | None = None) -> Path:
    from hf_instruct.config import Experiment

    values = {"data": {"prompt_format": prompt_format}, "model": {"name": str(base)}}
    folder.mkdir()
    RunFolder(folder).save_experiment(Experiment.model_validate(values))
    if model is not None:
        (folder / "model").symlink_to(model)
    return folder


def test_loading_a_run_its_base_and_a_plain_model(tmp_path: Path, tiny_gpt2: Path, tiny_llama: Path) -> None:
    run = _save_run(tmp_path / "run", tiny_llama, model=tiny_gpt2)
    tuned, base = ChatModel.load(str(run)), ChatModel.load(str(run), base=True)
    assert (tuned.name, tuned.prompt_format.name, tuned.model.config.model_type) == (str(run), "phi3", "gpt2")
    assert (base.name, base.prompt_format.name, base.model.config.model_type) == (str(tiny_llama), "phi3", "llama")
    assert ChatModel.load(str(run / "model")).prompt_format.name == "phi3"
    plain = ChatModel.load(str(tiny_gpt2))
    assert (plain.prompt_format.name, plain.context) == ("alpaca", 256)


def test_loading_an_adapter(tmp_path: Path, tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_models.load_copy(tiny_llama)
    adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    adapter.peft_config["default"].base_model_name_or_path = str(tiny_llama)
    adapter.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    run = _save_run(tmp_path / "run", tiny_llama, prompt_format="alpaca", model=tmp_path / "adapter")
    tuned, base = ChatModel.load(str(run)), ChatModel.load(str(run), base=True)
    answers = ["".join(Conversation(side, settings=SHORT).stream("Name a color.")) for side in (tuned, base)]
    assert answers[0] != answers[1]
    example = Example("x", "Name a color.", "", "")
    assert answers[0] == answer_examples(tuned.model, tuned.tokenizer, [example], max_new_tokens=6)[0].response


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("rum", {}, RunError, "does not exist. Did you mean"),
        ("", {}, RunError, "is not a model; use a run folder"),
        ("file.txt", {}, RunError, "is not a model; use a run folder"),
        ("empty", {}, RunError, "is not a run folder"),
        ("run", {}, RunError, "--resume"),
        ("run", {"prompt_format": "alpaca"}, ConfigError, "was trained with the prompt format `phi3`"),
        ("gpt2", {"base": True}, ConfigError, "is not a run"),
        ("gpt2", {"prompt_format": "chat"}, ConfigError, "needs a tokenizer with a chat template"),
        ("gpt2", {"prompt_format": "nope"}, ConfigError, "Unknown prompt format `nope`"),
    ],
)
def test_what_cannot_be_loaded(
    tmp_path: Path, tiny_gpt2: Path, name: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    _save_run(tmp_path / "run", tiny_gpt2)
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gpt2").symlink_to(tiny_gpt2)
    with pytest.raises(kind) as caught:
        ChatModel.load(str(tmp_path / name) if name else " ", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("temperature", text) for text in ("-1", "nan", "inf", "hot", "", "none")),
        *(("top_p", text) for text in ("0", "1.1")),
        *(("top_k", text) for text in ("-1", "1.5")),
        *(("max_new_tokens", text) for text in ("0", "1e3")),
        *(("repetition_penalty", text) for text in ("0", "11")),
        *(("seed", text) for text in ("-1", "4294967296")),
    ],
)
def test_settings_that_are_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^`{name}` is {text!r}; "):
        ChatSettings().change(**{name: text})
    with pytest.raises(ConfigError, match=r"^`heat` is unknown\. Choose from "):
        ChatSettings().change(heat="1")


def test_nothing_answers_while_another_page_computes_with_the_model(tiny_gpt2: Path) -> None:
    model = ChatModel.load(str(tiny_gpt2))
    stream = Conversation(model, settings=SHORT).stream("Name a color.")
    with ThreadPoolExecutor(1) as thread:
        with model.exclusively():
            answering = thread.submit(lambda: "".join(stream))
            with pytest.raises(TimeoutError):
                answering.result(timeout=0.3)
        assert answering.result(timeout=30)
