"""SeedCache: noises that travel between data until each lies near its own, and are never lost on the way.

Run as a script, this file is one process of a group, which the test of several processes starts.
"""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, norm

from immiscible_policy.coupling import LinearAssignment, seed_cache
from immiscible_policy.coupling.seed_cache import SeedCache

WORLD, N_DATA, CALLS = 2, 24, 6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.5 * torch.randn(*shape, generator=generator(seed))


def noise_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=generator(seed))[0]


def epochs(coupling: SeedCache, data: torch.Tensor, number: int, batch: int, chance: torch.Generator) -> list[float]:
    """Visit all data ``number`` times in random batches; the mean distance of the pairs in each epoch."""
    means = []
    for _ in range(number):
        distances = []
        for rows in torch.randperm(len(data), generator=chance).split(batch):
            distances.append((data[rows] - coupling(data[rows], indices=rows, generator=chance)).norm(dim=1))
        means.append(float(torch.cat(distances).mean()))
    return means


def test_distances_fall_over_the_epochs_below_those_of_one_assignment():
    data, chance = gaussian(512, 16), generator(1)
    means = epochs(SeedCache(512, n_caches=2), data, 16, 64, chance)
    single = [
        (data[rows] - LinearAssignment("sqeuclidean")(data[rows], generator=chance)).norm(dim=1)
        for rows in torch.randperm(512, generator=chance).split(64)
    ]
    one_batch = float(torch.cat(single).mean())
    assert means[0] == pytest.approx(one_batch, rel=0.015)  # the first visit is one assignment
    assert np.mean(means[-2:]) < np.mean(means[6:8]) < np.mean(means[2:4])
    assert means[-1] < 0.96 * one_batch


def test_total_cost_of_the_table_never_rises():
    """Every exchange lowers the sum over its batch, so that with one cache the whole data set's falls too."""
    data, chance = gaussian(96, 8), generator(2)
    coupling = SeedCache(96, n_caches=1)
    totals = []
    for _ in range(8):
        epochs(coupling, data, 1, 16, chance)
        table = torch.stack([noise_of(seed, 8) for seed in coupling.state_dict()["seeds"][:, 0].tolist()])
        totals.append(float((data - table).double().square().sum()))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0] - 10.0


def test_seeds_change_owners_but_none_is_lost():
    data, chance = gaussian(60, 5), generator(3)
    coupling = SeedCache(60, n_caches=3)
    epochs(coupling, data, 1, 10, chance)
    early = coupling.state_dict()
    epochs(coupling, data, 7, 13, chance)
    late = coupling.state_dict()
    assert torch.unique(early["seeds"]).numel() == 180
    assert torch.equal(early["seeds"].flatten().sort().values, late["seeds"].flatten().sort().values)
    assert not torch.equal(early["seeds"], late["seeds"])
    assert late["visits"].sum(1).tolist() == [8] * 60


def test_cached_noises_together_stay_gaussian():
    dims = 12
    coupling = SeedCache(300, n_caches=4)
    epochs(coupling, 2 * gaussian(300, dims) + 0.5, 10, 50, generator(4))
    # In the order of the seeds, not of the data, whose noises are no longer independent of each other.
    seeds = coupling.state_dict()["seeds"].flatten().sort().values.tolist()
    noises = torch.stack([noise_of(seed, dims) for seed in seeds]).double()
    p_values = [
        kstest(noises.flatten(), norm.cdf).pvalue,
        kstest(noises.square().sum(1), chi2(dims).cdf).pvalue,
        kstest((noises[1:] * noises[:-1]).sum(1) / noises[:-1].norm(dim=1), norm.cdf).pvalue,
        kstest(noises.sum(1) / dims**0.5, norm.cdf).pvalue,
    ]
    assert min(p_values) > 0.01 / len(p_values)


