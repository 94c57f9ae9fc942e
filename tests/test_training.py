import torch
import torch.nn.functional as F
from torch import nn

from gencond.data import LabeledImages
from gencond.ranges import to_signed
from gencond.training import train_network


def test_one_epoch_matches_a_plain_sgd_loop(few_digits: LabeledImages) -> None:
    mean, std = few_digits.mean_std
    network, plain = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    plain.load_state_dict(network.state_dict())
    rates = []

    def schedule(done: float) -> float:
        rates.append(done)
        return 1 - done

    train_network(
        network, few_digits.images, few_digits.labels, num_steps=4, batch_size=30, learning_rate=0.1, momentum=0.8,
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
        network, few.images, few.labels, num_steps=2, batch_size=64, learning_rate=0.1, mean=mean, std=std, seed=0
    )
    assert seen == [20, 20]
