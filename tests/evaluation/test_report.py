"""report.html: what stands in it, that it needs nothing else, and what it makes of damaged and hostile files."""

import base64
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import imageio.v3 as iio
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from immiscible_policy.evaluation import report, report_data, report_figures
from immiscible_policy.evaluation.report import write_report, write_reports

VOID = {"meta", "link", "img", "br", "hr"}
HOSTILE = "<script>alert('x')</script>\"&{{ 7*7 }}"


class Page(HTMLParser):
    """A page's elements and texts; tags must be closed in the order in which they were opened."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def charts(self) -> list[ElementTree.Element]:
        """The charts by their text alternative; the namespaces that HTML implies are given back."""
        found = re.findall(r"<svg .*?</svg>", self.html, flags=re.DOTALL)
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return [ElementTree.fromstring(svg.replace("<svg ", f"<svg {names} ", 1)) for svg in found]

    def chart(self, label: str) -> ElementTree.Element:
        return next(chart for chart in self.charts() if chart.get("aria-label") == label)


def page(folder: Path, **options: Any) -> Page:
    written = write_report(folder, **options)
    assert written.path == folder / "report.html"
    return Page(written.path.read_text())


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(";base64,")[2], validate=True)


def paths(chart: ElementTree.Element, color: str) -> list[np.ndarray]:
    """The (n, 2) points of a chart's lines or areas of a colour."""
    found = [path for path in chart.iter("{http://www.w3.org/2000/svg}path") if color in path.get("style", "")]
    return [np.array(re.findall(r"-?[\d.]+", path.get("d", "")), float).reshape(-1, 2) for path in found]


def test_a_run_in_one_file_that_needs_no_other(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", videos=2)
    found = page(run)
    assert not write_report(run).problems
    # Nothing is loaded: no address occurs at all, and sources are data.
    assert "http:" not in found.html
    assert "https:" not in found.html
    assert not found.all("script")
    for _, attributes in found.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith(("#", "data:"))
        assert attributes.get("xlink:href", "#").startswith("#")
        assert "url(" not in attributes.get("style", "").replace("url(#", "")
    policy = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv")]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; img-src data:; media-src data:;")
    # What is in it can be opened.
    (picture,) = found.all("img")
    assert Image.open(io.BytesIO(decoded(picture["src"]))).size == (80, 20)
    videos = found.all("video")
    assert [len(iio.imread(decoded(v["src"]), extension=".mp4", plugin="FFMPEG")) for v in videos] == [8, 8]
    labels = [chart.get("aria-label") for chart in found.charts()]
    assert labels == [
        "coverage of the rollouts while training",
        "training and validation loss",
        "learning rate",
        "max coverage of the episodes",
    ]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [a["xlink:href"][1:] for a in found.all("use")] + re.findall(r"url\(#(\w+)\)", found.html)
    assert references
    assert set(references) <= set(ids)
    anchors = [a["href"][1:] for a in found.all("a")]
    assert set(anchors) == {"video-100000", "video-100001"} & set(ids) & set(anchors)


def test_the_numbers_of_a_run(make_run, tmp_path: Path) -> None:
    found = page(make_run(tmp_path / "run", seed=4))
    text = " ".join(found.text.split())
    assert "KNN(k=2), ddpm, seed 4" in text
    assert "max coverage 84.2% [78.9, 88.9] mean over episodes of the largest share" in text
    assert "success 84.2% [78.9, 88.9] share of episodes whose coverage passed 0.95 (Wilson interval); 20" in text
    assert "206 episodes, 25650 steps, data/pusht/human.zarr" in text
    assert "mean over the 10 rollout points with the lowest training loss 3 40.0 40.0" in text
    for fact in ("4.56 million", "bf16", "30.0 s by the clock, 24.0 s of processors", "torch 2.13.0"):
        assert fact in text
    assert "ddim with 20 steps, legacy=True, bf16" in text
    assert "has not finished" not in text
    # Interpolations are resolved, but for Hydra's own.
    config = yaml.safe_load(re.search(r"<pre>(coupling:.*?)</pre>", found.html, re.DOTALL)[1])  # type: ignore[index]
    assert config["coupling"]["k"] == 2
    assert config["trainer"] == {"steps": 60, "seed": 4}
    # Worst and best episodes, in this order.
    episodes = json.loads((tmp_path / "run" / "media" / "eval.json").read_text())["episodes"]
    ranked = [str(e["seed"]) for e in sorted(episodes, key=lambda e: e["max_coverage"])]
    listed = re.findall(r"<tr><td>(\d{6})", found.html)
    assert listed == ranked[:5] + ranked[:-6:-1]


