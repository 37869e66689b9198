"""Diagnosis: zero where nothing was coupled, known values where something was."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_policy.coupling import KNN, Diagnosis, Independent, LinearAssignment, diagnose
from immiscible_policy.coupling.diagnose import expected_distance


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("dims", [1, 2, 32, 3072])
@pytest.mark.parametrize("norm", [0.0, 0.1, 4.0, 27.7])
def test_expected_distance_against_the_noncentral_chi_law(dims, norm):
    found = float(expected_distance(torch.tensor([norm]), torch.tensor([dims])))
    law = stats.chi2(dims) if norm == 0 else stats.ncx2(dims, norm**2)
    centre, spread = law.mean(), law.std()
    grid = np.linspace(max(0.0, centre - 12 * spread), centre + 40 * spread, 100_001)
    survival = law.sf(grid)
    roots = np.sqrt(grid)
    # E sqrt(Y) = int P(sqrt(Y) > s) ds, from the grid's first point on, where the survival is 1.
    expected = roots[0] + np.sum((survival[1:] + survival[:-1]) / 2 * np.diff(roots))
    assert found == pytest.approx(expected, rel=2e-5)


def test_expected_distance_of_a_plain_normal_vector():
    dims = torch.tensor([1, 2, 3, 32])
    expected = [math.sqrt(2) * math.gamma((d + 1) / 2) / math.gamma(d / 2) for d in (1, 2, 3, 32)]
    assert expected_distance(torch.zeros(4), dims).numpy() == pytest.approx(np.array(expected), rel=1e-10)


def test_expected_distance_far_away():
    """For |x| >> D: |x - n| = |x| - g + (D-1) / (2|x|) + ..."""
    norms = torch.tensor([1e3, 1e4, 1e6])
    found = expected_distance(norms, torch.tensor([32, 32, 32]))
    assert (found - norms).numpy() == pytest.approx((31 / (2 * norms)).numpy(), rel=1e-3, abs=1e-5)


def test_independent_noise_reads_as_nothing():
    data = 0.5 * normal(20_000, 32)
    result = diagnose(data, Independent()(data, generator=generator(1)), condition=data[:, :3])
    assert result.distance_change == pytest.approx(0.0, abs=0.4)
    assert result.alignment == pytest.approx(0.0, abs=4 / math.sqrt(20_000))
    assert result.noise_mean == pytest.approx(0.0, abs=4 / math.sqrt(640_000))
    assert result.noise_variance == pytest.approx(1.0, abs=4 * math.sqrt(2 / 640_000))
    assert result.noise_norm == pytest.approx(1.0, abs=4 * math.sqrt(2 / 640_000))
    assert result.reuse == 0.0
    assert result.data_skew == pytest.approx(0.0, abs=4 * math.sqrt(2) / 20_000)
    assert result.condition_skew == pytest.approx(0.0, abs=4 * math.sqrt(2 * 3 / 32) / 20_000)


@pytest.mark.parametrize(
    ("k", "change", "alignment", "norm_ratio"),
    [(2, -6.7, 0.400, 0.902), (8, -16.6, 0.978, 0.780), (64, -26.9, 1.551, 0.683)],
)
def test_knn_values_of_the_policy_dimension(k, change, alignment, norm_ratio):
    data = torch.nn.functional.normalize(normal(50_000, 16, 2).flatten(1), dim=1) * 4
    result = diagnose(data, KNN(k)(data, generator=generator(1)))
    assert result.distance_change == pytest.approx(change, abs=0.3)
    assert result.alignment == pytest.approx(alignment, abs=0.02)
    assert result.noise_norm == pytest.approx(norm_ratio, abs=0.006)
    # x is uniform on a sphere of radius 4 in 32 dimensions: E[n|x] = alignment e, so R^2 D var = alignment^2.
    assert result.data_skew == pytest.approx(alignment**2 / (32 * result.noise_variance), rel=0.1)


def test_assignment_keeps_the_noise_but_not_the_condition():
    """A permutation: norm and variance are exactly those of the draw, the skew is not."""
    data = 0.5 * normal(2_048, 32)
    labels = (data[:, 0] > 0).long()
    drawn = normal(2_048, 32, seed=1)
    before, after = diagnose(data, drawn, labels), diagnose(data, LinearAssignment()(data, drawn), labels)
    for name in ("noise_mean", "noise_variance", "noise_norm"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-9)
    assert after.reuse == 0.0
    assert after.distance_change < -20
    assert abs(before.data_skew) < 0.02
    assert after.data_skew > 0.15
    assert after.condition_skew > before.condition_skew + 0.005


def test_labels_are_classes_and_not_numbers():
    labels = torch.arange(3_000) % 3
    # Classes 0 and 2 share a mean: no line through the label numbers explains it.
    noise = normal(3_000, 4) + (labels == 1)[:, None] * 1.5
    data = normal(3_000, 4, seed=1)
    expected = (1.5**2 * 2 / 9) / (1 + 1.5**2 * 2 / 9)
    assert diagnose(data, noise, labels).condition_skew == pytest.approx(expected, abs=0.03)
    assert diagnose(data, noise, labels.float()).condition_skew == pytest.approx(0.0, abs=0.01)
    assert diagnose(data, noise, labels == 1).condition_skew == pytest.approx(expected, abs=0.03)


def test_reuse_counts_rows_that_repeat():
    noise = normal(8, 3)
    noise[5], noise[6], noise[7] = noise[0], noise[0], noise[1]
    assert diagnose(torch.ones(8, 3), noise).reuse == pytest.approx(3 / 8)


def test_mask_leaves_padding_out():
    data, noise = normal(500, 6), normal(500, 6, seed=1)
    mask = torch.zeros(6, dtype=torch.bool)
    mask[:4] = True
    poisoned, spoiled = data.clone(), noise.clone()
    poisoned[:, 4:], spoiled[:, 4:] = float("nan"), 1e6
    condition = data[:, 5]
    masked = diagnose(poisoned, spoiled, condition, mask).as_dict()
    dense = diagnose(data[:, :4], noise[:, :4], condition).as_dict()
    assert masked == pytest.approx(dense, rel=1e-9, abs=1e-12)


def test_rows_without_direction_or_entries_are_left_out():
    data, noise = normal(64, 4), normal(64, 4, seed=1)
    data[::2] = 0.0
    mask = torch.ones(64, 1, dtype=torch.bool)
    mask[:10] = False
    result = diagnose(data, noise, mask=mask)
    used = slice(11, None, 2)
    expected = ((data * noise).sum(1) / data.norm(dim=1))[used].mean()
    assert result.alignment == pytest.approx(float(expected), rel=1e-5)
    assert result.noise_norm == pytest.approx(float(noise[10:].square().mean()), rel=1e-5)


def test_undefined_values_are_nan_in_memory_and_null_in_json():
    result = diagnose(torch.zeros(3, 2), normal(3, 2))
    assert math.isnan(result.alignment)
    assert math.isnan(result.condition_skew)
    assert math.isnan(result.data_skew)
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert read["alignment"] is None
    assert set(read) == {field.name for field in dataclasses.fields(Diagnosis)}
    assert "n/a" in str(result)


def test_text_names_every_field():
    text = str(diagnose(normal(32, 4), normal(32, 4, seed=1), condition=normal(32, seed=2)))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == [field.name for field in dataclasses.fields(Diagnosis)]
    assert "%" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"noise": None}, TypeError, r"noise must be a torch.Tensor"),
        ({"noise": torch.zeros(4, 2)}, ValueError, r"noise must have the shape of data"),
        ({"noise": torch.full((4, 3), math.nan)}, ValueError, r"noise must be finite"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, ValueError, r"data must hold at least one valid entry"),
        ({"condition": torch.full((4, 2), math.nan)}, ValueError, r"condition must be finite"),
        ({"condition": torch.zeros(3)}, ValueError, r"condition must have one row per sample"),
        ({"data": torch.zeros(0, 3), "noise": torch.zeros(0, 3)}, ValueError, r"at least one valid entry"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diagnose(**{"data": torch.zeros(4, 3), "noise": torch.zeros(4, 3), **arguments})