def test_what_a_call_returns_is_what_it_remembers():
    data, rows = gaussian(7, 8, 3), torch.tensor([5, 0, 9, 3, 8, 2, 6])
    coupling = SeedCache(10, n_caches=5)
    coupling(data[:1], indices=rows[:1], generator=generator(0))  # makes the table
    for seed in range(6):
        before = coupling.state_dict()
        noise = coupling(data, indices=rows, generator=generator(seed))
        after = coupling.state_dict()
        visited = (after["visits"] - before["visits"]).nonzero()
        assert sorted(visited[:, 0].tolist()) == sorted(rows.tolist())
        slots = dict(visited.tolist())
        for position, row in enumerate(rows.tolist()):
            assert torch.equal(noise[position], noise_of(int(after["seeds"][row, slots[row]]), 8, 3))
        untouched = (after["visits"] == before["visits"]).nonzero(as_tuple=True)
        assert torch.equal(after["seeds"][untouched], before["seeds"][untouched])


def test_slots_are_visited_equally_often():
    coupling, chance = SeedCache(50, n_caches=4), generator(5)
    epochs(coupling, gaussian(50, 2), 80, 50, chance)
    per_slot = coupling.state_dict()["visits"].sum(0).numpy()
    assert per_slot.sum() == 4000
    assert np.abs(per_slot - 1000).max() < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_whole_data_set_in_one_batch_is_its_optimum_at_once_and_for_ever():
    data, rows = gaussian(40, 6), torch.arange(40)
    coupling = SeedCache(40, n_caches=1)
    first = coupling(data, indices=rows, generator=generator(6))
    assert torch.equal(LinearAssignment("sqeuclidean")(data, first), first)
    for seed in range(3):
        order = torch.randperm(40, generator=generator(seed))
        assert torch.equal(coupling(data[order], indices=order, generator=generator(seed)), first[order])


def test_noise_of_a_seed_depends_on_nothing_else():
    coupling, single = SeedCache(30, n_caches=1), SeedCache(30, n_caches=1)
    data = gaussian(30, 3, 2)
    coupling(data, indices=torch.arange(30), generator=generator(7))
    single.load_state_dict(coupling.state_dict())
    whole = coupling(data, indices=torch.arange(30), generator=generator(0))
    for row in (0, 13, 29):  # alone, in another order, in another dtype, under another generator
        index = torch.tensor([row], dtype=torch.int32)
        assert torch.equal(single(data[row : row + 1], indices=index)[0], whole[row])
    half = single(data.half(), indices=torch.arange(30))
    assert torch.equal(half, whole.half())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_noise_of_a_seed_is_the_same_on_a_gpu():
    coupling, data, rows = SeedCache(30, n_caches=1), gaussian(30, 100), torch.arange(30)
    whole = coupling(data, indices=rows, generator=generator(7))
    on_gpu = coupling(data.cuda(), indices=rows.cuda(), generator=torch.Generator("cuda"))
    assert torch.equal(on_gpu.cpu(), whole)


@pytest.mark.parametrize("visits", [1, 3])
def test_fresh_seeds_after_so_many_visits(visits):
    data, rows = gaussian(20, 3), torch.arange(20)
    coupling = SeedCache(20, n_caches=1, resample_every=visits)
    generations = []
    for call in range(12):
        coupling(data, indices=rows, generator=generator(call))
        generations.append(frozenset(coupling.state_dict()["seeds"].flatten().tolist()))
    assert [len(generation) for generation in generations] == [20] * 12
    for call in range(12):
        assert generations[call] == generations[call - call % visits]
    assert len(frozenset.union(*generations)) == 12 // visits * 20  # no seed ever comes back