def test_commands_are_those_of_this_run(make_run, tmp_path: Path) -> None:
    overrides = ("coupling=warmup", "coupling.anneal_to={k: 1}", "hydra.run.dir=elsewhere")
    folder = make_run(tmp_path / "runs" / "a run", seed=1, overrides=overrides)
    record = report_data.read_run(folder)
    assert shlex.split(record.reproduce_command() or "") == [
        *("python", "scripts/train_policy.py", "coupling=warmup", "coupling.anneal_to={k: 1}", "seed=1"),
        "trainer.mixed_precision=bf16",
    ]
    # Relative to where the run was started.
    assert shlex.split(record.resume_command())[-1] == "resume=a run"
    given_precision = make_run(tmp_path / "b", overrides=("trainer.mixed_precision=auto",))
    assert "bf16" not in (report_data.read_run(given_precision).reproduce_command() or "")
    text = " ".join(page(folder).text.split())
    assert shlex.quote("resume=a run") in text
    assert f"{shlex.quote('checkpoint=a run')} n_episodes=1 n_videos=1 num_inference_steps=20 noise_seed=3" in text
    assert "noise_seed=3 mixed_precision=bf16 sampler=ddim" in text


def test_a_report_runs_no_code_that_a_configuration_names(make_run, tmp_path: Path) -> None:
    def named(folder: Path, coupling: dict) -> str:
        path = folder / ".hydra" / "config.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "coupling": coupling}))
        return report_data.read_run(folder).coupling

    made, package = tmp_path / "made", "immiscible_policy.coupling"
    inner = {"_target_": "os.mkdir", "path": str(made)}
    for number, coupling in enumerate(
        (
            {"_target_": f"{package}.Mixture", "coupling": inner, "p": 0.5},
            {"_target_": f"{package}.LinearAssignment", "condition_weight": [inner]},
            {"_target_": f"{package}.spec.ast.literal_eval", "_args_": ["1"]},
        )
    ):
        assert (
            named(make_run(tmp_path / str(number), finished=False), coupling)
            == str(coupling["_target_"]).rpartition(".")[2]
        )
    assert not made.exists()
    nested = {"_target_": f"{package}.Mixture", "coupling": {"_target_": f"{package}.KNN", "k": 3}, "p": 0.5}
    assert "KNN(k=3" in named(make_run(tmp_path / "nested", finished=False), nested)


def test_curves_show_what_was_logged(make_run, tmp_path: Path) -> None:
    chart = page(make_run(tmp_path / "run")).chart("coverage of the rollouts while training")
    width, height = (float(end) for end in chart.get("viewBox", "").split()[2:])
    lines = [points for points in paths(chart, "fill: none; stroke: #3584e4") if len(points) == 3]
    assert len(lines) == 1
    ((x, y),) = (line.T for line in lines)
    assert (x > 0).all()
    assert (x < width).all()
    assert (y > 0).all()
    assert (y < height).all()
    # Coverage 0.2, 0.4, 0.6 at steps 20, 40, 60: equal steps to the right and up.
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], rtol=1e-4)
    np.testing.assert_allclose(np.diff(y), np.diff(y)[0], rtol=1e-4)
    assert np.diff(y)[0] < 0
    # The band reaches half a step of coverage (0.1 of 0.2) to either side.
    (use,) = [each for each in chart.iter() if "fill: #3584e4; fill-opacity" in each.get("style", "")]
    (shape,) = [
        each for each in chart.iter() if each.get("id") == use.get("{http://www.w3.org/1999/xlink}href", "#")[1:]
    ]
    band = np.array(re.findall(r"-?[\d.]+", shape.get("d", "")), float).reshape(-1, 2) + np.array(
        [0, use.get("y")], float
    )
    half = abs(np.diff(y)[0]) / 2
    assert band[:, 1].max() == pytest.approx(y[0] + half, abs=1e-3)
    assert band[:, 1].min() == pytest.approx(y[-1] - half, abs=1e-3)


