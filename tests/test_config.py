from pathlib import Path

import pytest

from hf_instruct.config import (
    Experiment,
    build_experiment,
    describe_fields,
    dump_yaml,
    load_experiment,
    parse_flag_value,
    read_yaml,
)
from hf_instruct.errors import ConfigError
from hf_instruct.run_folder import plain_values


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults_of(values: dict, *, deep: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, where="here", deep=deep)
    return caught.value.problems


def test_defaults_are_the_course() -> None:
    experiment = load_experiment(None, deep=False)
    assert experiment.data.source == "instruction-data"
    assert (experiment.data.train_fraction, experiment.data.test_fraction) == (0.85, 0.10)
    assert experiment.model.name == "gpt2-medium"
    assert experiment.lora is None
    assert experiment.generate.do_sample is False


def test_flag_beats_file_beats_default(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  limit: 7\n  seed: 1\ntrain:\n  learning_rate: 1e-3\n")
    experiment = load_experiment(path, {"data.seed": 2, "train.learning_rate": 2e-3, "lora.r": 4}, deep=False)
    assert (experiment.data.limit, experiment.data.seed, experiment.data.split) == (7, 2, "sequential")
    assert experiment.train == {"learning_rate": 2e-3}
    assert load_experiment(str(path), deep=False).data.seed == 1
    assert experiment.lora == {"r": 4}


def test_flag_reaches_into_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  map: {instruction: question}\n")
    assert load_experiment(path, {"data.map.output": "answer"}, deep=False).data.map == {
        "instruction": "question",
        "output": "answer",
    }


def test_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    value = load_experiment(write(tmp_path, "train:\n  learning_rate: 5e-5\n")).train["learning_rate"]
    assert isinstance(value, float)
    assert value == 5e-5


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"trian": {}}, "`trian` is unknown. Did you mean `train`?"),
        ({"data": {"sauce": "x"}}, "`data.sauce` is unknown. Did you mean `source`?"),
        (
            {"model": {"zzz": 1}},
            "`model.zzz` is unknown. Allowed are `dropout`, `name`, `revision`, `trust_remote_code`.",
        ),
        ({"data": {"limit": 0}}, "`data.limit` is 0; input should be greater than or equal to 1"),
        (
            {"data": {"split": "random"}},
            "`data.split` is 'random'; input should be 'sequential', 'shuffled' or 'grouped'",
        ),
        ({"judge": {"timeout_seconds": 0}}, "`judge.timeout_seconds` is 0; input should be greater than 0"),
        ({"data": 5}, "`data` is 5; input should be a valid dictionary or instance of DataSection"),
        ({"lora": 5}, "`lora` is 5; input should be a valid dictionary"),
        (
            {"data": {"train_fraction": 0.8, "test_fraction": 0.5}},
            "`data.train_fraction` and `data.test_fraction` sum to 1.3 and leave nothing for validation; lower one of "
            "them",
        ),
        (
            {"data": {"train_fraction": 0.9}},
            "`data.train_fraction` and `data.test_fraction` sum to 1 and leave nothing for validation; lower one of "
            "them",
        ),
        ({"data": {"test_fraction": 0}}, "`data.test_fraction` is 0; input should be greater than 0"),
        (
            {"data": {"train_fraction": 0.8, "test_fraction": 0.1, "validation_fraction": 0.2}},
            "`data.train_fraction`, `data.test_fraction` and `data.validation_fraction` sum to 1.1; they should sum "
            "to 1 (leave the last out to give it the rest)",
        ),
    ],
)
def test_each_fault_names_its_key_and_remedy(values: dict, fault: str) -> None:
    assert faults_of(values) == [fault]


def test_fractions_that_sum_to_one_in_floating_point_are_right() -> None:
    values = {"train_fraction": 0.7, "test_fraction": 0.2, "validation_fraction": 0.1}
    assert build_experiment({"data": values}, where="here", deep=False).data.validation_fraction == 0.1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["judge.temperature", "judge.timeout_seconds", "data.train_fraction", "model.dropout"])
def test_every_number_is_finite(name: str, value: float) -> None:
    section, field = name.split(".")
    (fault,) = faults_of({section: {field: value}})
    assert fault.startswith(f"`{name}` is {value}; input should be ")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"train": {"learning_rat": 1}}, "`train.learning_rat` is unknown. Did you mean `learning_rate`?"),
        ({"train": {"learning_rate": "fast"}}, "`train.learning_rate` is 'fast'; input should be a valid number"),
        ({"train": {"learning_rate": float("nan")}}, "`train.learning_rate` is nan; input should be a finite number"),
        ({"train": {"seed": -1}}, "`train.seed` is -1; input should be greater than or equal to 0"),
        ({"train": {"num_train_epochs": 0}}, "`train.num_train_epochs` is 0; input should be greater than 0"),
        ({"lora": {"r": 0}}, "`lora.r` is 0; input should be greater than or equal to 1"),
        ({"lora": {"bias": "some"}}, "`lora.bias` is 'some'; input should be 'none', 'all' or 'lora_only'"),
        ({"train": {"zzzzzz": 1}}, "`train.zzzzzz` is unknown."),
        (
            {"train": {"output_dir": "x"}},
            "`train.output_dir` is not for you to set; the run folder decides it; use `--run-dir`",
        ),
        (
            {"train": {"hub_token": "hf_secret"}},
            "`train.hub_token` is not for you to set; a token never belongs in a file or on a command line; "
            "log in with `hf auth login`",
        ),
        (
            {"train": {"eos_token": "<|im_end|>"}},
            "`train.eos_token` is not for you to set; `data.prompt_format` decides how a completion ends",
        ),
        ({"lora": {"lora_aplha": 4}}, "`lora.lora_aplha` is unknown. Did you mean `lora_alpha`?"),
        (
            {"generate": {"return_dict_in_generate": True}},
            "`generate.return_dict_in_generate` is not for you to set; only the tokens are kept",
        ),
        ({"generate": {"top_q": 4}}, "`generate.top_q` is unknown. Did you mean `top_p`?"),
    ],
)
def test_fields_of_the_libraries_are_checked(values: dict, fault: str) -> None:
    assert faults_of(values, deep=True) == [fault]


