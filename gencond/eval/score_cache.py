"""Scores that were measured before: the same question is answered without training."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gencond.common.files import read_json, write_json
from gencond.eval.baselines import CodecFacts
from gencond.eval.records import Scores
from gencond.eval.results import Answer, Question, Row


class ScoreCache:
    """Answers by the key of their question, from the rows of a report and from a folder of files.

    Args:
        rows: of an earlier report.
        folder: one JSON file a score, where scores of one seed are kept for other runs; None keeps them in memory.
    """

    def __init__(self, rows: Iterable[Row] = (), folder: Path | None = None) -> None:
        self.folder = folder
        self._answers = {row.key: row.answer for row in rows if row.key}

    def get(self, question: Question) -> Answer | None:
        """What was measured; None: it has to be measured."""
        if question.key not in self._answers and self.folder is not None and self.has_file(question):
            content, named_by_key = read_json(_file(self.folder, question)), question.place == question.key
            if "top1" in content and content.get("key", question.key if named_by_key else None) == question.key:
                self._answers[question.key] = _answer(content)
        return self._answers.get(question.key)

    def has_file(self, question: Question) -> bool:
        """Whether a score lies where the question's belongs; `get` says whether it is an answer to all of it."""
        return self.folder is not None and _file(self.folder, question).is_file()

    def put(self, question: Question, answer: Answer, name: str = "") -> None:
        """Keeps an answer.

        Args:
            name: of the row, for people who read the file.
        """
        self._answers[question.key] = answer
        if self.folder is not None:
            (top1,) = answer.top1.each
            content = {"row": name, "key": question.key, "depends_on": question.to_json(), "top1": top1}
            seconds = {} if answer.seconds is None else {"seconds": answer.seconds}
            write_json(_file(self.folder, question), content | _facts(question, answer) | seconds)


def _file(folder: Path, question: Question) -> Path:
    return folder / f"{question.place}.json"


def _facts(question: Question, answer: Answer) -> dict[str, Any]:
    """What a file says beside the score, where the protocol alone does not tell how long was trained."""
    if question.budget is None:
        return {}
    return {
        "seed": question.seed,
        "images_seen": answer.num_images,
        "bytes": answer.num_bytes,
        "ipc": answer.stored,
        "steps": question.budget[1],
        "codec": answer.codec and asdict(answer.codec),
    }


def _answer(content: dict[str, Any]) -> Answer:
    """What a file holds."""
    return Answer(
        top1=Scores.of([content["top1"]]),
        num_bytes=content.get("bytes"),
        num_images=content.get("images_seen"),
        codec=CodecFacts.from_json(content["codec"]) if content.get("codec") else None,
        stored=content.get("ipc", ""),
        seconds=content.get("seconds"),
    )
