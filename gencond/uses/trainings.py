"""Networks are trained, those that were not trained before, by one process or several."""

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm

from gencond.common.distributed import from_all, is_main_process, rank_and_world
from gencond.common.progress import progress
from gencond.eval.classifier import train_and_test
from gencond.eval.records import Scores
from gencond.eval.results import Answer
from gencond.eval.score_cache import ScoreCache
from gencond.uses.proxies import TrainingSet, TrainingSets
from gencond.uses.ranking import NUM_PARAMETERS, Ranking, Search, union

logger = logging.getLogger(__name__)


class Trainings:
    """Trains networks that were not trained before, under one progress bar.

    Args:
        out: scores are kept in its folder `scores`.
        networks: in an order in which cheap and costly ones alternate, so that the time left holds and processes, of
            which each takes every n-th, have as much to do.
        num_seeds: of each network.
    """

    def __init__(self, out: Path, device: torch.device, networks: Sequence[str], num_seeds: int) -> None:
        self.device, self.networks, self.seeds = device, networks, range(num_seeds)
        self.cache = ScoreCache(folder=out / "scores")
        self.rank, self.world = rank_and_world()
        self.expected = 0  # images that go through the networks of this process

    @cached_property
    def bar(self) -> tqdm:
        """Counts the images that go through networks; made when the first is trained."""
        return progress(
            description="search", total=self.expected, unit="image", unit_scale=True, disable=not is_main_process()
        )

    def search(self, begun: Search, sets: TrainingSets) -> Search:
        """Ranks the networks, trains the best of each ranking on the whole set, and adds what was found to `begun`."""
        proxies, whole = sets.proxies, sets.whole
        most = min(len(self.networks), begun.top * (len(proxies) + 1))
        if is_main_process():
            self._say(begun, proxies, most)
        of_proxies = sum(self._left(one, self.networks) for one in proxies)
        self.expected = of_proxies + -(-most // self.world) * begun.num_seeds * whole.num_seen
        answers = self._measured(proxies, self.networks)
        rankings = [
            self._ranking(one, {network: answers[number, network] for network in begun.networks})
            for number, one in enumerate(proxies)
        ]
        counts = {network: (float(count),) for network, count in begun.networks.items()}
        rankings.append(Ranking(images=NUM_PARAMETERS, ipc=None, scores=counts))
        best = union(rankings, begun.top)
        self.expected = of_proxies + self._left(whole, best)
        if of_proxies:
            self.bar.total = self.expected
        of_whole = self._measured([whole], best)
        if self.expected:
            self.bar.close()
        every = [answer for own in of_whole.values() for answer in own]
        return replace(
            begun,
            rankings=tuple(rankings),
            whole={network: Scores.of([one.top1.mean for one in of_whole[0, network]]) for network in best},
            whole_seconds=_seconds(every),
        )

    def _say(self, begun: Search, proxies: Sequence[TrainingSet], most: int) -> None:
        """How much there is to do."""
        if left_out := begun.left_out:
            first = next(iter(left_out.values()))
            logger.info("search: %d networks do not take the images and are left out, first %s", len(left_out), first)
        total = len(proxies) * len(self.networks) * begun.num_seeds
        done = total - sum(len(self.waiting(one, self.networks)) for one in proxies)
        logger.info(
            "search: %d networks, %d proxies that train, %d seed(s): %d trainings%s; then %d to %d of the networks on "
            "the whole set",
            len(self.networks), len(proxies), begun.num_seeds, total, f", {done} of them done before" if done else "",
            begun.top, most,
        )  # fmt: skip

    def _measured(self, sets: Sequence[TrainingSet], networks: Sequence[str]) -> dict[tuple[int, str], list[Answer]]:
        """(number of a training set, network) -> its answers, one for each seed; by all processes together."""
        own = []
        for network, (number, one) in itertools.product(self._own(networks), enumerate(sets)):
            if seeds := [seed for _, seed in self.waiting(one, [network])]:
                self._train(one, network, seeds)
            own.append(((number, network), [self._known(one, network, seed) for seed in self.seeds]))
        return dict(from_all(own))

    def _left(self, one: TrainingSet, networks: Sequence[str]) -> int:
        """Images that have yet to go through this process's share of `networks`."""
        return len(self.waiting(one, self._own(networks))) * one.num_seen

    def waiting(self, one: TrainingSet, networks: Sequence[str]) -> list[tuple[str, int]]:
        """(network, seed) of the trainings that were not done before."""
        pairs = itertools.product(networks, self.seeds)
        return [(network, seed) for network, seed in pairs if self.cache.get(one.asked(network, seed)) is None]

    def _own(self, networks: Sequence[str]) -> Sequence[str]:
        """The share of this process."""
        return networks[self.rank :: self.world]

    def _known(self, one: TrainingSet, network: str, seed: int) -> Answer:
        answer = self.cache.get(one.asked(network, seed))
        assert answer is not None, f"{network} was trained on {one.question.images}"
        return answer

    def _train(self, one: TrainingSet, network: str, seeds: Sequence[int]) -> None:
        question = one.question
        self.bar.set_postfix_str(f"{network}, {question.images}", refresh=False)  # a line each would fill a log
        images, begun, started = one.images(seeds), self.bar.n, time.monotonic()

        def on_share(share: float) -> None:
            self.bar.update(int(begun + share * one.num_seen * len(seeds)) - self.bar.n)

        scores = train_and_test(
            images,
            one.test,
            network=network,
            protocol=question.protocol,
            augmentation=question.augmentation,
            normalisation=one.normalisation,
            seeds=seeds,
            device=self.device,
            on_share=on_share,
        )
        seconds = (time.monotonic() - started) / len(seeds)
        for seed, score in zip(seeds, scores, strict=True):
            self.cache.put(one.asked(network, seed), Answer(top1=Scores.of([score]), seconds=seconds), question.images)

    def _ranking(self, one: TrainingSet, answers: Mapping[str, Sequence[Answer]]) -> Ranking:
        every = [answer for of_network in answers.values() for answer in of_network]
        return Ranking(
            images=one.question.images,
            ipc=one.question.ipc,
            scores={network: [answer.top1.mean for answer in own] for network, own in answers.items()},
            num_stored=one.num_stored,
            num_seen=len(every) * one.num_seen,
            seconds=_seconds(every),
        )


def _seconds(answers: Sequence[Answer]) -> float:
    """Of several trainings together."""
    return sum(answer.seconds or 0.0 for answer in answers)
