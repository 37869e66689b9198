"""A survey's numbers against direct computation, and against what is known of each coupling."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_policy.coupling import KNN, Independent, LinearAssignment, Mixture, SeedCache, Warmup, diagnose
from immiscible_policy.coupling.skew import explained_share, predicted_data
from immiscible_policy.coupling.survey import STATISTICS, Estimate, survey


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Recorder(KNN):
    """KNN that keeps what it was called with."""

    calls: list = []  # noqa: RUF012 - shared by the copies that a survey makes

    def _couple(self, data, noise, context):
        result = super()._couple(data, noise, context)
        self.calls.append((data, result, context))
        return result


def test_numbers_are_those_of_a_direct_computation():
    data, condition = normal(120, 4, 2), normal(120, 3, seed=1)
    data[:, 0, 0] += 2 * condition[:, 0]
    Recorder.calls.clear()
    result = survey(data, {"one": Recorder(k=3)}, condition, batch_size=20, n_batches=12, seed=5)
    row, calls = result.rows["one"], Recorder.calls
    assert len(calls) == 12
    diagnoses = [diagnose(x, n).as_dict() for x, n, _ in calls]
    for name in ("distance_change", "alignment", "noise_mean", "noise_variance", "noise_norm"):
        values = [d[name] for d in diagnoses]
        low, high = stats.t.interval(0.95, 11, np.mean(values), stats.sem(values))
        assert (row[name].mean, row[name].low, row[name].high) == pytest.approx((np.mean(values), low, high), rel=1e-5)
        assert row[name].n == 12
    x, n = (torch.cat([call[i].flatten(1) for call in calls]).double() for i in (0, 1))
    fall = 8 - n.square().sum(1).mean()
    assert row["from_shorter_noise"].mean == pytest.approx(float(fall / (fall + 2 * (x * n).sum(1).mean())), rel=1e-6)
    left_out = []
    for i in range(12):
        kept = torch.arange(240) // 20 != i
        fall = 8 - n[kept].square().sum(1).mean()
        left_out.append(float(fall / (fall + 2 * (x * n)[kept].sum(1).mean())))
    half = stats.t.ppf(0.975, 11) * math.sqrt(11 / 12 * np.sum((left_out - np.mean(left_out)) ** 2))
    share = row["from_shorter_noise"]
    assert (share.mean - share.low, share.high - share.mean) == pytest.approx((half, half), rel=1e-4)
    predicted = predicted_data(data, condition)
    predicted /= predicted.norm(dim=1, keepdim=True)
    indices = torch.cat([context.indices for _, _, context in calls])
    along = (predicted[indices] * n).sum(1).mean()
    assert row["condition_alignment"].mean == pytest.approx(float(along), rel=1e-5)
    assert torch.equal(torch.cat([context.condition for _, _, context in calls]), condition[indices])
    assert torch.equal(x.float(), data[indices].flatten(1))
    # Ten groups of one or two batches.
    assert result.settings["groups_for_regressions"] == 10
    bounds = [round(i * 12 / 10) * 20 for i in range(11)]
    shares = []
    for begin, end in itertools.pairwise(bounds):
        everything = torch.ones(end - begin, 8, dtype=torch.bool)
        shares.append(explained_share(condition[indices[begin:end]], n[begin:end], everything))
    assert row["condition_skew"].mean == pytest.approx(np.mean(shares), rel=1e-6)
    assert row["condition_skew"].n == 10
    bound = [s * float(n[b:e].var(0).sum()) / 2 for s, b, e in zip(shares, bounds[:-1], bounds[1:], strict=True)]
    assert row["condition_divergence"].mean == pytest.approx(np.mean(bound), rel=1e-5)
    assert result.settings["mean_norm_of_data"] == pytest.approx(float(data.flatten(1).norm(dim=1).mean()), rel=1e-6)


def test_independent_noise_reads_as_nothing_and_knn_as_what_it_is():
    data = 0.5 * normal(2_000, 32)
    result = survey(data, [Independent(), KNN(k=2, metric="inner")], data[:, :4], batch_size=100, n_batches=40)
    plain, inner = result.rows["Independent()"], result.rows["KNN(k=2, metric='inner')"]
    for name, neutral in (("alignment", 0), ("noise_mean", 0), ("noise_variance", 1), ("noise_norm", 1)):
        spread = (plain[name].high - plain[name].low) / 4
        assert plain[name].mean == pytest.approx(neutral, abs=4 * spread)
    for name in ("distance_change", "data_skew", "condition_skew", "condition_alignment", "condition_divergence"):
        spread = (plain[name].high - plain[name].low) / 4
        assert plain[name].mean == pytest.approx(0, abs=4 * spread)
    assert math.isnan(plain["from_shorter_noise"].mean)
    assert (plain["divergence"].mean, plain["reuse"].mean) == (0.0, 0.0)
    assert plain["ks_rejected"].mean < 0.25
    assert inner["alignment"].mean == pytest.approx(0.5642, abs=0.04)
    assert inner["alignment"].low < 0.5642 < inner["alignment"].high
    assert inner["from_shorter_noise"].mean == pytest.approx(0.0, abs=0.1)
    assert inner["divergence"].mean == pytest.approx(0.1931, abs=1e-4)
    assert inner["condition_alignment"].low > 0
    # The condition tells 4 of 32 coordinates; its part of the alignment.
    assert inner["condition_skew"].mean == pytest.approx(0.5642**2 * (4 / 32) / 32, rel=0.6)
    assert inner["condition_divergence"].mean < inner["divergence"].mean


def test_shorter_noise_makes_two_thirds_of_the_fall_at_image_sizes():
    """The cost's variance is 2D from the norm and 4|x|^2 from the alignment; here |x|^2 = D/4."""
    result = survey(0.5 * normal(400, 3_072), [KNN(k=8)], batch_size=100, n_batches=4)
    assert result.rows["KNN(k=8)"]["from_shorter_noise"].mean == pytest.approx(2 / 3, abs=0.06)


