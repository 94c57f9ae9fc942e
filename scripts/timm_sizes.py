"""Which sides of images networks of timm take as judges: built, one step of training, one look at what they say.

    python scripts/timm_sizes.py [NAME ...]

Prints the table of docs/formats.md: for each network the smallest of the sides tried that it takes. Weights are random;
nothing is downloaded.
"""

import sys
import warnings

import timm
import torch
import torch.nn.functional as F

from gencond.common.errors import InputError
from gencond.eval.networks import build_network

SIDES = (8, 16, 24, 28, 32, 48, 64, 96, 128)
NETWORKS = (
    "resnet18", "resnext26ts", "regnetx_002", "densenet121", "vgg11_bn", "inception_v3", "efficientnet_b0",
    "mobilenetv2_100", "mobilenetv3_small_100", "ghostnet_100", "mnasnet_small", "convnext_atto", "edgenext_xx_small",
    "mobilevit_xxs", "poolformer_s12", "pvt_v2_b0", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "eva02_tiny_patch14_224", "mixer_s16_224", "resmlp_12_224", "gmlp_s16_224", "swin_tiny_patch4_window7_224",
    "xcit_nano_12_p16_224", "coatnet_nano_rw_224",
)  # fmt: skip


def takes(name: str, side: int) -> bool:
    """Whether a network learns from a batch of two such images and then tells finite numbers."""
    try:
        network = build_network(f"timm/{name}", 3, 10, side, seed=0).train()
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        F.cross_entropy(network(images), torch.tensor([0, 1])).backward()
        return bool(network.eval()(images).isfinite().all())
    except (InputError, RuntimeError, ValueError):
        return False


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")  # of layers without a pixel, of which the network says so itself
    print(f"timm {timm.__version__}, torch {torch.__version__}\n")
    print("| network | smallest side |\n|---|---|")
    for name in names or NETWORKS:
        smallest = next((side for side in SIDES if takes(name, side)), f"over {SIDES[-1]}")
        print(f"| `{name}` | {smallest} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
