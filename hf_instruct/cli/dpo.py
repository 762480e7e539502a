"""`hf-instruct dpo`: `train` for experiments with a `dpo` section."""

import functools

from hf_instruct.cli import train

DESCRIPTION = "Prepare the data of an experiment and train its model on pairs of answers, one preferred (DPO)."
EPILOG = """\
examples:
  hf-instruct dpo smollm2-135m/dpo
  accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/dpo.py recipes/smollm2-135m/dpo.yaml
"""
add_arguments = functools.partial(train.add_arguments, verb="dpo")
