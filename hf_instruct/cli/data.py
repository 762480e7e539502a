"""`hf-instruct data`: check, show and describe a source of examples, without training."""

import argparse
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_instruct.cli.flags import FieldFlag, add_field_flags, add_plot_flag, collect_fields, natural, whole
from hf_instruct.console import align, format_json, pluralize, wrap

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_instruct.config import DataSection
    from hf_instruct.data.problems import Problem
    from hf_instruct.data.statistics import DataStatistics
    from hf_instruct.data.tokens import TokenCounter
    from hf_instruct.prompts import PromptFormat
    from hf_instruct.schema import Preflight

DESCRIPTION = """\
Check, show and describe a source of examples, without training.

SOURCE is `instruction-data` (the course's 1,100 examples), `everyday` (packaged), `alpaca`, a local .json, .jsonl,
.csv (also compressed: .gz, .bz2, .xz, .zst), .parquet or .arrow file, a folder of `Dataset.save_to_disk`, the id of a
dataset on the Hub (`owner/name`), or several of these: "[a.jsonl, b.csv]"."""

EPILOG = """\
examples:
  hf-instruct data check my-examples.jsonl
  hf-instruct data check support.csv --map instruction=question,output=answer
  hf-instruct data check my-examples.jsonl --model gpt2-medium --split grouped --strict
  hf-instruct data show instruction-data 50
  hf-instruct data stats everyday --tokenizer gpt2-medium --plot lengths.png"""

