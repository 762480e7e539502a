"""`hf-instruct prefer`: pairs of sampled answers, of references, of rewritings and of votes."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import rows
import tiny_models
from fake_ollama import Answer, FakeOllama
from launching import BIN, call, kill_when, num_lines

from hf_instruct.cli.main import main
from hf_instruct.config import build_experiment
from hf_instruct.data.sources import read_examples
from hf_instruct.errors import InstructError
from hf_instruct.evaluation.text_metrics import chrf
from hf_instruct.pipeline import run as run_experiment
from hf_instruct.preferences.pairs import load_pairs
from hf_instruct.preferences.prefer import build_preferences
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import PairRow, Preference, Response, Rewrite
from hf_instruct.training.dpo import tokenize_pairs

pytestmark = pytest.mark.usefixtures("cache_home")
FOUR_TOKENS = {"max_new_tokens": 4}


def make_run(path: Path, model: Path, examples: list[Example], **data: Any) -> RunFolder:
    """Return a run as training leaves it: 10 examples to train on, two of the test split and one to validate with."""
    run = RunFolder(path)
    for name, part in (("train", examples[:10]), ("test", examples[10:12]), ("validation", examples[12:13])):
        write_rows(run.split(name), part)
    run.model.symlink_to(model)
    values = {"data": data, "model": {"name": str(model)}, "generate": FOUR_TOKENS}
    run.save_experiment(build_experiment(values, where="here", deep=False))
    return run


@pytest.fixture(scope="module")
def examples(sample_file: Path) -> list[Example]:
    return read_examples(sample_file, limit=13)


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path, examples: list[Example]) -> RunFolder:
    return make_run(tmp_path / "run", tiny_gpt2, examples)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Path, examples: list[Example]) -> RunFolder:
    """A run with three answers to each prompt, of which one is wrong by design in what tests look at."""
    run = make_run(tmp_path_factory.mktemp("runs") / "sampled", tiny_gpt2, examples)
    build_preferences(run, by="chrf", samples=3, min_gap=0)
    return run


@pytest.fixture
def copied(sampled: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(sampled.path, tmp_path / "run", symlinks=True))


def read_samples(run: RunFolder) -> dict[int, dict[str, Response]]:
    files = run.pairs.glob("*/sample-*.jsonl")
    return {int(file.stem[7:]): {row.id: row for row in read_rows(file, Response)} for file in files}


def rewrite_samples(run: RunFolder, texts: dict[int, str]) -> None:
    """Replace the answers of samples by texts."""
    for file in run.pairs.glob("*/sample-*.jsonl"):
        text = texts[int(file.stem[7:])]
        write_rows(file, [row.model_copy(update={"response": text}) for row in read_rows(file, Response)])


def test_the_best_of_the_sampled_answers_is_preferred_to_the_worst(sampled: RunFolder) -> None:
    samples = read_samples(sampled)
    pairs = read_rows(sampled.pairs / "chrf.jsonl", PairRow)
    assert len(pairs) >= 9
    assert Counter(pair.split for pair in pairs)["validation"] <= 1
    for pair in pairs:
        scores = {n: chrf(found[pair.id].response, found[pair.id].output) for n, found in samples.items()}
        assert (pair.score_chosen, pair.score_rejected) == (
            pytest.approx(max(scores.values()), abs=1e-4),
            pytest.approx(min(scores.values()), abs=1e-4),
        )
        assert pair.chosen == samples[pair.sample_chosen or 0][pair.id].response
        assert pair.rejected == samples[pair.sample_rejected or 0][pair.id].response
        assert pair.origin == "chrf"
    tested = {example.id for example in sampled.read_split("test")}
    assert not tested & {pair.id for pair in pairs}


def test_an_answer_depends_on_seed_id_and_number_alone(copied: RunFolder) -> None:
    before = read_samples(copied)
    # Cut off in the second file, within a row, and asked for in other batches afterwards.
    (folder,) = copied.pairs.glob("*/")
    second = folder / "sample-2.jsonl"
    second.write_bytes(second.read_bytes()[:1500])
    (folder / "sample-3.jsonl").unlink()
    kept = before[1]
    build_preferences(copied, by="chrf", samples=4, min_gap=0, generate={"batch_size": 3})
    after = read_samples(copied)
    assert {number: after[number] for number in (1, 2, 3)} == before
    assert len({row.response for row in after[4].values()} | {row.response for row in kept.values()}) > 15
    build_preferences(copied, by="chrf", samples=2, min_gap=0, generate={"seed": 7})
    other = read_rows(next(copied.pairs.glob("*seed-7*")) / "sample-1.jsonl", Response)
    assert all(row.response != kept[row.id].response for row in other)


def test_answers_that_tell_nothing_apart_are_left_out_and_counted(copied: RunFolder) -> None:
    rewrite_samples(copied, {1: "Same.", 2: "Same. ", 3: ""})
    with pytest.raises(InstructError, match="duplicate answers 11, empty answers 11, prompts with fewer than two"):
        build_preferences(copied, by="chrf", samples=3)
    rewrite_samples(copied, {1: "Qqq.", 2: "Xxx.", 3: "Zzz."})
    with pytest.raises(InstructError, match="prompts with too small a gap 11"):
        build_preferences(copied, by="rouge_l", samples=3)


@pytest.mark.slow
def test_a_smaller_gap_than_asked_for_makes_no_pair(copied: RunFolder, server: FakeOllama) -> None:
    server.reply = lambda body: Answer(json.dumps({"score": 40 + 10 * ("Best" in body["messages"][-1]["content"])}))
    rewrite_samples(copied, {1: "Best.", 2: "Other.", 3: "Third."})
    judge = {"backend": "ollama", "base_url": server.url, "check": False}
    found = build_preferences(copied, by="judge", samples=3, min_gap=10, judge=judge)
    assert {(pair.chosen, pair.score_chosen, pair.score_rejected) for pair in found.pairs} == {("Best.", 50, 40)}
    assert {(pair.judge, pair.digest, pair.rubric) for pair in found.pairs} == {
        ("llama3", "365c0bd3c000a25d28ddbf732fe1c6add414de7275464c4e4d1c3b5fcb5d8ad1", "course")
    }
    with pytest.raises(InstructError, match="too small a gap"):
        build_preferences(copied, by="judge", samples=3, min_gap=11, judge=judge)


@pytest.mark.slow
def test_a_judge_that_failed_its_check_is_refused_without_force(
    copied: RunFolder, server: FakeOllama, capsys: pytest.CaptureFixture[str]
) -> None:
    # It likes what is long, whether that is right or not.
    server.reply = lambda body: Answer(json.dumps({"score": len(body["messages"][-1]["content"]) % 100}))
    words = [
        "prefer",
        str(copied.path),
        "--by",
        "judge",
        "--samples",
        "3",
        "--judge",
        "ollama",
        "--base-url",
        server.url,
    ]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "hf-instruct: The judge failed its check on 11 examples" in " ".join(error.split())
    assert not list(copied.pairs.glob("*/judgments.jsonl"))
    assert main([*words, "--force", "--min-gap", "0"]) == 0
    assert "mean gap" in capsys.readouterr().out


def test_references_are_preferred_to_the_models_own_answers(run: RunFolder) -> None:
    found = build_preferences(run)
    own = {row.id: row.response for row in read_rows(run.pairs / "max_new_tokens-4" / "greedy.jsonl", Response)}
    by_id = {example.id: example for name in ("train", "validation") for example in run.read_split(name)}
    assert [(pair.id, pair.chosen, pair.rejected) for pair in found.pairs] == [
        (id, example.output, own[id]) for id, example in by_id.items()
    ]
    assert {(pair.origin, pair.score_chosen, pair.sample_chosen) for pair in found.pairs} == {
        ("references", None, None)
    }
    assert str(found).startswith("11 pairs (10 train, 1 validation); the chosen answer is the longer one in ")


def test_prompts_of_the_test_split_give_no_pair(run: RunFolder, examples: list[Example]) -> None:
    long = Example("near", "Explain in a few words why the sky looks blue at noon on a clear summer day.", "", "Air.")
    nearly = Example("nearly", f"{long.instruction[:-1]}!", "", "Air.")
    same = Example("same", examples[10].instruction, examples[10].input, "Another output.")
    write_rows(run.split("train"), [nearly, same, *examples[:8]])
    write_rows(run.split("test"), [examples[10], long])
    found = build_preferences(run, generate={"limit": 9})
    assert {pair.id for pair in found.pairs} == {example.id for example in [*examples[:7], examples[12]]}
    assert found.left_out == {"prompts in the test split": 1, "near-duplicates of test prompts": 1}


def cast(
    run: RunFolder, scores: dict[str, list[float | None]], names: tuple[str, str] = ("sample-1", "sample-2")
) -> Path:
    """Return a file of votes on two samples, by voters of their own."""
    (folder,) = run.pairs.glob("*seed*")
    files = [folder / f"{name}.jsonl" for name in names]
    texts = [{row.id: row.response for row in read_rows(file, Response)} for file in files]
    votes = [
        rows.preference(
            id,
            score,
            **dict(zip(("first", "second"), map(str, files), strict=True)),
            first_length=len(texts[0][id]),
            second_length=len(texts[1][id]),
            judge={"backend": "person", "model": f"voter {number}"},
        )
        for id, given in scores.items()
        for number, score in enumerate(given)
    ]
    path = run.path / "votes.jsonl"
    write_rows(path, [*(read_rows(path, Preference) if path.exists() else []), *votes])
    return path


def test_what_most_people_prefer_is_chosen(copied: RunFolder, examples: list[Example]) -> None:
    one, two, three, four = (example.id for example in examples[:4])
    cast(copied, {one: [1.0, 1.0, 0.0], two: [0.0], three: [0.5], four: [None]})
    # The same two answers, named the other way round.
    path = cast(copied, {one: [0.0]}, names=("sample-2", "sample-1"))
    found = build_preferences(copied, by=str(path))
    samples = read_samples(copied)
    assert [(pair.id, pair.chosen, pair.rejected, pair.score_chosen) for pair in found.pairs] == [
        (one, samples[1][one].response, samples[2][one].response, 0.75),
        (two, samples[2][two].response, samples[1][two].response, 1.0),
    ]
    assert {(pair.origin, pair.judge, pair.split) for pair in found.pairs} == {("vote", "3 voters", "train")}
    assert found.path == copied.pairs / "from-votes.jsonl"
    with pytest.raises(InstructError, match="the file that the pairs are made from"):
        build_preferences(copied, by=str(path), out=path)
    assert "voter 1" not in found.path.read_text()


def test_votes_on_answers_that_changed_or_to_test_prompts_are_refused(
    copied: RunFolder, examples: list[Example]
) -> None:
    path = cast(copied, {examples[0].id: [1.0]})
    rewrite_samples(copied, {1: "Another answer.", 2: "Other", 3: "Third"})
    with pytest.raises(InstructError, match="generated again since"):
        build_preferences(copied, by=str(path))
    path.unlink()
    write_rows(path, [rows.preference(examples[0].id, 1.0)])
    with pytest.raises(InstructError, match="is about the answers in `runs/a`, which does not exist from here"):
        build_preferences(copied, by=str(path))
    path.unlink()
    path = cast(copied, {examples[0].id: [1.0]})
    write_rows(copied.split("test"), examples[:1])
    with pytest.raises(InstructError, match=r"no pair to learn from; left out: prompts in the test split 1\. Vote on"):
        build_preferences(copied, by=str(path))


def test_references_are_rewritten_in_two_manners(run: RunFolder, server: FakeOllama) -> None:
    asked: list[str] = []

    def reply(body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        if "Rewrite" in text:
            asked.append(text)
        if len(asked) == 1:
            return Answer("I would rather not.")
        return Answer('Sure!\n{"answer": "%s"}' % ("Gladly." if "more polite" in text else "Whatever."))

    server.reply = reply
    judge = {"backend": "openai", "base_url": f"{server.url}/v1", "concurrency": 1}
    found = build_preferences(run, by="manners", judge=judge)
    rewrites = {row.id: row for row in read_rows(run.pairs / "rewrites.jsonl", Rewrite)}
    assert Counter(row.manner for row in rewrites.values()).keys() == {"polite", "impolite"}
    by_id = {example.id: example for name in ("train", "validation") for example in run.read_split(name)}
    for pair in found.pairs:
        reference, is_polite = by_id[pair.id].output, rewrites[pair.id].manner == "polite"
        assert (pair.chosen, pair.rejected) == (("Gladly.", reference) if is_polite else (reference, "Whatever."))
        assert (pair.judge, pair.origin, pair.score_chosen) == ("llama3:latest", "manners", None)
    # Asked once more where the reply cannot be read.
    assert (len(asked), len(found.pairs)) == (12, 11)
    assert build_preferences(run, by="manners", judge=judge).pairs == found.pairs
    assert len(asked) == 12


def test_a_rewriting_that_fails_is_counted_and_an_equal_one_left_out(run: RunFolder, server: FakeOllama) -> None:
    first = run.read_split("train")[0].output
    server.reply = lambda body: Answer(
        json.dumps({"answer": first}) if first in body["messages"][-1]["content"] else '{"answer": ""}'
    )
    with pytest.raises(InstructError, match="answers without a score 10") as error:
        build_preferences(run, by="manners", judge={"backend": "ollama", "base_url": server.url})
    assert "duplicate answers 1" in str(error.value)
    with pytest.raises(InstructError, match="cannot rewrite text"):
        build_preferences(run, by="manners", judge={"backend": "local"})


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_the_file_is_read_as_it_is_by_dpo_and_in_trls_format(
    tmp_path: Path, tiny_gpt2: Path, examples: list[Example], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    folder = tmp_path / "model"
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE.replace("<|im_end|>", "{{ eos_token }}")
    for one in (model, tokenizer):
        one.save_pretrained(folder)
    run = make_run(tmp_path / "run", folder, examples, prompt_format=name)
    found = build_preferences(run)
    pairs = load_pairs(found.path)
    assert "columns not used" not in caplog.text
    prompt_format = PromptFormat.from_name(name)
    tokenized = tokenize_pairs(pairs, tokenizer, prompt_format, max_length=None)
    own = [example for split in ("train", "validation") for example in run.read_split(split)]
    assert tokenized["prompt_ids"][:] == prompt_format.encode_prompts(tokenizer, own)
    assert pairs["chosen"][:] == [example.output for example in own]
    for row, ids in zip(found.pairs, tokenized["prompt_ids"], strict=True):
        # As TRL makes them.
        if isinstance(row.prompt, str):
            assert tokenizer(row.prompt)["input_ids"] == ids
        else:
            assert [turn["role"] for turn in (*row.prompt, *row.chosen)] == ["user", "assistant"]
            assert tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True)["input_ids"] == ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "rouge"}, "`--by` is `rouge`. Did you mean `rouge_l`? Choose from `references`, "),
        ({"by": "chrf", "samples": 1}, "`--samples` is 1; it takes at least 2 answers"),
        ({"by": "chrf", "min_gap": -1.0}, "`--min-gap` is -1.0; it should be 0 or more"),
        ({"by": "chrf", "min_gap": float("nan")}, "`--min-gap` is nan"),
        ({"by": "chrf", "generate": {"temperature": 0.0}}, "`temperature` is 0.0; it must be a number from 0.01"),
        ({"generate": {"temperature": 0.5}}, "`temperature` is 0.5, which has no effect"),
        ({"generate": {"max_new_tokens": 1000}}, "do not fit into the model's 256 positions"),
        ({"by": "judge", "judge": {"backend": "human"}}, "`judge.backend` is 'human'"),
        ({"by": __file__}, "is not a Preference row"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(run: RunFolder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InstructError) as error:
        build_preferences(run, **arguments)
    assert message in str(error.value)


def test_a_run_without_a_model_is_refused_and_pairs_go_with_the_model(run: RunFolder) -> None:
    build_preferences(run)
    values = {"data": {"source": "everyday", "limit": 40}, "model": {"name": str(run.model.resolve())}}
    run.model.unlink()
    with pytest.raises(InstructError, match="has no tuned model yet"):
        build_preferences(run, by="chrf")
    run_experiment(values, run.path, stages=["data"], force=True)
    assert not run.pairs.exists()


@pytest.mark.slow
def test_pairs_are_trained_on(run: RunFolder, sample_file: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    data = {"source": str(sample_file), "limit": 60}
    values = {"data": data, "model": {"name": str(tiny_gpt2)}, "train": {**tiny_models.TINY_SETTINGS, "max_steps": 2}}
    tuned = run_experiment({**values, "generate": FOUR_TOKENS}, tmp_path / "sft", stages=["data", "train"])
    found = build_preferences(tuned, by="chrf", samples=3, min_gap=0)
    settings = {**tiny_models.TINY_SETTINGS, "num_train_epochs": 3, "eval_steps": 3}
    experiment = {
        "data": data,
        "model": {"name": str(tuned.model)},
        "dpo": settings,
        "preferences": {"source": str(found.path)},
    }
    trained = run_experiment(experiment, tmp_path / "dpo", stages=["data", "train"])
    kept = [json.loads(line) for line in trained.preferences.read_text().splitlines()]
    assert [(row["chosen"], row["split"]) for row in kept] == [(pair.chosen, pair.split) for pair in found.pairs]
    steps = rows.read_log(trained.path, "train")
    assert (steps[-1].reward_margin or 0) > 0.1


@pytest.mark.slow
def test_killed_while_sampling_and_judging_ends_like_unbroken(
    tmp_path: Path, tiny_gpt2: Path, examples: list[Example], server: FakeOllama
) -> None:
    server.latency_seconds = 0.05
    server.reply = lambda body: Answer(json.dumps({"score": sum(map(ord, body["messages"][-1]["content"])) % 101}))
    unbroken, broken = (make_run(tmp_path / name, tiny_gpt2, examples) for name in ("unbroken", "broken"))
    changes = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = ["--by", "judge", "--samples", "3", "--batch-size", "1", "--judge", "ollama", "--base-url", server.url]
    words += ["--judge.check", "false", "--min-gap", "0"]
    environments = [{**os.environ, **changes, "HF_INSTRUCT_CACHE": str(tmp_path / name)} for name in ("one", "two")]
    call([BIN / "hf-instruct", "prefer", unbroken.path, *words], environments[0])
    command = [BIN / "hf-instruct", "prefer", broken.path, *words]
    for pattern, lines in (("*/sample-1.jsonl", 3), ("*/sample-3.jsonl", 5), ("*/judgments.jsonl", 12)):
        kill_when(lambda p=pattern, n=lines: num_lines(*broken.pairs.glob(p)) >= n, command, environments[1])
        assert not (broken.pairs / "judge.jsonl").exists()
    call(command, environments[1])
    assert (broken.pairs / "judge.jsonl").read_bytes() == (unbroken.pairs / "judge.jsonl").read_bytes()
    assert len(server.chats) <= 2 * 33 + 8
