"""Compares variants of a recipe on a held-out slice of the training set; the test set stays unread.

    python scripts/ablate.py base: "no-mmd: objective.mmd_weight=0" "center: objective.center_weight=0.1" \
        --recipe demo --data digits --out runs/ablation --seeds 3 --set data.validation_fraction=0.4

Each argument is `name: part.field=value ...`. A seed is a whole run: codes, extractors and condensing are drawn anew,
pretraining is shared by the variants that leave it alone. `--likeness` adds how the most samples of both kinds compare
with the held-out images as sets, in a ConvNet that was trained on real images for 200 steps: their spread in a class in
units of the real one, precision, recall, density and coverage (needs torch-fidelity).
"""

import argparse
import shutil
import statistics
from pathlib import Path

import torch

from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.common.files import short_hash, written_whole
from gencond.condensing.run import condense
from gencond.config import Recipe, load_recipe, to_dict
from gencond.data.images import LabeledImages
from gencond.data.load import load_data
from gencond.eval.baselines import RealImages
from gencond.eval.classifier import train_and_test
from gencond.eval.metrics import embed_as_bytes, quality, relative_spread
from gencond.eval.protocols import check_protocol, get_protocol
from gencond.eval.records import Scores
from gencond.eval.subject import sampled_images
from gencond.eval.wording import percent
from gencond.networks.extractor import Extractor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="whole condensing runs per variant")
    parser.add_argument("--pretrained", type=Path, help="a pretrained generator for all; default: each trains its own")
    parser.add_argument("--likeness", action="store_true", help="also how samples compare with real images as sets")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all variants")
    args = parser.parse_args()
    extractors: dict[str, Extractor] = {}

    def extractor_of(train: LabeledImages, recipe: Recipe) -> Extractor:
        if train.fingerprint not in extractors:
            device = new_accelerator().device
            real = RealImages(train, recipe.evaluate.networks[0], recipe.data.augmentation, device)
            extractors[train.fingerprint] = real.extractor
        return extractors[train.fingerprint]

    for variant in args.variants:
        name, _, overrides = variant.partition(":")
        scores: dict[str, list[float]] = {}
        likeness: dict[str, list[float]] = {}
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
                sampled = sampled.subset((slot >= first).nonzero()[:, 0])
                top1 = train_and_test(
                    [sampled],
                    held_out,
                    network=recipe.evaluate.networks[0],
                    protocol=get_protocol(recipe.evaluate.protocol, train.num_classes, train.image_size),
                    augmentation=recipe.data.augmentation,
                    normalisation=train.mean_std,
                    seeds=[seed],
                    device=new_accelerator().device,
                )
                scores.setdefault(label, []).extend(top1)
                if args.likeness and label in ("fresh", ranges[-1 if most else -2][0]):
                    for measure, value in likeness_of(sampled, held_out, extractor_of(train, recipe)).items():
                        likeness.setdefault(f"{label} {measure}", []).append(value)
        cells = [f"IPC {label}: {percent(Scores.of(values)):>10}" for label, values in scores.items()]
        cells += [f"{label}: {statistics.mean(values):.3f}" for label, values in likeness.items()]
        print(f"{name:<18}", "   ".join(cells), flush=True)


def likeness_of(sampled: LabeledImages, held_out: LabeledImages, extractor: Extractor) -> dict[str, float]:
    """Measure -> value, of samples against held-out real images."""
    of_samples, of_real = (embed_as_bytes(extractor, part.images) for part in (sampled, held_out))
    found = quality(of_samples, of_real)
    spread = relative_spread(of_samples, sampled.labels, of_real, held_out.labels, held_out.num_classes)
    return {"spread": float(spread.nanmean())} | {
        name: found[name] for name in ("precision", "recall", "density", "coverage")
    }


if __name__ == "__main__":
    run_cleanly(main)
