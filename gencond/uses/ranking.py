"""Networks as a proxy ranks them, how that agrees with training on the whole set, and all that a search found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from gencond.eval.records import Scores

DIGITS = 12  # of means that are compared: as many right answers over other seeds may differ in the last bit
EARLY_STOPPING, NUM_PARAMETERS = "early_stopping", "num_parameters"


@dataclass(frozen=True)
class Agreement:
    """How two lists of scores rank the same networks.

    Args:
        num_networks: in the lists.
        spearman: rank correlation in [-1, 1], of mean ranks where scores tie; None where all of a list tie, as a
            single network does.
        kendall: tau-b in [-1, 1], which allows for ties; None as `spearman`.
    """

    num_networks: int
    spearman: float | None
    kendall: float | None


def agreement(scores: Sequence[float], others: Sequence[float]) -> Agreement:
    """How two lists of scores, of the same networks in the same order, rank them.

    Source: Kendall, The treatment of ties in ranking problems (1945), for tau-b.
    """
    if min(len(set(scores)), len(set(others))) < 2:
        return Agreement(len(scores), None, None)
    from scipy.stats import kendalltau, spearmanr

    spearman: Any = spearmanr(scores, others)
    kendall: Any = kendalltau(scores, others, variant="b")
    return Agreement(len(scores), float(spearman.statistic), float(kendall.statistic))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What one proxy says of every network.

    Args:
        images: what networks were trained on: a condensed set, a baseline, EARLY_STOPPING; or NUM_PARAMETERS, where
            none was trained.
        ipc: stored images of each class; None where the proxy has none.
        scores: network -> top-1 in [0, 1] on the held-out images, one for each seed; of NUM_PARAMETERS their number.
        num_stored: images that are stored.
        num_seen: images that went through networks in training, all networks and seeds together.
        seconds: of training and testing them.
    """

    images: str
    ipc: int | None
    scores: Mapping[str, Sequence[float]]
    num_stored: int = 0
    num_seen: int = 0
    seconds: float = 0.0

    @property
    def means(self) -> dict[str, float]:
        """Network -> its score, the mean over seeds."""
        return {network: round(fmean(each), DIGITS) for network, each in self.scores.items()}

    def top(self, k: int) -> tuple[str, ...]:
        """The `k` best networks; of those that tie, the ones that the space names first."""
        means = self.means
        return tuple(sorted(means, key=lambda network: -means[network])[:k])

    @property
    def num_first(self) -> int:
        """How many networks share the best score."""
        means = list(self.means.values())
        return means.count(max(means))


def union(rankings: Sequence[Ranking], k: int) -> tuple[str, ...]:
    """The networks among the top `k` of any ranking, each once."""
    return tuple(dict.fromkeys(network for ranking in rankings for network in ranking.top(k)))


@dataclass(frozen=True)
class Verdict:
    """What came of choosing a network by one proxy.

    Args:
        images, ipc: the proxy.
        picked: its best network.
        num_first: how many networks share that place.
        top1: of the picked network, trained on the whole set, on the test images, in [0, 1].
        distance: from the best of the union to it, in [-1, 0].
        over_union: agreement of the proxy's scores with training on the whole set, over all networks so trained.
        over_top: the same over the proxy's own top k.
        cost: seconds of the proxy, as a share of training all networks on the whole set.
    """

    images: str
    ipc: int | None
    picked: str
    num_first: int
    top1: float
    distance: float
    over_union: Agreement
    over_top: Agreement
    cost: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """All of search.json.

    Args:
        title: of the report.
        command, versions, commit: to reproduce it.
        measured: fingerprints of the training and the test images, and the key of the condensed set.
        judged_on: the part of the data, `test` or `validation`, that `whole` is read from.
        num_test_images: of that part.
        num_train_images: that `whole` is trained on.
        num_held_out: training images that networks are ranked by; no proxy of real images trains on them.
        condensed: what is known of the set and how it was made.
        protocol, whole_protocol: of the proxies, and of training on the whole set, as they describe themselves.
        augmentation: of all trainings.
        num_seeds: trainings of each network.
        networks: that were ranked -> their number of parameters.
        left_out: networks that do not take the images -> why.
        top: k, of the networks of each proxy that are trained on the whole set.
        rankings: by the proxies.
        whole: network -> top-1 on the test images after training on the whole set, for the union of the top k.
        whole_seconds: of these trainings.
        notes: sentences for the report.
    """

    title: str
    command: str
    versions: Mapping[str, str]
    commit: str | None
    measured: Mapping[str, str]
    judged_on: str
    num_test_images: int
    num_train_images: int
    num_held_out: int
    condensed: Mapping[str, Any]
    protocol: Mapping[str, Any]
    whole_protocol: Mapping[str, Any]
    augmentation: str
    num_seeds: int
    networks: Mapping[str, int]
    left_out: Mapping[str, str]
    top: int
    rankings: tuple[Ranking, ...] = ()
    whole: Mapping[str, Scores] = field(default_factory=dict)
    whole_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def whole_means(self) -> dict[str, float]:
        """Network -> top-1 after training on the whole set, the mean over seeds."""
        return {network: round(scores.mean, DIGITS) for network, scores in self.whole.items()}

    @property
    def best(self) -> str:
        """The best network of those that were trained on the whole set."""
        means = self.whole_means
        return max(means, key=lambda network: means[network])

    @property
    def whole_seconds_of_all(self) -> float:
        """What training every network on the whole set would take, if all took as long as those that were."""
        return self.whole_seconds / len(self.whole) * len(self.networks)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What came of each proxy."""
        return tuple(map(self._verdict, self.rankings))

    def _verdict(self, ranking: Ranking) -> Verdict:
        picked, means, whole = ranking.top(1)[0], ranking.means, self.whole_means

        def agrees(networks: Sequence[str]) -> Agreement:
            return agreement([means[one] for one in networks], [whole[one] for one in networks])

        return Verdict(
            ranking.images,
            ranking.ipc,
            picked,
            ranking.num_first,
            whole[picked],
            whole[picked] - whole[self.best],
            agrees(list(self.whole)),
            agrees(ranking.top(self.top)),
            ranking.seconds / self.whole_seconds_of_all,
        )

    def to_json(self) -> dict[str, Any]:
        """As search.json; before networks are trained there are no verdicts."""
        return asdict(self) | {"verdicts": [asdict(verdict) for verdict in self.verdicts]}
