"""One look for every progress bar: what runs, how far, time left, and the numbers worth watching."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

BAR = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress(
    iterable: Iterable | None = None,
    *,
    description: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "step",
    unit_scale: bool = False,
    disable: bool = False,
) -> tqdm:
    """A tqdm bar on stderr; in a log file (no terminal) it prints a line every ten seconds.

    Args:
        unit_scale: counts in thousands and millions.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=f"{description:<22}",
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        disable=disable,
        dynamic_ncols=interactive,
        mininterval=0.2 if interactive else 10.0,
        bar_format=BAR,
        leave=True,
    )


def spoken_time(seconds: float) -> str:
    """In the unit that people would say: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2 * 86400)):
        if seconds < most:
            return f"{seconds / length:.{1 if unit == 'h' or seconds < 10 else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
