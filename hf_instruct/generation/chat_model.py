"""A chat model: loaded from a run or by name, and shared by all conversations."""

import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hf_instruct.errors import ConfigError, InstructError, RunError, is_bug
from hf_instruct.generation.decoding import Completion, decode_tokens, find_ends, generate_completions
from hf_instruct.generation.stage import load_model_of_run
from hf_instruct.memory import is_out_of_memory
from hf_instruct.models import context_length, load_model, move_to_best_device
from hf_instruct.prompt_checks import resolve_format
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED
from hf_instruct.validation import format_problems

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SECONDS_BETWEEN_LOOKS = 0.05
# Logits divided by less overflow, and only the most likely token would be left anyway.
_MIN_TEMPERATURE = 0.01


class ChatSettings(BaseModel):
    """Settings of answers in a conversation, with the names of `GenerationConfig`.

    Temperature 0 selects the most likely token, top-k 0 keeps all tokens, and without a seed every sample is different.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(256, ge=1, le=10**6)
    repetition_penalty: float = Field(1.0, ge=0.1, le=10)
    seed: int | None = Field(None, ge=0, lt=2**32)

    def change(self, **values: Any) -> "ChatSettings":
        """Return these settings with changes; values can be text that a user typed.

        Raises:
            ConfigError: There is no such setting, or the value is not allowed.

        >>> ChatSettings().change(temperature="0.7", seed="none").temperature
        0.7
        """
        if str(values.get("seed")).strip().lower() in ("none", ""):
            values = {**values, "seed": None}
        try:
            return ChatSettings.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            problem, *_ = format_problems(error, ChatSettings)
            raise ConfigError(problem if problem.endswith((".", "?")) else f"{problem}.") from error

    def build_generation(self) -> dict[str, Any]:
        """Return the arguments of `generate_completions` for one prompt."""
        fields = self.model_dump(exclude={"seed"})
        if self.temperature < _MIN_TEMPERATURE:
            return {name: fields[name] for name in ("max_new_tokens", "repetition_penalty")}
        # Seeded even if no seed is set, because other threads use PyTorch's global generator.
        seed = secrets.randbits(32) if self.seed is None else self.seed
        return {**fields, "do_sample": True, "seeds": [seed]}


class ChatModel:
    """A model shared by any number of conversations; it answers one at a time.

    Attributes:
        name: The name it was loaded with; for the untuned model of a run, the base model's name.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompt_format: The format it was trained on, resolved.
        has_turns: Whether prompts contain earlier turns.
        context: Maximum number of tokens in prompt and answer; None if unknown.
        end_id: The token that ends an answer.
        role: The model's label in its run, from `Provenance.label`; `tuned` without a run.
    """

    def __init__(
        self,
        name: str,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        prompt_format: PromptFormat,
        role: str = TUNED,
    ) -> None:
        """Wrap a loaded model.

        Raises:
            ConfigError: The prompt format is `chat` and the tokenizer has no chat template.
        """
        self.name, self.model, self.tokenizer, self.role = name, model, tokenizer, role
        self.prompt_format = resolve_format(prompt_format, tokenizer, for_training=False)
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
        """Return the tuned model of a run, or a model by its name, on the fastest available device.

        Args:
            name_or_run: A run folder, an alias, a Hub id, or the folder of a model or adapter.
            base: Whether to load the model that the run started from.
            prompt_format: Format for a model without a run; by default `chat` if its tokenizer has a chat template,
                otherwise `alpaca`. A run has its own format.
            dtype: `float32`, `bfloat16` or `float16`; by default a run's `generate.dtype`, otherwise `float32`.
            trust_remote_code: Run code that comes with the model.

        Raises:
            RunError: There is no such run, or it has no tuned model yet.
            ConfigError: `base` is set without a run, `prompt_format` is not the run's, or the model does not support
                the prompt format.
            ModelLoadError: There is no such model, or it cannot be loaded.
        """
        run = find_run(name_or_run)
        if run is None:
            if base:
                raise ConfigError(f"`{name_or_run}` is not a run, so it has no untuned model. Use a run folder.")
            chosen = prompt_format and PromptFormat.from_name(prompt_format)
            model, tokenizer = load_model(name_or_run, dtype=dtype or "float32", trust_remote_code=trust_remote_code)
            move_to_best_device(model)
            chosen = chosen or PromptFormat.from_name(CHAT if tokenizer.chat_template else "alpaca")
            return cls(name_or_run, model, tokenizer, prompt_format=chosen)
        run = dataclasses.replace(run, trust_remote_code=trust_remote_code)
        experiment = run.load_experiment()
        trained_on = run.load_prompt_format(experiment.data.prompt_format)
        if prompt_format not in (None, trained_on.name):
            raise ConfigError(
                f"`{run.path}` was trained with the prompt format `{trained_on.name}`, so it cannot use "
                f"`{prompt_format}`. Leave out `--prompt-format`."
            )
        which = experiment.start if base else TUNED
        model, tokenizer = load_model_of_run(run, experiment, which, dtype=dtype)
        name = experiment.model.name if base else str(run.path)
        return cls(name, model, tokenizer, prompt_format=trained_on, role=run.read_provenance().label(which))

    def encode(self, question: str, *, history: Sequence[tuple[str, str]] = (), system: str = "") -> list[int]:
        """Return the token ids of a question's prompt; see `PromptFormat.encode_turns`."""
        return self.prompt_format.encode_turns(self.tokenizer, question, history=history, system=system)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Context manager that blocks answers, for code that uses `model` directly."""
        with self._lock:
            yield

    def stream(self, prompt: Sequence[int], *, settings: ChatSettings, stop: threading.Event) -> Iterator[Completion]:
        """Yield the completion of a prompt as it grows, after waiting for other answers; the last one is complete.

        Each text starts with the previous one; incomplete characters and trailing white space are held back. At
        temperature 0 the last one equals that of `generate_completions`. Generation runs in another thread, which ends
        with the iterator.

        Args:
            prompt: Token ids, not empty.
            settings: Generation settings.
            stop: Checked after each token; generation ends when it is set.

        Raises:
            ConfigError: Transformers refuses the settings.
            InstructError: There is not enough memory.
        """
        grown: SimpleQueue[Completion | None] = SimpleQueue()
        has_left = threading.Event()

        def is_over() -> bool:
            return stop.is_set() or has_left.is_set()

        def work() -> None:
            try:
                while not self._lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
                    if is_over():
                        return
                try:
                    if not is_over():
                        self._write(prompt, settings, is_over, grown)
                finally:
                    self._lock.release()
            finally:
                grown.put(None)

        with ThreadPoolExecutor(1, thread_name_prefix="answer") as thread:
            working = thread.submit(work)
            try:
                while (completion := grown.get()) is not None:
                    yield completion
            finally:
                has_left.set()
            try:
                working.result()
            except ValueError as error:
                if is_bug(error):
                    raise
                raise ConfigError(f"Transformers refuses these settings: {error}") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise InstructError(
                    f"The machine ran out of memory for a prompt of {len(prompt):,} tokens; shorten it, lower "
                    "`max_new_tokens`, or use a smaller model."
                ) from error

    def _write(
        self,
        prompt: Sequence[int],
        settings: ChatSettings,
        is_over: Callable[[], bool],
        grown: "SimpleQueue[Completion | None]",
    ) -> None:
        # Not a `TextIteratorStreamer`, which decodes each line separately and so loses spaces with SentencePiece.
        ends = find_ends(self.model, self.tokenizer, self.end_id)
        streamed = ""

        def after_token(ids: Any, scores: Any, **kwargs: Any) -> Any:
            nonlocal streamed
            new = ids[0, len(prompt) :].tolist()
            if new[-1] not in ends:
                # A character's bytes may be in several tokens.
                text = decode_tokens(self.tokenizer, new).rstrip("\N{REPLACEMENT CHARACTER}").strip()
                if len(text) > len(streamed) and text.startswith(streamed):
                    streamed = text
                    grown.put(Completion(text, stopped=False, num_tokens=len(new)))
            return ids.new_full((1,), is_over()).bool()

        (completion,) = generate_completions(
            self.model,
            self.tokenizer,
            [prompt],
            end_id=self.end_id,
            stopping_criteria=[after_token],
            **settings.build_generation(),
        )
        grown.put(completion)


def find_run(name: str) -> RunFolder | None:
    """Return the run for a run folder or the `model` folder in it; None if the name is that of a model.

    Raises:
        RunError: The name is empty, or a path that does not exist, is a file, or is neither a run nor a model.
    """
    if not name.strip() or Path(name).is_file():
        raise RunError(f"`{name}` is not a model; use a run folder, the folder of a model, an alias or a Hub id.")
    path = Path(name).expanduser()
    for folder in (path, path.parent if path.name == "model" else path):
        if RunFolder(folder).config.is_file():
            return RunFolder(folder)
    is_model = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    # `name/name` may be on the Hub if there is no such folder; below an existing folder, it is a typo.
    is_path = path.exists() or name.startswith((".", "/", "~")) or (len(path.parts) > 1 and path.parent.is_dir())
    if is_path and not is_model:
        RunFolder(path).load_experiment()
    return None
