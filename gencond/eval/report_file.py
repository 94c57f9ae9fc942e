"""report.json while rows come in."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gencond.common.distributed import memory_used
from gencond.common.files import write_json
from gencond.eval.baselines import BASELINES
from gencond.eval.protocols import get_protocol
from gencond.eval.results import Cost, Evaluation, Row, evaluator_of
from gencond.eval.scoring import Plan
from gencond.eval.subject import SubjectAndReal

logger = logging.getLogger(__name__)


class ReportFile:
    """report.json while rows come in, written with each of them.

    Args:
        old: the earlier report of the same images; its rows stay where they are of the same augmentation, evaluator
            and teacher.
    """

    def __init__(
        self,
        pair: SubjectAndReal,
        plan: Plan,
        out: Path,
        command: str,
        old: Evaluation | None,
        device: torch.device,
    ) -> None:
        self.train, self.out, self.device, self.started = pair.train, out, device, time.monotonic()
        self.known = self._rows_that_stay(old, plan) if old else []
        self.before = (old.cost if old and self.known else None) or Cost(0.0, 0)
        self.earlier_quality = old.quality if old and self.known else None
        teacher = plan.teacher.facts if plan.teacher else old.teacher if old and self.known else None
        self.content = replace(
            pair.evaluation(command),
            rows=tuple(self.known),
            outside=old.outside if old else (),
            augmentation=plan.augmentation,
            teacher=teacher,
            cost=self.before,
        )

    def _rows_that_stay(self, old: Evaluation, plan: Plan) -> list[Row]:
        earlier = old.rows if old.augmentation == plan.augmentation else ()
        known = [row for row in earlier if row.evaluator == evaluator_of(row.images)]
        if dropped := len(earlier) - len(known):
            logger.info("evaluation: %d rows of an older evaluator leave the report in %s", dropped, self.out)
        if plan.teacher is None:
            return known
        return [row for row in known if row.teacher in (None, plan.teacher.key)]  # the report names one teacher

    def say_reused(self, rows: Sequence[Row]) -> None:
        """Logs how many rows were not measured again."""
        if reused := sum(row in self.known for row in rows):
            logger.info("evaluation: %d of %d rows were measured before and are reused", reused, len(rows))

    def add(self, *rows: Row, notes: Sequence[str] = ()) -> None:
        """Writes the report so far; a row takes the place of one that asked the same."""
        asked = [_place(row) for row in rows]
        kept = [row for row in self.content.rows if _place(row) not in asked]
        ordered = tuple(sorted([*rows, *kept], key=_place))
        train, used = self.train, dict.fromkeys(row.protocol for row in ordered)
        cost = self.content.cost or self.before
        seconds = round(self.before.seconds + time.monotonic() - self.started, 1)
        self.content = replace(
            self.content,
            rows=ordered,
            notes=(*self.content.notes, *notes),
            protocols=tuple(get_protocol(name, train.num_classes, train.image_size).describe() for name in used),
            cost=Cost(seconds, max(cost.memory, memory_used(self.device))),
        )
        write_json(self.out / "report.json", self.content.to_json())

    def finish(self, **measured: Any) -> Evaluation:
        """Writes the whole report."""
        self.content = replace(self.content, **measured)
        write_json(self.out / "report.json", self.content.to_json())
        return self.content


def _place(row: Row) -> tuple:
    """What a row asks, in the order of a table."""
    number = BASELINES.index(row.images) if row.images in BASELINES else -1
    return row.protocol, row.network, row.ipc or math.inf, number, row.mode
