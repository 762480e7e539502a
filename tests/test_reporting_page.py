import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.records import write_json, write_rows
from hf_instruct.reporting.facts import read_facts
from hf_instruct.reporting.page import PAGE_ROWS, TEMPLATES, clean_text, render_page
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Judgment, Response, TrainingRow, TrainingSummary
from hf_instruct.yaml_text import dump_yaml, read_yaml

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


def _render(run: RunFolder) -> Page:
    return Page(render_page(read_facts(run, run.load_experiment())))


@pytest.fixture(scope="module")
def whole_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = write_run(tmp_path_factory.mktemp("whole") / "demo")
    return render_page(read_facts(run, run.load_experiment()))


@pytest.fixture(scope="module")
def hostile_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = _write_hostile_run(tmp_path_factory.mktemp("hostile") / "demo")
    return render_page(read_facts(run, run.load_experiment()))


def test_a_whole_run_is_told(whole_html: str) -> None:
    text = Page(whole_html).text
    for part in (
        "model gpt2-small method full fine-tuning data everyday (34 train, 1 validation, 4 test)",
        "26.3 ± 2.5 → 68.3 ± 2.5",
        "n=4 of 4",
        "n=3 of 4, 1 failed",
        "Judged by llama3 (ollama, digest 365c0bd3c000), rubric course@7777777.",
        "+35.0 points, 95 % interval -70.0 to +100.0",
        "1.193 → 0.722 first → last of 3 evaluations",
        "25 % → 100 % of the answers, base → tuned",
        "5 min 14 s peak memory 2.1 GB · 412 tokens/s · cpu · bf16",
        "before training Convert 2 km epoch 1 20 m. epoch 2 2000 m. reference 2000 m.",
        "Command hf-instruct run x.yaml Commit abc1234 Data everyday Data SHA-256 " + "d" * 64,
        "Parameters 124,439,808, 124,439,808 trained Training 8 steps, 2 epochs Tokens 1,800 example tokens",
        "no verdict",
        "what the judge replied no integer from 0 to 100 Well done!",
        "judge's reasons Close.",
    ):
        assert part in text
    assert "Not in this report yet" not in text


def test_the_worst_answer_comes_first(whole_html: str) -> None:
    page = Page(whole_html)
    rows = [a for a in page.find("tr") if "data-i" in a]
    assert [(a["data-i"], a.get("data-s"), a.get("data-g"), a["data-c"], a["data-k"]) for a in rows] == [
        ("3", "20", "-70", "facts", "down"),
        ("1", "85", "75", "simile", "up"),
        ("2", "100", "100", "facts", "up"),
        ("4", None, None, "spelling", "failed"),
    ]


def test_filters_offer_what_there_is(tmp_path: Path, whole_html: str) -> None:
    page = Page(whole_html)
    options = [a["value"] for a in page.find("option")]
    assert options == [
        "",
        "facts",
        "simile",
        "spelling",
        "",
        "up",
        "down",
        "same",
        "failed",
        "worst",
        "best",
        "gain",
        "loss",
        "order",
    ]
    plain = _render(write_run(tmp_path / "plain", stages=("generate",)))
    assert [a["value"] for a in plain.find("option")] == ["", "facts", "simile", "spelling", "order"]


def test_every_control_is_labelled(whole_html: str) -> None:
    html = whole_html
    controls = re.findall(r"<(?:select|input)\b", html)
    assert len(controls) == len(re.findall(r"<label[^>]*>[^<]+<(?:select|input)\b", html)) == 4
    assert '<html lang="en">' in html
    plots = Page(html).find("div", role="img")
    assert [a["aria-label"] for a in plots] == [
        "Validation loss by step: 1.193 at step 0, 0.800 at step 4, 0.722 at step 8.",
        "base: 2 from 0, 1 from 10, 1 from 90. tuned: 1 from 20, 1 from 80, 1 from 90.",
    ]


def test_ids_are_unique_and_links_lead_somewhere(whole_html: str) -> None:
    page = Page(whole_html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.find("a")]
    assert links == ["#answers"] * 3
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
    page = _render(write_run(tmp_path / "demo", stages=stages))
    assert all(part in page.text for part in shown)
    assert not set(absent) & set(page.texts)
    assert f"hf-instruct report {tmp_path / 'demo'}" in page.text


