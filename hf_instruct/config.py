"""The settings of an experiment, with a section per stage.

An experiment file is YAML 1.2, read by ruamel.yaml, which parses `5e-5` as a number and refuses duplicate keys. It is
validated by pydantic, which reports all problems, whereas jsonargparse, tyro and OmegaConf stop at the first. Flags
(`--train.learning_rate 1e-5`) override the file, and the file overrides the defaults.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from hf_instruct.console import redact
from hf_instruct.errors import ConfigError, quote_names
from hf_instruct.library_fields import DEFAULTS, OWN_TRAINING, SECTIONS, check_generate_fields, check_library_fields
from hf_instruct.schema import SFT, UNTUNED
from hf_instruct.validation import format_problems
from hf_instruct.yaml_text import parse_flag_value, read_yaml

# No split may be empty.
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class SourceSection(_Section):
    """One of several sources, with the field names of TRL's `DatasetConfig`."""

    path: str = Field(description="a named source, a local file or a Hub dataset")
    name: str | None = Field(None, description="configuration name of a Hub dataset")
    split: str = Field("train", description="split to read of a Hub dataset or a saved `DatasetDict`")
    columns: list[str] | None = Field(None, description="use only these columns")
    fraction: PositiveFloat | None = Field(
        None, description="share of the mixture, for all sources or for none; rows are sampled with `data.seed`"
    )
    map: dict[str, str] = Field({}, description="our field = the source's column, as in `output=answer`")
    revision: str | None = Field(None, description="commit, tag or branch on the Hub")
    limit: PositiveInt | None = Field(None, description="use only the first N rows")


def _read_sources(value: Any) -> Any:
    """Replace each name in a list of sources by a mapping with that `path`."""
    return [{"path": part} if isinstance(part, str) else part for part in value] if isinstance(value, list) else value


# Tagged, because pydantic would otherwise list the problems of both alternatives.
Sources = Annotated[
    Annotated[str, Tag("[one]")] | Annotated[list[SourceSection], Field(min_length=1), Tag("[several]")],
    Discriminator(lambda value: "[several]" if isinstance(value, list) else "[one]"),
    BeforeValidator(_read_sources),
]


class DataSection(_Section):
    """Where the examples come from and how they are split."""

    source: Sources = Field(
        "instruction-data", description="a named source, a local file or a Hub dataset; or a list of several"
    )
    map: dict[str, str] = Field({}, description="our field = the source's column, as in `output=answer`")
    hub_config: str | None = Field(None, description="configuration name of a Hub dataset")
    hub_split: str = Field("train", description="split to read of a Hub dataset or a saved `DatasetDict`")
    revision: str | None = Field(None, description="commit, tag or branch of a Hub dataset")
    limit: PositiveInt | None = Field(None, description="use only the first N examples")
    split: Literal["sequential", "shuffled", "grouped"] = Field(
        "sequential",
        description="`sequential`: file order; `shuffled`: seeded shuffle; `grouped`: shuffled, with equal prompts "
        "kept together",
    )
    train_fraction: Fraction = Field(0.85, description="share of the examples to train on")
    test_fraction: Fraction = Field(0.10, description="share held out for answers and scores")
    validation_fraction: Fraction | None = Field(None, description="share for validation loss (default: the rest)")
    seed: int = Field(123, description="seed of the shuffled and grouped splits")
    num_proc: PositiveInt | None = Field(None, description="number of processes for tokenization (default: one)")
    strict: bool = Field(False, description="refuse data with test or validation prompts that are also in train")
    loss_on: Literal["all", "last"] = Field(
        "all", description="answers of a conversation to train on: all, or only the last one"
    )
    prompt_format: str | None = Field(
        None,
        description="`alpaca`, `alpaca-stanford`, `phi3`, `chat` or a Jinja file (default: `chat` for "
        "conversations, otherwise `alpaca`)",
    )

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        total = math.fsum([self.train_fraction, self.test_fraction, self.validation_fraction or 0])
        seen = f"fractions sum to {total:.6g}"
        if self.validation_fraction is None and total > 1 - 1e-9:
            raise ValueError(f"{seen} and leave nothing for validation; lower `train_fraction` or `test_fraction`")
        if self.validation_fraction is not None and abs(total - 1) > 1e-9:
            raise ValueError(f"{seen}; they must sum to 1 (leave `validation_fraction` out to use the rest)")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """The share of each split."""
        rest = 1 - self.train_fraction - self.test_fraction
        return {"train": self.train_fraction, "test": self.test_fraction, "validation": rest}

    @property
    def source_name(self) -> str:
        """The source, as shown in messages."""
        return " + ".join(self.paths)

    @property
    def paths(self) -> list[str]:
        """The names of the sources."""
        if isinstance(self.source, str):
            return [self.source]
        return [part.path for part in self.source]