def test_a_slot_is_resampled_by_its_own_visits():
    coupling, chance = SeedCache(8, n_caches=2, resample_every=2), generator(8)
    data = gaussian(8, 3)
    seen: set[int] = set()
    for _ in range(25):
        coupling(data, indices=torch.arange(8), generator=chance)
        seen |= set(coupling.state_dict()["seeds"].flatten().tolist())
    visits = coupling.state_dict()["visits"]
    # Fresh at visits 3, 5, 7, ... of a slot.
    assert len(seen) == 16 + int(((visits - 1) // 2).clamp_min(0).sum())


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path):
    data, chance = gaussian(48, 6), generator(9)
    coupling = SeedCache(n_caches=3, resample_every=2)
    coupling.fit(data)
    epochs(coupling, data, 3, 10, chance)
    torch.save((coupling.state_dict(), chance.get_state()), tmp_path / "state")
    saved = coupling.state_dict()
    distances = epochs(coupling, data, 3, 10, chance)

    assert not torch.equal(saved["seeds"], coupling.state_dict()["seeds"])  # what was saved is no view
    state, random_state = torch.load(tmp_path / "state", weights_only=True)
    resumed = SeedCache(n_caches=3, resample_every=2)
    resumed.fit(data)
    resumed.load_state_dict(state)
    again = generator(0)
    again.set_state(random_state)
    assert epochs(resumed, data, 3, 10, again) == distances
    for name, value in coupling.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    assert torch.equal(state["seeds"], saved["seeds"])


def test_a_state_saved_before_the_first_call_is_empty():
    coupling = SeedCache(4)
    assert coupling.state_dict() == {}
    coupling(gaussian(4, 2), indices=torch.arange(4), generator=generator(0))
    coupling.load_state_dict({})
    assert coupling.state_dict() == {}
    first = coupling(gaussian(4, 2), indices=torch.arange(4), generator=generator(1))
    fresh = SeedCache(4)(gaussian(4, 2), indices=torch.arange(4), generator=generator(1))
    assert torch.equal(first, fresh)


def test_the_generator_decides_everything():
    data = gaussian(32, 4)
    state = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        coupling = SeedCache(32, n_caches=2)
        runs.append((epochs(coupling, data, 2, 8, generator(seed)), coupling.state_dict()["seeds"]))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not set(runs[0][1].flatten().tolist()) & set(runs[2][1].flatten().tolist())
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_leaves_the_state_alone():
    data, rows = gaussian(16, 3), torch.arange(16)
    coupling = SeedCache(16, n_caches=2, resample_every=1)
    for _ in range(2):  # before the first call, and after some
        before = coupling.state_dict()
        copy = coupling.for_validation()
        assert not copy.uses_indices
        with_indices = copy(data, indices=rows, generator=generator(1))
        if before:
            assert torch.equal(copy(data, indices=rows, generator=generator(1)), with_indices)
            remembered = copy.state_dict()
            epochs(copy, data, 2, 4, generator(7))
            assert all(torch.equal(remembered[name], value) for name, value in copy.state_dict().items())
        unseen = copy(data[:5], generator=generator(2))
        assert torch.equal(unseen, copy(data[:5], generator=generator(2)))
        assert torch.equal(LinearAssignment("sqeuclidean")(data[:5], unseen), unseen)
        after = coupling.state_dict()
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        epochs(coupling, data, 3, 4, generator(3))
    assert coupling.uses_indices


def test_validation_pairs_as_training_did_when_it_was_made():
    data, rows = gaussian(16, 3), torch.arange(16)
    coupling = SeedCache(16, n_caches=1)
    learned = coupling(data, indices=rows, generator=generator(0))
    copy = coupling.for_validation()
    anew = coupling(-data, indices=rows, generator=generator(1))
    for row in range(16):
        assert torch.equal(copy(data[row : row + 1], indices=rows[row : row + 1])[0], learned[row])
    assert not torch.equal(anew, learned)


def test_distances_are_over_valid_entries():
    data, rows = gaussian(20, 6), torch.arange(20)
    mask = torch.tensor([True, False, True, True, False, True])
    results = []
    for padding in (float("nan"), 0.0, 3.0):
        coupling = SeedCache(20, n_caches=1)
        results.append(coupling(data.masked_fill(~mask, padding), mask=mask, indices=rows, generator=generator(0)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    valid = results[0][:, mask]
    assert torch.equal(LinearAssignment("sqeuclidean")(data[:, mask], valid), valid)


def test_noise_may_come_from_another_source():
    shapes = []

    def uniform(shape, generator):
        shapes.append(shape)
        return torch.rand(shape, generator=generator)

    coupling = SeedCache(9, n_caches=1, source=uniform)
    noise = coupling(gaussian(9, 4, 2), indices=torch.arange(9), generator=generator(0))
    assert set(shapes) == {(1, 4, 2)}
    for row, seed in enumerate(coupling.state_dict()["seeds"][:, 0].tolist()):
        assert torch.equal(noise[row], torch.rand(1, 4, 2, generator=generator(seed))[0])


@pytest.mark.parametrize("solver", ["greedy", "auction", lambda cost: torch.arange(len(cost)).int()])
def test_other_solvers_deal_all_noises_too(solver):
    coupling = SeedCache(30, n_caches=2, solver=solver)
    epochs(coupling, gaussian(30, 3), 3, 10, generator(0))
    assert torch.unique(coupling.state_dict()["seeds"]).numel() == 60


def test_a_solver_that_deals_a_noise_twice_is_refused():
    coupling = SeedCache(3, solver=lambda cost: torch.zeros(len(cost), dtype=torch.int64))
    with pytest.raises(ValueError, match="solver must give every row a column of its own, got 2 of 3 repeated"):
        coupling(gaussian(3, 2), indices=torch.arange(3))


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


@settings(max_examples=40, deadline=None)
@given(
    shapes,
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from(["l2", "sqeuclidean", "l1", "inner"]),
    st.integers(1, 3),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 10_000),
)
def test_any_rank_and_dtype_in_the_same_out(shape, dtype, metric, n_caches, resample_every, seed):
    data = torch.randn(shape, generator=generator(seed)).to(dtype).requires_grad_()
    coupling = SeedCache(10, n_caches, metric, resample_every=resample_every)
    for call in range(3):
        rows = torch.randperm(10, generator=generator(seed + call))[: shape[0]]
        noise = coupling(data, indices=rows, generator=generator(seed))
        assert noise.shape == data.shape
        assert noise.dtype == dtype
        assert torch.isfinite(noise).all()
        assert not noise.requires_grad


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_empty_batches_come_back_empty(shape):
    assert SeedCache(8)(torch.empty(shape), indices=torch.arange(shape[0])).shape == shape


def test_autocast_does_not_lower_the_precision_of_distances():
    data, rows = gaussian(64, 16), torch.arange(64)
    plain = SeedCache(64)(data, indices=rows, generator=generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = SeedCache(64)(data, indices=rows, generator=generator(0))
    assert torch.equal(plain, cast)


def test_a_frozen_value_whatever_it_remembers():
    coupling = SeedCache(8, n_caches=2)
    twin = SeedCache(8, n_caches=2)
    coupling(gaussian(8, 2), indices=torch.arange(8))
    assert coupling == twin
    assert hash(coupling) == hash(twin)
    assert twin.state_dict() == {}
    assert repr(coupling) == "SeedCache(n_data=8, n_caches=2)"
    with pytest.raises(FrozenInstanceError):
        coupling.n_caches = 3
    assert "same 6 noises for ever" in SeedCache(8).caveat
    assert "same 6 noises for 9 visits" in SeedCache(8, resample_every=9).caveat


def test_fit_tells_the_size_of_the_data_set():
    data = gaussian(6, 2)
    coupling = SeedCache()
    with pytest.raises(ValueError, match=r"n_data must be given to SeedCache, or fit\(data\) be called"):
        coupling(data, indices=torch.arange(6))
    coupling.fit(data)
    coupling(data, indices=torch.arange(6))
    assert coupling.state_dict()["seeds"].shape == (6, 6)
    coupling.fit(data)
    with pytest.raises(ValueError, match="data must have the 6 samples that the seeds were made for, got 5"):
        coupling.fit(data[:5])
    SeedCache(6).fit(data[:5])
    with pytest.raises(ValueError, match="data must have at most n_data=5 samples, got 6"):
        SeedCache(5).fit(data)


def test_the_size_alone_does_for_a_fit():
    data = gaussian(6, 2)
    shown, told = SeedCache(), SeedCache()
    shown.fit(data)
    told.fit_size(6)
    assert told.fit_uses == frozenset()
    noises = [one(data, indices=torch.arange(6), generator=torch.Generator().manual_seed(1)) for one in (shown, told)]
    assert torch.equal(*noises)
    with pytest.raises(ValueError, match="data must have the 6 samples that the seeds were made for, got 5"):
        told.fit_size(5)
    SeedCache(6).fit_size(5)
    with pytest.raises(ValueError, match="data must have at most n_data=5 samples, got 6"):
        SeedCache(5).fit_size(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"indices must be given to SeedCache: \(B,\) places of the samples in the data set, got None"),
        ({"indices": torch.tensor([0, 1, 8])}, r"indices must be in \[0, n_data\) = \[0, 8\), got 0 to 8"),
        ({"indices": torch.tensor([0, -1, 7])}, r"indices must be in .*, got -1 to 7"),
        ({"indices": torch.tensor([3, 3, 3])}, r"indices must differ within a batch, got 2 of 3 repeated"),
        ({"indices": torch.arange(3), "noise": torch.zeros(3, 2)}, r"noise must be None for SeedCache"),
    ],
)
def test_bad_calls_are_named_and_change_nothing(arguments, message):
    coupling = SeedCache(8)
    coupling(gaussian(3, 2), indices=torch.arange(3))
    before = coupling.state_dict()
    with pytest.raises(ValueError, match=message):
        coupling(gaussian(3, 2), **arguments)
    assert all(torch.equal(before[name], value) for name, value in coupling.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_data": 0}, r"n_data must be an integer >= 1, got 0"),
        ({"n_data": 8, "n_caches": 0}, r"n_caches must be an integer >= 1, got 0"),
        ({"n_data": 8, "n_caches": 2.0}, r"n_caches must be an integer >= 1, got 2.0"),
        ({"n_data": 8, "resample_every": 0}, r"resample_every must be an integer >= 1, got 0"),
        ({"n_data": 8, "metric": "cosine"}, r"metric must be .*'sqeuclidean'.*got 'cosine'"),
        ({"n_data": 8, "solver": "best"}, r"solver must be .*'exact'.*a callable, got 'best'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeedCache(**arguments)


def test_states_of_other_caches_are_refused():
    coupling = SeedCache(8, n_caches=2)
    coupling(gaussian(8, 2), indices=torch.arange(8))
    state = coupling.state_dict()
    for other, message in (
        (SeedCache(9, n_caches=2), r"seeds of the state must be torch.int64 of shape .* = \(9, 2\), got .*\(8, 2\)"),
        (SeedCache(8, n_caches=3), r"seeds of the state must be .* = \(8, 3\)"),
        (SeedCache(n_caches=3), r"seeds of the state must be .* = \(8, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.state_dict() == {}
    with pytest.raises(ValueError, match=r"state of SeedCache must hold seeds, visits and base, got the keys \['a'\]"):
        coupling.load_state_dict({"a": 1})
    for name, value in (
        ("visits", state["visits"][:7]),
        ("visits", state["visits"].long()),
        ("visits", state["visits"] - 100),
        ("seeds", [1]),
        ("seeds", state["seeds"] - 2**40),
        ("base", "one"),
        ("base", 0.5),
    ):
        with pytest.raises(ValueError, match=f"{name} of the state must be"):
            coupling.load_state_dict({**state, name: value})
    with pytest.raises(ValueError, match="seeds of the state must be"):
        SeedCache(n_caches=2).load_state_dict({**state, "seeds": None})
    unfitted = SeedCache(n_caches=2)
    unfitted.load_state_dict(state)
    with pytest.raises(ValueError, match=r"indices must be in \[0, n_data\) = \[0, 8\), got 8 to 8"):
        unfitted(gaussian(1, 2), indices=torch.tensor([8]))


def test_counts_become_different_seeds():
    for base in (0, 1, 2**32 - 1, 123456789):
        seeds = seed_cache._scatter(torch.arange(200_000), base)
        assert torch.unique(seeds).numel() == 200_000
        assert 0 <= int(seeds.min()) <= int(seeds.max()) < 2**32
        assert kstest(seeds.double() / 2**32, "uniform").pvalue > 1e-4
    assert not torch.equal(seed_cache._scatter(torch.arange(9), 1), seed_cache._scatter(torch.arange(9), 2))
    # Every step of the hash is one to one, also beyond 32 bits' worth of counts.
    assert torch.equal(seed_cache._scatter(torch.tensor([2**32 + 7]), 5), seed_cache._scatter(torch.tensor([7]), 5))


def batch_of(rank: int, call: int) -> torch.Tensor:
    """Which data a rank pairs at a call: disjoint, uneven, and none at one of the calls."""
    order = torch.randperm(N_DATA, generator=generator(call))
    sizes = {0: (7, 5), 1: (4, 8), 2: (6, 0), 3: (12, 12), 4: (0, 3), 5: (1, 1)}[call]
    return order[: sizes[0]] if rank == 0 else order[sizes[0] : sizes[0] + sizes[1]]


def one_process(rank: int, store: str, output: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    data, chance = gaussian(N_DATA, 3), generator(rank)
    coupling = SeedCache(N_DATA, n_caches=2, resample_every=2)
    validation = coupling.for_validation()
    saved = {"collective": (coupling.is_collective, validation.is_collective), "noises": [], "states": []}
    for call in range(CALLS):
        rows = batch_of(rank, call)
        saved["noises"].append(coupling(data[rows], indices=rows, generator=chance))
        saved["states"].append(coupling.state_dict())
        if rank == 0:  # alone, while the other goes on
            coupling.for_validation()(data[:4], indices=torch.arange(4), generator=generator(0))
    # Both ranks visit the same data, as samplers that pad do: tables must agree all the same.
    saved["noises"].append(coupling(data[:6], indices=torch.arange(6), generator=chance))
    saved["states"].append(coupling.state_dict())
    torch.save(saved, output)
    dist.destroy_process_group()


def test_processes_keep_one_table(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    outputs = [tmp_path / f"rank{rank}" for rank in range(WORLD)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "store"), str(outputs[rank])],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ranks = [torch.load(output, weights_only=True) for output in outputs]
    data = gaussian(N_DATA, 3)
    earlier = None
    for call in range(CALLS + 1):
        states = [rank["states"][call] for rank in ranks]
        for name in ("seeds", "visits", "base"):
            assert torch.equal(states[0][name], states[1][name])
        if call == CALLS:
            break
        assert torch.unique(states[0]["seeds"]).numel() == 2 * N_DATA
        for rank in range(WORLD):
            rows = batch_of(rank, call)
            noise = ranks[rank]["noises"][call]
            cached = [[noise_of(seed, 3) for seed in states[0]["seeds"][row].tolist()] for row in rows.tolist()]
            assert all(any(torch.equal(own, n) for n in two) for own, two in zip(noise, cached, strict=True))
            if len(rows) > 1:
                assert torch.equal(LinearAssignment("sqeuclidean")(data[rows], noise), noise)
        if earlier is not None:
            visited = (states[0]["visits"] - earlier["visits"]).sum(1)
            expected = torch.zeros(N_DATA, dtype=torch.int64)
            for rank in range(WORLD):
                expected[batch_of(rank, call)] += 1
            assert torch.equal(visited, expected)
        earlier = states[0]
    assert all(rank["collective"] == (True, False) for rank in ranks)


if __name__ == "__main__":
    one_process(int(sys.argv[1]), sys.argv[2], sys.argv[3])


def test_a_table_made_in_inference_mode_is_written_to_in_training():
    data, rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10)
    fresh, restored = SeedCache(10, 2), SeedCache(10, 2)
    with torch.inference_mode():
        fresh(data, indices=rows)
        restored.load_state_dict(fresh.state_dict())
    for coupling in (fresh, restored):
        coupling(data, indices=rows)
        assert int(coupling.state_dict()["visits"].sum()) == 20