def test_tuned_answers_alone_need_no_column_before(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", generate={"base": False}, judge={"base": False})
    for path in (run.base.responses, run.base.judgments, run.base.scores):
        path.unlink()
    page = _render(run)
    assert len(page.find("table", **{"class": "answers two"})) == 1
    assert "Before" not in page.texts
    assert "Not in this report yet" not in page.text


def test_judging_half_done_shows_what_is_judged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    run.scores.unlink()
    page = _render(run)
    assert "the scores of the tuned model's answers (4 of 4 are judged)" in page.text
    assert "n=3 of 4" not in page.text
    assert [a.get("data-s") for a in page.find("tr") if "data-i" in a] == ["20", "85", "100", None]


def _write_hostile_run(path: Path) -> RunFolder:
    hostile = HOSTILE
    run = write_run(path, stages=(), model={"name": hostile}, data={"source": hostile})
    judge = {**dict.fromkeys(("backend", "model", "digest", "server_version"), hostile), "options": {hostile: hostile}}
    for folder in (run, run.base):
        rows = [(f"{hostile}{n}", f"{hostile}{n % 2}") for n in range(4)]
        write_rows(
            folder.responses,
            [
                Response(
                    id=id,
                    instruction=hostile,
                    input=hostile,
                    output=hostile,
                    response=hostile,
                    category=category,
                    stopped=False,
                )
                for id, category in rows
            ],
        )
        judgments = [
            Judgment(
                id=id,
                score=n or None,
                replies=[hostile],
                judge=judge,
                rubric=hostile,
                prompt_sha256="",
                seconds=0.1,
                failure=hostile,
                reasons=hostile,
            )
            for n, (id, _) in enumerate(rows)
        ]
        write_rows(folder.judgments, judgments)
        numbers = {"mean": 5.0, "n": 3, "failures": 1, "total": 4}
        categories = {category: numbers for _, category in rows}
        write_json(
            folder.scores,
            {**numbers, "judge": judge, "rubric": {"name": hostile, "sha256": hostile}, "by_category": categories},
        )
    sample = dict.fromkeys(("id", "instruction", "input", "output", "response"), hostile)
    write_rows(
        run.training_log,
        [
            TrainingRow(step=0, epoch=0, tokens_seen=0, kind="samples", samples=[sample]),
            TrainingRow(step=0, epoch=0, tokens_seen=0, kind="evaluation", validation_loss=1.0),
        ],
    )
    write_json(
        run.training_summary,
        TrainingSummary(
            seconds=3.0,
            steps=1,
            epochs=1.0,
            tokens_seen=1,
            tokens_per_second=1.0,
            peak_memory_bytes=1,
            device=hostile,
            precision=hostile,
            num_processes=1,
            num_parameters=1,
            num_trainable_parameters=1,
        ),
    )
    fields = dict.fromkeys(("command", "git_commit", "created_at", "python", "data_sha256"), hostile)
    run.config.write_text(dump_yaml({**read_yaml(run.config), **fields, "versions": {"torch": hostile}}))
    return run


def test_no_text_becomes_markup(whole_html: str, hostile_html: str) -> None:
    hostile, plain = Page(hostile_html), Page(whole_html)
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in plain.elements} | {"code", "use"}
    assert hostile.scripts == plain.scripts
    assert hostile.texts.count(HOSTILE) > 40
    for _, attributes in hostile.elements:
        assert not [name for name in attributes if name.startswith("on")]


def test_a_browser_may_run_our_scripts_and_load_nothing(hostile_html: str) -> None:
    html, page = hostile_html, Page(hostile_html)
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


def test_texts_keep_their_shape_and_their_odd_characters(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=())
    response = "  one\n\n\ttwo  \x00\x1b[31m \u202e العربية"
    run.responses.write_text(
        '{"id": "a", "instruction": "x", "input": "", "output": " ", "response": '
        + r'"  one\n\n\ttwo  \u0000\u001b[31m \u202e العربية"'
        + "}\n"
    )
    html = render_page(read_facts(run, run.load_experiment()))
    assert clean_text(response) == "  one\n\n\ttwo  ␀␛[31m � العربية"
    assert f'<div class="text" dir="auto">{clean_text(response)}</div>' in html
    assert '<div class="text none">(empty)</div>' in html


def test_an_endless_answer_is_cut(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("data", "train"))
    write_rows(
        run.responses, [Response(id="a", instruction="Count.", input="", output="1 2 3", response="no end " * 200_000)]
    )
    html = render_page(read_facts(run, run.load_experiment()))
    assert len(html) < 200_000
    assert "… (1,380,000 more characters)" in html


def test_many_rows_are_paged_and_small(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=())
    rows = [
        Response(
            id=str(n),
            instruction="Use a simile.",
            input="The car is fast.",
            output="Fast as lightning.",
            response="As a bullet.",
            category="simile",
        )
        for n in range(5_200)
    ]
    write_rows(run.responses, rows)
    html = render_page(read_facts(run, run.load_experiment()))
    assert len(html) < 3_000_000
    shown = re.findall(r'<tr data-i="\d+"[^>]* class="match on">', html)
    assert len(shown) == PAGE_ROWS
    assert f"const PAGE_ROWS = {PAGE_ROWS};" in html


def test_configuration_holds_no_password(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=())
    experiment = run.load_experiment()
    judge = experiment.judge.model_copy(update={"base_url": "http://me:secret@127.0.0.1:1"})
    facts = dataclasses.replace(read_facts(run, experiment), experiment=experiment.model_copy(update={"judge": judge}))
    html = render_page(facts)
    assert "http://127.0.0.1:1" in html
    assert "secret" not in html
