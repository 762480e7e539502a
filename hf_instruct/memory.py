"""Control how the C library keeps or returns memory, and measure the memory of this process."""

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
# MADV_DONTNEED of Linux's madvise.
_DONTNEED = 4


@functools.cache
def _load_library() -> ctypes.CDLL | None:
    """Return Linux's C library, or None on another system."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def _set_malloc(settings: dict[int, int]) -> bool:
    library = _load_library()
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return False
    # Each call returns 1 if the value was accepted.
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())


def place_large_blocks_apart() -> None:
    """Let the C library map each block of 128 kB or more separately, until `keep_freed_memory` is called.

    This is its initial setting, which it gives up for blocks of up to 32 MB once one is freed. Long-lived blocks, such
    as an optimizer's state, then stay separate from temporary ones and do not fragment them.
    """
    _set_malloc({_MMAP_THRESHOLD: 128 * 1024})


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for reuse, and return whether it supports this (glibc on Linux).

    By default, glibc maps every large block and unmaps it when it is freed, so each step of a model pays again for the
    same pages: page faults and zeroing took 30 % of a training step on a CPU.
    """
    return _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def stop_keeping_memory() -> None:
    """Undo `keep_freed_memory`: return to glibc's defaults, with the thresholds that it reaches by itself, and trim."""
    _set_malloc({_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20})
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Give free memory that `keep_freed_memory` kept back to the system."""
    library = _load_library()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def drop_pages(tensor: "Tensor") -> None:
    """Release the memory of a CPU tensor that will not be read again, before the tensor itself is freed.

    Weight files are memory-mapped, and stay mapped with their pages in memory while any of their tensors is in use.
    Only on Linux; elsewhere, the memory is released with the last tensor.
    """
    library = _load_library()
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if library is not None and tensor.device.type == "cpu" and end > start:
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def free_bytes(device: str) -> int:
    """Return the number of bytes that this process can still allocate on a type of device."""
    import psutil  # type: ignore[import-untyped]  # ships no types
    import torch

    if device == "cuda":
        # Memory that PyTorch has reserved but does not use is also available.
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + kept
    if device == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    # Processes launched together on this machine get an equal share each.
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def mapped_bytes() -> int:
    """Return the bytes of mapped files of this process, mostly weights; 0 if unknown.

    The system counts them as free, because they can be read again from the files, but at disk speed for each token.
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
    """Return the peak resident memory of a process in bytes, from its resource usage."""
    # Kilobytes on Linux, bytes on macOS.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; PyTorch raises a RuntimeError, on a CPU a plain one."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
