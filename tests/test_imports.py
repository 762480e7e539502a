"""Imports point one way: a module imports its own folder, layers below it, and the shared modules."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_instruct

PACKAGE = Path(hf_instruct.__file__).parent
# From the top. What is not named here is shared by all and lies below them.
LAYERS = [
    "cli",
    "ui",
    "sweeping",
    "pipeline",
    "hub",
    "reporting",
    "preferences",
    "evaluation",
    "training",
    "generation",
    "data",
]
# These import what the stages do where they use it, so that a command loads only what it needs.
DOORS = {"cli", "sweeping", "pipeline"}
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = [
    "Experiment",
    "InstructError",
    "InstructTrainer",
    "Judge",
    "PrefixSharingCollator",
    "PromptFormat",
    "Rubric",
    "RunFolder",
    "build_preferences",
    "build_rewards",
    "compare_runs",
    "export",
    "generate_responses",
    "judge_pairs",
    "judge_responses",
    "load_examples",
    "load_model",
    "load_pairs",
    "measure_responses",
    "push",
    "report",
    "run",
    "split_examples",
    "train",
    "train_dpo",
    "train_grpo",
]
HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "accelerate",
    "evaluate",
    "rich",
    "pydantic",
    "httpx",
    "jinja2",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "gradio",
    "lm_eval",
    "optuna",
]


def part_of(name: str) -> str:
    """Return the part of the package that a dotted module name or a file belongs to: a stage, `cli` or a module."""
    return name.split(".")[1] if "." in name else ""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Yield each module of this package that a file imports, whether at its top level, and the line."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno} imports relatively"
                for alias in child.names:
                    submodule = PACKAGE.parent.joinpath(*(child.module or "").split("."), alias.name)
                    is_module = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                    yield (f"{child.module}.{alias.name}" if is_module else str(child.module)), top, child.lineno
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                # Names for annotations; nothing is imported when the program runs.
                continue
            else:
                yield from visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    for name, top, line in visit(ast.parse(path.read_text(encoding="utf-8")), True):
        if name.split(".")[0] == "hf_instruct":
            yield name, top, line


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = part_of(module_name(path))
    depth = {name: number for number, name in enumerate(LAYERS)}
    problems = []
    for name, top, line in imports_of(path):
        target = part_of(name)
        if target in ("", own) or target not in depth or own == "__main__":
            continue
        if depth.get(own, len(LAYERS)) >= depth[target]:
            problems.append(f"line {line} imports {name}, which is not below it")
        elif top and own in DOORS and target not in DOORS:
            problems.append(f"line {line} imports {name} at the top level")
    assert problems == []


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hf_instruct.evaluation.scoring\n"
        "from hf_instruct import models\ntry:\n    import hf_instruct.training.stage\nexcept ImportError: pass\n"
        "def f():\n    from hf_instruct.data.sources import load_examples\n"
    )
    assert list(imports_of(path)) == [
        ("hf_instruct.models", True, 5),
        ("hf_instruct.training.stage", True, 7),
        ("hf_instruct.data.sources", False, 10),
    ]
    assert {module_name(path) for path in MODULES} >= {
        "hf_instruct",
        "hf_instruct.cli.main",
        "hf_instruct.training.stage",
    }


def test_the_public_surface() -> None:
    assert sorted(hf_instruct.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(hf_instruct, name).__module__.startswith("hf_instruct.")
    assert set(PUBLIC) <= set(dir(hf_instruct))
    with pytest.raises(AttributeError, match="module 'hf_instruct' has no attribute 'nothing'"):
        hf_instruct.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("build_preferences", [3]),
        ("compare_runs", [3]),
        ("export", [3, "merged"]),
        ("generate_responses", [None, None, 3]),
        ("judge_pairs", [3, 4]),
        ("judge_responses", [3]),
        ("load_examples", [3]),
        ("load_model", [3]),
        ("measure_responses", [3]),
        ("push", [3, "me/mine"]),
        ("report", [3]),
        ("run", [3, "runs/x"]),
        ("split_examples", [3]),
    ],
)
def test_a_misused_argument_is_one_sentence(name: str, arguments: list[Any]) -> None:
    with pytest.raises(hf_instruct.InstructError) as caught:
        getattr(hf_instruct, name)(*arguments)
    assert len(str(caught.value).splitlines()) == 1


HELP = """
import contextlib
from hf_instruct.cli.main import build_parser, main
for words in ([], ["run"]):
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
# Their flags take their help texts from the fields of an experiment.
build_parser(["judge", "data", "generate"])"""


@pytest.mark.parametrize("code", ["import hf_instruct", HELP], ids=["import", "help"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    code += f"\nimport sys; print([name for name in {HEAVY} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        "run nothing",
        "judge nothing",
        "run demo --model.name gpt9-medium",
        "run demo --train.learning_rat 1 --lora.rr 2 --generate.top_q 3 --data.limit 0",
    ],
)
def test_a_mistake_is_found_before_torch_is_loaded(words: str, tmp_path: Path) -> None:
    code = f"import sys; from hf_instruct.cli import main; main({words.split()})"
    code += f"; print(set({HEAVY[:6]}) & sys.modules.keys())"
    # Where `make demo` has left no run.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert (finished.stdout, finished.stderr.count("hf-instruct:")) == ("set()\n", 1)


def test_the_package_is_the_command() -> None:
    command = [sys.executable, "-m", "hf_instruct", "--version"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout == f"hf-instruct {hf_instruct.__version__}\n"
