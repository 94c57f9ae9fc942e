"""The run folder: what was run on what, exact resume, the log.

A run folder holds `recipe.yaml`, `data.json`, `pretrained/`, `condensed/` (the artefact), `state/` (resume),
`log.jsonl`, `samples/` and the reports.

Resume is exact because nothing random outlives a step: each step draws from a generator seeded by (seed, stage, step),
so a state is weights, optimizer moments, a step number and whatever else depends on the steps before: a network that is
trained along the way, the real images chosen last.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gencond.common.distributed import from_main, is_main_process, main_process_first
from gencond.common.errors import InputError, first_line
from gencond.common.files import (
    LOG_NAME,
    all_finite,
    file_sha256,
    read_json,
    read_log,
    remove_abandoned,
    require_writable,
    take_lock,
    write_json,
    write_text,
    written_whole,
)
from gencond.common.provenance import current_commit, library_versions
from gencond.config import Recipe, first_difference, load_recipe, to_dict, to_yaml
from gencond.data.images import LabeledImages
from gencond.data.tables import hub_id, name_of_source
from gencond.generator.artefact import Condensed
from gencond.generator.dataset import ARTEFACT_FOLDER

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
PLAN_LOCK = ".plan.lock"  # held while a run is planned, before it is one
STATE_NAME, DIGEST_NAME = "state.safetensors", "sha256"


@runtime_checkable
class Stateful(Protocol):
    """What a state is of: modules, optimizers, schedules and whatever else changes from step to step."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Listener(Protocol):
    """Who hears of a run while it goes on."""

    def numbers(self, entry: Mapping[str, Any]) -> None: ...

    def picture(self, stage: str, step: int, file: Path) -> None: ...


