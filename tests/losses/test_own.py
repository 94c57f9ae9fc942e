"""A term of one's own."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe

import gencond
from gencond.common.errors import InputError
from gencond.common.files import read_log
from gencond.losses import Seen, own, register_term

CHANGES = ["objective.own_term=mine", "objective.own_weight=0.5"]
FEW = ["pretrain.num_steps=0", "codes.encode_steps=0", "condense.stream_probability=0"]


@pytest.fixture(autouse=True)
def nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_TERMS", {})


@pytest.mark.parametrize("real", ["statistics", "random"])
def test_a_term_sees_images_features_and_the_real_side_and_moves_what_is_learned(real: str, tmp_path: Path) -> None:
    seen: list[Seen] = []

    def mine(step: Seen) -> torch.Tensor:
        seen.append(step)
        return (step.features.mean(1) - step.centers).square().sum(1).mean()

    register_term("mine", mine)
    changes = [*FEW, f"real.kind={real}", "real.batch_size=4"]
    with_it = gencond.condense("digits", tmp_path / "with", tiny_recipe(*changes, *CHANGES))
    without = gencond.condense("digits", tmp_path / "without", tiny_recipe(*changes))
    assert not torch.equal(with_it.sample(1)[0], without.sample(1)[0])
    step = seen[0]
    classes, made = step.features.shape[:2]
    assert step.images.shape == (classes, made, 1, 8, 8) and step.images.requires_grad and step.features.requires_grad
    assert step.centers.shape == (classes, step.features.shape[2]) and len(step.labels) == classes == 10
    assert (step.real is None) == (real == "statistics")
    if step.real is not None:
        torch.testing.assert_close(step.real.mean(1), step.centers)
    logged = [entry["own"] for entry in read_log(tmp_path / "with") if "own" in entry]
    assert logged and all(value > 0 for value in logged)


@pytest.mark.parametrize(
    ("term", "got"),
    [
        (lambda seen: seen.features.mean(0).sum(1), "a tensor of shape"),
        (lambda seen: None, "NoneType"),
        (lambda seen: 1.0, "float"),
        (lambda seen: torch.tensor(1.0), r"a tensor of shape \[\] without gradient"),
    ],
    ids=["vector", "nothing", "float", "constant"],
)
def test_what_is_no_scalar_to_learn_from_is_said(term: object, got: str, tmp_path: Path) -> None:
    register_term("mine", term)
    with pytest.raises(InputError, match=f"objective.own_term returned {got}.*: expected a scalar with gradient"):
        gencond.condense("digits", tmp_path / "run", tiny_recipe(*FEW, *CHANGES))


def test_a_term_that_nobody_registered_is_named_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective.own_term=mine: call gencond.losses.register_term\('mine'"):
        gencond.condense("digits", tmp_path / "run", tiny_recipe(*FEW, *CHANGES))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [(CHANGES[:1], "objective.own_term has no weight"), (CHANGES[1:], "objective.own_weight weighs no term")],
)
def test_a_term_and_its_weight_go_together(changes: list[str], why: str, tmp_path: Path) -> None:
    register_term("mine", lambda seen: seen.images.mean())
    with pytest.raises(InputError, match=why):
        gencond.condense("digits", tmp_path / "run", tiny_recipe(*FEW, *changes))
