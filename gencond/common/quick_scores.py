"""Quick scores in the log of a run: which entries they are, and how they are said."""

from collections.abc import Mapping, Sequence
from typing import Any

SCORE_EVENT = "score"


def quick_scores(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The quick scores among a log's entries, with their `step`, `ipc`, `top1`, `num_images` and `seconds`."""
    return [entry for entry in log if entry.get("event") == SCORE_EVENT]


def spoken_score(score: Mapping[str, Any]) -> str:
    """A quick score for people, in one sentence without a full stop."""
    images = "1 image" if score["ipc"] == 1 else f"{score['ipc']} images"
    return (
        f"a quick classifier on {images} a class has {100 * score['top1']:.1f} % of {score['num_images']} held-out "
        "images right"
    )
