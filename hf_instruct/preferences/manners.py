"""The course's pairs: a model rewrites a reference politely or impolitely, and the more polite answer is preferred."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError
from hf_instruct.evaluation.judges import Reply, choose_judge
from hf_instruct.evaluation.loop import Answer, JudgeOptions, JudgingPass, Task
from hf_instruct.evaluation.rubrics import Question, build_schema
from hf_instruct.evaluation.verdicts import Verdict, parse_text
from hf_instruct.generation.answers import build_seed
from hf_instruct.records import Example
from hf_instruct.schema import Rewrite
from hf_instruct.servers import run_sync

POLITE, IMPOLITE = "polite", "impolite"
_KEY = "answer"
# The course's request in our own words. The reply is an object, because models tend to announce what they write.
# Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/04_preference-tuning-with-dpo/create-preference-data-ollama.ipynb
_PROMPT = """\
Rewrite the answer to the task below so that it becomes more {manner}. Keep what it says, and change as little as \
possible.

### Task
{task}

### Answer
{answer}

Reply with nothing but a JSON object that has the rewritten answer under the key "answer"."""
_SCHEMA = build_schema(**{_KEY: {"type": "string"}})


def rewrite(examples: Sequence[Example], settings: JudgeSection, *, path: Path, options: JudgeOptions) -> list[Rewrite]:
    """Return each example's output rewritten by a model, in the order of the examples.

    Args:
        examples: The examples; about half of them, chosen by seed and id, are made polite, the others impolite.
        settings: The model, and how to call it.
        path: File of the rows; rows that it already contains are reused.
        options: Options, as for judging.

    Raises:
        JudgeError: The model is the local judge, which cannot write text; or asking cannot continue.
    """

    async def work() -> list[Rewrite]:
        judge = await choose_judge(settings)
        try:
            if judge.identity()["backend"] == "local":
                raise JudgeError(
                    "The local judge only chooses between levels and cannot rewrite text. Use a model on a server: "
                    "`--judge ollama`, or `--judge openai --base-url URL`."
                )
            await judge.prepare()
            tasks = (_build_task(example, settings.seed or 0) for example in examples)
            titled = dataclasses.replace(options, title="Rewriting references")
            return await _Rewriting(judge, titled, path, tasks).run(concurrency=settings.concurrency)
        finally:
            await judge.close()

    return run_sync(work())


def _build_task(example: Example, seed: int) -> Task:
    manner = IMPOLITE if build_seed(seed, example) % 2 else POLITE
    task = f"{example.format_task()}\n{example.input}".strip()
    prompt = _PROMPT.format(manner=manner, task=task, answer=example.output)
    question = Question([{"role": "user", "content": prompt}], _SCHEMA, state="", question="", levels=[])
    return Task(example.id, [question], manner, question.sha256)


class _Rewriting(JudgingPass[Rewrite]):
    """A pass over references, each rewritten once."""

    row_type = Rewrite

    def read(self, reply: Reply, judged: str) -> Verdict:
        """Return the rewritten answer in a reply."""
        return Verdict(1, parse_text(reply.text, _KEY))

    def build(self, task: Task, answers: list[Answer]) -> Rewrite:
        """Return the row of an example, given the answer to its question."""
        answer = answers[0]
        return Rewrite(
            id=task.id,
            manner=task.judged,
            text=answer.verdict.reasons if answer.verdict else None,
            replies=answer.replies,
            judge=self.identity,
            prompt_sha256=task.sha256,
            seconds=round(answer.seconds, 4),
            failure=answer.failure,
            cached=answer.cached,
        )
