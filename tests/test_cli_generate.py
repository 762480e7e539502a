from pathlib import Path

import pytest
import tiny_models

from hf_instruct.cli.main import main
from hf_instruct.records import read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response

EXAMPLES = tiny_models.tiny_examples(5)


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> RunFolder:
    return tiny_models.write_run_to_answer(tmp_path / "run", tiny_gpt2, EXAMPLES)


def test_a_preset_with_several_answers(run: RunFolder) -> None:
    arguments = ["generate", str(run.path), "--preset", "diverse", "--num-return", "3", "--seed", "7"]
    assert main(arguments) == 0
    rows = read_rows(run.responses, Response)
    assert [row.id for row in rows] == [example.id for example in EXAMPLES]
    assert all(len({row.response, *(row.further_responses or [])}) == 3 for row in rows)
    stored = run.load_experiment().generate.model_dump()
    assert (stored["do_sample"], stored["top_p"], stored["seed"], stored["num_return_sequences"]) == (True, 0.95, 7, 3)
    whole = run.responses.read_bytes()
    assert main([*arguments, "--force"]) == 0
    assert run.responses.read_bytes() == whole
    # Cut off after three rows, and in the middle of a batch: the others come out as they were.
    write_rows(run.responses, [rows[3], rows[0], rows[2]])
    assert main(arguments) == 0
    assert run.responses.read_bytes() == whole
    assert main([*arguments[:-1], "8", "--force"]) == 0
    assert run.responses.read_bytes() != whole


def test_answers_do_not_depend_on_the_batch(run: RunFolder) -> None:
    arguments = ["generate", str(run.path), "--strategy", "sample", "--force"]
    assert main(arguments) == 0
    whole = run.responses.read_bytes()
    assert main([*arguments, "--generate.batch_size", "2"]) == 0
    assert run.responses.read_bytes() == whole


def test_a_strategy_after_another(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run.path), "--strategy", "top-p", "--generate.top_p", "0.6"]) == 0
    assert run.load_experiment().generate.model_dump()["top_p"] == 0.6
    before = run.responses.read_bytes()
    assert main(["generate", str(run.path), "--strategy", "beam"]) == 1
    assert "`--force`" in capsys.readouterr().err
    assert run.responses.read_bytes() == before
    assert main(["generate", str(run.path), "--strategy", "greedy", "--force"]) == 0
    stored = run.load_experiment().generate.model_dump()
    assert (stored["do_sample"], stored["top_p"], stored["top_k"]) == (False, None, None)
    greedy = run.responses.read_bytes()
    assert main(["generate", str(run.path), "--preset", "exact", "--force"]) == 0
    assert run.responses.read_bytes() == greedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "top"], "Unknown strategy `top`. Did you mean `top-"),
        (["--preset", "kode"], "Unknown preset `kode`. Did you mean `code`?"),
        (["--num-return", "3"], "`num_return_sequences` different than 1 (got 3)"),
        (["--strategy", "greedy", "--num-return", "3"], "3 answers per prompt need a strategy that samples"),
        (["--strategy", "top-p", "--generate.top_p", "1.5"], "`top_p` is 1.5; it must be"),
        (["--strategy", "beam", "--generate.num_return_sequences", "9"], "as many `num_beams`"),
        (["--strategy", "beam", "--generate.strategy", "beam"], "`generate.strategy`"),
        (["--strategy", "sample", "--train.learning_rate", "1"], "only accepts settings of the `generate` section"),
    ],
)
def test_mistakes_delete_nothing(
    run: RunFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["generate", str(run.path)]) == 0
    before = {path: path.read_bytes() for path in (run.responses, run.config)}
    assert main(["generate", str(run.path), *arguments, "--force"]) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_the_list_of_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--presets"]) == 0
    text = capsys.readouterr().out
    assert "  code         code that keeps to what is usual\n" in text
    assert "temperature 0.2, top_k 0, top_p 0.1" in text
    assert text.count("https://") >= 16
