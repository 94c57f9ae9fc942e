"""Rows of a results table: every kind of training images under the same protocol, in the same run."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from gencond.common.errors import InputError
from gencond.common.files import short_hash
from gencond.common.progress import progress
from gencond.data.images import LabeledImages
from gencond.eval.baselines import BASELINES, CODEC_REAL, PACKED, SAME_NUMBER, WHOLE_SET, RealImages, usual_baselines
from gencond.eval.classifier import FreshImages, train_and_test
from gencond.eval.codec import QUALITIES, encoder_version
from gencond.eval.given import GivenTeacher
from gencond.eval.networks import build_network
from gencond.eval.protocols import Protocol

GENCOND = "gencond"
EVALUATOR = 3  # counts up when the same question gets another answer, so that older rows are measured again
Row = dict[str, Any]


def over_seeds(scores: Sequence[float]) -> Row:
    """What a row says of the top-1 of its seeds."""
    return {
        "top1": list(scores),
        "top1_mean": statistics.mean(scores),
        "top1_std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
    }


def measured(scores: Sequence[float], num_bytes: int, num_classes: int) -> Row:
    """What a row says of the top-1 of its seeds and of the bytes that must be stored."""
    return over_seeds(scores) | {"bits_per_class": 8 * num_bytes / num_classes}


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
    condensed_bytes: Callable[[int], int],
    factor: int = 1,
    baselines: Sequence[str] | None = None,
    fresh: FreshImages | None = None,
    teacher: GivenTeacher | None = None,
    device: torch.device,
    known: Sequence[Row] = (),
    on_row: Callable[[Row], None] = lambda row: None,
) -> tuple[list[Row], list[str]]:
    """(rows, notes): the condensed set and the baselines at each IPC, and the whole set; for each network.

    Args:
        sample: ipc -> the condensed set's images, fixed.
        condensed_name: of its rows: GENCOND, or the recipe's name where that is another's method.
        condensed_key: identifies the condensed set, so that its rows are recognised.
        condensed_bytes: ipc -> what of it must be stored; the codec's images get as much.
        factor: every image of the condensed set is cut into factor x factor; packed real images are too.
        baselines: names from `BASELINES`; None takes all that mean something.
        fresh: of the condensed set, for a row of mode `stream`.
        teacher: of all rows alike, for a protocol with a temperature.
        known: rows of an earlier evaluation; one that asked the same of the same is taken instead of trained again.
        on_row: called with each row once it is measured, so that a killed evaluation loses one row at most.
    Returns:
        Rows with `images`, `mode` (`fixed`, or `stream`: no image twice), `ipc` (None for the whole set and streams),
        `network`, `protocol`, `top1_mean`, `top1_std` (over seeds, in [0, 1]), `top1` (each seed), `num_seeds`,
        `num_images` (trained on, or seen of a stream), `bytes`, `bits_per_class`, `key`, `evaluator`, `teacher` where
        one answers, and `codec` of photographs. Notes say what was left out and why.
    Raises:
        InputError: an unknown network or baseline, or a network that does not fit the images.
    """
    baselines = usual_baselines(factor) if baselines is None else baselines
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise InputError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    for network in networks:  # a wrong name fails before any training
        build_network(network, train.channels, train.num_classes, train.image_size, seed=0)
    known_rows = {row["key"]: row for row in known if "key" in row}
    smallest, name = min(zip(train.counts.tolist(), train.class_names, strict=True))
    rows, notes, waiting = [], [], []
    beside = [name for name in baselines if name != WHOLE_SET and (factor > 1 or name not in PACKED)]
    notes += [
        f"no {name} row: the images of the condensed set are whole"
        for name in PACKED
        if name in baselines and factor == 1
    ]
    asked = [("fixed", images, ipc) for ipc in sorted(set(ipcs)) for images in (condensed_name, *beside)]
    asked += [("stream", condensed_name, None)] if fresh else []
    asked += [("fixed", WHOLE_SET, None)] if WHOLE_SET in baselines else []
    for network, (mode, images, ipc) in itertools.product(networks, asked):
        if images in SAME_NUMBER and (needed := ipc * (factor**2 if images in PACKED else 1)) > smallest:
            takes = "" if needed == ipc else f", and {needed} are needed"
            notes.append(f"no {images} row at IPC {ipc}: class {name!r} has only {smallest} training images{takes}")
            continue
        key = short_hash(
            EVALUATOR, images, ipc, network, protocol.describe(), augmentation, num_seeds,
            train.fingerprint, test.fingerprint,
            _key_of(images, condensed_key, condensed_bytes(ipc or 1), factor),
            *((fresh.num_images, fresh.batch_size) if mode == "stream" else ()),
            *([teacher.key] if teacher else []),
        )  # fmt: skip
        row = {
            "images": images, "mode": mode, "ipc": ipc, "network": network, "protocol": protocol.name,
            "num_seeds": num_seeds, "key": key, "evaluator": EVALUATOR, **({"teacher": teacher.key} if teacher else {}),
        }  # fmt: skip
        if key in known_rows:
            row = known_rows[key]
        else:
            waiting.append(row)
        rows.append(row)

    def cost(num_images: int) -> int:
        """Images that go through the classifiers of a row."""
        return num_seeds * protocol.num_steps(num_images) * protocol.batch_of(num_images)

    costs = [
        num_seeds * fresh.num_images
        if row["mode"] == "stream"
        else cost(len(train) if row["ipc"] is None else row["ipc"] * train.num_classes)
        for row in waiting
    ]
    bar = progress(description="evaluation", total=sum(costs), unit="image", unit_scale=True, disable=not waiting)
    real = {network: RealImages(train, network, augmentation, device, factor) for network in networks}
    of_codec: dict[tuple[str, int], Row] = {}  # a generator takes the same bytes at every IPC, so its rival is the same
    for row, expected in zip(waiting, costs, strict=True):
        images, ipc, begun = row["images"], row["ipc"], bar.n
        bar.set_postfix_str(f"{images} IPC {ipc or 'all'}")
        num_bytes = condensed_bytes(ipc or 1)
        top1 = partial(
            train_and_test,
            network=row["network"],
            protocol=protocol,
            augmentation=augmentation,
            normalisation=train.mean_std,
            device=device,
            teacher=teacher and teacher.logits,
        )
        drawn: tuple[Sequence[LabeledImages] | FreshImages, int]
        if row["mode"] == "stream":
            drawn = fresh, num_bytes
        elif images == CODEC_REAL:
            if (row["network"], num_bytes) in of_codec:
                twin = of_codec[row["network"], num_bytes]
                row |= {name: value for name, value in twin.items() if name not in row}
                bar.total -= expected
                on_row(row)
                continue
            found = real[row["network"]].photographs(
                num_bytes, range(num_seeds), lambda own, held_out, top1=top1: top1([own], held_out, seeds=[0])[0]
            )
            if found is None:
                notes.append(f"no {images} row at IPC {ipc}: {num_bytes} bytes hold not one image of each class")
                rows.remove(row)
                bar.total -= expected
                continue
            drawn = found.sets, found.num_bytes
            row["codec"] = found.describe()
        elif images in BASELINES:
            drawn = real[row["network"]].draw(images, ipc, range(num_seeds))
        else:
            drawn = [sample(ipc)] * num_seeds, num_bytes
        sets, row["bytes"] = drawn
        row["num_images"] = sets.num_images if isinstance(sets, FreshImages) else len(sets[0])
        actual = expected if isinstance(sets, FreshImages) else cost(len(sets[0]))
        bar.total += actual - expected  # a codec's file holds more
        scores = top1(
            sets,
            test,
            seeds=range(num_seeds),
            on_share=lambda share, begun=begun, actual=actual: bar.update(int(begun + share * actual) - bar.n),
        )
        row |= measured(scores, row["bytes"], train.num_classes)
        if images == CODEC_REAL:
            of_codec[row["network"], num_bytes] = row
        on_row(row)
    bar.close()
    return rows, notes


def _key_of(images: str, condensed_key: str, condensed_bytes: int, factor: int) -> Any:
    """What the images of a row depend on beside the real ones."""
    if images == CODEC_REAL:
        return condensed_bytes, QUALITIES, encoder_version()
    return factor if images in PACKED else None if images in BASELINES else condensed_key
