"""`gencond condense` as a script for launchers.

    accelerate launch scripts/condense.py --data DIR --out runs/x --minutes 30

Each process takes its own classes of every step (see docs/design.md). On a machine without GPUs, `accelerate launch
--cpu --num_processes 2` silently starts one process; this starts two:

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 scripts/condense.py ...
"""

import sys

from gencond.cli import main

if __name__ == "__main__":
    main(["condense", *sys.argv[1:]])
