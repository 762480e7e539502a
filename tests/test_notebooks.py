"""The notebooks are clean, say what they need in one cell, and run from top to bottom."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read_cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_outputs_are_kept(path: Path):
    for cell in read_cells(path):
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}


@pytest.mark.slow
def test_the_course_runs(tmp_path: Path, tiny_gpt2: Path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    from transformers import LlamaConfig

    judge = tmp_path / "judge"
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tiny_models.END, "eos_token_id": tiny_models.END}
    config = LlamaConfig(vocab_size=tiny_models.VOCABULARY, max_position_embeddings=1024, **size, **ids)
    tokenizer = tiny_models.build_tokenizer(judge)
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    tokenizer.save_pretrained(judge)
    tiny_models.build_model(config).save_pretrained(judge)

    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    nbformat.validate(notebook)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    changes = {"MODEL": str(tiny_gpt2), "LIMIT": 60, "RUN": "run", "JUDGE_MODEL": str(judge)}
    settings.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in changes.items())
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = ["".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells]
    assert "7 steps in" in printed[10]
    assert printed[13].count("  before ") == printed[13].count("  after ") == 5
    assert "exact_match" in printed[14]
    assert "n 6 of 6, 0 failed" in printed[16]
    assert "examples that all runs have a score for" in " ".join(printed[17].split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("base", "tuned"))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.suffix == ".png"]
