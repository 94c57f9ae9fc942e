"""torch.hub entry points: `torch.hub.load("OWNER/gencond", "condensed", "digits")`."""

import sys as _sys
from pathlib import Path as _Path

dependencies = [
    "torch", "diffusers", "huggingface_hub", "safetensors", "numpy", "jaxtyping", "psutil", "tqdm", "PIL",
    "constriction",
]  # fmt: skip
_ROOT = _Path(__file__).resolve().parent
_sys.path.append(str(_ROOT))  # torch.hub takes its own entry away again, and spawned loader workers need one


def condensed(name="digits", device=None):
    """A condensed dataset in eval mode, with `.sample(ipc=...)`.

    Args:
        name: one of those shipped in `checkpoints/` (no network), a path, or a Hub id "owner/name".
        device: where to put it.
    Returns:
        gencond.CondensedDataset; `sample(ipc)` gives images [classes * ipc, c, h, w] in [0, 1] and labels.
    Example:
        >>> model = torch.hub.load("OWNER/gencond", "condensed", "digits")
        >>> images, labels = model.sample(ipc=10)
    """
    from gencond.generator.dataset import load

    shipped = _ROOT / "checkpoints" / str(name)
    return load(shipped if shipped.is_dir() else name, device)


def biggan_deep(resolution=128, weights=None, truncation=1.0, sha256=None, device=None):
    """BigGAN-deep for the 1000 classes of ImageNet, in eval mode.

    Args:
        resolution: 128, 256 or 512 px.
        weights: None draws random ones (no network); "imagenet1k" downloads DeepMind's, as HuggingFace keeps them; or a
            file, a folder, a URL or a Hub id of such weights.
        truncation: t in (0, 1] of the latents t * truncated normal(-2, 2), to which the batch-norm statistics belong.
        sha256: of the file of weights, to hold it to; None checks the published hash where there is one.
        device: where to put it.
    Returns:
        gencond.generator.biggan_deep.BigGANDeepGenerator. Calling it with latents [n, 128] and labels [n] gives images
        [n, 3, resolution, resolution] in [-1, 1], with gradient; `sample(labels, rng=...)` draws latents too and gives
        images in [0, 1].
    Raises:
        gencond.InputError: an unknown resolution, weights that cannot be had or are others than asked for.
    Example:
        >>> model = torch.hub.load("OWNER/gencond", "biggan_deep", 256, weights="imagenet1k", truncation=0.4)
        >>> images = model.sample([207, 250], rng=torch.Generator().manual_seed(0))
    """
    from gencond.generator import backbone, biggan_deep, published

    config = {**biggan_deep.published_config(resolution), "truncation": backbone.check_truncation(truncation)}
    if weights is None:
        model = biggan_deep.BigGANDeepGenerator(**config).eval()
    elif weights == "imagenet1k":
        model = published.load_imagenet1k(resolution, truncation, sha256)
    else:
        model = published.load_biggan_deep(weights, truncation, sha256)
    return _of_resolution(model, resolution, weights).to(device)


def biggan(resolution=128, weights=None, sha256=None, device=None):
    """BigGAN: at 32 px for the 10 classes of CIFAR-10, above for the 1000 of ImageNet; in eval mode.

    Args:
        resolution: 32, 64, 128 or 256 px.
        weights: None draws random ones (no network); or a file, a folder, a URL or a Hub id of weights that
            BigGAN-PyTorch or StudioGAN wrote.
        sha256: of the file of weights, to hold it to.
        device: where to put it.
    Returns:
        gencond.generator.biggan.BigGANGenerator. Calling it with latents [n, latent_dim] and labels [n] gives images
        [n, 3, resolution, resolution] in [-1, 1], with gradient; `sample(labels, rng=...)` draws latents too and gives
        images in [0, 1].
    Raises:
        gencond.InputError: an unknown resolution, weights that cannot be had or are others than asked for.
    Example:
        >>> model = torch.hub.load("OWNER/gencond", "biggan", 128, weights="G_ema.pth")
        >>> images = model.sample([207, 250], truncation=0.5)
    """
    from gencond.generator import biggan, published

    if weights is None:
        model = biggan.BigGANGenerator(**biggan.published_config(resolution)).eval()
    else:
        model = published.load_biggan(weights, sha256)
    return _of_resolution(model, resolution, weights).to(device)


def _of_resolution(model, resolution, weights):
    if model.config.sample_size != resolution:
        from gencond.common.errors import InputError

        raise InputError(f"{weights} makes {model.config.sample_size} px images, not {resolution}: say resolution=...")
    return model
