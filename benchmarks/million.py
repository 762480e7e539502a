"""Check, split and tokenize a million rows as a run does, and say how long each part took and how much memory it held.

    python -m benchmarks.million [ROWS]

The rows are words of the packaged examples, drawn at random, of the lengths of Alpaca's rows. Memory is the largest
resident set of the process, libraries included; the file, the splits and the tokens are on disk, in a temporary folder
(`TMPDIR`) and in the cache of `datasets`, about 3 GB.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.inputs import save_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

# Mean characters of instruction, input where there is one, and output.
# Source: https://huggingface.co/datasets/tatsu-lab/alpaca
_MEANS = (60, 60, 270)
_WITH_INPUT = 0.4
_SEED = 123


def write_rows(path: Path, count: int) -> None:
    """Write rows as JSON Lines; one in a hundred asks what an earlier one asked."""
    from hf_instruct.data.sources import read_examples

    draws = random.Random(_SEED)
    words = [word for row in read_examples("everyday") for word in f"{row.instruction} {row.output}".split()]

    def text(mean: int) -> str:
        return " ".join(draws.choices(words, k=max(1, round(draws.expovariate(6.5 / mean)))))

    asked = [text(_MEANS[0]) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            instruction = draws.choice(asked) if number % 100 == 0 else f"{number}: {text(_MEANS[0])}"
            input = text(_MEANS[1]) if draws.random() < _WITH_INPUT else ""
            row = {"instruction": instruction, "input": input, "output": text(_MEANS[2])}
            file.write(json.dumps(row) + "\n")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--num-proc", type=int, default=None, help="processes that count tokens and tokenize")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "model")
        write_rows(folder / "rows.jsonl", options.rows)
        size = (folder / "rows.jsonl").stat().st_size
        print(f"{options.rows:,} rows, {size / 1e6:,.0f} MB of JSON Lines", flush=True)
        _measure(folder, num_proc=options.num_proc)
    return 0


def _measure(folder: Path, *, num_proc: int | None) -> None:
    start, busy = time.monotonic(), time.process_time()

    def note(done: str) -> None:
        nonlocal start, busy
        seconds, cpu = time.monotonic() - start, time.process_time() - busy
        print(f"{seconds:6.0f} s ({cpu:.0f} s of a core)  {peak_memory_bytes() / 1e9:.2f} GB  {done}", flush=True)
        start, busy = time.monotonic(), time.process_time()

    from hf_instruct.config import build_experiment
    from hf_instruct.data.sources import load_split
    from hf_instruct.data.stage import prepare
    from hf_instruct.memory import peak_memory_bytes
    from hf_instruct.models import load_tokenizer
    from hf_instruct.prompts import PromptFormat
    from hf_instruct.run_folder import RunFolder
    from hf_instruct.training.sft import tokenize_examples

    data = {"source": str(folder / "rows.jsonl"), "split": "grouped", "num_proc": num_proc}
    experiment = build_experiment({"data": data, "model": {"name": str(folder / "model")}}, where="here", deep=False)
    note("libraries")
    run = RunFolder(folder / "run")
    prepare(run, experiment)
    note("read, checked, tokens counted, split, near-duplicates of a sample, written")
    train: Dataset = load_split(run, "train")
    note(f"{len(train):,} training rows read")
    tokenizer = load_tokenizer(str(folder / "model"))
    rows = tokenize_examples(train, tokenizer, PromptFormat.from_name("alpaca"), max_length=1024, num_proc=num_proc)
    note(f"{len(rows):,} training rows tokenized")


if __name__ == "__main__":
    sys.exit(main())
