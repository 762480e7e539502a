"""The data stage: write the examples of a source to the three files that all later stages read."""

import logging

from hf_instruct.config import Experiment
from hf_instruct.data.examples import has_conversations
from hf_instruct.data.findings import build_preflight, format_findings, refuse_leaks
from hf_instruct.data.sources import check_section, iterate_examples
from hf_instruct.data.splits import split_dataset
from hf_instruct.data.tokens import TokenCounter, load_counter
from hf_instruct.errors import ModelLoadError
from hf_instruct.prompt_checks import choose_format
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import write_json, write_rows, write_text
from hf_instruct.run_folder import RunFolder

logger = logging.getLogger(__name__)


def prepare(run: RunFolder, experiment: Experiment) -> None:
    """Write `data/{train,test,validation}.jsonl` and, last, `data/preflight.json` into the run folder.

    Raises:
        DataError: The source cannot be read, has problems or cannot be split; or `data.strict` is on and test or
            validation examples are also in train.
        ConfigError: The prompt format cannot be trained on with the model's tokenizer.
    """
    settings = experiment.data
    checked = check_section(settings)
    examples = checked.require_valid()
    is_talk = has_conversations(examples)
    prompt_format = choose_format(settings.prompt_format, has_conversations=is_talk, args=experiment.training)
    counter = _load_counter(experiment, prompt_format)
    if counter is not None:
        examples = counter.add_counts(examples, num_proc=settings.num_proc)
    splits = split_dataset(examples, settings)
    if settings.strict:
        refuse_leaks(splits, source=settings.source_name, strict="`data.strict`", remedy="--data.split grouped")
    preflight = build_preflight(
        splits,
        source=settings.source_name,
        split=settings.split,
        counter=counter,
        num_left_out=checked.num_without_output,
    )
    # Its presence means that the splits are complete, so it is deleted before they change.
    run.preflight.unlink(missing_ok=True)
    for name, rows in splits.items():
        write_rows(run.split(name), iterate_examples(rows))
    # Without a tokenizer, training resolves the format.
    run.prompt.unlink(missing_ok=True)
    if counter is not None:
        write_text(run.prompt, counter.prompt_format.template)
    kept = {"data_sha256": run.hash_splits(), "prompt_format": prompt_format.name}
    write_json(run.preflight, preflight.model_copy(update=kept))
    logger.info("%s", format_findings(preflight))


def _load_counter(experiment: Experiment, prompt_format: PromptFormat) -> TokenCounter | None:
    """Return a token counter with an experiment's training settings; None if its tokenizer cannot be loaded."""
    model = experiment.model
    try:
        return load_counter(
            model.name,
            prompt_format=prompt_format,
            training=experiment.training,
            loss_on=experiment.data.loss_on,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except ModelLoadError:
        # Preparing works without it; training reports the error.
        logger.info("Tokens are not counted, because the tokenizer of `%s` cannot be loaded.", model.name)
        return None
