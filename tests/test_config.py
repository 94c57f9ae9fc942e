import re
from pathlib import Path

import pytest
import torch

from gencond.common.errors import InputError
from gencond.condensing.checks import check_networks, check_sizes
from gencond.config import (
    available_recipes,
    first_difference,
    load_recipe,
    parse_recipe,
    recipe_docs,
    to_commented_yaml,
    to_dict,
    to_yaml,
)
from gencond.data.images import LabeledImages


@pytest.mark.parametrize("name", available_recipes())
def test_every_shipped_recipe_loads_and_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "copy.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe
    assert parse_recipe(to_dict(recipe), "here") == recipe


@pytest.mark.parametrize("name", [*available_recipes(), "dm:fashion_mnist:quick", "gencond:cifar10:stream"])
def test_the_commented_recipe_loads_again_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(
        name, ["condense.code_lr=1e-7", "evaluate.ipc=[1, 50]", "seed=4294967295"], "a: b #c, [d]\n'é'"
    )
    (tmp_path / "copy.yaml").write_text(to_commented_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "copy.yaml")) == recipe


def test_every_field_of_a_recipe_is_described_in_a_sentence_with_its_range_and_default() -> None:
    docs, values = recipe_docs(), to_dict(load_recipe("demo"))
    assert {part for part in docs if part} == {part for part, value in values.items() if isinstance(value, dict)}
    for part, (about, fields) in docs.items():
        known = values[part] if part else {name: v for name, v in values.items() if not isinstance(v, dict)}
        assert about.endswith(".") and [field.name for field in fields] == list(known)
        for field in fields:
            assert re.fullmatch(r"[A-Za-z`(].+\.", field.description), (part, field)
            assert field.values and (field.default or field.name == "name"), (part, field)
    (lr,) = (field for field in docs["condense"][1] if field.name == "class_lr")
    assert (lr.values, lr.default) == ("number above 0, or null", "null")


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
        (
            "codes.skip_easiest=1.5",
            "codes.skip_easiest = 1.5: Input should be less than 1, or Input should be 'held_out'",
        ),
        ("codes.skip_easiest=held", "codes.skip_easiest = 'held': Input should be a valid number"),
        ("features.snapshot_steps=[20,20]", "must be ascending, each once"),
        ("num_steps", "not of the form part.field=value"),
        ("seed.x=1", "'seed' is a field, not a part"),
    ],
)
def test_a_wrong_override_is_explained_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe("demo", ["seed=0", override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_field_of_an_earlier_version_is_read_where_it_said_nothing_and_refused_otherwise() -> None:
    def with_margin(margin: float) -> dict:
        today = to_dict(load_recipe("demo"))
        return today | {"objective": today["objective"] | {"center_margin": margin}}

    assert parse_recipe(with_margin(1.0), "old") == load_recipe("demo")
    with pytest.raises(InputError, match="unknown field 'objective.center_margin'"):
        parse_recipe(with_margin(2.0), "old")
    with pytest.raises(InputError, match="unknown field 'objective.center_margin'"):
        load_recipe("demo", ["objective.center_margin=1.0"])


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


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("gencond", "codes.num_slots"), ("gencond", "generator.width"), ("gencond", "generator.chunk_dim"),
        ("gencond", "generator.class_embed_dim"), ("gencond", "pretrain.batch_size"),
        ("gencond", "pretrain.discriminator_width"), ("gencond", "features.width"), ("demo", "real.num_frequencies"),
        ("demo", "condense.prefix_lengths"), ("demo", "condense.stream_length"), ("gencond", "evaluate.ipc"),
        ("gencond", "real.batch_size"), ("gencond", "codes.encode_batch_size"),
        ("gencond:stream", "codes.num_slots"), ("imagenet1k-128", "generator.latent_dim"), ("dm", "pixels.ipc"),
    ],
)  # fmt: skip
def test_a_size_that_cannot_fit_is_one_line_before_it_is_allocated(name: str, override: str) -> None:
    value = "[1, 999999999]" if override in ("condense.prefix_lengths", "evaluate.ipc") else "999999999"
    recipe = load_recipe(name, [f"{override}={value}", "features.weights=null"])
    images = LabeledImages(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    field = override.rpartition(".")[2]
    with pytest.raises(InputError, match=rf"{field}.* alone would take [\d,.]+ GB, the machine has .*: lower it"):
        check_networks(recipe, images)


def test_what_the_fit_of_a_linear_path_takes_is_counted() -> None:
    images = LabeledImages(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    long = ["generator.chunk_dim=100000"]  # 800 GB; the largest layer of the blocks would take 400 MB
    with pytest.raises(InputError, match="chunk_dim of a linear path alone would take 800.0 GB"):
        check_sizes(load_recipe("gencond", long), images)
    check_sizes(load_recipe("gencond", [*long, "generator.linear_path=false", "codes.num_slots=1"]), images)


@pytest.mark.parametrize(
    "override",
    [
        "data.image_size=100000", "codes.num_slots=10000000000", "features.depth=1000000", "generator.num_blocks=1000",
        "features.num_random=1000000", "features.num_trajectories=1000000", "evaluate.num_seeds=1000000",
        "pretrain.num_steps=1e12", "data.test_fraction=.nan", "condense.code_lr=.inf", "objective.mmd_weight=-.inf",
        "features.cutmix=nan", "generator.truncation=.nan",
    ],
)  # fmt: skip
def test_numbers_beyond_any_use_are_refused_with_the_recipe(override: str) -> None:
    with pytest.raises(InputError, match=re.escape(override.partition("=")[0])):
        load_recipe("gencond", [override])
