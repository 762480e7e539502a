"""The published folder: weights, tokenizer, configs, prompt format and card, and nothing private."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_instruct.console import redact
from hf_instruct.errors import PublishError
from hf_instruct.hub.card import LOSS_PLOT, PROMPT_FILE, build_card, list_leaderboard_entries
from hf_instruct.hub.gguf_file import check_gguf, check_model, write_gguf
from hf_instruct.hub.merging import RunModel, change_json, load_run_model, write_model
from hf_instruct.hub.publication import Publication, public_name
from hf_instruct.hub.templates import build_modelfile, shape_prompt
from hf_instruct.models import cache_folder, context_length
from hf_instruct.prompts import CHAT
from hf_instruct.records import read_file, write_json, write_text

logger = logging.getLogger(__name__)

CARD = "README.md"
GGUF_TYPES = ("Q8_0", "F16")
# Files that programs may look for when they load a model; a repository's other files belong to its owner.
_OURS = re.compile(
    r"(.*\.safetensors(\.index\.json)?|(adapter_|generation_|tokenizer_)?config\.json|tokenizer\.(json|model)"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|(additional_chat_templates/)?.*\.jinja"
    rf"|\.eval_results/lm_eval_.*\.yaml|.*-({'|'.join(GGUF_TYPES)})\.gguf|template|system|params|{re.escape(LOSS_PLOT)})"
)
# Files with text by people or libraries; a vocabulary may contain any string.
_TEXTS = (
    *("config.json", ".md", ".jinja", ".py", ".yaml", ".index.json", "special_tokens_map.json"),
    *("template", "system", "params"),
)
# Fields in which libraries store the path of the file they read.
_PATHS = (
    "_name_or_path",
    "_model_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
    "tokenizer_file",
    "vocab_file",
)
# Home folders on any machine: a run may be published from another machine than the one it was made on.
_HOMES = re.compile(r"/(?:home|Users)/[^/\s\"']+/|[A-Za-z]:\\{1,2}Users\\")


def write_folder(plan: Publication, folder: Path, *, link: bool = False) -> None:
    """Write all files that are published of a run into an empty or new folder.

    Args:
        plan: The publication.
        folder: The folder.
        link: Link to the run's weights instead of copying them, if possible.

    Raises:
        PublishError: A file would publish something private, or the model cannot be written as GGUF.
        ModelLoadError: The tokenizer, or the base model of an adapter that is merged, cannot be loaded.
        OSError: The folder cannot be written.
    """
    from huggingface_hub import eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]  # exported lazily

    run = plan.results.folder
    source = load_run_model(run) if plan.options.gguf else None
    if source is not None:
        # Before the other files, which Transformers would read together with a GGUF file.
        _write_gguf_files(source, folder, plan.name)
    tokenizer = write_model(run, folder, merge=not plan.is_adapter, link=link, source=source)
    if plan.is_adapter:
        changes = {"base_model_name_or_path": plan.base.hub_id, "revision": plan.base.revision}
        change_json(folder / "adapter_config.json", **changes)
    if plan.prompt_format.name != CHAT:
        write_text(folder / PROMPT_FILE, plan.prompt_format.template)
    if run.loss_plot.is_file():
        shutil.copyfile(run.loss_plot, folder / LOSS_PLOT)
    for path in folder.glob("*config.json"):
        values = read_file(path, dict[str, Any]) or {}
        write_json(path, {name: value for name, value in values.items() if name not in _PATHS})
    for task, entry in list_leaderboard_entries(plan.results):
        (folder / ".eval_results").mkdir(exist_ok=True)
        write_text(folder / f".eval_results/lm_eval_{task}.yaml", yaml_dump(eval_result_entries_to_yaml([entry])))
    write_text(folder / CARD, redact(str(build_card(plan, tokenizer))))
    check_private(folder, plan)


def _write_gguf_files(source: RunModel, folder: Path, name: str) -> None:
    """Write the model for llama.cpp, with the template and the options for `ollama run hf.co/...`.

    Source: https://huggingface.co/docs/hub/ollama, "Custom Chat Template and Parameters".
    """
    check_model(source)
    folder.mkdir(parents=True, exist_ok=True)
    modelfile = build_modelfile(
        shape_prompt(source.prompt_format, source.tokenizer), context=context_length(source.model)
    )
    for tensor_type in GGUF_TYPES:
        path = folder / f"{name}-{tensor_type}.gguf"
        logger.info("Writing %s and comparing it with the run's model", path.name)
        write_gguf(source, path, tensor_type=tensor_type)
        check_gguf(path, source, tensor_type=tensor_type)
    write_text(folder / "template", modelfile.template)
    if modelfile.system:
        write_text(folder / "system", modelfile.system)
    write_json(folder / "params", modelfile.parameters)


def is_ours(path: str) -> bool:
    """Return whether a file of a repository is one that publishing writes, and may remove if it is out of date.

    >>> is_ours("model-00001-of-00002.safetensors"), is_ours("adapter_config.json"), is_ours("images/me.png")
    (True, True, False)
    """
    return bool(_OURS.fullmatch(path))


def list_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file, by its path in the folder, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def check_private(folder: Path, plan: Publication) -> None:
    """Refuse a folder whose texts contain a token, a password, or a path on the user's machine.

    Args:
        folder: The folder to publish.
        plan: The publication; its names of the user's own files and folders must not be in the folder.

    Raises:
        PublishError: A file contains one; the error names the file, not the secret.
    """
    from huggingface_hub import get_token

    private, token = list(_private_patterns(plan)), get_token()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(_TEXTS)):
        text = path.read_text(encoding="utf-8", errors="replace")
        what = "a token or password" if redact(text) != text or (token and token in text) else ""
        if not what and any(pattern.search(text) for pattern in private):
            what = "the path of a folder on this machine"
        if what:
            raise PublishError(
                f"`{path.name}` contains {what}. Remove it from the file in `{plan.results.folder.model}` or from "
                "the prompt format; nothing was published."
            )


def _private_patterns(plan: Publication) -> Iterator[re.Pattern[str]]:
    folders = {Path.home(), Path.cwd(), plan.results.folder.path.resolve(), cache_folder().resolve()}
    for folder in folders:
        # Only at the start of a path and with a separator after it: if this is `/datasets`, neither `/datasets` nor the
        # address `https://huggingface.co/datasets/...` is a path on this machine.
        if len(str(folder)) > 1:
            yield re.compile(rf"(?<![\w.-]){re.escape(f'{folder}{os.sep}')}")
    experiment = plan.results.experiment
    named = (experiment.preferences.source, experiment.data.prompt_format)
    names = (*experiment.data.paths, *named, experiment.judge.rubric, experiment.judge.model)
    private = [name for name in names if name and not public_name(name, "")]
    if "/" in experiment.model.name and experiment.model.name != plan.base.hub_id:
        private.append(experiment.model.name)
    for name in private:
        yield re.compile(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])")
    yield _HOMES
