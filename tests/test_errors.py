"""Which errors are bugs of ours, and which are a library's refusal of what a user set."""

from pathlib import Path

import pytest

import hf_instruct
from hf_instruct.console import format_points
from hf_instruct.errors import ConfigError, is_bug
from hf_instruct.training.arguments import translated_refusals


def test_what_a_library_raises_is_translated_and_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ConfigError, match="refused by TRL"), translated_refusals("This is refused by TRL:"):
        int("x")
    with pytest.raises(TypeError), translated_refusals("This is refused by TRL:"):
        format_points(None)  # type: ignore[arg-type]


def test_a_missing_file_of_the_package_is_a_bug() -> None:
    packaged = Path(hf_instruct.__file__).with_name("missing.json")
    assert is_bug(FileNotFoundError(2, "No such file or directory", str(packaged)))
    assert not is_bug(FileNotFoundError(2, "No such file or directory", "/home/me/data.json"))
