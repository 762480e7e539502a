"""Fine-tune language models to follow instructions: prompts, exact training, answers, and scores with error bars."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_instruct.config import Experiment as Experiment
    from hf_instruct.data.sources import load_examples as load_examples
    from hf_instruct.data.splits import split_examples as split_examples
    from hf_instruct.errors import InstructError as InstructError
    from hf_instruct.evaluation.comparison import compare_runs as compare_runs
    from hf_instruct.evaluation.judges import Judge as Judge
    from hf_instruct.evaluation.metrics import measure_responses as measure_responses
    from hf_instruct.evaluation.pairwise import judge_pairs as judge_pairs
    from hf_instruct.evaluation.rubrics import Rubric as Rubric
    from hf_instruct.evaluation.scoring import judge_responses as judge_responses
    from hf_instruct.generation.answers import generate_responses as generate_responses
    from hf_instruct.hub.export import export as export
    from hf_instruct.hub.push import push as push
    from hf_instruct.models import load_model as load_model
    from hf_instruct.pipeline import run as run
    from hf_instruct.preferences.pairs import load_pairs as load_pairs
    from hf_instruct.preferences.prefer import build_preferences as build_preferences
    from hf_instruct.preferences.rewards import build_rewards as build_rewards
    from hf_instruct.prompts import PromptFormat as PromptFormat
    from hf_instruct.reporting.page import report as report
    from hf_instruct.run_folder import RunFolder as RunFolder
    from hf_instruct.training.dpo import train_dpo as train_dpo
    from hf_instruct.training.fast.collators import PrefixSharingCollator as PrefixSharingCollator
    from hf_instruct.training.grpo import train_grpo as train_grpo
    from hf_instruct.training.sft import train as train
    from hf_instruct.training.trainer import InstructTrainer as InstructTrainer

__version__ = "0.1.0"

# The module of each public name, imported on first use, so that `import hf_instruct` loads neither torch nor TRL.
_HOMES = {
    "Experiment": "config",
    "InstructError": "errors",
    "InstructTrainer": "training.trainer",
    "Judge": "evaluation.judges",
    "PrefixSharingCollator": "training.fast.collators",
    "PromptFormat": "prompts",
    "Rubric": "evaluation.rubrics",
    "RunFolder": "run_folder",
    "build_preferences": "preferences.prefer",
    "build_rewards": "preferences.rewards",
    "compare_runs": "evaluation.comparison",
    "export": "hub.export",
    "generate_responses": "generation.answers",
    "judge_pairs": "evaluation.pairwise",
    "judge_responses": "evaluation.scoring",
    "load_examples": "data.sources",
    "load_model": "models",
    "load_pairs": "preferences.pairs",
    "measure_responses": "evaluation.metrics",
    "push": "hub.push",
    "report": "reporting.page",
    "run": "pipeline",
    "split_examples": "data.splits",
    "train": "training.sft",
    "train_dpo": "training.dpo",
    "train_grpo": "training.grpo",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # Cache the value, so that this function is not called for it again.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
