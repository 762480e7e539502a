import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from publishing_runs import BASE_ID, END, save_chat_tokenizer, write_full_run
from tiny_models import CHAT_TEMPLATE

from hf_instruct.errors import ConfigError, DataError, PublishError, RunError
from hf_instruct.hub.card import quote_python
from hf_instruct.hub.export import export
from hf_instruct.hub.folder import check_private, list_sizes, write_folder
from hf_instruct.hub.publication import find_base_model, find_preferences, plan_publication
from hf_instruct.hub.push import write_publication
from hf_instruct.hub.templates import build_go_template, shape_prompt
from hf_instruct.models import load_model, load_tokenizer
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import read_file, write_json
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import NearDuplicate, NearDuplicates, Preflight, Provenance, Scores, TrainingSummary
from hf_instruct.yaml_text import dump_yaml, read_yaml


@pytest.fixture(scope="module")
def published(full_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "publish"
    write_publication(full_run, out, "me/assistant", license="mit")
    return out


def _write(run: RunFolder, out: Path, **options: Any) -> dict[str, int]:
    write_folder(plan_publication(run, "me/a", **options), out)
    return list_sizes(out)


def _read_card(folder: Path) -> tuple[dict[str, object], str]:
    _, metadata, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def _copy(run: RunFolder, path: Path) -> RunFolder:
    """Copy the model and the settings of a run, and nothing that was measured."""
    path.mkdir()
    shutil.copy(run.config, path)
    shutil.copytree(run.model, path / "model")
    return RunFolder(path)


def _set(run: RunFolder, section: str, **values: object) -> None:
    known = read_yaml(run.config)
    known["experiment"][section].update(values)
    run.config.write_text(dump_yaml(known))


def test_the_files_of_a_full_model(published: Path) -> None:
    names = sorted(path.name for path in published.iterdir())
    assert {"README.md", "chat_template.jinja", "loss.png", "model.safetensors", "tokenizer.json"} <= set(names)
    assert "training_args.bin" not in names
    generation = json.loads((published / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (END, END)
    assert json.loads((published / "config.json").read_text())["use_cache"] is True
    prompt_format = PromptFormat.from_name("alpaca")
    assert (published / "prompt_format.jinja").read_text() == prompt_format.template
    message = {"role": "user", "content": "Name a cloud."}
    asked = load_tokenizer(str(published)).apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert asked == prompt_format.format_prompt("Name a cloud.")


def test_the_metadata(published: Path) -> None:
    card, _ = _read_card(published)
    index = card.pop("model-index")
    assert card == {
        "base_model": BASE_ID,
        "base_model_relation": "finetune",
        "language": "en",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["hf-instruct", "instruction-tuning", "trl", "sft"],
    }
    (entry,) = index
    assert entry["name"] == "assistant"
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "everyday, held-out examples", "type": "everyday", "split": "test"}
    (score,) = result["metrics"]
    assert score == {
        "type": "judge-score",
        "value": 68.33,
        "name": "Mean score from 0 to 100 by llama3@365c0bd (ollama)",
        "args": {
            "interval_95": [20.0, 100.0],
            "standard_error": 24.55,
            "n": 3,
            "failures": 1,
            "total": 4,
            "judge": "llama3",
            "judge_backend": "ollama",
            "judge_digest": "sha256:365c0bd3c000aaaa",
            "rubric": "course",
            "rubric_sha256": "7" * 64,
            "prompts_sha256": score["args"]["prompts_sha256"],
            "base_model_mean": 26.25,
        },
    }


def test_the_text_of_the_card(published: Path) -> None:
    _, text = _read_card(published)
    base = f"[{BASE_ID}](https://huggingface.co/{BASE_ID})"
    assert text.startswith(f"\n# assistant\n\n{base}, tuned on 34 examples to follow instructions (all weights).\n")
    for line in (
        "| license of the data | apache-2.0 |",
        "| license of these weights | mit |",
        "| validation loss, nats per label token | 1.193 → 0.722 |",
        "| trained parameters | 124,439,808 of 124,439,808 |",
        "| length | 8 steps, 2 epochs, 1,800 tokens |",
        "| time and memory | 5.2 minutes and 2.1 GB on cpu, bf16 |",
        "| `learning_rate` | 5e-05 |",
        "![Training and validation loss](loss.png)",
        "| mean score, 0 to 100 | 26.3 (0.0 to 90.0), n=4 | 68.3 (20.0 to 100.0), n=3 |",
    ):
        assert f"\n{line}\n" in text, line
    assert "1 of 4 answers of the tuned model" in text
    # Paired over a, b and c: +75, +100 and -70.
    assert "+35.0 points, 95 % interval -70.0 to +100.0." in text
    assert "`logging_steps`" not in text
    assert "output_dir" not in text


def test_metrics_with_their_intervals(full_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(full_run.path, run.path)
    metrics = {"rouge_l": {"mean": 0.551704, "interval": [0.485446, 0.614565], "n": 100}}
    write_json(run.metrics, {"tuned": {"metrics": metrics, "total": 100}})
    scores = run.read_scores().to_dict()
    whole = {**scores, "interval": [20.0, 90.0], "mean_failures_as_0": 51.25, "mean_failures_as_100": 76.25}
    check = {"passed": False, "failed": ["order", "injection"], "n": 20}
    run.write_scores("tuned", Scores.model_validate({**whole, "self_check": check}, strict=False))
    row = build_benchmark(total=100, limit=40, model=str(run.path))
    write_json(run.benchmarks, {"tuned": [row, row | {"shown": False}, row | {"value": None}]})
    found = {"id": "a", "train_ids": ["x"]}
    near = NearDuplicates(threshold=0.9, test=[NearDuplicate(id="b", train_id="x", cosine=0.9)])
    seen = {"test": [found, found]}
    write_json(run.preflight, Preflight(seen_in_train=seen, near_duplicates=near, examples={"test": 4}))
    _write(run, tmp_path / "out")
    card, text = _read_card(tmp_path / "out")
    assert card["license"] == "unknown"
    # A judge that failed its check comes last.
    metric, score = card["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"], score["type"]) == ("rouge_l", 0.5517, "judge-score")
    assert metric["args"] == {"interval_95": [0.4854, 0.6146], "n": 100}
    (lm_eval,) = card["model-index"][0]["results"][1:]
    assert lm_eval["dataset"] == {"name": "everyday_choice", "type": "everyday_choice", "split": "test"}
    (metric,) = lm_eval["metrics"]
    assert (metric["type"], metric["value"]) == ("acc", 0.525)
    assert (metric["args"]["standard_error"], metric["args"]["n"]) == (0.08, 40)
    for part in (
        "| license of these weights | unknown: not specified by the publisher |",
        "| mean score, 0 to 100 (not reliable: see Limits) | 26.3 (0.0 to 90.0), n=4 | 68.3 (20.0 to 90.0), n=3 |",
        "| ROUGE-L |  | 0.55 (0.49 to 0.61), n=100 |",
        "2 of 4 test examples have the same instruction and input as a training example",
        "1 of 4 test examples is a near-duplicate of a training example",
        "failed its check on 20 examples: order (and 1 more)",
        "would make the mean 51.3 or 76.3",
    ):
        assert part in text, part


@pytest.mark.slow
def test_the_snippet_of_a_chat_model_runs(small_model: Path, tmp_path: Path) -> None:
    run = write_full_run(
        tmp_path / "run", small_model, data={"prompt_format": "chat"}, generate={"max_new_tokens": 3, "do_sample": True}
    )
    save_chat_tokenizer(run, CHAT_TEMPLATE)
    _write(run, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert not (tmp_path / "out" / "prompt_format.jinja").exists()
    _, text = _read_card(tmp_path / "out")
    assert "with the chat template in this tokenizer" in text
    assert "; sampled answers of at most 3 tokens;" in text
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1].replace('"me/a"', repr(str(tmp_path / "out")))
    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert finished.stdout.strip(), finished.stderr


def test_an_adapter_names_its_base_model_as_others_know_it(
    adapter_run: RunFolder, small_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(PublishError, match=r"s base model is a local folder.*`--base-model ID`.*`--merge`"):
        write_publication(adapter_run, tmp_path / "out", "me/a")
    assert list(tmp_path.iterdir()) == []
    sizes = write_publication(adapter_run, tmp_path / "out", "me/a", base_model=BASE_ID)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(sizes)
    assert "training_args.bin" not in sizes
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (BASE_ID, None)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == END
    card, text = _read_card(tmp_path / "out")
    assert (card["library_name"], card["base_model"]) == ("peft", BASE_ID)
    assert "| LoRA `r` | 4 |\n| LoRA `lora_alpha` | 16 |\n" in text
    assert "| LoRA `target_modules` | c_attn |" in text


@pytest.mark.parametrize("kind", ["full", "adapter", "merged"])
def test_gguf_files_and_what_ollama_asks_with(
    kind: str, full_run: RunFolder, adapter_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = _copy(full_run if kind == "full" else adapter_run, tmp_path / "zeppelin"), tmp_path / "out"
    private = _plant_private_texts(run, monkeypatch)
    sizes = write_publication(run, out, "me/a", gguf=True, merge=kind == "merged", base_model=BASE_ID)
    assert {"a-Q8_0.gguf", "a-F16.gguf", "template", "params", "tokenizer.json"} <= set(sizes)
    assert ("adapter_model.safetensors" in sizes) == (kind == "adapter")
    # A prompt without a system message of its own has none.
    assert "system" not in sizes
    shape = shape_prompt(run.load_prompt_format("alpaca"), load_tokenizer(str(run.model)))
    assert (out / "template").read_text() == build_go_template(shape)
    parameters = json.loads((out / "params").read_text())
    assert (parameters["temperature"], parameters["stop"]) == (0, ["<|endoftext|>", "### Instruction:"])
    card, text = _read_card(out)
    assert card["base_model_relation"] == ("adapter" if kind == "adapter" else "finetune")
    assert "\nollama run hf.co/me/a:Q8_0\nllama-cli -hf me/a:Q8_0 --jinja --temp 0\n" in text
    # Nothing tells of this machine or its keys: in no file, as text or as bytes, vocabulary and metadata included.
    assert "training_args.bin" not in sizes
    for name in sizes:
        content = (out / name).read_bytes()
        assert [text for text in private if text.encode() in content] == [], name


def _plant_private_texts(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write paths, an address with a password and keys to wherever a run may hold some, and return them."""
    home, address = "/srv/zeppelin", "https://me:hunter2@judge.example/v1"
    keys = {"HF_TOKEN": "hf_" + "A" * 34, "OPENAI_API_KEY": "sk-proj-" + "B" * 20, "WANDB_API_KEY": "c" * 40}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    base = run.load_experiment().model.name
    _set(run, "data", source=f"{home}/data.jsonl")
    _set(run, "judge", base_url=address, model=f"{home}/judge")
    _set(run, "train", run_name="zeppelin", logging_dir=f"{home}/logs")
    command = f"hf-instruct run {home}/x.yaml --judge.base_url {address} --key {keys['OPENAI_API_KEY']}"
    run.config.write_text(dump_yaml({**read_yaml(run.config), "command": command}))
    judge = {"backend": "openai", "model": f"{home}/judge", "digest": None, "options": {"base_url": address}}
    numbers = {"mean": 50.0, "n": 40, "failures": 0, "total": 40}
    write_json(run.scores, {"tuned": {**numbers, "judge": judge, "rubric": {"name": f"{home}/rubric.yaml"}}})
    write_json(run.benchmarks, {"tuned": [build_benchmark(task=f"{home}/task.yaml", model=str(run.path))]})
    paths = dict.fromkeys(("_name_or_path", "name_or_path", "tokenizer_file"), f"{home}/base")
    for path in (run.model / "tokenizer_config.json", run.model / "config.json"):
        write_json(path, {**(read_file(path, dict[str, Any]) or {}), **paths})
    places = (str(Path.home()), str(Path.cwd()), str(run.path.parent), base if "/" in base else home)
    return ["zeppelin", "hunter2", "judge.example", *keys.values(), *places]


def build_benchmark(**changes: Any) -> dict[str, Any]:
    """Return a result of lm-eval, over all questions of a task, as `benchmarks.json` has it."""
    found = {"task": "everyday_choice", "metric": "acc", "filter": "none", "value": 0.525, "standard_error": 0.08}
    asked = {"n": 40, "total": 40, "num_fewshot": 0, "higher_is_better": True, "version": "1", "limit": None}
    how = {"chat_template": False, "dtype": "float32", "model": "runs/x", "lm_eval_version": "0.4.13"}
    rest = {"seconds": 1.0, "measured_at": "2026-01-01T00:00:00+00:00", "questions_sha256": None}
    return {**found, **asked, **how, **rest, **changes}


def test_results_of_benchmarks_with_a_leaderboard(full_run: RunFolder, tmp_path: Path) -> None:
    run = _copy(full_run, tmp_path / "run")
    gsm8k = build_benchmark(task="gsm8k", metric="exact_match", filter="strict-match", value=0.2767, num_fewshot=5)
    others = [
        gsm8k | {"filter": "flexible-extract", "value": 0.3},
        # A part of a benchmark is no result of it.
        build_benchmark(task="mmlu_pro", metric="exact_match", filter="custom-extract", limit=100, total=None),
        build_benchmark(),
    ]
    write_json(run.benchmarks, {"tuned": [gsm8k, *others]})
    sizes = _write(run, tmp_path / "out")
    assert [name for name in sizes if name.startswith(".")] == [".eval_results/lm_eval_gsm8k.yaml"]
    written = yaml.safe_load((tmp_path / "out" / ".eval_results" / "lm_eval_gsm8k.yaml").read_text())
    (entry,) = parse_eval_result_entries(written)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 27.67)
    assert entry.date == "2026-01-01T00:00:00+00:00"
    assert entry.notes == "5-shot, lm-eval 0.4.13, gsm8k, strict-match, standard error 8.00"
    # All of them stay in the card.
    card, _ = _read_card(tmp_path / "out")
    assert sum(len(result["metrics"]) for result in card["model-index"][0]["results"]) == 4


def test_gguf_of_a_chat_model(small_model: Path, tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", small_model, data={"prompt_format": "chat"})
    default = CHAT_TEMPLATE.replace(
        "{% for", "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}{% for", 1
    )
    save_chat_tokenizer(run, default)
    _write(run, tmp_path / "out", gguf=True)
    assert (tmp_path / "out" / "system").read_text() == "Be brief."


def test_gguf_of_a_prompt_that_ollama_cannot_write(full_run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "shout.jinja").write_text("{{ instruction | upper }} {{ input }}:")
    run = _copy(full_run, tmp_path / "run")
    _set(run, "data", prompt_format=str(tmp_path / "shout.jinja"))
    with pytest.raises(PublishError, match=r"cannot be written as a chat template or an Ollama template"):
        write_publication(run, tmp_path / "out", "me/a", gguf=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_merge_publishes_whole_weights(adapter_run: RunFolder, small_model: Path, tmp_path: Path) -> None:
    import torch

    sizes = write_publication(adapter_run, tmp_path / "out", "me/a", merge=True)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(sizes)
    assert not any(name.startswith("adapter") for name in sizes)
    ids = torch.tensor([[64, 37, 31]])
    logits = [load_model(str(path))[0](ids).logits for path in (adapter_run.model, tmp_path / "out", small_model)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    assert (logits[0] - logits[2]).abs().max() > 0.01
    # The base model is a folder of the user's: whole weights do without its name.
    card, text = _read_card(tmp_path / "out")
    assert "base_model" not in card
    assert (
        "A language model that is not published, tuned on 34 examples to follow instructions (a LoRA adapter)." in text
    )


def test_runs_that_do_not_say_where_their_base_model_was(
    adapter_run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _copy(adapter_run, tmp_path / "run")
    _set(run, "model", name="models/my-model")
    experiment = run.load_experiment()
    run.add_provenance(base_model_is_local=None)
    assert find_base_model(run, experiment).hub_id == "models/my-model"
    assert "does not say whether `models/my-model` was a local folder or a model on the Hub" in caplog.text
    run.add_provenance(base_model_is_local=True)
    assert find_base_model(run, experiment).hub_id is None


@pytest.mark.parametrize(
    "name",
    [
        "model/notes.py",
        "model/chat_template.jinja",
        "model/config.json",
        "prompt.jinja",
        "loss.png",
        "run.yaml",
        "model",
    ],
)
def test_links_out_of_a_run_are_not_published(full_run: RunFolder, tmp_path: Path, name: str) -> None:
    run = _copy(full_run, tmp_path / "run")
    path = run.path / name
    if path.exists():
        path.rename(tmp_path / "private")
    else:
        (tmp_path / "private").write_text("{{ instruction }} {{ input }}")
    path.symlink_to("../private" if path.parent == run.path else "../../private")
    message = rf"`{re.escape(str(path))}` is a link to `[./]+private`, which may contain private files from outside"
    with pytest.raises(PublishError, match=message):
        write_publication(run, tmp_path / "out", "me/a")
    with pytest.raises(PublishError, match=message):
        export(run, "merged", out=tmp_path / "merged")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "merged").exists()


def test_links_within_a_run_are_published(full_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "linked")
    real = tmp_path / "run"
    real.mkdir()
    run.path.symlink_to(real)
    shutil.copy(full_run.config, run.config)
    shutil.copytree(full_run.model, run.path / "whole")
    run.model.symlink_to("whole")
    (run.path / "notes").write_text("# Notes.")
    (run.model / "notes.py").symlink_to("../notes")
    # Of training alone.
    run.checkpoints.symlink_to(tmp_path)
    write_publication(run, tmp_path / "out", "me/a")
    assert (tmp_path / "out" / "notes.py").read_text() == "# Notes."
    assert not (tmp_path / "out" / "notes.py").is_symlink()
    # A folder may hold links of its own.
    (run.path / "templates").mkdir()
    (run.model / "additional_chat_templates").symlink_to("../templates")
    with pytest.raises(PublishError, match="additional_chat_templates` is a link"):
        write_publication(run, tmp_path / "out", "me/a")


def test_names_of_others_cannot_change_the_card(full_run: RunFolder, tmp_path: Path) -> None:
    nasty = "x`|</td><script>alert(1)</script>\n---\nlicense: mit\n\n# Head\n| a | b |\n[l](http://evil) **b**"
    run = _copy(full_run, tmp_path / "run")
    provenance = {"versions": {"torch": nasty}, "data_sha256": nasty}
    run.config.write_text(dump_yaml({**read_yaml(full_run.config), **provenance}))
    numbers = {"mean": 50.0, "n": 40, "failures": 0, "total": 40}
    judge = {"backend": nasty, "model": "llama3" + nasty, "digest": nasty}
    checks = {"self_check": {"passed": False, "failed": [nasty], "n": 20}}
    rubric = {"name": nasty, "sha256": nasty}
    write_json(run.scores, {"tuned": {**numbers, "judge": judge, "rubric": rubric, **checks}})
    write_json(run.metrics, {"tuned": {"metrics": {nasty: {"mean": 0.5, "interval": None, "n": 3}}}})
    whole = read_file(full_run.training_summary, TrainingSummary)
    write_json(run.training_summary, whole.model_copy(update={"device": nasty, "precision": nasty}))
    write_json(run.preflight, {"examples": {nasty: 3}, "seen_in_train": {"test": [{"id": nasty, "train_ids": []}]}})
    _write(run, tmp_path / "out")
    content = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(content)
    assert (card.data.license, card.data.model_name) == ("unknown", "a")
    assert card.data.eval_results[-1].metric_args["judge_digest"] == nasty
    body = re.sub(r"^(`{3,}).*?^\1$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in body
    assert "](http://evil" not in body.replace("\\](", "")
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == [
        "# a",
        *(f"## {n}" for n in ("How to use it", "Prompt", "Data and licenses", "Training", "Scores", "Limits")),
    ]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    columns = {len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows}
    assert columns == {2, 3}
    assert "\n---\n" not in body


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"licence": "mit"}, "`push` has no options `licence`; the options are `merge`, "),
        ({"merge": True}, "trained all weights, so there is nothing to merge"),
        ({"license": "Apache 2"}, "`--license Apache 2` is not a license identifier of the Hub"),
        ({"base_model": "../gpt2"}, r"`--base-model \.\./gpt2` is not an id on the Hub"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    full_run: RunFolder, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PublishError, match=said):
        write_publication(full_run, tmp_path / "out", "me/a", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/", "-me/a", "me/a b", "me/" + "a" * 97, "me/a--b", ""])
def test_names_no_repository_can_have(full_run: RunFolder, tmp_path: Path, repo_id: str) -> None:
    with pytest.raises(PublishError, match="is not a valid repository name"):
        write_publication(full_run, tmp_path / "out", repo_id)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_missing_or_has_no_model(tmp_path: Path, full_run: RunFolder) -> None:
    with pytest.raises(RunError, match="does not exist"):
        write_publication(RunFolder(tmp_path / "none"), tmp_path / "out", "me/a")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(full_run.config.read_text())
    with pytest.raises(RunError, match="has no tuned model yet"):
        write_publication(RunFolder(tmp_path / "run"), tmp_path / "out", "me/a")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_elses_is_left_alone(published: Path, full_run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(PublishError, match="exists and was not created by `hf-instruct push`"):
        write_publication(full_run, tmp_path / "out", "me/a")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    # One of ours is replaced whole.
    (published / "old.safetensors").touch()
    write_publication(full_run, published, "me/assistant", license="mit")
    assert not (published / "old.safetensors").exists()


def test_files_that_cannot_be_read_are_named(full_run: RunFolder, tmp_path: Path) -> None:
    run = _copy(full_run, tmp_path / "run")
    run.scores.write_text("[1]")
    with pytest.raises(DataError, match=r"scores.json` cannot be read"):
        write_publication(run, tmp_path / "out", "me/a")
    run.scores.unlink()
    _set(run, "data", prompt_format="gone.jinja")
    with pytest.raises(ConfigError, match=r"Unknown prompt format `gone\.jinja`"):
        write_publication(run, tmp_path / "out", "me/a")
    assert not (tmp_path / "out").exists()


def test_a_run_without_scores_says_so(full_run: RunFolder, tmp_path: Path) -> None:
    bare = _copy(full_run, tmp_path / "run")
    _write(bare, tmp_path / "out", data_license="cc-by-4.0")
    card, text = _read_card(tmp_path / "out")
    assert "model-index" not in card
    assert "model_name" not in card
    assert "## Scores" not in text
    assert "- Its answers were not scored by a judge.\n" in text
    assert "| license of the data | cc-by-4.0 |" in text
    assert "loss.png" not in text


def test_local_data_judges_rubrics_and_formats_stay_unnamed(full_run: RunFolder, tmp_path: Path) -> None:
    run, secret = _copy(full_run, tmp_path / "run"), tmp_path / "secret-client"
    secret.mkdir()
    (secret / "format.jinja").write_text("Q: {{ instruction }}|{{ input }}\nA: ")
    _set(run, "data", source=str(secret / "data.jsonl"), prompt_format=str(secret / "format.jinja"))
    _set(run, "train", run_name="secret-client", optim="adamw_torch")
    judge = {"backend": "local", "model": str(secret / "judge"), "digest": "0" * 64}
    numbers = {"mean": 50.0, "n": 40, "failures": 0, "total": 40, "interval": [45.0, 55.0]}
    scores = {**numbers, "judge": judge, "rubric": {"name": str(secret / "r.yaml")}}
    run.scores.write_text(json.dumps({"tuned": scores}))
    _write(run, tmp_path / "out")
    card, text = _read_card(tmp_path / "out")
    for path in ("README.md", "config.json", "tokenizer_config.json"):
        assert "secret-client" not in (tmp_path / "out" / path).read_text()
    assert "| data | a file of the publisher's own, not published here |" in text
    assert "| license of the data | unknown: not specified by the publisher |" in text
    assert "Judged by a model of the publisher's own@0000000 (local), rubric of the publisher" in text
    assert "a format of the publisher's own), which ends" in text
    assert "Q: {{ instruction }}|{{ input }}\nA:" in text
    assert "| `optim` | adamw_torch |" in text
    assert " nan" not in text
    args = card["model-index"][0]["results"][0]["metrics"][0]["args"]
    assert (args["judge"], args["rubric"]) == ("own-model", "own-rubric")
    assert args["interval_95"] == [45.0, 55.0]
    assert "language" not in card


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({"dpo": {}}, "| preferences | each reference answer over the model's own |"),
        (
            {"grpo": {}, "rewards": {"token_f1": 0.5, "length": 1}},
            "| rewards | `token_f1` (weight 0.5), `length` (weight 1), a function of the publisher's own |",
        ),
    ],
)
def test_what_preferences_and_rewards_came_from(values: dict, row: str, small_model: Path, tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run", small_model, **values)
    if "grpo" in values:
        run.add_provenance(reward="/home/me/secret.py:polite@1234")
    _write(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert row in text
    assert "secret" not in text


def test_several_sources_and_preferences(small_model: Path, tmp_path: Path) -> None:
    sources = [{"path": "alpaca"}, {"path": "me/rows"}, {"path": str(tmp_path / "secret-client.jsonl")}]
    preferences = {"source": "trl-lib/pairs", "limit": 1000}
    dpo = {"data": {"source": sources}, "dpo": {"beta": 0.3}, "preferences": preferences}
    run = write_full_run(tmp_path / "run", small_model, **dpo)
    _write(run, tmp_path / "out")
    card, text = _read_card(tmp_path / "out")
    assert card["datasets"] == ["tatsu-lab/alpaca", "me/rows", "trl-lib/pairs"]
    assert card["tags"] == ["hf-instruct", "instruction-tuning", "trl", "dpo"]
    assert "](https://huggingface.co/datasets/me/rows); a file of the publisher's own, not published here |" in text
    assert "| preferences | [trl-lib/pairs](https://huggingface.co/datasets/trl-lib/pairs), the first 1,000 |" in text
    assert "(all weights, by DPO)" in text
    # Its own settings, and not those of SFT.
    assert "| `learning_rate` | 5e-06 |" in text
    assert "| `beta` | 0.3 |" in text
    _set(run, "preferences", source=str(tmp_path / "secret-client.jsonl"))
    _write(run, tmp_path / "again")
    assert "secret-client" not in (tmp_path / "again" / "README.md").read_text()
    # Not in the folder that it is pushed from, a file could be an id on the Hub by its name.
    for name in ("secret-client/pairs.jsonl", "secret-client/pairs.JSONL.zst", "secret-client/pairs.arrow"):
        _set(run, "preferences", source=name)
        assert find_preferences(run.load_experiment(), Provenance()).name == "own-data"
    # And a folder's name says nothing: the run says that it was one.
    _set(run, "preferences", source="secret-client/pairs")
    for local, name in (([], "secret-client/pairs"), (["secret-client/pairs"], "own-data")):
        assert find_preferences(run.load_experiment(), Provenance(local_sources=local)).name == name


def test_a_prompt_format_that_is_no_chat_template_is_published_without_one(
    full_run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shout.jinja").write_text("{{ instruction | upper }} {{ input }}:")
    run = _copy(full_run, tmp_path / "run")
    _set(run, "data", prompt_format=str(tmp_path / "shout.jinja"))
    sizes = _write(run, tmp_path / "out")
    assert "chat_template.jinja" not in sizes
    assert 'prompt = "NAME THREE' in (tmp_path / "out" / "README.md").read_text().replace("'", '"')
    assert "cannot be written as a chat template, so the tokenizer has none" in caplog.text


def test_private_texts_are_found(full_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_publication(full_run, "me/a")
    file = tmp_path / "tokenizer_config.json"

    def check(text: str) -> str:
        file.write_text(text)
        with pytest.raises(PublishError) as caught:
            check_private(tmp_path, plan)
        assert text[7:-2] not in str(caught.value)
        return str(caught.value)

    file.write_text('{"a": "/rooted or not, sk-learn, hf_model"}')
    check_private(tmp_path, plan)
    for place in (Path.home(), full_run.path.resolve(), "/home/somebody-else"):
        assert "contains the path of a folder on this machine" in check(f'{{"cache": "{place}/models"}}')
    # As the Hub and OpenAI write their keys, and as addresses carry passwords.
    for secret in ("hf_" + "A" * 34, "sk-proj-" + "A" * 20, "https://me:secret@example.com/x"):
        assert "contains a token" in check(f'{{"a": "{secret}"}}')
    monkeypatch.setattr(Path, "cwd", lambda: Path("/datasets"))
    assert "contains the path of a folder" in check('{"cache": "/datasets/mine"}')
    file.write_text("[tatsu-lab/alpaca](https://huggingface.co/datasets/tatsu-lab/alpaca)")
    check_private(tmp_path, plan)
    monkeypatch.setenv("HF_TOKEN", "not-shaped-like-one")
    assert "contains a token" in check('{"a": "not-shaped-like-one"}')


@pytest.mark.parametrize("prompt", ['say """x"""\nA: ', "a\\n\nb", 'ends "\n"', "tab\there\nx", "plain", "a\n\nb\n"])
def test_any_prompt_can_be_pasted(prompt: str) -> None:
    names: dict[str, str] = {}
    exec(f"prompt = {quote_python(prompt)}", names)
    assert names["prompt"] == prompt


def test_a_prompt_with_back_ticks_stays_in_its_code_block(full_run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "ticks.jinja").write_text("````\n{{ instruction }}{{ input }}\n```` A:")
    run = _copy(full_run, tmp_path / "run")
    _set(run, "data", prompt_format=str(tmp_path / "ticks.jinja"))
    _write(run, tmp_path / "out")
    _, text = _read_card(tmp_path / "out")
    assert text.count("\n`````") == 4