def test_a_run_that_logged_no_intervals_has_no_band(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not key.endswith(("_low", "_high"))} for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in kept))
    found = page(run)
    chart = found.chart("coverage of the rollouts while training")
    assert "fill-opacity" not in ElementTree.tostring(chart, encoding="unicode")
    assert "this run logged no intervals" in found.text


def test_the_histogram_counts_episodes() -> None:
    chart = report_figures.coverage_histogram([0.01, 0.02, 0.52, 0.97], "x")
    assert chart is not None
    svg = ElementTree.fromstring(chart.replace("xlink:href", "href"))
    bars = [
        np.array(re.findall(r"-?[\d.]+", path.get("d", "")), float).reshape(-1, 2)
        for path in svg.iter("path")
        if "fill: #3584e4" in path.get("style", "") or "fill: #2ca05a" in path.get("style", "")
    ]
    heights = [np.ptp(bar[:, 1]) for bar in bars]
    assert heights[0] == pytest.approx(2 * heights[10], rel=1e-4)
    assert heights[10] == pytest.approx(heights[19], rel=1e-4)
    assert sum(height > 0 for height in heights) == 3
    assert sum("fill: #2ca05a" in path.get("style", "") for path in svg.iter("path")) == 1


def test_whatever_files_say_is_text(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run", HOSTILE, overrides=(HOSTILE,), **{"objective.name": HOSTILE, "note": HOSTILE})
    summary = json.loads((run / "summary.json").read_text())
    summary["versions"] = {HOSTILE: HOSTILE}
    summary["precision"] = HOSTILE
    summary["final"][HOSTILE] = summary["final"]["success"]
    (run / "summary.json").write_text(json.dumps(summary))
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + json.dumps({"step": 70, f"validation/{HOSTILE}": 0.5}) + "\n")
    found = page(run)
    assert not found.all("script")
    assert not found.all("b") or all(attributes == {} for attributes in found.all("b"))
    assert found.text.count("<script>alert('x')</script>") >= 6
    assert "{{ 7*7 }}" in found.text
    (tmp_path / "tables").mkdir()
    markdown = f"[x](javascript:alert(1)) ![p](http://e.org/p.png) <http://e.org>\n\n<div onclick='f'>{HOSTILE}</div>\n"
    (tmp_path / "tables" / f"{'<i>'}.md").write_text(f"{markdown}\n| a |\n|---|\n| {HOSTILE} |\n")
    found = page(tmp_path)
    assert not found.all("script")
    assert not found.all("img")
    assert all("onclick" not in attributes for _, attributes in found.elements)
    assert [a["href"] for a in found.all("a")] == ["%3Cb%3Erun/report.html"]
    assert found.text.count("<script>alert('x')</script>") >= 4


