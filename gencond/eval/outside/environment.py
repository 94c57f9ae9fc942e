"""A Python that has what gencond's cannot have: made once with pip, or named by the user."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gencond.common.errors import InputError
from gencond.common.files import cache_dir, written_whole

logger = logging.getLogger(__name__)

HIDDEN_VARIABLES = ("PYTHONPATH", "PYTHONHOME")  # they would bring our packages into the other environment
BIN = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")


def named_python(path: str) -> str:
    """The Python that a user named. Raises InputError where there is none."""
    found = shutil.which(path)
    if found is None:
        raise InputError(f"{path} is no program: name the Python of the judge's environment, as in ENV/bin/python")
    return str(Path(found).absolute())


def made_python(name: str, requirements: Sequence[str], last_minor: int) -> str:
    """The Python of `environments/<name>` in the cache, made with venv and pip where it is not there yet.

    Args:
        last_minor: of Python 3, the newest that the requirements can be installed for.
    Raises:
        InputError: this Python is newer, or something could not be installed; one line with pip's last words.
    """
    home = cache_dir().absolute() / "environments" / name
    python = home.joinpath(*BIN)
    if python.exists():
        return str(python)
    if sys.version_info > (3, last_minor + 1):
        raise InputError(
            f"{' '.join(requirements)} cannot be installed for Python {sys.version_info.major}.{sys.version_info.minor}"
            f": make an environment of Python 3.{last_minor} with them and name it with --judge-python"
        )
    logger.info("judge: making %s with %s (PyTorch again, some GB: minutes, once)", home, " ".join(requirements))
    log = home.with_name(f"{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with written_whole(home) as temporary:
        new_python = str(temporary.joinpath(*BIN))
        run_logged("venv", [sys.executable, "-m", "venv", str(temporary)], log)
        run_logged("pip", [new_python, "-m", "pip", "--disable-pip-version-check", "install", *requirements], log)
    return str(python)


def run_logged(
    what: str,
    command: Sequence[str],
    log: Path,
    folder: Path | None = None,
    on_line: Callable[[str], object] = lambda line: None,
) -> None:
    """Runs a command to its end, what it prints added to `log`.

    Args:
        what: it is, for people.
        folder: where it runs.
        on_line: is shown each line as it comes.
    Raises:
        InputError: it failed; one line with its last words and where the others are.
    """
    variables = {name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES}
    last = ""
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command, cwd=folder, env=variables | {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None, "a pipe was asked for"
        try:
            for line in process.stdout:
                file.write(line)
                on_line(line)
                last = line.strip() or last
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        why = f"killed by signal {-process.returncode}" if process.returncode < 0 else last or "without a word"
        raise InputError(f"{what} failed ({why}); all that it printed is in {log}")