def test_labels_have_a_class_shift_and_vectors_none():
    labels = torch.arange(600) % 3
    data = normal(600, 8)
    data[:, 0] += 3.0 * (labels - 1)
    rows = survey(data, [Independent(), LinearAssignment("sqeuclidean")], labels, 50, 40).rows
    plain, assigned = rows["Independent()"], rows["LinearAssignment(metric='sqeuclidean')"]
    assert plain["class_p_value"].mean > 1e-3
    assert assigned["class_p_value"].mean < 1e-9
    assert assigned["class_shift"].mean > 0.5
    assert assigned["condition_skew"].low > plain["condition_skew"].high
    vectors = survey(data, [Independent()], data[:, :2], 50, 10).rows["Independent()"]
    assert math.isnan(vectors["class_shift"].mean)
    without = survey(data, [Independent()], None, 50, 10).rows["Independent()"]
    assert math.isnan(without["condition_skew"].mean)
    assert list(without) == list(STATISTICS)


def test_couplings_see_the_same_batches_and_draws_and_are_left_alone():
    data = normal(50, 6)
    warm = Warmup(KNN(k=2), start=3)
    cache = SeedCache(n_caches=2)
    rows = survey(data, {"a": Independent(), "b": Independent(), "warm": warm, "cache": cache}, None, 10, 5).rows
    # By text, since NaN differs from itself.
    assert str(rows["a"]) == str(rows["b"])
    assert warm.calls == 0
    assert cache.state_dict() == SeedCache(n_caches=2).state_dict()
    remembered = survey(data, {"one": SeedCache(n_caches=1)}, None, 10, 15).rows["one"]
    assert remembered["reuse"].mean == pytest.approx(2 / 3)  # three epochs of the same fifty noises
    timed = survey(data, [Mixture(KNN(k=2), p=(0.0, 1.0))], None, 10, 5).rows
    assert next(iter(timed.values()))["alignment"].n == 5


