"""What is listed of other libraries is what they say; `python tests/test_library_fields.py` lists it anew."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from hf_instruct import library_fields
from hf_instruct.library_fields import KINDS, ask_library, read_fields

LIST = Path(library_fields.__file__).with_name("library_fields.json")


def list_fields() -> str:
    asked = {kind: ask_library(kind) for kind in KINDS}
    common = asked["TrainingArguments"].items()
    listed: dict[str, dict[str, list[str]]] = {}
    for kind, fields in asked.items():
        by_type: dict[str, list[str]] = {}
        for name, text in fields.items() if kind == "TrainingArguments" else sorted(fields.items() - common):
            by_type.setdefault(text, []).append(name)
        listed[kind] = {text: sorted(names) for text, names in sorted(by_type.items())}
    old = json.loads(LIST.read_text(encoding="utf-8"))
    # Versions whose fields are the same share a list.
    known = old["versions"] if {**old, **listed} == old else {}
    versions = {
        name: sorted({*known.get(name, ()), ".".join(version(name).split(".")[:2])})
        for name in ("trl", "transformers", "peft")
    }
    # A type a line.
    text = json.dumps({"versions": versions, **listed}, indent=1)
    return text.replace("\n   ", " ").replace("\n  ]", " ]") + "\n"


@pytest.fixture
def unread():
    read_fields.cache_clear()
    yield
    read_fields.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_is_what_the_libraries_say(kind: str, unread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(library_fields, "ask_library", lambda kind: asked.append(kind) or {})
    listed = read_fields(kind)
    if asked:
        pytest.skip("another version than the list's is installed")
    assert listed == ask_library(kind)


def test_another_version_is_asked_itself(unread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_fields, "version", {"trl": "1.16.0", "transformers": "5.23.0", "peft": "0.99.1"}.get)
    monkeypatch.setattr(library_fields, "ask_library", lambda kind: {"new": kind})
    assert read_fields("LoraConfig") == {"new": "LoraConfig"}
    assert "learning_rate" in read_fields("SFTConfig")


if __name__ == "__main__":
    LIST.write_text(list_fields(), encoding="utf-8")
