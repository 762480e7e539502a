"""The fields of TRL, PEFT and Transformers that an experiment may set: names, types, our defaults, and refused fields.

The libraries define these fields, but take seconds to import, and a misspelt name should be reported immediately.
`library_fields.json` lists the fields for the versions that it names; a test compares it with the libraries.
"""

import ast
import dataclasses
import functools
import importlib
import json
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, PlainValidator, ValidationError, create_model

from hf_instruct.validation import describe_unknown, format_problems

# The library of each class, and the one whose fields it inherits.
_LIBRARIES = {
    "TrainingArguments": ("transformers",),
    **dict.fromkeys(("SFTConfig", "DPOConfig", "GRPOConfig"), ("trl", "transformers")),
    "LoraConfig": ("peft",),
    "GenerationConfig": ("transformers",),
}
KINDS = tuple(_LIBRARIES)
# The types that are checked here; other types are left to the library.
_TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, bool, str)},
    "None": type(None),
    "list[str]": list[str],
    "dict": dict,
    "Any": Any,
}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "dict": "a mapping"}
# The course's settings. `output_dir` is missing, because the run folder decides it.
# Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/gpt_instruction_finetuning.py
TRAIN_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "weight_decay": 0.1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 2,
    "max_length": 1024,
    "completion_only_loss": True,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 5,
    "eval_steps": 20,
    "save_steps": 50,
    "save_total_limit": 1,
    "activation_checkpointing": False,
    "eval_strategy": "steps",
    "eval_on_start": True,
    "report_to": "none",
    "seed": 123,
}
# Our own fields in `train`, `dpo` and `grpo`: default and description.
OWN_TRAINING: dict[str, tuple[bool, str]] = {
    "keep_checkpoints": (False, "keep the checkpoints of a finished run, which are several times as large as the model")
}
# From the course's bonus chapter on preference tuning.
# Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/04_preference-tuning-with-dpo/dpo-from-scratch.ipynb
DPO_DEFAULTS: dict[str, Any] = {
    **{name: value for name, value in TRAIN_DEFAULTS.items() if name != "completion_only_loss"},
    "learning_rate": 5e-6,
    "weight_decay": 0.01,
    "num_train_epochs": 1,
    "beta": 0.1,
}
# Like DPO's, but with groups of answers to several prompts per step, and gradient clipping.
GRPO_DEFAULTS: dict[str, Any] = {
    **{name: value for name, value in DPO_DEFAULTS.items() if name not in ("beta", "max_length")},
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "num_generations": 8,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 256,
    "logging_steps": 1,
}
DEFAULTS = {"SFTConfig": TRAIN_DEFAULTS, "DPOConfig": DPO_DEFAULTS, "GRPOConfig": GRPO_DEFAULTS}
# The section for each of TRL's configurations.
SECTIONS = {"SFTConfig": "train", "DPOConfig": "dpo", "GRPOConfig": "grpo"}
# The course scales the update by alpha, PEFT by alpha / r: with r = 16 the same scale is alpha 256.
# Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/appendix-E/01_main-chapter-code/appendix-E.ipynb
LORA_DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 256, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
# Fields of TRL's configurations that would not have the documented effect, and what to do instead.
REFUSED_TRAINING = {
    "output_dir": "the run folder decides it; use `--run-dir`",
    "push_to_hub": "checkpoints would be published unchecked, paths of this machine included; use `push`",
    "hub_token": "a token never belongs in a file or on a command line; log in with `hf auth login`",
    "resume_from_checkpoint": "use `--resume`",
    "model_init_kwargs": "the model is loaded before, for the untuned answers too; see the `model` section",
    "dataset_text_field": "rows come from the `data` section; map columns with `data.map`",
    "truncation_mode": "the end of a row is what is cut off, so that every row begins as a prompt does",
    "logging_nan_inf_filter": "a loss that is not a number ends the run",
    "sync_ref_model": "the reference is the model that training begins with",
    "chat_template_kwargs": "`data.prompt_format` writes the prompts",
    "log_completions_hub_repo": "answers would be published unchecked",
    "trust_remote_code": "the model is loaded before; set `model.trust_remote_code`",
    "cache_implementation": "answers are sampled with the cache that suits the model",
    "num_generations_eval": "held-out prompts get one greedy answer each",
    "max_tool_calling_iterations": "the model is given no tools",
}
# Values of these fields, in addition to null, that change nothing; `logging_nan_inf_filter` is False in every run.
_HARMLESS = {
    **dict.fromkeys(("push_to_hub", "logging_nan_inf_filter", "sync_ref_model", "trust_remote_code"), False),
    "num_generations_eval": 1,
    "truncation_mode": "keep_start",
    "dataset_text_field": "text",
}
# Bounds that TRL and PEFT do not check, so that a run would fail hours later or not at all.
_BOUNDS = {
    **dict.fromkeys(("seed", "data_seed"), Field(ge=0, lt=2**32)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Field(ge=1)),
    **dict.fromkeys(("gradient_accumulation_steps", "max_length", "max_completion_length", "r"), Field(ge=1)),
    "num_train_epochs": Field(gt=0),
    "learning_rate": Field(ge=0),
    "temperature": Field(gt=0),
    "lora_dropout": Field(ge=0, lt=1),
}
NOT_TO_GENERATE = {
    "return_dict_in_generate": "only the tokens are kept",
    "max_length": "set `generate.max_new_tokens`",
    "max_time": "answers would depend on the machine and on the batch; set `generate.max_new_tokens`",
    **dict.fromkeys(
        ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"),
        "it answers one prompt at a time, and prompts are answered in batches",
    ),
}


def find_section(arguments: Any) -> str:
    """Return the section for a TRL configuration."""
    return SECTIONS.get(type(arguments).__name__, "train")


