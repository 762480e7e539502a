"""The runs and models of the page; each model is loaded on first use, shared, and kept while there is memory."""

import contextlib
import dataclasses
import gc
import logging
import threading
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.config import Experiment
from hf_instruct.errors import InstructError, RunError
from hf_instruct.memory import free_bytes, give_back_freed_memory, mapped_bytes
from hf_instruct.models import ALIASES, WHEEL_MODEL, best_device, parse_num_parameters, resolve_model
from hf_instruct.records import Example, read_rows
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel

logger = logging.getLogger(__name__)

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Example questions for models without a run.
_QUESTIONS = ["Name three animals that live in the sea.", "What is the plural of 'leaf'?", "Give a synonym of 'quick'."]
_LONGEST_QUESTION = 60  # characters; Gradio cuts longer examples
# Memory for loading and running a model, including its weights, as a multiple of the weights' size.
_LEEWAY = 1.25


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, or a model without a run.

    Attributes:
        name: The name that the user typed.
        label: Its name on the page, which is unique.
        run: The run's folder; None for a model.
        experiment: The run's experiment; None for a model.
    """

    name: str
    label: str
    run: RunFolder | None = None
    experiment: Experiment | None = None

    @property
    def is_trained(self) -> bool:
        """Whether there are weights to answer with."""
        return self.run is None or self.run.model.is_dir()


def find_sources(names: Sequence[str]) -> list[Source]:
    """Return the runs and models that the user named, without duplicates, in the same order.

    Args:
        names: Run folders; or models: an alias, a Hub id or a local folder.

    Raises:
        RunError: A name is neither a run nor a model.
        ConfigError: A run's `run.yaml` cannot be read.
    """
    unique = list({str(Path(name).resolve()) if Path(name).exists() else name: name for name in names}.values())
    short = [Path(name).resolve().name if Path(name).exists() else name for name in unique]
    labels = [label if short.count(label) == 1 else name for label, name in zip(short, unique, strict=True)]
    return [_find_source(name, label) for name, label in zip(unique, labels, strict=True)]


def _find_source(name: str, label: str) -> Source:
    from hf_instruct.generation.chat_model import find_run

    try:
        run = find_run(name)
        if run is None:
            if name.count("/") == 1 or name in ALIASES or name == WHEEL_MODEL or Path(name).exists():
                return Source(name, label)
            # A single word may be an old model on the Hub, but is more likely a misspelled run; better to fail now.
            run = RunFolder(Path(name))
        return Source(name, label, run, run.load_experiment())
    except RunError as error:
        raise RunError(f"{error} Use a model's alias, Hub id or folder.") from error


class ModelPool:
    """The models of the page, by label. Safe to use from several threads.

    Args:
        sources: Runs and models, as returned by `find_sources`.
        trust_remote_code: Run code that comes with their models.
    """

    def __init__(self, sources: Sequence[Source], *, trust_remote_code: bool = False) -> None:
        self._targets: dict[str, tuple[Source, bool]] = {}
        for source in sources:
            if source.is_trained:
                self._targets[source.label] = (source, False)
            if source.run and source.experiment:
                label = source.run.read_provenance().label(source.experiment.start)
                self._targets[f"{source.label}, {label}"] = (source, True)
        self._trust = trust_remote_code
        # Least recently used first. A dropped model stays here without its weights, because conversations refer to it.
        self._models: dict[Hashable, ChatModel] = {}
        self._users: Counter[Hashable] = Counter()
        # Held while a model is loaded, because two at a time would also need memory for both weight files.
        self._loading = threading.Lock()
        # Held briefly to read or change the number of users of a model, or whether its weights are loaded.
        self._lock = threading.Lock()

    @property
    def labels(self) -> list[str]:
        """The labels of the models."""
        return list(self._targets)

    @property
    def beside(self) -> str | None:
        """The label of the model that the first one was tuned from; None if the first is not a tuned model of a run."""
        first, *others = self._targets.items()
        return next((label for label, (source, base) in others if base and source is first[1][0]), None)

    def list_questions(self, count: int = 4) -> list[str]:
        """Return short instructions without an input from the test split of the first run that has any, or our own."""
        for source, _ in self._targets.values():
            with contextlib.suppress(InstructError):
                rows = read_rows(source.run.split("test"), Example) if source.run else []
                short = [row.instruction for row in rows if not row.input and len(row.instruction) <= _LONGEST_QUESTION]
                if short:
                    # Neighboring rows are often similar.
                    return short[:: -(-len(short) // count)]
        return _QUESTIONS

    def is_loaded(self, label: str) -> bool:
        """Return whether a model can answer immediately."""
        return hasattr(self._models.get(self._key(label)), "model")

    @contextlib.contextmanager
    def acquire(self, label: str) -> "Iterator[ChatModel]":
        """Acquire a model for the block; it is loaded if needed, which takes seconds.

        If there is not enough memory, models that are not in use are dropped first, least recently used first; they are
        loaded again on their next use.

        Raises:
            InstructError: The model cannot be loaded.
        """
        key = self._key(label)
        if not self._use(key):
            with self._loading:
                # Another thread may have loaded it in the meantime.
                if not self._use(key):
                    self._load(label, key)
        try:
            yield self._models[key]
        finally:
            with self._lock:
                self._users[key] -= 1

    def _use(self, key: Hashable) -> bool:
        """Mark a model as in use if its weights are loaded, and return whether they are."""
        with self._lock:
            if not hasattr(self._models.get(key), "model"):
                return False
            self._models[key] = self._models.pop(key)
            self._users[key] += 1
            return True

    def _load(self, label: str, key: Hashable) -> None:
        """Load a model, and mark it as in use."""
        from hf_instruct.generation.chat_model import ChatModel

        source, base = self._targets[label]
        self._make_room(label, source)
        loaded = ChatModel.load(source.name, base=base, trust_remote_code=self._trust)
        with self._lock:
            model = self._models.pop(key, loaded)
            model.model = loaded.model
            self._models[key] = model
            self._users[key] += 1

    def _make_room(self, label: str, source: Source) -> None:
        """Drop unused models until there is memory for another, or none is left to drop."""
        import torch

        size, device = self._estimate(source), best_device()
        for key, model in list(self._models.items()):
            mapped = mapped_bytes() if device == "cpu" else 0
            if free_bytes(device) - mapped >= size * _LEEWAY:
                return
            with self._lock:
                if self._users[key] or not hasattr(model, "model"):
                    continue
                del model.model
            gc.collect()
            give_back_freed_memory()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.info("Unloaded %s to load %s (%.1f GB).", model.name, label, size / 1e9)

    def _estimate(self, source: Source) -> float:
        """Estimate the bytes of a model's weights; if unknown, use the largest known model."""
        # A run's model is as large as the one it began with, adapters aside.
        base = source.experiment and source.experiment.model
        count = count_parameters(base.name, base.revision) if base else count_parameters(source.name)
        if count is not None:
            return count * _BYTES[source.experiment.generate.dtype if source.experiment else "float32"]
        loaded = [entry.model for entry in self._models.values() if hasattr(entry, "model")]
        return max((model.get_memory_footprint() for model in loaded), default=0)

    def _key(self, label: str) -> Hashable:
        """Return the key of a model; the base models of runs with the same base model and prompts share one."""
        source, base = self._targets[label]
        if not base or source.experiment is None or source.run is None:
            return source.name
        model, prompt = source.experiment.model, source.run.prompt
        template = prompt.read_text(encoding="utf-8") if prompt.is_file() else None
        settings = (source.experiment.generate.dtype, source.experiment.data.prompt_format, template)
        return (model.name, model.revision, *settings)


def count_parameters(name: str, revision: str | None = None) -> float | None:
    """Return a model's number of parameters, from the headers of its files or else its name; None if unknown.

    Args:
        name: An alias, a Hub id or a local folder.
        revision: Commit, tag or branch on the Hub.
    """
    from huggingface_hub import get_local_safetensors_metadata, snapshot_download
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        folder = Path(resolve_model(name))
        if not folder.is_dir():
            folder = Path(snapshot_download(str(folder), revision=revision, local_files_only=True))
        return sum(get_local_safetensors_metadata(folder).parameter_count.values())
    except (OSError, ValueError, InstructError, NotASafetensorsRepoError, SafetensorsParsingError):
        # Problems with the files are reported when they are loaded.
        return parse_num_parameters(name)
