"""Mixture: a share of the samples is coupled, among themselves; the others keep independent noise."""

import math

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from immiscible_policy.coupling import KNN, Coupling, Independent, LinearAssignment, Mixture, SeedCache, Warmup, _checks
from immiscible_policy.coupling.base import Context


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_share_of_coupled_samples_is_p():
    data, given = torch.randn(20_000, 4, generator=generator(0)) * 3, torch.randn(20_000, 4, generator=generator(1))
    noise = Mixture(KNN(64, "inner"), p=0.3)(data, given, generator=generator(2))
    # Of 64 candidates the given one wins one time in 64.
    moved = float((noise != given).any(1).double().mean())
    expected = 0.3 * 63 / 64
    assert moved == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 20_000))


@pytest.mark.parametrize("given", [False, True])
def test_ends_are_the_parts_themselves(given):
    data = torch.randn(32, 4, generator=generator(0))
    noise = torch.randn(32, 4, generator=generator(1)) if given else None
    inner = KNN(3)
    assert torch.equal(
        Mixture(inner, p=1.0)(data, noise, generator=generator(2)), inner(data, noise, generator=generator(2))
    )
    assert torch.equal(
        Mixture(inner, p=0.0)(data, noise, generator=generator(2)), Independent()(data, noise, generator=generator(2))
    )


def test_chosen_samples_are_assigned_among_themselves():
    data, given = torch.randn(64, 3, generator=generator(0)), torch.randn(64, 3, generator=generator(1))
    noise = Mixture(LinearAssignment(), p=0.5)(data, given, generator=generator(2))
    chosen = torch.rand(64, generator=generator(2)) < 0.5
    assert torch.equal(noise[~chosen], given[~chosen])
    assert torch.equal(noise[chosen], LinearAssignment()(data[chosen], given[chosen]))
    assert torch.equal(noise.sort(dim=0).values, given.sort(dim=0).values)


class Sizes(TorchDispatchMode):
    """Counts operations whose result is as large as a tensor's values say, for which the processor waits for a GPU."""

    def __init__(self):
        super().__init__()
        self.of_values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.of_values += by_mask or name in ("nonzero", "masked_select")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [False, True])
def test_samples_that_are_paired_one_by_one_need_no_count_of_the_chosen(given):
    data = torch.randn(32, 4, generator=generator(0))
    noise = torch.randn(32, 4, generator=generator(1)) if given else None
    for coupling, counts in ((KNN(4), False), (LinearAssignment(), True)):
        with Sizes() as sizes:
            Mixture(coupling)(data, noise, generator=generator(2))
        assert (sizes.of_values > 0) == counts


def test_without_given_noise_both_parts_have_their_law():
    data = torch.full((40_000, 2), 1.5)
    noise = Mixture(KNN(2, "inner"), p=0.5)(data, generator=generator(3))
    along = (noise.sum(1) / math.sqrt(2)).double().numpy()

    def law(g):  # half N(0, 1), half the larger of two
        return 0.5 * stats.norm.cdf(g) + 0.5 * stats.norm.cdf(g) ** 2

    assert stats.kstest(along, law).pvalue > 1e-4


def test_probability_is_linear_in_diffusion_time():
    data = torch.randn(30_000, 4, generator=generator(0)) * 3
    given = torch.randn(30_000, 4, generator=generator(1))
    time = torch.rand(30_000, generator=generator(2))
    mixture = Mixture(KNN(64, "inner"), p=[0.2, 1.0])
    assert mixture.uses_time
    moved = (mixture(data, given, time=time, generator=generator(3)) != given).any(1).double()
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (time >= low) & (time < low + 0.25)
        expected = (0.2 + 0.8 * (low + 0.125)) * 63 / 64
        assert float(moved[chosen].mean()) == pytest.approx(expected, abs=0.03)


def test_probability_as_a_function_of_time():
    data, given = torch.randn(64, 2, generator=generator(0)), torch.randn(64, 2, generator=generator(1))
    time = torch.linspace(0, 1, 64)
    noise = Mixture(KNN(1000), p=lambda t: (t > 0.5).float())(data, given, time=time, generator=generator(2))
    assert torch.equal(noise[time <= 0.5], given[time <= 0.5])
    assert (noise[time > 0.5] != given[time > 0.5]).any(1).float().mean() > 0.9


