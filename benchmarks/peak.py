"""The machine's own matrix-product peak: the most floating-point operations a second that one product reaches here."""

import time
from typing import Any

from benchmarks.processes import answer_job, read_clock

# Rows, inner size, columns: the layers of the two GPT-2 shapes over a thousand tokens, and two square ones. The best
# of all counts, so that the peak is one that the machine can reach at some size, not the one that suits us.
_CPU_SIZES = [(1024, 768, 3072), (1024, 3072, 768), (1024, 1024, 4096), (1024, 1024, 1024), (2048, 2048, 2048)]
_GPU_SIZES = [(4096, 4096, 4096), (8192, 8192, 8192)]


def measure_peaks(seconds: float = 1.0) -> dict[str, Any]:
    """Return the peak in operations a second of each precision, and the device.

    Args:
        seconds: Time given to each size and precision.
    """
    import torch

    from hf_instruct.models import best_device

    device = best_device()
    report: dict[str, Any] = {"device": device, "threads": torch.get_num_threads()}
    report["gpu"] = torch.cuda.get_device_name(0) if device == "cuda" else None
    for name in ("bfloat16", "float32"):
        sizes = _CPU_SIZES if device == "cpu" else _GPU_SIZES
        report[name] = max(_measure(size, getattr(torch, name), device, seconds) for size in sizes)
    return report


def _measure(size: tuple[int, int, int], dtype: Any, device: str, seconds: float) -> float:
    import torch

    rows, inner, columns = size
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = read_clock()
        left @ right
        now = read_clock()
        best = min(best, now - start)
        if now > end:
            return 2.0 * rows * inner * columns / best


if __name__ == "__main__":
    answer_job(measure_peaks)
