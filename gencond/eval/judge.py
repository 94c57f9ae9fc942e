"""Judge a condensed set: real images, samples and baselines become rows, reports and the model card."""

import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gencond
from gencond.common.distributed import memory_used, new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import read_json, read_log, write_json, write_text
from gencond.common.provenance import current_commit, library_versions
from gencond.common.room import require_place, require_text
from gencond.config import Recipe
from gencond.data.foreign import is_foreign, read_foreign
from gencond.data.images import LabeledImages, rows_seen
from gencond.data.load import load_data
from gencond.data.overlap import notes_on_overlap
from gencond.data.select import some_of_each_class
from gencond.eval.baselines import BASELINES
from gencond.eval.classifier import FreshImages
from gencond.eval.drawing import write_nearest, write_pictures
from gencond.eval.given import get_teacher, quality_network
from gencond.eval.memorization import memorisation
from gencond.eval.metrics import compare_sets
from gencond.eval.outside.lrs import VERSION, Settings, ddranking_python, require_known, score_by_ddranking
from gencond.eval.protocols import Protocol, check_protocol, get_protocol
from gencond.eval.report import write_reports
from gencond.eval.scoring import EVALUATOR, Row, score_tables
from gencond.eval.subject import JudgedSet, judged_artefact, judged_foreign, recipe_of, require_fit, row_name
from gencond.eval.wording import markdown_results, outside_summary, summary_table
from gencond.generator.artefact import Condensed
from gencond.generator.card import model_card

logger = logging.getLogger(__name__)

QUALITY_IMAGES = 10_000  # real ones that samples are held against


MOST_SEEDS = 1000


@dataclass(frozen=True)
class Case:
    """A condensed set and the real images that it is judged with.

    Args:
        condensed: the artefact; None: anybody's images.
        notes: for the report.
    """

    path: str
    recipe: Recipe
    condensed: Condensed | None
    train: LabeledImages
    test: LabeledImages
    subject: JudgedSet
    notes: tuple[str, ...]

    @property
    def measured(self) -> dict[str, str]:
        """What a result is of."""
        return {"train": self.train.fingerprint, "test": self.test.fingerprint, "condensed": self.subject.key}

    def choose_ipcs(self, ipcs: Sequence[int] | None) -> Sequence[int]:
        """Those asked for, else the recipe's, else what there is. Raises InputError for more than the set holds."""
        largest = self.subject.largest_ipc
        ipcs = ipcs or self.recipe.evaluate.ipc or ((largest,) if largest else (1, 10, 50))
        if min(ipcs) < 1:
            raise InputError("--ipc and --seeds must be at least 1")
        if largest and max(ipcs) > largest:
            raise InputError(f"{self.path} holds {largest} images of each class: lower --ipc {max(ipcs)}")
        return ipcs

    def content(self, command: str) -> dict[str, Any]:
        """Of report.json, before anything is measured."""
        return {
            "title": f"{Path(self.recipe.data.source).stem}, condensed"
            + (f" by recipe {self.recipe.name}" if self.condensed else f": {Path(self.path).name}"),
            "rows": [],
            "outside": [],
            "notes": [*self.notes, *notes_on_origin(self.subject.about, self.train)],
            "measured": self.measured,
            "judged_on": self.recipe.data.judge_on,
            "num_test_images": len(self.test),
            "class_names": list(self.train.class_names),
            "condensed": self.subject.about,
            "versions": library_versions(),
            "commit": current_commit(),
            "command": command,
        }