_MAX_CATEGORIES = 30
_SPLIT_FIELDS = ("split", "train_fraction", "test_fraction", "validation_fraction", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(title="actions", metavar="{check,show,stats}", required=True)
    check = _add_action(actions, "check", "list all problems, duplicates and leaks from train to test", _check)
    check.add_argument(
        "--max-length",
        type=natural,
        metavar="N",
        help="warn about rows with more tokens (default with `--model`: 1024, or the model's context)",
    )
    add_field_flags(check, "data", *_SPLIT_FIELDS, switches=["strict"])
    near = "minimum similarity of near-duplicates, above 0 and at most 1 (default: 0.9)"
    check.add_argument("--near", type=_similarity, metavar="COSINE", help=near)
    check.add_argument("--json", action="store_true", help="print what a run writes to `data/preflight.json` instead")
    show = _add_action(actions, "show", "print one example, as fields and as the text that the model sees", _show)
    show.add_argument(
        "number", nargs="?", type=whole, default=0, metavar="N", help="index of the example, from 0 (default: 0)"
    )
    stats = _add_action(actions, "stats", "count the examples and their lengths", _stats)
    add_plot_flag(stats, "plot histograms of the lengths")


def _add_action(actions: Any, name: str, help: str, handler: Any) -> Any:
    parser = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.set_defaults(
        handler=handler, sections=("data",), resume_hint="Nothing was changed; run the same command again."
    )
    parser.add_argument("source", metavar="SOURCE", help="a named source, a local file or a Hub dataset")
    ours = "the fields are instruction, input, output, category and id"
    parser.add_argument(
        "--map",
        action=FieldFlag,
        field="data.map",
        type=_parse_map,
        metavar="OURS=THEIRS,...",
        help=f"map other column names, as in `instruction=question,output=answer`; {ours}",
    )
    add_field_flags(parser, "data", "hub_config", "hub_split", "revision", "limit", "num_proc")
    parser.add_argument("--prompt-format", "--format", action=FieldFlag, field="data.prompt_format", metavar="NAME")
    model = "model whose tokenizer counts tokens: alias, Hub id or folder"
    parser.add_argument("--model", "--tokenizer", dest="tokenizer", metavar="MODEL", help=model)
    return parser


def _parse_map(text: str) -> dict[str, str]:
    """Return `a=b,c=d` as a mapping.

    >>> _parse_map("instruction=question,output=answer")
    {'instruction': 'question', 'output': 'answer'}
    """
    pairs: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise argparse.ArgumentTypeError(f"`{part}` is not OURS=THEIRS, as in `output=answer`")
        if ours in pairs:
            raise argparse.ArgumentTypeError(f"`{ours}` is given twice")
        pairs[ours] = theirs
    return pairs


def _similarity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number above 0 and at most 1, as in `0.9`")
    return value


def _load_settings(options: argparse.Namespace) -> "DataSection":
    from hf_instruct.config import load_experiment, parse_setting

    source = parse_setting("data.source", options.source)
    fields = {f"data.{name}": value for name, value in collect_fields(options)["data"].items()}
    return load_experiment(None, {"data.source": source, **fields}, deep=False).data


def _check(options: argparse.Namespace) -> None:
    from hf_instruct.data.findings import build_preflight, find_warnings, refuse_leaks
    from hf_instruct.data.problems import raise_problems
    from hf_instruct.data.sources import check_section
    from hf_instruct.errors import ConfigError

    if options.max_length and not options.tokenizer:
        raise ConfigError(
            f"`--max-length` {options.max_length} counts tokens, which needs a tokenizer; name the model to "
            "fine-tune with `--model`, as in `--model gpt2-medium`."
        )
    settings = _load_settings(options)
    checked = check_section(settings)
    examples, source = checked.examples, settings.source_name
    counter = _load_format(options, settings, examples)[1] if options.tokenizer else None
    if counter is not None:
        examples = counter.add_counts(examples, num_proc=settings.num_proc)
    if not options.json:
        for notice in checked.notices:
            print(notice)
        _print_warnings(source, find_warnings(examples, file=source, counter=counter))
        if checked.problems and checked.num_without_output:
            print(f"{pluralize(checked.num_without_output, 'row')} without an output")
    raise_problems(checked.problems)
    splits, unsplit = _split(options, settings, examples)
    preflight = build_preflight(
        splits,
        source=source,
        split=None if unsplit else settings.split,
        threshold=options.near,
        counter=counter,
        num_left_out=checked.num_without_output,
    )
    if options.json:
        # Only a run knows these two.
        print(format_json(preflight.model_dump(mode="json", exclude={"data_sha256", "prompt_format"})))
    else:
        _print_preflight(preflight, splits, unsplit)
    if settings.strict:
        rows = dict(zip(examples["id"][:], examples["row"][:], strict=True))
        names = {"source": source, "strict": "`--strict`", "remedy": "--split grouped"}
        refuse_leaks(splits, **names, name_row=rows.__getitem__)


def _split(
    options: argparse.Namespace, settings: "DataSection", examples: "Dataset"
) -> "tuple[Mapping[str, Dataset], str | None]":
    """Return the splits that a run would use, or all examples in one split and the reason if there are too few."""
    from hf_instruct.data.splits import split_dataset
    from hf_instruct.errors import DataError

    try:
        return split_dataset(examples, settings), None
    except DataError as error:
        if {f"data.{name}" for name in (*_SPLIT_FIELDS, "strict")} & {*options.overrides}:
            raise
        none = examples.select([])
        return {"train": examples, "test": none, "validation": none}, str(error)


def _print_preflight(preflight: "Preflight", splits: "Mapping[str, Dataset]", unsplit: str | None) -> None:
    from hf_instruct.data.findings import advise, format_near_duplicates, format_preflight

    total = preflight.examples["total"]
    print(
        f"{preflight.source}: {pluralize(total, 'example')} ({total - preflight.empty_inputs['total']:,} with an "
        f"input), no problems; {pluralize(preflight.repeated_prompts, 'repeated prompt')}"
    )
    print(f"\n{format_preflight(preflight)}")
    near = preflight.near_duplicates
    if unsplit:
        print(wrap(f"\nA run would stop here: {unsplit}"))
    else:
        about = ["instruction + input of test and validation compared with train, without repeats"]
        if near.sampled:
            about.append(f"{near.sampled} (`--near {near.threshold:g}` takes all)")
        pairs = format_near_duplicates(preflight, splits)
        method = f"{near.method}.{' The nearest:' if pairs else ''}"
        print(wrap(_printable("\n".join([f"\nNear-duplicates: {'; '.join([*about, method])}", *pairs]))))
    if preflight.tokens is None:
        print(
            wrap(
                "To see label tokens and rows that `max_length` truncates, name the model, as in `--model gpt2-medium`."
            )
        )
    if advice := advise(preflight):
        print(wrap(advice))


def _print_warnings(source: str, warnings: "list[Problem]") -> None:
    """Print warnings grouped by remedy."""
    from hf_instruct.data.problems import MAX_PRINTED

    for remedy in dict.fromkeys(warning.remedy for warning in warnings):
        alike = [warning for warning in warnings if warning.remedy == remedy]
        print(f"{pluralize(len(alike), 'warning')} in `{source}`:")
        for warning in alike[:MAX_PRINTED]:
            print(wrap(f"  - {warning.row} {warning.what}"))
        if len(alike) > MAX_PRINTED:
            print(f"  - and {len(alike) - MAX_PRINTED:,} more")
        print(wrap(f"  What to do: {remedy}."))


def _show(options: argparse.Namespace) -> None:
    from hf_instruct.data.sources import check_section, iterate_examples
    from hf_instruct.errors import DataError

    settings = _load_settings(options)
    examples = check_section(settings).require_valid()
    prompt_format, counter = _load_format(options, settings, examples)
    if options.number >= len(examples):
        raise DataError(
            f"`{options.source}` has no example {options.number:,}; it has {len(examples):,}, counted from 0 to "
            f"{len(examples) - 1:,}."
        )
    (example,) = iterate_examples(examples.select([options.number]))
    print(f"example {options.number:,} of {len(examples):,} in {options.source}, counted from 0")
    for name in ("id", "category", "instruction", "input", "output"):
        if (value := getattr(example, name)) is not None:
            print(f"{name + ':':<13}{_printable(value) or '(empty)'}")
    if counter is None:
        if example.messages:
            turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in example.messages[:-1])
            print(f"\n--- turns before; `--model` shows the prompt ---\n{_printable(turns)}")
        else:
            prompt = example.prompt or prompt_format.format_prompt(example.instruction, example.input)
            print(f"\n--- prompt ({prompt_format.name}) ---\n{_printable(prompt)}")
        print(f"--- completion, followed by the model's end-of-text token ---\n{_printable(example.output)}")
        return
    pieces = prompt_format.encode_examples(counter.tokenizer, [example], loss_on=settings.loss_on)[0]
    print()
    for number, ids in enumerate(pieces):
        title = "completion" if number % 2 else f"prompt ({prompt_format.name})"
        print(f"--- {title} ---\n{_printable(str(counter.tokenizer.decode(ids)))}")
    num_prompt, num_completion = (sum(map(len, pieces[start::2])) for start in (0, 1))
    print(f"\n{num_prompt} prompt tokens, {num_completion} completion tokens ({options.tokenizer})")


