import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe

import gencond.condensing.pretrain as pretraining
from gencond.common.errors import InputError
from gencond.common.files import state_fingerprint
from gencond.common.ranges import to_signed
from gencond.condensing.build import Parts, build
from gencond.condensing.loop import run_stage
from gencond.condensing.pretrain import Pretraining, averaged
from gencond.condensing.run import pretrained_generator
from gencond.condensing.run_folder import RunFolder
from gencond.config import Recipe
from gencond.data.images import LabeledImages
from gencond.generator.biggan import BigGANGenerator
from gencond.networks.convnet import ConvNet
from gencond.networks.training import Shuffled, train_network


def parts_of(recipe: Recipe, data: LabeledImages) -> Parts:
    return build(recipe, data, torch.device("cpu"))


def pretrain(recipe: Recipe, data: LabeledImages, run: RunFolder) -> BigGANGenerator:
    parts = parts_of(recipe, data)
    stage = Pretraining(parts.pretraining, parts.generators.new(), data, parts.seed)
    run_stage(stage, run, parts.save_every_steps)
    return stage.result()


def test_the_average_carries_parameters_and_buffers_with_the_stated_half_life() -> None:
    module = torch.nn.BatchNorm1d(1)
    ema = averaged(module, halflife_steps=3)
    ema.update_parameters(module)  # the first update copies
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(4.0)
    for _ in range(3):
        ema.update_parameters(module)
    assert ema.module.weight.item() == pytest.approx(3)  # half way from 1 to 5
    assert ema.module.running_mean.item() == pytest.approx(2)


def test_the_backbone_depends_on_the_seed_alone(few_digits: LabeledImages) -> None:
    one, again = (
        parts_of(tiny_recipe(), few_digits).generators.new(),
        parts_of(tiny_recipe(), few_digits).generators.new(),
    )
    torch.manual_seed(99)
    other = parts_of(tiny_recipe("seed=1"), few_digits).generators.new()
    assert torch.equal(one.linear.weight, again.linear.weight)
    assert not torch.equal(one.linear.weight, other.linear.weight)


def test_a_generator_of_parts_learns_what_parts_of_real_images_show(
    few_digits: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    judge = pretraining.ProjectionDiscriminator.forward
    monkeypatch.setattr(
        pretraining.ProjectionDiscriminator,
        "forward",
        lambda self, images, labels: (seen.append(images.detach()), judge(self, images, labels))[1],
    )
    parts = ["synthesizer.factor=2", "synthesizer.by_parts=true"]
    recipe = tiny_recipe(*parts, "pretrain.num_steps=1", "pretrain.augmentation=none", "pretrain.batch_size=4")
    run = RunFolder.prepare(tmp_path / "run", recipe, few_digits)
    generator = pretrain(recipe, few_digits, run)
    assert generator.config.sample_size == 4
    real = to_signed(few_digits.images[:]).unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    for image in seen[0][:4]:  # the first half of a batch is real
        assert (real - image).abs().flatten(1).amax(1).min() < 1e-6
    given = pretrained_generator(parts_of(recipe, few_digits), run, pretrained=save(generator, tmp_path / "generator"))
    assert state_fingerprint(given) == state_fingerprint(generator)
    with pytest.raises(InputError, match="sample_size 4; the recipe and data ask for 8"):
        pretrained_generator(parts_of(tiny_recipe(), few_digits), run, pretrained=tmp_path / "generator")


def save(generator: BigGANGenerator, folder: Path) -> Path:
    generator.save_pretrained(folder)
    return folder


def test_a_finished_pretraining_is_reused_and_a_given_one_is_checked(
    few_digits: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe()
    run = RunFolder.prepare(tmp_path / "run", recipe, few_digits)
    first = pretrained_generator(parts_of(recipe, few_digits), run)
    assert not (run.path / "state" / "pretrain").exists()
    caplog.set_level("INFO", logger="gencond")
    again = pretrained_generator(parts_of(recipe, few_digits), run)
    assert "pretrain: reusing" in caplog.text
    given = pretrained_generator(parts_of(tiny_recipe("seed=3"), few_digits), run, pretrained=run.pretrained)
    for other in (again, given):
        assert state_fingerprint(first) == state_fingerprint(other)
    with pytest.raises(InputError, match="latent_dim 8; the recipe and data ask for 16"):
        pretrained_generator(parts_of(tiny_recipe("generator.chunk_dim=8"), few_digits), run, pretrained=run.pretrained)
    with pytest.raises(InputError, match="cannot be loaded as a pretrained generator"):
        pretrained_generator(parts_of(recipe, few_digits), run, pretrained=tmp_path)


@pytest.mark.slow
def test_a_pretrained_generator_draws_digits_that_a_real_classifier_names(digits: tuple, tmp_path: Path) -> None:
    train, test = digits
    recipe = tiny_recipe(
        "generator.width=64", "generator.chunk_dim=16", "generator.class_embed_dim=32", "pretrain.num_steps=400",
        "pretrain.batch_size=64", "pretrain.discriminator_width=48",
    )  # fmt: skip
    generator = pretrain(recipe, train, RunFolder.prepare(tmp_path / "run", recipe, train))
    classifier = ConvNet(1, 10, 8, width=32, depth=2)
    mean, std = train.mean_std
    train_network(
        classifier, Shuffled(train.images, train.labels, 128), num_steps=300, learning_rate=0.05, mean=mean, std=std,
        seed=0,
    )  # fmt: skip

    def share_named(images: torch.Tensor, labels: torch.Tensor) -> float:
        return float((classifier((images - mean[0]) / std[0]).argmax(1) == labels).float().mean())

    assert share_named(to_signed(test.images), test.labels) > 0.95
    labels = torch.arange(10).repeat(50)
    with torch.no_grad():
        images = generator(torch.randn(500, 32), labels)
        untrained = parts_of(recipe, train).generators.new().eval()(torch.randn(500, 32), labels)
    assert share_named(images, labels) > 0.8 and share_named(untrained, labels) < 0.3


def test_losses_are_logged_and_the_generator_moves(few_digits: LabeledImages, tmp_path: Path) -> None:
    recipe = tiny_recipe("pretrain.num_steps=10", "save_every_steps=100")
    run = RunFolder.prepare(tmp_path / "run", recipe, few_digits)
    before = copy.deepcopy(parts_of(recipe, few_digits).generators.new().state_dict())
    generator: BigGANGenerator = pretrain(recipe, few_digits, run)
    assert any(not torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
    entries = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert entries[0]["discriminator"] > 0 and entries[0]["step"] == 10 and entries[-1]["seconds"] > 0
