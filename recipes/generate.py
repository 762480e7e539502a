"""Answer the test split of a run; the same options as `hf-instruct generate`.

python recipes/generate.py runs/gpt2-medium-lora
accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/generate.py runs/gpt2-medium-lora
"""

import sys

from hf_instruct.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
