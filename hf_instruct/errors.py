"""All errors that a user can cause, in one tree.

InstructError              any error below; the command line prints its text as one message and exits 1
├── ConfigError            an experiment file or a flag is wrong; lists all problems together
├── DataError              examples cannot be read or used; lists all problems together
├── ModelLoadError         a model or tokenizer cannot be loaded
├── TrainingError          fine-tuning cannot start or continue
├── RunError               a run folder is missing, belongs to another experiment or cannot be written
├── PublishError           a model cannot be published, or the Hub refuses it
└── JudgeError             judging cannot continue
    ├── JudgeUnavailable   no judge server answers, or it does not have the model
    └── VerdictError       a reply of the judge cannot be parsed as a verdict
"""

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

# A full or failing disk, and paths without permission or of the wrong kind.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


# Names of settings in other programs and papers that differ from TRL's, PEFT's and ours.
FIELD_SYNONYMS = {
    **dict.fromkeys(("lr", "peak_lr"), "learning_rate"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "num_train_epochs"),
    **dict.fromkeys(("batch_size", "micro_batch_size", "train_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("grad_accum", "accumulation_steps", "grad_accumulation_steps"), "gradient_accumulation_steps"),
    **dict.fromkeys(("warmup", "warmup_ratio"), "warmup_steps"),
    **dict.fromkeys(("max_seq_len", "max_seq_length", "cutoff_len", "block_size"), "max_length"),
    **dict.fromkeys(("rank", "lora_r", "lora_rank"), "r"),
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "scheduler": "lr_scheduler_type",
    **dict.fromkeys(("path", "dataset", "file"), "source"),
    "max_tokens": "max_new_tokens",
}


def disk_remedy(error: Exception) -> str:
    """Return the remedy for a disk error, as the start of a sentence.

    >>> disk_remedy(OSError(errno.ENOSPC, "No space left on device")), disk_remedy(PermissionError(errno.EACCES, "no"))
    ('Free some disk space', 'Check its permissions')
    """
    # PyTorch and safetensors only quote the system's text.
    if any(text in str(error) for text in ("No space left", "quota exceeded")):
        return "Free some disk space"
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Check its permissions"
    return "Check that its folder exists" if number in (errno.ENOENT, errno.ENOTDIR) else "Fix that"


def is_bug(error: BaseException) -> bool:
    """Return whether this package itself raised an error or is missing one of its own files.

    Such an error keeps its traceback; what a library raises is usually about a user's settings or files.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = error.filename if isinstance(error, OSError) else trace and trace.tb_frame.f_code.co_filename
    return isinstance(file, str) and Path(file).is_relative_to(Path(__file__).parent)


def quote_names(names: Iterable[object]) -> str:
    """Format names as a list for a message.

    >>> quote_names(["alpaca", "phi3"])
    '`alpaca`, `phi3`'
    """
    return ", ".join(f"`{name}`" for name in names)


def list_first(items: Iterable[str], most: int = 5) -> list[str]:
    """Return the first items of a list for a message, and how many more there are.

    >>> list_first(["a", "b", "c"], 2)
    ['a', 'b', 'and 1 more']
    """
    items = list(items)
    if len(items) <= most:
        return items
    return [*items[:most], f"and {len(items) - most:,} more"]


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a question that suggests the most similar known name, to append to a message; empty if there is none.

    `cutoff` is the minimum similarity, from 0 to 1.

    >>> did_you_mean("alpacca", ["alpaca", "phi3"]), did_you_mean("chat", ["alpaca", "phi3"])
    (' Did you mean `alpaca`?', '')
    """
    near = find_nearest(name, known, cutoff=cutoff)
    return f" Did you mean `{near}`?" if near else ""


def did_you_mean_path(path: Path, known: Iterable[Path]) -> str:
    """Return `did_you_mean` for paths, compared by their last part, because common parents make all paths similar.

    >>> [did_you_mean_path(Path(name), [Path("runs/demo")]) for name in ("runs/dmeo", "runs/mine")]
    [' Did you mean `runs/demo`?', '']
    """
    by_name = {other.name: other for other in sorted(known) if str(other).isprintable()}
    near = find_nearest(path.name, by_name)
    return f" Did you mean `{by_name[near]}`?" if near else ""


def find_nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return our synonym for a name from another program, or else the most similar known name; None if there is none.

    >>> find_nearest("lr", ["learning_rate", "lr_scheduler_type"]), find_nearest("alpacca", ["alpaca"])
    ('learning_rate', 'alpaca')
    """
    import difflib

    known = list(known)
    if (ours := FIELD_SYNONYMS.get(name)) in known:
        return ours
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def needs_package(what: str, package: str) -> str:
    """Return a message that a package is missing, with the command that installs it.

    >>> needs_package("`serve`", "transformers[serving]")
    "`serve` needs the package transformers[serving], which is not installed: pip install 'transformers[serving]'"
    """
    import shlex

    return f"{what} needs the package {package}, which is not installed: pip install {shlex.quote(package)}"


class InstructError(Exception):
    """Base of all errors that a user can fix; its text says what is wrong, where, what is allowed and what to do."""


class _ProblemListError(InstructError):
    """An error that lists all problems, not only the first."""

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        self.summary = summary
        self.problems = list(problems)
        super().__init__("\n".join([summary, *(f"  - {problem}" for problem in self.problems)]))

    @classmethod
    def listing(cls, problems: Sequence[str], where: str, *, most: int = 50) -> Self:
        """Return an error with the number of problems, where they are, and a list of at most `most` of them.

        >>> str(ConfigError.listing(["`a` is odd", "`b` is odd"], "in the flags", most=1))
        '2 problems in the flags:\\n  - `a` is odd\\n  - and 1 more'
        """
        summary = f"{len(problems):,} {'problem' if len(problems) == 1 else 'problems'} {where}:"
        return cls(summary, list_first(problems, most))


class ConfigError(_ProblemListError):
    """An experiment file or a flag is wrong."""


class DataError(_ProblemListError):
    """Examples cannot be read or used."""


class ModelLoadError(InstructError):
    """A model, adapter or tokenizer cannot be loaded."""


class TrainingError(InstructError):
    """Fine-tuning cannot start or continue."""


class RunError(InstructError):
    """A run folder is missing, belongs to another experiment, or cannot be written."""


class PublishError(InstructError):
    """A model cannot be published, or the Hub refuses it; the message says whether something was published."""


class JudgeError(InstructError):
    """Judging cannot continue."""


class JudgeUnavailable(JudgeError):  # noqa: N818  (reads better without `Error`)
    """No judge answers at the address tried, or it does not have the model."""


class VerdictError(JudgeError):
    """A reply of the judge cannot be parsed as a verdict."""
