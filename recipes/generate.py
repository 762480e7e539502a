"""Answer the test split of a run; the same options as `hf-instruct generate`."""

import sys

from hf_instruct.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
