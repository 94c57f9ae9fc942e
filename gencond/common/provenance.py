"""Which versions made something: of gencond, of the libraries, of the working tree."""

import functools
import subprocess
from importlib.metadata import version
from pathlib import Path

import gencond


def library_versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {"gencond": gencond.__version__} | {
        name: version(name) for name in ("torch", "torchvision", "diffusers", "accelerate", "numpy")
    }


@functools.cache
def current_commit() -> str | None:
    """Of the working tree that gencond runs from, as it was when first asked; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
