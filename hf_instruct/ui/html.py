"""How the page looks: its CSS, and texts as HTML that can only ever be texts.

Whatever a model, a data set or a user wrote reaches the page in one of two ways: in a component that shows plain text,
or through `escape` here.
"""

import html
from collections.abc import Sequence

# A colour for each run, apart in the common kinds of colour blindness and legible on white and on near black.
# Source: https://jfly.uni-koeln.de/color/ (Okabe and Ito, "Color Universal Design"); the blue is lighter than theirs.
SERIES_COLORS = ("#2f7fd1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b929b")

STYLE = """
:root, .gradio-container {
  --block-info-text-color: color-mix(in srgb, var(--body-text-color) 66%, transparent);
  --input-placeholder-color: color-mix(in srgb, var(--body-text-color) 60%, transparent);
  --plot-text: var(--body-text-color); --plot-grid: var(--border-color-primary);
  --plot-validation: #2f7fd1; --plot-tuned: #2f7fd1; --plot-base: #8b929b;}
.hi-title {font-size: 1.2rem; font-weight: 650; color: var(--body-text-color);}
.hi-notice, .hi-table th, .hi-table small, .hi-card h4, .hi-chat-head, .hi-foot, .hi-tokens summary, .hi-empty {
  color: color-mix(in srgb, var(--body-text-color) 66%, transparent) !important;}
.hi-notice {margin: 2px 0; font-size: .92rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere;}
.hi-notice.hi-error {color: var(--body-text-color) !important; border-left: 3px solid #d55e00; padding-left: 8px;}
.hi-wide {overflow-x: auto; max-width: 100%;}
table.hi-table {border-collapse: collapse; width: 100%; margin: 0; font-size: .9rem; border: 0 !important;
  font-variant-numeric: tabular-nums;}
table.hi-table th, table.hi-table td {border: 0 !important; text-align: right; background: none !important;
  border-bottom: 1px solid var(--border-color-primary) !important;}
table.hi-table th {font-weight: 600; padding: 6px 9px; vertical-align: bottom; min-width: 4.4em;}
table.hi-table td {padding: 7px 9px; white-space: nowrap; color: var(--body-text-color);}
table.hi-table th:first-child, table.hi-table td:first-child {text-align: left; min-width: 8.5em;}
table.hi-texts th:nth-child(2), table.hi-texts td:nth-child(2) {text-align: left; white-space: normal;}
table.hi-texts th:first-child, table.hi-texts td:first-child {min-width: 2em;}
.hi-dot {display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em;}
.hi-track {position: relative; height: 5px; border-radius: 3px; background: var(--border-color-primary);
  margin-top: 5px; min-width: 110px;}
.hi-track i {position: absolute; top: 0; height: 5px; border-radius: 3px; background: var(--plot-tuned);}
.hi-cards {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 12px;}
.hi-card h4 span:first-child {flex: none; max-width: 70%; overflow-wrap: anywhere;}
.hi-card h4 span:last-child {font-weight: 400; text-align: right;}
.hi-cards + .hi-cards, .hi-wide + .hi-wide {margin-top: 12px;}
.hi-card {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 14px;
  background: var(--background-fill-secondary);}
.hi-card h4 {margin: 0 0 6px; font-size: .88rem; font-weight: 600; display: flex; justify-content: space-between;
  gap: 10px;}
.hi-text {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; color: var(--body-text-color);}
.hi-plot {max-width: 860px; padding-top: 8px; overflow-x: auto;}
.hi-plot svg {width: 100%; min-width: 540px; height: auto;}
.hi-plot svg text {font-family: inherit !important;}
.hi-mono {font-family: ui-monospace, monospace; white-space: pre;}
.hi-faded td {opacity: .45;}
.hi-foot {font-size: .82rem; margin-top: 8px;}
.hi-token {font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;}
.hi-tokens {margin-bottom: 6px; font-size: .9rem;}
.hi-tokens span {display: inline-block; font-family: ui-monospace, monospace; font-size: .85rem; margin: 3px 3px 0 0;
  padding: 0 5px; border-radius: 4px; border: 1px solid var(--border-color-primary); color: var(--body-text-color);}
.hi-bars {width: clamp(90px, 22vw, 240px);}
.hi-bars i {display: block; height: 6px; border-radius: 3px; min-width: 1px;}
.hi-bars .hi-plain {background: color-mix(in srgb, var(--body-text-color) 28%, transparent); margin-bottom: 2px;}
.hi-bars .hi-drawn {background: var(--plot-tuned);}
.hi-tree ul {list-style: none; margin: 0 0 0 7px; padding: 0 0 0 14px; border-left: 1px solid
  var(--border-color-primary);}
.hi-tree > ul {margin: 8px 0; border: 0; padding: 0;}
.hi-tree li {margin: 0; padding: 1px 0; white-space: nowrap; color: var(--body-text-color); line-height: 1.5;}
.hi-tree small {opacity: .7;}
.hi-tree .hi-dropped > .hi-token, .hi-tree .hi-dropped > small {opacity: .4;}
.hi-rank {display: inline-block; min-width: 1.5em; text-align: center; border-radius: 9px; font-size: .78rem;
  border: 1px solid var(--border-color-primary);}
.hi-rank.hi-best {background: var(--plot-tuned); color: white; border-color: transparent;}
.hi-chat {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 14px !important;}
.hi-chat .hi-chat {border: 0; padding: 0 !important;}
.hi-chat-head {font-size: .88rem; font-weight: 600; display: flex; justify-content: space-between; gap: 10px;}
.hi-chat-head span:last-child {font-weight: 400;}
.hi-log {display: flex; flex-direction: column-reverse; height: min(52vh, 460px); overflow-y: auto;}
.hi-log > div {margin-bottom: auto; width: 100%;}
.hi-said {width: fit-content; max-width: min(88%, 70ch); margin: 10px 0 0; padding: 8px 13px; border-radius: 12px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary);}
.hi-said.hi-user {margin-left: auto; border-color: transparent;
  background: color-mix(in srgb, var(--button-primary-background-fill) 17%, transparent);}
.hi-empty {padding: 28px 0; text-align: center;}
button.hi-step {align-self: end;}
@media (max-width: 640px) {
  .gradio-container main {padding: 12px 8px !important;}
  .hi-table {font-size: .85rem;}
  table.hi-texts td:nth-child(2) {min-width: 11em;}
  .hi-log {height: min(38vh, 300px);}
}
"""


