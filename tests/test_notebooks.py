"""The notebooks show the outputs of one run, say what they need in one cell, and run from top to bottom."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import hf_instruct

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read_cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_of_one_run_and_say_nothing_about_the_machine(path: Path):
    cells = [cell for cell in read_cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    # A reader sees the answers before and after, the metrics and the scores without running anything.
    assert len(outputs) >= 8
    assert re.findall(r"/(?:home|Users|root|tmp|work)/|hf_\w{30,}", json.dumps(outputs)) == []
    assert all(set(cell["metadata"]) <= {"tags"} for cell in read_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_only_public_names_are_used(path: Path):
    code = "\n".join("".join(cell["source"]) for cell in read_cells(path) if cell["cell_type"] == "code")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom | ast.Import)]
    modules = [name.name for node in imports if isinstance(node, ast.Import) for name in node.names]
    assert [module for module in modules if module.startswith("hf_instruct")] == []
    used = {
        name.name
        for node in imports
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_instruct")
        for name in node.names
        if node.module == "hf_instruct" or pytest.fail(f"{node.module} is not public")
    }
    assert {"train", "judge_responses"} < used <= set(hf_instruct.__all__)


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
    assert printed[13].count("  untuned ") == printed[13].count("  tuned ") == 5
    assert "exact_match" in printed[14]
    assert "n 6 of 6, 0 failed" in printed[16]
    assert "examples that all runs have a score for" in " ".join(printed[17].split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in (">Untuned<", ">Tuned<"))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.suffix == ".png"]
