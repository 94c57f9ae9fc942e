import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from gencond.common.errors import InputError
from gencond.data.images import LabeledImages
from gencond.data.select import (
    herding,
    k_center,
    kmeans_representatives,
    kmeans_subset,
    known_rows,
    nested_representatives,
    random_subset,
    some_of_each_class,
)


def test_random_subsets_are_class_major_without_repetition_and_differ_by_seed(few_digits: LabeledImages) -> None:
    one, other = random_subset(few_digits, 5, seed=0), random_subset(few_digits, 5, seed=1)
    assert one.labels.tolist() == [label for label in range(10) for _ in range(5)]
    assert not torch.equal(one.images, other.images)
    assert len(one.images.flatten(1).unique(dim=0)) == 50
    with pytest.raises(InputError, match="class '0' has 12 images, fewer than IPC 13"):
        random_subset(few_digits, 13, seed=0)


def test_kmeans_representatives_are_the_rows_nearest_to_scikit_learns_centers() -> None:
    features = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    centers = KMeans(7, n_init=1, random_state=3).fit(features).cluster_centers_
    nearest = {int(((features - center) ** 2).sum(1).argmin()) for center in centers}
    assert set(kmeans_representatives(features, 7, seed=3).tolist()) == nearest


def test_the_kmeans_subset_of_one_is_the_image_nearest_to_the_class_mean(few_digits: LabeledImages) -> None:
    subset = kmeans_subset(few_digits, 1, seed=0, features=few_digits.images.flatten(1).float())
    for label in range(10):
        own = few_digits.images[few_digits.rows_of(label)].flatten(1).float()
        nearest = own[(own - own.mean(0)).square().sum(1).argmin()]
        assert torch.equal(subset.images[label].flatten().float(), nearest)


def test_nested_representatives_hold_smaller_sets_as_prefixes_and_stop_at_the_class_size() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    order = nested_representatives(features, (1, 10, 50), seed=0)
    assert sorted(order.tolist()) == list(range(30))
    assert order[:1].tolist() == nested_representatives(features, (1,), seed=0).tolist()
    assert order[:10].tolist() == nested_representatives(features, (1, 10), seed=0).tolist()


def test_some_of_each_class_takes_no_image_twice_and_all_of_a_small_class(few_digits: LabeledImages) -> None:
    some = some_of_each_class(few_digits, 5, seed=1)
    assert some.counts.tolist() == [5] * 10 and len(some.images.flatten(1).unique(dim=0)) == 50
    assert some_of_each_class(few_digits, 100, seed=1).fingerprint != some.fingerprint
    assert some_of_each_class(few_digits, 100, seed=1).counts.tolist() == [12] * 10


def test_of_a_class_of_which_too_few_are_known_the_easiest_come_along(few_digits: LabeledImages) -> None:
    losses = torch.rand(len(few_digits), generator=torch.Generator().manual_seed(0))
    is_known = losses < 0.3
    is_known[few_digits.rows_of(4)] = False
    rows = known_rows(few_digits, losses, is_known, at_least=3)
    for label in range(10):
        own = few_digits.rows_of(label)
        known, easiest = own[is_known[own]], own[losses[own].argsort()[:3]]
        expected = known if len(known) >= 3 else torch.cat([known, easiest]).unique()
        assert torch.equal(rows[few_digits.labels[rows] == label], expected)
    assert len(known_rows(few_digits, losses, is_known, at_least=0)) == int(is_known.sum())
    assert len(known_rows(few_digits, losses, is_known, at_least=10_000)) == len(few_digits)


def test_herding_takes_what_brings_the_mean_of_the_chosen_nearest_to_that_of_all() -> None:
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    left, chosen = set(range(40)), []
    for _ in range(8):
        distance = {row: np.linalg.norm(features[[*chosen, row]].mean(0) - features.mean(0)) for row in left}
        chosen.append(min(distance, key=distance.get))
        left.remove(chosen[-1])
    assert herding(torch.from_numpy(features), 8).tolist() == chosen


def test_k_center_starts_at_the_middle_and_takes_what_is_farthest_from_all_chosen() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [3.1], [10.0]])  # mean 3.2
    assert k_center(points, 4).tolist() == [3, 4, 0, 2]


@pytest.mark.parametrize("choose", [herding, k_center])
def test_no_image_is_taken_twice_even_where_all_are_alike(choose: object) -> None:
    assert sorted(choose(torch.ones(5, 3), 5).tolist()) == [0, 1, 2, 3, 4]