def escape(text: object) -> str:
    """Return a text as HTML that shows just that text."""
    return html.escape(str(text), quote=True)


def format_notice(text: str, *, error: bool = False) -> str:
    """Return a line for people as HTML; it keeps its height when there is nothing to say."""
    return f'<div class="hi-notice{" hi-error" if error else ""}" role="status">{escape(text)}</div>'


def format_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, faded: Sequence[bool] = (), texts: bool = False
) -> str:
    """Return a table as HTML that scrolls sideways where the window is narrow.

    Args:
        heads: Column heads, as text.
        rows: Cells as HTML: what is not from here has to be escaped already.
        faded: Which rows are pale; none by default.
        texts: Whether the second column holds texts, as the first does, rather than numbers.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = ""
    for row, is_faded in zip(rows, faded or [False] * len(rows), strict=True):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        body += f'<tr class="{"hi-faded" if is_faded else ""}">{cells}</tr>'
    kind = "hi-table hi-texts" if texts else "hi-table"
    return f'<div class="hi-wide"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def format_dot(place: int) -> str:
    """Return the dot that says which colour a run has."""
    return f'<span class="hi-dot" style="background:{series_color(place)}"></span>'


def series_color(place: int) -> str:
    """Return the colour of the run at a place, from 0."""
    return SERIES_COLORS[place % len(SERIES_COLORS)]


def format_card(head: str, text: str, *, aside: str = "", dot: str = "", foot: str = "") -> str:
    """Return a framed text with a head and, where there is one, a foot, as HTML; `dot` is HTML, the others are text."""
    below = f'<div class="hi-foot">{escape(foot)}</div>' if foot else ""
    return (
        f'<div class="hi-card"><h4><span>{dot}{escape(head)}</span><span>{escape(aside)}</span></h4>'
        f'<div class="hi-text">{escape(text)}</div>{below}</div>'
    )


def format_chat(label: str, turns: Sequence[tuple[str, str]], *, aside: str = "") -> str:
    """Return a conversation as HTML, scrolled to its end.

    Args:
        label: What the model is called.
        turns: Questions and answers, as text.
        aside: Beside the label.
    """
    said = "".join(
        f'<div class="hi-said hi-{who}"><div class="hi-text">{escape(text)}</div></div>'
        for turn in turns
        for who, text in zip(("user", "model"), turn, strict=True)
    )
    said = said or '<div class="hi-empty">Nothing said yet.</div>'
    head = f'<div class="hi-chat-head"><span>{escape(label)}</span><span>{escape(aside)}</span></div>'
    # Laid out from the bottom, which keeps the end in view while it grows.
    return f'{head}<div class="hi-log" role="log" aria-live="polite"><div>{said}</div></div>'


def format_cards(cards: Sequence[str]) -> str:
    """Return cards side by side, or below one another where the window is narrow."""
    return f'<div class="hi-cards">{"".join(cards)}</div>'
