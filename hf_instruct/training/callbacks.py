"""Training output: the progress bar, `training.jsonl` and sample answers."""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_instruct.errors import TrainingError
from hf_instruct.generation.decoding import generate_completions
from hf_instruct.library_fields import find_section
from hf_instruct.memory import give_back_freed_memory, keep_freed_memory, place_large_blocks_apart, stop_keeping_memory
from hf_instruct.models import matching_precision
from hf_instruct.processes import on_main_process
from hf_instruct.progress import Advance, progress_bar
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, append_rows, recover_rows, write_rows
from hf_instruct.schema import TrainingRow
from hf_instruct.training.tracking import log_samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# A slow machine saves more often than every `train.save_steps`, so that an interruption costs minutes, not an hour.
SAVE_SECONDS = 300.0
# On a GPU 50 steps can take 3 s, and writing the checkpoint longer than that.
MIN_SAVE_SECONDS = 60.0

_SAMPLE_TOKENS = 60
# The mean of one reward function, as TRL logs it.
_REWARD = re.compile("(?:eval_)?rewards/(.*)/mean")

Sampler = Callable[[], list[dict[str, str]]]
"""Returns the model's current answers to a few fixed prompts."""


class KeepMemory(TrainerCallback):
    """Keeps freed memory from step to step, but not after an evaluation, whose blocks have other sizes."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Prepare for the memory that the first step, or a loaded checkpoint, allocates permanently."""
        place_large_blocks_apart()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Change the C library's setting: after the first step everything permanent is allocated."""
        keep_freed_memory()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Free the memory of the evaluation before the next step."""
        give_back_freed_memory()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Restore the C library's setting, which applies to the whole process."""
        stop_keeping_memory()


