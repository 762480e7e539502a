"""`recipes/sft.py` with a model spread over processes on a CPU, which Accelerate offers for GPUs alone.

PyTorch's FSDP2 can; only the name by which Accelerate calls several processes on a CPU stands in the way.
"""

import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_instruct.cli import main

_start = PartialState.__init__


def _start_as_gpus(self: PartialState, *arguments: Any, **keywords: Any) -> None:
    _start(self, *arguments, **keywords)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = _start_as_gpus  # type: ignore[method-assign]
    sys.exit(main(["train", *sys.argv[1:]]))
