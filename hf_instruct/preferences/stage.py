"""The training stage of an experiment with a `dpo` section, which uses `preferences.jsonl`, or a `grpo` section."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.config import Experiment
from hf_instruct.console import pluralize
from hf_instruct.data.sources import build_dataset, iterate_examples, load_split
from hf_instruct.errors import ConfigError, DataError, RunError, quote_names
from hf_instruct.preferences.pairs import (
    REFERENCES,
    SPLITS,
    build_pair,
    choose_pair,
    describe_pairs,
    key_prompt,
    leave_out_tested,
    read_pairs,
    reference_candidates,
)
from hf_instruct.processes import is_main_process, on_main_process
from hf_instruct.records import Example, read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import PreferencePair, Response, TrainingSummary

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def run_dpo(run: RunFolder, experiment: Experiment, *, resume: bool = False) -> TrainingSummary:
    """Create the pairs if there are none, train on them, and return the summary of the training.

    Raises:
        InstructError: The model cannot be loaded, the pairs cannot be created, or `train_dpo` raised.
    """
    from hf_instruct.training.dpo import train_dpo
    from hf_instruct.training.stage import build_options, load_base, log_summary

    _check_format(Path(run.find_base(experiment.model.name)), run, experiment)
    model, tokenizer = load_base(run, experiment)
    on_main_process(lambda: make_pairs(run, experiment, model, tokenizer))
    rows = read_rows(run.preferences, PreferencePair)
    pairs = {name: build_dataset([row for row in rows if row.split == name], PreferencePair) for name in SPLITS}
    logger.info("Training %s by DPO on %s", experiment.model.name, pluralize(len(pairs["train"]), "pair"))
    # After the pairs: this may halve the weights, and the answers need full precision.
    options = build_options(run, experiment, model)
    summary = train_dpo(model, tokenizer, pairs, resume=resume, **options)
    log_summary(run, summary)
    return summary


def run_grpo(run: RunFolder, experiment: Experiment, *, resume: bool = False) -> TrainingSummary:
    """Train on rewards for the model's own answers to the training prompts, and return the summary of the training.

    Raises:
        ConfigError: No reward is set, or a split has no prompt in the categories.
        RunError: The run has checkpoints that were trained with another reward.
        InstructError: The model cannot be loaded, or `train_grpo` raised.
    """
    from trl.trainer.utils import get_callable_name

    from hf_instruct.generation.decoding import find_ends
    from hf_instruct.preferences.rewards import build_rewards, check_rewarding_judge
    from hf_instruct.training.grpo import train_grpo
    from hf_instruct.training.stage import build_options, load_base, log_summary

    section, custom = experiment.rewards, list(run.reward_funcs)
    origin = ", ".join(getattr(function, "origin", None) or get_callable_name(function) for function in custom) or None
    before = run.read_provenance().reward
    if before != origin and any(run.checkpoints.glob("checkpoint-*")):
        raise RunError(
            f"`{run.path}` was trained with the reward {before or 'none'}, but now it is {origin or 'none'}; use the "
            "same one (`--reward FILE.py:NAME`), or use another `--run-dir`."
        )
    if not section.weights and not custom:
        raise ConfigError(
            "The `rewards` section has no weight above 0; set one, such as `exact_match: 1`, or use your own "
            "function (`--reward FILE.py:NAME`)."
        )
    splits = {name: load_split(run, name) for name in SPLITS}
    if section.categories:
        splits = _choose_categories(splits, section.categories)
    _check_format(Path(run.find_base(experiment.model.name)), run, experiment)
    if section.judge:
        learned = list(iterate_examples(splits["train"]))
        on_main_process(lambda: check_rewarding_judge(experiment.judge, learned, run))
    model, tokenizer = load_base(run, experiment)
    options = build_options(run, experiment, model)
    weights = [*section.weights.values(), *(1.0 for _ in custom)]
    options["args"] = {**options["args"], "reward_weights": weights}
    logger.info("Training %s by GRPO on %d prompts", experiment.model.name, len(splits["train"]))
    ends = find_ends(model, tokenizer, options["prompt_format"].end_token_id(tokenizer))
    functions = [*build_rewards(section.weights, ends=ends, judge=experiment.judge), *custom]
    if is_main_process():
        run.add_provenance(reward=origin)
    summary = train_grpo(model, tokenizer, splits, reward_funcs=functions, resume=resume, **options)
    log_summary(run, summary)
    return summary


def _choose_categories(splits: "Mapping[str, Dataset]", categories: Sequence[str]) -> "dict[str, Dataset]":
    """Return the examples of some categories.

    Raises:
        ConfigError: A category does not exist, or a split has no example left.
    """
    existing = {category for rows in splits.values() for category in rows["category"]}
    if unknown := sorted(set(categories) - existing):
        raise ConfigError(
            f"`rewards.categories` names {quote_names(unknown)}; the examples have "
            f"{quote_names(sorted(filter(None, existing))) or 'none'}."
        )
    chosen = {}
    for name, rows in splits.items():
        kept = [index for index, category in enumerate(rows["category"]) if category in categories]
        if not kept:
            raise ConfigError(
                f"`rewards.categories` leaves no example in the {name} split; add categories, or leave it out."
            )
        chosen[name] = rows.select(kept)
    return chosen


def make_pairs(
    run: RunFolder, experiment: Experiment, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Write `preferences.jsonl`, unless it exists: pairs for training and validation, without test prompts.

    Raises:
        DataError: The source has problems, or a split has no pair.
    """
    if run.preferences.exists():
        return
    section = experiment.preferences
    left_out: Counter[str] = Counter()
    if section.source == REFERENCES:
        pairs = _answer_training_prompts(run, experiment, model, tokenizer, left_out)
    else:
        pairs = _split_pairs(run, section.source, section.limit, left_out)
    for split in SPLITS:
        if not any(pair.split == split for pair in pairs):
            raise DataError(
                f"`{section.source}` gives no pair for the {split} split of this run, so there is nothing to "
                f"{'learn from' if split == 'train' else 'measure progress on'}. Add more pairs."
            )
    answers = [(pair.chosen, pair.rejected) for pair in pairs]
    logger.info("%s; %s", pluralize(len(pairs), "pair"), describe_pairs(answers, left_out))
    write_rows(run.preferences, pairs)