def open_case(
    path: str,
    out: Path,
    data: str | None,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None,
    factor: int,
) -> Case:
    """What `judge` and `judge_outside` are asked to judge. Raises InputError as they do."""
    if out.is_file():
        raise InputError(f"{out} is a file: choose a folder for the report")
    _check_normalisation(normalised_by)
    for one in (path, out):
        require_text(one, "path")
    require_place(out)
    condensed = None if is_foreign(Path(path)) else gencond.load(path)
    if condensed is not None and (normalised_by is not None or factor != 1):
        raise InputError(f"{path} is an artefact, which knows how it is read: leave --normalised-by and --factor out")
    recipe = recipe_of(path, condensed, data)
    train, test = load_data(recipe.data)
    notes = notes_on_overlap(train, test, recipe.data)
    if condensed is None:
        found = read_foreign(Path(path), train, normalised_by, factor)
        subject = judged_foreign(found)
        if rows := sorted(set(rows_seen(found.images, test).tolist()) - set(rows_seen(train, test).tolist())):
            raise InputError(f"{path} holds {len(rows)} test images, number {rows[0]} of the test set first")
        if dropped := found.num_found - len(found.images):
            notes.append(f"{dropped} of its {found.num_found} images are left out: classes are cut to the smallest")
    else:
        require_fit(condensed, train)
        subject = judged_artefact(condensed)
    return Case(path, recipe, condensed, train, test, subject, tuple(notes))


def _check_normalisation(normalised_by: tuple[Sequence[float], Sequence[float]] | None) -> None:
    """Raises InputError for a mean and a standard deviation that no images were normalised with."""
    if normalised_by is not None and not (
        all(math.isfinite(mean) for mean in normalised_by[0]) and all(0 < std < math.inf for std in normalised_by[1])
    ):
        raise InputError(
            f"--normalised-by {' '.join(','.join(map(str, one)) for one in normalised_by)}: means are finite numbers, "
            "standard deviations are above 0"
        )


