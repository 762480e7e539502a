"""What goes on around the model: calls to a judge, rows through the tokenizer, the start of the command.

The fake judge server runs in a process of its own, so that it and the client do not share an interpreter:

    python -m benchmarks.services '{"part": "serve", "latency_seconds": 0.1}'
    python -m benchmarks.services '{"part": "judge", "url": "http://127.0.0.1:PORT", "calls": 50, "concurrency": 8}'
    python -m benchmarks.services '{"part": "data", "model": "FOLDER", "data": "FILE", "rows": 100000}'
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.processes import PROJECT, BenchmarkError, Deadline, answer_job, run_command

LATENCY_SECONDS = 0.1
_CHUNK_ROWS = 1000
_HELP_RUNS = 5
_MODEL = "llama3:latest"


def measure_judge(url: str, calls: int, concurrency: int) -> dict[str, Any]:
    """Judge that many responses with an Ollama server, and report `calls` and `seconds`."""
    from hf_instruct import judge_responses

    def judge(count: int) -> None:
        # All differ, so that none is answered from an equal one.
        responses = [
            {"instruction": f"Spell the number {number}.", "input": "", "output": "one", "model_response": f"{number}"}
            for number in range(count)
        ]
        result = judge_responses(
            responses, judge="ollama", model="llama3", base_url=url, concurrency=concurrency, cache=False
        )
        if failures := [row.failure for row in result.judgments if row.score is None]:
            raise BenchmarkError(f"{len(failures)} of {count} calls to the fake judge failed: {failures[0]}")

    judge(1)  # imports what judging needs
    start = time.perf_counter()
    judge(calls)
    return {"calls": calls, "concurrency": concurrency, "seconds": time.perf_counter() - start}


def measure_data(model: str, data: str, rows: int) -> dict[str, Any]:
    """Format and tokenize rows as training does, a chunk at a time, and report `rows`, `seconds` and memory growth."""
    from benchmarks.inputs import load_splits
    from hf_instruct import PromptFormat
    from hf_instruct.memory import peak_memory_bytes
    from hf_instruct.models import load_tokenizer
    from hf_instruct.training.sft import tokenize_examples

    examples = load_splits(data)["train"]
    tokenizer, prompt_format = load_tokenizer(model), PromptFormat.from_name("alpaca")
    done, before = 0, None
    start = time.perf_counter()
    while done < rows:
        count = min(_CHUNK_ROWS, rows - done)
        chunk = [examples[(done + place) % len(examples)] for place in range(count)]
        tokenize_examples(chunk, tokenizer, prompt_format, max_length=1024)
        done += count
        # The first chunk fills caches; from then on memory has to stay flat.
        before = peak_memory_bytes() if before is None else before
    seconds = time.perf_counter() - start
    return {"rows": rows, "seconds": seconds, "memory_growth_bytes": peak_memory_bytes() - (before or 0)}


def measure_help(deadline: Deadline) -> list[float]:
    """Return the seconds that `hf-instruct --help` took, five times, after one that does not count."""
    command = [str(Path(sys.executable).with_name("hf-instruct"))]
    if not Path(command[0]).exists():
        command = [sys.executable, "-m", "hf_instruct"]
    return [run_command([*command, "--help"], deadline=deadline).seconds for _ in range(_HELP_RUNS + 1)][1:]


@contextmanager
def judge_server(latency_seconds: float = LATENCY_SECONDS) -> Iterator[str]:
    """Run the fake judge server in another process, and give its address."""
    job = json.dumps({"part": "serve", "latency_seconds": latency_seconds})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.services", job], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            line = process.stdout.readline().strip() if process.stdout else ""
            if not line:
                raise BenchmarkError("The fake judge server did not start; is a port on 127.0.0.1 free?")
            yield line
        finally:
            process.terminate()


def serve_judge(latency_seconds: float) -> None:
    """Answer like an Ollama server whose model takes a fixed time for each call; the address is printed first."""
    server = _JudgeServer(("127.0.0.1", 0), _JudgeHandler)
    server.latency_seconds = latency_seconds
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


class _JudgeServer(ThreadingHTTPServer):
    latency_seconds: float
    daemon_threads = True
    request_queue_size = 128


class _JudgeHandler(BaseHTTPRequestHandler):
    """The part of Ollama's protocol that a judge uses."""

    server: _JudgeServer
    protocol_version = "HTTP/1.1"
    # One write for header and body: two would wait 40 ms for an acknowledgement in between.
    wbufsize = -1

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Tell the version and the models."""
        if self.path == "/api/version":
            self._send({"version": "0.33.0"})
        else:
            details = {"digest": "0" * 64, "size": 1, "details": {"format": "gguf"}}
            self._send({"models": [{"name": _MODEL, "model": _MODEL, **details}]})

    def do_POST(self) -> None:
        """Give a verdict after the fixed time; load the model or describe it at once."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self._send({"capabilities": ["completion"], "details": {}, "model_info": {}})
            return
        asked = bool(body.get("messages"))
        if asked:
            time.sleep(self.server.latency_seconds)
        self._send(
            {
                "model": body["model"],
                "created_at": "2026-08-01T10:00:00.1Z",
                "message": {"role": "assistant", "content": '{"score": 85}' if asked else ""},
                "done": True,
                "done_reason": "stop" if asked else "load",
                "prompt_eval_count": 131,
                "eval_count": 7,
            }
        )

    def _send(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _run_part(part: str, **values: Any) -> dict[str, Any]:
    if part == "serve":
        serve_judge(**values)
    return {"judge": measure_judge, "data": measure_data}[part](**values)


if __name__ == "__main__":
    answer_job(_run_part)
