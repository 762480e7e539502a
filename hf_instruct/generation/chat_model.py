"""A model to talk with: loaded by the name of a run or of a model, and shared by all who ask it."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.errors import ConfigError, RunError
from hf_instruct.generation.chat_settings import ChatSettings
from hf_instruct.generation.decoding import Completion
from hf_instruct.generation.streaming import stream_completion
from hf_instruct.models import context_length, load_model, move_to_best_device
from hf_instruct.prompt_checks import settle_format
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SECONDS_BETWEEN_LOOKS = 0.05


class ChatModel:
    """A model that any number of conversations share; it answers one at a time.

    Attributes:
        name: What it was loaded by, and for a run's base model that one's name.
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        prompt_format: The one it was trained on, settled.
        has_turns: Whether a question is asked together with the turns before it.
        context: Most tokens of prompt and answer together; None where the model does not say.
        end_id: The token that ends an answer.
    """

    def __init__(
        self, name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, prompt_format: PromptFormat
    ) -> None:
        """Take a model that is loaded.

        Raises:
            ConfigError: The prompt format is `chat` and the tokenizer has no chat template.
        """
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.prompt_format = settle_format(prompt_format, tokenizer, for_training=False)
        self.context = context_length(model)
        self.end_id = self.prompt_format.end_token_id(tokenizer)
        self.has_turns = self.prompt_format.keeps_turns(tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        name_or_run: str,
        *,
        base: bool = False,
        prompt_format: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
    ) -> "ChatModel":
        """Return the tuned model of a run, or a model by its name, on the fastest device there is.

        Args:
            name_or_run: A run folder, an alias, a Hub id, or the folder of a model or adapter.
            base: Whether to take the model that the run began with.
            prompt_format: Of a model that is no run's; by default `chat` where its tokenizer has a chat template, else
                `alpaca`. A run has its own.
            dtype: `float32`, `bfloat16` or `float16`; by default a run's `generate.dtype`, else `float32`.
            trust_remote_code: Run code that comes with the model.

        Raises:
            RunError: There is no such run, or it has no tuned model yet.
            ConfigError: `base` or `prompt_format` does not go with what is named, or the prompt format with the model.
            ModelLoadError: There is no such model, or it cannot be loaded.
        """
        run = find_run(name_or_run)
        if run is not None:
            run = dataclasses.replace(run, trust_remote_code=trust_remote_code)
            return cls._load_run(run, base=base, prompt_format=prompt_format, dtype=dtype)
        if base:
            raise ConfigError(f"`{name_or_run}` is no run, so there is no base model to compare it with. Name a run.")
        chosen = None if prompt_format is None else PromptFormat.from_name(prompt_format)
        model, tokenizer = load_model(name_or_run, dtype=dtype or "float32", trust_remote_code=trust_remote_code)
        chosen = chosen or PromptFormat.from_name(CHAT if tokenizer.chat_template else "alpaca")
        move_to_best_device(model)
        return cls(name_or_run, model, tokenizer, prompt_format=chosen)

    @classmethod
    def _load_run(cls, run: RunFolder, *, base: bool, prompt_format: str | None, dtype: str | None) -> "ChatModel":
        experiment = run.load_experiment()
        trained_on = experiment.data.prompt_format
        if prompt_format not in (None, trained_on):
            raise ConfigError(
                f"`{run.path}` was trained on the prompt format `{trained_on}`, so it is not asked in "
                f"`{prompt_format}`. Leave out `--prompt-format`."
            )
        if not base:
            run.check_trained()
        name = run.find_base(experiment.model.name) if base else str(run.model)
        model, tokenizer = load_model(
            name,
            revision=experiment.model.revision if base else None,
            trust_remote_code=experiment.model.trust_remote_code,
            dtype=dtype or experiment.generate.dtype,
            base_of=run.model if base else None,
        )
        shown = experiment.model.name if base else str(run.path)
        move_to_best_device(model)
        return cls(shown, model, tokenizer, prompt_format=run.load_prompt_format(trained_on))

    def encode(self, question: str, *, history: Sequence[tuple[str, str]] = (), system: str = "") -> list[int]:
        """Return the token ids of a question's prompt, as `PromptFormat.encode_turns`."""
        return self.prompt_format.encode_turns(self.tokenizer, question, history=history, system=system)

    def answer(
        self,
        prompt: Sequence[int],
        *,
        settings: ChatSettings,
        on_text: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> Completion:
        """Return the completion of a prompt, once no other is being written; see `stream_completion`."""
        nothing = Completion("", stopped=False, num_tokens=0)
        while not self._lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
            if is_stopped():
                return nothing
        try:
            if is_stopped():
                return nothing
            return stream_completion(
                self.model,
                self.tokenizer,
                prompt,
                end_id=self.end_id,
                settings=settings,
                on_text=on_text,
                is_stopped=is_stopped,
            )
        finally:
            self._lock.release()


def find_run(name: str) -> RunFolder | None:
    """Return the run that a name stands for: its folder, or the `model` folder in it; None where it names a model.

    Raises:
        RunError: It is empty, or a path to nothing, to a file, or to a folder that holds neither a run nor a model.
    """
    if not name.strip():
        raise RunError(
            "The name of the model is empty; give a run folder, the folder of a model, an alias or a Hub id."
        )
    path = Path(name).expanduser()
    for folder in (path, path.parent if path.name == "model" else path):
        if RunFolder(folder).config.is_file():
            return RunFolder(folder)
    if path.is_file():
        raise RunError(f"`{name}` is a file; name a run folder, the folder of a model, an alias or a Hub id.")
    is_model = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    # `name/name` with no such folder may stand on the Hub; under a folder that is here, it is a slip.
    is_path = path.exists() or name.startswith((".", "/", "~")) or (len(path.parts) > 1 and path.parent.is_dir())
    if is_path and not is_model:
        RunFolder(path).load_experiment()
    return None
