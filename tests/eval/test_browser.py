"""The report in a real browser, without a network; skipped where there is none."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_eval import answered_rows, fake_report

from gencond.data.images import LabeledImages
from gencond.eval.report import write_reports

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

MEASURE = """<script>
addEventListener("load", () => parent.postMessage(JSON.stringify({
  wide: document.documentElement.scrollWidth, window: window.innerWidth,
  images: [...document.images].every(image => image.complete && image.naturalWidth > 0),
  plots: [...document.querySelectorAll("svg")].map(plot => plot.getBoundingClientRect().height),
  text: document.querySelector("td").getBoundingClientRect().height,
}), "*"));
</script>"""
# A frame, since Chromium makes no window as narrow as a phone.
FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<script>addEventListener("message", event => document.title = event.data);</script>
<iframe src="measured.html" width="{width}" height="1000"></iframe>"""


@pytest.fixture(scope="module")
def open_page(digits: tuple[LabeledImages, LabeledImages], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """(width, options) -> (what the page measures, its screenshot)."""
    out = tmp_path_factory.mktemp("report")
    content, log = fake_report(out, digits[0])
    score = {
        "stage": "condense",
        "event": "score",
        "ipc": 10,
        "num_images": 120,
        "seconds": 9.0,
        "step": 400,
        "top1": 0.5,
    }
    write_reports(out, replace(content, rows=tuple(answered_rows(10))), [*log, score])
    page = (out / "report.html").read_text().replace("</body>", MEASURE + "</body>")
    (out / "measured.html").write_text(page)

    def run(page: Path, *options: str) -> str:
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1000",
            f"--user-data-dir={out}/profile", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000",
            *options, page.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def opened(width: int, *options: str) -> tuple[dict, np.ndarray]:
        frame, picture = out / "frame.html", out / "screen.png"
        frame.write_text(FRAME.format(width=width))
        found = html.unescape(re.search("<title>(.*?)</title>", run(frame, *options, "--dump-dom"))[1])
        run(out / "measured.html", *options, f"--screenshot={picture}")
        return json.loads(found), np.asarray(Image.open(picture).convert("L"), dtype=float)

    return opened


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_a_phone_and_a_desk_with_all_its_pictures(open_page: Callable, width: int) -> None:
    found, screen = open_page(width)
    assert found["window"] == width and found["wide"] <= width
    assert found["images"] and found["text"] > 15
    assert len(found["plots"]) == 6 and min(found["plots"]) > 50
    assert screen[:40].mean() > 200  # white paper


def test_the_page_follows_the_dark(open_page: Callable) -> None:
    _, screen = open_page(1200, "--blink-settings=preferredColorScheme=0")
    background, brightest = np.median(screen), screen[40:200].max()
    assert background < 60 and brightest > 150  # light letters on black