def test_the_seed_decides():
    first, again, other = (
        survey(normal(40, 3), [KNN(k=2)], batch_size=10, n_batches=4, seed=seed).rows["KNN(k=2)"]["alignment"].mean
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_data_sets_of_rows_and_of_pairs_are_read():
    data, labels = normal(30, 2, 2), torch.arange(30) % 2
    pairs = torch.utils.data.TensorDataset(data, labels)
    expected = survey(data, [KNN(k=2)], labels, 10, 3)
    assert str(survey(pairs, [KNN(k=2)], None, 10, 3).as_dict()) == str(expected.as_dict())
    assert str(survey(list(data), [KNN(k=2)], labels, 10, 3).as_dict()) == str(expected.as_dict())
    numpy_rows = [(row.numpy(), int(label)) for row, label in zip(data, labels, strict=True)]
    assert str(survey(numpy_rows, [KNN(k=2)], None, 10, 3).as_dict()) == str(expected.as_dict())


def test_half_precision_is_measured_in_float32():
    result = survey(normal(40, 3).half(), [KNN(k=2)], batch_size=10, n_batches=4)
    exact = survey(normal(40, 3).half().float(), [KNN(k=2)], batch_size=10, n_batches=4)
    assert str(result.rows) == str(exact.rows)


def test_progress_is_told_of_each_coupling():
    seen = []

    def track(steps, name):
        seen.append((name, len(steps)))
        return steps

    survey(normal(20, 2), {"first": Independent(), "second": KNN()}, batch_size=5, n_batches=3, track=track)
    assert seen == [("first", 3), ("second", 3)]


def test_one_batch_has_no_interval_but_numbers():
    result = survey(normal(20, 2), [KNN(k=4)], batch_size=20, n_batches=1)
    estimate = result.rows["KNN(k=4)"]["alignment"]
    assert estimate.mean > 0
    assert math.isnan(estimate.low)
    assert str(estimate) == f"{estimate.mean:.4g}"
    assert str(Estimate(1.0, 0.5, 1.5, 3)) == "1 [0.5, 1.5]"
    json.dumps(result.as_dict())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": torch.zeros(9, 2, dtype=torch.uint8)}, TypeError, r"data must be float16.*got torch.uint8"),
        ({"data": 3}, TypeError, r"data must be a tensor \(N, ...\) or a data set with len\(\) and \[\], got int"),
        ({"data": []}, ValueError, r"data must hold at least one item"),
        ({"condition": torch.zeros(5)}, ValueError, r"condition must have one row per sample"),
        ({"batch_size": 10}, ValueError, r"batch_size must be from 2 to the 9 data, got 10"),
        ({"batch_size": 1}, ValueError, r"batch_size must be from 2 to the 9 data, got 1"),
        ({"n_batches": 0}, ValueError, r"n_batches must be at least 1, got 0"),
        ({"couplings": []}, ValueError, r"couplings must hold at least one coupling"),
        ({"couplings": [KNN(), KNN()]}, ValueError, r"different names, got KNN\(k=2\) twice"),
        ({"couplings": ["KNN"]}, TypeError, r"couplings must be Coupling objects such as KNN\(k=2\), got str"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"data": normal(9, 2), "couplings": [KNN()], "batch_size": 3, "n_batches": 2, **change}
    with pytest.raises(error, match=message):
        survey(**arguments)


class Items(torch.utils.data.Dataset):
    """A data set of whatever it is given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("items", [({"x": torch.zeros(8)},), (({"x": torch.zeros(8)}, 1),), ((torch.zeros(8), {}),)])
def test_a_data_set_of_anything_else_is_told_what_is_allowed(items):
    with pytest.raises(TypeError, match=r"items are rows .*, or tuples .* of dict no tensor can"):
        survey(Items(*items, *items), [KNN(2)], batch_size=2, n_batches=1)


def test_items_of_a_data_set_have_one_shape():
    with pytest.raises(ValueError, match=r"data must have items of one shape, got \(3,\) and \(8,\)"):
        survey(Items(torch.zeros(8), torch.zeros(3)), [KNN(2)], batch_size=2, n_batches=1)
