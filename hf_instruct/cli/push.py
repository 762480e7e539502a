"""`hf-instruct push`: publish a run's model on the Hugging Face Hub."""

import argparse
import dataclasses
import logging
from pathlib import Path

from hf_instruct.cli.flags import add_trust_flag

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Publish a run's model on the Hugging Face Hub: weights or adapter, tokenizer, prompt format and a "
    "model card with data, settings, scores and limits. All files are uploaded in one commit."
)
EPILOG = """\
examples:
  hf-instruct push runs/my-run --to me/my-assistant --dry-run       only write RUN/publish, without a network
  hf-instruct push runs/my-run --to me/my-assistant --private
  hf-instruct push runs/my-lora --to me/my-assistant --merge        a merged model instead of an adapter
  hf-instruct push runs/my-run --to me/my-assistant --gguf          then: ollama run hf.co/me/my-assistant
  hf-instruct push runs/my-run --to me/my-assistant --license apache-2.0 --data-license cc-by-4.0

Log in once with `hf auth login`. Pushing again updates the repository; files of your own in it are left alone.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--to", metavar="ID", required=True, help="the repository, as in me/my-assistant")
    parser.add_argument("--merge", action="store_true", help="merge the LoRA adapter into its base model first")
    text = "add GGUF files and the prompt for `ollama run hf.co/ID`; needs the package gguf"
    parser.add_argument("--gguf", action="store_true", help=text)
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--license", metavar="L", help="license of the weights (default: unknown)")
    parser.add_argument("--data-license", metavar="L", help="license of the data, if it is not known")
    parser.add_argument(
        "--base-model", metavar="ID", help="the base model's id on the Hub, if the run uses a local folder"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument("--force", action="store_true", help="replace a model with another base model")
    parser.add_argument("--dry-run", action="store_true", help="only write the files, without a network")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for `--dry-run` (default: RUN/publish)")
    add_trust_flag(parser)
    parser.set_defaults(handler=_push, resume_hint="Run the same command to upload what is missing.")


def _push(options: argparse.Namespace) -> None:
    from rich.filesize import decimal

    from hf_instruct.errors import ConfigError
    from hf_instruct.hub.folder import list_sizes
    from hf_instruct.hub.gguf_file import format_quantize_command
    from hf_instruct.hub.publication import PushOptions
    from hf_instruct.hub.push import is_publication, push, write_publication
    from hf_instruct.run_folder import RunFolder

    if options.out and not options.dry_run:
        raise ConfigError("`--out` needs `--dry-run`; add it, or leave `--out` out.")
    run = RunFolder(options.run, trust_remote_code=options.trust_remote_code)
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(PushOptions)}
    if options.dry_run:
        options.resume_hint = "Nothing was published; run the same command again."
        out = options.out or run.path / "publish"
        before = list_sizes(out) if is_publication(out) else {}
        sizes = write_publication(run, out, options.to, **chosen)
        _print_files(sizes)
        for name in sorted(before.keys() - sizes.keys()):
            print(f"{'removed':>10}  {name}")
        print(f"{out}\nNothing was published; the model card is {out / 'README.md'}.")
        for name in _list_f16(sizes):
            print(f"To make a smaller file with llama.cpp: {format_quantize_command(out / name)}")
        print("Next: `hf auth login`, then the same command without `--dry-run`")
    else:
        done = push(run, options.to, **chosen)
        if done.changed:
            _print_files(done.sizes)
            for name in done.removed:
                print(f"{'removed':>10}  {name}")
            total = decimal(sum(done.sizes.values()))
            print(f"{done.url}   commit {done.commit[:7]}, {len(done.sizes)} files, {total}")
        else:
            print(f"{done.url}   is up to date: commit {done.commit[:7]}, {len(done.sizes)} files")
        for name in _list_f16(done.sizes):
            print(f"Next: ollama run hf.co/{done.repo_id}:Q8_0")
            print(f"To make a smaller file with llama.cpp: hf download {done.repo_id} {name} --local-dir .")
            command = format_quantize_command(Path(name))
            print(f"  && {command} && hf upload {done.repo_id} {command.split()[2]}")
    if options.license is None:
        logger.info(
            "The card says that the license of the weights is unknown. Set it with `--license`; the card also lists "
            "the licenses of the base model and the data, as far as they are known."
        )


def _list_f16(sizes: dict[str, int]) -> list[str]:
    """Return the GGUF files, at most one, from which smaller ones can be made."""
    return [name for name in sizes if name.endswith("-F16.gguf")]


def _print_files(sizes: dict[str, int]) -> None:
    from rich.filesize import decimal

    for name, size in sizes.items():
        print(f"{decimal(size):>10}  {name}")