def _answer_training_prompts(
    run: RunFolder,
    experiment: Experiment,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    left_out: Counter[str],
) -> list[PreferencePair]:
    """Return pairs of a reference and the model's own answer; answers are saved as they are generated."""
    from hf_instruct.generation.answers import answer_examples, answer_to_file
    from hf_instruct.models import move_to_best_device

    section = experiment.preferences
    splits = {split: run.read_split(split) for split in SPLITS}
    first = [example for split in SPLITS for example in splits[split][: section.limit]]
    examples = leave_out_tested(run, first, left_out)

    def answer(waiting: list[Example], keep: Callable[[list[Response]], None]) -> None:
        move_to_best_device(model)
        answer_examples(
            model,
            tokenizer,
            waiting,
            prompt_format=run.load_prompt_format(experiment.data.prompt_format),
            batch_size=experiment.generate.batch_size,
            max_new_tokens=experiment.generate.max_new_tokens,
            on_batch=keep,
        )

    rows = answer_to_file(run.preferences_part, examples, answer, title="Answering training prompts")
    split_of = {example.id: split for split, listed in splits.items() for example in listed}
    pairs = []
    for example, row in zip(examples, rows, strict=True):
        if pair := choose_pair(reference_candidates(example, row.response), left_out):
            preference = build_pair(example, pair[1].text, origin=REFERENCES)
            pairs.append(preference.model_copy(update={"split": split_of[example.id]}))
    # Not there if no prompt was left to answer.
    run.preferences_part.unlink(missing_ok=True)
    return pairs


def _split_pairs(run: RunFolder, source: str, limit: int | None, left_out: Counter[str]) -> list[PreferencePair]:
    """Return a file's pairs, each in the split of its prompt, without prompts of the test split.

    One in twenty pairs whose prompt is in no split goes to the validation split.
    """
    split_of = {key_prompt(example): split for split in SPLITS for example in run.read_split(split)}
    pairs, num_new = [], 0
    for pair in leave_out_tested(run, read_pairs(source, limit=limit), left_out):
        split = split_of.get(key_prompt(pair))
        if split is None:
            num_new += 1
            split = "train" if num_new % 20 else "validation"
        pairs.append(pair.model_copy(update={"split": split}))
    return pairs


def _check_format(model: Path, run: RunFolder, experiment: Experiment) -> None:
    """Refuse a prompt format that differs from that of the model's own run, if the model has one."""
    before = RunFolder(model.parent).prompt
    ours = run.load_prompt_format(experiment.data.prompt_format)
    if model.is_dir() and before.is_file() and ours.template and before.read_text(encoding="utf-8") != ours.template:
        raise ConfigError(
            "The prompt format differs from the one the model was fine-tuned with:",
            [
                f"`data.prompt_format` is `{ours.name}`, but `{model.parent}` has another template (`{before}`); use "
                "that file, or the format in its `run.yaml`"
            ],
        )
