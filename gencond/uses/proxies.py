"""What networks are trained on to be ranked: a condensed set, real images that cost as little, and the whole set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from gencond.data.images import LabeledImages, split_off
from gencond.eval.baselines import KMEANS_PACKED, KMEANS_REAL, PACKED, RANDOM_PACKED, RANDOM_REAL, WHOLE_SET, RealImages
from gencond.eval.classifier import RepeatedImages
from gencond.eval.protocols import Protocol
from gencond.eval.results import EVALUATOR, Question, evaluator_of
from gencond.eval.subject import SubjectAndReal
from gencond.uses.ranking import EARLY_STOPPING

HELD_OUT, MOST_HELD_OUT = 0.2, 5000  # of the training images, to rank by; more would cost more than a proxy's training


@dataclass(frozen=True)
class TrainingSet:
    """What each network is trained on, and what it is tested on.

    Args:
        question: all that a score depends on but the network and its seed.
        images: seeds -> as `train_and_test` takes them; drawn when they are needed first.
        test: the images that give the score.
        normalisation: mean and standard deviation of the real images that it is about.
        num_stored: images that are stored.
        num_seen: images that go through a network in one training.
    """

    question: Question
    images: Callable[[Sequence[int]], Sequence[LabeledImages] | RepeatedImages]
    test: LabeledImages
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    num_stored: int
    num_seen: int

    def asked(self, network: str, seed: int) -> Question:
        """Of one training."""
        return replace(self.question, network=network, seed=seed)


@dataclass(frozen=True)
class TrainingSets:
    """All that a search trains on.

    Args:
        proxies: that rank every network; all are tested on the same held-out training images.
        whole: tested on the test images.
        notes: on proxies that are left out.
    """

    proxies: Sequence[TrainingSet]
    whole: TrainingSet
    notes: Sequence[str]


def training_sets(
    pair: SubjectAndReal,
    ipcs: Sequence[int],
    protocol: Protocol,
    whole_protocol: Protocol,
    num_seeds: int,
    device: torch.device,
) -> TrainingSets:
    """The condensed set and its rivals at each IPC, early stopping, and the whole set.

    Args:
        ipcs: ascending; a rival that needs more images than a class has is left out.
        protocol, whole_protocol: of the proxies, and of the whole set.
        num_seeds: trainings of each network.
    """
    train, subject, augmentation = pair.train, pair.subject, pair.recipe.data.augmentation
    # By rank: the threshold that may have split the test set off would find nothing more here.
    rest, held_out = split_off(train, min(HELD_OUT, MOST_HELD_OUT / len(train)), closed=True)
    pair.to(device)
    samples = {ipc: subject.sample(ipc) for ipc in reversed(ipcs)}  # too many are refused first
    about = Question(
        images=subject.name, ipc=None, network="", protocol=protocol, augmentation=augmentation,
        seeds=tuple(range(num_seeds)), train=rest.fingerprint, test=held_out.fingerprint, factor=subject.factor,
        evaluator=EVALUATOR,
    )  # fmt: skip
    # Only herding and k-center ask for a network by name.
    real = RealImages(rest, "", augmentation, device, subject.factor)

    @cache
    def drawn(name: str, ipc: int, seed: int) -> LabeledImages:
        (images,), _ = real.draw(name, ipc, [seed])
        return images

    proxies, notes = [], []
    add = partial(TrainingSet, test=held_out, normalisation=rest.mean_std)
    smallest, class_name = min(zip(rest.counts.tolist(), rest.class_names, strict=True))
    for ipc in ipcs:
        proxies.append(
            add(
                replace(about, ipc=ipc, condensed=subject.key),
                lambda seeds, ipc=ipc: [samples[ipc]] * len(seeds),
                num_stored=ipc * train.num_classes,
                num_seen=_seen(protocol, len(samples[ipc])),
            )
        )
        for name in (RANDOM_REAL, KMEANS_REAL, *((RANDOM_PACKED, KMEANS_PACKED) if subject.factor > 1 else ())):
            needed = ipc * subject.factor**2 if name in PACKED else ipc
            if needed > smallest:
                notes.append(
                    f"no {name} at IPC {ipc}: class {class_name!r} has {smallest} training images that are not held "
                    f"out, and {needed} are needed"
                )
                continue
            proxies.append(
                add(
                    replace(about, images=name, ipc=ipc, evaluator=evaluator_of(name)),
                    lambda seeds, name=name, ipc=ipc: [drawn(name, ipc, seed) for seed in seeds],
                    num_stored=ipc * train.num_classes,
                    num_seen=_seen(protocol, needed * train.num_classes),
                )
            )
    batch_size, num_steps = protocol.batch_of(len(rest)), protocol.num_steps(len(samples[ipcs[-1]]))
    proxies.append(
        add(
            replace(about, images=EARLY_STOPPING, budget=(batch_size, num_steps)),
            lambda seeds: RepeatedImages(lambda seed: rest, batch_size, num_steps),
            num_stored=len(rest),
            num_seen=batch_size * num_steps,
        )
    )
    whole = TrainingSet(
        replace(about, images=WHOLE_SET, protocol=whole_protocol, train=train.fingerprint, test=pair.test.fingerprint),
        lambda seeds: [train] * len(seeds),
        pair.test,
        train.mean_std,
        len(train),
        _seen(whole_protocol, len(train)),
    )
    return TrainingSets(proxies, whole, notes)


def _seen(protocol: Protocol, num_images: int) -> int:
    """Images that go through a network which trains on so many."""
    return protocol.num_steps(num_images) * protocol.batch_of(num_images)
