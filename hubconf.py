"""torch.hub entry points: `torch.hub.load("OWNER/gencond", "condensed", "digits")`."""

from pathlib import Path as _Path

dependencies = ["torch", "diffusers", "safetensors", "numpy", "jaxtyping", "tqdm", "PIL"]


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
    from gencond.generator.condensed import load

    shipped = _Path(__file__).resolve().parent / "checkpoints" / str(name)
    return load(shipped if shipped.is_dir() else name, device)
