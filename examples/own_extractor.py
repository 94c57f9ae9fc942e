"""Condense through a network of your own.

    python examples/own_extractor.py [OUT]

A recipe's `features.network` takes any name that timm knows, so a network that is registered with timm is one: here an
MLP on 2 x 2 patches. It needs what timm's models have, `forward_features`, `forward_head` and `get_classifier`.
"""

import sys
from pathlib import Path

import torch
from timm.models import register_model
from torch import nn

import gencond


class Patches(nn.Module):
    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 64) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.body = nn.Sequential(nn.Conv2d(in_chans, width, 2, 2), nn.GELU(), nn.Conv2d(width, width, 1), nn.GELU())
        self.fc = nn.Linear(width, num_classes)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled = maps.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


@register_model
def patches_of_two(pretrained: bool = False, **options) -> Patches:
    return Patches(options.get("num_classes", 10), options.get("in_chans", 3))


out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_extractor")
changes = ["features.network=patches_of_two", "pixels.ipc=1", "condense.num_steps=100"]
condensed = gencond.condense("digits", out, "dm:digits", overrides=changes)
report = gencond.evaluate(out, ipc=1, protocol="dm:50", num_seeds=1, baselines=["random_real"])
for row in report.rows:
    print(f"{row.images}: {100 * row.top1.mean:.1f} % of the test images right")
