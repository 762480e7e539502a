"""The target of an export, which is written next to it and moved there when complete."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_instruct.errors import PublishError

# A folder that is exported holds one of these: merged weights the first, a model for Ollama the second.
_EXPORTED = ("config.json", "Modelfile")


def check_target(target: Path, *, force: bool = False) -> None:
    """Refuse a target that is taken, before any work is done.

    Args:
        target: The file or folder to write.
        force: Whether what is there may be replaced.

    Raises:
        PublishError: It exists and `force` is off, or is a folder of something else.
    """
    if target.exists() and not force:
        raise PublishError(f"`{target}` already exists. Replace it with `--force`, or use another path with `--out`.")
    if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in _EXPORTED):
        raise PublishError(
            f"`{target}` is a folder without an export, so it is not replaced, not even with `--force`. Use another "
            "path with `--out`."
        )


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, where nothing is yet; what is written there is deleted with the block.

    Raises:
        PublishError: The disk is full, or the target's folder cannot be written.
    """
    from safetensors import SafetensorError

    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        yield folder / target.name
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PublishError(
            f"`{target}` could not be written ({reason}); nothing was kept. Free some space, or make "
            f"`{target.parent}` writable."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield a path as `staging` does; what is whole there at the end replaces the target, which stays otherwise.

    Raises:
        PublishError: The disk is full, or the target cannot be written.
    """
    with staging(target) as part:
        yield part
        # A folder cannot be renamed over one.
        aside = part.with_name(f"{target.name}.replaced")
        try:
            if target.exists():
                target.rename(aside)
            part.rename(target)
        finally:
            # After Ctrl-C as well: what was moved aside is deleted in a moment.
            if aside.exists() and not target.exists():
                aside.rename(target)
