"""`hf-instruct export`: a run's model for other programs."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_trust_flag
from hf_instruct.console import format_json

if TYPE_CHECKING:
    from hf_instruct.hub.export import Export

DESCRIPTION = """\
Write a run's tuned model for other programs. An adapter is merged into its base model first. The export is loaded again
and compared with the run's model on ten of its prompts."""

EPILOG = """\
formats:
  merged   a folder for `from_pretrained`, vLLM and converters
  gguf     one file for llama.cpp, LM Studio and others (GPT-2 and Llama family)
  ollama   the same file and a Modelfile with the training prompt as its template

examples:
  hf-instruct export runs/my-run --format merged --out my-model
  hf-instruct export runs/my-run --format gguf --type F16
  hf-instruct export runs/my-run --format ollama --create my-model      then: ollama run my-model"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--format", required=True, choices=["merged", "gguf", "ollama"], help="see below")
    parser.add_argument(
        "--type",
        choices=["F32", "F16", "Q8_0"],
        type=str.upper,
        help="precision of the matrices in a GGUF file: unchanged, half or about a quarter of the size (default: Q8_0)",
    )
    parser.add_argument("--out", metavar="PATH", type=Path, help="folder or .gguf file (default: in RUN/export/)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--create", metavar="NAME", help="also run `ollama create` with this model name")
    parser.add_argument(
        "--base-url", metavar="URL", help="address of the Ollama server (default: OLLAMA_HOST, or this machine)"
    )
    parser.add_argument("--json", action="store_true", help="print the paths and the results of the check as JSON")
    add_trust_flag(parser)
    parser.set_defaults(handler=_export, usage_error=parser.error)


def _export(options: argparse.Namespace) -> None:
    if options.create is not None and options.format != "ollama":
        options.usage_error(f"`--create` needs `--format ollama`, not `{options.format}`")
    if options.base_url is not None and options.create is None:
        options.usage_error("`--base-url` needs `--create NAME`")
    if options.type is not None and options.format == "merged":
        options.usage_error("`--type` needs `--format gguf` or `ollama`")
    from pydantic_core import to_jsonable_python

    from hf_instruct.hub.export import check_name, export, run_ollama
    from hf_instruct.hub.gguf_file import format_quantize_command
    from hf_instruct.hub.merging import name_run
    from hf_instruct.run_folder import RunFolder

    name = options.create
    if name is not None:
        # Fail before minutes of work if the server does not answer.
        check_name(name)
        run_ollama("list", base_url=options.base_url, shown=False)
    run = RunFolder(options.run, trust_remote_code=options.trust_remote_code)
    done = export(run, options.format, out=options.out, tensor_type=options.type or "Q8_0", force=options.force)
    if options.json:
        print(format_json(to_jsonable_python(done, exclude={"modelfile"})))
    else:
        _print(done)
    create = ["create", name or name_run(run), "-f", str(done.path / "Modelfile")]
    if name is not None:
        run_ollama(*create, base_url=options.base_url)
    if options.json or done.weights is None:
        return
    if done.modelfile is not None:
        print(f"Next: {shlex.join(['ollama', *create])}" if name is None else f"Next: ollama run {name}")
    else:
        print(f"Next: {shlex.join(['llama-cli', '-m', str(done.weights), '--jinja', '--temp', '0'])}")
        if done.check.tensor_type != "Q8_0":
            print(f"To make a smaller file with llama.cpp: {format_quantize_command(done.weights)}")


def _print(export: "Export") -> None:
    from rich.filesize import decimal

    from hf_instruct.hub.fidelity import TOLERANCE

    check, kind = export.check, export.check.tensor_type
    files = [export.path, *export.path.rglob("*")]
    size = decimal(sum(file.stat().st_size for file in files if file.is_file()))
    print(f"{export.path}  ({size}{', adapter merged' if export.merged else ''})")
    print("  loaded again and compared with the run's model on the run's prompts:")
    print(
        f"  {check.num_prompts} prompts".ljust(17)
        + f"logits differ by up to {check.logit_error:.2g} of their spread; {kind} allows {TOLERANCE[kind]:g}"
    )
    print(f"{'':17}same best token at {check.same_tokens} of {check.num_tokens} positions")
    print(f"{'':17}same greedy answer for {check.same_answers} of {check.num_prompts}")
    if export.modelfile is not None:
        stop = ", ".join(json.dumps(word) for word in export.modelfile.parameters["stop"])
        print(f"  Modelfile      num_ctx {export.modelfile.parameters['num_ctx']}, temperature 0, stops at {stop}")
