"""The command that analyses couplings, from end to end at toy size."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

RANDOM = np.random.default_rng(0)


def test_an_array_with_labels_and_every_section(run_script, tmp_path, capsys):
    np.savez("toy.npz", data=RANDOM.normal(size=(64, 4)), labels=np.arange(64) % 2)
    status = run_script(
        "analyze_coupling", "--data", "toy.npz", "--couplings", "Independent", "KNN(k=2, metric='inner')",
        "Mixture(LinearAssignment(), p=0.5)", "--batch-size", "8", "16", "--noises", "64", "--clusters", "3",
        "--cluster-noises", "20", "--kl", "64", "--tsne", "2", "--output", "out",
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "analysis.json", "clusters.png", "statistics.png", "table.md", "tsne.png",
    ]  # fmt: skip
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    names = ["Independent()", "KNN(k=2, metric='inner')", "Mixture(LinearAssignment(), p=0.5)"]
    rows = [f"{name}, B={size}" for size in (8, 16) for name in names]
    assert list(analysis["rows"]) == list(analysis["clusters"]) == list(analysis["gaussian_fit"]) == rows
    assert analysis["command"].startswith("python ")
    assert "\"KNN(k=2, metric='inner')\"" in analysis["command"]
    assert set(analysis["versions"]) == {"immiscible-policy", "torch", "numpy", "scipy"}
    assert analysis["data"] == "toy.npz: 64 data of shape (4,)"
    assert (tmp_path / "out" / "table.md").read_text() in said.out


def test_cifar10_from_a_folder(run_script, tmp_path, capsys):
    entries = []
    for pixels in RANDOM.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        entries.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"img": entries, "label": [i % 10 for i in range(20)]}), tmp_path / "train-0.parquet")
    arguments = ("--data", "cifar10", "--couplings", "KNN(8)", "--batch-size", "5", "--noises", "40")
    assert run_script("analyze_coupling", *arguments, "--path", ".", "--normalize", "standardized") == 0
    said = capsys.readouterr().out
    assert "CIFAR-10: 20 train images, normalised: standardized" in said
    row = json.loads((tmp_path / "outputs" / "coupling" / "analysis.json").read_text())["rows"]["KNN(8)"]
    assert row["distance_change"]["high"] < -1
    assert run_script("analyze_coupling", *arguments) == 1
    assert "no CIFAR-10 at data/cifar10" in capsys.readouterr().err


def test_pusht_windows(run_script, tmp_path, make_store, capsys):
    make_store(tmp_path / "replay.zarr", lengths=(30, 30, 40))
    arguments = ("--data", "pusht", "--path", "replay.zarr", "--batch-size", "8", "--noises", "80")
    assert run_script("analyze_coupling", *arguments, "--couplings", "KNN") == 0
    said = capsys.readouterr().out
    assert "training windows of 16 actions from the 3 episodes of replay.zarr" in said
    assert "| `KNN(k=2)` |" in said
    assert "along predicted data" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "toy.npy", "--couplings", "KNM(2)"), "'KNM' is none of the couplings: KNN, "),
        (("--data", "imagenet"), "--data must be pusht, cifar10, or a path to a .npy or .npz file, got 'imagenet'"),
        (("--data", "absent.npy"), "absent.npy cannot be read"),
        (("--data", "toy.npy", "--batch-size", "99"), "batch_size must be from 2 to the 6 data, got 99"),
        (
            ("--data", "toy.npy", "--batch-size", "3", "--clusters", "4"),
            "batch_size must be from 4 to the 6 data, got 3",
        ),
        (("--data", "pusht", "--path", "absent.zarr"), "no demonstrations at "),
    ],
)
def test_errors_are_one_line(run_script, capsys, arguments, message):
    np.save("toy.npy", RANDOM.normal(size=(6, 2)))
    assert run_script("analyze_coupling", *arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_help_teaches(run_script, capsys):
    assert run_script("analyze_coupling", "--help") == 0
    said = capsys.readouterr().out
    for part in ("examples", "alignment", "KNN", "SeedCache", "cifar10", "--clusters"):
        assert part in said
