"""How samples compare with real images as sets, in the features of any network: FID, KID, precision, recall, ...

They say how images look, not what they teach: a set may score badly here and train well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from gencond.common.errors import InputError
from gencond.common.ranges import as_bytes
from gencond.data.images import LabeledImages
from gencond.data.mapped import MappedImages
from gencond.eval.records import read_record
from gencond.networks.extractor import Extractor, embed_all

EMBEDDED_AT_ONCE = 64
NEIGHBOURS = 5
COLLAPSED = 0.1  # of the spread of real images


@dataclass(frozen=True)
class Likeness:
    """How samples compare with real images as sets.

    Args:
        extractor: name of the network whose features are compared.
        num_syn, num_real, num_floor: samples, real images that both are held against, and other real images.
        condensed, held_out_real: what `quality` says of the samples and of the other real images.
        diversity: class name -> spread in units of the real one, where there are two images.
        collapsed: names of classes that are nearly the same image again and again.
    """

    extractor: str
    num_syn: int
    num_real: int
    num_floor: int
    condensed: Mapping[str, float]
    held_out_real: Mapping[str, float]
    diversity: Mapping[str, float]
    collapsed: tuple[str, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Likeness":
        """What a report holds."""
        return read_record(cls, content, collapsed=tuple)


def quality(syn: Float[Tensor, "m d"], real: Float[Tensor, "n d"]) -> dict[str, float]:
    """FID, KID, precision, recall, density and coverage of samples against real images.

    Args:
        syn, real: features of any network; at least two of each.
    Returns:
        `fid` (1706.08500), `kid` (1801.01401; the mean over subsets of up to 1000), `precision` and `recall`
        (1904.06991), `density` and `coverage` (2002.09797); all but the first two in [0, 1], density also above.
    Raises:
        InputError: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric
    except ImportError:
        raise InputError("--quality needs torch-fidelity: pip install 'gencond[quality]'") from None
    moments = [fid_features_to_statistics(features.double()) for features in (syn, real)]
    subset = min(1000, len(syn), len(real))
    kid = kid_features_to_metric(syn, real, kid_subset_size=subset, verbose=False)
    neighbours = min(NEIGHBOURS, len(syn) - 1, len(real) - 1)
    prc = prc_features_to_metric(syn, real, prc_neighborhood=neighbours, verbose=False)
    density, coverage = density_and_coverage(syn, real, neighbours)
    return {
        "fid": fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"],
        "kid": kid["kernel_inception_distance_mean"],
        "precision": float(prc["precision"]),
        "recall": float(prc["recall"]),
        "density": density,
        "coverage": coverage,
    }


def density_and_coverage(
    syn: Float[Tensor, "m d"], real: Float[Tensor, "n d"], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """How many real neighbourhoods hold a sample on average, over `neighbours`; the share that hold one at all.

    A real image's neighbourhood is the ball to its `neighbours`-th nearest other real image.

    Source: Naeem et al., Reliable fidelity and diversity metrics (2002.09797), equations 3 and 4.
    """
    inside: list[Bool[Tensor, "k m"]] = []
    for some in torch.arange(len(real)).split(2000):
        radius = torch.cdist(real[some], real).kthvalue(neighbours + 1).values  # the nearest is the image itself
        inside.append(torch.cdist(real[some], syn) < radius[:, None])
    held = torch.cat(inside)
    return float(held.float().sum(0).mean() / neighbours), float(held.any(1).float().mean())


def spread_of_classes(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], num_classes: int
) -> Float[Tensor, " classes"]:
    """Mean squared distance of a class's features to their center, of each class; NaN where it has one image."""
    spreads = []
    for label in range(num_classes):
        own = features[labels == label]
        spreads.append(own.var(0).sum() if len(own) > 1 else features.new_tensor(torch.nan))
    return torch.stack(spreads)


def relative_spread(
    syn: Float[Tensor, "m d"],
    syn_labels: Int64[Tensor, " m"],
    real: Float[Tensor, "n d"],
    real_labels: Int64[Tensor, " n"],
    num_classes: int,
) -> Float[Tensor, " classes"]:
    """`spread_of_classes` of samples in units of that of real images."""
    return spread_of_classes(syn, syn_labels, num_classes) / spread_of_classes(real, real_labels, num_classes)


def compare_sets(
    extractor: str, network: Extractor, syn: LabeledImages, real: LabeledImages, floor: LabeledImages
) -> Likeness:
    """The quality panel of a report.

    Args:
        extractor, network: a name and what `given.quality_network` made of it.
        syn, real: samples and the real images that they are held against.
        floor: other real images, about as many as the samples: what the same numbers are for real images.
    """
    of_syn, of_real, of_floor = (embed_as_bytes(network, part.images) for part in (syn, real, floor))
    spread = relative_spread(of_syn, syn.labels, of_real, real.labels, real.num_classes)
    shares = {name: one for name, one in zip(real.class_names, spread.tolist(), strict=True) if not math.isnan(one)}
    return Likeness(
        extractor=extractor,
        num_syn=len(syn),
        num_real=len(real),
        num_floor=len(floor),
        condensed=quality(of_syn, of_real),
        held_out_real=quality(of_floor, of_real),
        diversity=shares,
        collapsed=tuple(name for name, share in shares.items() if share < COLLAPSED),
    )


def embed_as_bytes(
    network: Extractor, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"] | MappedImages
) -> Float[Tensor, "n d"]:
    """Features of images on the CPU; floats in [-1, 1] are rounded to bytes first, as an exported image is."""
    rounded = images if isinstance(images, MappedImages) else as_bytes(images)
    cpu = torch.device("cpu")
    return embed_all(network, rounded, EMBEDDED_AT_ONCE, fill_up=False, device=cpu, description="quality").float()
