"""`hf-instruct train`: the data and training stages of an experiment, also under `accelerate launch`."""

import argparse

from hf_instruct.cli.run import add_run_options, print_fields, run_stages
from hf_instruct.processes import is_main_process

_EPILOG = """\
examples:
  hf-instruct train recipes/gpt2-medium/lora.yaml
  accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sft.py recipes/gpt2-large/lora.yaml
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "train",
        help="prepare the data and fine-tune",
        description="Prepare the data of an experiment and fine-tune its model; --SECTION.FIELD VALUE as in `run`.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    add_run_options(parser)
    parser.set_defaults(handler=_train, verb="train", takes_overrides=True)


def _train(options: argparse.Namespace) -> None:
    if options.fields:
        print_fields()
        return
    run_stages(options, ("data", "train"))
    if is_main_process():
        print(options.run_dir / "model")
