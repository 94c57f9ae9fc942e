"""Trackers of others (TensorBoard, Weights & Biases, Trackio, ...), which hear of a run what its log hears.

Steps are counted through all stages, so that a run that goes on counts as one that was never killed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError, first_line
from gencond.common.files import short_hash
from gencond.condensing.encode import Encoding
from gencond.condensing.match import Matching
from gencond.condensing.pretrain import Pretraining
from gencond.condensing.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "gencond"
FOLDER = "track"  # of a run, for trackers that write files
PACKAGES = {"comet_ml": "comet-ml"}  # where a tracker's package has another name


def require_tracker(name: str | None) -> None:
    """Raises InputError where accelerate knows no tracker of a name, or its package is missing; None asks for none."""
    if name is None:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise InputError(f"unknown tracker {name!r}; known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    if name not in map(str, get_available_trackers()):
        raise InputError(f"tracker {name} is not installed: pip install {PACKAGES.get(name, name)}")


@contextmanager
def tracked(run: RunFolder, name: str | None, settings: Mapping[str, Any]) -> Iterator[RunFolder]:
    """The run, of which a tracker hears until the block ends.

    Args:
        name: of the tracker; None: nobody hears.
        settings: of the run, a recipe's parts as plain values.
    Raises:
        InputError: a tracker that does not start, as one that wants to be logged in.
    """
    if name is None:
        yield run
        return
    accelerator = new_accelerator(name, run.path / FOLDER)
    of_run = {"name": run.path.name}
    options = {"wandb": of_run | {"id": short_hash(str(run.path.resolve())), "resume": "allow"}, "trackio": of_run}
    try:
        accelerator.init_trackers(PROJECT, _flat(settings), options)
    except Exception as error:  # whatever a tracker makes of its settings and the network
        raise InputError(f"tracker {name} does not start ({type(error).__name__}: {first_line(error)})") from None
    run.listener = Tracker(accelerator, settings)
    try:
        yield run
    finally:
        run.listener = None
        accelerator.end_training()


class Tracker:
    """Tells a tracker numbers and pictures, each as `stage/name`.

    Args:
        settings: see `tracked`.
    """

    def __init__(self, accelerator: "Accelerator", settings: Mapping[str, Any]) -> None:
        self.accelerator = accelerator
        counts = (0, settings["pretrain"]["num_steps"], settings["codes"]["encode_steps"])
        self._before = dict(zip((Pretraining.name, Encoding.name, Matching.name), accumulate(counts), strict=True))

    def numbers(self, entry: Mapping[str, Any]) -> None:
        """What an entry of the log says of a step; entries that are of no step say nothing here."""
        stage, step, event = entry.get("stage"), entry.get("step"), entry.get("event", "")
        if stage not in self._before or step is None:
            return
        prefix = f"{stage}/{event}/" if event else f"{stage}/"
        values = {
            prefix + name: float(value)
            for name, value in (*entry.items(), *entry.get("rates", {}).items())
            if name != "step" and isinstance(value, Real) and not isinstance(value, bool)
        }
        if values:
            self.accelerator.log(values, step=self._before[stage] + step)

    def picture(self, stage: str, step: int, file: Path) -> None:
        """A picture in a file, for the trackers that take pictures."""
        image = np.asarray(Image.open(file).convert("RGB"))
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({f"{stage}/samples": image[None]}, step=self._before[stage] + step, **layout)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names as in `part.field`; lists become text, which every tracker takes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str) else str(value)
    return flat
