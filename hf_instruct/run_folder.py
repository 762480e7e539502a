"""The run folder: its files and their provenance.

Stages only communicate through the run folder: each reads files of earlier stages and writes its own. `run.yaml` is
written first and contains the resolved experiment, library versions, the data's checksum, the commit and the command.
"""

import contextlib
import dataclasses
import hashlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hf_instruct.config import Experiment, build_experiment, plain_values
from hf_instruct.console import redact
from hf_instruct.errors import ConfigError, DataError, ModelLoadError, RunError, did_you_mean_path
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import SPLIT_NAMES, Example, read_file, read_rows, write_json, write_text
from hf_instruct.schema import MODELS, TUNED, Judgment, Metrics, Preflight, Provenance, Response, RubricName, Scores
from hf_instruct.validation import describe_problem
from hf_instruct.yaml_text import dump_yaml, read_yaml

_VERSIONS_OF = ("hf_instruct", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


class _File:
    """A file or folder of a run: its path in the run folder and its description."""

    def __init__(self, path: str, holds: str) -> None:
        self._path = path
        self.__doc__ = holds

    def __get__(self, run: "RunFolder", owner: type["RunFolder"]) -> Path:
        return run.path / self._path


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run. Reading a damaged file raises `DataError`.

    Attributes:
        path: The folder; a leading `~` is expanded to the user's home, even if the shell did not do so.
        trust_remote_code: Whether code that comes with the run's model may run. Only the user can allow it: the folder
            may be from somebody else, so the setting in `run.yaml` is ignored.
        reward_funcs: The user's own reward functions, which `run.yaml` cannot set for the same reason.
    """

    path: Path
    trust_remote_code: bool = False
    reward_funcs: Sequence[Callable[..., Any]] = dataclasses.field(default=(), compare=False, repr=False)

    config = _File("run.yaml", "The resolved experiment and where it comes from.")
    data = _File("data", "Folder of the splits.")
    preflight = _File("data/preflight.json", "`Preflight`: what was found in the data; written last.")
    prompt = _File("prompt.jinja", "Template of all prompts of the run, as resolved before training.")
    checkpoints = _File("checkpoints", "Folder of the checkpoints that `--resume` continues from.")
    model = _File("model", "The tuned model or adapter with its tokenizer; renamed into place when complete.")
    preferences = _File("preferences.jsonl", "`PreferencePair` rows.")
    preferences_part = _File(
        "preferences.partial.jsonl", "`Response` rows: the model's own answers, until they are complete."
    )
    pairs = _File("pairs", "Folder that `prefer` writes: `PairRow` rows, and the answers from which they are chosen.")
    training_log = _File("training.jsonl", "`TrainingRow` rows.")
    training_summary = _File("training.json", "`TrainingSummary`: time, memory and losses of fine-tuning.")
    tensorboard = _File("tensorboard", "Folder of TensorBoard's files, if it is in `train.report_to`.")
    loss_plot = _File("loss.png", "Training and validation loss over steps and tokens.")
    responses = _File("responses.jsonl", "`Response` rows of all models.")
    course_file = _File("instruction-data-with-response.json", "Responses in the course's format, if requested.")
    judgments = _File("judgments.jsonl", "`Judgment` rows of any judge and model, in the order they were made.")
    people = _File("judgments.people.jsonl", "`Judgment` rows of people: the scores that they gave on the vote page.")
    scores = _File("scores.json", "`Scores` of the newest judging, by model.")
    metrics = _File("metrics.json", "`Metrics` of the responses, by model: computed, not judged.")
    pairwise = _File("pairwise", "Folder of preferences between these answers and others, and their summaries.")
    self_check = _File("self_check.json", "`SelfCheck`: the result of the judge check.")
    benchmarks = _File("benchmarks.json", "`BenchmarkResult`s on tasks of lm-eval, by model.")
    score_plot = _File("scores.png", "Histogram of the scores.")
    report = _File("report.html", "The report page.")

    def __post_init__(self) -> None:
        # If the home folder cannot be found, the path is unchanged.
        with contextlib.suppress(RuntimeError):
            object.__setattr__(self, "path", Path(self.path).expanduser())

    @classmethod
    def of(cls, run: "RunFolder | str | Path") -> "RunFolder":
        """Return the run folder at a path; a `RunFolder` is returned unchanged.

        Raises:
            RunError: It is neither.
        """
        if isinstance(run, RunFolder):
            return run
        if not isinstance(run, str | Path):
            raise RunError(f"`run` is a `{type(run).__name__}`; pass a `RunFolder` or a path.")
        return cls(Path(run))

    def split(self, name: str) -> Path:
        """Return the file of a split: `train`, `test` or `validation`."""
        return self.data / f"{name}.jsonl"

    def read_split(self, name: str) -> list[Example]:
        """Return the examples of a split, after `check_data`."""
        self.check_data()
        return read_rows(self.split(name), Example)

    def hash_splits(self) -> str:
        """Return the SHA-256 of the bytes of the three splits, in the order of `SPLIT_NAMES`."""
        digest = hashlib.sha256()
        for name in SPLIT_NAMES:
            with self.split(name).open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()

    def check_data(self) -> None:
        """Check that the splits have not changed since the run was prepared.

        Raises:
            DataError: A file is missing, or their checksum is not the one in `run.yaml`.
        """
        preflight = read_file(self.preflight, Preflight)
        expected = self.read_provenance().data_sha256 or (preflight.data_sha256 if preflight else None)
        if expected is None:
            return
        missing = [name for name in SPLIT_NAMES if not self.split(name).is_file()]
        if missing or self.hash_splits() != expected:
            what = f"`{missing[0]}.jsonl` is missing" if missing else "their checksum is not the one in `run.yaml`"
            raise DataError(
                f"The splits in `{self.data}` are not those that this run was prepared with: {what}. Restore the "
                f"files, or delete `{self.preflight}` and resume the run with `--resume` to split `data.source` "
                "again; if the source has changed, start again with `--force`."
            )

    def load_prompt_format(self, name: str | None) -> PromptFormat:
        """Return the prompt format of the run: as resolved before training, or else the one of that name.

        Args:
            name: `data.prompt_format` of the run's experiment; None for the one that was chosen for the run's data.
        """
        name = name or (read_file(self.preflight, Preflight) or Preflight()).prompt_format
        if not self.prompt.is_file():
            return PromptFormat.from_name(name)
        return PromptFormat(name, self.prompt.read_text(encoding="utf-8"))

    @property
    def has_adapter(self) -> bool:
        """Whether the tuned model is an adapter."""
        return (self.model / "adapter_config.json").is_file()

    def find_base(self, name: str) -> str:
        """Return the name or folder to load the run's base model from; the folder if only the adapter's config has it.

        Args:
            name: `model.name` of the run's experiment.

        Raises:
            ModelLoadError: It was a local folder, which is missing. A model of that name on the Hub may be another one.
        """
        from hf_instruct.models import ALIASES, WHEEL_MODEL, is_local_model

        was_local = self.read_provenance().base_model_is_local
        if name in (*ALIASES, WHEEL_MODEL) or is_local_model(name) or not was_local:
            return name
        adapter = read_file(self.model / "adapter_config.json", dict[str, Any]) or {}
        noted = adapter.get("base_model_name_or_path")
        if isinstance(noted, str) and is_local_model(noted):
            return noted
        raise ModelLoadError(
            f"`{self.path}` was trained from the model in the local folder `{name}`, which does not exist in "
            f"`{Path.cwd()}`. Run the command in the folder where training was started, or restore the model."
        )

    def check_trained(self) -> None:
        """Check that the run has a tuned model.

        Raises:
            RunError: It has none yet, or no longer has one.
        """
        if self.model.is_dir():
            return
        if self.training_summary.exists():
            raise RunError(
                f"`{self.model}` is missing, although training has finished. Restore it, or delete "
                f"`{self.training_summary}` and resume the run with `--resume` to train again (from the last "
                "checkpoint, if it was kept)."
            )
        raise RunError(
            f"`{self.path}` has no tuned model yet (no `model/` in it). Finish it with `hf-instruct run "
            f"EXPERIMENT.yaml --run-dir {self.path} --resume`."
        )

    def response_part(self, rank: int) -> Path:
        """Return the file with the finished `Response` rows of one of several processes."""
        return self.path / f"responses.part-{rank}.jsonl"

    def response_parts(self) -> list[Path]:
        """Return the existing files of several processes, which are running or were interrupted."""
        return sorted(self.path.glob("responses.part-*.jsonl"))

    def read_responses(self, model: str = TUNED) -> list[Response]:
        """Return a model's responses, in the order of the test split; empty if there are none yet.

        Raises:
            RunError: As in `refuse_older`.
        """
        self.refuse_older()
        rows = read_rows(self.responses, Response) if self.responses.is_file() else []
        return [row for row in rows if row.model == model]

    def read_scores(self, model: str = TUNED) -> Scores | None:
        """Return the scores of the newest judging of a model's responses; None if there was none."""
        return (read_file(self.scores, dict[str, Scores]) or {}).get(model)

    def write_scores(self, model: str, scores: Scores) -> None:
        """Replace the scores of a model."""
        write_json(self.scores, {**(read_file(self.scores, dict[str, Scores]) or {}), model: scores})

    def read_metrics(self, model: str = TUNED) -> Metrics:
        """Return the reference metrics of a model's responses; empty if they were not computed."""
        return (read_file(self.metrics, dict[str, Metrics]) or {}).get(model) or Metrics()

    def write_metrics(self, model: str, metrics: Metrics) -> None:
        """Replace the reference metrics of a model."""
        write_json(self.metrics, {**(read_file(self.metrics, dict[str, Metrics]) or {}), model: metrics})

    def read_judgments(self, model: str = TUNED, *, repeat: int = 1) -> list[Judgment]:
        """Return the judgments behind a model's scores: one for each response, the newest if there are several.

        Without scores, they are those of the last judge. The file also contains those of other judges.

        Args:
            model: The model whose responses were judged.
            repeat: Number of the repeat, from 1, if each response was judged several times.
        """
        rows = read_rows(self.judgments, Judgment) if self.judgments.is_file() else []
        return choose_judgments([row for row in rows if row.model == model], self.read_scores(model), repeat=repeat)

    def refuse_older(self) -> None:
        """Refuse a run of an older version, which kept the untuned model's answers in a separate folder.

        Raises:
            RunError: It is such a run.
        """
        if (self.path / "base" / "responses.jsonl").is_file():
            raise RunError(
                f"`{self.path}` is from an older version, which kept the untuned model's answers in `base/`. "
                f"Generate the answers again with `hf-instruct generate {shlex.quote(str(self.path))} --force`; the "
                "tuned model is kept."
            )

    def load_experiment(self) -> Experiment:
        """Return the experiment of this run, with the `trust_remote_code` of this object.

        Raises:
            RunError: The folder does not exist or is not a run folder.
        """
        if not self.config.is_file():
            hint = did_you_mean_path(self.path, [config.parent for config in self.path.parent.glob("*/run.yaml")])
            what = "is not a run folder (no `run.yaml` in it)" if self.path.is_dir() else "does not exist"
            raise RunError(f"`{self.path}` {what}.{hint} `hf-instruct run EXPERIMENT.yaml` creates one.")
        experiment = build_experiment(read_yaml(self.config).get("experiment", {}), where=str(self.config), deep=False)
        experiment.model.trust_remote_code = self.trust_remote_code
        return experiment

    def read_provenance(self) -> Provenance:
        """Return the provenance of the run, as far as `run.yaml` contains it.

        Raises:
            ConfigError: The file is not the `run.yaml` of a run.
        """
        values = read_yaml(self.config) if self.config.is_file() else {}
        try:
            return Provenance.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"`{self.config}` cannot be read ({describe_problem(error)}).") from error

    def save_experiment(self, experiment: Experiment) -> None:
        """Write `run.yaml`: the resolved experiment and its provenance, never a secret."""
        provenance = {
            "experiment": plain_values(experiment),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            "git_commit": _git_commit(),
            "python": sys.version.split()[0],
            "versions": _library_versions(),
        }
        # Values added since, such as the data's checksum, stay valid when settings of a later stage change.
        known = read_yaml(self.config) if self.config.is_file() else {}
        begun = {"created_at": known["created_at"]} if "created_at" in known else {}
        write_text(self.config, dump_yaml({**known, **provenance, **begun}))

    def add_provenance(self, **values: str | bool | list[str] | None) -> None:
        """Add values to `run.yaml` that were not known when it was first written."""
        known = read_yaml(self.config)
        if known != {**known, **values}:
            write_text(self.config, dump_yaml({**known, **values}))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this run against other processes.

        Raises:
            RunError: Another process is using it.
        """
        busy = f"Another process is using `{self.path}`. Wait for it, stop it, or use another `--run-dir`."
        with locked(self.path / ".lock", busy):
            yield


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file inside the block, against other processes; creates its folder.

    Raises:
        RunError: Another process holds it; `busy` is the message.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A web page acquires it in one thread and releases it in another.
        lock = FileLock(path, blocking=False, thread_local=False).acquire()
    except Timeout as error:
        raise RunError(busy) from error
    with lock:
        yield


def split_model(path: Path) -> tuple[Path, str]:
    """Split a path such as `runs/mine/untuned` into run folder and model; the model is `tuned` if it has none.

    >>> split_model(Path("runs/mine"))
    (PosixPath('runs/mine'), 'tuned')
    """
    if path.name in MODELS and not path.exists() and path.parent.is_dir():
        return path.parent, path.name
    return path, TUNED


def choose_judgments(rows: Sequence[Judgment], scores: Scores | None, *, repeat: int = 1) -> list[Judgment]:
    """Return the newest judgment of each response in one judging, in the order in which they were first judged.

    Args:
        rows: Judgments of one model, by any judges.
        scores: The scores of the judging; None for the judging of the last row.
        repeat: Number of the repeat, from 1.
    """
    if not rows:
        return []
    last = rows[-1]
    judge, rubric = last.judge, RubricName(name=last.rubric, sha256=last.rubric_sha256)
    if scores is not None:
        judge, rubric = scores.judge, scores.rubric
        if scores.repeats and repeat > 1:
            judge = judge.with_seed(scores.repeats.seeds[repeat - 1])
    chosen = {
        row.id: row
        for row in rows
        if (row.judge, row.rubric, row.repeat) == (judge, rubric.name, repeat)
        and row.rubric_sha256 in ("", rubric.sha256)
    }
    return list(chosen.values())


def _git_commit() -> str | None:
    clone = Path(__file__).parents[1]
    if not (clone / ".git").exists():
        # Installed: git would return the commit of the repository that contains the environment, if any.
        return None
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _library_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in _VERSIONS_OF:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
