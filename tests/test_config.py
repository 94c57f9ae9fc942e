from pathlib import Path

import pytest
import torch

from gencond.condense import check_fit
from gencond.config import available_recipes, first_difference, load_recipe, parse_recipe, to_dict, to_yaml
from gencond.data import GENERATOR_SIZES, LabeledImages
from gencond.errors import InputError


@pytest.mark.parametrize("name", available_recipes())
def test_every_shipped_recipe_loads_and_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "copy.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe
    assert parse_recipe(to_dict(recipe), "here") == recipe


def test_overrides_change_one_field_and_read_numbers_as_people_write_them() -> None:
    recipe = load_recipe("demo", ["condense.generator_lr=1e-3", "data.image_size=null", "codes.num_slots=7"])
    assert (recipe.condense.generator_lr, recipe.data.image_size, recipe.codes.num_slots) == (1e-3, None, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("condense.num_step=3", "unknown field 'condense.num_step'; did you mean 'num_steps'"),
        ("condens.num_steps=3", "unknown field 'condens'; did you mean 'condense'"),
        ("condense.num_steps=-1", "condense.num_steps = -1"),
        ("condense.generator_lr=fast", "condense.generator_lr = 'fast'"),
        ("evaluate.ipc=[0]", "evaluate.ipc.0 = 0"),
        ("evaluate.ipc=[]", "evaluate.ipc = []"),
        ("features.snapshot_steps=[20,20]", "must be ascending, each once"),
        ("num_steps", "not of the form part.field=value"),
        ("seed.x=1", "'seed' is a field, not a part"),
    ],
)
def test_a_wrong_override_is_explained_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe("demo", ["seed=0", override])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", GENERATOR_SIZES)
@pytest.mark.parametrize("name", ["gencond"])
def test_a_recipe_for_any_images_fits_every_size_that_is_chosen_by_itself(name: str, size: int) -> None:
    images = LabeledImages(torch.zeros(4, 3, size, size, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    check_fit(load_recipe(name), images)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="known are .*demo"):
        load_recipe("nothing")


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="broken.yaml is not valid YAML"):
        load_recipe(str(tmp_path / "broken.yaml"))


def test_the_first_difference_is_named_by_its_path() -> None:
    old, new = to_dict(load_recipe("demo")), to_dict(load_recipe("demo", ["condense.num_steps=9"]))
    assert first_difference(old, old) is None
    assert first_difference(old, new) == f"condense.num_steps: {old['condense']['num_steps']} there, 9 here"
