"""Runs side by side: joined example by example, refused where they cannot be compared."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from rows import judgment, response

from hf_instruct.cli.main import main
from hf_instruct.errors import DataError
from hf_instruct.evaluation.comparison import compare_runs
from hf_instruct.evaluation.comparison_views import draw_comparison_plot
from hf_instruct.evaluation.intervals import bootstrap_mean, compare_values
from hf_instruct.evaluation.runs import load_run
from hf_instruct.plots import COLORS
from hf_instruct.records import append_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Metrics, Repeats, RubricName, Scores, TrainingRow

JUDGE = {"backend": "ollama", "model": "llama3:8b", "digest": "365c0bd3c000", "options": {"temperature": 0, "seed": 1}}


def save_run(
    path: Path,
    scores: dict[str, int | None],
    *,
    judge: dict[str, Any] | None = None,
    rubric_sha256: str = "abc",
    categories: dict[str, str] | None = None,
    model: str = "tuned",
    **summary: Any,
) -> Path:
    """Write what a judged run leaves in its folder, and return the folder."""
    judge = judge or JUDGE
    run = RunFolder(path)
    asked = {"model": model, "judge": judge, "rubric_sha256": rubric_sha256}
    append_rows(run.judgments, [judgment(i, score, **asked) for i, score in scores.items()])
    named = categories or {}
    append_rows(run.responses, [response(i, model=model, category=named.get(i)) for i in scores])
    rubric = RubricName(name="course", sha256=rubric_sha256)
    run.write_scores(model, Scores(judge=judge, rubric=rubric, **summary))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two runs: twelve examples in common, one scored in the first alone."""
    low = {str(i): 20 + i for i in range(12)} | {"only": 90}
    high = {str(i): 30 + 2 * i for i in range(12)} | {"only": None}
    return [save_run(tmp_path / "low", low), save_run(tmp_path / "high", high)]


