import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "reference.py"


def test_the_reference_is_what_the_code_says_on_any_terminal() -> None:
    checked = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"}
    )
    assert (checked.returncode, checked.stderr) == (0, "")
