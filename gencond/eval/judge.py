"""Judge a condensed set: real images, samples and baselines become rows, reports and the model card."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import read_log, write_json, write_text
from gencond.data.images import LabeledImages
from gencond.data.select import some_of_each_class
from gencond.eval.classifier import FreshImages
from gencond.eval.drawing import write_nearest, write_pictures
from gencond.eval.given import GivenNetwork, GivenTeacher, get_teacher, quality_network
from gencond.eval.memorization import memorisation
from gencond.eval.metrics import Likeness, compare_sets
from gencond.eval.outside.lrs import VERSION, Settings, ddranking_python, require_known, score_by_ddranking
from gencond.eval.protocols import Protocol, check_protocol, get_protocol
from gencond.eval.report import write_reports
from gencond.eval.report_file import ReportFile
from gencond.eval.results import Evaluation, Row
from gencond.eval.score_cache import ScoreCache
from gencond.eval.scoring import Plan, score_tables
from gencond.eval.subject import Subject, SubjectAndReal, SubjectAt, open_subject
from gencond.eval.wording import markdown_results, outside_summary, summary_table
from gencond.generator.card import model_card

logger = logging.getLogger(__name__)

QUALITY_IMAGES = 10_000  # real ones that samples are held against
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Wishes:
    """How a condensed set is judged; None takes what its recipe says.

    Args:
        ipcs, protocol, networks, num_seeds, augmentation: of the rows.
        baselines: names from `eval.baselines.BASELINES`; None takes all that mean something.
        quality: a network for FID and its kin, see `eval.given.quality_network`; None leaves them out.
        stream: a row of mode `stream` too: fresh images, for as many steps as the largest IPC trains.
        teacher: of a protocol that learns a teacher's answers, see `eval.given.get_teacher`.
    Raises:
        InputError: an unknown protocol.
    """

    ipcs: Sequence[int] | None = None
    protocol: str | None = None
    networks: Sequence[str] | None = None
    num_seeds: int | None = None
    baselines: Sequence[str] | None = None
    augmentation: str | None = None
    quality: str | None = None
    stream: bool = False
    teacher: str | None = None

    def __post_init__(self) -> None:
        if self.protocol is not None:
            check_protocol(self.protocol)  # a wrong name is said before the data is read


def judge(at: SubjectAt, out: Path, wishes: Wishes | None = None) -> Evaluation:
    """Scores a condensed set beside the baselines, prints the table, and writes report.json, report.md and report.html.

    Args:
        at: the set. With a run folder the model card is written anew too.
        out: where the reports go; rows of an earlier report there are kept if they are of the same images.
        wishes: what is measured; None: all that the recipe says.
    Raises:
        InputError: no artefact, real images of other classes or another size, an unknown protocol or network.
    """
    wishes = wishes or Wishes()
    pair = open_subject(at, out)
    plan = _plan(pair, wishes)
    device = new_accelerator().device
    extractor = _quality_network(wishes, pair.train, device)  # what is missing is said before hours of training
    plan = replace(plan, teacher=_teacher(wishes, pair, plan, device))
    old = pair.earlier(out)
    pair.to(device)
    samples = pair.subject.sample(max(plan.ipcs))
    if wishes.stream:
        plan = replace(plan, fresh=_stream_of(pair.subject, plan.protocol, len(samples)))
    report = ReportFile(pair, plan, out, _command(at, out, plan, wishes), old, device)

    rows, left_out = score_tables(
        pair.subject, pair.train, pair.test, plan, device, ScoreCache(report.known), report.add
    )
    report.say_reused(rows)
    report.add(*rows, notes=left_out)
    write_pictures(out, pair.train, samples)
    copied, nearest = memorisation(samples, pair.train, pair.test)
    write_nearest(out, samples, pair.train, nearest)
    likeness = _likeness(wishes, extractor, samples, pair)
    content = report.finish(memorisation=copied, quality=likeness or report.earlier_quality)
    write_reports(out, content, read_log(out))
    _write_card(pair, out, content.rows)
    print(f"\n{summary_table(rows)}")
    _print_notes(content)
    return content


def _plan(pair: SubjectAndReal, wishes: Wishes) -> Plan:
    """What the table will show, but for streams and teachers. Raises InputError for what cannot be."""
    judged, train = pair.recipe.evaluate, pair.train
    protocol = get_protocol(wishes.protocol or judged.protocol, train.num_classes, train.image_size)
    if (protocol.temperature is None) != (wishes.teacher is None):
        raise InputError(
            f"protocol {protocol.name} learns from labels: leave --teacher out"
            if wishes.teacher
            else f"protocol {protocol.name} learns a teacher's answers: name one with --teacher"
        )
    ipcs = pair.choose_ipcs(wishes.ipcs)
    num_seeds = judged.num_seeds if wishes.num_seeds is None else wishes.num_seeds
    if not 1 <= num_seeds <= MOST_SEEDS:
        raise InputError(f"--seeds must be in 1 .. {MOST_SEEDS}, not {num_seeds}")
    if pair.subject.stream is None and wishes.stream:
        raise InputError(f"{pair.path} makes no fresh images: leave --stream out")
    augmentation = wishes.augmentation or pair.recipe.data.augmentation
    return Plan(ipcs, wishes.networks or judged.networks, protocol, augmentation, num_seeds, wishes.baselines)


def _command(at: SubjectAt, out: Path, plan: Plan, wishes: Wishes) -> str:
    """What reproduces the rows of a report."""
    return at.command(
        out,
        {
            "ipc": plan.ipcs,
            "protocol": [plan.protocol.name],
            "networks": plan.networks,
            "seeds": [plan.num_seeds],
            "baselines": wishes.baselines,
            "augmentation": plan.augmentation and [plan.augmentation],
            "quality": wishes.quality and [wishes.quality],
            "teacher": wishes.teacher and [wishes.teacher],
            "stream": [] if wishes.stream else None,
        },
    )


def _quality_network(wishes: Wishes, train: LabeledImages, device: torch.device) -> GivenNetwork | None:
    return None if wishes.quality is None else quality_network(wishes.quality, train, device)


def _teacher(wishes: Wishes, pair: SubjectAndReal, plan: Plan, device: torch.device) -> GivenTeacher | None:
    if wishes.teacher is None:
        return None
    return get_teacher(wishes.teacher, pair.train, pair.test, plan.augmentation, device)


def _stream_of(subject: Subject, protocol: Protocol, num_fixed: int) -> FreshImages:
    """As many steps of fresh images as a classifier takes that trains on `num_fixed` again and again."""
    assert subject.stream is not None, "a plan with a stream is of a set that has one"
    return subject.stream(protocol.batch_of(num_fixed), protocol.num_steps(num_fixed))


def _likeness(
    wishes: Wishes, extractor: GivenNetwork | None, samples: LabeledImages, pair: SubjectAndReal
) -> Likeness | None:
    """How samples compare with real images as sets, where that was asked for."""
    if wishes.quality is None or extractor is None:
        return None
    train, test = pair.train, pair.test
    return compare_sets(
        wishes.quality.partition("=")[0],
        extractor,
        samples,
        some_of_each_class(train, -(-QUALITY_IMAGES // train.num_classes), seed=0),
        some_of_each_class(test, -(-len(samples) // test.num_classes), seed=0),
    )


def _write_card(pair: SubjectAndReal, out: Path, rows: Sequence[Row]) -> None:
    """The model card of a run folder that is judged into itself."""
    if pair.condensed and out.resolve() == Path(pair.path).resolve() and (out / "condensed").is_dir():
        write_text(out / "condensed" / "README.md", model_card(pair.condensed, markdown_results(rows)))


def judge_outside(
    at: SubjectAt,
    out: Path,
    settings: Settings,
    python: str | None = None,
    ipcs: Sequence[int] | None = None,
) -> None:
    """Has DD-Ranking score a condensed set, prints its table, and writes it into the report.

    Args:
        at, out: as of `judge`.
        settings: how DD-Ranking trains.
        python: one that has DD-Ranking; None makes an environment in the cache once.
        ipcs: None takes what the recipe says.
    Raises:
        InputError: as of `judge`; real images that DD-Ranking cannot take; no DD-Ranking, or it failed.
    """
    pair = open_subject(at, out)
    ipcs = pair.choose_ipcs(ipcs)
    require_known(pair.train, ipcs)
    python_used = ddranking_python(python)
    logger.info("judge: DD-Ranking %s, %d trainings for each IPC; %s", VERSION, settings.num_trainings, settings.words)
    pair.to(new_accelerator().device)
    command = at.command(
        out,
        {
            "judge": [f"ddranking:{settings.epochs}"],
            "judge-python": python and [python],
            "judge-lr": None if settings.learning_rate is None else [settings.learning_rate],
            "ipc": ipcs,
            "networks": [settings.network],
            "seeds": [settings.num_eval],
        },
    )
    content, found = pair.earlier(out) or pair.evaluation(command), []
    for ipc in ipcs:
        log = out / f"ddranking_ipc{ipc}.log"
        scores = score_by_ddranking(
            pair.subject.sample(ipc), ipc, pair.train, pair.test, settings, python_used, log, command
        )
        found.append(scores)
        kept = [other for other in content.outside if other.asked != scores.asked]
        content = replace(content, outside=tuple(sorted([*kept, scores], key=lambda one: one.asked)))
        write_json(out / "report.json", content.to_json())
    write_pictures(out, pair.train, pair.subject.sample(max(ipcs)))
    write_reports(out, content, read_log(out))
    print(f"\n{outside_summary(found)}")
    _print_notes(content)


def _print_notes(content: Evaluation) -> None:
    for note in content.notes:
        print(f"Note: {note}")