class ModelSection(_Section):
    """The base model, and how to load it."""

    name: str = Field("gpt2-medium", description="an alias such as `gpt2-medium`, a Hub id or a local folder")
    revision: str | None = Field(None, description="commit, tag or branch on the Hub")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.0, description="dropout rate during fine-tuning; null keeps the model's own"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="precision of the weights during fine-tuning; `train.bf16` sets the precision of the computation",
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None, description="store the frozen weights below an adapter in 4 (NF4) or 8 bits; needs bitsandbytes"
    )
    attn_implementation: str | None = Field(
        None, description="`sdpa`, `eager`, `flash_attention_2` or a kernel on the Hub (default: the model's own)"
    )
    use_kernels: bool = Field(False, description="let Transformers use kernels from the Hub; needs `kernels`")

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `load_model` for the model and for models tuned from it."""
        return self.model_dump(include={"trust_remote_code", "attn_implementation", "use_kernels"})


class GenerateSection(BaseModel):
    """How the test split is answered; any field of `GenerationConfig` can be set, too."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    batch_size: PositiveInt | None = Field(None, description="prompts per batch (default: as many as fit into memory)")
    max_new_tokens: PositiveInt = Field(256, description="maximum length of an answer, in tokens")
    do_sample: bool = Field(False, description="sample instead of taking the most likely token")
    base: bool = Field(True, description="also answer with the untuned model, for comparison")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of the weights; in float32 answers do not depend on the batch size"
    )
    seed: int = Field(123, description="seed of sampling")
    limit: PositiveInt | None = Field(None, description="answer only the first N examples")
    endpoint: str | None = Field(
        None, description="OpenAI-compatible server that serves the tuned model and generates the answers"
    )
    model: str | None = Field(None, description="name of the model at `endpoint`")
    concurrency: PositiveInt = Field(8, description="parallel requests to `endpoint`")


class JudgeSection(_Section):
    """Who scores the answers, and how."""

    backend: Literal["auto", "ollama", "local", "openai"] = Field(
        "auto", description="`ollama`, `local`, `openai`, or `auto` (Ollama if a server answers, otherwise `local`)"
    )
    model: str | None = Field(None, description="the judge's tag, Hub id or folder; each backend has a default")
    rubric: str = Field("course", description="`course`, `fenced`, `critique`, `five-point` or a YAML file")
    base: bool = Field(True, description="also judge the untuned model's answers")
    check: bool = Field(True, description="test the judge first, with 20 references and 20 wrong answers")
    base_url: str | None = Field(None, description="address of the server (default: OLLAMA_HOST, OPENAI_BASE_URL)")
    pull: bool = Field(False, description="let Ollama download a missing model")
    concurrency: PositiveInt = Field(4, description="parallel requests")
    timeout_seconds: PositiveFloat = Field(120.0, description="maximum time to wait for a reply, in seconds")
    retries: NonNegativeInt = Field(3, description="retries if the server is busy or fails")
    seed: int | None = Field(123, description="seed for the judge; null if the server does not support one")
    repeats: PositiveInt = Field(1, description="number of times each answer is judged, each with another seed")
    temperature: NonNegativeFloat | None = Field(
        0.0, description="0 for the most likely verdict; null if the server does not allow setting it"
    )
    think: Literal[False, True, "low", "medium", "high"] = Field(
        False,
        description="let the judge think first, within `max_new_tokens`: true, `low`, `medium` or `high`",
    )
    num_ctx: PositiveInt = Field(4096, description="the judge's context window, in tokens")
    max_new_tokens: PositiveInt = Field(512, description="maximum length of a reply, in tokens")


class PreferencesSection(_Section):
    """Section `preferences`: the pairs for the `dpo` section."""

    source: str = Field(
        "references",
        description="`references` (each training example's output and the model's own answer), or a file or the id "
        "of a dataset on the Hub with `chosen` and `rejected`",
    )
    limit: PositiveInt | None = Field(None, description="use only the first N pairs")


