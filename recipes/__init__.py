"""Recipes are launched, not imported: what a second recipe or a test needs lives in the package."""

raise ImportError(
    "recipes are scripts: run `python recipes/sft.py EXPERIMENT.yaml` or `accelerate launch recipes/sft.py "
    "EXPERIMENT.yaml`; import from `hf_instruct` instead"
)
