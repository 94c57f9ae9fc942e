"""Choose a network by training on a condensed set.

    python examples/search.py [OUT]

Six small ConvNets are ranked by the condensed digits that ship with the code and by its rivals. The best of each
ranking are then trained on all of the digits, which says how good the rankings are.
"""

import sys
from pathlib import Path

import gencond

found = gencond.search(
    Path(__file__).parent.parent / "checkpoints" / "digits",
    sys.argv[1] if len(sys.argv) > 1 else "runs/search_digits",
    ipc=[1, 10],
    widths=[16],
    depths=[1, 2],
    activations="relu",
    norms=["none", "batch", "instance"],
    poolings="avg",
    protocol="dm:20",
    top=2,
)
for verdict in found.verdicts:
    print(f"{verdict.images}, IPC {verdict.ipc}: picks {verdict.picked}, {100 * verdict.top1:.1f} % on the test images")
