"""`hf-instruct grpo`: `train` for experiments with a `grpo` section."""

import functools

from hf_instruct.cli import train

DESCRIPTION = "Prepare the data of an experiment and train its model on rewards for its own answers (GRPO)."
EPILOG = """\
examples:
  hf-instruct grpo smollm2-135m/grpo
  accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/grpo.py recipes/smollm2-135m/grpo.yaml
"""
add_arguments = functools.partial(train.add_arguments, verb="grpo")
