"""Train a fine-tuned model on pairs of answers, one preferred; the same options as `hf-instruct dpo`.

python recipes/dpo.py recipes/smollm2-135m/dpo.yaml
accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/dpo.py recipes/smollm2-135m/dpo.yaml
"""

import sys

from hf_instruct.cli import main

if __name__ == "__main__":
    sys.exit(main(["dpo", *sys.argv[1:]]))
