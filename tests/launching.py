"""How the tests start several processes, and kill them."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
Words = Sequence[str | Path]


def launcher(config: str) -> list[str | Path]:
    """Return the command that launches a script as a file of `accelerate_configs/` says, on any port that is free."""
    return [
        BIN / "accelerate",
        "launch",
        *("--main_process_port", "0"),
        *("--config_file", f"accelerate_configs/{config}"),
    ]


def call(
    command: Words, environment: Mapping[str, str] | None = None, *, status: int = 0
) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def kill_when(
    ready: Callable[[], bool],
    command: Words,
    environment: Mapping[str, str] | None = None,
    *,
    delay: float = 0.0,
    with_children: bool = False,
) -> None:
    """Start a command, wait until `ready()`, wait on, and kill it with SIGKILL; a launcher with those it launched."""
    words = [str(word) for word in command]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        deadline = time.monotonic() + 200
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if with_children else []:
            child.kill()
        process.kill()
        process.wait()


def num_lines(*paths: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())
