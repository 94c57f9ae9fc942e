"""Compares variants of a recipe on a held-out slice of the training set; the test set stays unread.

    python scripts/ablate.py base: "no-mmd: objective.mmd_weight=0" "center: objective.center_weight=0.1" \
        --recipe demo --data digits --out runs/ablation --seeds 3 --set data.validation_fraction=0.4

Each argument is `name: part.field=value ...`. A seed is a whole run: codes, extractors and condensing are drawn anew,
pretraining is shared by the variants that leave it alone.
"""

import argparse
import shutil
from pathlib import Path

import torch

from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.common.files import short_hash, written_whole
from gencond.condensing.run import condense
from gencond.config import load_recipe, to_dict
from gencond.data.load import load_data
from gencond.eval.classifier import train_and_test
from gencond.eval.protocols import check_protocol, get_protocol
from gencond.eval.records import Scores
from gencond.eval.subject import sampled_images
from gencond.eval.wording import percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="whole condensing runs per variant")
    parser.add_argument("--pretrained", type=Path, help="a pretrained generator for all; default: each trains its own")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all variants")
    args = parser.parse_args()
    for variant in args.variants:
        name, _, overrides = variant.partition(":")
        scores: dict[str, list[float]] = {}
        for seed in range(args.seeds):
            base = ["data.judge_on=validation", f"seed={seed}"]
            recipe = load_recipe(args.recipe, [*base, *args.set, *overrides.split()], args.data)
            check_protocol(recipe.evaluate.protocol, from_labels=True)
            train, held_out = load_data(recipe.data)
            out = args.out / f"{name}-{seed}"
            values = to_dict(recipe)
            shared = [values[part] for part in ("pretrain", "generator", "synthesizer")]
            pretrained = args.out / f"pretrained-{short_hash(*shared, seed, train.fingerprint)}"
            given = args.pretrained or (pretrained if pretrained.is_dir() else None)
            condensed = condense(recipe, train, out, pretrained=given)
            if (out / "pretrained").is_dir() and not pretrained.is_dir():
                with written_whole(pretrained) as temporary:
                    shutil.copytree(out / "pretrained", temporary)
            slots, most = condensed.num_slots, condensed.largest_ipc
            ranges = [(str(ipc), 0, ipc) for ipc in recipe.evaluate.ipc or ((most,) if most else (1, 10, 50))]
            ranges += [] if most else [("fresh", slots, slots + ranges[-1][2])]
            for label, first, last in ranges:
                sampled, per_slot = sampled_images(condensed, last), condensed.images_per_slot
                slot = torch.arange(len(sampled)) % (last * per_slot) // per_slot
                top1 = train_and_test(
                    [sampled.subset((slot >= first).nonzero()[:, 0])],
                    held_out,
                    network=recipe.evaluate.networks[0],
                    protocol=get_protocol(recipe.evaluate.protocol, train.num_classes, train.image_size),
                    augmentation=recipe.data.augmentation,
                    normalisation=train.mean_std,
                    seeds=[seed],
                    device=new_accelerator().device,
                )
                scores.setdefault(label, []).extend(top1)
        cells = [f"IPC {label}: {percent(Scores.of(values)):>10}" for label, values in scores.items()]
        print(f"{name:<18}", "   ".join(cells), flush=True)


if __name__ == "__main__":
    run_cleanly(main)
