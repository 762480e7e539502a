"""Fine-tune a model on an experiment's data; the same options as `hf-instruct train`.

python recipes/sft.py recipes/gpt2-medium/lora.yaml
accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sft.py recipes/gpt2-large/lora.yaml
"""

import sys

from hf_instruct.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
