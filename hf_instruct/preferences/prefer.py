"""Pairs from a finished run: from its own answers to training prompts, references, rewritten references and votes.

Each method returns the answers to a prompt with their scores; `choose_pair` chooses the best and the worst.
"""

import dataclasses
import functools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from os.path import normpath
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment, GenerateSection, build_experiment
from hf_instruct.console import pluralize
from hf_instruct.errors import ConfigError, DataError, did_you_mean, quote_names
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.metrics import METRICS
from hf_instruct.evaluation.pairwise import to_file_name
from hf_instruct.evaluation.responses import Pair, join_responses, load_responses
from hf_instruct.evaluation.scores import short_name
from hf_instruct.evaluation.stage import judge_sets, load_judge_settings
from hf_instruct.evaluation.verdict_table import PERSON
from hf_instruct.generation.answers import answer_examples, answer_to_file
from hf_instruct.generation.stage import generation_fields, load_model_of_run
from hf_instruct.generation.strategies import STRATEGY_FIELDS, build_generation_settings, find_strategy
from hf_instruct.preferences.manners import POLITE, rewrite
from hf_instruct.preferences.pairs import (
    REFERENCES,
    SPLITS,
    Candidate,
    choose_pair,
    describe_pairs,
    leave_out_tested,
    list_counts,
    reference_candidates,
)
from hf_instruct.prompts import CHAT, PromptFormat, build_prompt_messages
from hf_instruct.records import Example, read_rows, write_rows
from hf_instruct.run_folder import RunFolder, split_model
from hf_instruct.schema import TUNED, JudgeIdentity, PairRow, Preference, Response

JUDGE, MANNERS = "judge", "manners"
# A tenth of each scale: close answers teach little, and small differences in a judge's scores are mostly noise.
_MIN_GAPS = {"exact_match": 0.1, "token_f1": 0.1, "rouge_l": 0.1, "chrf": 10.0, JUDGE: 10.0}
_WAYS = (REFERENCES, *_MIN_GAPS, MANNERS)
_TEMPERATURE = 0.8
_DECIMALS = 4

Ranked = tuple[list[tuple[Example, list[Candidate]]], dict[str, Any]]
"""Examples with their answers, and the fields of `PairRow` that say who scored the answers."""


@dataclasses.dataclass(frozen=True)
class PairSet:
    """Pairs made from a run.

    Attributes:
        pairs: The pairs, in the order of the prompts.
        left_out: How many answers and prompts were left out, by reason.
        path: The file of the pairs.
    """

    pairs: list[PairRow]
    left_out: dict[str, int]
    path: Path

    def __str__(self) -> str:
        counts = Counter(pair.split for pair in self.pairs)
        text = f"{pluralize(len(self.pairs), 'pair')} ({', '.join(f'{n} {split}' for split, n in counts.items())})"
        gaps = [pair.score_chosen - (pair.score_rejected or 0) for pair in self.pairs if pair.score_chosen is not None]
        if gaps:
            text += f"; mean gap {statistics.fmean(gaps):.3g} ({self.pairs[0].origin})"
        answers = [(_read_text(pair.chosen), _read_text(pair.rejected)) for pair in self.pairs]
        return f"{text}; {describe_pairs(answers, self.left_out)}"


