"""report.html in a real browser: nothing it complains about, every picture and video shown, readable at every width.

Skipped unless playwright and a Chromium are there. Neither is a dependency of the project; to run this file:

    pip install playwright && playwright install chromium
    python -m pytest tests/evaluation/test_report_browser.py

or, with a Chromium of the system (Debian: ``apt-get install chromium``), only ``pip install playwright``. One that is
not on the path is named by the environment variable CHROMIUM. With REPORT_SCREENSHOTS=<folder> the pages are saved
there as pictures, to look at.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from immiscible_policy.evaluation.report import write_reports

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (see this file's first lines)")

# What a page shows, as its own scripting sees it once everything is loaded.
SEEN = """async () => {
  const videos = [...document.querySelectorAll('video')];
  await Promise.all(videos.map(v => v.readyState >= 1 || v.error ? null : new Promise(done => {
    v.addEventListener('loadedmetadata', done); v.addEventListener('error', done);
  })));
  const inside = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  return {
    images: [...document.images].map(i => i.naturalWidth),
    videos: videos.map(v => v.error ? -1 : v.duration),
    charts: [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width),
    cut_labels: [...document.querySelectorAll('svg text')].filter(t =>
      !inside(t.getBoundingClientRect(), t.closest('svg').getBoundingClientRect())).map(t => t.textContent),
    smallest_label: Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)),
    overflow: document.documentElement.scrollWidth - innerWidth,
    plays_h264: document.createElement('video').canPlayType('video/mp4; codecs="avc1.64001f"') !== '',
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('svg text')).fill,
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        named = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        path = named or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(f"needs a Chromium, found none at {path} (see this file's first lines)")
        # Its sandbox refuses to run as root, as in a container.
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def folder(make_run, tmp_path: Path) -> Path:
    """An experiment of three runs with their reports, one of them with videos."""
    make_run(tmp_path / "train" / "knn 0", videos=2)
    make_run(tmp_path / "train" / "knn 1", seed=1)
    make_run(tmp_path / "train" / "none", "Independent()", finished=False)
    for name in ("figures", "tables"):
        (tmp_path / name).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 1400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "figures" / "wide.png")
    (tmp_path / "tables" / "t.md").write_text("| a | b |\n|---|---|\n" + "| a long cell of text |" * 2 + "\n")
    write_reports(tmp_path)
    return tmp_path


LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "device_scale_factor": 2},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("report", ["train/knn 0/report.html", "train/none/report.html", "report.html"])
def test_a_report_as_a_reader_sees_it(browser, folder: Path, report: str, look: str) -> None:
    context = browser.new_context(**LOOKS[look])
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / report).as_uri())
    seen = page.evaluate(SEEN)
    if "REPORT_SCREENSHOTS" in os.environ:
        name = f"{report.replace('/', '_').removesuffix('.html')}_{look}.png"
        page.screenshot(path=Path(os.environ["REPORT_SCREENSHOTS"]) / name, full_page=True)
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {(folder / report).as_uri()}
    with_videos = report.startswith("train/knn")
    assert len(seen["images"]) == (0 if "none" in report else 1)
    assert all(width > 0 for width in seen["images"])
    assert len(seen["videos"]) == (2 if with_videos else 0)
    if seen["plays_h264"]:
        assert all(duration > 0 for duration in seen["videos"])
    assert len(seen["charts"]) == {"train/knn 0/report.html": 4, "train/none/report.html": 3, "report.html": 2}[report]
    assert all(width > 300 for width in seen["charts"])
    assert seen["cut_labels"] == []
    assert seen["smallest_label"] > 9
    assert seen["overflow"] <= 0
    dark = look == "dark"
    assert (_brightness(seen["paper"]) < 60) == dark
    assert (_brightness(seen["ink"]) > 180) == dark


def test_links_lead_to_the_runs(browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    page.click("text=train/knn 0")
    assert page.title() == "KNN(k=2), ddpm, seed 0"
    page.click("text=Configuration")
    assert page.locator("details pre").is_visible()
    page.close()


def test_on_paper_everything_is_open_and_dark_on_light(browser, folder: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto((folder / "train" / "knn 0" / "report.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert _brightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 255
    assert _brightness(page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")) == 0
    assert page.locator("details pre").bounding_box()["height"] > 100
    assert not page.locator("video").first.is_visible()
    page.close()


def _brightness(color: str) -> float:
    """0 to 255, of ``rgb(r, g, b)``."""
    return float(np.mean([float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]))
