"""Train a fine-tuned model on rewards for its own answers; the same options as `hf-instruct grpo`.

python recipes/grpo.py recipes/smollm2-135m/grpo.yaml
accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/grpo.py recipes/smollm2-135m/grpo.yaml
"""

import sys

from hf_instruct.cli import main

if __name__ == "__main__":
    sys.exit(main(["grpo", *sys.argv[1:]]))