def test_masks_and_conditions_go_with_their_samples():
    data, given = torch.randn(40, 6, 2, generator=generator(0)), torch.randn(40, 6, 2, generator=generator(1))
    mask = torch.ones(40, 6, 1, dtype=torch.bool)
    mask[::2, 4:] = False
    noise = Mixture(KNN(8), p=0.5)(data, given, mask=mask, generator=generator(2))
    assert torch.equal(noise[::2, 4:], given[::2, 4:])
    shared = torch.ones(1, 6, 1, dtype=torch.bool)
    shared[:, 3:] = False
    noise = Mixture(KNN(8), p=0.5)(data, given, mask=shared, generator=generator(2))
    assert torch.equal(noise[:, 3:], given[:, 3:])


@pytest.mark.parametrize(
    ("p", "error", "message"),
    [
        (1.5, ValueError, r"p must be in \[0, 1\], got 1.5"),
        (-0.1, ValueError, r"p must be in \[0, 1\]"),
        (math.nan, ValueError, r"p must be in \[0, 1\]"),
        ((0.0, 2.0), ValueError, r"p must be in \[0, 1\]"),
        ((0.1, 0.2, 0.3), TypeError, "p must be a number, a pair"),
        ("half", TypeError, "p must be a number, a pair"),
        (True, TypeError, "p must be a number, a pair"),
    ],
)
def test_bad_probabilities_are_named(p, error, message):
    with pytest.raises(error, match=message):
        Mixture(KNN(2), p)


@pytest.mark.parametrize("around", [Mixture, Warmup])
def test_the_size_of_the_data_set_reaches_the_coupling_inside(around):
    coupling = around(SeedCache())
    assert coupling.fit_uses == frozenset()
    coupling.fit_size(9)
    data = torch.zeros(4, 2)
    assert coupling(data, indices=torch.tensor([8, 1, 2, 3])).shape == (4, 2)
    with pytest.raises(ValueError, match=r"n_data\) = \[0, 9\)"):
        coupling.coupling(data, indices=torch.tensor([9, 1, 2, 3]))


def test_what_is_missing_or_wrong_in_a_call_is_named():
    data = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="time must be given"):
        Mixture(KNN(2), (0, 1))(data)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values in \[2, 2\]"):
        Mixture(KNN(2), lambda t: t + 2)(data, time=torch.zeros(4))
    with pytest.raises(ValueError, match=r"times \(B,\) to probabilities \(B,\)"):
        Mixture(KNN(2), lambda t: 0.5)(data, time=torch.zeros(4))
    with pytest.raises(TypeError, match="coupling must be a Coupling, got int"):
        Mixture(2)


class Spy(Coupling):
    def __init__(self):
        self.masks = []

    def _couple(self, data, noise, context):
        self.masks.append(context.mask)
        return self._drawn(data, noise, context)


@pytest.mark.parametrize("length", [2, 4])
def test_a_mask_that_the_samples_share_is_not_one_of_samples(length):
    """A (T, 1) mask where T is the size of the batch."""
    spy, mask = Spy(), torch.arange(length).view(-1, 1) < 1
    for _ in range(10):
        Mixture(spy)(torch.randn(length, length, 2), mask=mask)
    assert all(seen is mask for seen in spy.masks)


def test_probabilities_on_a_gpu_are_not_waited_for(monkeypatch):
    """Fake tensors are on a GPU without one, and refuse to tell a value as a wait for it would."""
    monkeypatch.setattr(_checks, "_copy_from_gpu", lambda scalar: (torch.tensor(0.5), lambda: True))
    monkeypatch.setattr(_checks, "_LATE_UNIT_INTERVAL", {})
    with FakeTensorMode():
        data, time = torch.empty(4, 2, device="cuda"), torch.empty(4, device="cuda")
        probability = Mixture(KNN(2), lambda t: t)._probability(data, Context(time=time))
    assert isinstance(probability, torch.Tensor)
    assert probability.shape == (4,)
