"""How the tests start several processes."""

import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def launcher(config: str) -> list[str | Path]:
    """Return the command that launches a script as a file of `accelerate_configs/` says, on any port that is free."""
    return [
        BIN / "accelerate",
        "launch",
        *("--main_process_port", "0"),
        *("--config_file", f"accelerate_configs/{config}"),
    ]
