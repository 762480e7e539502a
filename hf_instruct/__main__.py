"""`python -m hf_instruct` runs the `hf-instruct` command, even if its script is not on the path."""

import sys

from hf_instruct.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