def build_preferences(
    run: RunFolder | str | Path,
    *,
    by: str = REFERENCES,
    samples: int = 4,
    min_gap: float | None = None,
    generate: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    options: JudgeOptions | None = None,
    out: str | Path | None = None,
) -> PairSet:
    """Write and return pairs of a better and a worse answer to a run's training and validation prompts.

    Answers, judgments and rewritten references are saved in the run's `pairs/` as they arrive, and reused by later
    calls. Prompts that are in the test split, or near-duplicates of a test prompt, are left out.

    Args:
        run: A run with a tuned model.
        by: `references`: each reference against the model's own answer. `exact_match`, `token_f1`, `rouge_l`, `chrf` or
            `judge`: the best of several sampled answers against the worst. `manners`: each reference against a more or
            less polite version written by the judge model. Or a file of votes, or of a judge's pairwise preferences,
            on answers to prompts outside the test split.
        samples: Answers to sample for each prompt.
        min_gap: Smallest difference of the two scores; by default a tenth of the scale.
        generate: Fields of the `generate` section that replace the run's own; the strategy is `sample` at temperature
            0.8. With `limit`, only the first prompts of each split are used.
        judge: Fields of the `judge` section that replace the run's own.
        options: Options of judging.
        out: File to write; by default `pairs/<by>.jsonl` in the run, for votes `pairs/from-<name of their file>.jsonl`.

    Raises:
        ConfigError: A setting is wrong.
        DataError: No pair is left, or answers were generated again after the vote.
        RunError: The run has no tuned model, or another process is working on it.
        JudgeError: Judging cannot continue, or the judge failed its check and `options.refuse_failed` is set.
    """
    run = RunFolder.of(run)
    experiment = run.load_experiment()
    _check_arguments(by, samples, min_gap)
    sections = {"generate": _resolve_generation(experiment.generate, by, generate or {})}
    if by in (JUDGE, MANNERS):
        sections["judge"] = {**load_judge_settings(run, judge or {}), "repeats": 1}
    resolved = build_experiment(sections, where="the settings of pairs")
    experiment = experiment.model_copy(update={"generate": resolved.generate, "judge": resolved.judge})
    path = Path(out) if out else run.pairs / f"{by if by in _WAYS else f'from-{Path(by).stem}'}.jsonl"
    if path.resolve() == Path(by).resolve():
        raise ConfigError(f"`--out` is `{path}`, the file that the pairs are made from; name another.")
    left_out: Counter[str] = Counter()
    with run.locked():
        prompts = {split: run.read_split(split) for split in SPLITS}
        if by in _WAYS:
            first = [example for listed in prompts.values() for example in listed[: experiment.generate.limit]]
            untested = leave_out_tested(run, first, left_out)
            how = by, samples, options or JudgeOptions()
            ranked, who = _rank(run, experiment, untested, *how) if untested else ([], {})
        else:
            ranked, who = _read_votes(Path(by), list(chain(*prompts.values())))
            kept = {example.id for example in leave_out_tested(run, [example for example, _ in ranked], left_out)}
            ranked = [(example, candidates) for example, candidates in ranked if example.id in kept]
        prompt_format = run.load_prompt_format(experiment.data.prompt_format)
        split_of = {example.id: split for split, listed in prompts.items() for example in listed}
        gap = _MIN_GAPS.get(by, 0.0) if min_gap is None else min_gap
        rows = []
        for example, candidates in ranked:
            if pair := choose_pair(candidates, left_out, min_gap=gap):
                fields = {"split": split_of.get(example.id, "train"), "origin": by, **who}
                if by not in (REFERENCES, MANNERS):
                    fields |= {"score_chosen": pair[0].score, "score_rejected": pair[1].score}
                rows.append(_build_row(example, *pair, prompt_format).model_copy(update=fields))
        if not rows:
            raise DataError(f"There is no pair to learn from; {list_counts(left_out)}.{_advise(by)}")
        write_rows(path, rows)
    return PairSet(rows, dict(+left_out), path)


def _check_arguments(by: str, samples: int, min_gap: float | None) -> None:
    if by not in _WAYS and not Path(by).is_file():
        raise ConfigError(
            f"`--by` is `{by}`.{did_you_mean(by, _WAYS)} Choose from {quote_names(_WAYS)}, or a file of votes or of a "
            "judge's preferences."
        )
    if samples < 2:
        raise ConfigError(f"`--samples` is {samples}; it takes at least 2 answers to make a pair.")
    if min_gap is not None and not min_gap >= 0:
        raise ConfigError(f"`--min-gap` is {min_gap}; it should be 0 or more.")


