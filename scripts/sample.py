"""`gencond sample` as a script for launchers.

    accelerate launch scripts/sample.py runs/x --ipc 500 --out DIR500

Each process samples and writes its own share of the files, which are the same bytes on any number of processes. On a
machine without GPUs two are started as for `scripts/condense.py`:

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/sample.py ...
"""

import sys

from gencond.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
