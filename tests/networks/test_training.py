import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gencond.common.ranges import to_signed
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.networks.convnet import ConvNet
from gencond.networks.training import Shuffled, Teacher, WholeBatches, draw_cutmix, train_network, train_networks


def test_one_epoch_matches_a_plain_sgd_loop(few_digits: LabeledImages) -> None:
    mean, std = few_digits.mean_std
    network, plain = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    plain.load_state_dict(network.state_dict())
    rates = []

    def schedule(done: float) -> float:
        rates.append(done)
        return 1 - done

    train_network(
        network, Shuffled(few_digits.images, few_digits.labels, 30), num_steps=4, learning_rate=0.1, momentum=0.8,
        weight_decay=0.01, schedule=schedule, mean=mean, std=std, seed=3,
    )  # fmt: skip
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    velocity = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    for step in range(4):
        rows = order[30 * step : 30 * (step + 1)]
        images = (to_signed(few_digits.images[rows]) - mean[0]) / std[0]
        loss = F.cross_entropy(plain(images), few_digits.labels[rows])
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for parameter, v, gradient in zip(plain.parameters(), velocity, gradients, strict=True):
                v.mul_(0.8).add_(gradient + 0.01 * parameter)
                parameter.sub_(0.1 * (1 - step / 4) * v)
    assert rates == [0, 0.25, 0.5, 0.75]
    torch.testing.assert_close(network[1].weight, plain[1].weight)


def test_a_batch_larger_than_the_set_is_the_set(few_digits: LabeledImages) -> None:
    seen = []

    class Watch(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return super().forward(x)

    network = nn.Sequential(nn.Flatten(), Watch(64, 10))
    few = few_digits.subset(torch.arange(20))
    mean, std = few_digits.mean_std
    train_network(
        network, Shuffled(few.images, few.labels, 64), num_steps=2, learning_rate=0.1, mean=mean, std=std, seed=0
    )
    assert seen == [20, 20]


def test_an_epoch_sees_every_image_once_and_its_last_batch_is_what_is_left(few_digits: LabeledImages) -> None:
    sizes, seen = [], []

    class Watch(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            seen.append(x.detach().clone())
            return super().forward(x)

    network = nn.Sequential(nn.Flatten(), Watch(64, 10))
    mean, std = few_digits.mean_std
    train_network(
        network, Shuffled(few_digits.images, few_digits.labels, 50), num_steps=6, learning_rate=0.1, mean=mean,
        std=std, seed=0,
    )  # fmt: skip
    assert sizes == [50, 50, 20, 50, 50, 20]
    assert len(torch.cat(seen[:3]).unique(dim=0)) == len(few_digits.images.flatten(1).unique(dim=0))


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"),
    [
        (9, 4, [4, 4, 2]),
        (3, 2, [2, 2]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (5, 9, [5]),
        (3, 1, [1, 1, 1]),
        (1, 4, [1]),
    ],
)
def test_no_batch_of_an_epoch_holds_one_image_alone(num_images: int, batch_size: int, sizes: list[int]) -> None:
    numbers, rng = torch.arange(num_images), torch.Generator().manual_seed(0)
    source = Shuffled(torch.zeros(num_images, 1, 1, 1, dtype=torch.uint8), numbers, batch_size)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))
    batches = [source(rng)[1] for _ in sizes]
    assert [len(batch) for batch in batches] == sizes
    assert sorted(set(torch.cat(batches).tolist())) == list(range(num_images))
    whole = num_images // batch_size * batch_size
    assert torch.cat(batches)[:whole].tolist() == order[:whole].tolist()
    assert batches[-1].tolist() == order[-sizes[-1] :].tolist()