def _resolve_generation(stored: GenerateSection, by: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `generate` section for the answers: the run's own, except for the decoding strategy."""
    kept = {name: value for name, value in stored.model_dump().items() if name not in STRATEGY_FIELDS}
    strategy, more = ("greedy", {}) if by == REFERENCES else ("sample", {"temperature": _TEMPERATURE})
    return {**kept, "limit": None, **build_generation_settings(strategy, **{**more, **given})}


def _rank(
    run: RunFolder, experiment: Experiment, examples: list[Example], by: str, samples: int, options: JudgeOptions
) -> Ranked:
    """Return the answers to examples with their scores; for references and manners, 1 for the better one and 0."""
    if by == MANNERS:
        rewrites = rewrite(examples, experiment.judge, path=run.pairs / "rewrites.jsonl", options=options)
        ranked = []
        for example, row in zip(examples, rewrites, strict=True):
            score = None if row.text is None else float(row.manner == POLITE)
            ranked.append((example, [Candidate(example.output, 1 - (score or 0)), Candidate(row.text or "", score)]))
        return ranked, _describe_judge(rewrites[0].judge)
    names = ["greedy"] if by == REFERENCES else [f"sample-{number}" for number in range(1, samples + 1)]
    folder = run.pairs / _name_settings(experiment.generate)
    sets = _answer(run, experiment, examples, {name: folder / f"{name}.jsonl" for name in names})
    if by == REFERENCES:
        pairs = zip(examples, sets["greedy"], strict=True)
        return [(example, reference_candidates(example, row.response)) for example, row in pairs], {}
    who: dict[str, Any] = {}
    if by == JUDGE:
        named = {name: [row.model_copy(update={"model": name}) for row in rows] for name, rows in sets.items()}
        judged = judge_sets(named, RunFolder(folder), experiment.judge, options=options)
        scores = [[row.score for row in result.judgments] for result in judged.values()]
        who = {**_describe_judge(judged[names[0]].scores.judge), "rubric": experiment.judge.rubric}
    else:
        measure: Any = METRICS[by].function
        scores = [[round(measure(row.response, row.output), _DECIMALS) for row in rows] for rows in sets.values()]
    ranked = []
    for example, rows, given in zip(examples, zip(*sets.values(), strict=True), zip(*scores, strict=True), strict=True):
        scored = enumerate(zip(rows, given, strict=True), start=1)
        ranked.append((example, [Candidate(row.response, score, number) for number, (row, score) in scored]))
    return ranked, who


def _answer(
    run: RunFolder, experiment: Experiment, examples: list[Example], files: Mapping[str, Path]
) -> dict[str, list[Response]]:
    """Return sets of the tuned model's answers to examples, by name; each set is saved in a file.

    A sampled answer depends only on the seed, the example's id and the name of the set.
    """
    section = experiment.generate
    # Loaded only if an answer is missing.
    load = functools.cache(lambda: load_model_of_run(run, experiment, TUNED))

    def answer(waiting: list[Example], keep: Callable[[list[Response]], None], *, name: str) -> None:
        answer_examples(
            *load(),
            waiting,
            prompt_format=run.load_prompt_format(experiment.data.prompt_format),
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            on_batch=keep,
            seed=f"{section.seed}/{name}",
            **generation_fields(section),
        )

    return {
        name: answer_to_file(path, examples, functools.partial(answer, name=name), title=f"Answering, {name}")
        for name, path in files.items()
    }


def _name_settings(section: GenerateSection) -> str:
    """Return a folder name for the settings of answers, so that answers with different settings are kept apart."""
    usual = {**find_strategy("sample" if section.do_sample else "greedy").settings, "temperature": None}
    usual["dtype"] = GenerateSection.model_fields["dtype"].default
    values = {**generation_fields(section), **section.model_dump(include={"max_new_tokens", "dtype"})}
    values |= {"seed": section.seed} if section.do_sample else {}
    shown = {name: value for name, value in values.items() if value is not None and value != usual.get(name)}
    return to_file_name("_".join(f"{name}-{shown[name]}" for name in sorted(shown)))


def _read_votes(file: Path, known: Sequence[Example]) -> Ranked:
    """Return the answers that people or a judge compared, each with its share of the votes.

    Args:
        file: `Preference` rows.
        known: The run's examples; an example that is not among them is built from the row of its answer.

    Raises:
        DataError: The file contains something else, or an answer is no longer the one that was shown.
    """
    by_id = {example.id: example for example in known}
    joined: dict[tuple[str, str], dict[str, Pair]] = {}
    shares: dict[tuple[str, frozenset[str]], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    examples, judges = {}, {}
    for row in read_rows(file, Preference):
        pair = _find_pair(file, row, joined)
        if row.is_identical or row.score is None:
            continue
        key = row.id, frozenset(map(normpath, (row.first, row.second)))
        for text, score in ((pair.first, row.score), (pair.second, 1 - row.score)):
            shares[key][text].append(score)
        fields = pair.example.model_dump(include={"id", "instruction", "input", "output", "category"})
        example = by_id.get(row.id)
        is_same = example and (example.format_task(), example.input) == (fields["instruction"], fields["input"])
        examples[key] = example if example and is_same else Example(**fields)
        judges[row.judge.model] = row
    if not shares:
        raise DataError(f"`{file}` has no preference between two different answers.")
    ranked = [
        [Candidate(text, statistics.fmean(scores)) for text, scores in by_text.items()] for by_text in shares.values()
    ]
    last = next(reversed(judges.values()))
    who = _describe_judge(last.judge) if len(judges) == 1 else {"judge": pluralize(len(judges), "judge")}
    if last.judge.backend == PERSON:
        # No names of people in a file that may be published.
        who = {"judge": pluralize(len(judges), "voter")}
    return list(zip(examples.values(), ranked, strict=True)), {**who, "origin": last.rubric}


def _find_pair(file: Path, row: Preference, joined: dict[tuple[str, str], dict[str, Pair]]) -> Pair:
    """Return the two answers that a preference is about; `joined` caches the pairs by the names of the sets."""
    names = normpath(row.first), normpath(row.second)
    if names not in joined:
        if absent := [name for name in names if not split_model(Path(name))[0].exists()]:
            raise DataError(
                f"`{file}` is about the answers in `{absent[0]}`, which does not exist from here. Run the command in "
                "the folder where people voted, or the judge was asked."
            )
        sets = [load_responses(Path(name)) for name in names]
        joined[names] = {pair.id: pair for pair in join_responses(sets[0], sets[1], names).pairs}
    pair = joined[names].get(row.id)
    if pair is None or (len(pair.first), len(pair.second)) != (row.first_length, row.second_length):
        raise DataError(
            f"`{file}` has preferences on other answers than those of `{names[0]}` and `{names[1]}` now (example "
            f"`{row.id}`): they were generated again since. Vote, or judge, again."
        )
    return pair


def _describe_judge(judge: JudgeIdentity) -> dict[str, Any]:
    return {"judge": short_name(judge.model), "digest": judge.digest}


def _build_row(example: Example, best: Candidate, worst: Candidate, prompt_format: PromptFormat) -> PairRow:
    """Return a pair in TRL's format: conversational if the run's prompts are, otherwise text in the run's format."""
    values: dict[str, Any] = {
        "id": example.id,
        "category": example.category,
        "sample_chosen": best.sample,
        "sample_rejected": worst.sample,
        "origin": "",
    }
    if example.messages or (prompt_format.name == CHAT and example.prompt is None):
        turns = build_prompt_messages(example)
        chosen, rejected = ([{"role": "assistant", "content": answer.text}] for answer in (best, worst))
        return PairRow(**values, prompt=turns, chosen=chosen, rejected=rejected)
    if example.prompt is None:
        values |= {"instruction": example.instruction, "input": example.input, "output": example.output}
    prompt = example.prompt or prompt_format.format_prompt(example.instruction, example.input)
    return PairRow(**values, prompt=prompt, chosen=best.text, rejected=worst.text)


def _read_text(answer: str | list[dict[str, str]]) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]


def _advise(by: str) -> str:
    if by in _MIN_GAPS:
        return " Ask for a smaller gap by `--min-gap`, or sample more answers (`--samples`) at a higher temperature."
    return "" if by in _WAYS else " Vote on answers to other prompts, such as two of the sample files in its `pairs/`."
