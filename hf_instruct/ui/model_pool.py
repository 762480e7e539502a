"""What the page is about, and its models: each loaded when it is asked, shared by all, kept while the memory lasts."""

import contextlib
import dataclasses
import gc
import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.config import Experiment
from hf_instruct.errors import InstructError, RunError
from hf_instruct.memory import free_bytes, give_back_freed_memory, mapped_bytes
from hf_instruct.models import ALIASES, WHEEL_MODEL, best_device, parse_num_parameters, resolve_model
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel

logger = logging.getLogger(__name__)

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What a model takes while it is loaded and while it answers, with its weights, in shares of these.
_LEEWAY = 1.25


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, or a model that is of no run.

    Attributes:
        name: As the user typed it.
        label: What it is called on the page; no two are called the same.
        run: The run's folder; None for a model.
        experiment: What the run is of; None for a model.
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
    """Return the runs and models that the user named, each once, in their order.

    Args:
        names: Run folders; or models: an alias, a Hub id or a local folder.

    Raises:
        RunError: One is neither a run nor a model.
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
            # One word may be an old model on the Hub, but is likelier a run misspelt; better told now than when asked.
            run = RunFolder(Path(name))
        return Source(name, label, run, run.load_experiment())
    except RunError as error:
        raise RunError(f"{error} A model is named by its alias, its Hub id or its folder.") from error


@dataclasses.dataclass
class _Entry:
    """A model that was loaded once.

    Attributes:
        model: Without its weights while they are dropped: conversations keep it, so that it has to stay.
        label: What it was called by who asked for it first.
        size: Its weights in bytes.
        num_users: How many are using the weights now.
        is_loaded: Whether the weights are there.
    """

    model: "ChatModel"
    label: str
    size: int
    num_users: int = 0
    is_loaded: bool = True


class ModelPool:
    """The models that can be asked, by what they are called on the page. Safe to use from several threads.

    Args:
        sources: Runs and models, as `find_sources` returns them.
        trust_remote_code: Run code that comes with their models.
    """

    def __init__(self, sources: Sequence[Source], *, trust_remote_code: bool = False) -> None:
        self._targets: dict[str, tuple[Source, bool]] = {}
        for source in sources:
            if source.is_trained:
                self._targets[source.label] = (source, False)
            if source.run:
                self._targets[f"{source.label}, untuned"] = (source, True)
        self._trust = trust_remote_code
        # The one unused for longest first.
        self._entries: dict[Hashable, _Entry] = {}
        # Held while a model is loaded: two at once would need the memory for both weights files besides.
        self._loading = threading.Lock()
        # Held for a moment: who uses what, and whether its weights are there.
        self._lock = threading.Lock()

    @property
    def labels(self) -> list[str]:
        """What the models are called."""
        return list(self._targets)

    def is_loaded(self, label: str) -> bool:
        """Return whether a model can answer immediately."""
        entry = self._entries.get(self._key(label))
        return entry is not None and entry.is_loaded

    @contextlib.contextmanager
    def acquire(self, label: str) -> "Iterator[ChatModel]":
        """Give a model for as long as it is used; where it is not there it is loaded, which takes seconds.

        Where the memory would not do, models that nobody uses are dropped first, the one unused for longest before
        others; they are loaded again when they are asked again.

        Raises:
            InstructError: It cannot be loaded.
        """
        entry = self._use(label)
        if entry is None:
            with self._loading:
                # Somebody else may have asked for it meanwhile.
                entry = self._use(label) or self._load(label)
        try:
            yield entry.model
        finally:
            with self._lock:
                entry.num_users -= 1

    def _use(self, label: str) -> _Entry | None:
        """Return a model, noted as in use; None where it has to be loaded."""
        key = self._key(label)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.is_loaded:
                return None
            entry.num_users += 1
            self._entries[key] = self._entries.pop(key)
            return entry

    def _load(self, label: str) -> _Entry:
        """Load a model and return it, noted as in use."""
        from hf_instruct.generation.chat_model import ChatModel

        source, base = self._targets[label]
        entry = self._entries.get(self._key(label))
        self._make_room(label, entry.size if entry else self._estimate(source))
        loaded = ChatModel.load(source.name, base=base, trust_remote_code=self._trust)
        entry = entry or _Entry(loaded, label, loaded.model.get_memory_footprint())
        with self._lock:
            entry.model.model, entry.is_loaded, entry.num_users = loaded.model, True, 1
            self._entries.pop(self._key(label), None)
            self._entries[self._key(label)] = entry
        return entry

    def _make_room(self, label: str, size: int) -> None:
        """Drop models until there is room for another, or none is left that could go."""
        device = best_device()
        for entry in list(self._entries.values()):
            mapped = mapped_bytes() if device == "cpu" else 0
            if free_bytes(device) - mapped >= size * _LEEWAY:
                return
            with self._lock:
                if entry.num_users or not entry.is_loaded:
                    continue
                entry.is_loaded = False
            sizes = (entry.label, entry.size / 1e9, label, size / 1e9)
            logger.info("Dropped %s (%.1f GB) from memory, to load %s (%.1f GB).", *sizes)
            _drop_weights(entry)

    def _estimate(self, source: Source) -> int:
        """Return the bytes to expect of a model's weights; where nothing tells, those of the largest there was."""
        name, dtype, revision = source.name, "float32", None
        if source.experiment is not None:
            # A run's model is as large as the one it began with, adapters aside.
            model, dtype = source.experiment.model, source.experiment.generate.dtype
            name, revision = model.name, model.revision
        count = count_parameters(name, revision)
        if count is None:
            return max((entry.size for entry in self._entries.values()), default=0)
        return int(count * _BYTES[dtype])

    def _key(self, label: str) -> Hashable:
        """Return what identifies a model: runs that began with the same one and ask it alike share it."""
        source, base = self._targets[label]
        if not base or source.experiment is None or source.run is None:
            return source.name
        model, prompt = source.experiment.model, source.run.prompt
        template = prompt.read_text(encoding="utf-8") if prompt.is_file() else None
        asked = (source.experiment.generate.dtype, source.experiment.data.prompt_format, template)
        return (model.name, model.revision, *asked)


def count_parameters(name: str, revision: str | None = None) -> float | None:
    """Return how many parameters a model has, by the heads of its files or else its name; None where neither tells.

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
        # Whatever is wrong with the files, loading them says.
        return parse_num_parameters(name)


def _drop_weights(entry: _Entry) -> None:
    import torch

    del entry.model.model
    gc.collect()
    give_back_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
