"""Trackers of others hear what the log hears."""

import json
from pathlib import Path

import pytest
from conftest import tiny_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gencond
from gencond.cli import main
from gencond.common.errors import InputError
from gencond.condensing.match import Matching
from gencond.condensing.run import pretrain
from gencond.condensing.tracking import require_tracker
from gencond.config import load_recipe
from gencond.data.load import load_data

BEFORE = {"pretrain": 0, "encode": 4, "condense": 8}  # steps of the stages before, in the tiny recipe


def heard(run: Path) -> EventAccumulator:
    """What TensorBoard reads in a run's folder."""
    events = EventAccumulator(str(run / "track" / "gencond"), size_guidance={"scalars": 0})
    return events.Reload()


def test_tensorboard_shows_the_numbers_of_the_log_and_the_samples(tmp_path: Path) -> None:
    gencond.condense("digits", tmp_path / "run", tiny_recipe(), track="tensorboard")
    events = heard(tmp_path / "run")
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["stage"] not in BEFORE or "step" not in entry:
            continue
        for name, value in (entry | entry.get("rates", {})).items():
            if name in ("stage", "step", "event", "rates"):
                continue
            told = {one.step: one.value for one in events.Scalars(f"{entry['stage']}/{name}")}
            assert told[BEFORE[entry["stage"]] + entry["step"]] == pytest.approx(value, rel=1e-6)  # floats of 32 bits
    assert {"condense/loss", "condense/rate_0", "encode/rate_0", "pretrain/generator_rate"} <= set(
        events.Tags()["scalars"]
    )
    pictures = events.Images("condense/samples")
    assert [one.step for one in pictures] == [10, 12, 14] and pictures[0].width > 8


def test_a_run_that_goes_on_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Matching.step

    def killed(self: Matching, number: int) -> object:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Matching, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        gencond.condense("digits", tmp_path / "run", tiny_recipe(), track="tensorboard")
    monkeypatch.setattr(Matching, "step", step)
    gencond.condense("digits", tmp_path / "run", tiny_recipe(), track="tensorboard")
    assert [one.step for one in heard(tmp_path / "run").Scalars("condense/loss")] == [10, 12, 14]


def test_nothing_is_tracked_unasked_or_of_a_run_that_is_complete(tmp_path: Path) -> None:
    gencond.condense("digits", tmp_path / "run", tiny_recipe())
    gencond.condense("digits", tmp_path / "run", tiny_recipe(), track="tensorboard")
    recipe = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    pretrain(recipe, load_data(recipe.data)[0], tmp_path / "run", track="tensorboard")
    assert not (tmp_path / "run" / "track").exists()


def test_a_tracker_that_is_not_there_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["condense", "--data", "digits", "--out", str(tmp_path / "run"), "--track", "tensorbord"])
    assert "unknown tracker 'tensorbord'; known: aim," in capsys.readouterr().err
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(InputError, match="tracker comet_ml is not installed: pip install comet-ml"):
        require_tracker("comet_ml")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise PermissionError("log in first")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", refuse)
    with pytest.raises(InputError, match=r"tracker tensorboard does not start \(PermissionError: log in first\)"):
        gencond.condense("digits", tmp_path / "run", tiny_recipe(), track="tensorboard")
