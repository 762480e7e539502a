"""The training stage of an experiment with a `dpo` section: from `data/` to `preferences.jsonl` to `model/`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.config import Experiment
from hf_instruct.data.sources import build_dataset, iterate_examples, load_split
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.preferences.pairs import REFERENCES, build_reference_pairs, load_pairs
from hf_instruct.processes import on_main_process
from hf_instruct.progress import progress_bar
from hf_instruct.records import Example, append_rows, read_rows, recover_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import PreferencePair, Response, TrainingSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation")


def tune_by_preferences(run: RunFolder, experiment: Experiment, *, resume: bool = False) -> TrainingSummary:
    """Make the pairs unless they are there, train on them, and return what it took.

    Raises:
        InstructError: The model cannot be loaded, the pairs cannot be made, or `train_preferences` raised.
    """
    from hf_instruct.models import is_local_model, load_model
    from hf_instruct.training.arguments import settle_precision
    from hf_instruct.training.preferences import train_preferences

    section = experiment.model
    name = run.find_base(section.name)
    _check_format(Path(name), run, experiment)
    model, tokenizer = load_model(name, revision=section.revision, trust_remote_code=section.trust_remote_code)
    run.add_provenance(base_model_is_local=is_local_model(name))
    on_main_process(lambda: make_pairs(run, experiment, model, tokenizer))
    pairs = read_rows(run.preferences, PreferencePair)
    by_split = {split: [pair for pair in pairs if pair.split == split] for split in _SPLITS}
    logger.info("Training %s by DPO on %d pairs", section.name, len(by_split["train"]))
    settings = settle_precision(experiment.dpo or {}, model, run)
    keep_checkpoints = settings.pop("keep_checkpoints", False)
    summary = train_preferences(
        model,
        tokenizer,
        {split: build_dataset(rows, PreferencePair) for split, rows in by_split.items()},
        output_dir=run.path,
        prompt_format=run.load_prompt_format(experiment.data.prompt_format),
        args=settings,
        peft_config=experiment.lora,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
    )
    nan = float("nan")
    logger.info(
        "Trained %d steps in %.0f s (%s on %s); held-out pairs: loss %.3f -> %.3f; peak memory %.1f GB",
        summary.steps,
        summary.seconds,
        summary.precision,
        summary.device,
        nan if summary.validation_loss_before is None else summary.validation_loss_before,
        nan if summary.validation_loss is None else summary.validation_loss,
        summary.peak_memory_bytes / 1e9,
    )
    return summary


def make_pairs(
    run: RunFolder, experiment: Experiment, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Write `preferences.jsonl`, unless it is there: pairs for training and held-out ones, none from the test split.

    Raises:
        DataError: The source has problems, or too few pairs are left.
    """
    if run.preferences.exists():
        return
    section = experiment.preferences
    if section.source == REFERENCES:
        pairs = _answer_training_prompts(run, experiment, model, tokenizer)
    else:
        pairs = _split_pairs(run, section.source, section.limit)
    for split in _SPLITS:
        if not any(pair.split == split for pair in pairs):
            raise DataError(
                f"`{section.source}` gives no pair for the {split} split of this run, so there is nothing to "
                f"{'learn from' if split == 'train' else 'measure progress on'}. Give more pairs."
            )
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs) / len(pairs)
    logger.info("%d pairs; the chosen answer is the longer one in %.0f %%", len(pairs), 100 * longer)
    write_rows(run.preferences, pairs)


def _answer_training_prompts(
    run: RunFolder, experiment: Experiment, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> list[PreferencePair]:
    """Return the pairs of references and the model's own answers; answers are kept as they come."""
    from hf_instruct.generation.answers import answer_examples
    from hf_instruct.models import move_to_best_device

    section = experiment.preferences
    partial = run.preferences_part
    splits = {split: list(iterate_examples(load_split(run, split))) for split in _SPLITS}
    examples = [example for split in _SPLITS for example in splits[split][: section.limit]]
    finished = {row.id for row in recover_rows(partial, Response)}
    remaining = [example for example in examples if example.id not in finished]
    if remaining:
        move_to_best_device(model)
        with progress_bar("Answering training prompts", len(examples), done=len(finished)) as advance:

            def keep(batch: list[Response]) -> None:
                append_rows(partial, batch)
                advance(len(batch), "")

            answer_examples(
                model,
                tokenizer,
                remaining,
                prompt_format=run.load_prompt_format(experiment.data.prompt_format),
                batch_size=experiment.generate.batch_size,
                max_new_tokens=section.max_new_tokens,
                on_batch=keep,
            )
    responses = {row.id: row for row in read_rows(partial, Response)}
    pairs = []
    for split in _SPLITS:
        chosen = splits[split][: section.limit]
        made = build_reference_pairs(chosen, [responses[example.id] for example in chosen])
        pairs += [pair.model_copy(update={"split": split}) for pair in made]
    partial.unlink()
    return pairs


def _split_pairs(run: RunFolder, source: str, limit: int | None) -> list[PreferencePair]:
    """Return a file's pairs, each in the split of its prompt; those of the test split are left out.

    Of prompts that are in no split, one in twenty is held out.
    """
    asked: dict[tuple[str, str], str] = {}
    for split in (*_SPLITS, "test"):
        asked |= dict.fromkeys(map(_key, iterate_examples(load_split(run, split))), split)
    pairs, num_tested, num_new = [], 0, 0
    loaded = load_pairs(source, limit=limit)
    for example, row in zip(iterate_examples(loaded), loaded, strict=True):
        split = asked.get(_key(example), "")
        num_tested += split == "test"
        num_new += not split
        if split != "test":
            drawn = "train" if num_new % 20 else "validation"
            known = {name: value for name, value in row.items() if value is not None}
            pairs.append(PreferencePair(**{**known, "split": split or drawn}))
    if num_tested:
        logger.info("%d pairs with a prompt of the test split are left out", num_tested)
    return pairs


def _key(example: Example) -> tuple[str, str]:
    return example.describe_task(), example.input


def _check_format(model: Path, run: RunFolder, experiment: Experiment) -> None:
    """Refuse another prompt format than the one that the model was fine-tuned on, where its run tells."""
    before = RunFolder(model.parent).prompt
    ours = run.load_prompt_format(experiment.data.prompt_format)
    if model.is_dir() and before.is_file() and ours.template and before.read_text(encoding="utf-8") != ours.template:
        raise ConfigError(
            "The prompts are not those that the model was fine-tuned on:",
            [
                f"`data.prompt_format` is `{ours.name}`, and `{model.parent}` has another template "
                f"(`{before}`); name that file as the format, or the one its `run.yaml` names"
            ],
        )