class RewardsSection(_Section):
    """Section `rewards`: the weight of each reward for the `grpo` section."""

    exact_match: float = Field(0.0, description="1 if the answer equals the reference, ignoring case and punctuation")
    token_f1: float = Field(0.0, description="share of words that answer and reference share, 0 to 1")
    rouge_l: float = Field(0.0, description="longest common sequence of words, 0 to 1")
    stopped: float = Field(0.0, description="1 if the model ended the answer itself")
    length: float = Field(0.0, description="ratio of the lengths of answer and reference, or its inverse: at most 1")
    judge: float = Field(0.0, description="score by the judge in `judge`, 0 to 1; failed verdicts are ignored")
    categories: list[str] | None = Field(None, description="use only training prompts of these categories")

    @property
    def weights(self) -> dict[str, float]:
        """The nonzero weights, by reward."""
        return {name: weight for name, weight in self.model_dump(exclude={"categories"}).items() if weight}


class Experiment(_Section):
    """One experiment: everything a run depends on.

    `train` has the fields of TRL's `SFTConfig`, and `lora` those of PEFT's `LoraConfig`. `dpo` (TRL's `DPOConfig`)
    trains on preferences, and `grpo` (TRL's `GRPOConfig`) on rewards.
    """

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: dict[str, Any] = {}
    lora: dict[str, Any] | None = None
    dpo: dict[str, Any] | None = None
    preferences: PreferencesSection = PreferencesSection()
    grpo: dict[str, Any] | None = None
    rewards: RewardsSection = RewardsSection()
    generate: GenerateSection = GenerateSection()
    judge: JudgeSection = JudgeSection()

    @property
    def method(self) -> str:
        """How the run trains: `SFT`, `DPO` or `GRPO`."""
        return "DPO" if self.dpo is not None else "GRPO" if self.grpo is not None else "SFT"

    @property
    def start(self) -> str:
        """The name of the model before training, in all files and views."""
        return UNTUNED if self.method == "SFT" else SFT

    @property
    def given(self) -> dict[str, Any]:
        """The fields set in the training section."""
        return getattr(self, SECTIONS[f"{self.method}Config"])  # type: ignore[no-any-return]

    @property
    def training(self) -> dict[str, Any]:
        """The training settings, merged with their defaults."""
        return {**DEFAULTS[f"{self.method}Config"], **self.given}


def load_experiment(
    path: str | Path | None, overrides: Mapping[str, Any] | None = None, *, deep: bool = True
) -> Experiment:
    """Return the experiment in a YAML file, overridden by flags.

    Args:
        path: The experiment file, or the `run.yaml` of a run, which contains one; None means defaults only.
        overrides: Dotted names and values, as in `{"train.learning_rate": 1e-5}`.
        deep: Also check `train`, `lora` and `generate` against the fields of TRL, PEFT and Transformers.

    Raises:
        ConfigError: The file is missing or not YAML, or has problems; all of them are listed.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    if isinstance(values.get("experiment"), dict) and "versions" in values:
        values = values["experiment"]
        if isinstance(model := values.get("model"), dict):
            # The author of a run cannot decide for its user which code is trusted.
            model.pop("trust_remote_code", None)
    for dotted, value in (overrides or {}).items():
        _set_dotted(values, dotted, value)
    sources = [f"`{path}`"] * (path is not None) + ["the flags"] * bool(overrides)
    return build_experiment(values, where=" and ".join(sources) or "the defaults", deep=deep)


def build_experiment(values: Mapping[str, Any], *, where: str, deep: bool = True) -> Experiment:
    """Return the experiment described by nested plain values; `where` names their source in errors.

    Raises:
        ConfigError: There are problems; all of them are listed.
    """
    if isinstance(values, Mapping):
        # `lora:` with nothing below it means LoRA with the defaults.
        values = {name: {} if section is None else section for name, section in values.items()}
    problems: list[str] = []
    try:
        experiment = Experiment.model_validate(values)
        problems += _check_across(experiment)
    except ValidationError as error:
        problems += format_problems(error, Experiment)
    if deep:
        problems += check_library_fields(values)
        problems += check_generate_fields(values.get("generate"), GenerateSection.model_fields)
    if problems:
        raise ConfigError.listing(problems, f"in {where}")
    return experiment


def plain_values(experiment: Experiment) -> dict[str, Any]:
    """Return the plain values of an experiment for `run.yaml`, without secrets."""
    values: dict[str, Any] = redact(experiment.model_dump(mode="json"))
    for name, companion in (("lora", ""), ("dpo", "preferences"), ("grpo", "rewards")):
        if values[name] is None:
            # In an experiment file, an empty `lora:` means LoRA with the defaults; without LoRA the key must be absent.
            del values[name]
            values.pop(companion, None)
    return values


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the sorted dotted names of the settings that differ between the `plain_values` of two experiments.

    >>> differing_settings({"train": {"seed": 1, "bf16": True}, "lora": None}, {"train": {"seed": 2}, "lora": {"r": 8}})
    ['lora', 'train.bf16', 'train.seed']
    """
    names = []
    for section in {*old, *new}:
        before, after = old.get(section), new.get(section)
        if before is None or after is None:
            names += [section] if before is not after else []
        else:
            names += [f"{section}.{key}" for key in {*before, *after} if before.get(key) != after.get(key)]
    return sorted(names)


