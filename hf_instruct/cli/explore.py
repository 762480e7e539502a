"""`hf-instruct explore`: how a model picks its words."""

import argparse
import dataclasses
import logging
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_trust_flag, natural, whole
from hf_instruct.cli.terminal_text import count_cells, pad_text
from hf_instruct.console import format_json

if TYPE_CHECKING:
    from hf_instruct.generation.beam_tree import BeamNode, BeamTree
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.exploring import NextTokens, StrategyAnswer

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
  hf-instruct explore "Once upon a time" --strategies greedy --beams 0 --length 80
  hf-instruct explore "Once upon a time" --json | jq .next.tokens

strategies: greedy, beam, sample, top-k, top-p, min-p, typical, beam-sample; `none` writes no texts.
`hf-instruct generate --presets` says what each is and where it comes from."""

_DEFAULT_STRATEGIES = "greedy,beam,sample,top-k,top-p"
_LEGEND = """\
repeats: share of the runs of four tokens that stood in the text before (seq-rep-4). perplexity: how
surprising the model finds its own text; low is likely, which is not the same as good."""
_SAMPLING = ("top", "temperature", "top_k", "top_p")
_WIDTH = 100
_TOKEN_COLUMNS = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue")
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="RUN_OR_MODEL",
        help="run folder, alias, Hub id or local folder (default: smollm2-135m)",
    )
    parser.add_argument(
        "--instruction",
        action="store_true",
        help="ask it as an instruction: in the run's prompt format, else in the model's own chat format, else alpaca",
    )
    parser.add_argument("--top", type=natural, default=20, metavar="N", help="next tokens to list (default: 20)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="above 0 (default: 1)")
    # Small, so that the table shows where they cut.
    parser.add_argument("--top-k", type=whole, default=10, metavar="K", help="0 is off (default: 10)")
    parser.add_argument("--top-p", type=float, default=0.7, metavar="P", help="1 is off (default: 0.7)")
    parser.add_argument("--beams", type=whole, default=3, metavar="N", help="of the beam tree; 0: none (default: 3)")
    parser.add_argument("--depth", type=natural, default=5, metavar="N", help="tokens of the beam tree (default: 5)")
    parser.add_argument(
        "--strategies",
        default=_DEFAULT_STRATEGIES,
        metavar="A,B,...",
        help=f"to write a text with each (default: {_DEFAULT_STRATEGIES})",
    )
    parser.add_argument("--length", type=natural, default=40, metavar="N", help="tokens of these texts (default: 40)")
    parser.add_argument("--seed", type=int, default=123, metavar="S", help="of those that sample (default: 123)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the next token's probabilities")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    add_trust_flag(parser)
    parser.set_defaults(handler=_explore, resume_hint="Nothing was changed; start it again.")


def _explore(options: argparse.Namespace) -> None:
    from hf_instruct.errors import ConfigError
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.exploring import check_numbers
    from hf_instruct.generation.next_token_plot import check_plot_path
    from hf_instruct.generation.strategies import find_strategy
    from hf_instruct.generation.token_text import check_text, encode_text

    # What can be known before a model is read.
    text: str | list[int] = check_text(options.prompt, what="prompt")
    names = [] if options.strategies.strip() in ("", "none") else options.strategies.split(",")
    names = list(dict.fromkeys(find_strategy(name).name for name in names))
    if options.plot:
        check_plot_path(options.plot)
    check_numbers(**{name: getattr(options, name) for name in _SAMPLING})
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
    from hf_instruct.generation.beam_tree import explore_beams
    from hf_instruct.generation.exploring import compare_strategies, explore_next

    model, tokenizer = chat_model.model, chat_model.tokenizer
    end_id = chat_model.end_id if options.instruction else None
    following = explore_next(model, tokenizer, ids, **{name: getattr(options, name) for name in _SAMPLING})
    say = not options.json
    if say:
        _print_head(options, following, chat_model.prompt_format.name if options.instruction else None)
        _print_next(following)
    tree = None
    if options.beams:
        tree = explore_beams(model, tokenizer, ids, num_beams=options.beams, length=options.depth)
        if say:
            _print_tree(tree)
    if options.plot:
        _plot(following, options)
    if say and names:
        print(f"\nThe same prompt, {options.length} tokens by each strategy (seed {options.seed})")
        print(f"\n{'strategy':<13}{'tokens':>6}{'repeats':>9}{'perplexity':>12}   text")
    answers = []
    length, seed = options.length, options.seed
    for name in names:
        answers += compare_strategies(
            model, tokenizer, ids, names=[name], max_new_tokens=length, seed=seed, end_id=end_id
        )
        if say:
            _print_answer(answers[-1])
    if not say:
        _print_json(options, following, tree, answers)
    elif names:
        print(_LEGEND)
    if options.plot:
        logger.info("Plot: %s", options.plot)


def _print_head(options: argparse.Namespace, following: "NextTokens", format_name: str | None) -> None:
    tokens = following.prompt_tokens
    how = f", in the prompt format `{format_name}`" if format_name else ""
    print(f"{options.model} continues {len(tokens)} tokens{how}:\n")
    shown = " ".join(tokens) if len(tokens) <= 60 else f"{' '.join(tokens[:30])} ... {' '.join(tokens[-30:])}"
    print(textwrap.indent(textwrap.fill(shown, _WIDTH - 2, break_on_hyphens=False), "  "))


def _print_next(following: "NextTokens") -> None:
    from hf_instruct.generation.exploring import TEMPERATURES

    t = following.temperature
    print(
        f"\nThe next token, of {following.vocabulary:,}   (␣ is a space; sum and what follows: at temperature {t:g})\n"
    )
    others = [value for value in TEMPERATURES if value != 1]
    head = "".join(f"{f'T={value:g}':>8}" for value in others)
    print(
        f"{'':>3}  {'token':<{_TOKEN_COLUMNS}}{'probability':>11}{head}{'sum':>9}{'top-k':>7}{'top-p':>7}{'drawn':>9}"
    )
    for token in following.tokens:
        at = dict(zip(TEMPERATURES, token.at, strict=True))
        cells = "".join(f"{at[value]:>8.1%}" for value in others)
        drawn = f"{token.drawn:>9.1%}" if token.drawn else f"{'-':>9}"
        print(
            f"{token.rank:>3}  {pad_text(token.text, _TOKEN_COLUMNS - 1)} {token.probability:>11.2%}{cells}"
            f"{token.cumulative:>9.1%}{'yes' if token.in_top_k else '-':>7}{'yes' if token.in_top_p else '-':>7}{drawn}"
        )
    print()
    for line in _say_kept(following):
        print(line)
    print("\ntemperature   likeliest token   half of the probability   entropy")
    for row in following.temperatures:
        half = f"{row.num_half:,} token{'s' if row.num_half > 1 else ''}"
        print(f"{row.temperature:<14g}{row.top:>15.1%}   {half:>23}   {row.entropy:>5.2f} bits")


def _say_kept(following: "NextTokens") -> list[str]:
    lines = []
    if following.top_k:
        lines.append(
            f"top-k {following.top_k:<5,} keeps {following.num_top_k:>7,} tokens with {following.share_top_k:.1%} "
            "of the probability"
        )
    if following.top_p < 1:
        lines.append(
            f"top-p {following.top_p:<5g} keeps {following.num_top_p:>7,} tokens with {following.share_top_p:.1%}"
        )
    if following.top_k and following.top_p < 1:
        lines.append(f"both        keep  {following.num_drawn:>7,}: top-p looks at what top-k left, scaled up to 100 %")
    return lines or [f"Neither top-k nor top-p is on: all {following.vocabulary:,} tokens can be drawn."]


def _print_tree(tree: "BeamTree") -> None:
    print(f"\nBeam search with {tree.num_beams} beams, {tree.length} tokens\n")
    print(_format_beam_tree(tree))
    best, greedy = tree.texts[0], tree.greedy
    print(f"\nbest    {_probability(best.log_probability)}  {_one_line(best.text)}")
    same = "the same" if best.token_ids == greedy.token_ids else _one_line(greedy.text)
    print(f"greedy  {_probability(greedy.log_probability)}  {same}")


def _format_beam_tree(tree: "BeamTree") -> str:
    """Return the tree as text: a token a line, with its probability and that of the path down to it."""
    lines = [(guide + node.text, node) for guide, node in _walk(tree.roots, "")]
    width = max(count_cells(start) for start, _ in lines)
    head = f"{'':<{width}}  {'token':>8}  {'path':>8}"
    rows = [
        f"{pad_text(start, width)}  {node.probability:>8.2%}  {node.path_probability:>8.3%}{_remark(node)}"
        for start, node in lines
    ]
    return "\n".join([head, *rows])


def _walk(nodes: "Sequence[BeamNode]", indent: str) -> "Iterator[tuple[str, BeamNode]]":
    for place, node in enumerate(nodes):
        is_last = place == len(nodes) - 1
        yield indent + ("└─ " if is_last else "├─ "), node
        yield from _walk(node.children, indent + ("   " if is_last else "│  "))


def _remark(node: "BeamNode") -> str:
    if node.rank is not None:
        return "  best" if node.rank == 1 else f"  number {node.rank}"
    return "" if node.kept or node.children else "  dropped"


def _probability(log_probability: float) -> str:
    return f"{math.exp(log_probability):>8.4%}" if log_probability > -18 else f"   e^{log_probability:.1f}"


def _print_answer(answer: "StrategyAnswer") -> None:
    repeats = "-" if answer.repeated is None else f"{answer.repeated:.0%}"
    perplexity = "-" if answer.perplexity is None else f"{min(answer.perplexity, 1e9):,.1f}"
    indent = " " * 43
    text = _one_line(answer.text) + ("" if answer.stopped else " …")
    lines = textwrap.wrap(text, _WIDTH - len(indent)) or ["(nothing)"]
    print(f"{answer.name:<13}{answer.num_tokens:>6}{repeats:>9}{perplexity:>12}   {lines[0]}")
    for line in lines[1:]:
        print(indent + line)
    print(flush=True)


def _one_line(text: str) -> str:
    from hf_instruct.generation.token_text import SPACE, show_text

    return show_text(text).replace(SPACE, " ")


def _print_json(
    options: argparse.Namespace, following: "NextTokens", tree: "BeamTree | None", answers: "list[StrategyAnswer]"
) -> None:
    values = {
        "model": options.model,
        "prompt": options.prompt,
        "instruction": options.instruction,
        "seed": options.seed,
        "next": dataclasses.asdict(following),
        "beams": None if tree is None else dataclasses.asdict(tree),
        "strategies": [dataclasses.asdict(answer) for answer in answers],
    }
    print(format_json(values))


def _plot(following: "NextTokens", options: argparse.Namespace) -> None:
    from hf_instruct.errors import ConfigError
    from hf_instruct.generation.next_token_plot import draw_next_token_plot
    from hf_instruct.plots import write_figure

    settings = f"top-k {following.top_k or 'off'}, top-p {following.top_p:g}, temperature {following.temperature:g}"
    prompt = " ".join(options.prompt.split())
    prompt = prompt if len(prompt) <= 50 else "…" + prompt[-49:]
    try:
        write_figure(draw_next_token_plot(following, title=f"“{prompt} …”   {settings}"), options.plot)
    except OSError as error:
        raise ConfigError(f"`{options.plot}` cannot be written: {error.strerror}. Name another file.") from error
