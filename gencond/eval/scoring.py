"""Rows of a results table: every kind of training images under the same protocol, in the same run."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gencond.data import LabeledImages
from gencond.eval.baselines import KMEANS_REAL, RANDOM_REAL, WHOLE_SET, draw_baseline, stored_bytes
from gencond.eval.classifier import train_and_test
from gencond.eval.networks import build_network
from gencond.eval.protocols import Protocol
from gencond.files import short_hash
from gencond.progress import progress

GENCOND = "gencond"
REAL_IMAGES = (RANDOM_REAL, KMEANS_REAL, WHOLE_SET)
Row = dict[str, Any]


def score_tables(
    sample: Callable[[int], LabeledImages],
    train: LabeledImages,
    test: LabeledImages,
    *,
    ipcs: Sequence[int],
    networks: Sequence[str],
    protocol: Protocol,
    augmentation: str,
    num_seeds: int,
    condensed_name: str = GENCOND,
    condensed_key: str,
    condensed_bytes: int,
    device: torch.device,
    known: Sequence[Row] = (),
    on_row: Callable[[Row], None] = lambda row: None,
) -> tuple[list[Row], list[str]]:
    """(rows, notes): the condensed set, random and k-means real images at each IPC, and the whole set; each network.

    Args:
        sample: ipc -> the condensed set's images, fixed.
        condensed_name: of its rows: GENCOND, or the recipe's name where that is another's method.
        condensed_key: identifies the condensed set, so that its rows are recognised.
        condensed_bytes: what of it must be stored.
        known: rows of an earlier evaluation; one that asked the same of the same is taken instead of trained again.
        on_row: called with each row once it is measured, so that a killed evaluation loses one row at most.
    Returns:
        Rows with `images`, `mode`, `ipc` (None for the whole set), `network`, `protocol`, `top1_mean`, `top1_std` (over
        seeds, in [0, 1]), `top1` (each seed), `num_seeds`, `bytes`, `bits_per_class`, `key`. Notes say what was left
        out and why.
    Raises:
        InputError: an unknown network, or one that does not fit the images.
    """
    for network in networks:  # a wrong name fails before any training
        build_network(network, train.channels, train.num_classes, train.image_size, seed=0)
    known_rows = {row["key"]: row for row in known if "key" in row}
    smallest, name = min(zip(train.counts.tolist(), train.class_names, strict=True))
    rows, notes, waiting = [], [], []
    for network in networks:
        for images, ipc in [
            *((images, ipc) for ipc in sorted(set(ipcs)) for images in (condensed_name, RANDOM_REAL, KMEANS_REAL)),
            (WHOLE_SET, None),
        ]:
            if images in (RANDOM_REAL, KMEANS_REAL) and ipc > smallest:
                notes.append(f"no {images} row at IPC {ipc}: class {name!r} has only {smallest} training images")
                continue
            key = short_hash(
                images, ipc, network, protocol.describe(), augmentation, num_seeds, train.fingerprint, test.fingerprint,
                None if images in REAL_IMAGES else condensed_key,
            )  # fmt: skip
            row = {
                "images": images, "mode": "fixed", "ipc": ipc, "network": network, "protocol": protocol.name,
                "num_seeds": num_seeds, "key": key,
            }  # fmt: skip
            if key in known_rows:
                row = known_rows[key]
            else:
                waiting.append(row)
            rows.append(row)
    bar = progress(description="evaluation", total=len(waiting) * num_seeds, unit="network", disable=not waiting)
    for row in waiting:
        images, ipc = row["images"], row["ipc"]
        fixed = None if images in REAL_IMAGES else sample(ipc)  # a baseline is drawn for each seed
        scores = []
        for seed in range(num_seeds):
            bar.set_postfix_str(f"{images} IPC {ipc or 'all'}")
            drawn = draw_baseline(images, train, ipc, seed) if fixed is None else fixed
            scores.append(
                train_and_test(
                    drawn,
                    test,
                    network=row["network"],
                    protocol=protocol,
                    augmentation=augmentation,
                    normalisation=train.mean_std,
                    seed=seed,
                    device=device,
                )
            )
            bar.update()
        row["top1"] = scores
        row["top1_mean"] = statistics.mean(scores)
        row["top1_std"] = statistics.stdev(scores) if num_seeds > 1 else 0.0
        row["bytes"] = stored_bytes(drawn) if images in REAL_IMAGES else condensed_bytes
        row["bits_per_class"] = 8 * row["bytes"] / train.num_classes
        on_row(row)
    bar.close()
    return rows, notes
