import re
from pathlib import Path

import pytest

from hf_instruct.config import Experiment, build_experiment, describe_fields, load_experiment, plain_values
from hf_instruct.errors import ConfigError
from hf_instruct.run_folder import RunFolder
from hf_instruct.yaml_text import dump_yaml, parse_flag_value, parse_yaml, read_yaml


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(values: dict, *, deep: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, where="here", deep=deep)
    return caught.value.problems


def test_defaults_are_the_course() -> None:
    experiment = load_experiment(None, deep=False)
    assert (experiment.data.source, experiment.model.name) == ("instruction-data", "gpt2-medium")
    assert (experiment.data.train_fraction, experiment.data.test_fraction) == (0.85, 0.10)
    assert (experiment.lora, experiment.generate.do_sample) == (None, False)


def test_flag_beats_file_beats_default(tmp_path: Path) -> None:
    path = write(
        tmp_path, "data:\n  limit: 7\n  seed: 1\n  map: {instruction: question}\ntrain:\n  learning_rate: 5e-5\n"
    )
    flags = {"data.seed": 2, "lora.r": 4, "data.map.output": "answer"}
    experiment = load_experiment(path, flags, deep=False)
    assert (experiment.data.limit, experiment.data.seed, experiment.data.split) == (7, 2, "sequential")
    assert experiment.data.map == {"instruction": "question", "output": "answer"}
    # A number, which YAML 1.1 takes for text.
    assert experiment.train == {"learning_rate": 5e-5}
    assert experiment.lora == {"r": 4}
    assert load_experiment(str(path), deep=False).data.seed == 1


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"trian": {}}, ("`trian` is unknown", "`train`?")),
        ({"data": {"sauce": "x"}}, ("`data.sauce` is unknown", "`source`?")),
        (
            {"model": {"zzz": 1}},
            ("`model.zzz` is unknown", "Choose from `attn_implementation`, `dropout`, `dtype`, `name`"),
        ),
        ({"data": {"limit": 0}}, ("`data.limit` is 0", "greater than 0")),
        ({"data": {"split": "random"}}, ("`data.split` is 'random'", "'sequential', 'shuffled' or 'grouped'")),
        ({"judge": {"timeout_seconds": 0}}, ("`judge.timeout_seconds` is 0", "greater than 0")),
        ({"data": 5}, ("`data` is 5",)),
        ({"lora": 5}, ("`lora` is 5",)),
        ({"data": {"train_fraction": 0.9}}, ("`data` fractions sum to 1 and leave nothing", "`train_fraction`")),
        ({"data": {"test_fraction": 0}}, ("`data.test_fraction` is 0",)),
        ({"data": {"train_fraction": 0.8, "test_fraction": 0.1, "validation_fraction": 0.2}}, ("sum to 1.1;",)),
    ],
)
def test_a_problem_names_its_key_and_remedy(values: dict, parts: tuple[str, ...]) -> None:
    (problem,) = problems_of(values)
    assert [part for part in parts if part not in problem] == []


