"""The document of a run, its table and its plot; all that is shown is made from the document alone."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bench import Mode, Outcome
from benchmarks.processes import PROJECT

_TRAIN_KEYS = ("speedup_vs_trl_default", "speedup_vs_trl_tuned", "speedup_vs_course", "fraction_of_matmul_peak")
# The keys of the summary, which are there in every run: with a number, or null and a reason under `skipped`.
SUMMARY_KEYS = (
    *(f"train.{model}.b{size}.{key}" for model in ("gpt2", "gpt2-medium") for size in (8, 32) for key in _TRAIN_KEYS),
    "train.long_answers.speedup_vs_trl_tuned",
    "train.long_answers.fraction_of_matmul_peak",
    "train.gpt2-medium.lora.b8.speedup_vs_trl_tuned",
    "train.gpt2-medium.lora.b8.fraction_of_matmul_peak",
    "generate.speedup_vs_one_by_one",
    "generate.speedup_vs_batched",
    "generate.speedup_vs_course",
    "generate.bf16_speedup_vs_one_by_one",
    "memory.gpt2-medium_full_gb",
    "memory.gpt2-medium_lora_gb",
    "memory.gpt2-xl_lora_gb",
    "judge.efficiency_c1",
    "judge.efficiency_c8",
    "data.rows_per_second",
    "cli.help_seconds",
)
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")
TITLES = {
    "train.gpt2.b8": "GPT-2 124M, batch 8",
    "train.gpt2.b32": "GPT-2 124M, batch 32",
    "train.gpt2-medium.b8": "GPT-2 355M, batch 8",
    "train.gpt2-medium.b32": "GPT-2 355M, batch 32",
    "train.long_answers": "GPT-2 124M, batch 8, answers of 150 tokens",
    "train.gpt2-medium.lora.b8": "GPT-2 355M, batch 8, LoRA",
    "generate": "GPT-2 124M, answers of 64 tokens",
}
LABELS = {
    "ours": "hf_instruct",
    "ours-bf16": "hf_instruct, bf16",
    "trl-tuned": "TRL, tuned by hand",
    "trl-default": "TRL, defaults",
    "course": "the course's loop",
    "batched": "generate(), batches of 32",
    "one-by-one": "generate(), one by one",
}
_COLORS = {"ours": "#0072b3", "ours-bf16": "#56b4e9"}
_PEER_COLOR, _TEXT_COLOR = "#c3c8cf", "#3b4048"


def build_document(
    outcomes: Mapping[str, Outcome], *, skipped: Mapping[str, str], failed: Mapping[str, str], mode: Mode
) -> dict[str, Any]:
    """Return the document of a run, as it is written: the summary's keys nested by their dots, and what led to them.

    Args:
        outcomes: What the cases found, by their names.
        skipped: Cases that were not run, and why.
        failed: Cases that failed, and how.
        mode: How much of each case was run.
    """
    values = {key: value for outcome in outcomes.values() for key, value in outcome.values.items()}
    reasons = {key: reason for outcome in outcomes.values() for key, reason in outcome.skipped.items()}
    document: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "mode": mode,
        "quick": mode != "full",
        "git_commit": _find_commit(),
        "versions": {"python": platform.python_version(), **_list_versions()},
    }
    for key in SUMMARY_KEYS:
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = _round(values.get(key))
    case_reasons = {**skipped, **{name: f"failed: {reason}" for name, reason in failed.items()}}
    document["skipped"] = {
        key: reasons.get(key) or next((case_reasons[name] for name in case_reasons if _holds(name, key)), "not run")
        for key in SUMMARY_KEYS
        if key not in values
    }
    document["failed"] = dict(failed)
    document["cases"] = {name: {"contestants": outcome.contestants} for name, outcome in outcomes.items()}
    return document


def describe_machine(peaks: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is known of this machine; `peaks` are those of `benchmarks.peak`, where they were measured."""
    machine: dict[str, Any] = {
        "cpu": _find_cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if peaks is not None:
        machine |= {"device": peaks["device"], "gpu": peaks["gpu"], "threads": peaks["threads"]}
        machine["matmul_peak_gflops"] = {name: round(peaks[name] / 1e9) for name in ("bfloat16", "float32")}
    return machine


def _holds(case: str, key: str) -> bool:
    return key == case or key.startswith(f"{case}.")


def _round(value: float | None) -> float | None:
    # Four digits are more than a timing is good for.
    return None if value is None else float(f"{value:.4g}")


def _find_commit() -> str | None:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "hf_instruct", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _list_versions() -> dict[str, str]:
    installed = {}
    for name in ("hf-instruct", *_LIBRARIES):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _find_cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


_HEADER = ("case", "contestant", "time", "tokens/s", "ours is faster", "of peak", "memory")


def format_table(document: Mapping[str, Any]) -> str:
    """Return the one aligned table of a document, with a line for each contestant, and below it what is missing."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for case, found in document["cases"].items():
        for index, name in enumerate(found["contestants"]):
            rows.append((case if index == 0 else "", name, *_format_entry(name, found["contestants"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = []
    for row in rows:
        texts = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    for word, reasons in (("failed", document["failed"]), ("not measured", _join_reasons(document))):
        for name, reason in reasons.items():
            lines += textwrap.wrap(f"{word}: {name}: {reason}", 120, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _format_entry(name: str, contestants: Mapping[str, Any]) -> tuple[str, ...]:
    entry = contestants[name]
    if "value" in entry:
        value, unit = entry["value"], entry["unit"]
        return (f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}", "", "", "", "")
    field, unit = ("seconds_per_step", "s/step") if "seconds_per_step" in entry else ("seconds_per_answer", "s/answer")
    rate = entry.get("example_tokens_per_second") or entry["new_tokens_per_second"]
    speedup = entry[field] / contestants["ours"][field]
    peak = entry.get("fraction_of_matmul_peak")
    return (
        f"{entry[field]:.3f} {unit}",
        f"{rate:,.0f}",
        "" if name.startswith("ours") else f"{speedup:.1f} x",
        "" if peak is None else f"{peak:.0%}",
        f"{entry['peak_memory_gb']:.1f} GB",
    )


def _join_reasons(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the reasons for what was skipped, one line for the keys of a case that have the same."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for key, reason in document["skipped"].items():
        if not reason.startswith("failed: "):
            parent, _, last = key.rpartition(".")
            grouped.setdefault((parent, reason), []).append(last)
    return {f"{parent}.{', '.join(lasts)}": reason for (parent, reason), lasts in grouped.items()}


def write_plot(document: Mapping[str, Any], path: Path) -> None:
    """Write the bars of every case that has several contestants; ours are coloured.

    Each case has its own scale: what is compared are the bars of one case.
    """
    from matplotlib.figure import Figure

    cases = [(name, found["contestants"]) for name, found in document["cases"].items() if name in TITLES]
    # As high as the more bars of the two cases in a line ask for, so that all bars are of one height.
    heights = [max(len(bars) for _, bars in cases[start : start + 2]) for start in range(0, len(cases), 2)]
    figure = Figure(figsize=(8, 0.5 + sum(0.38 + 0.26 * bars for bars in heights)), dpi=200, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights).flatten()
    for axis in axes[len(cases) :]:
        axis.axis("off")
    for place, (name, contestants) in enumerate(cases):
        _draw_bars(axes[place], name, contestants)
        axes[place].set_ylim(heights[place // 2] - 0.4, -0.6)
    figure.suptitle("Seconds per training step and per answer (lower is better)", fontsize=11, color=_TEXT_COLOR)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_bars(axis: Any, case: str, contestants: Mapping[str, Any]) -> None:
    field = "seconds_per_answer" if case == "generate" else "seconds_per_step"
    values = {name: entry[field] for name, entry in contestants.items()}
    longest = max(values.values())
    for place, (name, value) in enumerate(values.items()):
        axis.barh(place, value, height=0.72, color=_COLORS.get(name, _PEER_COLOR))
        ratio = "" if name.startswith("ours") else f"  {value / values['ours']:.1f} x"
        weight = "bold" if name == "ours" else "normal"
        text = f" {value:.3g} s{ratio}"
        axis.text(value, place, text, va="center", fontsize=8.5, color=_TEXT_COLOR, fontweight=weight)
    axis.set_yticks(range(len(values)), [LABELS[name] for name in values], fontsize=8.5, color=_TEXT_COLOR)
    axis.tick_params(axis="y", length=0)
    axis.set_xticks([])
    # Room for the text beside the longest bar.
    axis.set_xlim(0, longest * 1.5)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.spines["left"].set_color(_PEER_COLOR)
    # From the names' left edge: from the bars' a long title would leave the picture.
    axis.set_title(TITLES[case], fontsize=9.5, loc="left", x=-0.4, color=_TEXT_COLOR, fontweight="bold")


def select_cases(names: Iterable[str], prefixes: Iterable[str]) -> list[str]:
    """Return the names that begin with one of the prefixes, all of them where there is no prefix.

    >>> select_cases(["train.gpt2.b8", "train.gpt2-medium.b8", "generate"], ["train.gpt2."])
    ['train.gpt2.b8']
    """
    prefixes = tuple(prefixes)
    return [name for name in names if not prefixes or name.startswith(prefixes)]
