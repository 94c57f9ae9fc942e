"""Which versions made something: of gencond, of the libraries, of the working tree."""

import functools
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gencond


def library_versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {"gencond": gencond.__version__} | {
        name: version(name) for name in ("torch", "torchvision", "diffusers", "accelerate", "numpy")
    }


def spoken_use(data: Mapping[str, Any]) -> str:
    """Which of its images a run did not learn from, as what follows their number.

    Args:
        data: that part of an artefact's provenance.
    """
    return f", {data['num_held_out']} of them held out for quick scores" if "num_held_out" in data else ""


def spoken_starts(made: Mapping[str, Any]) -> str | None:
    """Which images codes start from, where the run itself chose it; None where the recipe says it.

    Args:
        made: an artefact's provenance.
    """
    if "num_known" in made:
        known = f"{made['num_known']} of {made['num_asked']}"
        return (
            f"real images that a network knows after a brief training ({known}), and others where these do not suffice"
        )
    if "skip_easiest" not in made:
        return None
    share = made["skip_easiest"]
    return (
        "any real images" if share is None else f"real images that come after the easiest {100 * share:g} % of a class"
    )


@functools.cache
def current_commit() -> str | None:
    """Of the working tree that gencond runs from, as it was when first asked; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    # Not `describe --dirty`: killed while it refreshes the index, it leaves a lock that stops the next commit.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    asked = ["describe", "--always", "--abbrev=12"], ["status", "--porcelain", "--untracked-files=no"]
    try:
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip() for words in asked
        )
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return None
