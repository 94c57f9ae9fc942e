import re
from numbers import Integral
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_recipe

import gencond
from gencond.api import listed, require_path


def test_a_set_is_condensed_and_judged_in_two_calls(tmp_path: Path) -> None:
    condensed = gencond.condense("digits", tmp_path / "run", "demo", overrides=TINY)
    images, labels = condensed.sample(ipc=2)
    assert images.shape == (20, 1, 8, 8) and torch.equal(labels, torch.arange(10).repeat_interleave(2))
    report = gencond.evaluate(tmp_path / "run", ipc=1, networks="convnet2w8", num_seeds=1, baselines=[])
    (row,) = (row for row in report.rows if row.images == "gencond")
    assert row.ipc == 1 and len(row.top1.each) == 1 and 0 <= row.top1.mean <= 1
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_recipe_object_condenses_as_its_name_does(tmp_path: Path) -> None:
    one = gencond.condense("digits", tmp_path / "one", tiny_recipe(), overrides=["condense.num_steps=2"])
    other = gencond.condense("digits", str(tmp_path / "other"), "demo", overrides=[*TINY, "condense.num_steps=2"])
    assert one.fingerprint == other.fingerprint


def test_bad_input_is_one_line_to_users_of_the_library_too(tmp_path: Path) -> None:
    with pytest.raises(gencond.InputError, match="no recipe 'nothing'"):
        gencond.condense("digits", tmp_path / "run", "nothing")
    with pytest.raises(gencond.InputError, match="is no run folder"):
        gencond.evaluate("checkpoints/digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": ""}, "out is '': expected a path"),
        ({"ipc": []}, "ipc is empty"),
        ({"networks": []}, "networks is empty"),
        ({"data": ""}, "the data has an empty name"),
    ],
)
def test_an_empty_value_is_one_line(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(gencond.InputError, match=re.escape(message)):
        gencond.evaluate("checkpoints/digits", **{"out": tmp_path, **arguments})


def test_a_single_value_stands_for_a_list_of_it(tmp_path: Path) -> None:
    with pytest.raises(gencond.InputError, match="unknown baseline 'nothing'"):
        gencond.evaluate(
            "checkpoints/digits", "digits", tmp_path, ipc=np.int64(1), networks="convnet2w8", baselines="nothing"
        )
    with pytest.raises(gencond.InputError, match="unknown field 'condense.num_step'"):
        gencond.condense("digits", tmp_path, "demo", overrides="condense.num_step=3")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (1.5, Integral, "ipc is 1.5: expected a list"),
        ([1, "x"], Integral, "ipc holds 'x': expected whole numbers"),
        ("1", Integral, "ipc is '1': expected a list"),
        ({"a": 1}, str, "expected a list"),
        ([3], str, "ipc holds 3: expected texts"),
    ],
)
def test_a_wrong_kind_of_value_is_one_line(given: object, kind: type, message: str) -> None:
    with pytest.raises(gencond.InputError, match=re.escape(message)):
        listed(given, "ipc", kind)
    with pytest.raises(gencond.InputError, match="out is 3: expected a path"):
        require_path(3, "out")


def test_the_public_names_are_listed_and_there() -> None:
    assert set(gencond.__all__) <= set(dir(gencond))
    assert all(getattr(gencond, name) for name in gencond.__all__)
