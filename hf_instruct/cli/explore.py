"""`hf-instruct explore`: how a model picks its words."""

import argparse
import dataclasses
import logging
import os
import textwrap
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_plot_flag, add_trust_flag, natural, whole
from hf_instruct.console import align, format_json, pluralize, text_width

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.exploring import NextTokens, Table

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Show how a model picks its words after a prompt: the probabilities of the next token and what top-k, top-p and
temperature make of them; the tree that beam search goes through; and the text that each strategy writes, with how much
of it repeats. The prompt is continued as it is, unless `--instruction` puts it into the prompt of a run."""

EPILOG = """\
examples:
  hf-instruct explore "I enjoy walking with my cute dog"
  hf-instruct explore "I enjoy walking with my cute dog" --plot next.png --top-k 5 --top-p 0.5 --temperature 0.7
  hf-instruct explore "Name a color." --model runs/my-run --instruction --beams 4 --depth 8
  hf-instruct explore "Once upon a time" --strategies greedy,beam --beams 0 --length 80
  hf-instruct explore "Once upon a time" --json | jq .next.tokens

strategies: greedy, beam, sample, top-k, top-p, min-p, typical, beam-sample; `none` writes no texts.
`hf-instruct generate --presets` says what each is and where it comes from."""

_LEGEND = (
    "repeats: share of four-token sequences that occurred earlier in the text (seq-rep-4). perplexity: how surprising "
    "the model finds its own text; low is likely, which is not the same as good."
)
_SAMPLING = ("temperature", "top_k", "top_p")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    from hf_instruct.generation.strategies import EXPLORED_STRATEGIES, EXPLORED_TOP_K, EXPLORED_TOP_P

    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="the text to continue")
    model_help = "run folder, alias, Hub id or local folder (default: smollm2-135m)"
    add("--model", default="smollm2-135m", metavar="RUN_OR_MODEL", help=model_help)
    add(
        "--instruction",
        action="store_true",
        help="ask it as an instruction: in the run's prompt format, else in the model's own chat format, else alpaca",
    )
    add("--top", type=natural, default=20, metavar="N", help="next tokens to list (default: 20)")
    add("--temperature", type=float, default=1.0, metavar="T", help="above 0 (default: 1)")
    add("--top-k", type=whole, default=EXPLORED_TOP_K, metavar="K", help=f"0 is off (default: {EXPLORED_TOP_K})")
    add("--top-p", type=float, default=EXPLORED_TOP_P, metavar="P", help=f"1 is off (default: {EXPLORED_TOP_P})")
    add("--beams", type=whole, default=3, metavar="N", help="beams of the beam tree; 0 for none (default: 3)")
    add("--depth", type=natural, default=5, metavar="N", help="new tokens in the beam tree (default: 5)")
    shown = ",".join(EXPLORED_STRATEGIES)
    strategies_help = f"what to generate a text with (default: {shown})"
    add("--strategies", default=shown, metavar="A,B,...", help=strategies_help)
    add("--length", type=natural, default=40, metavar="N", help="new tokens in these texts (default: 40)")
    add("--seed", type=int, default=123, metavar="S", help="seed for sampling (default: 123)")
    add_plot_flag(parser, "draw the next token's probabilities")
    add("--json", action="store_true", help="print everything as JSON instead")
    add_trust_flag(parser)
    parser.set_defaults(handler=_explore, resume_hint="Nothing was changed; start it again.")


def _explore(options: argparse.Namespace) -> None:
    from hf_instruct.errors import ConfigError
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.strategies import build_generation_settings, find_strategy
    from hf_instruct.generation.token_text import check_text, encode_text

    # What can be known before a model is read.
    # `Path.is_file` would raise for a text that is too long for a name.
    if os.path.isfile(f"{options.prompt}/run.yaml"):  # noqa: PTH113
        raise ConfigError(f"`{options.prompt}` is a run folder; for a text give `--model {options.prompt} 'A text'`.")
    text: str | list[int] = check_text(options.prompt, what="prompt")
    names = [] if options.strategies.strip() in ("", "none") else options.strategies.split(",")
    names = list(dict.fromkeys(find_strategy(name).name for name in names))
    build_generation_settings("sample", **{name: getattr(options, name) for name in _SAMPLING})
    if options.beams == 1:
        raise ConfigError("`--beams` is 1, which is greedy search; a beam tree takes 2 or more, and 0 leaves it out.")
    model = ChatModel.load(options.model, dtype="float32", trust_remote_code=options.trust_remote_code)
    if options.instruction:
        text = model.encode(options.prompt.strip())
    elif options.prompt.endswith(" "):
        logger.warning("The prompt ends in a space. Most tokens begin with theirs, so few words can follow it.")
    # Before anything is printed or drawn.
    room = max(options.length if names else 0, options.depth if options.beams else 0)
    _show(options, model, encode_text(model.model, model.tokenizer, text, room=room), names)


def _show(options: argparse.Namespace, chat_model: "ChatModel", ids: list[int], names: list[str]) -> None:
    """Print each part as soon as it is computed, or all as JSON."""
    from hf_instruct.generation.exploring import compare_strategies, explore_beams, explore_next, tabulate_texts

    asked = (chat_model.model, chat_model.tokenizer, ids)
    say = (lambda *lines: None) if options.json else _print_lines
    following = explore_next(*asked, top=options.top, **{name: getattr(options, name) for name in _SAMPLING})
    shown = following.prompt_tokens
    shown = shown if len(shown) <= 60 else [*shown[:30], "...", *shown[-30:]]
    prompt = textwrap.fill(" ".join(shown), text_width() - 2, break_on_hyphens=False)
    how = f", in the prompt format `{chat_model.prompt_format.name}`" if options.instruction else ""
    say(f"{options.model} continues {pluralize(len(ids), 'token')}{how}:", "", textwrap.indent(prompt, "  "), "")
    said = str(following)
    say(*_format_table(following.to_table()), "", *textwrap.wrap(f"{said[0].upper()}{said[1:]}.", text_width()))
    if options.plot:
        _plot(following, options)
    tree, texts = None, []
    if options.beams:
        tree = explore_beams(*asked, num_beams=options.beams, length=options.depth)
        say("", f"Beam search with {options.beams} beams, {pluralize(options.depth, 'token')}", "")
        say(*_format_table(tree.to_table()), "", *_format_table(tabulate_texts(tree.texts)))
    if names:
        settings = {"max_new_tokens": options.length, "seed": options.seed, "end_id": chat_model.end_id}
        texts = compare_strategies(*asked, names=names, **settings)
        say("", f"The same prompt, {pluralize(options.length, 'token')} by each strategy (seed {options.seed})", "")
        say(*_format_table(tabulate_texts(texts)), "", *textwrap.wrap(_LEGEND, text_width()))
    if options.json:
        values = {name: getattr(options, name) for name in ("model", "prompt", "instruction", "seed")}
        parts = {"next": dataclasses.asdict(following), "beams": tree and dataclasses.asdict(tree)}
        print(format_json({**values, **parts, "strategies": [dataclasses.asdict(text) for text in texts]}))


def _print_lines(*lines: str) -> None:
    print("\n".join(lines), flush=True)


def _format_table(table: "Table") -> list[str]:
    """Return a table as lines, its last column wrapped."""
    heads, rows, left = table
    cells = [heads, *rows]
    starts = align([row[:-1] for row in cells], right=set(range(len(heads))) - left)
    indent = max(map(len, starts)) + 2
    wrapper = textwrap.TextWrapper(text_width(), subsequent_indent=" " * indent)
    lines = []
    for start, row in zip(starts, cells, strict=True):
        wrapper.initial_indent = start.ljust(indent)
        lines.append(wrapper.fill(row[-1]) or start)
    return lines


def _plot(following: "NextTokens", options: argparse.Namespace) -> None:
    from hf_instruct.generation.next_token_plot import draw_next_token_plot
    from hf_instruct.plots import write_figure

    settings = f"top-k {options.top_k or 'off'}, top-p {options.top_p:g}, temperature {options.temperature:g}"
    prompt = textwrap.shorten(options.prompt, 50, placeholder=" …")
    write_figure(draw_next_token_plot(following, title=f"“{prompt}”   {settings}"), options.plot)
    logger.info("Plot: %s", options.plot)