@pytest.mark.parametrize("side_by_side", [False, True])
def test_batch_norm_of_vectors_is_trained_whatever_number_is_left_for_the_last_batch(
    few_digits: LabeledImages, side_by_side: bool
) -> None:
    few = few_digits.subset(torch.arange(0, 118, 2))  # 59 images, 29 + 29 + 1
    mean, std = few.mean_std
    networks = [nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10))]
    options = {"num_steps": 6, "learning_rate": 0.1, "mean": mean, "std": std}
    if side_by_side:
        train_networks(networks, [Shuffled(few.images, few.labels, 29)], seeds=[0], **options)
    else:
        train_network(networks[0], Shuffled(few.images, few.labels, 29), seed=0, **options)
    assert all(weight.isfinite().all() for weight in networks[0].parameters())


def test_the_momentum_starts_anew_after_the_stated_share() -> None:
    """Two steps of the same gradient: with momentum the second is larger, after a restart it is not."""
    moves = {}
    for restart in (None, 0.5):
        network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
        nn.init.zeros_(network[1].weight), nn.init.zeros_(network[1].bias)
        path = [network[1].bias.detach().clone()]
        images, labels = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        train_network(
            network, Shuffled(images, labels, 1), num_steps=4, learning_rate=1e-4, weight_decay=0.0,
            restart_at=restart, mean=(0.0,), std=(1.0,), seed=0,
            on_step=lambda step, network=network, path=path: path.append(network[1].bias.detach().clone()),
        )  # fmt: skip
        moves[restart] = [float((b - a)[0] * 1e4) for a, b in zip(path, path[1:], strict=False)]
    # gradient .5 a step; velocities .5, .95, 1.355, 1.72 without a restart; .5 again at step 3 of 0..3 with one
    assert [round(move, 2) for move in moves[None]] == [0.5, 0.95, 1.35, 1.72]
    assert [round(move, 2) for move in moves[0.5]] == [0.5, 0.95, 1.35, 0.5]


