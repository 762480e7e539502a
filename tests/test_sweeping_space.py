from typing import Any

import pytest

from hf_instruct.errors import ConfigError
from hf_instruct.sweeping.space import Axis, build_grid, folder_name, parse_axes, probe_points


def problems_of(*texts: str, searched: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_axes(texts, searched=searched)
    return caught.value.problems


def test_values_are_read_as_yaml_reads_them() -> None:
    axes = parse_axes(
        ["train.learning_rate=1e-5, 5e-5", "lora.target_modules=all-linear,[q_proj, v_proj]", "train.bf16=true,null"],
        searched=False,
    )
    assert axes == [
        Axis("train.learning_rate", (1e-5, 5e-5)),
        Axis("lora.target_modules", ("all-linear", ["q_proj", "v_proj"])),
        Axis("train.bf16", (True, None)),
    ]
    # Each once, by its text: equal in Python is not the same setting.
    for text, values in (("8,16,8", (8, 16)), ("1e-4,0.0001", (1e-4,)), ("1,true", (1, True))):
        assert parse_axes([f"lora.x={text}"], searched=False)[0].values == values
    assert parse_axes(["data.prompt_format=alpaca,phi3"], searched=False)[0].values == ("alpaca", "phi3")


@pytest.mark.parametrize(
    ("text", "ends", "is_log"),
    [
        ("1e-5..1e-3", (1e-5, 1e-3), True),
        ("0.1..0.5", (0.1, 0.5), False),
        ("0.0..1.0", (0.0, 1.0), False),
        ("4..64", (4, 64), False),
        ("-2..2.5", (-2.0, 2.5), False),
    ],
)
def test_ranges(text: str, ends: tuple[float, float], is_log: bool) -> None:
    assert parse_axes([f"lora.x={text}"], searched=True) == [axis := Axis("lora.x", ends, is_range=True)]
    assert (axis.is_log, axis.is_whole) == (is_log, text == "4..64")


def test_all_problems_are_listed() -> None:
    found = problems_of(
        "train.learning_rate=", "foo=1", "lora.r=4,,8", "train.seed=1", "train.seed=2", "lora.r=4..8", "train.x=.inf"
    )
    reasons = ("is not SECTION.FIELD=VALUE",) * 3 + ("twice", "`--trials N`", "not a finite number")
    assert [reason in problem for reason, problem in zip(reasons, found, strict=True)] == [True] * 6
    assert "there is no `--set`" in problems_of()[0]
    assert "is empty" in problems_of("lora.r=8..8", searched=True)[0]


@pytest.mark.parametrize(
    "name", ["judge.seed", "generate.max_new_tokens", "data.limit", "train.max_length", "train.label_smoothing_factor"]
)
def test_what_validation_cannot_choose(name: str) -> None:
    assert problems_of(f"{name}=1,2")[0].startswith(f"`{name}` cannot be swept: it ")


def test_points() -> None:
    ones = [{"a.x": 1, "b.y": "u"}, {"a.x": 1, "b.y": "v"}]
    assert build_grid([Axis("a.x", (1, 2)), Axis("b.y", ("u", "v"))]) == [*ones, *({**p, "a.x": 2} for p in ones)]
    axes = [Axis("a.x", (1, 9), is_range=True), Axis("b.y", ("u", "v", "w"))]
    # Before a search, every value and both ends are checked.
    assert probe_points(axes) == [{"a.x": 1, "b.y": "u"}, {"a.x": 9, "b.y": "v"}, {"a.x": 1, "b.y": "w"}]


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({"train.learning_rate": 1e-5, "lora.r": 8}, "learning_rate=1e-05,r=8"),
        ({"train.seed": 1, "data.seed": 2}, "train.seed=1,data.seed=2"),
        ({"train.bf16": None}, "bf16=null"),
        ({"model.name": "../a b"}, "name=.._a_b-"),
        ({"train.learning_rate": 0.123456}, "learning_rate=0.1235-"),
        ({"lora.target_modules": ["q", "v"]}, "target_modules=q+v-"),
    ],
)
def test_folder_names(point: dict[str, Any], name: str) -> None:
    found = folder_name(point)
    # What the name does not show in full gets six digits of a hash.
    assert found == name or (name.endswith("-") and found[:-6] == name)


def test_different_points_have_different_folders() -> None:
    values = [0.123456, 0.123457, "a/b", "a b", "8", 8, True, "true", ["x"], "x" * 300]
    names = [folder_name({"train.x": value}) for value in values]
    assert len(set(names)) == len(values)
    assert all("/" not in name and len(name) < 120 for name in names)
