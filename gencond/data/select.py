"""Which real images: random, k-means, herding and k-center subsets, batches of a step, representatives."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from gencond.common.errors import InputError
from gencond.data.images import LabeledImages


def rows_of_each_class(
    data: LabeledImages, ipc: int, choose: Callable[[Int64[Tensor, " n"]], Int64[Tensor, " k"]]
) -> Int64[Tensor, "classes k"]:
    """Where `ipc` images of every class are.

    Args:
        choose: rows of a class -> positions among them, of `ipc` images.
    Raises:
        InputError: a class has fewer than `ipc` images.
    """
    chosen = []
    for label in range(data.num_classes):
        rows = data.rows_of(label)
        if len(rows) < ipc:
            raise InputError(f"class {data.class_names[label]!r} has {len(rows)} images, fewer than IPC {ipc}")
        chosen.append(rows[choose(rows)])
    return torch.stack(chosen)


def subset_of_each_class(
    data: LabeledImages, ipc: int, choose: Callable[[Int64[Tensor, " n"]], Int64[Tensor, " k"]]
) -> LabeledImages:
    """`ipc` images of every class, class-major; see `rows_of_each_class`."""
    return data.subset(rows_of_each_class(data, ipc, choose).flatten())


def random_rows(data: LabeledImages, ipc: int, seed: int) -> Int64[Tensor, "classes k"]:
    """Where `ipc` images of every class are, drawn without replacement: the first k of each are those for IPC k.

    Raises as `rows_of_each_class`.
    """
    rng = torch.Generator().manual_seed(seed)
    return rows_of_each_class(data, ipc, lambda rows: torch.randperm(len(rows), generator=rng)[:ipc])


def random_subset(data: LabeledImages, ipc: int, seed: int) -> LabeledImages:
    """The images of `random_rows`, class-major."""
    return data.subset(random_rows(data, ipc, seed).flatten())


def some_of_each_class(data: LabeledImages, at_most: int, seed: int) -> LabeledImages:
    """Random images of every class: `at_most` of them, or all where there are fewer."""
    rng = torch.Generator().manual_seed(seed)
    rows = [data.rows_of(label) for label in range(data.num_classes)]
    return data.subset(torch.cat([own[torch.randperm(len(own), generator=rng)[:at_most]] for own in rows]))


def kmeans_subset(data: LabeledImages, ipc: int, seed: int, features: Float[Tensor, "n d"]) -> LabeledImages:
    """The image nearest to each of `ipc` k-means centers of every class, class-major.

    DREAM's representatives (2302.14416, section 3.2); no image is taken twice. Raises as `subset_of_each_class`.

    Args:
        features: of all images, in whose space the centers lie.
    """
    return subset_of_each_class(data, ipc, lambda rows: kmeans_representatives(features[rows].numpy(), ipc, seed))


MOST_PASSES = 10  # over all images, of a network that says which of them it knows


def known_rows(
    data: LabeledImages, losses: Float[Tensor, " n"], is_known: Bool[Tensor, " n"], at_least: int
) -> Int64[Tensor, " k"]:
    """Where the images are that a network knows, ascending.

    Args:
        losses: of each image; low is easy.
        at_least: of each class, as far as it has so many; where fewer are known, its easiest images come along.
    """
    kept = is_known.clone()
    for label in range(data.num_classes):
        rows = data.rows_of(label)
        if int(is_known[rows].sum()) < at_least:
            kept[rows[losses[rows].argsort(stable=True)[:at_least]]] = True
    return kept.nonzero()[:, 0]


def pixel_features(images: UInt8[Tensor, "n c h w"]) -> np.ndarray:
    """Images as float32 rows [n, c h w], for k-means."""
    return images.flatten(1).float().numpy()


def herding(features: Float[Tensor, "n d"], num_images: int) -> Int64[Tensor, " k"]:
    """Rows, one after the other, that bring the mean of the chosen nearest to the mean of all.

    Source: Welling, Herding dynamical weights to learn (2009), as iCaRL (1611.07725, algorithm 4) takes exemplars.
    """
    goal = features.mean(0)
    chosen, total = [], torch.zeros_like(goal)
    taken = torch.zeros(len(features), dtype=torch.bool)
    for count in range(1, num_images + 1):
        distance = ((total + features) / count - goal).square().sum(1).masked_fill(taken, torch.inf)
        chosen.append(int(distance.argmin()))
        taken[chosen[-1]] = True
        total = total + features[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Float[Tensor, "n d"], num_images: int) -> Int64[Tensor, " k"]:
    """The row nearest to the mean, then always the one that is farthest from all that are chosen.

    Source: Sener and Savarese, Active learning for convolutional neural networks (1708.00489), algorithm 1.
    """
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    distance = torch.full((len(features),), torch.inf)
    while len(chosen) < num_images:
        distance = torch.minimum(distance, (features - features[chosen[-1]]).square().sum(1))
        distance[chosen[-1]] = -1.0  # never again, where all that is left is as near as can be
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def class_batches(
    data: LabeledImages, classes: Int64[Tensor, " classes"], batch_size: int, rng: torch.Generator
) -> Int64[Tensor, "classes n"]:
    """Rows of `batch_size` random images of each class; of a smaller class, all of its images and some again."""
    chosen = []
    for label in classes.tolist():
        rows = data.rows_of(label)
        rounds = [torch.randperm(len(rows), generator=rng) for _ in range(-(-batch_size // len(rows)))]
        chosen.append(rows[torch.cat(rounds)[:batch_size]])
    return torch.stack(chosen)


def kmeans_representatives(
    features: np.ndarray, num_clusters: int, seed: int, distinct: bool = True
) -> Int64[Tensor, " k"]:
    """Rows of `features` [n, d] nearest to the k-means centers, largest cluster first.

    Args:
        distinct: takes no row twice; DREAM's code keeps one that is nearest to two centers twice.
    Source: DREAM (2302.14416), section 3.2.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if num_clusters == len(features):
        return torch.arange(len(features))
    with warnings.catch_warnings():
        # Fewer distinct images than clusters: some centers coincide.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # its documentation allows a number of starts, its default of "auto" hides that
        kmeans = KMeans(num_clusters, n_init=1, random_state=seed).fit(features)  # pyright: ignore[reportArgumentType]
    distance = kmeans.transform(features)  # [n, k]
    chosen: list[int] = []
    for cluster in np.bincount(np.asarray(kmeans.labels_), minlength=num_clusters).argsort(kind="stable")[::-1]:
        if distinct:
            distance[chosen, cluster] = np.inf
        chosen.append(int(distance[:, cluster].argmin()))
    return torch.tensor(chosen)


def nested_representatives(features: np.ndarray, sizes: Sequence[int], seed: int) -> Int64[Tensor, " k"]:
    """An order of representatives whose prefixes are representative sets: the first `sizes[0]`, `sizes[1]`, ... rows.

    Each size adds k-means representatives of the rows that are not chosen yet.
    """
    chosen = np.empty(0, dtype=np.int64)
    for size in sizes:
        rest = np.setdiff1d(np.arange(len(features)), chosen)
        count = min(size - len(chosen), len(rest))
        if count > 0:
            chosen = np.append(chosen, rest[kmeans_representatives(features[rest], count, seed).numpy()])
    return torch.from_numpy(chosen)