def test_runs_that_nobody_judged_are_compared_by_metrics(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path, texts in zip(paths, ("Blue.", "Red."), strict=True):
        rows = [response(str(i), output="Red.", response=texts if i % 3 else "Green.") for i in range(12)]
        append_rows(RunFolder(path).responses, rows)
        (path / "run.yaml").write_text("data: {source: x}")
        assert main(["judge", "metrics", str(path)]) == 0
    found = compare_runs(paths)
    assert (found.is_scored, found.leading.name, found.n) == (False, "rouge_l", 12)
    assert [(row.mean, row.difference, row.failures) for row in found.rows] == [(None, None, 0)] * 2
    (exact,) = [part for part in found.metrics if part.name == "exact_match"]
    assert exact.means == [0.0, pytest.approx(8 / 12)]
    assert exact.differences[1].is_shown
    capsys.readouterr()
    assert main(["compare", *map(str, paths), "--power"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("compared by reference metrics, without a judge; 12 examples that all runs have\n")
    assert "0.67" in out
    assert "points" not in out
    assert main(["compare", *map(str, paths), "--json", "--plot", str(tmp_path / "plot.png")]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][1]["mean"] is None
    # One that was judged but not measured has nothing in common with them.
    assert main(["compare", str(paths[0]), str(pair[0])]) == 1
    assert f"`{paths[0]}` has no scores, and not all runs have ROUGE-L" in capsys.readouterr().err


def test_paired_difference_by_hand() -> None:
    found = compare_values([10.0, 20.0, 30.0, 5.0], [10.0, 15.0, 20.0, 4.0])
    assert found.mean == 4.0
    assert (found.wins, found.ties, found.losses) == (3, 1, 0)
    assert found.p_value == 0.25
    assert found.interval == bootstrap_mean([0.0, 5.0, 10.0, 1.0])
    assert not found.is_shown
    assert compare_values([10.0, 20.0, 30.0, 5.0] * 5, [10.0, 15.0, 20.0, 4.0] * 5).is_shown
    assert not compare_values([1.0, 0.0] * 10, [0.0, 1.0] * 10).is_shown
    assert not compare_values([5.0], [1.0]).is_shown


def test_runs_are_joined_by_id_and_more_than_two_sorted_by_mean(pair: list[Path], tmp_path: Path) -> None:
    third = save_run(tmp_path / "third", {str(i): 35 for i in range(12)})
    assert [row.name for row in compare_runs([*pair, third]).rows] == [str(pair[1]), str(third), str(pair[0])]
    comparison = compare_runs(pair)
    assert [row.name for row in comparison.rows] == list(map(str, pair))
    assert (comparison.n, comparison.num_dropped, comparison.baseline) == (12, 1, str(pair[0]))
    low, high = comparison.rows
    assert (high.mean, low.mean) == (41.0, 25.5)
    assert (high.n, high.failures, low.n) == (12, 1, 13)
    assert (high.mean_failures_as_0, high.mean_failures_as_100) == (pytest.approx(492 / 13), pytest.approx(592 / 13))
    assert low.difference is None
    assert high.difference is not None
    assert (high.difference.mean, high.difference.wins, high.difference.is_shown) == (15.5, 12, True)
    assert high.interval == bootstrap_mean([30.0 + 2 * i for i in range(12)])


def test_text(pair: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text, notes = str(compare_runs(["low", "high"])).split("\n\n! ")
    assert text == (
        "judge llama3:8b@365c0bd (ollama), rubric course@abc; 12 examples that all runs have a score for\n"
        "\n"
        "#  run   score  95 % interval  difference   95 % interval    scored\n"
        "1  low    25.5   23.3 to 27.8    baseline                  13 of 13\n"
        "2  high   41.0   36.5 to 45.5       +15.5  +13.3 to +17.8  12 of 13\n"
        "\n"
        "high - low: +15.5 points, 95 % interval +13.3 to +17.8 (higher on 12, equal on 0, lower on 0 of 12;\n"
        "  sign test p < 0.001): higher; with failed judgments counted as worst or best it is +7.4 to +15.1."
    )
    assert [note.split()[:2] for note in notes.split("\n! ")] == [
        ["1", "example"],
        ["The", "intervals"],
        ["1", "answer"],
    ]
    assert "37.8 or 45.5" in notes


def test_failures_that_could_turn_a_difference_round_leave_it_unsaid(tmp_path: Path) -> None:
    low = save_run(tmp_path / "low", {str(i): 50 for i in range(20)})
    high = save_run(tmp_path / "high", {str(i): 60 + i % 2 if i > 3 else None for i in range(20)})
    found = compare_runs([low, high]).rows[1].difference
    # Sixteen of 60.5, and four of 0 or of 100, over twenty of 50.
    assert found.bounds == (pytest.approx(-1.6), pytest.approx(18.4))
    assert found.interval.low > 0
    assert not found.is_shown
    text = " ".join(str(compare_runs([low, high])).split())
    assert "no difference shown; with failed judgments counted as worst or best it is -1.6 to +18.4." in text
    assert COLORS["tuned"] not in [
        line.get_color() for line in draw_comparison_plot(compare_runs([low, high])).axes[1].lines
    ]


def test_examples_that_one_run_lacks_are_no_failures(tmp_path: Path) -> None:
    low = save_run(tmp_path / "low", {str(i): 50 for i in range(40)})
    high = save_run(tmp_path / "high", {str(i): 60 + i % 2 for i in range(20)})
    found = compare_runs([low, high]).rows[1].difference
    assert (found.bounds, found.is_shown) == (None, True)
    # Where both failed, both may hide any score.
    third = save_run(tmp_path / "third", {str(i): 50 if i else None for i in range(20)})
    fourth = save_run(tmp_path / "fourth", {str(i): 60 + i % 2 if i else None for i in range(20)})
    found = compare_runs([third, fourth]).rows[1].difference
    assert found.bounds == (pytest.approx((200 - 100) / 20), pytest.approx((200 + 100) / 20))


def test_what_as_many_examples_show(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The course's two models differ by examples with a standard deviation of about 47 points."""
    draws = random.Random(2)
    found = compare_values([draws.choice((-47.1, 47.1)) for _ in range(110)], [0.0] * 110)
    assert found.smallest_found == pytest.approx(12.6, abs=0.1)
    assert found.count_needed(5.0) == pytest.approx(700, rel=0.02)
    assert compare_values([0.0] * 19 + [0.1], [0.0] * 20).count_needed(5.0) == 10
    # With as large a real difference, four comparisons in five show it.
    real = [
        compare_values([draws.gauss(found.smallest_found, 47.1) for _ in range(110)], [0.0] * 110) for _ in range(100)
    ]
    assert 0.7 < sum(one.is_shown for one in real) / 100 < 0.9
    files = [tmp_path / name for name in ("a.json", "b.json")]
    for file in files:
        file.write_text(json.dumps([draws.choice((20, 80)) for _ in range(30)]))
    assert main(["compare", *map(str, files), "--power"]) == 0
    text = capsys.readouterr().out
    sentence = (
        r"30 examples show differences of [\d.]+ points or more 8 times out of 10; 5 points would need about [\d,]+"
    )
    assert re.search(sentence, " ".join(text.split()))
    assert re.search(r"score +\S*b.json +30 +[\d.]+ +[\d,]+ for 5.0", text)


def test_categories_of_a_few_examples_are_folded(tmp_path: Path) -> None:
    categories = {str(i): "many" if i < 15 else f"few {i % 2}" for i in range(20)}
    runs = [save_run(tmp_path / name, {str(i): 50 for i in range(20)}, categories=categories) for name in "ab"]
    text = str(compare_runs(runs))
    assert "few 0" not in text
    assert "2 of 3 categories have fewer than 10 examples; `--json` has them." in text


def test_baseline_is_the_first_or_the_one_named_and_is_added(pair: list[Path], tmp_path: Path) -> None:
    third = save_run(tmp_path / "third", {str(i): 25 for i in range(12)})
    assert compare_runs([*pair, third]).baseline == str(pair[0])
    named = compare_runs([*pair, third], baseline=f"{third}/")
    assert (named.baseline, len(named.rows)) == (str(third), 3)
    added = compare_runs(pair, baseline=third)
    assert (added.baseline, len(added.rows)) == (str(third), 3)
    assert [row.difference is None for row in added.rows] == [False, False, True]
    assert any("Each of the 2 intervals is a separate 95 % interval" in note for note in added.notes)


def test_base_side_and_validation_loss(tmp_path: Path) -> None:
    run = RunFolder(save_run(tmp_path / "run", {"a": 60, "b": 70}))
    save_run(run.path, {"a": 50, "b": 50}, model="untuned")
    run.config.write_text("experiment: {}\n")
    log = [
        TrainingRow(step=0, epoch=0.0, tokens_seen=0, kind="evaluation", validation_loss=2.5),
        TrainingRow(step=5, epoch=1.0, tokens_seen=9, kind="train", loss=1.0),
        TrainingRow(step=9, epoch=1.0, tokens_seen=9, kind="evaluation", validation_loss=1.25),
    ]
    write_rows(run.training_log, log)
    comparison = compare_runs([run.path / "untuned", run.path])
    assert [row.validation_loss for row in comparison.rows] == [2.5, 1.25]
    assert str(comparison).splitlines()[2].endswith("val. loss")


def test_categories(tmp_path: Path) -> None:
    categories = {str(i): "units" if i < 10 else "grammar" for i in range(20)}
    one = save_run(tmp_path / "one", {str(i): 50 for i in range(20)}, categories=categories)
    two = save_run(tmp_path / "two", {str(i): 50 + (10 if i < 10 else 0) for i in range(20)}, categories=categories)
    grammar, units = compare_runs([one, two]).categories
    assert (grammar.name, grammar.n, grammar.means) == ("grammar", 10, [50.0, 50.0])
    assert units.means == [50.0, 60.0]
    lines = str(compare_runs([one, two])).splitlines()
    assert "by category   n     1     2  2 - 1    95 % interval" in lines
    assert "units        10  50.0  60.0  +10.0  +10.0 to +10.0*" in lines
    assert "* the interval of the difference from 1 excludes 0; not corrected for 2 rows" in lines
    three = str(compare_runs([one, two, one])).splitlines()
    assert "units        10  60.0*  50.0   50.0" in three


def test_reference_metrics_of_both(tmp_path: Path) -> None:
    runs = [save_run(tmp_path / name, {str(i): 50 for i in range(3)}) for name in ("one", "two")]
    assert compare_runs(runs).metrics == []
    for run, f1 in zip(runs, (0.25, 0.5), strict=True):
        examples = {str(i): {"token_f1": f1, "perplexity": 2.0} for i in range(2)}
        RunFolder(run).write_metrics("tuned", Metrics(examples=examples))
    found = {part.name: part for part in compare_runs(runs).metrics}
    assert found["token_f1"].n == 2
    assert found["token_f1"].means == [0.25, 0.5]
    difference = found["token_f1"].differences[1]
    assert difference is not None
    assert difference.mean == 0.25
    # A mean of the examples' perplexities is not the perplexity.
    assert list(found) == ["token_f1"]
    assert "token F1  2  0.25  0.50" in str(compare_runs(runs))


def test_mean_over_repeats(tmp_path: Path) -> None:
    one = save_run(
        tmp_path / "one",
        {"a": 10, "b": None, "c": 30},
        repeats=Repeats(count=2, seeds=[1, 2], means=[], n=[], failures=[]),
    )
    asked = {"judge": {**JUDGE, "options": {**JUDGE["options"], "seed": 2}}, "rubric_sha256": "abc", "repeat": 2}
    second = [judgment(name, score, **asked) for name, score in [("a", 20), ("b", 7), ("c", None)]]
    append_rows(one / "judgments.jsonl", second)
    run = load_run(one)
    assert (run.known.to_dict(), run.repeats) == ({"a": 15.0, "b": 7.0, "c": 30.0}, 2)
    other = save_run(tmp_path / "other", {"a": 10, "b": 5, "c": 30})
    (note,) = [note for note in compare_runs([one, other]).notes if "a different number of times" in note]
    assert note == f"The runs were judged a different number of times (`{one}` 2, `{other}` 1)."


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"judge": {**JUDGE, "model": "phi3"}}, "`judge.model`: llama3:8b (low); phi3 (other)"),
        ({"judge": {**JUDGE, "digest": "9"}}, "`judge.digest`: 365c0bd3c000 (low); 9 (other)"),
        ({"judge": {**JUDGE, "adapter": "mine"}}, "`judge.adapter`: None (low); mine (other)"),
        (
            {"judge": {**JUDGE, "options": {"temperature": 1, "seed": 1}}},
            "`judge.options`: temperature 0 (low); temperature 1 (other)",
        ),
        ({"rubric_sha256": "def"}, "`rubric (SHA-256)`: abc (low); def (other)"),
    ],
)
def test_runs_judged_differently_are_refused(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(Path("other"), {str(i): i for i in range(12)}, **change)
    with pytest.raises(DataError) as caught:
        compare_runs(["low", "other"])
    assert caught.value.problems == [fault]
    assert "add `--force` to compare them anyway, with a label." in str(caught.value)
    forced = compare_runs(["low", "other"], force=True)
    assert str(forced).startswith("NOT COMPARABLE: judged differently, compared with `--force`. `")
    assert (forced.to_dict()["alike"], forced.judging_differences) == (False, [fault])


def test_other_example_behind_an_id(tmp_path: Path, pair: list[Path]) -> None:
    other = save_run(tmp_path / "other", {str(i): i for i in range(12)})
    rows = [response(str(i), instruction=f"Another task {i}.") for i in range(12)]
    write_rows(RunFolder(other).responses, rows)
    with pytest.raises(DataError, match=r"have different data: 12 of 12 ids refer to different examples"):
        compare_runs([pair[0], other])


def test_no_overlap(tmp_path: Path) -> None:
    runs = [save_run(tmp_path / name, {name: 5, f"{name}2": None}) for name in ("a", "b")]
    with pytest.raises(DataError) as caught:
        compare_runs(runs)
    assert str(caught.value).startswith("There is no example with a score in all runs")
    assert caught.value.problems[0] == f"`{runs[0]}`: 1 of 2 examples have a score (`a`, …)"


def test_unfinished_judging(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", {"a": 5, "b": 6})
    RunFolder(run).scores.unlink()
    assert load_run(run).known.to_dict() == {"a": 5.0, "b": 6.0}
    write_rows(RunFolder(run).judgments, [judgment("a", 5, judge=JUDGE)])
    with pytest.raises(DataError, match=r"is only partly judged \(1 of 2 answers\)"):
        load_run(run)


def test_the_last_judge_in_a_file_counts(tmp_path: Path) -> None:
    rows = [judgment(m, 5, judge={**JUDGE, "model": m}) for m in ("x", "y")]
    write_rows(tmp_path / "other.jsonl", rows)
    run = load_run(tmp_path / "other.jsonl")
    assert (run.judge.model, run.known.to_dict()) == ("y", {"y": 5.0})


def test_numbers_join_by_order(tmp_path: Path, pair: list[Path]) -> None:
    comparison = compare_runs([[1, 2, None, 4], [3, 2, 5, 4]])
    assert (comparison.n, comparison.num_dropped, comparison.keyed) == (3, 1, False)
    assert [row.name for row in comparison.rows] == ["scores 1", "scores 2"]
    mixed = compare_runs([pair[0], [7] * 13])
    assert (mixed.n, mixed.keyed) == (13, False)
    with pytest.raises(DataError) as caught:
        compare_runs([pair[0], [7] * 12])
    assert caught.value.problems == [f"`{pair[0]}`: 13", "`scores 2`: 12"]


def test_many_long_names_fit(tmp_path: Path) -> None:
    runs = [
        save_run(
            tmp_path / f"{'long' * 12}-{i}", {str(k): 100 for k in range(20)}, categories={"1": "a" * 90, "2": "b"}
        )
        for i in range(12)
    ]
    text = str(compare_runs(runs))
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 13
    assert max(map(len, table)) <= 100
    assert table[1].split()[1].startswith("…")
    assert "by category: 2 rows for 12 runs do not fit; use `--json` to see them." in text


def test_command_prints_json_and_draws(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plots" / "runs.png"
    assert main(["compare", *map(str, pair), "--json", "--plot", str(plot)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["mean"] for row in values["rows"]] == [25.5, 41.0]
    assert values["rows"][1]["difference"]["is_shown"] is True
    assert (values["rows"][1]["coverage"], values["alike"]) == (12 / 13, True)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{good}"], "A comparison needs at least two runs"),
        (["{good}", "{good}", "--plot", "{good}/plot.png"], "/plot.png` cannot be read or written: File exists."),
        (["{good}", "{folder}"], "is a folder without `judgments.jsonl`"),
        (["{good}", "nowhere"], "`nowhere` cannot be read"),
        (["{good}", "{high}"], "1 score(s) outside 0 to 100; the first is 101."),
        (["{good}", "{summary}"], "`judge` is {}, not a number"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    good = tmp_path / "good.json"
    good.write_text("[1, 2]")
    high, summary = tmp_path / "high.json", tmp_path / "scores.json"
    high.write_text("[1, 101]")
    summary.write_text('{"mean": 5, "judge": {}}')
    filled = [word.format(good=good, folder=tmp_path, high=high, summary=summary) for word in arguments]
    assert main(["compare", *filled]) == 1
    printed = capsys.readouterr()
    assert (printed.out, text in printed.err) == ("", True)


def test_plot_colours_what_is_shown(pair: list[Path], tmp_path: Path) -> None:
    alike = save_run(tmp_path / "alike", {str(i): 20 + i + (1 if i % 2 else -1) for i in range(12)})
    means, differences = draw_comparison_plot(compare_runs([*pair, alike]), title="$judge_1$").axes
    assert sorted(label.get_text()[-4:] for label in means.get_yticklabels()) == ["/low", "high", "like"]
    dots = [line for line in differences.lines if line.get_marker() == "o"]
    assert [round(float(dot.get_xdata()[0]), 1) for dot in dots] == [15.5, 0.0]
    assert [dot.get_color() for dot in dots] == [COLORS["tuned"], COLORS["untuned"]]
    assert [text.get_text().strip() for text in differences.texts] == ["baseline"]