def test_beyond_the_limit_media_are_linked(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", videos=2)
    (run / "media" / "episode_100001.mp4").rename(run / "media" / "episode #1.mp4")
    evaluation = json.loads((run / "media" / "eval.json").read_text())
    evaluation["videos"][1] = "episode #1.mp4"
    (run / "media" / "eval.json").write_text(json.dumps(evaluation))
    sizes = [(run / "media" / name).stat().st_size for name in evaluation["videos"]]
    # Room for one video as base64, not for two.
    found = page(run, max_embedded_mb=(sizes[0] * 4 / 3 + 400) / 1e6)
    assert len(found.all("video")) == 1
    links = [a["href"] for a in found.all("a") if not a["href"].startswith("#")]
    assert links == ["media/episode%20%231.mp4"]
    assert (run / unquote(links[0])).is_file()
    nothing = page(run, max_embedded_mb=0)
    assert not nothing.all("video")
    assert not nothing.all("img")
    assert len([a for a in nothing.all("a") if a["href"].startswith("media/")]) == 3
    assert len(nothing.html) < 120_000
    with pytest.raises(ValueError, match="max_embedded_mb=-1: must be at least 0"):
        write_report(run, -1)


def test_half_finished_runs_say_so(make_run, tmp_path: Path) -> None:
    text = page(make_run(tmp_path / "run", finished=False)).text
    assert "This run has not finished" in text
    assert "its last logged step is 60 of 60" in text
    assert "KNN(k=2), ddpm, seed 0" in text  # named by its configuration
    assert "resume=run" in text
    (tmp_path / "run" / "metrics.jsonl").unlink()
    begun = write_report(tmp_path / "run")
    assert "it has logged no step yet" in begun.path.read_text()
    assert not begun.problems


@pytest.mark.parametrize(
    "name",
    [
        *("summary.json", "media/eval.json", "demonstrations.json", "metrics.jsonl", ".hydra/config.yaml"),
        *("media/film_strip.png", "media/episode_100000.mp4"),
    ],
)
def test_damaged_files_are_named(make_run, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(report_figures, "_svg", lambda figure, label: "<svg></svg>")
    run = make_run(tmp_path / "run", videos=1)
    whole = (run / name).read_bytes()
    for content in (whole[: len(whole) // 2 + 7], b"\xff\xfe\x00"):
        (run / name).write_bytes(content)
        written = write_report(run)
        assert any(name in problem and "damaged" in problem for problem in written.problems), written.problems
        assert written.problems[0] in Page(written.path.read_text()).text
    if not name.endswith(("png", "mp4")):  # which an experiment does not look at
        assert any(f"run: {name} is damaged" in problem for problem in write_report(tmp_path).problems)


def test_missing_media_are_named(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", videos=1)
    (run / "media" / "episode_100000.mp4").unlink()
    assert write_report(run).problems == ["media/episode_100000.mp4 is missing"]


JUNK = st.sampled_from([None, True, 3, -1.5, float("nan"), "x", "<b>", [], [1], {}, {"a": 1}])


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), junk=JUNK)
def test_nothing_that_json_can_say_breaks_it(data, junk, make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(report_figures, "_svg", lambda figure, label: "<svg></svg>")  # drawing takes most of the time
    run = tmp_path / "run"
    shutil.rmtree(tmp_path, ignore_errors=True)
    make_run(run)
    name = data.draw(st.sampled_from(["summary.json", "media/eval.json", "demonstrations.json", ".hydra/config.yaml"]))
    content = yaml.safe_load((run / name).read_text())
    *parents, key = data.draw(st.sampled_from(_places(content)[1:]))
    node = content
    for parent in parents:
        node = node[parent]
    node[key] = junk
    (run / name).write_text(yaml.safe_dump(content) if name.endswith("yaml") else json.dumps(content))
    Page(write_report(run).path.read_text())
    Page(write_report(tmp_path).path.read_text())


def test_an_interrupted_write_leaves_the_old_report(make_run, tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path / "run")
    before = write_report(run).path.read_bytes()
    files = sorted(run.iterdir())
    (run / "summary.json").unlink()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert sorted(run.iterdir()) == [path for path in files if path.name != "summary.json"]


def test_an_experiment_pools_its_runs(make_run, tmp_path: Path) -> None:
    top = tmp_path / "table2"
    for seed in range(2):
        make_run(top / "train" / f"none_{seed}", "Independent()", seed)
        make_run(top / "train" / f"knn_{seed}", "KNN(k=2)", seed)
    make_run(top / "train" / "knn_3", "KNN(k=2)", 3, finished=False)
    (top / "train" / "none_0" / "report.html").write_text("drawn before")
    for folder in ("figures", "tables"):
        (top / folder).mkdir()
    Image.new("RGB", (30, 10)).save(top / "figures" / "coverage_curves.png")
    (top / "tables" / "published.md").write_text("# Ours\n\n| a | b |\n|---|---:|\n| `x<y` | **2** |\n")
    (top / "results.parquet").write_bytes(b"PAR1")
    found = page(top)
    text = " ".join(found.text.split())
    assert "5 training runs, 4 of them finished" in text
    assert re.search(r"Independent\(\) 2 69\.0 \[[\d.]+, [\d.]+\]", text)
    assert "KNN(k=2) 2 69.0" in text
    assert "+0.0 [+0.0, +0.0]" in text
    legend = re.findall(r"</i> (.*?) <span", found.html)
    assert legend == ["Independent()", "KNN(k=2)"]
    assert "KNN(k=2) 3 training seeds" in text
    charts = [chart.get("aria-label") for chart in found.charts()]
    assert charts == [
        "coverage while training, by arm",
        "max coverage, Independent()",
        "max coverage, KNN(k=2)",
    ]
    assert "Independent(): max coverage of 40 episodes" in text
    links = {a["href"] for a in found.all("a")}
    assert links == {"results.parquet", "train/none_0/report.html"}
    assert "train/knn_3 KNN(k=2) 3 60 not finished 60.0% at its last rollouts" in text
    (picture,) = found.all("img")
    assert Image.open(io.BytesIO(decoded(picture["src"]))).size == (30, 10)
    assert "<td><code>x&lt;y</code></td>" in found.html
    assert "http:" not in found.html.replace("http://e.org", "")


def test_runs_get_their_reports_unless_they_are_up_to_date(make_run, tmp_path: Path) -> None:
    make_run(tmp_path / "train" / "a")
    make_run(tmp_path / "b", finished=False)
    found = [tmp_path / "b", tmp_path / "train" / "a", tmp_path]
    assert [each.path.parent for each in write_reports(tmp_path)] == found
    links = {a["href"] for a in Page((tmp_path / "report.html").read_text()).all("a")}
    assert links == {"b/report.html", "train/a/report.html"}
    assert [each.path.parent for each in write_reports(tmp_path)] == [tmp_path]
    later = (tmp_path / "b" / "report.html").stat().st_mtime + 10
    os.utime(tmp_path / "b" / "metrics.jsonl", (later, later))
    assert [each.path.parent for each in write_reports(tmp_path)] == [tmp_path / "b", tmp_path]


def test_runs_that_cannot_be_compared_stand_in_tables_of_their_own(make_run, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"ddpm_{seed}", "Independent()", seed)
        make_run(tmp_path / f"flow_{seed}", "Independent()", seed, **{"objective.name": "flow_matching"})
        make_run(tmp_path / f"long_{seed}", "Independent()", seed, **{"policy.horizon": 32})
    found = page(tmp_path)
    titles = ["ddpm, policy.horizon=16", "ddpm, policy.horizon=32", "flow_matching, policy.horizon=16"]
    assert re.findall(r"<h3>(.*?)</h3>", found.html) == titles
    assert re.findall(r"</i> (.*?) <span", found.html) == [f"Independent(), {title}" for title in titles]
    make_run(tmp_path / "twice", "Independent()", 0)
    assert "No table: two runs of Independent() with seed 0" in page(tmp_path).text


def test_arms_are_named_by_what_differs(make_run, tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", seed=0)
    other_seed = make_run(tmp_path / "b", seed=1)
    records = [report_data.read_run(folder) for folder in (first, other_seed)]
    assert report_data.arm_labels(records) == ["KNN(k=2)", "KNN(k=2)"]
    scaled = make_run(tmp_path / "c", **{"objective.prediction_type": "sample"})
    seen = make_run(tmp_path / "d", **{"task.obs_type": "pixels_agent_pos"})
    data = {"path": "data/made.zarr", "n_episodes": 500, "n_steps": 9}
    (seen / "demonstrations.json").write_text(json.dumps(data))
    records = [report_data.read_run(folder) for folder in (first, scaled, seen)]
    assert report_data.arm_labels(records) == [
        "KNN(k=2), 206 of human.zarr, ddpm prediction_type=epsilon, keypoints",
        "KNN(k=2), 206 of human.zarr, ddpm prediction_type=sample, keypoints",
        "KNN(k=2), 500 of made.zarr, ddpm prediction_type=epsilon, pixels_agent_pos",
    ]


def test_runs_on_fewer_of_the_demonstrations_are_another_arm(make_run, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "all"), make_run(tmp_path / "few", **{"dataset.max_train_episodes": 25})]
    labels = report_data.arm_labels([report_data.read_run(folder) for folder in folders])
    assert labels == ["KNN(k=2), 206 of human.zarr", "KNN(k=2), 25 of the 206 of human.zarr"]
    texts = [" ".join(page(folder).text.split()) for folder in folders]
    assert ["; trained on 25 of the episodes" in text for text in texts] == [False, True]


def test_an_unknown_number_of_demonstrations_costs_no_report(make_run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "few", **{"dataset.max_train_episodes": 25})
    record = json.loads((folder / "demonstrations.json").read_text())
    (folder / "demonstrations.json").write_text(json.dumps({**record, "n_episodes": None}))
    assert "; trained on" not in page(folder).text


def test_only_runs_are_taken_for_runs(make_run, tmp_path: Path) -> None:
    make_run(tmp_path / "group" / "run")
    make_run(tmp_path / "group" / "run" / "inside")  # a run holds no runs
    evaluation = tmp_path / "group" / "evaluation"
    (evaluation / ".hydra").mkdir(parents=True)
    (evaluation / ".hydra" / "config.yaml").write_text("{}")
    (evaluation / "eval.json").write_text("{}")
    (tmp_path / "summary.json").write_text("{}")
    assert report_data.find_runs(tmp_path) == [tmp_path / "group" / "run"]
    with pytest.raises(ValueError, match=r"neither a run folder nor one that holds runs, figures/\*\.png"):
        write_report(evaluation)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        write_report(tmp_path / "nowhere")
    assert report.MAX_EMBEDDED_MB > 1


@given(st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_band_is_students_interval(n_seeds: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.4, 0.6, (n_seeds, 3))
    curves = [(np.array([10, 20, 30]), row) for row in values]
    curves[0] = (np.array([5, 10, 20, 30, 40]), np.array([0.9, *values[0], 0.9]))  # steps the others have not reached
    steps, mean, low, high = report_figures.mean_curve(curves)
    assert steps.tolist() == [10, 20, 30]
    expected = stats.t.interval(0.95, n_seeds - 1, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(low, np.clip(expected[0], 0, 1))
    np.testing.assert_allclose(high, np.clip(expected[1], 0, 1))


def test_the_mean_of_one_curve_and_of_disjoint_ones() -> None:
    curve = (np.array([1, 2]), np.array([0.1, 0.2]))
    steps, mean, low, _ = report_figures.mean_curve([curve])
    assert mean.tolist() == [0.1, 0.2]
    assert np.isnan(low).all()
    assert len(report_figures.mean_curve([curve, (np.array([3]), np.array([0.5]))])[0]) == 0
    assert report_figures.arm_curves({"a": [curve, (np.array([3]), np.array([0.5]))]}) is not None
    assert report_figures.arm_curves({"a": [(steps[:0], mean[:0])]}) is None


def _evaluated_with(run: Path, **changes: Any) -> None:
    """Change the settings of a run's final evaluation."""
    for name, key in (("summary.json", "evaluation_settings"), ("media/eval.json", "settings")):
        content = json.loads((run / name).read_text())
        content[key] |= changes
        (run / name).write_text(json.dumps(content))


def test_evaluations_that_differ_are_not_pooled(make_run, tmp_path: Path) -> None:
    chosen = {"inference_coupling": "warm", "noise_scale": 0.8}
    for seed in (0, 1):
        make_run(tmp_path / f"usual_{seed}", "Independent()", seed)
        _evaluated_with(make_run(tmp_path / f"warm_{seed}", "Independent()", seed), **chosen)
    make_run(tmp_path / "begun", seed=2, finished=False)
    found = page(tmp_path)
    told = "evaluation.inference_coupling=warm, evaluation.noise_scale=0.8"
    assert re.findall(r"<h3>(.*?)</h3>", found.html) == [told]
    text = " ".join(found.text.split())
    assert "legacy=True, bf16, noise_seed=3; mean" in text
    assert "legacy=True, bf16, inference_coupling=warm, noise_scale=0.8, noise_seed=3; mean" in text
    labels = [chart.get("aria-label") for chart in found.charts()]
    assert labels == [
        "coverage while training, by arm",
        "max coverage, Independent()",
        f"max coverage, Independent(), {told}",
    ]
    # What was trained is the same.
    assert re.findall(r"</i> (.*?) <span", found.html) == ["Independent()", "KNN(k=2)"]
    assert text.count("max coverage of 40 episodes") == 2
    assert f"warm_0 Independent(), {told} 0 60 finished" in text
    of_one = " ".join(page(tmp_path / "warm_0").text.split())
    assert "legacy=True, bf16, inference_coupling=warm, noise_scale=0.8, noise_seed=3, weights" in of_one


def test_settings_of_the_trainer_are_named_once_however_they_were_given(make_run, tmp_path: Path) -> None:
    make_run(tmp_path / "usual", **{"batch_size": 64, "trainer.batch_size": "${batch_size}"})
    make_run(tmp_path / "above", **{"batch_size": 32, "trainer.batch_size": "${batch_size}"})
    make_run(tmp_path / "below", **{"batch_size": 64, "trainer.batch_size": 16})
    runs = [report_data.read_run(tmp_path / name) for name in ("usual", "above", "below")]
    assert report_data.context_labels(runs) == [
        "batch_size=64",
        "batch_size=32",
        "batch_size=64, trainer.batch_size=16",
    ]
