"""The benchmark script end to end at toy sizes, and the memory bounds measured with its own meter."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from immiscible_policy.coupling import KNN, LinearAssignment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As when it is run: the sections' own modules lie beside the script.
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def section(benchmark):
    return benchmark.benchmark_coupling


def test_peak_memory_counts_what_is_held_at_once(section):
    entries = 1 << 18

    def one_after_the_other():
        for _ in range(4):
            torch.zeros(entries)

    def together():
        return [torch.zeros(entries) for _ in range(4)]

    assert section.peak_memory(one_after_the_other) == pytest.approx(4 * entries, rel=0.01)
    assert section.peak_memory(together) == pytest.approx(16 * entries, rel=0.01)


@pytest.mark.parametrize("metric", ["l2", "inner"])
@pytest.mark.parametrize("k", [2, 8, 64])
def test_exact_knn_needs_two_buffers_whatever_k(section, metric, k):
    """The draw and the result, plus a few (B, k) scalars."""
    rows, dims = 64, 3072
    data = torch.randn(rows, dims)
    peak = section.peak_memory(lambda: KNN(k, metric)(data))
    assert peak <= 4 * (2 * rows * dims) + 64 * rows * (k + 16)


@pytest.mark.parametrize("metric", ["l2", "inner"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "buffers"), [(torch.float32, 2), (torch.float16, 3)])
def test_exact_knn_extra_memory_beyond_the_result(section, dtype, buffers, masked, metric):
    """At most 2*B*D floats with a mask too; half precision adds the float32 copies."""
    rows, dims = 64, 3072
    data, noise = torch.randn(rows, dims, dtype=dtype), torch.randn(rows, dims, dtype=dtype)
    mask = torch.rand(rows, dims) < 0.8 if masked else None
    peak = section.peak_memory(lambda: KNN(8, metric)(data, noise, mask=mask))
    result = rows * dims * data.element_size()
    assert peak - result <= 4 * (buffers * rows * dims) + 64 * rows * 24


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean", "l1"])
def test_assignment_never_forms_all_differences(section, metric):
    rows, dims = 64, 3072
    data, noise = torch.randn(rows, dims), torch.randn(rows, dims)
    peak = section.peak_memory(lambda: LinearAssignment(metric)(data, noise))
    assert peak < 4 * (3 * rows * dims + 8 * rows * rows)


def test_published_forms_do_what_they_say(section):
    torch.manual_seed(0)
    data = torch.randn(2_000, 32)
    distance = (data - section.published_knn(data, 4)).norm(dim=1).mean()
    ours = (data - KNN(4)(data)).norm(dim=1).mean()
    assert float(distance) == pytest.approx(float(ours), rel=0.01)
    data, noise = data[:64], torch.randn(64, 32)
    published = section.published_assignment(data, noise)
    assert torch.equal(published.sort(dim=0).values, noise.sort(dim=0).values)
    optimal = LinearAssignment("l2")(data, noise)
    assert float((data - published).norm(dim=1).sum()) == pytest.approx(
        float((data - optimal).norm(dim=1).sum()), rel=2e-3
    )


def test_published_assignment_in_blocks_is_the_same(section, monkeypatch):
    data, noise = torch.randn(50, 16), torch.randn(50, 16)
    whole = section.published_assignment(data, noise)
    monkeypatch.setattr(section, "PUBLISHED_BLOCK_BYTES", 7 * 2 * noise.numel())
    assert torch.equal(section.published_assignment(data, noise), whole)


def test_image_like_data_has_the_spread_of_images(section):
    torch.manual_seed(0)
    images = section.image_like(256, 3072)
    assert images.abs().max() <= 1
    assert 0.4 < float(images.std()) < 0.6
    leading = torch.linalg.svdvals(images - images.mean(0)).square()
    assert 0.2 < float(leading[0] / leading.sum()) < 0.6


def test_script_prints_a_table_and_writes_json(benchmark, section, monkeypatch, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    monkeypatch.setattr(section, "PREFETCH_SIZE", (16, 8))
    sizes = ["--knn-sizes", "8,4,2", "--assignment-sizes", "4,3", "--solver-sizes", "32,6"]
    arguments = ["--only", "coupling", "--rounds", "2", *sizes]
    assert benchmark.main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(output.read_text())["coupling"]
    assert {row["case"] for row in rows} == {"(8, 4, 2)", "(4, 3)", "(32, 6)", "(16, 8)"}
    for row in rows:
        assert row["contender"] in printed
        assert row.get("median_s", 1) > 0
        assert row.get("peak_bytes", 1) > 0
    gains = {row["contender"]: row["gain"] for row in rows if "gain" in row}
    assert gains["solver exact"] == pytest.approx(1.0, abs=1e-6)
    assert 0.5 < gains["solver greedy"] <= 1.0 + 1e-6
    held_against_ours = [row for row in rows if "time_over_ours" in row]
    assert {row["contender"] for row in held_against_ours} == {"published form"}
    assert len(held_against_ours) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--knn-sizes", "8,4"], "expected 3 positive integers"),
        (["--assignment-sizes", "8,0"], "expected 2 positive integers"),
        (["--only", "nothing"], "invalid choice"),
        (["--rounds", "0"], "must be >= 1"),
        (["--seed", "-1"], "must be >= 0"),
        (["--output", "no/such/folder/x.json"], "does not exist"),
    ],
)
def test_bad_options_are_refused_before_any_work(benchmark, arguments, message, capsys):
    with pytest.raises(SystemExit) as refused:
        benchmark.main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_help_teaches():
    command, environment = [sys.executable, str(SCRIPT), "--help"], os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for part in ("--only", "--output", "published form", "examples"):
        assert part in run.stdout
