"""Compare what to keep of classes whose images are gone.

    python examples/continual.py [OUT]

The ten digits come in two steps. Real images, condensed sets and one generator that grows remember them, and after each
step a classifier learns from the memory alone. Few steps of learning, so that it takes two minutes: it shows the way.
"""

import sys

import gencond

found = gencond.continual(
    "digits",
    sys.argv[1] if len(sys.argv) > 1 else "runs/continual_digits",
    recipe="demo",
    overrides=["pretrain.num_steps=300", "codes.num_slots=10", "condense.num_steps=150"],
    steps=2,
    ipc=10,
    orders=1,
    rows=["random_real", "gencond_grown"],
    protocol="dm:50",
)
for row in found.rows:
    print(f"{row}: {100 * found.accuracy(row, found.steps - 1).mean:.1f} % of all classes right")