def parse_setting(dotted: str, text: str) -> Any:
    """Parse the text of a flag: as YAML, or as plain text for text fields.

    >>> parse_setting("data.revision", "1e5"), parse_setting("data.limit", "7"), parse_setting("data.revision", "null")
    ('1e5', 7, None)
    """
    section, _, name = dotted.partition(".")
    fields = getattr(Experiment.model_fields[section].annotation, "model_fields", {})
    if dotted == "data.source":
        return parse_flag_value(text) if text.startswith("[") else text
    takes_text = name in fields and str in (fields[name].annotation, *get_args(fields[name].annotation))
    return text if takes_text and text != "null" else parse_flag_value(text)


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[last] = value


def _check_across(experiment: Experiment) -> list[str]:
    data = experiment.data
    problems = []
    model = experiment.model
    if experiment.dpo is not None and model.quantization:
        problems.append(
            f"`model.quantization` is {model.quantization!r}, and preference training needs unquantized weights: "
            "leave it out"
        )
    elif experiment.lora is None and model.quantization:
        problems.append(
            f"`model.quantization` is {model.quantization!r}, and quantized weights cannot be trained; add a `lora` "
            "section to train an adapter, or leave it out"
        )
    if experiment.lora is None and model.dtype == "float16":
        problems.append(
            "`model.dtype` is 'float16', which is not precise enough to train the weights; set 'bfloat16' or "
            "'float32', or add a `lora` section"
        )
    for name, owner in (("preferences", "dpo"), ("rewards", "grpo")):
        if getattr(experiment, owner) is None and getattr(experiment, name) != Experiment.model_fields[name].default:
            problems.append(f"`{name}` needs a `{owner}` section: add one, or leave `{name}` out")
    if "reward_weights" in (experiment.grpo or {}):
        problems.append("`grpo.reward_weights` cannot be set; set the weights in the `rewards` section")
    methods = [name for name in ("dpo", "grpo") if getattr(experiment, name) is not None]
    methods += ["train"] * bool(experiment.train)
    if len(methods) > 1:
        problems.append(
            f"{quote_names(methods)} cannot be combined, because a run trains once; keep one of these sections"
        )
    if not isinstance(data.source, str):
        alone = {"map": "map", "hub_config": "name", "revision": "revision"}
        given = [name for name in alone if getattr(data, name)]
        problems += [
            f"`data.{name}` applies to a single source; with several sources, set `{alone[name]}` for each"
            for name in given
        ]
    return problems


def describe_fields() -> list[tuple[str, Any, str]]:
    """Return the dotted name, default and help text of each of our own fields, for `--help` and the docs."""
    rows: list[tuple[str, Any, str]] = []
    for section_name, section in Experiment.model_fields.items():
        # `train` and `lora` are mappings with fields of TRL and PEFT, plus a few of our own.
        if section_name == "train":
            rows += [(f"train.{name}", *described) for name, described in OWN_TRAINING.items()]
        for name, field in getattr(section.annotation, "model_fields", {}).items():
            rows.append((f"{section_name}.{name}", field.default, field.description or ""))
    return rows
