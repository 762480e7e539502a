"""The ways to train that are compared. One process runs one of them for a few steps and reports what it took.

All see the same batches in the same order, the same weights, no dropout, AdamW at the same learning rate and decay,
and a loss on the completion only, so their losses have to agree.

    python -m benchmarks.contestants '{"contestant": "ours", "model": "FOLDER", "data": "FILE", "batch_size": 8}'
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.inputs import choose_training_examples
from benchmarks.processes import answer_job, read_clock
from hf_instruct.memory import peak_memory_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_instruct.records import Example

LEARNING_RATE = 5e-5
WEIGHT_DECAY = 0.1
# The course's scale, on every linear layer of GPT-2, which keeps its weights transposed.
LORA = {"r": 16, "lora_alpha": 256, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
LORA_LAYERS = {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}
_NEVER = 10**6
_IGNORED = -100


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """What one process does.

    Attributes:
        contestant: A key of `CONTESTANTS`.
        model: Folder of the model.
        data: The course's data file.
        batch_size: Examples in a step.
        warm_up: Steps before the measured ones.
        steps: Measured steps.
        long_answers: Whether answers are joined to 150 tokens on average.
        lora: Whether an adapter is trained instead of all weights.
        precision: Of the matrix products of `trl-tuned`: `bfloat16` or `float32`; the others choose their own.
    """

    contestant: str
    model: str
    data: str
    batch_size: int
    warm_up: int = 2
    steps: int = 5
    long_answers: bool = False
    lora: bool = False
    precision: str = "bfloat16"


@dataclasses.dataclass
class Measured:
    """What a contestant found, one entry a step, the warm-up included.

    Attributes:
        ends: Clock readings: where the first step began (or a step that is left out), then each step's end.
        losses: In nats per label token.
        computed_tokens: Tokens that went through the blocks, padding included.
        precision: `bfloat16` or `float32`, of the matrix products.
    """

    ends: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    computed_tokens: list[int] = dataclasses.field(default_factory=list)
    precision: str = "float32"


def run_training(**values: Any) -> dict[str, Any]:
    """Do a `TrainingJob`, given by its fields, and report it.

    Returns:
        `seconds`, `losses`, `example_tokens` (prompts and completions, each token of each example once),
        `label_tokens` and `computed_tokens` of each measured step; `precision`; `peak_memory_bytes`.
    """
    from hf_instruct.models import load_tokenizer
    from hf_instruct.prompts import PromptFormat

    job = TrainingJob(**values)
    tokenizer = load_tokenizer(job.model)
    # One batch more than is measured: at their last step trainers evaluate, sample and save.
    count = (job.warm_up + job.steps + 1) * job.batch_size
    examples = choose_training_examples(job.data, tokenizer, count=count, long_answers=job.long_answers)
    measured = CONTESTANTS[job.contestant](job, examples, tokenizer)
    encode = PromptFormat.from_name("alpaca").encode_example
    lengths = [tuple(map(len, encode(tokenizer, example))) for example in examples]
    batches = [lengths[start : start + job.batch_size] for start in range(0, count, job.batch_size)]
    chosen = slice(job.warm_up, job.warm_up + job.steps)
    steps = [end - start for start, end in zip(measured.ends, measured.ends[1:], strict=False)]
    return {
        # The ends are one more than the steps where the loop says when it began, else the first step is left out.
        "seconds": steps[-job.steps :],
        "losses": measured.losses[chosen],
        "example_tokens": [sum(map(sum, batch)) for batch in batches[chosen]],
        "label_tokens": [sum(completion for _, completion in batch) for batch in batches[chosen]],
        "computed_tokens": measured.computed_tokens[chosen],
        "precision": measured.precision,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def train_ours(job: TrainingJob, examples: "list[Example]", tokenizer: "PreTrainedTokenizerBase") -> Measured:
    """Train as every user of this package does: `hf_instruct.train` at its defaults."""
    from hf_instruct import load_model, train

    model, tokenizer = load_model(job.model, dropout=0.0)
    settings = {
        "per_device_train_batch_size": job.batch_size,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        # Evaluation and checkpoints are not steps.
        "eval_steps": _NEVER,
        "save_steps": _NEVER,
    }
    splits = {"train": examples, "validation": examples[-1:]}
    with tempfile.TemporaryDirectory() as folder, steps_timed(job) as measured:
        train(model, tokenizer, splits, output_dir=folder, args=settings, peft_config=LORA if job.lora else None)
    return measured


def train_trl_default(job: TrainingJob, examples: "list[Example]", _: "PreTrainedTokenizerBase") -> Measured:
    """Train as TRL's documentation does for a prompt and completion data set, at TRL's defaults.

    Source: https://huggingface.co/docs/trl/sft_trainer and `trl/scripts/sft.py` of TRL 1.16.
    """
    return _train_trl(job, examples)


def train_trl_tuned(job: TrainingJob, examples: "list[Example]", _: "PreTrainedTokenizerBase") -> Measured:
    """Train with TRL as somebody does who has read all of its settings.

    - The precision that is faster on this machine, as the case has tried before.
    - No padding: `padding_free` lays a batch in one row, whose positions tell SDPA which tokens may see
      each other; TRL asks for `max_length=None` with it. Losses are compared with ours, step by step.
    - Gradient checkpointing off: it saves memory and costs a second forward pass.
    - No gradient clipping, as in the course and by our own default: the norm costs a pass over all gradients.
    - No pinned memory and no loader processes on a CPU: there is nowhere to copy to, and the cores are busy.

    Not packing: a step would no longer be the same batch.
    """
    import torch

    return _train_trl(
        job,
        examples,
        bf16=job.precision == "bfloat16",
        padding_free=True,
        max_length=None,
        gradient_checkpointing=False,
        max_grad_norm=0.0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _train_trl(job: TrainingJob, examples: "list[Example]", **tuning: Any) -> Measured:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from hf_instruct.models import best_device
    from hf_instruct.prompts import PromptFormat

    prompt_format = PromptFormat.from_name("alpaca")
    rows = [
        # TRL adds the end-of-text token to the completion itself.
        {"prompt": prompt_format.format_prompt(example.instruction, example.input), "completion": example.output}
        for example in examples
    ]
    with tempfile.TemporaryDirectory() as folder, steps_timed(job) as measured:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=job.batch_size,
            num_train_epochs=1,
            # Without it TRL refuses its own default, bf16, on a CPU.
            use_cpu=best_device() == "cpu",
            # The common terms of all contestants.
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            **tuning,
        )
        adapter = LoraConfig(**LORA, **LORA_LAYERS) if job.lora else None
        trainer = SFTTrainer(
            model=job.model, args=arguments, train_dataset=Dataset.from_list(rows), peft_config=adapter
        )
        trainer.train()
    return measured


def train_course(job: TrainingJob, examples: "list[Example]", tokenizer: "PreTrainedTokenizerBase") -> Measured:
    """Train with the few lines that the course teaches: pad to the longest, all logits, float32, plain AdamW.

    The course's own model computes attention step by step; this loop has PyTorch's fused attention, in its favour.
    Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/ch07.ipynb
    """
    import torch
    from transformers import AutoModelForCausalLM

    from hf_instruct.models import best_device
    from hf_instruct.prompts import PromptFormat

    encode = PromptFormat.from_name("alpaca").encode_example
    device = best_device()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    measured = Measured(ends=[read_clock()])
    for step in range(job.warm_up + job.steps):
        batch = examples[step * job.batch_size : (step + 1) * job.batch_size]
        inputs, targets = _pad([encode(tokenizer, example) for example in batch], tokenizer.eos_token_id)
        optimizer.zero_grad()
        logits = model(inputs.to(device)).logits  # [batch, seq, vocabulary]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
        loss.backward()
        optimizer.step()
        measured.losses.append(loss.item())
        measured.ends.append(read_clock())
        measured.computed_tokens.append(inputs.numel())
    return measured


def _pad(rows: list[tuple[list[int], list[int]]], end_id: int) -> tuple[Any, Any]:
    """Return the inputs and the targets one place on, each [batch, longest row]; padding is end-of-text."""
    import torch

    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    inputs, targets = [], []
    for prompt, completion in rows:
        padding = width - len(prompt) - len(completion)
        inputs.append(prompt + completion + [end_id] * padding)
        # The completion ends with the one end-of-text token that is learned.
        targets.append([_IGNORED] * (len(prompt) - 1) + completion + [_IGNORED] * (padding + 1))
    return torch.tensor(inputs), torch.tensor(targets)


class _MeasuredEnoughError(Exception):
    """Leaves a trainer that would continue to its last step, evaluate and save."""


@contextmanager
def steps_timed(job: TrainingJob) -> Iterator[Measured]:
    """Time the steps of whatever `Trainer` runs within, and leave it after the last measured one.

    The clock is a callback that every `Trainer` takes up, since `hf_instruct.train` has no argument for one, and
    stands first among them, so that no other callback's work counts but that of the step before.
    """
    from transformers import TrainerCallback, trainer

    measured = Measured()

    class StepClock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            measured.ends.append(read_clock())

        def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
            if "loss" not in event["logs"]:
                return
            measured.losses.append(event["logs"]["loss"])
            if state.global_step == job.warm_up + job.steps:
                measured.precision = "bfloat16" if args.bf16 else "float32"
                measured.computed_tokens = _count_tokens(event["train_dataloader"], state.global_step)
                raise _MeasuredEnoughError

    trainer.DEFAULT_CALLBACKS.insert(0, StepClock)
    try:
        yield measured
    except _MeasuredEnoughError:
        pass
    finally:
        trainer.DEFAULT_CALLBACKS.remove(StepClock)


def _count_tokens(batches: Iterable[dict[str, Any]], steps: int) -> list[int]:
    """Return the tokens that each batch puts through the model, padding included, shared prefixes once."""
    return [batch["input_ids"].numel() for batch, _ in zip(batches, range(steps), strict=False)]


CONTESTANTS: "dict[str, Callable[[TrainingJob, list[Example], PreTrainedTokenizerBase], Measured]]" = {
    "ours": train_ours,
    "trl-tuned": train_trl_tuned,
    "trl-default": train_trl_default,
    "course": train_course,
}

if __name__ == "__main__":
    answer_job(run_training)
