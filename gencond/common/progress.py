"""One look for every progress bar: what runs, how far, time left, and the numbers worth watching."""

import logging
import sys
import weakref
from collections.abc import Iterable

from tqdm import tqdm

_bars: "weakref.WeakSet[tqdm]" = weakref.WeakSet()

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
    bar = tqdm(
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
    _bars.add(bar)
    return bar


def close_bars() -> None:
    """Ends the line of every bar that an error left open, so that what is said next has a line of its own."""
    for bar in list(_bars):
        bar.close()


class LogAboveBars(logging.StreamHandler):
    """Messages on stderr, each on a line of its own while a bar goes on below."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def spoken_time(seconds: float) -> str:
    """In the unit that people would say: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2 * 86400)):
        if seconds < most:
            return f"{seconds / length:.{1 if unit == 'h' or seconds < 10 else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
