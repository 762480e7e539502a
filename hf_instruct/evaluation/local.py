"""A judge without a server, which uses a chat model's probabilities of the rubric's levels."""

import asyncio
import dataclasses
import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.rubrics import PairQuestion, Question
from hf_instruct.models import find_model, load_model, load_tokenizer
from hf_instruct.wheel_model import ON_HUB

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m"


def expected_score(probabilities: dict[int, float]) -> int:
    """Return the mean of scores weighted by their probabilities, rounded half up.

    The mean distinguishes answers with the same most likely level, and is deterministic.

    >>> expected_score({0: 0.1, 50: 0.2, 100: 0.7}), expected_score({0: 0.5, 25: 0.5})
    (80, 13)
    """
    mean = sum(score * probability for score, probability in probabilities.items())
    # Rounded to 12 digits first, so that floating-point errors in the probabilities do not decide between 12 and 13.
    return int(round(mean / sum(probabilities.values()), 12) + 0.5)


def choose_better(probabilities: dict[str, float], choices: dict[str, str]) -> str:
    """Return the reply of a judge that gives these probabilities to the options; equal ones are a tie.

    >>> choose_better({"Answer A": 0.75, "Answer B": 0.25}, {"Answer A": "A", "Answer B": "B"})
    '{"better": "A", "probabilities": {"A": 0.75, "B": 0.25}}'
    """
    by_choice = {choices[option]: probability for option, probability in probabilities.items()}
    likeliest = [name for name, probability in by_choice.items() if probability == max(by_choice.values())]
    rounded = {name: round(probability, 4) for name, probability in by_choice.items()}
    return json.dumps({"better": likeliest[0] if len(likeliest) == 1 else "tie", "probabilities": rounded})


class LocalJudge(Judge):
    """Any chat model of Transformers, run in this process with `DecisionPipeline`.

    The model sees the example, the response, the rubric's question and its levels with a letter each; the score is the
    mean of the levels' scores weighted by the probabilities of the letters. Between two responses it chooses the more
    likely letter. Each question takes one forward pass, one question at a time.

    Args:
        settings: Model: an alias, Hub id or folder.
    """

    def __init__(self, settings: JudgeSection) -> None:
        self._model_name = settings.model or find_model(DEFAULT_MODEL)
        # The methods of `DecisionPipeline` have no type annotations.
        self._pipeline: Any = None
        self._lock = asyncio.Lock()
        self._digest: str | None = None
        self._longest = 0
        self._said_no_reasons = False

    def identity(self) -> dict[str, Any]:
        """Return the model's name, the hash of its weights, the library's version and the precision."""
        from transformers import __version__

        return {
            "backend": "local",
            "model": self._model_name,
            "digest": self._digest,
            "server_version": f"transformers {__version__}",
            "options": {"dtype": "float32"},
        }

    async def check(self) -> None:
        """Check that the model's tokenizer exists and has a chat template; raises the same errors as `prepare`."""
        self._check_chat(await asyncio.to_thread(load_tokenizer, self._model_name))

    async def prepare(self) -> None:
        """Load the model.

        Raises:
            ModelLoadError: There is no such model.
            JudgeUnavailable: It is not a chat model.
        """
        # In a thread, so that the event loop still handles Ctrl-C.
        await asyncio.to_thread(self._load)

    def _load(self) -> None:
        from transformers import DecisionPipeline

        if self._model_name in (DEFAULT_MODEL, ON_HUB):
            logger.warning(
                "The local judge %s runs on any machine but is too small to judge well: its scores show that "
                "everything works, not how good the answers are.",
                DEFAULT_MODEL,
            )
        model, tokenizer = load_model(self._model_name)
        self._check_chat(tokenizer)
        self._digest = _hash_weights(model)
        self._longest = int(getattr(model.config, "max_position_embeddings", 0) or 0)
        self._pipeline = DecisionPipeline(model=model, tokenizer=tokenizer)

    def _check_chat(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise JudgeUnavailable(
                f"The model `{self._model_name}` has no chat template, so it cannot judge. Choose an instruction-tuned "
                f"model with `--judge.model` (default: `{DEFAULT_MODEL}`)."
            )

    async def ask(self, question: Question) -> Reply:
        """Return the score of one response, or the better of two, with the probabilities in the raw reply.

        Raises:
            JudgeUnavailable: The rubric has no question or no levels for this judge.
        """
        if not isinstance(question, PairQuestion) and not (question.question and question.levels):
            raise JudgeUnavailable(
                "The local judge chooses between levels, but this rubric has no `question` or no `levels`. Add both "
                "to its file, or judge with `--judge.backend ollama` or `openai`."
            )
        if "reasons" in question.schema["required"] and not self._said_no_reasons:
            self._said_no_reasons = True
            logger.warning("The rubric asks for reasons, but the local judge only gives scores.")
        async with self._lock:
            start = time.monotonic()
            reply = await asyncio.to_thread(self._decide, question)
            return dataclasses.replace(reply, seconds=time.monotonic() - start)

    def _decide(self, question: Question) -> Reply:
        decision: dict[str, Any] = {"type": "score", "criteria": [text for _, text in question.levels]}
        if isinstance(question, PairQuestion):
            decision = {"type": "choice", "criteria": dict.fromkeys(question.choices)}
        decision["instructions"] = question.question
        inputs = self._pipeline.preprocess({"state": question.state, "questions": {"verdict": decision}})
        num_tokens = inputs["prompts"][0][0]["input_ids"].shape[-1]
        if self._longest and num_tokens > self._longest:
            failure = f"the question has {num_tokens} tokens; the judge's limit is {self._longest}"
            return Reply("", failure=failure, final=True)
        by_option = self._pipeline.postprocess(self._pipeline.forward(inputs))["verdict"]["probabilities"]
        if isinstance(question, PairQuestion):
            return Reply(choose_better(by_option, question.choices), final=True)
        probabilities = {score: by_option[str(level)] for level, (score, _) in enumerate(question.levels)}
        score = expected_score(probabilities)
        rounded = {str(score): round(probability, 4) for score, probability in probabilities.items()}
        text = json.dumps({"score": score, "probabilities": rounded})
        return Reply(text, final=True, score=score)

    async def close(self) -> None:
        """Release the model."""
        self._pipeline = None


def _hash_weights(model: "PreTrainedModel") -> str:
    """Return the hash of all parameters, because neither a folder's name nor a Hub branch identifies the weights."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
