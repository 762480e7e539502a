"""The answer stage: the model that training started from and the tuned model answer the test split.

With several processes, each writes the answers to its share of the examples to a separate file next to
`responses.jsonl`, and the main process merges them. After an interruption, the next start merges existing files.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import Experiment, GenerateSection, differing_settings, plain_values
from hf_instruct.errors import ConfigError, quote_names
from hf_instruct.generation.answers import answer_examples, answer_to_file, check_lengths
from hf_instruct.generation.endpoint import answer_at_endpoint, build_completion_prompts, check_endpoint
from hf_instruct.library_fields import check_generate_fields
from hf_instruct.manifests import verify_model
from hf_instruct.models import load_context_length, load_model, load_tokenizer, move_to_best_device
from hf_instruct.processes import count_processes, on_main_process, process_rank, wait_for_all
from hf_instruct.prompt_checks import adjust_tokenizer
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, append_rows, recover_rows, write_json, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import MODELS, TUNED, UNTUNED, Response

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Fields of the section that are not `GenerationConfig`'s, or are passed separately.
_OWN_FIELDS = set(GenerateSection.model_fields) - {"do_sample"}


def answer(run: RunFolder, experiment: Experiment) -> None:
    """Answer the test split with the tuned model, and first with the model it was tuned from, if requested.

    After DPO and GRPO, the untuned model's answers are copied from the run that fine-tuned the start model, if it has
    answers to the same examples with the same settings.

    Rows are appended to `responses.jsonl` as batches finish; an interrupted stage continues with the examples that the
    model has not answered yet. All processes of a launch call this, and it returns when the file is complete.

    Raises:
        InstructError: The data or the model is missing, or `answer_examples` raised.
        RunError: The run is from an older version.
    """
    run.refuse_older()
    examples = run.read_split("test")
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    if experiment.generate.base:
        on_main_process(lambda: _copy_untuned(run, examples[: experiment.generate.limit], experiment))
    for model in (experiment.start, TUNED) if experiment.generate.base else (TUNED,):
        _answer_with(model, run, examples, experiment, prompt_format)


def _copy_untuned(run: RunFolder, examples: list[Example], experiment: Experiment) -> None:
    """Copy the untuned model's answers from the run that fine-tuned the start model of DPO or GRPO."""
    start_run = RunFolder(Path(run.find_base(experiment.model.name)).parent)
    existing = {row.id for row in recover_rows(run.responses, Response) if row.model == UNTUNED}
    if experiment.start == UNTUNED or existing or not start_run.config.is_file():
        return
    # The other settings are about the number and the speed of the answers, or about another model's server.
    names = {"limit", "concurrency", "batch_size", "base", "endpoint", "model"}
    sections = [plain_values(settings)["generate"] for settings in (experiment, start_run.load_experiment())]
    ours, theirs = (
        {"generate": {name: value for name, value in section.items() if name not in names}} for section in sections
    )
    answers = {(row.id, row.input, row.output): row for row in start_run.read_responses(UNTUNED)}
    rows = [row for example in examples if (row := answers.get((example.id, example.input, example.output)))]
    if differing := differing_settings(ours, theirs):
        reason = f"{quote_names(differing)} is set otherwise here"
    elif len(rows) < len(examples):
        reason = f"it has answered {len(rows)} of these {len(examples)} examples"
    else:
        logger.info("Answering, untuned: copied all %d answers from %s", len(rows), start_run.path)
        append_rows(run.responses, rows)
        return
    logger.info("The report leaves out the untuned model, whose answers are in %s: %s.", start_run.path, reason)


def _answer_with(
    which: str, run: RunFolder, examples: list[Example], experiment: Experiment, prompt_format: PromptFormat
) -> None:
    """Answer the examples that a model has not answered yet; several processes share them."""
    name = f" ({experiment.model.name})" if which != TUNED else ""
    description = f"Answering, {run.read_provenance().label(which)}{name}"
    rank, num_processes = process_rank(), count_processes()
    on_main_process(lambda: _merge(run, examples))
    finished = {row.id for row in recover_rows(run.responses, Response) if row.model == which}
    remaining = [example for example in examples[: experiment.generate.limit] if example.id not in finished]
    if not remaining:
        logger.info("%s: all %d answers are in %s", description, len(finished), run.responses)
        return
    if finished:
        total = len(finished) + len(remaining)
        logger.info("%s: continuing after %d of %d answers", description, len(finished), total)
    # With several processes, none writes to the file that others may still be reading.
    is_alone = num_processes == 1
    answer_to_file(
        run.responses if is_alone else run.response_part(rank),
        examples[: experiment.generate.limit] if is_alone else remaining[rank::num_processes],
        lambda waiting, keep: _answer_share(which, run, waiting, experiment, prompt_format, keep),
        title=description,
        model=which,
    )
    wait_for_all()
    on_main_process(lambda: _merge(run, examples))