@pytest.mark.parametrize("name", ["judge.temperature", "judge.timeout_seconds", "data.train_fraction", "model.dropout"])
def test_every_number_is_finite(name: str) -> None:
    section, field = name.split(".")
    for value in (float("inf"), float("nan")):
        (problem,) = problems_of({section: {field: value}})
        assert problem.startswith(f"`{name}` is {value}; ")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"train": {"learning_rat": 1}}, ("`train.learning_rat` is unknown", "`learning_rate`?")),
        ({"train": {"learning_rate": "fast"}}, ("`train.learning_rate` is 'fast'", "valid number")),
        ({"train": {"learning_rate": float("nan")}}, ("`train.learning_rate` is nan", "finite number")),
        ({"train": {"seed": -1}}, ("`train.seed` is -1",)),
        ({"train": {"num_train_epochs": 0}}, ("`train.num_train_epochs` is 0",)),
        ({"lora": {"r": 0}}, ("`lora.r` is 0",)),
        ({"lora": {"bias": "some"}}, ("`lora.bias` is 'some'", "'none', 'all' or 'lora_only'")),
        ({"train": {"zzzzzz": 1}}, ("`train.zzzzzz` is unknown",)),
        ({"train": {"output_dir": "x"}}, ("`train.output_dir` cannot be set", "`--run-dir`")),
        ({"train": {"hub_token": "hf_secret"}}, ("`train.hub_token` cannot be set", "`hf auth login`")),
        ({"train": {"lr": 1}}, ("`train.lr` is unknown", "`learning_rate`?")),
        ({"train": {"epochs": 1}}, ("`train.epochs` is unknown", "`num_train_epochs`?")),
        ({"train": {"batch_size": 1}}, ("`train.batch_size` is unknown", "`per_device_train_batch_size`?")),
        ({"lora": {"rank": 1}}, ("`lora.rank` is unknown", "`r`?")),
        ({"lora": {"alpha": 1}}, ("`lora.alpha` is unknown", "`lora_alpha`?")),
        ({"data": {"path": "a"}}, ("`data.path` is unknown", "`source`?")),
        ({"generate": {"max_tokens": 1}}, ("`generate.max_tokens` is unknown", "`max_new_tokens`?")),
        ({"lora": {"lora_aplha": 4}}, ("`lora.lora_aplha` is unknown", "`lora_alpha`?")),
        ({"generate": {"return_dict_in_generate": True}}, ("`generate.return_dict_in_generate`",)),
        ({"generate": {"top_q": 4}}, ("`generate.top_q` is unknown", "`top_p`?")),
    ],
)
def test_fields_of_the_libraries_are_checked(values: dict, parts: tuple[str, ...]) -> None:
    (problem,) = problems_of(values, deep=True)
    assert [part for part in parts if part not in problem] == []
    assert "hf_secret" not in problem


def test_fields_of_the_libraries_are_taken() -> None:
    values = {
        # Which sum to 1 in decimal numbers.
        "data": {"train_fraction": 0.7, "test_fraction": 0.2, "validation_fraction": 0.1},
        "train": {"learning_rate": 1, "lr_scheduler_type": "cosine", "optim": "adamw_torch", "max_length": None},
        "lora": {"r": 4, "target_modules": ["c_attn"]},
        "generate": {"top_p": 0.9, "temperature": 0.7, "do_sample": True},
    }
    experiment = build_experiment(values, where="here")
    assert experiment.train["lr_scheduler_type"] == "cosine"
    assert experiment.generate.model_dump()["top_p"] == 0.9


