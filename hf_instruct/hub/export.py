"""Export a run's model as merged weights, a GGUF file or a folder for Ollama, and check the result."""

import contextlib
import dataclasses
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_instruct.console import clean_message
from hf_instruct.errors import PublishError, quote_names
from hf_instruct.hub.fidelity import Fidelity
from hf_instruct.hub.gguf_file import check_gguf, check_gguf_package, check_model, write_gguf
from hf_instruct.hub.merging import check_links, check_run, load_run_model, save_run_model
from hf_instruct.hub.templates import Modelfile, build_modelfile, shape_prompt
from hf_instruct.models import context_length
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

KINDS = ("merged", "gguf", "ollama")
TENSOR_TYPES = ("F32", "F16", "Q8_0")
# An exported folder contains one of these: merged weights the first, a model for Ollama the second.
_EXPORTED = ("config.json", "Modelfile")
# Source: https://github.com/ollama/ollama, `types/model/name.go`.
_NAME = re.compile(r"(?:(?:[\w.-]+(?::\d+)?/)?[\w][\w-]{0,79}/)?[\w][\w.-]{0,79}(?::[\w][\w.-]{0,79})?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: The file or folder.
        merged: Whether an adapter was merged into its base model.
        check: Its difference from the run's model.
        weights: The GGUF file, if there is one.
        modelfile: The Modelfile for Ollama, if there is one.
    """

    path: Path
    merged: bool
    check: Fidelity
    weights: Path | None = None
    modelfile: Modelfile | None = None


def export(
    run: RunFolder | str | Path,
    kind: str,
    *,
    out: str | Path | None = None,
    tensor_type: str = "Q8_0",
    force: bool = False,
) -> Export:
    """Export a run's tuned model, and check the result; an export that fails the check is deleted.

    Args:
        run: The run folder, or its path.
        kind: `merged`, `gguf` or `ollama`.
        out: The folder, or for `gguf` the file, to write; in the run's `export/` by default.
        tensor_type: Type of the matrices in a GGUF file: `F32`, `F16` or `Q8_0`.
        force: Replace an existing export.

    Raises:
        InstructError: The run or its model is missing, the format does not support it, the target exists or cannot be
            written, or the export differs from the run's model by more than its type explains.
    """
    run = RunFolder.of(run)
    for name, value, allowed in (("kind", kind, KINDS), ("tensor_type", tensor_type, TENSOR_TYPES)):
        if value not in allowed:
            raise PublishError(f"`{name}` is `{value}`; allowed are {quote_names(allowed)}.")
    name = f"{run.path.resolve().name}-{tensor_type}.gguf" if kind == "gguf" else kind
    target = Path(out) if out else run.path / "export" / name
    if kind == "gguf" and target.suffix != ".gguf":
        raise PublishError(f"`--out {target}` must end in `.gguf`.")
    _check_target(target, force=force)
    check_links(run)
    if kind != "merged":
        check_gguf_package()
    check_run(run)
    source = load_run_model(run)
    if kind == "merged":
        with building(target) as part:
            check = save_run_model(source, part)
        return Export(target, run.has_adapter, check)
    check_model(source)
    modelfile = None
    if kind == "ollama":
        shape = shape_prompt(source.prompt_format, source.tokenizer)
        modelfile = build_modelfile(shape, context=context_length(source.model))
    weights = target if modelfile is None else target / f"model-{tensor_type}.gguf"
    with building(target) as part:
        file = part if modelfile is None else part / weights.name
        file.parent.mkdir(exist_ok=True)
        logger.info("Writing %s", weights)
        write_gguf(source, file, tensor_type=tensor_type)
        logger.info("Loading it again and comparing it with the run's model")
        check = check_gguf(file, source, tensor_type=tensor_type)
        if modelfile is not None:
            (part / "Modelfile").write_text(modelfile.format(weights.name), encoding="utf-8", newline="\n")
    return Export(target, run.has_adapter, check, weights, modelfile)


def _check_target(target: Path, *, force: bool) -> None:
    """Refuse an existing file or folder; with `force`, only a folder that is not an export."""
    if target.exists() and not force:
        raise PublishError(f"`{target}` already exists. Replace it with `--force`, or use another path with `--out`.")
    if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in _EXPORTED):
        raise PublishError(
            f"`{target}` is a folder without an export, so it is not replaced, not even with `--force`. Use another "
            "path with `--out`."
        )


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a new path next to `target`; files written there are deleted at the end of the block.

    Raises:
        PublishError: The disk is full, or the target's folder cannot be written.
    """
    from safetensors import SafetensorError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder) / target.name
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PublishError(
            f"`{target}` could not be written ({reason}); nothing was kept. Free some space, or make "
            f"`{target.parent}` writable."
        ) from error


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield a path like `staging`, which replaces the target at the end; if the block fails, the target stays.

    Raises:
        PublishError: The disk is full, or the target cannot be written.
    """
    with staging(target) as part:
        yield part
        # A folder cannot be renamed to one that exists.
        aside = part.with_name(f"{target.name}.replaced")
        try:
            if target.exists():
                target.rename(aside)
            part.rename(target)
        finally:
            # Also after Ctrl-C, because the path that the target was moved to is about to be deleted.
            if aside.exists() and not target.exists():
                aside.rename(target)


def check_name(name: str) -> None:
    """Raise `PublishError` for a model's name that Ollama would refuse."""
    if not _NAME.fullmatch(name):
        raise PublishError(
            f"`--create {name}` is not a valid name for an Ollama model. It should look like `my-model`, "
            "`my-model:q8` or `me/my-model:q8`: letters, digits, `.`, `_` and `-`, up to 80 of them."
        )


def run_ollama(*arguments: str, base_url: str | None = None, shown: bool = True) -> None:
    """Run the `ollama` command.

    Args:
        arguments: Its arguments.
        base_url: The server's address; by default OLLAMA_HOST or else this machine.
        shown: Whether to show its progress on standard error.

    Raises:
        PublishError: It is not installed, or fails: no server answers, or it refuses.
    """
    command = shlex.join(["ollama", *arguments])
    program = shutil.which("ollama")
    if program is None:
        raise PublishError(
            f"`{command}` cannot run, because `ollama` is not on the PATH. Install it from https://ollama.com."
        )
    address = {"OLLAMA_HOST": base_url} if base_url else {}
    # Standard output is for results.
    output = 2 if shown else subprocess.PIPE
    done = subprocess.run([program, *arguments], stdout=output, stderr=output, text=True, env={**os.environ, **address})
    if done.returncode:
        reason = "see its output above" if shown else clean_message(done.stderr).strip()
        raise PublishError(
            f"`{command}` failed ({reason}). Check that the server is running; start it with `ollama serve`."
        )
