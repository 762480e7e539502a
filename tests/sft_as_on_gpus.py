"""`recipes/sft.py` with a model spread over processes on a CPU, which Accelerate offers for GPUs alone.

PyTorch's FSDP2 and DeepSpeed can; so Accelerate is told that the processes have GPUs, and that these are called `cpu`.
"""

import os
import sys
from typing import Any

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_instruct.cli import main


def _claim_gpus(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState._prepare_backend = _claim_gpus  # type: ignore[method-assign]
    sys.exit(main(["train", "--train.use_cpu", "false", *sys.argv[1:]]))
