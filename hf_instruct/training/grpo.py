"""GRPO: train a model on rewards with TRL's `GRPOTrainer` and our prompts, sampling and log-probabilities."""

import asyncio
import contextlib
import copy
import functools
import inspect
import logging
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import get_callable_name, is_async_callable

from hf_instruct.data.sources import iterate_examples
from hf_instruct.errors import ConfigError, InstructError, TrainingError, quote_names
from hf_instruct.generation.answers import check_lengths
from hf_instruct.generation.decoding import generate_completions, generating, without_adapter
from hf_instruct.generation.decoding_loop import can_decode, decode
from hf_instruct.models import context_length
from hf_instruct.prompt_tokens import build_row
from hf_instruct.prompts import PromptFormat
from hf_instruct.schema import TrainingSummary
from hf_instruct.training.fast.attention import segment_attention
from hf_instruct.training.fast.collators import SegmentCollator
from hf_instruct.training.fast.loss import add_label_losses, find_labels, has_plain_head
from hf_instruct.training.fast.sharing import build_segments
from hf_instruct.training.running import load_training_splits, run_training
from hf_instruct.training.trainer import RunTrainer

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig

logger = logging.getLogger(__name__)

RewardFunction = Callable[..., Sequence[float | None]]
"""Called by TRL with lists as keywords: `prompts`, `completions`, `completion_ids` and the columns of the rows."""

# Batch size for answering held-out prompts.
_ANSWERED = 32


def train_grpo(  # noqa: PLR0913 - as `train`
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: "DatasetDict | Mapping[str, Any] | Dataset | str | Path",
    *,
    reward_funcs: "Sequence[RewardFunction]",
    output_dir: str | Path,
    prompt_format: PromptFormat | str | None = None,
    args: "GRPOConfig | Mapping[str, Any] | None" = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
    keep_checkpoints: bool = False,
) -> TrainingSummary:
    """Train a model with GRPO on rewards for its own answers, which are sampled and compared in groups.

    Prompts are tokenized with `prompt_format`, as when the model was fine-tuned. The model is trained in place.

    Args:
        model: A full fine-tuned model, or a quantized one with a new adapter.
        tokenizer: Its tokenizer.
        data: As for `train`. The prompts of `train` are used for training, those of `validation` are answered greedily
            for evaluation.
        reward_funcs: Each takes the keywords `prompts`, `completions`, `completion_ids` and the columns of the examples
            (`id`, `instruction`, `input`, `output`, `category`), lists of the same length, and returns a number for
            each completion, or None if it does not apply. `build_rewards` builds them from reference metrics. Their
            weights are `args.reward_weights`.
        output_dir: Folder for `model/`, `training.jsonl` and the other files that `train` writes.
        prompt_format: Format of the fine-tuned model; by default `chat` for conversations, otherwise `alpaca`.
        args: A `GRPOConfig`, or a mapping of its fields that override our settings (8 prompts per step, 8 answers to
            each).
        peft_config: A `LoraConfig` or its fields, for a new adapter; None trains all weights.
        callbacks: Callbacks for the trainer.
        resume: Whether to continue from the last complete checkpoint.
        keep_checkpoints: Keep the checkpoints when training has finished.

    Returns:
        A summary. `training.jsonl` has the mean rewards, of the sampled answers and of the held-out prompts.

    Raises:
        ConfigError: The settings are refused, or the model is an adapter.
        DataError: A split is empty, or a prompt leaves no space for an answer.
        RunError: `output_dir` already contains a model, or the checkpoint has a different origin.
        TrainingError: A reward function fails or returns no number, the disk is too small or full, memory runs out, or
            the loss is no longer a number.
    """
    splits = load_training_splits(data)
    if not reward_funcs:
        raise ConfigError("`reward_funcs` is empty; pass a function, or `build_rewards(...)`.")

    def prepare(prompt_format: PromptFormat, arguments: "GRPOConfig") -> tuple[dict[str, Any], Iterator[str]]:
        rows = {name: build_prompts(splits[name], tokenizer, prompt_format) for name in ("train", "validation")}
        if arguments.max_completion_length is None:
            raise ConfigError("`grpo.max_completion_length` is null; set the maximum number of tokens in an answer.")
        check_lengths(
            [id for split in rows.values() for id in split["id"]],
            [ids for split in rows.values() for ids in split["prompt_ids"]],
            arguments.max_completion_length,
            context_length(model),
            setting="grpo.max_completion_length",
        )
        keywords = {
            "reward_funcs": reward_funcs,
            "train_dataset": rows["train"],
            "eval_dataset": rows["validation"],
            "end_id": prompt_format.end_token_id(tokenizer),
        }
        columns = ("id", "prompt_ids", "output")
        return keywords, (repr([row[column] for column in columns]) for split in rows.values() for row in split)

    return run_training(
        InstructGRPOTrainer,
        prepare,
        model,
        tokenizer,
        splits,
        kind="GRPOConfig",
        output_dir=output_dir,
        prompt_format=prompt_format,
        args=args,
        peft_config=peft_config,
        callbacks=callbacks,
        samples=splits["validation"],
        resume=resume,
        keep_checkpoints=keep_checkpoints,
    )


