"""Score the responses of a run or a file; the same options as `hf-instruct judge`."""

import sys

from hf_instruct.cli import main

if __name__ == "__main__":
    sys.exit(main(["judge", *sys.argv[1:]]))
