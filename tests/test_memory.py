import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_instruct.memory import drop_pages

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux's C library")

# How many pages forty rounds of a 10 MB block bring in, before and after.
COUNT_FAULTS = """
import resource, torch
from hf_instruct.memory import (
    give_back_freed_memory,
    keep_freed_memory,
    place_large_blocks_apart,
    stop_keeping_memory,
)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.empty(10_000_000 // 4).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

place_large_blocks_apart()
before = faults()
print(keep_freed_memory(), keep_freed_memory(), before, faults())
kept = resident()
give_back_freed_memory()
print(kept - resident())
stop_keeping_memory()
block = torch.empty(100_000_000 // 4).fill_(1.0)
kept = resident()
del block
print(kept - resident())
"""


@pytest.mark.slow
@linux
def test_freed_memory_is_used_again_until_it_is_given_back() -> None:
    process = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    first, second, third = process.stdout.splitlines()
    told, told_again, before, after = first.split()
    assert (told, told_again) == ("True", "True")
    # Once more for the pages of the heap itself; then seldom, where small blocks have come to lie between.
    assert int(after) < int(before) / 2
    assert int(second) * 4096 > 5_000_000
    # Afterwards a large block goes back when it is freed.
    assert int(third) * 4096 > 90_000_000


@linux
def test_dropped_pages_of_a_file_come_back_from_it(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    values = torch.arange(100_000, dtype=torch.float32)
    path.write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(path), shared=False, size=100_000)
    assert torch.equal(mapped, values)
    drop_pages(mapped[10:-10])
    assert torch.equal(mapped, values)
    # Less than a page is left alone.
    small = torch.arange(8)
    drop_pages(small)
    assert small.tolist() == list(range(8))