def _answer_share(
    which: str,
    run: RunFolder,
    examples: list[Example],
    experiment: Experiment,
    prompt_format: PromptFormat,
    keep: Callable[[list[Response]], None],
) -> None:
    """Answer examples with a model, in this process or on its server; `keep` gets each batch of responses."""
    section = experiment.generate
    if section.endpoint and which == TUNED:
        run.check_trained()
        tokenizer = load_tokenizer(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
        prompts = build_completion_prompts(examples, prompt_format, tokenizer)
        answer_at_endpoint(section, examples, prompts, on_response=lambda row: keep([row]))
        return
    model, tokenizer = load_model_of_run(run, experiment, which)
    answer_examples(
        model,
        tokenizer,
        examples,
        prompt_format=prompt_format,
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens,
        reference_loss=True,
        on_batch=keep,
        seed=section.seed,
        **generation_fields(section),
    )


def load_model_of_run(
    run: RunFolder, experiment: Experiment, which: str, *, dtype: str | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Return a run's tuned model, or the one that it was tuned from, and its tokenizer, on the fastest device.

    Args:
        run: The run.
        experiment: The run's experiment.
        which: `schema.TUNED`, or any other of `schema.MODELS` for the one that training started from.
        dtype: The precision; by default `generate.dtype`.

    Raises:
        RunError: The run has no tuned model yet, or its model is damaged.
        ModelLoadError: The model cannot be loaded.
    """
    base, is_base = experiment.model, which != TUNED
    if not is_base:
        # Otherwise the path of a missing folder would be treated as a Hub id.
        run.check_trained()
    model, tokenizer = load_model(
        run.find_base(base.name) if is_base else str(run.model),
        revision=base.revision if is_base else None,
        dtype=dtype or experiment.generate.dtype,
        quantization=base.quantization,
        base_of=run.model if is_base else None,
        **base.loading,
    )
    if is_base:
        # The tuned model has its tokenizer. Answers and references must end in the same token for both models.
        adjust_tokenizer(tokenizer, {"eos_token": experiment.training.get("eos_token")})
    move_to_best_device(model)
    return model, tokenizer


def _merge(run: RunFolder, examples: list[Example]) -> None:
    """Merge all answers into `responses.jsonl`, for each model in the order of the test split; delete the other files.

    After an interruption in between, the other files repeat rows of `responses.jsonl`, which is harmless.
    """
    parts = run.response_parts()
    existing = recover_rows(run.responses, Response)
    added = [row for path in parts for row in recover_rows(path, Response)]
    rows = {(row.model, row.id): row for row in [*existing, *added]}
    ordered = [rows[key] for model in MODELS for example in examples if (key := (model, example.id)) in rows]
    if ordered != existing:
        write_rows(run.responses, ordered)
    for path in parts:
        path.unlink()


def check_answering(run: RunFolder, experiment: Experiment) -> None:
    """Raise the errors of answering early: before hours of training, or before existing answers are deleted.

    Raises:
        ConfigError: Transformers refuses the generation settings.
        DataError: A prompt of the test split and `generate.max_new_tokens` do not fit the model's context.
        InstructError: The data or the model is missing.
    """
    section, base = experiment.generate, experiment.model
    verify_model(run.model)
    is_tuned = run.model.is_dir()
    tokenizer = load_tokenizer(
        str(run.model) if is_tuned else run.find_base(base.name),
        revision=None if is_tuned else base.revision,
        trust_remote_code=base.trust_remote_code,
    )
    if section.endpoint:
        check_endpoint(section)
    else:
        _try_settings(generation_fields(section), len(tokenizer))
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    examples = run.read_split("test")
    prompts = prompt_format.encode_prompts(tokenizer, examples)
    is_whole = (run.model / "config.json").is_file()
    # An adapter has the context length of its base model.
    limit = load_context_length(
        str(run.model) if is_whole else run.find_base(base.name),
        revision=None if is_whole else base.revision,
        trust_remote_code=base.trust_remote_code,
    )
    check_lengths([example.id for example in examples], prompts, section.max_new_tokens, limit)


def _try_settings(settings: dict[str, Any], vocabulary: int) -> None:
    """Generate a token with a model of one tiny layer: settings that fail do so at the first token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=vocabulary, n_positions=8, n_embd=2, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {**settings, "max_new_tokens": 1, "pad_token_id": 0}
            model.generate(torch.zeros(1, 1, dtype=torch.long), **options)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        # Transformers often fails on values of the wrong type instead of refusing them.
        raise ConfigError("The `generate` section is refused by Transformers:", [str(error)]) from error


def generation_fields(section: GenerateSection) -> dict[str, Any]:
    """Return the fields of the section that are passed to `generate()`.

    Raises:
        ConfigError: A field is not a generation setting; the section of a run folder was not checked before.
    """
    values = section.model_dump()
    if problems := check_generate_fields(values, GenerateSection.model_fields):
        raise ConfigError("The `generate` section cannot be used:", problems)
    return {name: value for name, value in values.items() if name not in _OWN_FIELDS}


def write_course_file(run: RunFolder) -> Path:
    """Write the responses as the course's `instruction-data-with-response.json`, and return its path.

    Raises:
        DataError: The responses cannot be read.
    """
    rows = [
        {"instruction": r.instruction, "input": r.input, "output": r.output, "model_response": r.response}
        for r in run.read_responses()
    ]
    write_json(run.course_file, rows)
    return run.course_file
