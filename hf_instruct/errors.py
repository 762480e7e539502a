"""Every error a user can cause, in one tree.

InstructError              anything below; the command line prints its text as one message and exits 1
├── ConfigError            an experiment file or a flag is wrong; lists all faults at once
├── DataError              examples cannot be read or used; lists all faults at once
├── ModelLoadError         a model or tokenizer cannot be loaded
├── TrainingError          fine-tuning cannot start or go on
├── RunError               a run folder is missing, belongs to another experiment or cannot be written
├── PublishError           a model cannot be published as it is, or the Hub refuses it
└── JudgeError             judging cannot go on
    ├── JudgeUnavailable   no judge server answers, or it lacks the model
    └── VerdictError       one reply of the judge cannot be read as a verdict
"""

import errno
from collections.abc import Sequence

# What the system says of a disk that is full or failing, and of paths that are not for this user or of another kind.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


def disk_remedy(error: Exception) -> str:
    """Return what is to be done about a disk error, as the start of a sentence.

    >>> disk_remedy(OSError(errno.ENOSPC, "No space left on device")), disk_remedy(PermissionError(errno.EACCES, "no"))
    ('Free some disk space', 'Mend that')
    """
    is_full = any(text in str(error) for text in ("No space left", "quota exceeded"))
    return "Free some disk space" if is_full else "Mend that"


class InstructError(Exception):
    """Base of all errors that a user can mend; its text says what is wrong, where, what is allowed and what to do."""


class _FaultListError(InstructError):
    """An error that carries every fault found, not only the first."""

    def __init__(self, summary: str, faults: Sequence[str] = ()) -> None:
        self.summary = summary
        self.faults = list(faults)
        super().__init__("\n".join([summary, *(f"  - {fault}" for fault in self.faults)]))


class ConfigError(_FaultListError):
    """An experiment file or a flag is wrong."""


class DataError(_FaultListError):
    """Examples cannot be read, or cannot be used as they are."""


class ModelLoadError(InstructError):
    """A model, adapter or tokenizer cannot be loaded."""


class TrainingError(InstructError):
    """Fine-tuning cannot start or go on."""


class RunError(InstructError):
    """A run folder is missing, belongs to another experiment, or cannot be written."""


class PublishError(InstructError):
    """A model cannot be published as it is, or the Hub refuses it; it says whether nothing was published."""


class JudgeError(InstructError):
    """Judging cannot go on."""


class JudgeUnavailable(JudgeError):  # noqa: N818  (reads as what it says)
    """No judge answers at the address tried, or it does not have the model."""


class VerdictError(JudgeError):
    """One reply of the judge cannot be read as a verdict."""
