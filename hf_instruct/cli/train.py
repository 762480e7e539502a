"""`hf-instruct train`: the data and training stages of an experiment, also under `accelerate launch`."""

import argparse

from hf_instruct.cli.run import SECTIONS, add_run_options, run_experiment
from hf_instruct.processes import is_main_process

DESCRIPTION = (
    "Prepare the data of an experiment and fine-tune its model. Set fields with --SECTION.FIELD VALUE, as in `run`."
)
EPILOG = """\
examples:
  hf-instruct train gpt2-medium/lora
  accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sft.py recipes/gpt2-large/lora.yaml
"""


def add_arguments(parser: argparse.ArgumentParser, *, verb: str = "train") -> None:
    """Add the arguments of `train`, or of `dpo` or `grpo` for experiments with that section only."""
    add_run_options(parser, takes_reward=verb != "dpo")
    # The judge may give rewards.
    sections = tuple(name for name in SECTIONS if name != "generate" and (name != "judge" or verb == "grpo"))
    parser.set_defaults(handler=_train, verb=verb, sections=sections)


def _train(options: argparse.Namespace) -> None:
    run = run_experiment(options, ("data", "train"))
    if is_main_process():
        print(run.model)
