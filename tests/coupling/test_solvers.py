"""Assignment solvers: always a column of one's own, exact where promised, near the optimum elsewhere."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from immiscible_policy.coupling import solvers
from immiscible_policy.coupling.solvers import SOLVERS, auction, exact, greedy

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_cost(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator(seed)).to(dtype)


def image_cost(batch: int, seed: int) -> torch.Tensor:
    """-<x, n> of data with a few strong directions, as pictures have, and white noise."""
    spread = 3.0 * torch.arange(1, 257) ** -0.7
    data = torch.randn(batch, 256, generator=generator(seed)) * spread + spread
    return -(data @ torch.randn(batch, 256, generator=generator(seed + 1000)).T)


def total(cost: torch.Tensor, columns: torch.Tensor) -> float:
    return float(cost.double().gather(1, columns[:, None]).sum())


def least_total(cost: torch.Tensor) -> float:
    return total(cost, torch.from_numpy(linear_sum_assignment(cost.double().numpy())[1]))


def assert_columns_of_their_own(cost: torch.Tensor, columns: torch.Tensor) -> None:
    assert columns.dtype == torch.int64
    assert columns.device == cost.device
    assert columns.shape == cost.shape[:1]
    assert len(set(columns.tolist())) == cost.shape[0]
    assert all(0 <= column < cost.shape[1] for column in columns.tolist())


def slow_greedy(cost: torch.Tensor) -> list[int]:
    """Take the least entry whose row and column are free, again and again."""
    rows, columns = cost.shape
    entries = sorted(
        (float(cost[i, j]), (j - i) % columns, i, j) for i, j in itertools.product(range(rows), range(columns))
    )
    taken = [-1] * rows
    for _, _, i, j in entries:
        if taken[i] < 0 and j not in taken:
            taken[i] = j
    return taken


@pytest.fixture
def count_bids(monkeypatch):
    """A list that the number of bidders of every step is added to."""
    bids = []
    two_least = solvers._two_least
    monkeypatch.setattr(solvers, "_two_least", lambda cost: bids.append(len(cost)) or two_least(cost))
    return bids


VARIANTS = {
    **SOLVERS,
    "auction of few rows": lambda cost: auction(cost, exact_up_to=0),
    "auction to the end": lambda cost: auction(cost, stop=0.0, exact_up_to=0),
}
kinds = st.sampled_from(["normal", "few values", "constant", "equal rows", "equal columns", "sorted"])


def costs_of(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    cost = random_cost(rows, columns, seed)
    return {
        "normal": cost,
        "few values": (2 * cost).round(),
        "constant": torch.full_like(cost, -3.5),
        "equal rows": cost[:1].expand(rows, columns),
        "equal columns": cost[:, :1].expand(rows, columns),
        "sorted": torch.arange(rows)[:, None] + torch.arange(float(columns)),
    }[kind]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(VARIANTS)),
    kinds,
    st.integers(1, 24),
    st.one_of(st.just(0), st.integers(0, 90)),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(0, 10_000),
)
def test_each_row_gets_a_column_of_its_own_and_cost_stays(name, kind, rows, more, dtype, seed):
    cost = costs_of(kind, rows, rows + more, seed).to(dtype)
    before = cost.clone()
    columns = VARIANTS[name](cost)
    assert_columns_of_their_own(cost, columns)
    assert torch.equal(cost, before)
    assert torch.equal(columns, VARIANTS[name](cost))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_solvers_stay_on_the_device(name, device):
    for columns in (300, 400):
        cost = random_cost(300, columns, 0).to(device)
        assert_columns_of_their_own(cost, VARIANTS[name](cost))


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("kind", ["normal", "few values", "constant"])
def test_exact_is_the_best_of_all(rows, more, kind):
    assignments = np.array(list(itertools.permutations(range(rows + more), rows)))
    for seed in range(5):
        cost = costs_of(kind, rows, rows + more, seed)
        best = cost.double().numpy()[np.arange(rows), assignments].sum(1).min()
        assert total(cost, exact(cost)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("batch", [64, solvers._WARM_START_FROM])
def test_exact_pairs_as_scipy_does(batch):
    cost = image_cost(batch, 0)
    popular = cost + 100.0 * torch.randn(batch, generator=generator(5))
    for table in (cost, popular, cost.double()):
        assert exact(table).tolist() == linear_sum_assignment(table.double().numpy())[1].tolist()


def test_exact_does_not_favour_columns_that_may_stay_free():
    """With more columns than rows a column's own term decides who stays out."""
    batch = solvers._WARM_START_FROM
    cost = random_cost(batch, batch + 100, 1) + 3.0 * torch.rand(batch + 100, generator=generator(2))
    assert total(cost, exact(cost)) == pytest.approx(least_total(cost), abs=1e-6)


