import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from reporting_run import add_measurements, with_sides, write_run

from hf_instruct.errors import DataError
from hf_instruct.reporting.page import PAGE_ROWS, TEMPLATES, render_page, report
from hf_instruct.reporting.results import RunResults, read_results
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import MODELS, MeanDifference, Response

HOSTILE = (
    "</script></textarea></style></title></select></table><script>x()</script><img src=x onerror='x()'>\"'>&lt;{{7*7}}"
)


class Page(HTMLParser):
    """The elements and texts of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.texts.append(data.strip())

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            a for t, a in self.elements if t == tag and all(a.get(name) == value for name, value in attributes.items())
        ]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return read_results(write_run(tmp_path_factory.mktemp("whole") / "demo"))


@pytest.fixture(scope="module")
def whole_html(whole: RunResults) -> str:
    return render_page(whole)


@pytest.fixture(scope="module")
def measured(whole: RunResults) -> RunResults:
    return add_measurements(whole)


def test_a_whole_run(whole_html: str) -> None:
    text = Page(whole_html).text
    for part in (
        "model gpt2-small method full fine-tuning data everyday (34 train, 1 validation, 4 test)",
        "n=4 of 4",
        "n=3 of 4, 1 failed",
        "Judged by llama3@365c0bd (ollama), rubric course@7777777.",
        "+35.0 points, 95 % interval -70.0 to +100.0",
        "1.193 → 0.722 first → last of 3 evaluations",
        "Finished 25 % → 100 % of the answers",
        "5 min 14 s peak memory 2.1 GB · 412 tokens/s · cpu · bf16",
        "before training Convert 2 km epoch 1 20 m. epoch 2 2000 m. reference 2000 m.",
        "Command hf-instruct run x.yaml Commit abc1234 Data everyday Data SHA-256 " + "d" * 64,
        "Parameters 124,439,808, 124,439,808 trained Training 8 steps, 2 epochs, 1,800 example tokens",
        "what the judge replied no integer from 0 to 100 Well done!",
        "judge's reasons Close.",
    ):
        assert part in text
    assert "Not in this report yet" not in text


def test_the_largest_gain_and_the_largest_loss_come_first(whole_html: str) -> None:
    rows = [a for a in Page(whole_html).find("tr") if "data-i" in a]
    assert [(a["data-i"], a.get("data-s"), a.get("data-g"), a["data-c"], a["data-k"]) for a in rows] == [
        ("2", "100", "100", "facts", "up"),
        ("3", "20", "-70", "facts", "down"),
        ("1", "85", "75", "simile", "up"),
        ("4", None, None, "spelling", "failed"),
    ]


def test_filters_offer_what_there_is(tmp_path: Path, whole_html: str) -> None:
    def list_options(html: str) -> str:
        return " ".join(str(a["value"]) for a in Page(html).find("option"))

    kinds, orders = " up down same failed", " start gain loss worst best order"
    assert list_options(whole_html) == f" facts simile spelling {kinds}{orders}"
    plain = render_page(read_results(write_run(tmp_path / "plain", stages=("generate",))))
    assert list_options(plain) == " facts simile spelling order"


def test_every_control_is_labelled(whole_html: str) -> None:
    controls = re.findall(r"<(?:select|input)\b", whole_html)
    assert len(controls) == len(re.findall(r"<label[^>]*>[^<]+<(?:select|input)\b", whole_html)) == 4
    assert '<html lang="en">' in whole_html
    plots = Page(whole_html).find("div", role="img")
    assert [a["aria-label"] for a in plots] == [
        "Validation loss by step: 1.193 at step 0, 0.800 at step 4, 0.722 at step 8.",
        "untuned: 2 from 0, 1 from 10, 1 from 90. tuned: 1 from 20, 1 from 80, 1 from 90.",
    ]


def test_ids_are_unique_and_links_lead_somewhere(whole_html: str) -> None:
    page = Page(whole_html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.find("a")} == {"#answers"}
    assert "answers" in ids


@pytest.mark.parametrize(
    ("stages", "shown", "absent"),
    [
        ((), ["Not in this report yet", "How it was made"], ["Loss", "Scores", "Answers", "Score"]),
        (("data", "train"), ["Loss", "hf-instruct generate"], ["Scores", "Answers", "Score"]),
        (("data", "train", "generate"), ["Loss", "Answers", "hf-instruct judge"], ["Scores", "Score"]),
        (("generate", "judge"), ["Scores", "Answers", "Score", "hf-instruct train EXPERIMENT.yaml"], ["Loss"]),
    ],
)
def test_a_part_of_a_run_still_gives_a_page(
    tmp_path: Path, stages: tuple[str, ...], shown: list[str], absent: list[str]
) -> None:
    page = Page(render_page(read_results(write_run(tmp_path / "demo", stages=stages))))
    assert all(part in page.text for part in shown)
    assert not set(absent) & set(page.texts)
    assert f"hf-instruct report {tmp_path / 'demo'}" in page.text


def test_tuned_answers_alone_need_no_column_before(whole: RunResults) -> None:
    sections = {
        name: getattr(whole.experiment, name).model_copy(update={"base": False}) for name in ("generate", "judge")
    }
    untuned = dataclasses.replace(whole.before, responses=[], judgments={}, scores=None)
    experiment = whole.experiment.model_copy(update=sections)
    page = Page(render_page(dataclasses.replace(with_sides(whole, untuned=untuned), experiment=experiment)))
    assert len(page.find("table", **{"class": "answers two"})) == 1
    assert "Untuned" not in page.texts
    assert "Not in this report yet" not in page.text


def test_judging_half_done_shows_what_is_judged(whole: RunResults) -> None:
    page = Page(render_page(with_sides(whole, tuned=dataclasses.replace(whole.tuned, scores=None))))
    assert "the scores of the tuned model's answers (4 of 4 are judged)" in page.text
    assert "n=3 of 4" not in page.text
    assert [a.get("data-s") for a in page.find("tr") if "data-i" in a] == ["100", "20", "85", None]


def test_all_else_that_was_measured(measured: RunResults) -> None:
    text = Page(render_page(measured)).text
    for part in (
        "exact match equal to the reference 25 % 5 % to 70 % 50 % 15 % to 85 % +25 pp -50 pp to +78 pp",
        "runs/other 50.0 % 15.4 to 84.6 25.0 % 13.0 to 42.0 on 40 pairs 50.0 % 100.0 % 3 llama3",
        "everyday_choice acc 0.525 ± 0.080 +0.100 (-0.050 to +0.250) 40 of 100",
        "in points, by phi3@365c0bd (ollama), rubric course@7777777",
        "reference - shuffled >= 20, higher in 90 % +100.0 (none: all equal)",
    ):
        assert part in text


def poison(value: Any) -> Any:
    """Return a value with markup in front of every text in it."""
    if isinstance(value, str):
        return HOSTILE + value
    if isinstance(value, BaseModel):
        # Other kinds of rows are not drawn.
        return value.model_copy(update={name: poison(v) for name, v in value.__dict__.items() if name != "kind"})
    if isinstance(value, dict):
        # The names that a sample of the training log has, and those of the models, are ours.
        own = {*Response.model_fields, *MODELS}
        return {n if n in own else poison(n): poison(item) for n, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type | RunFolder | MeanDifference):
        return dataclasses.replace(value, **{f.name: poison(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def test_no_text_becomes_markup(measured: RunResults) -> None:
    plain, hostile = Page(render_page(measured)), Page(render_page(poison(measured)))
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in plain.elements}
    assert hostile.scripts == plain.scripts
    assert hostile.text.count(HOSTILE) > 100
    for _, attributes in hostile.elements:
        assert not [name for name in attributes if name.startswith("on")]


def test_a_browser_may_run_our_scripts_and_load_nothing(measured: RunResults) -> None:
    html = render_page(poison(measured))
    page = Page(html)
    assert page.scripts == [(TEMPLATES / name).read_text() for name in ("head.js", "report.js")]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    (policy,) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href", "action") if name in a]
    assert all(address and address.startswith("#") for address in addresses)
    assert not page.find("link")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style


def answer_with(results: RunResults, responses: list[Response]) -> str:
    """Return the page of a run of which the tuned model gave these answers, unjudged."""
    untuned, tuned = (
        dataclasses.replace(side, judgments={}, scores=None, responses=rows)
        for side, rows in ((results.before, []), (results.tuned, responses))
    )
    return render_page(with_sides(results, untuned=untuned, tuned=tuned))


def test_texts_keep_their_shape_and_their_odd_characters(whole: RunResults) -> None:
    text = "  one\n\n\ttwo  \x00\x1b[31m \u202e العربية"
    html = answer_with(whole, [Response(id="a", instruction="x", input="", output=" ", response=text)])
    assert '<div class="text" dir="auto">  one\n\n\ttwo  ␀␛[31m \ufffd العربية</div>' in html
    assert '<div class="text none">(empty)</div>' in html


def test_an_endless_answer_is_cut(whole: RunResults) -> None:
    endless = Response(id="a", instruction="Count.", input="", output="1 2 3", response="no end " * 200_000)
    html = answer_with(whole, [endless])
    assert len(html) < 200_000
    assert "… (1,380,000 more characters)" in html


def test_many_rows_are_paged_and_small(whole: RunResults) -> None:
    rows = [whole.tuned.responses[0].model_copy(update={"id": str(number)}) for number in range(5_200)]
    html = answer_with(whole, rows)
    assert len(html) < 3_000_000
    assert len(re.findall(r'<tr data-i="\d+"[^>]* class="match on">', html)) == PAGE_ROWS
    assert f"const PAGE_ROWS = {PAGE_ROWS};" in html


def test_configuration_holds_no_password(whole: RunResults) -> None:
    judge = whole.experiment.judge.model_copy(update={"base_url": "http://me:secret@127.0.0.1:1"})
    html = render_page(dataclasses.replace(whole, experiment=whole.experiment.model_copy(update={"judge": judge})))
    assert "http://127.0.0.1:1" in html
    assert "secret" not in html


def test_report_writes_the_page_and_the_histogram(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    before = {path.name for path in run.path.iterdir()}
    assert report(run) == run.report
    assert {path.name for path in run.path.iterdir()} - before == {"report.html", "scores.png"}
    first = run.report.read_bytes()
    report(run)
    assert run.report.read_bytes() == first


def test_report_without_scores_writes_no_histogram(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=())
    report(run)
    assert {path.name for path in run.path.iterdir()} == {"run.yaml", "report.html"}


def test_a_broken_file_leaves_the_old_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    run.report.write_text("old")
    run.judgments.write_text("{}\n")
    with pytest.raises(DataError, match=r"judgments\.jsonl` line 1 is not a Judgment row"):
        report(run)
    assert run.report.read_text() == "old"
