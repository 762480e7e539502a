"""Manifests list the files of a model folder and what it was trained from; they are checked when it is used.

`manifest.json` is written after all other files are on disk, and renamed into place, so a folder with a manifest is
complete.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hf_instruct.errors import RunError
from hf_instruct.records import read_file, write_text

MANIFEST = "manifest.json"
# The second is never read again and contains paths, so its owner may delete it.
_UNLISTED = {MANIFEST, "training_args.bin"}


class FileStamp(BaseModel):
    """The size in bytes, modification time in nanoseconds and SHA-256 of a file."""

    size: int
    mtime_ns: int
    sha256: str


class Weights(BaseModel):
    """The weight files of a model by name, and the commit of its Hub snapshot, None for a local folder."""

    commit: str | None
    files: dict[str, FileStamp]


class Origin(BaseModel):
    """The data and the model that weights were trained from."""

    num_processes: int  # launched together; the batches depend on it
    sharding: str | None  # `FSDP` or `DEEPSPEED`, which have their own checkpoint formats
    examples_sha256: str  # of the training and validation examples, in order
    base: Weights | None  # None if it was in neither a folder nor a snapshot
    quantization: str | None = None  # of the base model below an adapter: `4bit` or `8bit`


class Manifest(BaseModel):
    """`manifest.json`: the files of its folder by relative path, and what they were trained from."""

    origin: Origin | None
    files: dict[str, FileStamp]


def begin_manifest(folder: Path) -> None:
    """Mark a folder as being written: until `write_manifest`, its manifest is empty."""
    write_text(folder / MANIFEST, "")


def write_manifest(folder: Path, origin: Origin | None) -> None:
    """Sync all files of a folder to disk, then write its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _UNLISTED)
    for path in paths:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    files = {path.relative_to(folder).as_posix(): _stamp(path) for path in paths}
    write_text(folder / MANIFEST, Manifest(origin=origin, files=files).model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder; None if it has none, such as a model from elsewhere.

    Raises:
        RunError: The file contains something else.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"`{path}` is incomplete, so the files next to it cannot be checked.") from error


def find_quantization(folder: Path) -> str | None:
    """Return the quantization of an adapter's base model during training; None if it was not quantized."""
    manifest = read_manifest(folder)
    return manifest.origin.quantization if manifest and manifest.origin else None


def verify_model(folder: Path, *, full: bool = False) -> None:
    """Check that the files of a tuned model and of its base model have not changed since training.

    Files other than weights may be edited but not missing. A folder without a manifest is accepted.
    `full` is that of `find_change`.

    Raises:
        RunError: A file is missing or damaged, or the base model of an adapter is a different one.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    weights = {name: stamp for name, stamp in manifest.files.items() if name.endswith(".safetensors")}
    missing = next((f"`{name}` is missing" for name in manifest.files if not (folder / name).is_file()), None)
    if change := missing or find_change(folder, weights, full=full):
        raise RunError(
            f"The model in `{folder}` is damaged: {change}. Restore the file, or delete "
            f"`{folder.parent / 'training.json'}` and resume the run with `--resume` to train again (from the last "
            "checkpoint, if it was kept)."
        )
    adapter = read_file(folder / "adapter_config.json", dict[str, Any]) or {}
    if name := adapter.get("base_model_name_or_path"):
        verify_base(folder, str(name), revision=adapter.get("revision"), full=full)


def verify_base(folder: Path, location: str, *, revision: str | None = None, full: bool = False) -> None:
    """Check that a base model is the one that the model in a folder was trained from.

    Args:
        folder: A tuned model or an adapter; accepted if it has no manifest.
        location: A local folder, or the id of a model in the Hub cache; not compared if it is missing.
        revision: Commit, tag or branch on the Hub.
        full: As in `find_change`; if False, weights of the same commit are not compared.

    Raises:
        RunError: It is a different one.
    """
    manifest = read_manifest(folder)
    then = manifest.origin.base if manifest and manifest.origin else None
    now, commit = _find_weights(location, revision)
    if then is None or now is None or (commit is not None and commit == then.commit and not full):
        return
    if change := find_change(now, then.files, full=full):
        at = f" at commit {then.commit}" if then.commit else ""
        raise RunError(
            f"The base model `{location}` is not the one{at} that `{folder}` was trained from: {change}. Restore the "
            "old weights, or train again from the new ones."
        )


def stamp_weights(location: str, revision: str | None = None) -> Weights | None:
    """Return the stamps of a base model's weights, fully hashed; None if it has no folder or snapshot."""
    folder, commit = _find_weights(location, revision)
    if folder is None:
        return None
    whole = folder / "model.safetensors"
    paths = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    return Weights(commit=commit, files={path.name: _stamp(path) for path in paths})


def _find_weights(location: str, revision: str | None) -> tuple[Path | None, str | None]:
    """Return the folder with a model's weights and the commit of its Hub snapshot, each None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if location and Path(location).is_dir():
        return Path(location), None
    with contextlib.suppress(HFValidationError):
        config = try_to_load_from_cache(location, "config.json", revision=revision)
        if isinstance(config, str):
            return Path(config).parent, Path(config).parent.name
    return None, None


def _stamp(path: Path) -> FileStamp:
    with path.open("rb") as file:
        stat, digest = os.fstat(file.fileno()), hashlib.file_digest(file, "sha256")
    return FileStamp(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=digest.hexdigest())


def find_change(folder: Path, files: dict[str, FileStamp], *, full: bool = True) -> str | None:
    """Return a description of the first file in a folder that has changed; None if none has.

    With `full`, the contents of all files are compared, not only those with a new modification time.
    """
    for name, then in files.items():
        try:
            stat = (folder / name).stat()
        except FileNotFoundError:
            return f"`{name}` is missing"
        if stat.st_size != then.size:
            return f"`{name}` has {stat.st_size:,} bytes instead of {then.size:,}"
        if (full or stat.st_mtime_ns != then.mtime_ns) and _stamp(folder / name).sha256 != then.sha256:
            return f"the content of `{name}` has changed"
    return None