def test_exact_of_costs_near_the_largest_float():
    """The first column's sum overflows."""
    cost = torch.tensor([[1.7e308, -1e307], [1.7e308, 1e307]], dtype=torch.float64)
    assert exact(cost).tolist() == [1, 0]
    assert exact(cost.flip(0)).tolist() == [0, 1]


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (130, 130), (60, 200), (257, 300)])
@pytest.mark.parametrize("eps", [0.01, 0.3])
def test_auction_to_the_end_is_within_its_step_of_the_optimum(rows, columns, eps):
    """Bertsekas 1988, proposition 1: the total is at most B steps above the least."""
    cost = random_cost(rows, columns, rows, torch.float64)
    centred = cost - cost.mean(0) if rows == columns else cost
    step = eps * float(centred.std(1, correction=0).mean())
    gap = total(cost, auction(cost, eps=eps, stop=0.0, exact_up_to=0)) - least_total(cost)
    assert -1e-9 <= gap <= rows * step


def test_auction_prices_prove_its_pairs():
    """At the end each row holds a column within one step of the least cost + price."""
    cost = random_cost(90, 90, 3, torch.float64)
    taken, price = solvers._bid(cost, eps=0.2, stop=0.0)
    step = 0.2 * float((cost - cost.mean(0)).std(1, correction=0).mean())
    reduced = cost + price
    own = reduced.gather(1, taken[:, None]).squeeze(1)
    assert float((own - reduced.amin(1)).max()) <= step + 1e-9


@pytest.mark.parametrize(("columns", "share", "bids"), [(600, 0.98, 5), (700, 0.97, 9)])
def test_truncated_auction_reaches_nearly_all_of_the_gain_in_few_bids(columns, share, bids, count_bids):
    for seed in range(2):
        cost = image_cost(columns, seed)[:600]
        identity, least = float(cost.diagonal().sum()), least_total(cost)
        reached = (identity - total(cost, auction(cost))) / (identity - least)
        assert share < reached < 1.0
        assert sum(count_bids) < bids * 600  # prices that rise by the step alone take three times as many
        count_bids.clear()


def test_auction_disregards_terms_of_columns_and_scale():
    cost = image_cost(300, 0)
    popular = 1e-4 * (cost + 50.0 * torch.randn(300, generator=generator(5)))
    identity, least = float(cost.diagonal().sum()), least_total(cost)
    assert identity - total(cost, auction(popular)) > 0.97 * (identity - least)


def test_auction_of_few_rows_is_exact():
    cost = image_cost(256, 0)
    assert torch.equal(auction(cost), exact(cost))
    assert not torch.equal(auction(cost, exact_up_to=0), exact(cost))


def test_an_auction_that_never_settles_is_cut_short(count_bids):
    """Rows that want the same columns outbid each other for ever with a tiny step."""
    same = random_cost(1, 300, 0).expand(300, 300) + 1e-6 * random_cost(300, 300, 1)
    for cost in (same, same[:, :1].expand(300, 300), same.half()):
        count_bids.clear()
        assert_columns_of_their_own(cost, auction(cost, eps=1e-9))
        assert sum(count_bids) <= (solvers._MAX_BIDS_PER_ROW + 1) * 300


@settings(max_examples=80, deadline=None)
@given(kinds, st.integers(1, 12), st.integers(0, 8), st.integers(0, 10_000))
def test_greedy_takes_the_least_entry_again_and_again(kind, rows, more, seed):
    cost = costs_of(kind, rows, rows + more, seed)
    assert greedy(cost).tolist() == slow_greedy(cost)


def test_greedy_of_many_rows_and_of_a_constant():
    cost = random_cost(150, 150, 0)
    assert greedy(cost).tolist() == slow_greedy(cost)
    assert greedy(torch.zeros(500, 600)).tolist() == list(range(500))


def test_greedy_is_no_optimum():
    cost = torch.tensor([[0.0, 1.0], [2.0, 9.0]])
    assert greedy(cost).tolist() == [0, 1]
    assert exact(cost).tolist() == [1, 0]


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_no_rows_get_no_columns(name):
    for columns in (0, 3):
        assert VARIANTS[name](torch.zeros(0, columns)).shape == (0,)


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 4)])
def test_costs_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"cost must be \(B, P\) with at least as many columns as rows, got \(\d, ?"):
        VARIANTS[name](torch.zeros(shape))


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_costs_that_are_not_finite_are_refused(name, value):
    cost = random_cost(5, 6, 0)
    cost[3, 2:4] = value
    with pytest.raises(ValueError, match="cost must be finite, got 2 NaN or infinite entries"):
        VARIANTS[name](cost)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, r"eps must be finite and > 0, got 0.0"),
        ({"eps": float("nan")}, r"eps must be finite and > 0, got nan"),
        ({"stop": 1.0}, r"stop must be in \[0, 1\), got 1.0"),
        ({"stop": -0.1}, r"stop must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_settings_of_the_auction_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        auction(torch.zeros(2, 2), **arguments)


def test_two_least_agrees_with_sorting():
    for columns in (64, 320):
        cost = random_cost(50, columns, columns)
        cost[::3, 5] = cost[::3, 60] = -9.0  # a tie for the least: second equals it
        least, second, column = solvers._two_least(cost.clone())
        ordered = np.sort(cost.numpy(), axis=1)
        assert np.array_equal(least.numpy(), ordered[:, 0])
        assert np.array_equal(second.numpy(), ordered[:, 1])
        assert torch.equal(cost.gather(1, column[:, None]).squeeze(1), least)
