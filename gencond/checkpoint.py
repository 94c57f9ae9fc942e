"""The run folder: what was run on what, exact resume, the log.

A run folder holds `recipe.yaml`, `data.json`, `pretrained/`, `condensed/` (the artefact), `state/` (resume),
`log.jsonl`, `samples/` and the reports.

Resume is exact because nothing random outlives a step: each step draws from a generator seeded by (seed, stage, step),
so a state is weights, optimizer moments, a step number and whatever else depends on the steps before: a network that is
trained along the way, the real images chosen last.
"""

import functools
import hashlib
import json
import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gencond
from gencond.config import Recipe, first_difference, load_recipe, to_dict, to_yaml
from gencond.data import LabeledImages
from gencond.distributed import memory_used, rank_and_world
from gencond.errors import InputError
from gencond.files import read_json, require_writable, take_lock, write_json, write_text, written_whole
from gencond.generator.condensed import ARTEFACT_FOLDER
from gencond.progress import progress

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 10
LOCK_NAME = ".lock"


def step_rng(seed: int, stage: str, step: int) -> torch.Generator:
    """The only source of randomness of a step: the same for a resumed run and on every process."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class RunFolder:
    """Paths and records of one run, and in a `with` block the right to write it.

    Of several processes of a run only the main one writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.artefact = path / ARTEFACT_FOLDER
        self.pretrained = path / "pretrained"
        self.samples = path / "samples"
        self.log_file = path / "log.jsonl"
        self._descriptor: int | None = None

    @classmethod
    def prepare(cls, path: Path, recipe: Recipe, data: LabeledImages) -> "RunFolder":
        """A new run folder, or the one of the same recipe and data to go on with.

        Raises:
            InputError: the folder holds something else: no run, another recipe, other data.
        """
        run = cls(path)
        recipe_file = path / "recipe.yaml"
        if recipe_file.is_file():
            run._require_same(recipe, data)
        elif path.exists() and (path.is_file() or any(not run._is_own(entry) for entry in path.iterdir())):
            raise InputError(f"{path} exists and is no run folder: choose another --out")
        require_writable(path)
        run._lock()
        for leftover in [*path.glob(".*.tmp"), *(path / "state").glob("*/.*.tmp")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if not recipe_file.is_file():
            write_json(path / "data.json", describe_data(recipe.data.source, data))
            write_text(recipe_file, to_yaml(recipe))  # last: with it, the folder is a run
        run._write_log(run.read_log())  # whole lines only
        return run

    def _is_own(self, entry: Path) -> bool:
        """Whether a run that was killed in its first moments may have left an entry."""
        return entry.name in ("data.json", LOCK_NAME) or (entry.name.startswith(".") and entry.suffix == ".tmp")

    def _lock(self) -> None:
        """Keeps other processes out of the folder until the `with` block of this run ends. Raises InputError."""
        self._descriptor = take_lock(self.path / LOCK_NAME)
        if self._descriptor is None:
            raise InputError(f"another process works in {self.path}: wait for it or choose another --out")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _require_same(self, recipe: Recipe, data: LabeledImages) -> None:
        old, new = to_dict(load_recipe(str(self.path / "recipe.yaml"))), to_dict(recipe)
        for values in (old, new):
            values.pop("evaluate")  # how a result is judged may change afterwards, and
            values.pop("save_every_steps")  # how often a state is kept changes no bit
            values["data"].pop("source")  # the images count, not their path
        if difference := first_difference(old, new):
            raise InputError(
                f"{self.path} holds a run of another recipe ({difference}): choose another --out or remove it"
            )
        if read_json(self.path / "data.json").get("fingerprint") != data.fingerprint:
            raise InputError(
                f"the images of {recipe.data.source} are not those {self.path} was started with: choose another --out"
            )

    def log(self, **entry: Any) -> None:
        """Appends a line to `log.jsonl`."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The entries of `log.jsonl`, without the half line that a killed run may have left."""
        entries = []
        if self.log_file.is_file():
            for line in self.log_file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entries.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return [entry for entry in entries if isinstance(entry, dict)]

    def _forget_log(self, stage: str, after_step: int) -> None:
        """Drops what a killed run logged of steps that are done again."""
        kept = [e for e in self.read_log() if e.get("stage") != stage or e.get("step", 0) <= after_step]
        self._write_log(kept)

    def _write_log(self, entries: list[dict[str, Any]]) -> None:
        write_text(self.log_file, "".join(json.dumps(entry) + "\n" for entry in entries))

    def _states(self, stage: str) -> list[Path]:
        return sorted((self.path / "state" / stage).glob("step_*"))

    def save_state(self, accelerator: "Accelerator", stage: str, step: int) -> None:
        """Whole or not at all; the states before it are removed afterwards."""
        final = self.path / "state" / stage / f"step_{step:08d}"
        temporary = final.with_name(f".{final.name}.tmp")
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            temporary.rename(final)
            for old in self._states(stage)[:-1]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load_state(self, accelerator: "Accelerator", stage: str) -> int:
        """Puts the latest state back and returns its step; 0 where there is none."""
        states = self._states(stage)
        if not states:
            return 0
        try:
            accelerator.load_state(str(states[-1]))
        except Exception as error:  # whatever a damaged file makes accelerate raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{states[-1]} cannot be read ({reason}): remove it to redo the {stage} stage") from error
        return int(states[-1].name.removeprefix("step_"))

    def drop_state(self, stage: str) -> None:
        """Once a stage's result is written, its state is dead weight."""
        shutil.rmtree(self.path / "state" / stage, ignore_errors=True)


def prepare_run(path: Path, recipe: Recipe, data: LabeledImages, is_main_process: bool) -> RunFolder:
    """`RunFolder.prepare`, done by the main process while the others wait."""
    if is_main_process:
        run = RunFolder.prepare(path, recipe, data)
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()
    return run if is_main_process else RunFolder(path)


def run_stage(
    accelerator: "Accelerator",
    run: RunFolder,
    stage: str,
    num_steps: int,
    step_fn: Callable[[int], Mapping[str, torch.Tensor]],
    *,
    save_every_steps: int,
    on_save: Callable[[int], None] = lambda step: None,
) -> None:
    """Runs `step_fn(step)` for the steps that are left, with progress, log and states.

    Args:
        step_fn: does step number `step` (from 0) and returns the values to log, which are averaged over
            `LOG_EVERY_STEPS`. It must draw all its randomness from `step_rng(seed, stage, step)`.
        on_save: called on the main process with the number of steps done, before a state is written.
    """
    start, last_time = run.load_state(accelerator, stage), time.monotonic()
    main = accelerator.is_main_process
    if main:
        run._forget_log(stage, start)
    if start and main:
        logger.info("%s: resumed at step %d of %d", stage, start, num_steps)
        run.log(stage=stage, event="resumed", step=start)
    bar = progress(range(start, num_steps), description=stage, total=num_steps, initial=start, disable=not main)
    seen: dict[str, list[torch.Tensor]] = {}  # a term may be left out of some steps
    for step in bar:
        for name, value in step_fn(step).items():
            seen.setdefault(name, []).append(value.detach())
        done = step + 1
        saves = done % save_every_steps == 0 or done == num_steps
        if saves or done % LOG_EVERY_STEPS == 0:
            means = {
                name: float(accelerator.reduce(torch.stack(values).mean(), "mean")) for name, values in seen.items()
            }
            seen = {}
            if not all(math.isfinite(value) for value in means.values()):
                raise InputError(
                    f"{stage}: {means} at step {done} is not finite: lower the learning rates (the last state is kept)"
                )
            if main:
                now = time.monotonic()
                cost = {"seconds": round(now - last_time, 3), "memory": memory_used(accelerator.device)}
                run.log(stage=stage, step=done, **means, **cost)
                last_time = now
                bar.set_postfix({name: f"{value:.3g}" for name, value in list(means.items())[:3]}, refresh=False)
        if saves:
            if main:
                on_save(done)
            run.save_state(accelerator, stage, done)


def describe_data(source: str, data: LabeledImages) -> dict[str, Any]:
    """What was condensed, without its path."""
    return {
        "source": Path(source).name,
        "fingerprint": data.fingerprint,
        "num_images": len(data),
        "num_classes": data.num_classes,
        "image_size": data.image_size,
        "channels": data.channels,
    }


def provenance(recipe: Recipe, data: LabeledImages) -> dict[str, Any]:
    """Recipe, data, commit and library versions. No time and no path: the same run writes the same bits."""
    values = to_dict(recipe)
    values["data"]["source"] = Path(recipe.data.source).name
    for part in ("features", "generator"):
        if values[part]["weights"] is not None:
            values[part]["weights"] = Path(values[part]["weights"]).name
    return {
        "recipe": values,
        "data": describe_data(recipe.data.source, data),
        "commit": current_commit(),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {"gencond": gencond.__version__} | {
        name: version(name) for name in ("torch", "torchvision", "diffusers", "accelerate", "numpy")
    }


@functools.cache
def current_commit() -> str | None:
    """Of the working tree that gencond runs from, as it was when first asked; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_artefact(folder: Path, condensed: torch.nn.Module, card: str) -> None:
    """Saves a `Condensed` with its model card, whole or not at all."""
    with written_whole(folder) as temporary:
        condensed.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
