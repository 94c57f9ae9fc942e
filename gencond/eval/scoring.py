"""Rows of a results table: every kind of training images under the same protocol, in the same run."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from tqdm import tqdm

from gencond.common.errors import InputError
from gencond.common.progress import progress
from gencond.data.images import LabeledImages
from gencond.eval.baselines import BASELINES, CODEC_REAL, PACKED, SAME_NUMBER, WHOLE_SET, RealImages, usual_baselines
from gencond.eval.classifier import FreshImages, train_and_test
from gencond.eval.codec import QUALITIES, encoder_version
from gencond.eval.given import GivenTeacher
from gencond.eval.networks import build_network
from gencond.eval.protocols import Protocol
from gencond.eval.records import Answered, Scores
from gencond.eval.results import Answer, Mode, Question, Row, evaluator_of
from gencond.eval.score_cache import ScoreCache
from gencond.eval.subject import Subject


@dataclass(frozen=True)
class Plan:
    """What a table shows.

    Args:
        ipcs: images of each class, as they are stored.
        networks: of the classifiers, by name.
        protocol: of their training.
        augmentation: strategy of operations that leave the class as it is.
        num_seeds: classifiers of each row.
        baselines: names from `BASELINES`; None takes all that mean something.
        fresh: of the condensed set, for a row of mode `stream`.
        teacher: of all rows alike, for a protocol with a temperature.
    """

    ipcs: Sequence[int]
    networks: Sequence[str]
    protocol: Protocol
    augmentation: str
    num_seeds: int
    baselines: Sequence[str] | None = None
    fresh: FreshImages | None = None
    teacher: GivenTeacher | None = None

    @property
    def seeds(self) -> range:
        """Of each row."""
        return range(self.num_seeds)

    def cost(self, num_images: int) -> int:
        """Images that go through the classifiers of a row which train on so many."""
        return self.num_seeds * self.protocol.num_steps(num_images) * self.protocol.batch_of(num_images)


def score_tables(
    subject: Subject,
    train: LabeledImages,
    test: LabeledImages,
    plan: Plan,
    device: torch.device,
    cache: ScoreCache,
    on_row: Callable[[Row], None] = lambda row: None,
) -> tuple[list[Row], list[str]]:
    """(rows, notes): the condensed set and the baselines at each IPC, and the whole set; for each network.

    Args:
        subject: what is condensed; packed real images are cut as its images are, and the codec's get as many bytes.
        cache: what an earlier evaluation measured is taken from there instead of trained again.
        on_row: called with each row once it is measured, so that a killed evaluation loses one row at most.
    Returns:
        Rows in the order of a table; notes say what was left out and why.
    Raises:
        InputError: an unknown network or baseline, or a network that does not fit the images.
    """
    questions, notes = _questions(subject, train, test, plan)
    waiting = [question for question in questions if cache.get(question) is None]
    with _Measurement(subject, train, test, plan, device, waiting) as measurement:
        for question in waiting:
            answer = measurement.of(question)
            if answer is None:
                notes.append(
                    f"no {question.images} row at IPC {question.ipc}: {question.num_bytes} bytes hold not one image of "
                    "each class"
                )
                continue
            cache.put(question, answer)
            on_row(question.row(answer, train.num_classes))
    answers = [(question, cache.get(question)) for question in questions]
    return [question.row(answer, train.num_classes) for question, answer in answers if answer is not None], notes


def _questions(
    subject: Subject, train: LabeledImages, test: LabeledImages, plan: Plan
) -> tuple[list[Question], list[str]]:
    """(what a table asks, notes on what the real images cannot fill)."""
    factor, fresh = subject.factor, plan.fresh
    baselines = usual_baselines(factor) if plan.baselines is None else plan.baselines
    if unknown := [name for name in baselines if name not in BASELINES]:
        raise InputError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    for network in plan.networks:  # a wrong name fails before any training
        build_network(network, train.channels, train.num_classes, train.image_size, seed=0)
    smallest, name = min(zip(train.counts.tolist(), train.class_names, strict=True))
    beside = [name for name in baselines if name != WHOLE_SET and (factor > 1 or name not in PACKED)]
    notes = [
        f"no {name} row: the images of the condensed set are whole"
        for name in PACKED
        if name in baselines and factor == 1
    ]
    asked: list[tuple[Mode, str, int | None]] = [
        ("fixed", images, ipc) for ipc in sorted(set(plan.ipcs)) for images in (subject.name, *beside)
    ]
    if fresh:
        asked.append(("stream", subject.name, None))
    if WHOLE_SET in baselines:
        asked.append(("fixed", WHOLE_SET, None))
    questions = []
    for network, (mode, images, ipc) in itertools.product(plan.networks, asked):
        needed = (ipc or 0) * (factor**2 if images in PACKED else 1)
        if images in SAME_NUMBER and needed > smallest:
            takes = "" if needed == ipc else f", and {needed} are needed"
            notes.append(f"no {images} row at IPC {ipc}: class {name!r} has only {smallest} training images{takes}")
            continue
        questions.append(
            Question(
                images=images,
                mode=mode,
                ipc=ipc,
                network=network,
                protocol=plan.protocol,
                augmentation=plan.augmentation,
                seeds=tuple(plan.seeds),
                train=train.fingerprint,
                test=test.fingerprint,
                condensed=None if images in BASELINES else subject.key,
                num_bytes=subject.num_bytes(ipc or 1),
                qualities=tuple(QUALITIES) if images == CODEC_REAL else (),
                encoder=encoder_version() if images == CODEC_REAL else "",
                factor=factor,
                budget=(fresh.batch_size, fresh.num_steps) if fresh and mode == "stream" else None,
                teacher=plan.teacher.key if plan.teacher else None,
                evaluator=evaluator_of(images),
            )
        )
    return questions, notes


def _num_bytes(question: Question) -> int:
    """Of the condensed set, which every question of a table says."""
    assert question.num_bytes is not None, f"a question about {question.images} without its bytes"
    return question.num_bytes


class _Measurement:
    """Trains the classifiers of one question after the other, under one progress bar.

    Args:
        waiting: the questions that will be asked.
    """

    def __init__(
        self,
        subject: Subject,
        train: LabeledImages,
        test: LabeledImages,
        plan: Plan,
        device: torch.device,
        waiting: Sequence[Question],
    ) -> None:
        self.subject, self.train, self.test, self.plan, self.device = subject, train, test, plan, device
        self.waiting = waiting
        self._real: dict[str, RealImages] = {}
        # A generator takes the same bytes at every IPC, so its rival is the same.
        self._of_codec: dict[tuple[str, int], Answer] = {}

    @cached_property
    def bar(self) -> tqdm:
        """Counts the images that go through classifiers."""
        total = sum(map(self._expected, self.waiting))
        return progress(
            description="evaluation", total=total, unit="image", unit_scale=True, disable=not self.waiting
        )  # fmt: skip

    def __enter__(self) -> "_Measurement":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def of(self, question: Question) -> Answer | None:
        """What the classifiers of a row reach; None where not one image of each class fits into the bytes."""
        self.bar.set_postfix_str(f"{question.images} IPC {question.ipc or 'all'}")
        if question.images == CODEC_REAL:
            return self._of_photographs(question)
        return self._trained(question, *self._drawn(question))

    def _of_photographs(self, question: Question) -> Answer | None:
        """The same of photographs in a codec, once for all questions with the same bytes."""
        num_bytes = _num_bytes(question)
        twin = question.network, num_bytes
        if twin in self._of_codec:
            self.bar.total -= self._expected(question)
            return self._of_codec[twin]
        found = self._real_images(question.network).photographs(
            num_bytes,
            self.plan.seeds,
            lambda own, held_out: self._top1(question)([own], held_out, seeds=[0])[0],
        )
        if found is None:
            self.bar.total -= self._expected(question)
            return None
        self._of_codec[twin] = replace(self._trained(question, found.sets, found.num_bytes), codec=found.facts)
        return self._of_codec[twin]

    def _drawn(self, question: Question) -> tuple[Sequence[LabeledImages] | FreshImages, int]:
        """(what the classifiers of each seed train on, the bytes that store it)."""
        if question.images in BASELINES:
            return self._real_images(question.network).draw(question.images, question.ipc, self.plan.seeds)
        if question.ipc is not None:
            return [self.subject.sample(question.ipc)] * self.plan.num_seeds, _num_bytes(question)
        assert self.plan.fresh is not None, "without an IPC a row is of fresh images"
        return self.plan.fresh, _num_bytes(question)

    def _trained(self, question: Question, sets: Sequence[LabeledImages] | FreshImages, num_bytes: int) -> Answer:
        """The scores of classifiers that train on some images."""
        expected = self._expected(question)
        num_images = sets.num_images if isinstance(sets, FreshImages) else len(sets[0])
        actual = expected if isinstance(sets, FreshImages) else self.plan.cost(num_images)
        self.bar.total += actual - expected  # a codec's file holds more
        begun, confusions = self.bar.n, []
        scores = self._top1(question)(
            sets,
            self.test,
            seeds=self.plan.seeds,
            on_share=lambda share: self.bar.update(int(begun + share * actual) - self.bar.n),
            on_tested=confusions.append,
        )
        answered = Answered.of(torch.stack(confusions).sum(0))
        return Answer(top1=Scores.of(scores), num_bytes=num_bytes, num_images=num_images, answered=answered)

    def _top1(self, question: Question) -> Callable[..., list[float]]:
        """`train_and_test`, but for images and seeds."""
        teacher = self.plan.teacher
        return partial(
            train_and_test,
            network=question.network,
            protocol=self.plan.protocol,
            augmentation=self.plan.augmentation,
            normalisation=self.train.mean_std,
            device=self.device,
            teacher=teacher and teacher.logits,
        )

    def _real_images(self, network: str) -> RealImages:
        """One for each network, which keep the features that they choose by."""
        if network not in self._real:
            self._real[network] = RealImages(
                self.train, network, self.plan.augmentation, self.device, self.subject.factor
            )
        return self._real[network]

    def _expected(self, question: Question) -> int:
        """Images that go through the classifiers of a row."""
        if question.budget is not None:
            return self.plan.num_seeds * question.budget[0] * question.budget[1]
        ipc = question.ipc
        return self.plan.cost(len(self.train) if ipc is None else ipc * self.train.num_classes)
