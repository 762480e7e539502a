"""The answer stage: the test split answered by the untuned and by the tuned model."""

import logging
from pathlib import Path

from hf_instruct.config import Experiment, GenerateSection
from hf_instruct.generation.answers import generate_responses
from hf_instruct.models import best_device, load_model
from hf_instruct.progress import progress_bar
from hf_instruct.records import Example, Response, append_rows, read_rows, recover_rows, write_json, write_rows
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)

# Fields of the section that are not `GenerationConfig`'s.
_OWN_FIELDS = {"batch_size", "base", "dtype", "seed", "max_new_tokens"}


def answer(run: RunFolder, experiment: Experiment) -> None:
    """Answer the test split into `responses.jsonl`, and with the untuned model into `base/responses.jsonl`.

    Rows are appended as batches finish; a stage that was cut off goes on with the examples that have no row yet, and a
    whole file is left alone.

    Raises:
        InstructError: The data or the model is missing, or `generate_responses` raised.
    """
    examples = read_rows(run.split("test"), Example)
    section = experiment.generate
    if section.base:
        name = experiment.model.name
        _answer_into(run.base.responses, examples, experiment, name, f"Answering, untuned ({name})")
    _answer_into(run.responses, examples, experiment, str(run.model), "Answering, tuned")


def _answer_into(path: Path, examples: list[Example], experiment: Experiment, name: str, description: str) -> None:
    finished = {row.id: row for row in recover_rows(path, Response)}
    remaining = [example for example in examples if example.id not in finished]
    if not remaining:
        logger.info("%s: all %d answers are in %s", description, len(examples), path)
        return
    if finished:
        logger.info("%s: going on after %d of %d answers", description, len(finished), len(examples))
    section = experiment.generate
    is_base = name == experiment.model.name
    model, tokenizer = load_model(
        name,
        revision=experiment.model.revision if is_base else None,
        trust_remote_code=experiment.model.trust_remote_code,
        dtype=section.dtype,
    )
    from transformers import set_seed

    set_seed(section.seed)
    # Typed as a wrapper that hides the argument.
    model.to(best_device())  # type: ignore[arg-type]
    with progress_bar(description, len(examples), done=len(finished)) as advance:

        def keep(batch: list[Response]) -> None:
            append_rows(path, batch)
            advance(len(batch), "")

        responses = generate_responses(
            model,
            tokenizer,
            remaining,
            prompt_format=experiment.data.prompt_format,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            on_batch=keep,
            **_generation_fields(section),
        )
    finished |= {row.id: row for row in responses}
    # Batches finish in order of length; the file ends in the order of the test split.
    write_rows(path, [finished[example.id] for example in examples])


def _generation_fields(section: GenerateSection) -> dict[str, object]:
    return {name: value for name, value in section.model_dump().items() if name not in _OWN_FIELDS}


def write_course_file(run: RunFolder) -> Path:
    """Write the responses as the course's `instruction-data-with-response.json`, and return its path.

    Raises:
        DataError: There are no responses yet.
    """
    rows = [
        {"instruction": r.instruction, "input": r.input, "output": r.output, "model_response": r.response}
        for r in read_rows(run.responses, Response)
    ]
    write_json(run.course_file, rows)
    return run.course_file
