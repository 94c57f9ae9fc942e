from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny_recipe

import gencond


def test_a_set_is_condensed_and_judged_in_two_calls(tmp_path: Path) -> None:
    condensed = gencond.condense("demo", "digits", tmp_path / "run", overrides=TINY)
    images, labels = condensed.sample(ipc=2)
    assert images.shape == (20, 1, 8, 8) and torch.equal(labels, torch.arange(10).repeat_interleave(2))
    report = gencond.evaluate(tmp_path / "run", ipc=1, networks="convnet2w8", num_seeds=1, baselines=[])
    (row,) = (row for row in report.rows if row.images == "gencond")
    assert row.ipc == 1 and len(row.top1.each) == 1 and 0 <= row.top1.mean <= 1
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_recipe_object_condenses_as_its_name_does(tmp_path: Path) -> None:
    one = gencond.condense(tiny_recipe(), "digits", tmp_path / "one", overrides=["condense.num_steps=2"])
    other = gencond.condense("demo", "digits", str(tmp_path / "other"), overrides=[*TINY, "condense.num_steps=2"])
    assert one.fingerprint == other.fingerprint


def test_bad_input_is_one_line_to_users_of_the_library_too(tmp_path: Path) -> None:
    with pytest.raises(gencond.InputError, match="no recipe 'nothing'"):
        gencond.condense("nothing", "digits", tmp_path / "run")
    with pytest.raises(gencond.InputError, match="is no run folder"):
        gencond.evaluate("checkpoints/digits")


def test_the_public_names_are_listed_and_there() -> None:
    assert set(gencond.__all__) <= set(dir(gencond))
    assert all(getattr(gencond, name) for name in gencond.__all__)
