"""Memory of this process: what the C library keeps or returns to the system, and how much is used."""

import ctypes
import functools
import mmap
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import resource

    from torch import Tensor

# Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Linux's madvise.
_DONTNEED = 4


@functools.cache
def _load_library() -> ctypes.CDLL | None:
    """Return Linux's C library, or None on another system."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _set_malloc(settings: dict[int, int]) -> bool:
    library = _load_library()
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return False
    # Each call returns 1 when the value was taken.
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())


def place_large_blocks_apart() -> None:
    """Let the C library map each block of 128 kB or more by itself, until `keep_freed_memory`.

    This is its initial setting, which it abandons for blocks of up to 32 MB once one is freed. What stays, such as an
    optimizer's state, then lies apart from temporary blocks and does not fragment them.
    """
    _set_malloc({_MMAP_THRESHOLD: 128 * 1024})


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next request, and return whether it could: on Linux with glibc.

    glibc maps every large block again and unmaps it when freed, so that each step of a model pays for the same pages
    again: page faults and zeroing took 30 % of a training step on a CPU.
    """
    return _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def give_back_freed_memory() -> None:
    """Return to the system the memory that is free now, where `keep_freed_memory` could keep it."""
    library = _load_library()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def drop_pages(tensor: "Tensor") -> None:
    """Release the memory of a CPU tensor that will not be read again, before the tensor itself is freed.

    Weights are read by mapping their file, which stays mapped, and its pages in memory, while a single tensor of it is
    in use. Only on Linux; elsewhere the memory goes with the last tensor.
    """
    library = _load_library()
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if library is not None and tensor.device.type == "cpu" and end > start:
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def free_bytes(device: str) -> int:
    """Return the bytes that this process can still allocate on a type of device."""
    import psutil  # type: ignore[import-untyped]  # ships no types
    import torch

    if device == "cuda":
        # What PyTorch holds but does not use is free for it too.
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + kept
    if device == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    # Processes launched together on this machine take as much each.
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def mapped_bytes() -> int:
    """Return the bytes of mapped files of this process, mostly weights; 0 if unknown.

    The system counts it as free, for it could be read from the files again: at a disk's pace, at each token.
    """
    import psutil

    return int(getattr(psutil.Process().memory_info(), "shared", 0))


def peak_memory_bytes() -> int:
    """Return the peak memory so far: of the GPU if it was used, otherwise of this process; 0 on Windows."""
    import torch

    if torch.cuda.is_available() and (peak := int(torch.cuda.max_memory_allocated())):
        return peak
    if sys.platform == "win32":
        return 0
    import resource

    return resident_bytes(resource.getrusage(resource.RUSAGE_SELF))


def resident_bytes(usage: "resource.struct_rusage") -> int:
    """Return the largest resident memory of a process from the system's record of it."""
    # Kilobytes on Linux, bytes on macOS.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; PyTorch raises a RuntimeError, on a CPU a bare one."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
