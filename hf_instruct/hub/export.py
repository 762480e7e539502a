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
# A folder that is exported holds one of these: merged weights the first, a model for Ollama the second.
_EXPORTED = ("config.json", "Modelfile")
# Source: https://github.com/ollama/ollama, `types/model/name.go`.
_NAME = re.compile(r"(?:(?:[\w.-]+(?::\d+)?/)?[\w][\w-]{0,79}/)?[\w][\w.-]{0,79}(?::[\w][\w.-]{0,79})?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        path: The file or folder.
        merged: Whether an adapter was merged into its base model.
        check: How near what was written is to the run's model.
        weights: The GGUF file, if there is one.
        modelfile: For Ollama.
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
        tensor_type: How a GGUF stores matrices: `F32`, `F16` or `Q8_0`.
        force: Replace what is there.

    Raises:
        InstructError: The run or its model is missing, the format cannot hold it, the target is taken or full, or
            what was written differs from the run's model by more than its type explains.
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
    """Refuse a file or folder that is taken; with `force`, only a folder of something else."""
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


def check_name(name: str) -> None:
    """Raise `PublishError` for a model's name that Ollama would refuse."""
    if not _NAME.fullmatch(name):
        raise PublishError(
            f"`--create {name}` is not a valid name for an Ollama model. It should look like `my-model`, "
            "`my-model:q8` or `me/my-model:q8`: letters, digits, `.`, `_` and `-`, up to 80 of them."
        )


def run_ollama(*arguments: str, base_url: str | None = None, shown: bool = True) -> None:
    """Run Ollama's own command.

    Args:
        arguments: What follows `ollama`.
        base_url: The server's address; OLLAMA_HOST, else this machine, by default.
        shown: Whether it shows its progress, on standard error.

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
        said = "see its output above" if shown else clean_message(done.stderr).strip()
        raise PublishError(
            f"`{command}` failed ({said}). Check that the server is running; start it with `ollama serve`."
        )
