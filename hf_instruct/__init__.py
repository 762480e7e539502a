"""Teach a language model to follow instructions: prompts, exact fine-tuning, answers, and scores with error bars."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_instruct.data.sources import load_examples
    from hf_instruct.data.splits import split_examples
    from hf_instruct.errors import InstructError
    from hf_instruct.evaluation.agreement import measure_agreement
    from hf_instruct.evaluation.comparison import compare_runs
    from hf_instruct.evaluation.metrics import measure_responses
    from hf_instruct.evaluation.pairwise import judge_pairs
    from hf_instruct.evaluation.ratings import rate_preferences
    from hf_instruct.evaluation.scoring import judge_responses
    from hf_instruct.generation.answers import generate_responses
    from hf_instruct.models import load_model
    from hf_instruct.pipeline import run
    from hf_instruct.prompts import PromptFormat
    from hf_instruct.run_folder import RunFolder
    from hf_instruct.training.fast.collators import PrefixSharingCollator
    from hf_instruct.training.finetune import train

__version__ = "0.1.0"

__all__ = [
    "InstructError",
    "PrefixSharingCollator",
    "PromptFormat",
    "RunFolder",
    "compare_runs",
    "generate_responses",
    "judge_pairs",
    "judge_responses",
    "load_examples",
    "load_model",
    "measure_agreement",
    "measure_responses",
    "rate_preferences",
    "run",
    "split_examples",
    "train",
]

# Where each public name lives. Looked up on first use, so that `import hf_instruct` loads neither torch nor TRL.
_HOMES = {
    "InstructError": "errors",
    "PrefixSharingCollator": "training.fast.collators",
    "PromptFormat": "prompts",
    "Response": "schema",
    "RunFolder": "run_folder",
    "compare_runs": "evaluation.comparison",
    "generate_responses": "generation.answers",
    "judge_pairs": "evaluation.pairwise",
    "judge_responses": "evaluation.scoring",
    "load_examples": "data.sources",
    "load_model": "models",
    "measure_agreement": "evaluation.agreement",
    "measure_responses": "evaluation.metrics",
    "rate_preferences": "evaluation.ratings",
    "run": "pipeline",
    "split_examples": "data.splits",
    "train": "training.finetune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # From now on found at once.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
