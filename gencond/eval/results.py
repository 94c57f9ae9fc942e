"""Results with types: the question a score answers, the answer, a table's row, and all of report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gencond.common.errors import InputError, first_line
from gencond.common.files import short_hash
from gencond.eval.baselines import BASELINES, CODEC_REAL, KMEANS_PACKED, KMEANS_REAL, PACKED, CodecFacts
from gencond.eval.given import TeacherFacts
from gencond.eval.memorization import Memorisation
from gencond.eval.metrics import Likeness
from gencond.eval.outside.lrs import OutsideScores
from gencond.eval.protocols import Protocol
from gencond.eval.records import Answered, Scores, read_record

GENCOND = "gencond"  # the rows of what gencond's own recipes condensed
EVALUATOR = 3  # counts up when the same question gets another answer, so that older rows are measured again
OTHER_EVALUATORS = {KMEANS_REAL: 4, KMEANS_PACKED: 4}  # of rows that changed alone: k-means chose in pixel space before
Mode = Literal["fixed", "stream"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was measured.

    Args:
        top1: on the test images.
        num_bytes: that must be stored.
        num_images: that a classifier was trained on, or saw of a stream.
        codec: of photographs.
        stored: images of each class that are stored, in words; empty where any number can be made.
        seconds: of training and testing, where they were taken.
        answered: class by class; None in rows of versions that did not keep it.
    """

    top1: Scores
    num_bytes: int | None = None
    num_images: int | None = None
    codec: CodecFacts | None = None
    stored: str = ""
    seconds: float | None = None
    answered: Answered | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a results table: the public part of a question, and its answer.

    Args:
        images: a baseline, GENCOND, or the name of what was condensed otherwise.
        mode: `fixed`, or `stream`, where no image is seen twice.
        ipc: images of each class as they are stored; None for the whole set and for streams.
        network: of the classifiers.
        protocol: its name.
        num_seeds: classifiers.
        key: of the question; empty in rows that were written before there were keys.
        evaluator: version of the evaluator.
        teacher: key of the teacher, where one answers.
        codec: of photographs.
        num_bytes: that must be stored.
        num_images: that a classifier was trained on, or saw of a stream.
        top1: on the test images, in [0, 1].
        bits_per_class: that must be stored.
        answered: class by class; None in rows of versions that did not keep it.
    """

    images: str
    mode: Mode
    ipc: int | None
    network: str
    protocol: str
    num_seeds: int
    key: str = ""
    evaluator: int | None = None
    teacher: str | None = None
    codec: CodecFacts | None = None
    num_bytes: int
    num_images: int | None = None
    top1: Scores
    bits_per_class: float
    answered: Answered | None = None

    @property
    def answer(self) -> Answer:
        """What was measured, apart from what was asked."""
        return Answer(
            top1=self.top1, num_bytes=self.num_bytes, num_images=self.num_images, codec=self.codec,
            answered=self.answered,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json; what is unknown is left out."""
        measured = {
            "key": self.key or None, "evaluator": self.evaluator, "teacher": self.teacher,
            "codec": self.codec and asdict(self.codec), "bytes": self.num_bytes, "num_images": self.num_images,
            "top1": list(self.top1.each), "top1_mean": self.top1.mean, "top1_std": self.top1.std,
            "bits_per_class": self.bits_per_class, "answered": self.answered and asdict(self.answered),
        }  # fmt: skip
        asked = {name: getattr(self, name) for name in ("images", "mode", "ipc", "network", "protocol", "num_seeds")}
        return asked | {name: value for name, value in measured.items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Row":
        """What `to_json` wrote. Raises InputError for a row in which something is missing."""
        flat = {"each": "top1", "mean": "top1_mean", "std": "top1_std"}
        top1 = {field: content[name] for field, name in flat.items() if name in content}
        told = {"num_bytes" if name == "bytes" else name: value for name, value in content.items()}
        told["top1"] = read_record(Scores, top1, each=tuple)
        return read_record(cls, told, codec=CodecFacts.from_json, answered=Answered.from_json)


@dataclass(frozen=True, kw_only=True)
class Question:
    """All that a score depends on.

    Args:
        images: a baseline, GENCOND, or the name of what was condensed otherwise.
        mode: `fixed`, or `stream`, where no image is seen twice.
        ipc: images of each class as they are stored; None for the whole set, streams and any number.
        network: of the classifiers.
        protocol: with all that it says.
        augmentation: strategy of operations that leave the class as it is.
        seeds: of the classifiers and of real images that are drawn together.
        seed: the one that is asked for; None asks for all, as one row.
        train, test: fingerprints of the real images.
        condensed: key of the condensed set; None for real images.
        num_bytes: that photographs in a codec may take.
        qualities, encoder: of the codec.
        factor: by which packed real images are cut.
        budget: (batch size, batches) where these are not the protocol's.
        teacher: its key.
        evaluator: version of the evaluator.
    """

    images: str
    mode: Mode = "fixed"
    ipc: int | None
    network: str
    protocol: Protocol
    augmentation: str
    seeds: tuple[int, ...]
    seed: int | None = None
    train: str
    test: str
    condensed: str | None = None
    num_bytes: int | None = None
    qualities: tuple[int, ...] = ()
    encoder: str = ""
    factor: int = 1
    budget: tuple[int, int] | None = None
    teacher: str | None = None
    evaluator: int

    @property
    def key(self) -> str:
        """Identifies the question: 16 hex digits.

        A row of a table, one seed after a budget and one seed after a protocol's own steps each have an order of
        parts of their own, which is that of the reports and scores that lie on disks.
        """
        protocol, teacher = self.protocol.describe(), [self.teacher] if self.teacher else []
        if self.seed is None:
            seen = [self.budget[0] * self.budget[1], self.budget[0]] if self.budget else []
            return short_hash(
                self.evaluator, self.images, self.ipc, self.network, protocol, self.augmentation, len(self.seeds),
                self.train, self.test, self._trained_on, *seen, *teacher,
            )  # fmt: skip
        if self.budget is not None:
            return short_hash(
                self.evaluator, *self.budget, protocol, self.network, self.augmentation, self.train, self.test,
                *self._parts_of_images, self.seed, *teacher,
            )  # fmt: skip
        asked = {
            "evaluator": self.evaluator, "images": self.condensed or self._name, "ipc": self.ipc, "seed": self.seed,
            "protocol": protocol, "network": self.network, "augmentation": self.augmentation, "train": self.train,
            "test": self.test,
        }  # fmt: skip
        return short_hash(asked, *teacher)

    @property
    def place(self) -> str:
        """Where a score is kept: of one seed by names alone, so that a score whose content changed is found there."""
        if self.seed is None or self.budget is not None:
            return self.key
        return short_hash(
            self._name, self.ipc, self.seed, self.protocol.name, self.network, self.train, self.test,
            self.augmentation,
        )  # fmt: skip

    @property
    def _name(self) -> str:
        return f"{self.images}, factor {self.factor}" if self.images in PACKED else self.images

    @property
    def _trained_on(self) -> Any:
        """What the images of a row depend on beside the real ones."""
        if self.images == CODEC_REAL:
            return self.num_bytes, self.qualities, self.encoder
        return self.factor if self.images in PACKED else None if self.images in BASELINES else self.condensed

    @property
    def _parts_of_images(self) -> tuple:
        """The same after a budget. How many photographs fit is decided for all seeds at once."""
        if self.images == CODEC_REAL:
            return CODEC_REAL, self.num_bytes, self.qualities, self.encoder, len(self.seeds)
        return (self.condensed or self._name,)

    def row(self, answer: Answer, num_classes: int) -> Row:
        """The line of a table that an answer makes."""
        assert answer.num_bytes is not None, "a line of a table says its bytes"
        return Row(
            images=self.images, mode=self.mode, ipc=self.ipc, network=self.network, protocol=self.protocol.name,
            num_seeds=len(answer.top1.each), key=self.key, evaluator=self.evaluator, teacher=self.teacher,
            codec=answer.codec, num_bytes=answer.num_bytes, num_images=answer.num_images, top1=answer.top1,
            bits_per_class=8 * answer.num_bytes / num_classes, answered=answer.answered,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """For people who read a score."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Question":
        """What `to_json` wrote."""
        return read_record(
            cls, content, protocol=Protocol.from_json, seeds=tuple, qualities=tuple, budget=tuple
        )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What an evaluation took.

    Args:
        seconds: in all.
        memory: bytes, the most that was seen; 0 is unknown.
    """

    seconds: float
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All of report.json.

    Args:
        title: of the report.
        rows: in the order of the table.
        outside: what outside judges said.
        notes: sentences for the report.
        measured: what the rows are of: fingerprints of the real images and the key of the condensed set.
        judged_on: the part of the data, `test` or `validation`.
        num_test_images: real images that classifiers are tested on.
        class_names: of the data.
        condensed: what is known of the set and how it was made, as the set itself has it.
        versions, commit, command: to reproduce it.
        augmentation: of the rows; None: no row was asked for yet.
        teacher: whose answers some rows learned.
        protocols: of the rows, as they describe themselves.
        cost: of measuring the rows.
        memorisation: whether samples are copies.
        quality: how samples compare with real images as sets.
    """

    title: str
    rows: tuple[Row, ...] = ()
    outside: tuple[OutsideScores, ...] = ()
    notes: tuple[str, ...] = ()
    measured: Mapping[str, str] | None = None
    judged_on: str
    num_test_images: int
    class_names: tuple[str, ...]
    condensed: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None
    command: str
    augmentation: str | None = None
    teacher: TeacherFacts | None = None
    protocols: tuple[Mapping[str, Any], ...] = ()
    cost: Cost | None = None
    memorisation: Memorisation | None = None
    quality: Likeness | None = None

    def to_json(self) -> dict[str, Any]:
        """As report.json; what was not measured is left out."""
        content = {
            "title": self.title,
            "rows": [row.to_json() for row in self.rows],
            "outside": [scores.to_json() for scores in self.outside],
            "notes": list(self.notes),
            "measured": self.measured,
            "judged_on": self.judged_on,
            "num_test_images": self.num_test_images,
            "class_names": list(self.class_names),
            "condensed": self.condensed,
            "versions": self.versions,
            "commit": self.commit,
            "command": self.command,
            "augmentation": self.augmentation,
            "teacher": self.teacher and asdict(self.teacher),
            "protocols": self.protocols or None,
            "cost": self.cost and asdict(self.cost),
            "memorisation": self.memorisation and asdict(self.memorisation),
            "quality": self.quality and asdict(self.quality),
        }
        written = {"commit"} | ({"teacher"} if self.augmentation is not None else set())
        return {name: value for name, value in content.items() if value is not None or name in written}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Evaluation":
        """What `to_json` wrote, now or earlier. Raises InputError where something is missing."""
        if "evaluation_seconds" in content and "cost" not in content:  # reports of older versions hold the time alone
            content = {**content, "cost": {"seconds": content["evaluation_seconds"]}}
        try:
            found = read_record(
                cls,
                content,
                rows=lambda rows: tuple(map(Row.from_json, rows)),
                outside=lambda entries: tuple(map(OutsideScores.from_json, entries)),
                notes=tuple,
                class_names=tuple,
                teacher=lambda teacher: read_record(TeacherFacts, teacher),
                protocols=tuple,
                cost=lambda cost: read_record(Cost, cost),
                memorisation=lambda found: read_record(Memorisation, found),
                quality=Likeness.from_json,
            )
            if any(row.answered and len(row.answered.asked) != len(found.class_names) for row in found.rows):
                raise InputError("the answers of a row are of other classes: evaluate again")
            return found
        except InputError:
            raise
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(f"something in it has another kind than it should ({first_line(error)})") from None


def evaluator_of(images: str) -> int:
    """The version of the evaluator for rows of some kind of images."""
    return OTHER_EVALUATORS.get(images, EVALUATOR)


def scores_of(answers: Sequence[Answer]) -> Scores:
    """The scores of several seeds, each of which was measured for itself."""
    return Scores.of([score for answer in answers for score in answer.top1.each])