class RunFolder:
    """Paths and records of one run, and in a `with` block the right to write it.

    Of several processes of a run only the main one writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.artefact = path / ARTEFACT_FOLDER
        self.pretrained = path / "pretrained"
        self.samples = path / "samples"
        self.log_file = path / LOG_NAME
        self.weights: dict[str, str] = {}  # what identifies those that came from elsewhere, by their part in the run
        self.listener: Listener | None = None  # on the main process, which alone logs
        self._descriptor: int | None = None

    @classmethod
    def prepare(
        cls, path: Path, recipe: Recipe, data: LabeledImages, weights: Mapping[str, str] | None = None
    ) -> "RunFolder":
        """A new run folder, or the one of the same recipe, data and weights to go on with.

        Args:
            weights: what identifies those that come from elsewhere, by their part in the run.
        Raises:
            InputError: the folder holds something else: no run, another recipe, other data or weights.
        """
        run = cls(path)
        run.weights = dict(weights or {})
        recipe_file = path / "recipe.yaml"
        run.require_free(recipe)
        if recipe_file.is_file():
            run._require_same(recipe, data)
        require_writable(path)
        run._lock()
        for folder in (path, run.samples, *(path / "state").glob("*/")):
            remove_abandoned(folder, "*")
        if not recipe_file.is_file():
            about = describe_data(recipe.data.source, data) | ({"weights": run.weights} if run.weights else {})
            write_json(path / "data.json", about)
            write_text(recipe_file, to_yaml(recipe))  # last: with it, the folder is a run
        run._write_log(run.read_log())  # whole lines only
        return run

    def require_free(self, recipe: Recipe) -> None:
        """Raises InputError where something else than a run of this recipe lies in the folder; reads alone."""
        if not (self.path / "recipe.yaml").is_file():
            if self.path.exists() and (
                self.path.is_file() or any(not self._is_own(entry) for entry in self.path.iterdir())
            ):
                raise InputError(f"{self.path} exists and is no run folder: choose another --out")
            return
        old, new = to_dict(load_recipe(str(self.path / "recipe.yaml"))), to_dict(recipe)
        for values in (old, new):
            values.pop("evaluate")  # how a result is judged may change afterwards, and
            values.pop("save_every_steps")  # how often a state is kept changes no bit, nor what steps were planned for
            values.pop("minutes")
            values["data"].pop("source")  # the images count, not their path
        if difference := first_difference(old, new):
            raise InputError(
                f"{self.path} holds a run of another recipe ({difference}): choose another --out, or go on "
                f"with that one by --recipe {self.path / 'recipe.yaml'}"
            )

    def _is_own(self, entry: Path) -> bool:
        """Whether a run that was killed in its first moments may have left an entry."""
        return entry.name in ("data.json", LOCK_NAME, PLAN_LOCK) or (
            entry.name.startswith(".") and entry.suffix == ".tmp"
        )

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
        known = read_json(self.path / "data.json")
        if known.get("fingerprint") != data.fingerprint:
            raise InputError(
                f"the images of {recipe.data.source} are not those {self.path} was started with: choose another --out"
            )
        before = known.get("weights", {})
        for part in sorted(before.keys() | self.weights.keys()):
            if before.get(part) != self.weights.get(part):
                raise InputError(
                    f"{self.path} was started {_with(part, before)}"
                    + ("" if before else " (or by gencond 0.1.0, which did not note them)")
                    + f", and is now asked for {_with(part, self.weights)}: choose another --out"
                )

    def log(self, **entry: Any) -> None:
        """Appends a line to `log.jsonl`, and tells whoever listens."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self.listener is not None:
            self.listener.numbers(entry)

    def show(self, stage: str, step: int, picture: Path) -> None:
        """Tells whoever listens of a picture that was drawn after so many steps of a stage."""
        if self.listener is not None:
            self.listener.picture(stage, step, picture)

    def read_log(self) -> list[dict[str, Any]]:
        """The entries of `log.jsonl`."""
        return read_log(self.path)

    def forget_log(self, stage: str, after_step: int) -> None:
        """Drops what a killed run logged of steps that are done again."""
        kept = [e for e in self.read_log() if e.get("stage") != stage or e.get("step", 0) <= after_step]
        self._write_log(kept)

    def _write_log(self, entries: list[dict[str, Any]]) -> None:
        write_text(self.log_file, "".join(json.dumps(entry) + "\n" for entry in entries))

    def _states(self, stage: str) -> list[Path]:
        return sorted((self.path / "state" / stage).glob("step_*"))

    def save_state(self, states: Mapping[str, Stateful], stage: str, step: int, learning_rates: str) -> None:
        """Whole or not at all; the states before it are removed afterwards. The main process writes.

        Args:
            learning_rates: what to lower where a weight is not finite.
        Raises:
            InputError: a weight that is not finite, so that the state before it stays the last; no space.
        """
        from_main(lambda: self._write_state(states, stage, step, learning_rates))

    def _write_state(self, states: Mapping[str, Stateful], stage: str, step: int, learning_rates: str) -> None:
        content = {name: one.state_dict() for name, one in states.items()}
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(_packed(content, tensors))
        if not all_finite(tensors):
            raise self.diverged(stage, f"a weight at step {step}", learning_rates)
        try:
            with written_whole(self.path / "state" / stage / f"step_{step:08d}") as temporary:
                temporary.mkdir()
                save_file(tensors, temporary / STATE_NAME, metadata={"structure": structure})
                (temporary / DIGEST_NAME).write_text(file_sha256(temporary / STATE_NAME))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"the state of {stage} at step {step} could not be written into {self.path} ({first_line(error)}): "
                "make space; the same command goes on from the state before it"
            ) from error
        for old in self._states(stage)[:-1]:
            shutil.rmtree(old)

    def load_state(self, states: Mapping[str, Stateful], stage: str) -> int:
        """Puts the latest state back and returns its step; 0 where there is none.

        Raises:
            InputError: a state that is damaged, or that an older gencond saved in another format.
        """
        last = from_main(lambda: (self._states(stage) or [None])[-1])
        if last is None:
            return 0
        content = _read_state(last, f"remove it to redo the {stage} stage")
        for name in states.keys() & content.keys():  # a launch in another precision has a scaler, or has none
            states[name].load_state_dict(content[name])
        return int(last.name.removeprefix("step_"))

    def diverged(self, stage: str, what: str, learning_rates: str) -> InputError:
        """What to say where `what` of a stage is not finite: the same command would end there again."""
        again = f" and --pretrained {self.pretrained}" if self.pretrained.is_dir() else ""
        return InputError(
            f"{stage}: {what} is not finite: lower {learning_rates}, in another --out{again} (what "
            "was saved before is kept)"
        )

    def drop_states(self, stage: str = "") -> None:
        """Once a stage's result is written, or that of all of them, its state is dead weight."""
        shutil.rmtree(self.path / "state" / stage, ignore_errors=True)


