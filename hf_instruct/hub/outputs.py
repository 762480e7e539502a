"""Where an export goes: built beside its place, whole, and only then moved there."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_instruct.errors import PublishError

# A folder that is exported holds one of these: merged weights the first, a model for Ollama the second.
_MADE_HERE = ("config.json", "Modelfile")


def check_target(target: Path, *, force: bool = False) -> None:
    """Refuse a place that is taken, or whose folder could not be made, before any work is done.

    Args:
        target: The file or folder to write.
        force: Whether what is there may be replaced.

    Raises:
        PublishError: It exists and `force` is off, or is a folder of something else; or a part of its path is a file.
    """
    if target.exists() and not force:
        raise PublishError(f"`{target}` exists already. Replace it with `--force`, or name another place with `--out`.")
    if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in _MADE_HERE):
        raise PublishError(
            f"`{target}` is a folder that holds no export, so it is left alone, `--force` or not. Name another place "
            "with `--out`."
        )
    parent = nearest_folder(target.parent)
    if not parent.is_dir():
        raise PublishError(f"`{target}` cannot be written: `{parent}` is a file. Name another place with `--out`.")


def check_space(target: Path, num_bytes: int) -> None:
    """Refuse a disk that is too full for what is going to be written.

    Args:
        target: The file or folder to write.
        num_bytes: What it will need, about.

    Raises:
        PublishError: There is less free than that.
    """
    free = shutil.disk_usage(nearest_folder(target.parent)).free
    if free < num_bytes:
        raise PublishError(
            f"`{target}` needs about {format_size(num_bytes)}, and {format_size(free)} are free there. "
            "Free some space, or name another place with `--out`."
        )


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield an empty path beside `target` for a file or folder; whole at the end, it takes the target's place.

    Whatever goes wrong meanwhile, nothing half-written is left, and what was at the target stays.

    Raises:
        PublishError: The disk is full, or the place cannot be written.
    """
    from safetensors import SafetensorError

    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        part = folder / target.name
        yield part
        _replace(part, target, aside=folder / "replaced")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PublishError(
            f"`{target}` could not be written ({reason}), and nothing of it was kept. "
            "Free some space, or name another place with `--out`."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _replace(part: Path, target: Path, *, aside: Path) -> None:
    """Move a file or folder to its place; what is there goes aside first, since a folder cannot be renamed over one."""
    if target.exists():
        target.rename(aside)
    try:
        part.rename(target)
    except BaseException:
        # Ctrl-C as well: what was moved aside is deleted in a moment.
        if aside.exists():
            aside.rename(target)
        raise


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def format_size(num_bytes: int) -> str:
    """Return a size in decimal units, as disks are sold.

    >>> format_size(134_515_008), format_size(1_500_000_000), format_size(900)
    ('135 MB', '1.5 GB', '1 kB')
    """
    if num_bytes >= 10**9:
        return f"{num_bytes / 10**9:.1f} GB"
    if num_bytes >= 10**6:
        return f"{num_bytes / 10**6:.0f} MB"
    return f"{max(1, round(num_bytes / 1000))} kB"