def test_fields_of_the_libraries_are_taken() -> None:
    values = {
        "train": {"learning_rate": 1, "lr_scheduler_type": "cosine", "optim": "adamw_torch", "max_length": None},
        "lora": {"r": 4, "target_modules": ["c_attn"]},
        "generate": {"top_p": 0.9, "temperature": 0.7, "do_sample": True},
    }
    experiment = build_experiment(values, where="here")
    assert experiment.train["lr_scheduler_type"] == "cosine"
    assert experiment.generate.model_dump()["top_p"] == 0.9


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path, "daat: {}\ndata: {limit: -1}\ntrain: {learning_rat: 1}\nlora: {rr: 1}\ngenerate: {topp: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, {"judge.retries": -1})
    keys = [fault.split("`")[1] for fault in caught.value.problems]
    assert sorted(keys) == ["daat", "data.limit", "generate.topp", "judge.retries", "lora.rr", "train.learning_rat"]
    assert str(caught.value).startswith(f"6 problems in `{path}` and the flags:\n  - `")


@pytest.mark.parametrize("section", ["train", "lora", "generate", "data"])
def test_a_key_that_is_no_text_is_a_fault_not_a_crash(section: str) -> None:
    assert any("1" in fault for fault in faults_of({section: {1: 2}}, deep=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data:\n  source: caf\xe9\n", "`{path}` is not UTF-8 text (byte 19)."),
        (b"- a\n- b\n", "`{path}` holds a list; it should hold `section:` keys."),
        (b"gpt2\n", "`{path}` holds a str; it should hold `section:` keys."),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value) == message.format(path=path)


def test_invalid_yaml_names_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment.yaml` is not valid YAML: .* line 2, column"):
        read_yaml(write(tmp_path, "data:\n  source: [a\n"))


def test_a_date_that_there_is_not_is_a_fault_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment.yaml` is not valid YAML: day is out of range for month"):
        read_yaml(write(tmp_path, "model:\n  revision: 2024-02-30\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: &all {a: *all}", "`\\*all` stands inside the value that it names"),
        ("a: " + "[" * 2000, "nested too deeply"),
    ],
)
def test_a_file_that_never_ends_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, text))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='found duplicate key "seed"') as caught:
        read_yaml(write(tmp_path, "data:\n  seed: 1\n  seed: 2\n"))
    assert "To suppress" not in str(caught.value)


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, "# nothing\n"), deep=False) == Experiment()


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "experimnt.yaml")
    path = tmp_path / "experiment.yaml"
    assert str(caught.value) == f"`{tmp_path / 'experimnt.yaml'}` does not exist. Did you mean `{path}`?"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name a YAML file"):
        read_yaml(tmp_path)


def test_a_path_through_a_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(write(tmp_path, "") / "deeper.yaml")


@pytest.mark.parametrize(
    ("text", "lora"), [("lora:\n", {}), ("lora: {}\n", {}), ("", None), ("lora: {r: 2}\n", {"r": 2})]
)
def test_lora_is_on_where_its_section_is(tmp_path: Path, text: str, lora: dict | None) -> None:
    experiment = load_experiment(write(tmp_path, text), deep=False)
    assert experiment.lora == lora
    stored = write(tmp_path, dump_yaml(plain_values(experiment)))
    assert load_experiment(stored, deep=False) == experiment


def test_none_in_python_is_no_lora() -> None:
    experiment = Experiment(lora=None)
    assert experiment.lora is None
    assert Experiment.model_validate(experiment.model_dump()) == experiment


def test_values_survive_the_file(tmp_path: Path) -> None:
    values = {
        "data": {"source": "dätä: #1.json", "map": {"output": "answer"}},
        "train": {"learning_rate": 5e-5, "lr_scheduler_kwargs": {"a": 1}},
        "generate": {"top_p": 0.9},
        "judge": {"base_url": "http://127.0.0.1:11434"},
    }
    experiment = build_experiment(values, where="here", deep=False)
    stored = write(tmp_path, dump_yaml(plain_values(experiment)))
    assert load_experiment(stored, deep=False) == experiment


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("-1", -1),
        ("true", True),
        ("no", "no"),
        ("null", None),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("llama3:8b", "llama3:8b"),
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("../data/a.json", "../data/a.json"),
        ("@odd", "@odd"),
        ("'12'", "12"),
        ("2024-02-30", "2024-02-30"),
    ],
)
def test_flag_values_are_yaml(text: str, value: object) -> None:
    parsed = parse_flag_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_every_field_of_ours_is_described() -> None:
    rows = {name: (default, text) for name, default, text in describe_fields()}
    assert rows["data.train_fraction"] == (0.85, "share of the examples to train on")
    assert {name.partition(".")[0] for name in rows} == {"data", "model", "generate", "judge"}
    assert [name for name, (_, text) in rows.items() if not text] == []
