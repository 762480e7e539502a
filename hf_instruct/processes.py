"""Which of the processes that were launched together this is; read from what `accelerate launch` and `torchrun` set."""

import os


def process_rank() -> int:
    """Return this process's number among those launched together, from 0; 0 for one alone."""
    return int(os.environ.get("RANK", "0"))


def count_processes() -> int:
    """Return how many processes were launched together, on all machines; 1 for one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first of the processes launched together, or the only one."""
    return process_rank() == 0
