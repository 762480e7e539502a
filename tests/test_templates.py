"""Users' templates: whatever they do wrong is one sentence."""

import pytest

from hf_instruct import templates
from hf_instruct.errors import ConfigError
from hf_instruct.templates import UserTemplate

DEEP = 3_000


def fail(source: str, **values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        UserTemplate("`prompt`", source).render(values, row="a1")
    text = str(caught.value)
    start = "`prompt` is not a usable Jinja template for the example `a1`: "
    assert text.startswith(start)
    assert text.endswith(".")
    assert "\n" not in text
    return text.removeprefix(start)


def test_text_of_a_template() -> None:
    template = UserTemplate("`prompt`", "{{ a * 3 }}-{{ 2**10 }}{{ b }}\n")
    assert template.render({"a": "x", "b": "{{ a }}"}) == "xxx-1024{{ a }}"
    assert UserTemplate("`prompt`", "a\n", keep_trailing_newline=True).render({}) == "a\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 1 / 0 }}", "division by zero."),
        ("{{ 1 % (text|length - 1) }}", "integer modulo by zero."),
        ("{{ text + 1 }}", 'can only concatenate str (not "int") to str.'),
        ("{{ 10**400 * 1.5 }}", "int too large to convert to float."),
        ("{{ text.split('') }}", "empty separator."),
        ("{{ '%d' % text }}", "%d format: a real number is required, not str."),
        ("{{ text.encode('ascii').decode('utf-16') }}", "'utf-16-le' codec can't decode byte 0x78"),
        ("{{ '{}{}'.format(text) }}", "index out of range."),
        ("{{ [1, 'a']|sort }}", "'<' not supported between instances of 'str' and 'int'."),
        ("{{ missing }}", "'missing' is undefined."),
        ("{{ text.__class__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
        ("{{ range(10**9) }}", "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."),
        ("{{ text", "unexpected end of template, expected 'end of print statement' (line 1)."),
        ("a\n\n{% if %}", "Expected an expression, got 'end of statement block' (line 3)."),
        (
            "{% include '/etc/passwd' %}",
            "it includes the file `/etc/passwd`, but a template must be self-contained",
        ),
        ("{% extends 'base.jinja' %}", "it includes the file `base.jinja`, but a template must be self-contained"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it is nested too deeply, or recurses endlessly."),
        ("{{ " + "(" * DEEP + "1" + ")" * DEEP + " }}", "it is nested too deeply, or recurses endlessly."),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("{{ 'x' * 10**10 }}", "it needs too much memory for a prompt."),
        ("{{ 10**10 * [text] }}", "it needs too much memory for a prompt."),
        ("{{ 10**(10**10) }}", "it needs too much memory for a prompt."),
        ("{{ 9**9999 }}", "Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_failures(source: str, reason: str) -> None:
    assert reason in fail(source, text="x")


def test_endless_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_MAX_CHARACTERS", 1_000)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    assert fail(loops) == "it needs too much memory for a prompt."


def test_failure_without_a_row() -> None:
    with pytest.raises(ConfigError, match=r"^`prompt` is not a usable Jinja template: division by zero\.$"):
        UserTemplate("`prompt`", "{{ 1 / 0 }}").render({})