def _stats(options: argparse.Namespace) -> None:
    from hf_instruct.data.problems import shorten_text
    from hf_instruct.data.sources import check_section
    from hf_instruct.data.statistics import compute_statistics, plot_lengths

    settings = _load_settings(options)
    examples = check_section(settings).require_valid()
    prompt_format, counter = _load_format(options, settings, examples)
    encode = partial(prompt_format.encode_example, counter.tokenizer) if counter else None
    result = compute_statistics(examples, prompt_format=prompt_format, encode=encode)
    _print_statistics(options.source, result)
    if not options.tokenizer:
        print("\nTo see lengths in tokens, name the model, as in `--model gpt2-medium`.")
    if options.plot:
        plot_lengths(
            result, options.plot, title=f"{shorten_text(options.source, 80)}, {result.num_examples:,} examples"
        )
        print(f"\nHistogram: {options.plot}")


def _print_statistics(source: str, result: "DataStatistics") -> None:
    print(
        f"{source}: {pluralize(result.num_examples, 'example')}, {result.num_with_input:,} with an input, "
        f"{pluralize(result.num_repeated_prompts, 'repeated prompt')}\n"
    )
    table = [["length of", "in", "mean", "median", "95 %", "longest"]]
    for lengths in result.lengths:
        text, summary = "whole row" if lengths.text == "both" else lengths.text, lengths.summarize()
        mean, median, high, longest = summary.values()
        table.append([text, lengths.unit, f"{mean:,.1f}", f"{median:,g}", f"{high:,.0f}", f"{longest:,.0f}"])
    print("\n".join(align(table, right=range(2, 6))))
    if result.categories:
        counts = list(result.categories.items())[:_MAX_CATEGORIES]
        rows = [["category", "examples"], *([_printable(name), f"{count:,}"] for name, count in counts)]
        print("\n" + "\n".join(align(rows, right={1})))
        if (more := len(result.categories) - _MAX_CATEGORIES) > 0:
            print(f"and {pluralize(more, 'more category', 'more categories')}")


def _load_format(
    options: argparse.Namespace, settings: "DataSection", examples: "Dataset"
) -> "tuple[PromptFormat, TokenCounter | None]":
    """Return the prompt format that a run would use, and a counter of its tokens if a model is set."""
    from hf_instruct.data.examples import has_conversations
    from hf_instruct.data.tokens import load_counter
    from hf_instruct.errors import ConfigError
    from hf_instruct.library_fields import TRAIN_DEFAULTS
    from hf_instruct.prompt_checks import choose_format
    from hf_instruct.prompts import CHAT

    if settings.prompt_format == CHAT and not options.tokenizer:
        raise ConfigError(
            "The prompt format `chat` is the tokenizer's chat template; name the model with `--model`, as in `--model "
            "smollm2-135m`."
        )
    prompt_format = choose_format(settings.prompt_format, has_conversations=has_conversations(examples))
    if not options.tokenizer:
        return prompt_format, None
    training = {"max_length": getattr(options, "max_length", None) or TRAIN_DEFAULTS["max_length"]}
    fields: dict[str, Any] = {"prompt_format": prompt_format, "training": training, "loss_on": settings.loss_on}
    counter = load_counter(options.tokenizer, **fields)
    return counter.prompt_format, counter


def _printable(text: str) -> str:
    """Return a text without control characters, which could control the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match.group()):02x}", text)
