"""Pictures of samples, into a run's `samples` folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gencond.common.pictures import (
    PICTURED_CLASSES,
    PICTURED_IMAGES,
    grid,
    new_figure,
    screen_scale,
    write_figure,
    write_png,
)
from gencond.common.ranges import as_bytes
from gencond.data.images import LabeledImages
from gencond.eval.memorization import Nearest

PAIRED_ROWS = 2
REAL_PICTURE, SYN_PICTURE, PAIRS_PICTURE, NEAREST_PICTURE = "real.png", "gencond.png", "grid.png", "nearest.png"
CLOSEST_PAIRS = 10


def write_pictures(out: Path, train: LabeledImages, condensed: LabeledImages) -> None:
    """Real and synthetic images of the same classes, into `out/samples`.

    Args:
        condensed: class-major samples.
    """
    classes = range(min(train.num_classes, PICTURED_CLASSES))
    count = min(PICTURED_IMAGES, *(int(counts.min()) for counts in (train.counts, condensed.counts)))
    real, syn = (
        torch.stack([as_bytes(part.images[part.rows_of(label)[:count]]) for label in classes])
        for part in (train, condensed)
    )
    scale = screen_scale(train.image_size)
    write_png(out / "samples" / REAL_PICTURE, grid(real, scale))
    write_png(out / "samples" / SYN_PICTURE, grid(syn, scale))
    shown = min(PAIRED_ROWS, count)  # one class a column, real images above ours
    blocks = [grid(images[:, :shown].transpose(0, 1), scale) for images in (real, syn)]
    between = np.full((6, *blocks[0].shape[1:]), 255, dtype=np.uint8)
    write_png(out / "samples" / PAIRS_PICTURE, np.concatenate([blocks[0], between, blocks[1]]))


def write_nearest(out: Path, samples: LabeledImages, train: LabeledImages, nearest: Nearest) -> None:
    """The samples that lie nearest to a training image, above it, into `out/samples`."""
    closest = nearest.distance.argsort()[:CLOSEST_PAIRS]
    pairs = torch.stack([as_bytes(samples.images[closest]), train.images[nearest.row[closest]]])
    write_png(out / "samples" / NEAREST_PICTURE, grid(pairs, screen_scale(train.image_size)))


def write_first_images(path: Path, rows: Mapping[str, Float[Tensor, "classes c h w"]]) -> None:
    """A picture whose rows are named: an image in [0, 1] of each class, of ten classes at most."""
    columns = min(PICTURED_CLASSES, *map(len, rows.values()))
    figure, panels = new_figure(len(rows), columns, (columns + 1.6, float(len(rows))))
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    write_figure(path, figure, dots_per_inch=80)
