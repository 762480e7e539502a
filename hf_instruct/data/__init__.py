"""The prepare stage: read examples from anywhere, find every fault in them, split them."""

from hf_instruct.data.checks import Fault, check_examples
from hf_instruct.data.preflight import build_preflight
from hf_instruct.data.sources import load_examples
from hf_instruct.data.splits import split_examples

__all__ = ["Fault", "build_preflight", "check_examples", "load_examples", "split_examples"]
