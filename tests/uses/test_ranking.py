"""How rankings agree, and what a search makes of them."""

import itertools
import math
from statistics import mean

import pytest
import torch

from gencond.eval.records import Scores
from gencond.uses.ranking import NUM_PARAMETERS, Ranking, Search, agreement, union


def ranks(values: list[float]) -> list[float]:
    """Of each value among all, from 1; those that tie share the mean of their places."""
    return [1 + sum(other < one for other in values) + (values.count(one) - 1) / 2 for one in values]


def spearman(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of ranks."""
    a, b = ([rank - mean(ranks(values)) for rank in ranks(values)] for values in (x, y))
    return sum(map(math.prod, zip(a, b, strict=True))) / math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))


def kendall(x: list[float], y: list[float]) -> float:
    """tau-b, pair by pair."""
    concordant = discordant = only_x = only_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        across, up = x[i] - x[j], y[i] - y[j]
        concordant += across * up > 0
        discordant += across * up < 0
        only_x += across == 0 != up
        only_y += up == 0 != across
    untied = concordant + discordant
    return (concordant - discordant) / math.sqrt((untied + only_x) * (untied + only_y))


@pytest.mark.parametrize(
    ("x", "y", "rho", "tau"),
    [
        ([1, 2, 3], [1, 2, 3], 1, 1),
        ([1, 2, 3], [3, 2, 1], -1, -1),
        ([1, 2, 3], [2, 1, 3], 0.5, 1 / 3),
        # Ranks 1 2.5 2.5 4 and 1 3.5 2 3.5: 3.75 / 4.5. Four pairs concord, one ties in x alone, one in y alone: 4 / 5.
        ([1, 2, 2, 3], [1, 3, 2, 3], 3.75 / 4.5, 4 / 5),
        # Ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2). Two pairs concord, one ties in x: 2 / sqrt(2 * 3).
        ([0.1, 0.1, 0.9], [1, 2, 3], 1.5 / math.sqrt(3), 2 / math.sqrt(6)),
    ],
)
def test_correlations_are_those_computed_by_hand(x: list[float], y: list[float], rho: float, tau: float) -> None:
    found = agreement(list(map(float, x)), list(map(float, y)))
    assert (found.spearman, found.kendall) == pytest.approx((rho, tau)) and found.num_networks == len(x)


def test_correlations_are_those_of_a_loop_over_pairs() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        x, y = torch.randint(5, (2, 9), generator=rng).double().tolist()  # five values of nine: many ties
        found = agreement(x, y)
        assert (found.spearman, found.kendall) == pytest.approx((spearman(x, y), kendall(x, y)))


@pytest.mark.parametrize(("x", "y"), [([1.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [4.0] * 3), ([1.0], [2.0])])
def test_there_is_no_correlation_where_all_tie(x: list[float], y: list[float]) -> None:
    assert (agreement(x, y).spearman, agreement(x, y).kendall) == (None, None)


def ranking(**scores: float) -> Ranking:
    return Ranking(images="gencond", ipc=1, scores={name: (score,) for name, score in scores.items()})


def test_of_networks_that_tie_the_first_of_the_space_is_taken() -> None:
    found = ranking(a=0.5, b=0.9, c=0.9, d=0.1)
    assert found.top(2) == ("b", "c") and found.top(3) == ("b", "c", "a") and found.num_first == 2


def test_as_many_right_answers_over_other_seeds_tie() -> None:
    each = {"a": (0.1, 0.2, 0.3), "b": (0.3, 0.2, 0.1), "c": (0.6 - 0.4, 0.2, 0.2)}
    assert len({sum(one) / 3 for one in each.values()}) > 1  # as floats they differ
    assert Ranking(images="gencond", ipc=1, scores=each).num_first == 3


def test_the_union_has_each_network_once() -> None:
    rankings = [ranking(a=0.3, b=0.2, c=0.1), ranking(a=0.1, b=0.2, c=0.3)]
    assert union(rankings, 1) == ("a", "c") and union(rankings, 2) == ("a", "b", "c")


def found() -> Search:
    proxy = ranking(a=0.5, b=0.9, c=0.8, d=0.1)
    counts = Ranking(images=NUM_PARAMETERS, ipc=None, scores={name: (10.0,) for name in "abcd"})
    return Search(
        title="", command="", versions={}, commit=None, measured={}, judged_on="test", num_test_images=1,
        num_train_images=1, num_held_out=1, condensed={}, protocol={}, whole_protocol={}, augmentation="none",
        num_seeds=1, networks=dict.fromkeys("abcd", 10), left_out={}, top=2,
        rankings=(Ranking(**{**vars(proxy), "seconds": 3.0}), counts),
        whole={name: Scores.of([score]) for name, score in {"b": 0.6, "c": 0.7, "a": 0.9}.items()}, whole_seconds=30.0,
    )  # fmt: skip


def test_a_verdict_holds_the_picked_network_against_the_best_that_was_trained() -> None:
    ours, parameters = found().verdicts
    assert (ours.picked, ours.num_first, ours.top1) == ("b", 1, 0.6) and ours.distance == pytest.approx(-0.3)
    # b, c, a by the proxy, a, c, b on the whole set; d was not trained on it
    assert (ours.over_union.num_networks, ours.over_union.spearman, ours.over_union.kendall) == pytest.approx(
        (3, -1, -1)
    )
    assert (ours.over_top.num_networks, ours.over_top.spearman, ours.over_top.kendall) == pytest.approx((2, -1, -1))
    assert (parameters.picked, parameters.num_first, parameters.distance) == ("a", 4, 0)
    assert parameters.over_union.spearman is None and parameters.over_top.kendall is None


def test_a_cost_is_a_share_of_what_all_networks_would_take() -> None:
    search = found()
    assert search.whole_seconds_of_all == 40  # 30 seconds of three networks, and there are four
    assert [verdict.cost for verdict in search.verdicts] == [pytest.approx(3 / 40), 0]