class RunLog(TrainerCallback):
    """Writes `training.jsonl`, shows the progress bar and takes the samples, on the main process only.

    The rows of a step are on disk before its checkpoint. When training resumes from a checkpoint, the rows after it are
    dropped, so an interrupted run ends with the same rows as an uninterrupted one.
    """

    def __init__(self, path: Path, arguments: TrainingArguments, given: Any, sampler: Sampler | None = None) -> None:
        """Log to a file, and turn off the trainer's own bar or notebook table if this one shows progress.

        The trainer's is used if INFO logs are not shown, as in most scripts and notebooks.

        Args:
            path: The file.
            arguments: The trainer's arguments.
            given: The user's values for them. Save settings in it are followed exactly; with the defaults, checkpoints
                are skipped if saving would take longer than training.
            sampler: Called at the start and after each epoch.
        """
        self.path = path
        self.sampler = sampler
        self._shows_progress = logger.isEnabledFor(logging.INFO) and not arguments.disable_tqdm
        arguments.disable_tqdm = arguments.disable_tqdm or self._shows_progress
        save_settings = {"save_steps", "save_strategy", "load_best_model_at_end"}
        is_default = given is None or (isinstance(given, Mapping) and save_settings.isdisjoint(given))
        # A checkpoint sooner than this after the previous one is skipped.
        self._least_save_seconds = MIN_SAVE_SECONDS if is_default else 0.0
        # Whether the run can be resumed from a checkpoint of this step.
        self.can_save: Callable[[], bool] = lambda: True
        self.seconds = 0.0
        self._started = self._last_save = 0.0
        self._last_tokens, self._last_time = 0, 0.0
        self._note = ""
        self._advance: Advance = lambda count, note: None
        self._bar = ExitStack()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Drop the rows after the resumed checkpoint; open the bar."""
        # Every process measures the time, because each returns the summary; only the main one writes.
        self._started = self._last_time = self._last_save = time.monotonic()
        self._last_tokens = state.num_input_tokens_seen
        if not state.is_world_process_zero:
            return
        rows = recover_rows(self.path, TrainingRow)
        kept = [row for row in rows if row.step <= state.global_step] if state.global_step else []
        write_rows(self.path, kept)
        self.seconds = max((row.seconds or 0.0 for row in kept), default=0.0)
        self._started -= self.seconds
        if self._shows_progress:
            self._advance = self._bar.enter_context(progress_bar("Training", state.max_steps, done=state.global_step))
        if state.global_step == 0:
            self._sample(args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Advance the bar, decide whether to save, take samples after an epoch, and log and evaluate the last step."""
        self._advance(1, self._note)
        since_save = time.monotonic() - self._last_save
        if control.should_save and self._least_save_seconds:
            control.should_save = on_main_process(lambda: since_save >= self._least_save_seconds)
        # With several processes, they would have to synchronize their clocks in every step.
        if args.world_size == 1 and since_save >= SAVE_SECONDS:
            control.should_save = True
        control.should_save &= self.can_save()
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        if state.is_world_process_zero and _ends_epoch(state):
            self._sample(args, state)
        return control

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Write a row of training losses."""
        logs: dict[str, float] = event["logs"]
        _refuse_diverged(logs.get("loss", 0.0), state, args)
        if not state.is_world_process_zero or "loss" not in logs:
            return
        now = time.monotonic()
        rate = (state.num_input_tokens_seen - self._last_tokens) / max(now - self._last_time, 1e-9)
        self._last_tokens, self._last_time = state.num_input_tokens_seen, now
        rewards, learning_rate = _read_rewards(logs), logs.get("learning_rate")
        summary = f"reward {rewards['reward']:.3f}" if "reward" in rewards else f"loss {logs['loss']:.3f}"
        self._note = f"{summary}, {rate:,.0f} tokens/s"
        values = {"learning_rate": learning_rate, "tokens_per_second": round(rate, 1), **rewards}
        self._write(state, "train", loss=logs["loss"], **values)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Write a row of losses on fixed examples."""
        metrics: dict[str, float] = event["metrics"]
        _refuse_diverged(metrics.get("eval_loss", 0.0), state, args)
        if not state.is_world_process_zero:
            return
        losses = {"train_loss": metrics.get("eval_train_loss"), "validation_loss": metrics.get("eval_loss")}
        self._write(state, "evaluation", **losses, **_read_rewards(metrics, "eval_"))
        # Evaluation does not count towards the tokens per second.
        self._last_tokens, self._last_time = state.num_input_tokens_seen, time.monotonic()

    def on_save(self, *_: Any, **__: Any) -> None:
        """Restart the clock for the next checkpoint."""
        self._last_save = time.monotonic()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock before the model is saved, and close the bar."""
        self.seconds = time.monotonic() - self._started
        self.close()

    def close(self) -> None:
        """Close the bar, also after an error."""
        self._bar.close()

    def _sample(self, args: TrainingArguments, state: TrainerState) -> None:
        if self.sampler is not None:
            start = time.monotonic()
            samples = self.sampler()
            self._write(state, "samples", samples=samples)
            trackers: Any = args.report_to
            log_samples(trackers, samples, step=state.global_step, folder=self.path.parent)
            # Sampling does not count towards the tokens per second.
            self._last_time += time.monotonic() - start

    def _write(self, state: TrainerState, kind: str, **fields: Any) -> None:
        row = TrainingRow(
            step=state.global_step,
            epoch=round(state.epoch or 0.0, 4),
            tokens_seen=int(state.num_input_tokens_seen),
            kind=kind,
            seconds=round(time.monotonic() - self._started, 2),
            **fields,
        )
        append_rows(self.path, [row])


def _read_rewards(logs: Mapping[str, float], prefix: str = "") -> dict[str, Any]:
    """Return the rewards that DPO and GRPO log, under our names, without those that applied to no answer."""
    logs = {name: value for name, value in logs.items() if value is not None and not math.isnan(value)}
    names = {
        "reward_margin": "rewards/margins",
        "reward_accuracy": "rewards/accuracies",
        "reward": "reward",
        "answer_tokens": "completions/mean_length",
    }
    values: dict[str, Any] = {ours: logs[prefix + theirs] for ours, theirs in names.items() if prefix + theirs in logs}
    rewards = {match[1]: value for name, value in logs.items() if (match := _REWARD.fullmatch(name))}
    return {**values, "rewards": rewards} if rewards else values


def _refuse_diverged(loss: float, state: TrainerState, args: TrainingArguments) -> None:
    """Raise TrainingError if the loss is not finite; it was gathered, so all processes see the same value."""
    if not math.isfinite(loss):
        section = find_section(args)
        raise TrainingError(
            f"The loss is {loss} at step {state.global_step}: training has diverged. Lower `{section}.learning_rate` "
            f"({args.learning_rate:g}), or raise `{section}.warmup_steps`, and start again with `--force`."
        )


def _ends_epoch(state: TrainerState) -> bool:
    epoch = state.epoch or 0.0
    return state.global_step >= state.max_steps or abs(epoch - round(epoch)) < 1e-6


def build_sampler(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    prompt_format: PromptFormat,
) -> Sampler:
    """Return a function that answers the prompts of a few examples with the current model."""
    prompts = prompt_format.encode_prompts(tokenizer, examples)

    def sample() -> list[dict[str, str]]:
        end_id = prompt_format.end_token_id(tokenizer)
        # The original model object: LoRA layers are inserted into it, so it always has the current weights.
        with matching_precision(model):
            completions = generate_completions(model, tokenizer, prompts, end_id=end_id, max_new_tokens=_SAMPLE_TOKENS)
        rows = [
            {"id": e.id, "instruction": e.instruction, "input": e.input, "output": e.output, "response": c.text}
            for e, c in zip(examples, completions, strict=True)
        ]
        logger.info("%s", _format_samples(rows))
        return rows

    return sample


def _format_samples(samples: Sequence[dict[str, str]]) -> str:
    """Return samples as indented text, each with its instruction and response."""
    lines = []
    for sample in samples:
        question, response = (
            " ".join(text.split()) for text in (f"{sample['instruction']} {sample['input']}", sample["response"])
        )
        lines += [f"  {question}", f"    -> {response or '(nothing)'}"]
    return "\n".join(lines)
