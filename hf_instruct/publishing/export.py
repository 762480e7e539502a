"""Export a run's model: merged weights, a GGUF file, or a folder for Ollama; checked before it is called done."""

import contextlib
import dataclasses
import logging
from pathlib import Path

from hf_instruct.errors import DataError, PublishError
from hf_instruct.models import context_length
from hf_instruct.publishing.gguf_check import MAX_NEW_TOKENS, GgufCheck, check_gguf
from hf_instruct.publishing.gguf_file import (
    check_architecture,
    check_gguf_package,
    estimate_gguf_bytes,
    name_pre_tokenizer,
    read_tokenizer,
    write_gguf,
)
from hf_instruct.publishing.merging import RunModel, check_run, load_run_model, save_run_model
from hf_instruct.publishing.ollama_model import Modelfile, build_modelfile
from hf_instruct.publishing.targets import building, check_space, check_target
from hf_instruct.publishing.templates import check_go_template, shape_prompt
from hf_instruct.records import Example, read_rows
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

NUM_PROMPTS = 10
MODELFILE = "Modelfile"
# Where a run has no test split to take prompts from.
_INSTRUCTIONS = (
    "Name the capital of France.",
    "Write a sentence about the sea.",
    "List three colors.",
    "What is 12 plus 30?",
    "Rewrite in the past tense: She walks home.",
    "Give an antonym of 'cold'.",
    "Who wrote 'Pride and Prejudice'?",
    "Translate to French: Good morning.",
    "Is a whale a fish?",
    "Describe rain in one word.",
)


@dataclasses.dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        path: The file or folder.
        merged: Whether an adapter was merged into its base model.
        weights: The GGUF file, where there is one.
        check: How near it is to the model.
        modelfile: For Ollama.
    """

    path: Path
    merged: bool
    weights: Path | None = None
    check: GgufCheck | None = None
    modelfile: Modelfile | None = None


def export_run(
    run: RunFolder, kind: str, *, out: Path | None = None, tensor_type: str = "Q8_0", force: bool = False
) -> Export:
    """Export a run's tuned model, and check what was written; what fails the check is deleted.

    Args:
        run: The run.
        kind: `merged`, `gguf` or `ollama`.
        out: The folder, or for `gguf` the file, to write; in the run's `export/` by default.
        tensor_type: How a GGUF stores matrices: `F32`, `F16` or `Q8_0`.
        force: Replace what is there.

    Raises:
        InstructError: The run or its model is missing, the format cannot hold it, the place is taken or full, or the
            GGUF differs from the model by more than its type explains.
    """
    name = f"{run.path.resolve().name}-{tensor_type}.gguf" if kind == "gguf" else kind
    target = out or run.path / "export" / name
    if kind == "gguf" and target.suffix != ".gguf":
        raise PublishError(f"`--out {target}` is no name for a GGUF file; it ends in `.gguf`.")
    check_target(target, force=force)
    check_run(run)
    if kind != "merged":
        check_gguf_package()
    source = load_run_model(run)
    size = source.model.num_parameters()
    if kind == "merged":
        check_space(target, size * 4 + 10_000_000)
        with building(target) as part:
            save_run_model(source, part)
        return Export(target, source.merged)
    check_architecture(source.model.config)
    name_pre_tokenizer(read_tokenizer(source.tokenizer))
    modelfile = _build_modelfile(source) if kind == "ollama" else None
    check_space(target, estimate_gguf_bytes(size, tensor_type))
    prompts = collect_prompts(run, source)
    weights = target if modelfile is None else target / f"model-{tensor_type}.gguf"
    with building(target) as part:
        file = part if modelfile is None else part / weights.name
        file.parent.mkdir(exist_ok=True)
        logger.info("Writing %s", weights)
        write_gguf(source, file, tensor_type=tensor_type)
        logger.info("Reading it back and comparing it with the model")
        check = check_gguf(file, source, prompts, tensor_type=tensor_type)
        if modelfile is not None:
            (part / MODELFILE).write_text(modelfile.format(weights.name), encoding="utf-8", newline="\n")
    return Export(target, source.merged, weights, check, modelfile)


def _build_modelfile(source: RunModel) -> Modelfile:
    shape = shape_prompt(source.prompt_format, source.tokenizer)
    check_go_template(shape, source.prompt_format, source.tokenizer)
    return build_modelfile(shape, context=context_length(source.model))


def collect_prompts(run: RunFolder, source: RunModel, *, count: int = NUM_PROMPTS) -> list[list[int]]:
    """Return the token ids of the prompts that an export is checked on: the test split's first, or general ones.

    Prompts that leave no room for an answer are left out.
    """
    examples: list[Example] = []
    with contextlib.suppress(DataError):
        examples = read_rows(run.split("test"), Example)
    pairs = [(example.instruction, example.input) for example in examples] + [(text, "") for text in _INSTRUCTIONS]
    limit = context_length(source.model)
    prompts: list[list[int]] = []
    for instruction, input in pairs:
        ids = source.prompt_format.encode_prompt(source.tokenizer, instruction, input)
        if limit is None or len(ids) + MAX_NEW_TOKENS <= limit:
            prompts.append(ids)
        if len(prompts) == count:
            break
    if not prompts:
        raise PublishError(
            f"The model attends to {limit} tokens, and no prompt leaves room for the {MAX_NEW_TOKENS} new tokens "
            "of the check. Train it with a longer context."
        )
    return prompts
