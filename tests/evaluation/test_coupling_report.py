"""The report of an analysis: what stands in its tables and files."""

import json

import pytest
import torch

from immiscible_policy.coupling import KNN, Independent, LinearAssignment
from immiscible_policy.coupling.divergence import gaussian_fit_bias
from immiscible_policy.coupling.miscibility import independent_distance, noise_clusters
from immiscible_policy.coupling.survey import survey
from immiscible_policy.evaluation.coupling_report import analyze, markdown, tracked_data, write_report
from immiscible_policy.files import write_text

DATA = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
COUPLINGS = {"Independent()": Independent(), "KNN(k=2)": KNN(k=2)}


def test_an_analysis_is_survey_clusters_and_fit():
    analysis = analyze(DATA, COUPLINGS, LABELS, [10], 80, 3, n_tracked=5, n_cluster_noises=40, n_fit_noises=50)
    expected = survey(DATA, COUPLINGS, LABELS, 10, 8, 3).as_dict()
    assert str(analysis["rows"]) == str(expected["rows"])
    assert analysis["settings"] == [expected["settings"]]
    tracked = tracked_data(60, 5, 3)
    clusters = noise_clusters(KNN(k=2), DATA, tracked, 40, 10, LABELS, 3)
    row = analysis["clusters"]["KNN(k=2)"]
    assert row["distance"]["mean"] == clusters.distance().mean
    assert row["distance_at_10000"]["mean"] == clusters.distance(10_000).mean
    assert row["independent"] == independent_distance(4, 40)
    assert len(row["pair_distances"]) == 10
    fit = analysis["gaussian_fit"]["KNN(k=2)"]
    assert (fit["n"], fit["bias"]) == (50, gaussian_fit_bias(50, 4))
    assert fit["excess"] == pytest.approx(fit["divergence"] - fit["bias"])


def test_several_batch_sizes_have_rows_of_their_own():
    analysis = analyze(DATA, {"A": LinearAssignment()}, None, [5, 20], 100)
    assert list(analysis["rows"]) == ["A, B=5", "A, B=20"]
    assert [one["n_batches"] for one in analysis["settings"]] == [20, 5]
    assert analysis["rows"]["A, B=20"]["alignment"]["mean"] > analysis["rows"]["A, B=5"]["alignment"]["mean"]
    assert analysis["clusters"] == {}
    text = markdown(analysis)
    assert text.startswith("20 batches of 5 or 5 batches of 20 of 60 data (4, mean norm ")
    assert "explained by condition" not in text


def test_tables_state_numbers_intervals_and_what_is_missing():
    analysis = analyze(DATA, COUPLINGS, LABELS, [10], 80, n_tracked=4, n_cluster_noises=30, n_fit_noises=60)
    text = markdown(analysis)
    row = analysis["rows"]["KNN(k=2)"]["alignment"]
    assert f"| {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] |" in text
    plain = next(line for line in text.splitlines() if line.startswith("| `Independent()`"))
    assert "| n/a |" in plain  # no share of a fall that is none
    assert plain.endswith("| 0.000 |")
    assert "| class shift | p of class shift |" in text
    fit = analysis["gaussian_fit"]["KNN(k=2)"]
    assert f"| `KNN(k=2)` | {fit['divergence']:.2f} | {fit['excess']:+.2f} |" in text
    clusters = analysis["clusters"]["KNN(k=2)"]
    shown = f"{clusters['distance']['mean']:.2f} ± {clusters['distance']['deviation']:.2f}"
    assert f"| `KNN(k=2)` | {shown} |" in text
    assert "| 30 noises | as 10,000 noises would show it | without sampling noise |" in text
    published = {**analysis, "clusters": {"KNN(k=2)": {**clusters, "n_noises": 10_000}}}
    assert "| coupling | 10,000 noises | without sampling noise |" in markdown(published)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_files_are_written_whole_and_read_back(tmp_path):
    analysis = analyze(DATA, COUPLINGS, LABELS, [10], 80, n_tracked=4, n_cluster_noises=30)
    written = write_report(tmp_path / "new", analysis)
    assert [path.name for path in written] == ["analysis.json", "table.md", "statistics.png", "clusters.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in written)
    read = json.loads(written[0].read_text())
    assert read["rows"]["Independent()"]["from_shorter_noise"]["mean"] is None
    # What was read makes the same tables as what was measured.
    assert markdown(read) == written[1].read_text() == markdown(analysis)
    without = write_report(tmp_path / "other", analyze(DATA, COUPLINGS, None, [10], 80))
    assert [path.name for path in without] == ["analysis.json", "table.md", "statistics.png"]


def test_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"


def test_tracked_data_are_different_and_decided_by_the_seed():
    tracked = tracked_data(20, 8, 1)
    assert tracked.tolist() == sorted(set(tracked.tolist()))
    assert torch.equal(tracked, tracked_data(20, 8, 1))
    assert not torch.equal(tracked, tracked_data(20, 8, 2))
    for number in (1, 21):
        with pytest.raises(ValueError, match=f"tracked data must number from 2 to 20, got {number}"):
            tracked_data(20, number, 0)


@pytest.mark.parametrize("sizes", [[], [0], [10, 90]])
def test_batches_must_fit_the_noises(sizes):
    with pytest.raises(ValueError, match="n_noises must be at least a batch, got 80 noises in batches of"):
        analyze(DATA, COUPLINGS, None, sizes, 80)