def _with(part: str, weights: Mapping[str, str]) -> str:
    """For people."""
    return f"with {part} weights {weights[part]}" if part in weights else f"without {part} weights"


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested dicts, lists, numbers and words as JSON, in which {"tensor": key} is one that is added to `tensors`."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous()
        return {"tensor": key}
    if isinstance(value, Mapping):  # its keys may be numbers, which JSON's may not
        return {"items": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(item, tensors) for item in value]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_packed` was given, but for tuples, which come back as lists."""
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _unpacked(item, tensors) for key, item in value["items"]}


def _read_state(folder: Path, advice: str) -> dict[str, Any]:
    """The content of a state by the names it was saved with. Raises InputError as `RunFolder.load_state`."""
    file = folder / STATE_NAME
    if not file.is_file():
        raise InputError(f"{folder} has no {STATE_NAME}, as states of an older gencond, which are not read: {advice}")
    try:
        if (folder / DIGEST_NAME).read_text() != file_sha256(file):
            raise InputError(f"{file} is damaged (its SHA-256 is another): {advice}")
        with safe_open(file, "pt") as opened:
            structure = json.loads(opened.metadata()["structure"])
        return _unpacked(structure, load_file(file))
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder} cannot be read ({first_line(error)}): {advice}") from error


def prepare_run(path: Path, recipe: Recipe, data: LabeledImages, weights: Mapping[str, str] | None = None) -> RunFolder:
    """`RunFolder.prepare`, done by the main process while the others wait."""
    run = RunFolder(path)
    run.weights = dict(weights or {})
    with main_process_first():
        if is_main_process():
            run = RunFolder.prepare(path, recipe, data, weights)
    return run


def describe_data(source: str, data: LabeledImages) -> dict[str, Any]:
    """What was condensed, without its path."""
    return {
        "source": name_of_source(source),
        **({"on_hub": found} if (found := hub_id(source)) else {}),
        "fingerprint": data.fingerprint,
        "num_images": len(data),
        "num_classes": data.num_classes,
        "image_size": data.image_size,
        "channels": data.channels,
    }


def provenance(
    recipe: Recipe,
    data: LabeledImages,
    num_held_out: int = 0,
    weights: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Recipe, data, commit and library versions. No time and no path: the same run writes the same bits.

    Args:
        num_held_out: images of `data` that were not condensed, since quick scores are tested on them.
        weights: see `RunFolder.prepare`; `pretrained` among them says that the recipe's own pretraining was left out.
    """
    values = to_dict(recipe)
    values["data"]["source"] = name_of_source(recipe.data.source)
    for part in ("features", "generator"):
        if values[part]["weights"] is not None:
            values[part]["weights"] = Path(values[part]["weights"]).name
    return {
        "recipe": values,
        "data": describe_data(recipe.data.source, data) | ({"num_held_out": num_held_out} if num_held_out else {}),
        "commit": current_commit(),
        "versions": library_versions(),
        **({"weights": dict(weights)} if weights else {}),
    }


def write_artefact(folder: Path, condensed: Condensed, card: str) -> None:
    """Saves a `Condensed` with its model card, whole or not at all."""
    with written_whole(folder) as temporary:
        condensed.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
