"""Warmup: when a coupling starts, how its settings change, and what a checkpoint keeps of it."""

import pytest
import torch

from immiscible_policy.coupling import KNN, Independent, LinearAssignment, Mixture, Warmup


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DATA = torch.randn(16, 4, generator=generator(0))


def test_independent_before_the_start_and_coupled_after():
    warmup = Warmup(KNN(8), start=3)
    for call in range(6):
        expected = (Independent() if call < 3 else KNN(8))(DATA, generator=generator(call))
        assert torch.equal(warmup(DATA, generator=generator(call)), expected), call
    assert warmup.calls == 6


def test_integer_settings_are_annealed_in_integers():
    warmup = Warmup(KNN(8), start=2, anneal_to={"k": 1}, anneal_over=14)
    seen = []
    for _ in range(20):
        current = warmup.current()
        seen.append(None if current is None else current.k)
        warmup(DATA)
    assert seen[:2] == [None, None]
    assert seen[2] == 8
    assert seen[16:] == [1] * 4
    assert seen[2:] == sorted(seen[2:], reverse=True)
    assert seen[2:17] == [round(8 - 7 * i / 14) for i in range(15)]


def test_real_settings_are_annealed_in_between():
    warmup = Warmup(KNN(4.0, "inner"), anneal_to={"k": 1.0}, anneal_over=6)
    assert [warmup._at(call).k for call in range(8)] == pytest.approx([4, 3.5, 3, 2.5, 2, 1.5, 1, 1])
    mixture = Warmup(Mixture(LinearAssignment(), p=1.0), anneal_to={"p": 0.0}, anneal_over=4)
    assert [mixture._at(call).p for call in range(6)] == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])


def test_a_checkpoint_continues_where_it_was():
    warmup = Warmup(KNN(8), start=2, anneal_to={"k": 2}, anneal_over=6)
    for call in range(4):
        warmup(DATA, generator=generator(call))
    fresh = Warmup(KNN(8), start=2, anneal_to={"k": 2}, anneal_over=6)
    fresh.load_state_dict(warmup.state_dict())
    for call in range(4, 12):
        assert torch.equal(fresh(DATA, generator=generator(call)), warmup(DATA, generator=generator(call)))
    with pytest.raises(ValueError, match=r"must hold calls and coupling, got the keys \['step'\]"):
        warmup.load_state_dict({"step": 3})


def test_validation_pairs_as_now_and_counts_nothing():
    warmup = Warmup(KNN(8), start=1)
    before = warmup.for_validation()
    for _ in range(3):
        assert torch.equal(before(DATA, generator=generator(1)), Independent()(DATA, generator=generator(1)))
    assert warmup.calls == 0
    warmup(DATA)
    assert warmup.for_validation() == KNN(8)


def test_inner_state_survives_annealing():
    inner = Warmup(KNN(8), start=5)
    outer = Warmup(inner, anneal_to={"start": 5}, anneal_over=3)
    for _ in range(3):
        outer(DATA)
    assert inner.calls == 3
    assert outer.state_dict() == {"calls": 3, "coupling": {"calls": 3, "coupling": {}}}


def test_instances_do_not_share_their_count():
    first, second = Warmup(KNN(2), start=1), Warmup(KNN(2), start=1)
    first(DATA)
    assert (first.calls, second.calls) == (1, 0)
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coupling": 3}, TypeError, "coupling must be a Coupling, got int"),
        ({"start": -1}, ValueError, "start must be an integer >= 0, got -1"),
        ({"start": 1.5}, TypeError, "start must be an integer >= 0, got 1.5"),
        ({"anneal_to": {"k": 1}}, ValueError, "anneal_to and anneal_over belong together"),
        ({"anneal_over": 5}, ValueError, "anneal_to and anneal_over belong together"),
        ({"anneal_to": {"metric": 1}, "anneal_over": 5}, ValueError, "settings of KNN that are numbers.*metric=1"),
        ({"anneal_to": {"kk": 1}, "anneal_over": 5}, ValueError, "settings of KNN that are numbers.*kk=1 for kk=None"),
        ({"anneal_to": {"k": 0}, "anneal_over": 5}, ValueError, "k must be an integer >= 1, got 0"),
    ],
)
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Warmup(**{"coupling": KNN(8), **arguments})
