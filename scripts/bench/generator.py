"""How fast a published backbone makes images: with a spectral norm at each call, as it was published, and as here.

    python scripts/bench/generator.py                          # BigGAN-deep, 128 px, full width, random weights
    python scripts/bench/generator.py --resolution 256 --batch 1 8

"as published" divides every weight by its spectral norm in each forward pass and normalises, scales and shifts in
steps; "folded" has the norm divided out and one multiply-add a batch norm; "channels-last" is what `sample` does.
On a GPU "bfloat16" too. Medians of runs that take turns, images a second.
"""

import argparse
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gencond.cli import run_cleanly
from gencond.generator.biggan_deep import BigGANDeepGenerator, StoredNorm, published_config


class NormInSteps(nn.Module):
    """A `StoredNorm` as the formula reads."""

    def __init__(self, norm: StoredNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        norm = self.norm
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        if condition is None:
            gain, bias = norm.weight[None], norm.bias[None]
        else:
            gain, bias = 1 + norm.gain(condition), norm.bias(condition)
        return F.relu(x * gain[:, :, None, None] + bias[:, :, None, None])


def as_published(generator: BigGANDeepGenerator) -> BigGANDeepGenerator:
    """A copy with spectral norms and plain batch norms."""
    slow = copy.deepcopy(generator)
    for module in list(slow.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module)
    for parent in list(slow.modules()):
        for name, child in parent.named_children():
            if isinstance(child, StoredNorm):
                setattr(parent, name, NormInSteps(child))
    return slow.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=128, choices=(128, 256, 512))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = BigGANDeepGenerator(**published_config(args.resolution)).eval().to(device)
    ways = {"as published": as_published(generator), "folded": generator}
    ways["channels-last"] = copy.deepcopy(generator).to(memory_format=torch.channels_last)
    if device.type == "cuda":
        ways["bfloat16"] = copy.deepcopy(ways["channels-last"]).bfloat16()
    print("".join(f"{title:>16}" for title in ("batch", *ways)))
    for batch in args.batch:
        latents, labels = torch.randn(batch, 128, device=device), torch.randint(1000, (batch,), device=device)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.runs):
            for name, way in ways.items():
                begun = time.perf_counter()
                with torch.no_grad():
                    way(latents.to(way.class_embedding.weight.dtype), labels)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begun)
        rates = {name: batch / statistics.median(taken) for name, taken in seconds.items()}
        base = rates["as published"]
        cells = [f"{rate:.2f} ({rate / base:.2f}x)" for rate in rates.values()]
        print("".join(f"{cell:>16}" for cell in (batch, *cells)), flush=True)


if __name__ == "__main__":
    run_cleanly(main)
