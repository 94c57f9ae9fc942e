"""The loop of a run: stages, one after the other, each in steps, with progress, log and exact resume."""

import functools
import hashlib
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from gencond.common.distributed import from_main, memory_used
from gencond.common.progress import progress
from gencond.condensing.run_folder import RunFolder, Stateful

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 10


def step_rng(seed: int, stage: str, step: int) -> torch.Generator:
    """The only source of randomness of a step: the same for a resumed run and on every process."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@runtime_checkable
class Stage(Protocol):
    """A stage in steps, begun from what the stages before it made: a run takes all steps, a forecast times a few.

    `step` does the step of a number, from 0, and returns values to log. It draws all its randomness from
    `step_rng(seed, name, number)`, and all else that it depends on is in `states`.

    Attributes:
        name: of the stage, for progress, log and state.
        learning_rates: what to lower where the stage diverges, as a recipe calls it.
        num_steps: all of them.
        accelerator: the stage's own.
    """

    name: str
    learning_rates: str
    num_steps: int
    accelerator: "Accelerator"

    def step(self, number: int) -> Mapping[str, Tensor]: ...

    def states(self) -> Mapping[str, Any]:
        """What a state is made of, by name and not wrapped for data parallelism; what has no state is left out."""
        ...

    def scores(self, run: RunFolder, num_done: int) -> None:
        """Hears after every step how many are done, before a state is written: may measure what is learned so far."""

    def saves(self, run: RunFolder, num_done: int) -> None:
        """Hears on the main process that a state will be written after so many steps."""


def _mean(accelerator: "Accelerator", values: list[Tensor]) -> Tensor:
    """Over some steps and all processes."""
    return cast("Tensor", accelerator.reduce(torch.stack(values).mean(), "mean"))  # a tensor as it was given one


def _rates(states: Mapping[str, Any]) -> dict[str, float]:
    """Learning rates of the next step, by optimizer and, where it has several, by number of its groups."""
    found = {}
    for name, one in states.items():
        groups = getattr(one, "param_groups", [])
        for number, group in enumerate(groups):
            label = name.replace("optimizer", "rate")
            found[f"{label}_{number}" if len(groups) > 1 else label] = float(group["lr"])
    return found


def run_stage(stage: Stage, run: RunFolder, save_every_steps: int) -> None:
    """Takes the steps of a stage that are left, from the last state in the run folder.

    Values of steps are logged as means of `LOG_EVERY_STEPS`.

    Raises:
        InputError: a value or a weight that is not finite; a state that cannot be read or written.
    """
    accelerator, num_steps = stage.accelerator, stage.num_steps
    states: dict[str, Any] = {name: one for name, one in stage.states().items() if isinstance(one, Stateful)}
    if accelerator.scaler is not None:
        states["scaler"] = accelerator.scaler
    start, last_time = run.load_state(states, stage.name), time.monotonic()
    main = accelerator.is_main_process
    if main:
        run.forget_log(stage.name, start)
    if start and main:
        logger.info("%s: resumed at step %d of %d", stage.name, start, num_steps)
        run.log(stage=stage.name, event="resumed", step=start)
    bar = progress(range(start, num_steps), description=stage.name, total=num_steps, initial=start, disable=not main)
    seen: dict[str, list[Tensor]] = {}  # a term may be left out of some steps
    for number in bar:
        for name, value in stage.step(number).items():
            seen.setdefault(name, []).append(value.detach())
        done = number + 1
        saves = done % save_every_steps == 0 or done == num_steps
        if saves or done % LOG_EVERY_STEPS == 0:
            means = {name: float(_mean(accelerator, values)) for name, values in seen.items()}
            seen = {}
            if not all(math.isfinite(value) for value in means.values()):
                raise run.diverged(stage.name, f"{means} at step {done}", stage.learning_rates)
            if main:
                now = time.monotonic()
                cost = {"seconds": round(now - last_time, 3), "memory": memory_used(accelerator.device)}
                run.log(stage=stage.name, step=done, **means, rates=_rates(states), **cost)
                last_time = now
                bar.set_postfix({name: f"{value:.3g}" for name, value in list(means.items())[:3]}, refresh=False)
        before_score = time.monotonic()
        stage.scores(run, done)
        last_time += time.monotonic() - before_score  # it logs its own seconds
        if saves:
            from_main(functools.partial(stage.saves, run, done))
            run.save_state(states, stage.name, done, stage.learning_rates)
    accelerator.free_memory()