def test_cutmix_counts_both_labels_by_the_area_that_shows() -> None:
    """Image i is of colour i, so every pixel of a mixed image votes for the label of the image that it came from."""
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 10, 10).contiguous()
    logits, changed = torch.arange(12.0).view(3, 4), 0
    for seed in range(8):
        mix = draw_cutmix(1.0, images, torch.Generator().manual_seed(seed))
        mixed = mix(images)
        votes = [-logits.log_softmax(1)[i, int(pixel)] for i in range(3) for pixel in mixed[i].flatten()]
        torch.testing.assert_close(mix.cross_entropy(logits, torch.arange(3), 100), torch.stack(votes).mean())
        changed += int((mixed != images).any())
    assert changed > 3
    draws = [draw_cutmix(0.5, images, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert 70 < sum(draw is not None for draw in draws) < 130  # four standard deviations of 7


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_networks_side_by_side_end_as_each_does_alone(few_digits: LabeledImages, norm: str, taught: bool) -> None:
    """Each with images of its own, under everything a protocol may ask for."""
    mean, std = few_digits.mean_std
    sets = [few_digits.subset(torch.arange(start, 120, 2)) for start in (0, 1, 0)]
    options = {
        "num_steps": 12, "learning_rate": 0.002 if taught else 0.02, "schedule": lambda done: 1 - done,
        "restart_at": 0.5, "augmentation": Augmentation("crop_scale_rotate", 8, mean, std), "cutmix": 0.5,
        "mean": mean, "std": std,
        "teacher": Teacher(lambda images: images.flatten(1)[:, ::6][:, :10], 2.0) if taught else None,
    }  # fmt: skip

    def fresh(seed: int) -> ConvNet:
        torch.manual_seed(seed)
        return ConvNet(1, 10, 8, width=8, depth=2, norm=norm)

    alone, together = ([fresh(seed) for seed in range(3)] for _ in range(2))
    for seed, network in enumerate(alone):
        own = torch.optim.AdamW(network.parameters()) if taught else None
        train_network(network, Shuffled(sets[seed].images, sets[seed].labels, 25), seed=seed, optimizer=own, **options)
    train_networks(
        together, [Shuffled(s.images, s.labels, 25) for s in sets], seeds=range(3),
        new_optimizer=torch.optim.AdamW if taught else None, **options,
    )  # fmt: skip
    start = fresh(0).state_dict()
    for one, other in zip(alone, together, strict=True):
        assert not other.training
        images = to_signed(few_digits.images)
        # sums in another order, twelve steps of float32
        torch.testing.assert_close(other(images), one(images), atol=2e-3, rtol=1e-3)
        for name, value in one.state_dict().items() if not taught else ():
            # Adam makes whole steps of what rounding leaves of a gradient that is 0, as a norm's bias before it has
            torch.testing.assert_close(other.state_dict()[name], value, atol=2e-5, rtol=1e-3, msg=name)
    assert any((start[name] - value).abs().max() > 0.01 for name, value in alone[0].state_dict().items())


def test_networks_with_buffers_that_are_not_saved_train_side_by_side(few_digits: LabeledImages) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.register_buffer("shift", torch.ones(64), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(images.flatten(1) + self.shift)

    networks = [Shifted(), Shifted()]
    before = networks[1].linear.weight.detach().clone()
    source = [Shuffled(few_digits.images, few_digits.labels, 30) for _ in networks]
    train_networks(networks, source, seeds=(0, 1), num_steps=2, learning_rate=0.1, mean=(0.0,), std=(1.0,))
    assert (networks[1].linear.weight - before).abs().max() > 1e-3


def test_a_network_learns_what_a_teacher_says_of_the_images_as_it_sees_them(few_digits: LabeledImages) -> None:
    """The teacher sees mixed and augmented images in [-1, 1]; its answers count and the labels do not."""
    mean, std = few_digits.mean_std
    asked: list[torch.Tensor] = []

    def bright(images: torch.Tensor) -> torch.Tensor:
        """Two classes: how bright the upper and the lower half are."""
        asked.append(images)
        return 20 * torch.stack([half.mean((1, 2, 3)) for half in images.chunk(2, dim=2)], 1)

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    wrong = torch.zeros(120, dtype=torch.int64)
    train_network(
        network, Shuffled(few_digits.images, wrong, 40), num_steps=300, learning_rate=0.05, mean=mean, std=std, seed=0,
        cutmix=1.0, teacher=Teacher(bright, 4.0), optimizer=torch.optim.AdamW(network.parameters(), 0.05),
    )  # fmt: skip
    assert all(len(images) == 40 and images.min() == -1 and images.max() <= 1 for images in asked)
    images = to_signed(few_digits.images)
    with torch.no_grad():
        told, learned = bright(images), network((images - mean[0]) / std[0])
    assert (told.argmax(1) == learned.argmax(1)).float().mean() > 0.95
    assert 0.1 < told.argmax(1).float().mean() < 0.9


def test_the_divergence_from_a_teacher_is_that_of_the_definition() -> None:
    logits, answers = torch.randn(2, 5, 3).unbind()
    p, q = (one.div(7).softmax(1) for one in (answers, logits))
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(Teacher(lambda images: images, 7.0).divergence(logits, answers), expected)


@pytest.mark.parametrize("num_images", [3, 8, 20])
def test_whole_batches_hold_every_image_as_often_as_the_others(num_images: int) -> None:
    source = WholeBatches(torch.arange(num_images).view(-1, 1, 1, 1).float(), torch.arange(num_images), 8)
    rng = torch.Generator().manual_seed(0)
    drawn = [source(rng) for _ in range(15)]  # 120 images: 40, 15 and 6 epochs
    assert all(len(labels) == 8 and torch.equal(images.flatten().long(), labels) for images, labels in drawn)
    order = torch.cat([labels for _, labels in drawn])
    epochs = order.view(-1, num_images)
    assert torch.equal(epochs.sort(1).values, torch.arange(num_images).expand_as(epochs))
    assert len(epochs.unique(dim=0)) > 3  # in another order each
