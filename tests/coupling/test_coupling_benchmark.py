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
    return module


def test_peak_memory_counts_what_is_held_at_once(benchmark):
    entries = 1 << 18

    def one_after_the_other():
        for _ in range(4):
            torch.zeros(entries)

    def together():
        return [torch.zeros(entries) for _ in range(4)]

    assert benchmark.peak_memory(one_after_the_other) == pytest.approx(4 * entries, rel=0.01)
    assert benchmark.peak_memory(together) == pytest.approx(16 * entries, rel=0.01)


@pytest.mark.parametrize("metric", ["l2", "inner"])
@pytest.mark.parametrize("k", [2, 8, 64])
def test_exact_knn_needs_two_buffers_whatever_k(benchmark, metric, k):
    """The draw and the result, plus a few (B, k) scalars."""
    rows, dims = 64, 3072
    data = torch.randn(rows, dims)
    peak = benchmark.peak_memory(lambda: KNN(k, metric)(data))
    assert peak <= 4 * (2 * rows * dims) + 64 * rows * (k + 16)


@pytest.mark.parametrize("metric", ["l2", "inner"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "buffers"), [(torch.float32, 2), (torch.float16, 3)])
def test_exact_knn_extra_memory_beyond_the_result(benchmark, dtype, buffers, masked, metric):
    """At most 2*B*D floats with a mask too; half precision adds the float32 copies."""
    rows, dims = 64, 3072
    data, noise = torch.randn(rows, dims, dtype=dtype), torch.randn(rows, dims, dtype=dtype)
    mask = torch.rand(rows, dims) < 0.8 if masked else None
    peak = benchmark.peak_memory(lambda: KNN(8, metric)(data, noise, mask=mask))
    result = rows * dims * data.element_size()
    assert peak - result <= 4 * (buffers * rows * dims) + 64 * rows * 24


@pytest.mark.parametrize("metric", ["l2", "sqeuclidean", "l1"])
def test_assignment_never_forms_all_differences(benchmark, metric):
    rows, dims = 64, 3072
    data, noise = torch.randn(rows, dims), torch.randn(rows, dims)
    peak = benchmark.peak_memory(lambda: LinearAssignment(metric)(data, noise))
    assert peak < 4 * (3 * rows * dims + 8 * rows * rows)


def test_published_forms_do_what_they_say(benchmark):
    torch.manual_seed(0)
    data = torch.randn(2_000, 32)
    distance = (data - benchmark.published_knn(data, 4)).norm(dim=1).mean()
    ours = (data - KNN(4)(data)).norm(dim=1).mean()
    assert float(distance) == pytest.approx(float(ours), rel=0.01)
    data, noise = data[:64], torch.randn(64, 32)
    published = benchmark.published_assignment(data, noise)
    assert torch.equal(published.sort(dim=0).values, noise.sort(dim=0).values)
    optimal = LinearAssignment("l2")(data, noise)
    assert float((data - published).norm(dim=1).sum()) == pytest.approx(
        float((data - optimal).norm(dim=1).sum()), rel=2e-3
    )


def test_script_prints_a_table_and_writes_json(benchmark, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    arguments = ["--only", "coupling", "--rounds", "2", "--knn-sizes", "8,4,2", "--assignment-sizes", "4,3"]
    assert benchmark.main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(output.read_text())["coupling"]
    assert {row["case"] for row in rows} == {"(8, 4, 2)", "(4, 3)"}
    for row in rows:
        assert row["contender"] in printed
        assert row["median_s"] > 0
        assert row["peak_bytes"] > 0
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