def build_prompts(examples: "Dataset", tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat) -> "Dataset":
    """Return rows to answer, with `prompt` (its text), `prompt_ids`, and the columns for reward functions."""
    from datasets import Dataset

    rows = list(iterate_examples(examples))
    ids = prompt_format.encode_prompts(tokenizer, rows)
    columns = ("id", "instruction", "input", "output", "category")
    values: dict[str, list[Any]] = {name: [getattr(example, name) for example in rows] for name in columns}
    return Dataset.from_dict({"prompt": tokenizer.batch_decode(ids), "prompt_ids": ids, **values})


def _checked(function: Any) -> Any:
    """Wrap a reward function so that errors name the function and the row."""
    if not callable(function) or isinstance(function, torch.nn.Module):
        return function
    name = get_callable_name(function)

    def check(rewards: Any, columns: Mapping[str, Any]) -> list[float | None]:
        ids, values = columns["id"], list(rewards)
        if len(values) != len(ids):
            raise TrainingError(f"The reward `{name}` returned {len(values)} values for {len(ids)} answers.")
        for id, text, value in zip(ids, columns["completions"], values, strict=True):
            if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
                raise TrainingError(
                    f"The reward `{name}` of an answer to `{id}` is {value!r}; it must be a number, or None if it does "
                    f"not apply. The answer is {text[:200]!r}."
                )
        return values

    @contextlib.contextmanager
    def named(columns: Mapping[str, Any]) -> Iterator[None]:
        try:
            yield
        except InstructError:
            raise
        except Exception as error:
            raise TrainingError(
                f"The reward `{name}` failed on the answers to {quote_names(dict.fromkeys(columns['id']))}: "
                f"{type(error).__name__}: {error}"
            ) from error

    @functools.wraps(function)
    def call(**columns: Any) -> list[float | None]:
        with named(columns):
            return check(function(**columns), columns)

    @functools.wraps(function)
    async def call_async(**columns: Any) -> list[float | None]:
        with named(columns):
            return check(await function(**columns), columns)

    # TRL logs the mean under this name; callable objects and partial functions have none.
    chosen: Any = call_async if is_async_callable(function) else call
    chosen.__name__ = name
    return chosen


