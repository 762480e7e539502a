"""The ways to answer prompts that are compared, greedily and with random weights, so that no answer ends early.

python -m benchmarks.generation '{"contestant": "ours", "model": "FOLDER", "data": "FILE"}'
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.inputs import load_splits
from benchmarks.processes import answer_job, read_clock
from hf_instruct.memory import peak_memory_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_instruct.records import Example


@dataclasses.dataclass(frozen=True)
class GenerationJob:
    """What one process does.

    Attributes:
        contestant: A key of `CONTESTANTS`.
        model: Folder of the model.
        data: The course's data file; its test examples are answered.
        prompts: How many of them, spread evenly; slow contestants answer few, and the time of one counts.
        new_tokens: Tokens of each answer.
        batch_size: Prompts in a batch, of the contestants that have batches of one size.
        warm_up: Prompts to answer before, with 2 tokens each.
    """

    contestant: str
    model: str
    data: str
    prompts: int = 110
    new_tokens: int = 64
    batch_size: int = 32
    warm_up: int = 1


Answerer = Callable[["PreTrainedModel", "PreTrainedTokenizerBase", "list[Example]", GenerationJob], list[str]]


def run_generation(**values: Any) -> dict[str, Any]:
    """Do a `GenerationJob`, given by its fields, and report it.

    Returns:
        `seconds` of an answer; `new_tokens` of one; `responses` by the example's id; `precision`; `peak_memory_bytes`.
    """
    from hf_instruct.models import best_device, load_model

    job = GenerationJob(**values)
    precision, answer = CONTESTANTS[job.contestant]
    model, tokenizer = load_model(job.model, dtype=precision)
    model.to(best_device())
    examples = load_splits(job.data)["test"]
    count = min(job.prompts, len(examples))
    chosen = [examples[index * len(examples) // count] for index in range(count)]
    # The first product of each shape costs extra; so does the first import of what generation needs.
    answer(model, tokenizer, chosen[: job.warm_up], dataclasses.replace(job, new_tokens=2))
    start = read_clock()
    texts = answer(model, tokenizer, chosen, job)
    seconds = read_clock() - start
    return {
        "seconds": seconds / count,
        "new_tokens": job.new_tokens,
        "responses": {example.id: text for example, text in zip(chosen, texts, strict=True)},
        "precision": precision,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def answer_ours(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", examples: "list[Example]", job: GenerationJob
) -> list[str]:
    """Answer as every user of this package does: `hf_instruct.generate_responses` at its defaults.

    Raises:
        BenchmarkError: An answer ended early, so that the contestants did not do the same work.
    """
    from benchmarks.processes import BenchmarkError
    from hf_instruct import generate_responses

    responses = generate_responses(model, tokenizer, examples, max_new_tokens=job.new_tokens)
    if short := [row["id"] for row in responses if row["num_tokens"] != job.new_tokens]:
        raise BenchmarkError(f"{len(short)} answers ended before {job.new_tokens} tokens; use other random weights.")
    return list(responses["response"])


def answer_batched(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", examples: "list[Example]", job: GenerationJob
) -> list[str]:
    """Answer with `generate()` in left-padded batches, as Transformers' documentation does.

    Source: https://huggingface.co/docs/transformers/llm_tutorial
    """
    texts: list[str] = []
    prompts = [_format(example) for example in examples]
    for start in range(0, len(prompts), job.batch_size):
        batch = tokenizer(
            prompts[start : start + job.batch_size], return_tensors="pt", padding=True, padding_side="left"
        ).to(model.device)
        ids = model.generate(
            **batch, max_new_tokens=job.new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )  # [batch, prompt + new]
        texts += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def answer_one_by_one(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", examples: "list[Example]", job: GenerationJob
) -> list[str]:
    """Answer with `generate()` one prompt after the other, with its cache."""
    return answer_batched(model, tokenizer, examples, dataclasses.replace(job, batch_size=1))


def answer_course(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", examples: "list[Example]", job: GenerationJob
) -> list[str]:
    """Answer with the loop that the course teaches: no cache, so each token computes the whole text again.

    Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch05/01_main-chapter-code/previous_chapters.py
    """
    import torch

    texts = []
    for example in examples:
        ids = torch.tensor([tokenizer(_format(example))["input_ids"]], device=model.device)  # [1, prompt]
        width = ids.shape[1]
        for _ in range(job.new_tokens):
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[:, -1]  # [1, vocabulary]
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        texts.append(str(tokenizer.decode(ids[0, width:], skip_special_tokens=True)).strip())
    return texts


def _format(example: "Example") -> str:
    from hf_instruct import PromptFormat

    return PromptFormat.from_name("alpaca").format_prompt(example.instruction, example.input)


CONTESTANTS: dict[str, tuple[str, Answerer]] = {
    "ours": ("float32", answer_ours),
    "ours-bf16": ("bfloat16", answer_ours),
    "batched": ("float32", answer_batched),
    "one-by-one": ("float32", answer_one_by_one),
    "course": ("float32", answer_course),
    "batched-bf16": ("bfloat16", answer_batched),
    "one-by-one-bf16": ("bfloat16", answer_one_by_one),
}
"""Each contestant's precision, and how it answers. In float32 the answers of all have to be the same."""

if __name__ == "__main__":
    answer_job(run_generation)