def test_all_problems_are_listed(tmp_path: Path) -> None:
    text = "daat: {}\ndata: {limit: -1}\ntrain: {learning_rat: 1}\nlora: {rr: 1}\ngenerate: {topp: 1}\n"
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, {"judge.retries": -1})
    keys = [problem.split("`")[1] for problem in caught.value.problems]
    assert sorted(keys) == ["daat", "data.limit", "generate.topp", "judge.retries", "lora.rr", "train.learning_rat"]
    assert str(caught.value).startswith(f"6 problems in `{path}` and the flags:\n  - `")
    for section in ("train", "lora", "generate", "data"):
        # A key that is not a text is no crash.
        assert any("1" in problem for problem in problems_of({section: {1: 2}}, deep=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data:\n  source: caf\xe9\n", "position 19"),
        (b"- a\n- b\n", "contains a list"),
        (b"gpt2\n", "contains a str"),
        (b"data:\n  source: [a\n", "that starts on line 2"),
        # No YAML of ruamel's, but a date that there is not.
        (b"model:\n  revision: 2024-02-30\n", "day is out of range for month"),
        (b"data:\n  seed: 1\n  seed: 2\n", 'found duplicate key "seed"'),
        (b"train: &all {a: *all}", "`*all` refers to a value that contains it"),
        (b"a: " + b"[" * 2000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_an_experiment(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"`{path}` ")
    assert message in str(caught.value)
    assert "To suppress" not in str(caught.value)


def test_the_settings_of_a_run_are_an_experiment(tmp_path: Path) -> None:
    flags = {"model.trust_remote_code": True, "data.limit": 7, "lora.r": 4}
    experiment = load_experiment(None, flags, deep=False)
    run = RunFolder(tmp_path)
    run.save_experiment(experiment)
    read = load_experiment(run.config, {"data.seed": 2}, deep=False)
    assert (read.data.limit, read.data.seed, read.lora, read.dpo) == (7, 2, {"r": 4}, None)
    assert not read.model.trust_remote_code, "the file may be from somebody else"


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"does not exist\.$"):
        read_yaml(tmp_path / "something else.yaml")
    with pytest.raises(ConfigError, match=f"does not exist. Did you mean `{path}`"):
        read_yaml(tmp_path / "experimnt.yaml")
    for unreadable in (tmp_path, path / "deeper.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(unreadable)


def test_lora_is_on_where_its_section_is(tmp_path: Path) -> None:
    for text, lora in {"# nothing\n": None, "lora:\n": {}, "lora: {}\n": {}, "lora: {r: 2}\n": {"r": 2}}.items():
        experiment = load_experiment(write(tmp_path, text), deep=False)
        stored = write(tmp_path, dump_yaml(plain_values(experiment)))
        assert load_experiment(stored, deep=False) == experiment == Experiment(lora=lora)


def test_flag_values_are_yaml() -> None:
    for text, value in {"5e-5": 5e-5, "-1": -1, "true": True, "null": None, "[a, b]": ["a", "b"], "'12'": "12"}.items():
        parsed = parse_flag_value(text)
        assert (parsed, type(parsed)) == (value, type(value))
    for text in ("no", "llama3:8b", "http://127.0.0.1:11434", "../data/a.json", "@odd", "2024-02-30"):
        assert parse_flag_value(text) == text


def test_train_accepts_our_own_fields() -> None:
    experiment = build_experiment({"train": {"keep_checkpoints": True, "max_steps": 3}}, where="here")
    assert experiment.train == {"keep_checkpoints": True, "max_steps": 3}
    (problem,) = problems_of({"train": {"keep_checkpoints": 1}}, deep=True)
    assert problem == "`train.keep_checkpoints` is 1; it must be true or false"


def test_a_field_of_several_types_is_one_problem() -> None:
    values = {"train": {"pad_to_multiple_of": [1], "lr_scheduler_kwargs": 5}, "lora": {"rank_pattern": "x"}}
    assert problems_of(values, deep=True) == [
        "`train.lr_scheduler_kwargs` is 5; it must be a mapping or text",
        "`train.pad_to_multiple_of` is [1]; it must be a whole number or text",
        "`lora.rank_pattern` is 'x'; it must be a mapping",
    ]


@pytest.mark.parametrize(
    ("values", "owner"), [({"rewards": {"exact_match": 1}}, "grpo"), ({"preferences": {"limit": 3}}, "dpo")]
)
def test_sections_without_effect_are_refused(values: dict[str, object], owner: str) -> None:
    with pytest.raises(ConfigError, match=f"needs a `{owner}` section"):
        build_experiment(values, where="here", deep=False)
    build_experiment({**values, owner: {}}, where="here", deep=False)


def test_dpo_refuses_a_quantized_model() -> None:
    with pytest.raises(ConfigError, match="preference training needs unquantized weights"):
        build_experiment({"model": {"quantization": "4bit"}, "dpo": {}, "lora": {}}, where="here", deep=False)


def test_every_own_field_has_a_description() -> None:
    rows = describe_fields()
    sections = {"data", "model", "train", "preferences", "rewards", "generate", "judge"}
    assert {name.partition(".")[0] for name, _, _ in rows} == sections
    assert [name for name, _, text in rows if not text] == []


def test_training_settings_are_merged_with_the_defaults() -> None:
    plain = build_experiment({"train": {"seed": 1}}, where="here", deep=False).training
    assert (plain["seed"], plain["learning_rate"], "beta" in plain) == (1, 5e-5, False)
    preferring = build_experiment({"dpo": {"max_length": 64}}, where="here", deep=False).training
    assert (preferring["max_length"], preferring["learning_rate"], preferring["beta"]) == (64, 5e-6, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2\n", "line 3, column 1: expected ',' or ']', but got"),
        ("a: [1,\nb: 2\n", ", while parsing a flow sequence that starts on line 1"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: \x07", "unacceptable character #x0007: special characters are not allowed at position 3"),
    ],
)
def test_yaml_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_yaml(text)
    assert "<unicode string>" not in str(caught.value)