def judge(
    path: str,
    out: Path,
    ipcs: Sequence[int] | None = None,
    protocol: str | None = None,
    networks: Sequence[str] | None = None,
    num_seeds: int | None = None,
    data: str | None = None,
    baselines: Sequence[str] | None = None,
    augmentation: str | None = None,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None = None,
    factor: int = 1,
    quality: str | None = None,
    stream: bool = False,
    teacher: str | None = None,
) -> None:
    """Scores a condensed set beside the baselines, prints the table, and writes report.json, report.md and report.html.

    Args:
        path: run folder, artefact folder or Hub id; or anybody's images, see `foreign.read_foreign`. With a run folder
            the model card is written anew too.
        out: where the reports go; rows of an earlier report there are kept if they are of the same images.
        ipcs, protocol, networks, num_seeds, augmentation: None takes what the artefact's recipe says.
        data: the real images, where they are not those the recipe names or have moved.
        baselines: names from `eval.baselines.BASELINES`; None takes all that mean something.
        normalised_by, factor: of anybody's images, see `foreign.read_foreign`.
        stream: a row of mode `stream` too: fresh images, for as many steps as the largest IPC trains.
        quality: a network for FID and its kin, see `eval.given.quality_network`; None leaves them out.
        teacher: of a protocol that learns a teacher's answers, see `eval.given.get_teacher`.
    Raises:
        InputError: no artefact, real images of other classes or another size, an unknown protocol or network.
    """
    if protocol is not None:
        check_protocol(protocol)  # a wrong name is said before the data is read
    case = open_case(path, out, data, normalised_by, factor)
    recipe, condensed, train, test, subject = case.recipe, case.condensed, case.train, case.test, case.subject
    judged = recipe.evaluate
    chosen = get_protocol(protocol or judged.protocol, train.num_classes, train.image_size)
    if (chosen.temperature is None) != (teacher is None):
        raise InputError(
            f"protocol {chosen.name} learns from labels: leave --teacher out"
            if teacher
            else f"protocol {chosen.name} learns a teacher's answers: name one with --teacher"
        )
    ipcs = case.choose_ipcs(ipcs)
    networks = networks or judged.networks
    num_seeds = judged.num_seeds if num_seeds is None else num_seeds
    if not 1 <= num_seeds <= MOST_SEEDS:
        raise InputError(f"--seeds must be in 1 .. {MOST_SEEDS}, not {num_seeds}")
    if subject.stream is None and stream:
        raise InputError(f"{path} makes no fresh images: leave --stream out")
    device = new_accelerator().device
    # What is missing is said before hours of training.
    extractor = None if quality is None else quality_network(quality, train, device)
    augmentation = augmentation or recipe.data.augmentation
    taught_by = None if teacher is None else get_teacher(teacher, train, test, augmentation, device)
    old = _earlier(out, case)
    if condensed is not None:
        condensed.to(device)
    samples = subject.sample(max(ipcs))
    earlier: list[Row] = old["rows"] if old.get("augmentation") == augmentation else []
    known = [row for row in earlier if row.get("evaluator") == EVALUATOR]
    if len(known) < len(earlier):
        logger.info("evaluation: %d rows of an older evaluator leave the report in %s", len(earlier) - len(known), out)
    if taught_by is not None:  # the report names one teacher
        known = [row for row in known if row.get("teacher", taught_by.key) == taught_by.key]
    command = _command(
        path,
        {
            "ipc": ipcs,
            "protocol": [chosen.name],
            "networks": networks,
            "seeds": [num_seeds],
            "baselines": baselines,
            "augmentation": augmentation and [augmentation],
            "quality": quality and [quality],
            "teacher": teacher and [teacher],
            "stream": [] if stream else None,
            **_options_of_set(out, data, normalised_by, factor),
        },
    )
    content = case.content(command) | {
        "rows": known,
        "augmentation": augmentation,
        "teacher": taught_by.describe() if taught_by else old.get("teacher") if known else None,
        "outside": old.get("outside", []),
    }
    started, before = time.monotonic(), (old.get("cost") if known else None) or {"seconds": 0.0, "memory": 0}
    most = before["memory"]

    def keep(*rows: Row) -> None:
        """Writes the report so far; a row takes the place of one that asked the same."""
        asked = [_question(row) for row in rows]
        content["rows"] = sorted([*rows, *(r for r in content["rows"] if _question(r) not in asked)], key=_question)
        used = dict.fromkeys(row["protocol"] for row in content["rows"])
        content["protocols"] = [get_protocol(name, train.num_classes, train.image_size).describe() for name in used]
        nonlocal most
        most = max(most, memory_used(device))
        content["cost"] = {"seconds": round(before["seconds"] + time.monotonic() - started, 1), "memory": most}
        write_json(out / "report.json", content)

    rows, left_out = score_tables(
        subject.sample,
        train,
        test,
        ipcs=ipcs,
        networks=networks,
        protocol=chosen,
        augmentation=augmentation,
        num_seeds=num_seeds,
        condensed_name=row_name(path, recipe, condensed),
        condensed_key=subject.key,
        condensed_bytes=subject.num_bytes,
        factor=subject.factor,
        baselines=baselines,
        fresh=_stream_of(subject, chosen, len(samples)) if stream else None,
        teacher=taught_by,
        device=device,
        known=known,
        on_row=keep,
    )
    reused = sum(row in known for row in rows)
    if reused:
        logger.info("evaluation: %d of %d rows were measured before and are reused", reused, len(rows))
    content["notes"] += left_out
    keep(*rows)
    write_pictures(out, train, samples)
    content["memorisation"], nearest = memorisation(samples, train, test)
    write_nearest(out, samples, train, nearest)
    if extractor is not None:
        content["quality"] = compare_sets(
            quality.partition("=")[0],
            extractor,
            samples,
            some_of_each_class(train, -(-QUALITY_IMAGES // train.num_classes), seed=0),
            some_of_each_class(test, -(-len(samples) // test.num_classes), seed=0),
        )
    elif "quality" in old and known:
        content["quality"] = old["quality"]
    write_json(out / "report.json", content)
    write_reports(out, content, read_log(out))
    if condensed and out.resolve() == Path(path).resolve() and (out / "condensed").is_dir():
        write_text(out / "condensed" / "README.md", model_card(condensed, markdown_results(content["rows"])))
    print(f"\n{summary_table(rows)}")
    for note in content["notes"]:
        print(f"Note: {note}")


def judge_outside(
    path: str,
    out: Path,
    settings: Settings,
    python: str | None = None,
    ipcs: Sequence[int] | None = None,
    data: str | None = None,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None = None,
    factor: int = 1,
) -> None:
    """Has DD-Ranking score a condensed set, prints its table, and writes it into the report.

    Args:
        path, out, ipcs, data, normalised_by, factor: as of `judge`.
        settings: how DD-Ranking trains.
        python: one that has DD-Ranking; None makes an environment in the cache once.
    Raises:
        InputError: as of `judge`; real images that DD-Ranking cannot take; no DD-Ranking, or it failed.
    """
    case = open_case(path, out, data, normalised_by, factor)
    ipcs = case.choose_ipcs(ipcs)
    require_known(case.train, ipcs)
    python_used = ddranking_python(python)
    logger.info("judge: DD-Ranking %s, %d trainings for each IPC; %s", VERSION, settings.num_trainings, settings.words)
    if case.condensed is not None:
        case.condensed.to(new_accelerator().device)
    command = _command(
        path,
        {
            "judge": [f"ddranking:{settings.epochs}"],
            "judge-python": python and [python],
            "judge-lr": settings.learning_rate and [settings.learning_rate],
            "ipc": ipcs,
            "networks": [settings.network],
            "seeds": [settings.num_eval],
            **_options_of_set(out, data, normalised_by, factor),
        },
    )
    content = _earlier(out, case) or case.content(command)
    found = []
    for ipc in ipcs:
        log = out / f"ddranking_ipc{ipc}.log"
        entry = score_by_ddranking(case.subject.sample(ipc), ipc, case.train, case.test, settings, python_used, log)
        found.append(entry | {"command": command})
        content["outside"] = [
            *(other for other in content.get("outside", []) if _asked(other) != _asked(entry)), found[-1]
        ]  # fmt: skip
        content["outside"].sort(key=_asked)
        write_json(out / "report.json", content)
    write_pictures(out, case.train, case.subject.sample(max(ipcs)))
    write_reports(out, content, read_log(out))
    print(f"\n{outside_summary(found)}")
    for note in content["notes"]:
        print(f"Note: {note}")


def _earlier(out: Path, case: Case) -> dict[str, Any]:
    """The report in `out` where it is of the same images, else nothing."""
    old = read_json(out / "report.json") if (out / "report.json").is_file() else {}
    return old if old.get("measured") == case.measured else {}


def _asked(entry: Mapping[str, Any]) -> tuple:
    """What an outside judge was asked; the later answer takes the place of the earlier one."""
    return entry["network"], entry["epochs"], entry["learning_rate"] or 0.0, entry["ipc"]


def notes_on_origin(made: Mapping[str, Any], train: LabeledImages) -> list[str]:
    """What to say where a set was condensed from other real images than those it is judged with.

    Args:
        made: its provenance.
    """
    of_data = made.get("data", {}).get("fingerprint")
    if of_data in (None, train.fingerprint):
        return []
    return [
        f"the real images (fingerprint {train.fingerprint}) are not those this set was condensed from ({of_data}): "
        "test images may have been trained on"
    ]


def _stream_of(subject: JudgedSet, protocol: Protocol, num_fixed: int) -> FreshImages:
    """As many steps of fresh images as a classifier takes that trains on `num_fixed` again and again."""
    return subject.stream(protocol.batch_of(num_fixed), protocol.num_steps(num_fixed))


def _command(path: str, options: Mapping[str, Sequence | None]) -> str:
    """What reproduces a report; options without a value are left out."""
    words = ["gencond", "evaluate", path]
    for name, values in options.items():
        words += [] if values is None else [f"--{name}", *map(str, values)]
    return shlex.join(words)


def _options_of_set(
    out: Path,
    data: str | None,
    normalised_by: tuple[Sequence[float], Sequence[float]] | None,
    factor: int,
) -> dict[str, Sequence | None]:
    """For `_command`: what is judged and where the report goes, as every judge takes it."""
    return {
        "data": data and [data],
        "normalised-by": normalised_by and [",".join(map(str, one)) for one in normalised_by],
        "factor": None if factor == 1 else [factor],
        "out": [out],
    }


def _question(row: Row) -> tuple:
    """What a row asks, in the order of a table."""
    images = row["images"]
    place = BASELINES.index(images) if images in BASELINES else -1
    return row["protocol"], row["network"], row["ipc"] or math.inf, place, row["mode"]