class InstructGRPOTrainer(RunTrainer, GRPOTrainer):  # type: ignore[misc]  # its imports are optional
    """`GRPOTrainer` for tokenized prompts; on a CPU faster, with the same answers and the same loss.

    Answers are sampled by our decoding loop, which draws the same tokens as `generate()`, and the prompt is computed
    only once for the log-probabilities of all answers to it. `generate()` and TRL's computation are used for models and
    settings for which this is not exact. Positions are always counted from each prompt's first token; TRL leaves them
    to the model, and GPT-2 would count the padding.
    """

    def __init__(
        self, model: Any, args: "GRPOConfig", *, reward_funcs: Sequence[Any], end_id: int, **keywords: Any
    ) -> None:
        load = grpo_trainer.create_model_from_path

        def build_reference(*path: Any, **settings: Any) -> Any:
            is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            return load(*path, **settings) if is_sharded else copy.deepcopy(model).eval()

        # The reference for `beta` is the model before training. TRL would load it by its path, without its revision.
        grpo_trainer.create_model_from_path = build_reference
        try:
            super().__init__(
                model=model, args=args, reward_funcs=[_checked(function) for function in reward_funcs], **keywords
            )
        finally:
            grpo_trainer.create_model_from_path = load
        self._given_rewards = reward_funcs
        self._end_id = end_id
        base = without_adapter(self.model)
        self._takes_positions = "position_ids" in inspect.signature(type(base).forward).parameters
        self._is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self._segments = self._find_segments(base) if args.world_size == 1 else None
        if self._segments is not None:
            add_label_losses(base)
            if self.ref_model is not None:
                add_label_losses(self.ref_model)

    def _find_segments(self, base: "PreTrainedModel") -> SegmentCollator | None:
        args = self.args
        needs_more = self._entropy_bonus_enabled or args.top_entropy_quantile < 1.0 or self.aux_loss_enabled
        # Recomputed activations would not use the attention of segments.
        recomputes = args.gradient_checkpointing or args.activation_checkpointing
        window = getattr(base.config.get_text_config(), "sliding_window", None)
        changes_head = args.temperature != 1.0 or args.cast_lm_head_to_fp32
        if needs_more or recomputes or window or changes_head or not has_plain_head(base):
            return None
        pad_id = int(self._tokenizer.pad_token_id)
        return SegmentCollator(pad_id, weighted=False) if build_segments(base, args, pad_id=pad_id) else None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Return TRL's sampler, seeded by the epoch so that a resumed run goes through the same prompts."""
        sampler: Any = super()._get_train_sampler(dataset)
        if self.shuffle_dataset:
            sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed + epoch)
        return sampler

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train, then close the reward functions that can be closed; see `Trainer`."""
        try:
            return super().train(*arguments, **keywords)
        finally:
            for function in self._given_rewards:
                # A judge's connections belong to the event loop in which TRL runs asynchronous functions.
                if close := getattr(function, "close", None):
                    asyncio.run_coroutine_threadsafe(close(), self.async_loop).result()

    def can_save(self) -> bool:
        """Return whether the next step begins with new answers, because a checkpoint does not contain buffered ones."""
        return bool(self._step % (self.args.steps_per_generation * self.num_iterations) == 0)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of sampled answers and their advantages; see `GRPOTrainer`."""
        self._prompt_ids = [row["prompt_ids"] for row in inputs]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return batch

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the token ids of each prompt from `build_prompts`."""
        return self._prompt_ids, None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any, **keywords: Any) -> Any:
        """Return the sampled ids of each prompt, up to and including the end token, and no log-probabilities."""
        args = self.args
        if args.use_vllm or args.use_transformers_continuous_batching or self._is_sharded:
            return super()._generate_single_turn(prompt_ids, *others, **keywords)
        length, pad_id = self.max_completion_length, int(self._tokenizer.pad_token_id)
        warpers = {"top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p}
        warpers |= {"repetition_penalty": args.repetition_penalty, **(args.generation_kwargs or {})}
        is_plain = {name: value for name, value in warpers.items() if value} == {
            "top_p": 1.0,
            "repetition_penalty": 1.0,
        }
        if is_plain and can_decode(self.model):
            ends = set(self.eos_token_ids)
            # Autocast is entered here so that weights are cast once and not for each token.
            with generating(self.model), self.accelerator.autocast():
                rows = decode(
                    self.model,
                    prompt_ids,
                    ends=ends,
                    max_new_tokens=length,
                    pad_id=pad_id,
                    temperature=self.temperature,
                )
            return rows, None
        settings = {"max_new_tokens": length, "do_sample": True, "temperature": self.temperature, **warpers}
        with self.accelerator.autocast():
            completions = generate_completions(self.model, self._tokenizer, prompt_ids, end_id=self._end_id, **settings)
        return [list(completion.token_ids) for completion in completions], None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """Return the log-probability of each answer's tokens, [answers, tokens], and their entropies, if computed."""
        if self._segments is None or not attention_mask[:, -logits_to_keep].all():
            return super()._get_per_token_logps_and_entropies(
                self._place(model), input_ids, attention_mask, logits_to_keep, batch_size, **options
            )
        size = batch_size or len(input_ids)
        batches = zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True)
        logps = torch.cat([self._compute_log_probs(self._segments, model, *batch, logits_to_keep) for batch in batches])
        return logps, torch.full_like(logps, math.nan), None

    def _compute_log_probs(
        self,
        collator: SegmentCollator,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
    ) -> torch.Tensor:
        """Return the log-probability of each answer's tokens, [answers, tokens], 0 after its end."""
        starts = attention_mask[:, :-logits_to_keep].sum(dim=1)  # tokens of each prompt
        rows = []
        for ids, seen, start in zip(input_ids, attention_mask.bool(), starts.tolist(), strict=True):
            tokens = ids[seen].tolist()
            rows.append(build_row(tokens[:start], tokens[start:], max_length=None))
        batch = collator(rows)
        labels, owners, positions = batch["labels"], batch["owners"], batch["position_ids"]
        where, columns = find_labels(labels)
        names = ("input_ids", "position_ids", "attention_mask", "segments")
        with segment_attention(without_adapter(model)), self.accelerator.autocast():
            losses: torch.Tensor = model(**{name: batch[name] for name in names}, use_cache=False, loss_labels=labels)
        answers = owners[where, columns + 1]
        logps = losses.new_zeros(len(rows), logits_to_keep)
        return logps.index_put((answers, positions[where, columns + 1] - starts[answers]), -losses)

    def _place(self, model: Any) -> Any:
        """Return the model as a function that also passes each token's position, if the model supports it."""
        if not self._takes_positions:
            return model

        def call(*, attention_mask: torch.Tensor, **keywords: Any) -> Any:
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            return model(attention_mask=attention_mask, position_ids=positions, **keywords)

        return call

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean rewards of greedy answers to the held-out prompts; with sharded weights TRL samples them."""
        if self._is_sharded:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return metrics
        rows: list[dict[str, Any]] = list(self.eval_dataset if eval_dataset is None else eval_dataset)  # type: ignore[arg-type]
        self.model.eval()
        # Each process answers its share. TRL gathers equally many rewards from each, so the last share repeats rows.
        total, rank = len(rows), self.accelerator.process_index
        share = math.ceil(total / self.accelerator.num_processes)
        rows = [rows[number % total] for number in range(rank * share, (rank + 1) * share)]
        answers = []
        # `generate()` bypasses the `forward` that Accelerate has wrapped in autocast.
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            for start in range(0, len(rows), _ANSWERED):
                answers += generate_completions(
                    self.model,
                    self._tokenizer,
                    [row["prompt_ids"] for row in rows[start : start + _ANSWERED]],
                    end_id=self._end_id,
                    max_new_tokens=self.max_completion_length,
                )
        ids = [list(answer.token_ids) for answer in answers]
        # Decoded in the same way as TRL decodes sampled answers, including white space, so that rewards are comparable.
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        rewards = self._calculate_rewards(rows, [row["prompt"] for row in rows], texts, ids)  # [answers, functions]
        rewards = rewards[:total]
        lengths = self.accelerator.gather(torch.tensor([len(answer) for answer in ids], device=rewards.device))[:total]
        totals = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        # As in training, an answer that no reward applies to does not count.
        totals[rewards.isnan().all(dim=1)] = math.nan
        metrics = {
            f"{metric_key_prefix}_reward": totals.nanmean().item(),
            f"{metric_key_prefix}_completions/mean_length": lengths.float().mean().item(),
        }
        for name, values in zip(self.reward_func_names, rewards.T, strict=True):
            metrics[f"{metric_key_prefix}_rewards/{name}/mean"] = values.nanmean().item()
        return self._report(metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without the entropy if the fast path is used, which does not compute it."""
        if self._segments is not None:
            self._metrics["train"].pop("entropy", None)
        super().log(logs, start_time)