def describe_libraries() -> list[tuple[str, str, dict[str, Any]]]:
    """Return the sections with fields of other libraries, the class of each, and our defaults."""
    return [
        *((SECTIONS[kind], f"TRL's {kind}", own) for kind, own in DEFAULTS.items()),
        ("lora", "PEFT's LoraConfig", LORA_DEFAULTS),
    ]


def check_library_fields(values: Mapping[str, Any]) -> list[str]:
    """Return the problems of the sections whose fields belong to TRL, PEFT and Transformers."""
    problems = []
    for kind, section in SECTIONS.items():
        if isinstance(given := values.get(section), dict) and given:
            problems += find_refused_training(given, section=section)
            problems += [
                f"`{section}.{name}` is {given[name]!r}; it must be true or false"
                for name in OWN_TRAINING
                if not isinstance(given.get(name, False), bool)
            ]
            allowed = {name: value for name, value in given.items() if name not in {*REFUSED_TRAINING, *OWN_TRAINING}}
            problems += _check_fields(allowed, kind, section)
    if isinstance(lora := values.get("lora"), dict) and lora:
        problems += _check_fields(lora, "LoraConfig", "lora")
    return problems


def find_refused_training(settings: Mapping[str, Any], *, section: str = "train") -> list[str]:
    """Return the problems of TRL's fields in a section that would not have the documented effect."""
    refused = [name for name in REFUSED_TRAINING if settings.get(name) not in (None, _HARMLESS.get(name))]
    return [f"`{section}.{name}` cannot be set; {REFUSED_TRAINING[name]}" for name in refused]


def check_generate_fields(generate: Any, own: Collection[str]) -> list[str]:
    """Return the problems of a `generate` section: fields that `GenerationConfig` does not have or that cannot be set.

    `generate()` accepts further arguments, which may contain code: `custom_generate` names a repository.

    Args:
        generate: The section.
        own: Fields that the section itself defines.
    """
    if not isinstance(generate, Mapping) or not set(generate) - set(own):
        return []
    allowed = {*read_fields("GenerationConfig"), *own}
    unknown = [describe_unknown(f"generate.{n}", allowed) for n in generate if n not in allowed]
    return unknown + find_refused_generation(generate)


def find_refused_generation(settings: Mapping[str, Any]) -> list[str]:
    """Return the problems of `GenerationConfig` fields with which answers would depend on the batch or get lost."""
    refused = {name: reason for name, reason in NOT_TO_GENERATE.items() if settings.get(name)}
    if settings.get("cache_implementation") == "quantized":
        refused["cache_implementation"] = "a quantized cache rounds the prompts of a batch together; leave it out"
    return [f"`generate.{name}` cannot be set; {reason}" for name, reason in refused.items()]


def _check_fields(values: Mapping[str, Any], kind: str, section: str) -> list[str]:
    """Return the problems of values for another library's class: unknown names, wrong simple types or bounds."""
    fields: dict[str, Any] = {
        name: (Annotated[_parse_type(text), _BOUNDS.get(name)], None) for name, text in read_fields(kind).items()
    }
    strict = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)
    model = create_model("Fields", __config__=strict, **fields)
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        return format_problems(error, model, f"{section}.")
    return []


@functools.cache
def read_fields(kind: str) -> dict[str, str]:
    """Return the fields of a class with their types, such as `float` and `int | None`; `Any` is not checked.

    Args:
        kind: The class, one of `KINDS`.
    """
    listed = json.loads(Path(__file__).with_name("library_fields.json").read_text(encoding="utf-8"))
    if any(".".join(version(name).split(".")[:2]) not in listed["versions"][name] for name in _LIBRARIES[kind]):
        return ask_library(kind)
    # A subclass may give an inherited field another type.
    classes = ("TrainingArguments", kind) if "trl" in _LIBRARIES[kind] else (kind,)
    return {name: text for owner in classes for text, names in listed[owner].items() for name in names}


def ask_library(kind: str) -> dict[str, str]:
    """Return the fields of a class as `read_fields` does, but from the installed library."""
    owner = getattr(importlib.import_module(_LIBRARIES[kind][0]), kind)
    if kind == "GenerationConfig":
        return dict.fromkeys((name for name in owner().to_dict() if not name.startswith("_")), "Any")
    hints = get_type_hints(owner)
    return {field.name: _format_type(hints[field.name]) for field in dataclasses.fields(owner)}


def _format_type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"Literal{list(get_args(hint))}"
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    hint, *parts = (dict if get_origin(part) is dict else part for part in (hint, *members))
    names = {kind: name for name, kind in _TYPES.items()}
    if hint in names:
        return names[hint]
    if not parts or list[str] in parts or not set(parts) <= set(names):
        return "Any"
    # Sorted, because Python may return an equal union from another module, with its parts in another order.
    return " | ".join(sorted((names[part] for part in parts), key=lambda name: (name == "None", name)))


def _parse_type(text: str) -> Any:
    if text.startswith("Literal"):
        return Literal[tuple(ast.literal_eval(text.removeprefix("Literal")))]
    parts = [part for part in text.split(" | ") if part != "None"]
    if len(parts) > 1:
        # For a union, pydantic would report the problem of each alternative.
        return Annotated[Any, PlainValidator(functools.partial(_check_union, parts))]
    return _TYPES[parts[0]] | None if text.endswith("None") else _TYPES[parts[0]]


def _check_union(parts: list[str], value: Any) -> Any:
    allowed = tuple(_TYPES[part] for part in parts)
    if value is None or (isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)):
        return value
    raise ValueError(f"is {value!r}; it must be {' or '.join(_WORDS[part] for part in parts)}")
