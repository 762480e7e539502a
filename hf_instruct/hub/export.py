"""Export a run's model as merged weights, a GGUF file or a folder for Ollama, and check the result."""

import dataclasses
import logging
from pathlib import Path

from hf_instruct.errors import PublishError, quote_names
from hf_instruct.hub.fidelity import Fidelity
from hf_instruct.hub.gguf_file import check_gguf, check_gguf_package, check_model, write_gguf
from hf_instruct.hub.merging import check_links, check_run, load_run_model, save_run_model
from hf_instruct.hub.ollama import Modelfile, build_modelfile
from hf_instruct.hub.outputs import building, check_target
from hf_instruct.hub.templates import shape_prompt
from hf_instruct.models import context_length
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

KINDS = ("merged", "gguf", "ollama")
TENSOR_TYPES = ("F32", "F16", "Q8_0")


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
    check_target(target, force=force)
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
