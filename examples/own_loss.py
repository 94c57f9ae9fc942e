"""Condense with a term of your own beside the distance of means: spreads of features, real against made.

    python examples/own_loss.py [OUT]

A term is a function of what a step sees of some classes; it returns a scalar, the mean over these classes.
"""

import sys
from pathlib import Path

import torch

import gencond
from gencond.losses import Seen, register_term


def spread_gap(seen: Seen) -> torch.Tensor:
    """Squared difference between the spreads of real and made features, for each class and dimension."""
    assert seen.real is not None, "this recipe reads real images in every step"
    return (seen.real.std(1) - seen.features.std(1)).square().sum(1).mean()


register_term("spread_gap", spread_gap)
out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_loss")
few = ["pixels.ipc=5", "condense.num_steps=60"]
for name, changes in {
    "means": few,
    "means_and_spreads": [*few, "objective.own_term=spread_gap", "objective.own_weight=1"],
}.items():
    gencond.condense("digits", out / name, "dm:digits", overrides=changes)
    report = gencond.evaluate(out / name, ipc=5, protocol="dm:50", num_seeds=1, baselines=[])
    print(f"{name}: {100 * report.rows[0].top1.mean:.1f} % of the test images right")
