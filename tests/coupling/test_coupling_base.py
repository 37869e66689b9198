"""What every coupling promises: shapes, dtypes, the generator, clear refusals, no heavy imports."""

import copy
import dataclasses
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from immiscible_policy.coupling import (
    KNN,
    Coupling,
    Independent,
    LinearAssignment,
    Mixture,
    Residual,
    SeedCache,
    Sinkhorn,
    Warmup,
    _checks,
)
from immiscible_policy.coupling._checks import LateCheck, require_unit_interval

ALL = [
    Independent(),
    KNN(k=2),
    KNN(k=3, metric="inner"),
    KNN(k=3, candidates="explicit"),
    KNN(k=3, metric="cosine"),
    KNN(k=3, metric="l1"),
    KNN(k=4, pick=2),
    KNN(k=4, metric="inner", pick=2),
    KNN(k=4, correct_norm=True),
    LinearAssignment(),
    LinearAssignment("sqeuclidean"),
    LinearAssignment("l1"),
    LinearAssignment("inner"),
    LinearAssignment("sqeuclidean", solver="auction"),
    LinearAssignment("sqeuclidean", "fp16", solver="greedy"),
    LinearAssignment("sqeuclidean", standardize=True),
    LinearAssignment(pool_factor=1.5),
    LinearAssignment("inner", "bf16", "auction", True, 2, across_ranks=True),
    Mixture(KNN(4), p=0.7),
    Mixture(LinearAssignment(), p=0.7),
    Mixture(KNN(4), p=1.0),
    Sinkhorn(),
    Sinkhorn(0.1, "l2"),
    Sinkhorn(rounding="sample"),
]
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL), shapes, dtypes, st.integers(0, 2**31), st.booleans())
def test_any_rank_and_dtype_in_the_same_out(coupling, shape, dtype, seed, given_noise):
    data = torch.randn(shape, generator=generator(seed)).to(dtype)
    noise = torch.randn(shape, generator=generator(seed + 1)).to(dtype) if given_noise else None
    before = data.clone(), None if noise is None else noise.clone()
    result = coupling(data, noise, generator=generator(seed + 2))
    assert result.shape == data.shape
    assert result.dtype == dtype
    assert result.device == data.device
    assert torch.isfinite(result).all()
    assert torch.equal(data, before[0])
    if noise is not None:
        assert torch.equal(noise, before[1])


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_the_generator_decides_everything(coupling):
    data = torch.randn(16, 4, 2, generator=generator(0))
    torch.manual_seed(1)
    first = coupling(data, generator=generator(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = coupling(data, generator=generator(5))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, coupling(data, generator=generator(6)))


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_rows_stay_with_their_sample(coupling):
    """Far-apart samples get noise that leans towards themselves (or nothing), never data moved."""
    data = torch.randn(32, 8, generator=generator(0)) * 2
    noise = coupling(data, generator=generator(1))
    own = (data * noise).sum(1).mean()
    other = (data.roll(1, 0) * noise).sum(1).mean()
    if isinstance(coupling, Independent):
        assert torch.equal(noise, torch.randn(32, 8, generator=generator(1)))
    else:
        assert own > other + 0.5


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_no_gradient_flows(coupling):
    data = torch.randn(4, 3, requires_grad=True)
    noise = torch.randn(4, 3, requires_grad=True)
    assert not coupling(data).requires_grad
    assert not coupling(data, noise).requires_grad


@pytest.mark.parametrize("coupling", ALL, ids=repr)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_empty_batches_come_back_empty(coupling, shape):
    assert coupling(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_autocast_does_not_lower_the_precision_of_distances(coupling):
    data = torch.randn(64, 16, generator=generator(0))
    plain = coupling(data, generator=generator(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = coupling(data, generator=generator(1))
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_state_is_empty_and_foreign_state_is_refused(coupling):
    assert coupling.state_dict() == {}
    coupling.load_state_dict({})
    with pytest.raises(ValueError, match=r"state of \w+ must be empty.*\['weight'\]"):
        coupling.load_state_dict({"weight": 1.0})


def test_a_coupling_of_ones_own_with_a_fit_is_shown_everything():
    class Fitted(Independent):
        def fit(self, data, condition=None):
            pass

    assert Fitted().fit_uses == {"data", "condition"}
    assert Independent().fit_uses == frozenset()
    Independent().fit_size(5)


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_couplings_are_frozen_values(coupling):
    settings = {field.name: getattr(coupling, field.name) for field in dataclasses.fields(coupling) if field.init}
    assert coupling == type(coupling)(**settings)
    assert hash(coupling) == hash(type(coupling)(**settings))
    with pytest.raises(FrozenInstanceError):
        coupling.k = 5


def test_a_new_coupling_needs_only_one_method():
    class Opposite(Coupling):
        def _couple(self, data, noise, context):
            return -noise

    noise = torch.randn(3, 2)
    assert torch.equal(Opposite()(torch.zeros(3, 2), noise), -noise)


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_the_text_of_a_coupling_makes_it_again(coupling):
    assert eval(repr(coupling), {type(c).__name__: type(c) for c in ALL}) == coupling


X = torch.zeros(4, 3, 2)
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"data": [[0.0]]}, TypeError, r"data must be a torch.Tensor, got list"),
    ({"data": torch.zeros(4, 3, dtype=torch.long)}, TypeError, r"data must be float16.*got torch.int64"),
    ({"data": torch.tensor(1.0)}, ValueError, r"data must have a batch dimension.*shape \(\)"),
    ({"data": X + float("nan")}, ValueError, r"data must be finite, got 24 NaN or infinite of 24"),
    ({"data": X - float("inf")}, ValueError, r"data must be finite, got 24 NaN or infinite of 24"),
    ({"data": X + 1e25}, ValueError, r"data must be normalised.*1e\+25.*overflow torch.float32"),
    ({"data": X, "noise": 0.0}, TypeError, r"noise must be a torch.Tensor or None, got float"),
    (
        {"data": X, "noise": torch.zeros(4, 6)},
        ValueError,
        r"noise must have the shape of data \(4, 3, 2\), got \(4, 6\)",
    ),
    (
        {"data": X, "noise": X.double()},
        TypeError,
        r"noise must have the dtype of data torch.float32, got torch.float64",
    ),
    ({"data": X, "noise": X.to("meta")}, ValueError, r"noise must be on the device of data cpu, got meta"),
    ({"data": X, "noise": X * float("nan")}, ValueError, r"noise must be finite, got 24 NaN"),
    ({"data": X, "condition": "red"}, TypeError, r"condition must be a torch.Tensor or None, got str"),
    (
        {"data": X, "condition": torch.zeros(5)},
        ValueError,
        r"condition must have one row per sample.*B=4.*\(5,\)",
    ),
    ({"data": X, "condition": torch.tensor(5)}, ValueError, r"condition must have one row per sample.*\(\)"),
    ({"data": X, "mask": [True]}, TypeError, r"mask must be a torch.Tensor or None, got list"),
    ({"data": X, "mask": torch.ones(4, 3, 2)}, TypeError, r"mask must be a bool tensor.*got torch.float32"),
    (
        {"data": X, "mask": torch.ones(4, 3, dtype=torch.bool)},
        ValueError,
        r"mask must be broadcastable.*mask\[..., None\]",
    ),
    (
        {"data": X, "mask": torch.ones(1, 4, 3, 2, dtype=torch.bool)},
        ValueError,
        r"mask must be broadcastable.*\(1, 4, 3, 2\)",
    ),
    (
        {"data": X, "mask": torch.ones(4, 3, 2, dtype=torch.bool, device="meta")},
        ValueError,
        r"mask must be on the device",
    ),
    ({"data": X, "generator": 3}, TypeError, r"generator must be a torch.Generator or None, got int"),
    ({"data": X, "time": 0.5}, TypeError, r"time must be a torch.Tensor or None, got float"),
    ({"data": X, "time": torch.zeros(4, dtype=torch.long)}, TypeError, r"time must be a float tensor.*got torch.int64"),
    ({"data": X, "time": torch.zeros(3)}, ValueError, r"time must have shape \(B,\) = \(4,\), got \(3,\)"),
    ({"data": X, "time": torch.arange(4) * 333.0}, ValueError, r"time must be in \[0, 1\], got values in \[0, 999\]"),
    (
        {"data": X, "time": torch.full((4,), -0.1)},
        ValueError,
        r"time must be in \[0, 1\], got values in \[-0.1, -0.1\]",
    ),
    ({"data": X, "time": torch.full((4,), float("nan"))}, ValueError, r"time must be in \[0, 1\], got values in \[nan"),
    ({"data": X, "indices": [0, 1, 2, 3]}, TypeError, r"indices must be a torch.Tensor or None, got list"),
    ({"data": X, "indices": torch.zeros(4)}, TypeError, r"indices must be an int64 or int32 tensor, got torch.float32"),
    (
        {"data": X, "indices": torch.zeros(4, 1, dtype=torch.long)},
        ValueError,
        r"indices must have shape \(B,\) = \(4,\), got \(4, 1\)",
    ),
    (
        {"data": X.to("meta"), "generator": torch.Generator()},
        ValueError,
        r"generator must be on the device of data meta, got cpu",
    ),
]


@pytest.mark.parametrize("coupling", [Independent(), KNN(k=2), LinearAssignment(), Warmup(KNN(k=2))], ids=repr)
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(coupling, arguments, error, message):
    with pytest.raises(error, match=message):
        coupling(**arguments)


def test_norms_on_a_gpu_are_read_when_they_have_arrived():
    arrived = []

    def begin_copy(norm):
        arrived.append(False)
        place = len(arrived) - 1
        return norm.clone(), lambda: arrived[place]

    check = LateCheck(begin_copy).check
    check(torch.tensor(float("nan")))
    check(torch.tensor(1.0))  # the first is still under way
    assert len(arrived) == 1
    arrived[0] = True
    with pytest.raises(ValueError, match=r"data and noise must be finite .* at an earlier call their norm was nan"):
        check(torch.tensor(1.0))
    for _ in range(3):
        check(torch.tensor(2.0))
        arrived[-1] = True
    assert len(arrived) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_ends_of_diffusion_time_are_times(dtype):
    time = torch.tensor([0.0, 1.0], dtype=dtype)
    assert Independent()(torch.zeros(2, 3), time=time).shape == (2, 3)
    assert Independent()(torch.zeros(0, 3), time=time[:0]).shape == (0, 3)


def test_times_on_a_gpu_are_read_when_they_have_arrived(monkeypatch):
    """Fake tensors are on a GPU without one, and refuse to tell a value as a wait for it would."""
    read = []

    def begin_copy(distance):
        read.append(tuple(distance.shape))
        return torch.tensor(0.5 if len(read) == 1 else 998.5), lambda: True

    monkeypatch.setattr(_checks, "_copy_from_gpu", begin_copy)
    monkeypatch.setattr(_checks, "_LATE_UNIT_INTERVAL", {})
    with FakeTensorMode():
        time = torch.empty(4, device="cuda")
        require_unit_interval("time must be", time)
        require_unit_interval("p must be", time)
        require_unit_interval("time must be", time)
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], but at an earlier call .* up to 998.5 from"):
            require_unit_interval("p must be", time)
    assert read == [(), (), ()]


COMPILED = [
    Independent(),
    KNN(k=8),
    KNN(k=3, metric="inner"),
    LinearAssignment(),
    Mixture(KNN(k=8)),
    Warmup(KNN(k=8), start=1, anneal_to={"k": 1}, anneal_over=3),
]


@pytest.mark.parametrize("coupling", COMPILED, ids=repr)
def test_a_compiled_step_takes_batches_of_any_size(coupling):
    torch.compiler.reset()
    plain, compiled = copy.deepcopy(coupling), copy.deepcopy(coupling)

    @torch.compile(backend="eager")
    def step(data):
        return 2 * compiled(data) - data

    for size in (16, 16, 10, 12, 1):
        data = torch.randn(size, 8, generator=generator(size))
        torch.manual_seed(size)
        found = step(data)
        torch.manual_seed(size)
        assert torch.equal(found, 2 * plain(data) - data)


@pytest.mark.parametrize(
    "coupling",
    [
        *ALL,
        KNN(k=3, weights={1: [1, 2, 0, 1.25]}),
        KNN(k=3, features={1: [0, 1, 3]}, candidates="explicit"),
        SeedCache(32),
        Residual(KNN(k=2)),
    ],
    ids=repr,
)
def test_the_default_device_is_no_matter(coupling):
    """Where a device is not named, data on the CPU meets tensors of another one, as data on a GPU would."""
    data, condition = torch.randn(16, 4, generator=generator(0)), torch.randn(16, 2, generator=generator(1))
    results = []
    for device in ("meta", "cpu"):
        other = copy.deepcopy(coupling)
        own, rows = generator(2), torch.arange(16)
        with torch.device(device):
            other.fit(data, condition)
            noise = other(data, condition=condition, generator=own, indices=rows)
            state = other.state_dict()
        other.load_state_dict(state)
        results.append(noise)
    assert torch.equal(*results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_default_device_may_be_the_gpu():
    with torch.device("cuda"):
        for _ in range(3):
            assert KNN(k=2)(torch.randn(16, 4), time=torch.rand(16)).device.type == "cuda"


def test_what_is_read_from_a_gpu_arrives_on_the_cpu(monkeypatch):
    made = []

    def empty(shape, *, dtype, device=None, pin_memory):
        made.append((torch.zeros(shape, dtype=dtype, device=device), pin_memory))
        return made[-1][0]

    class Event:
        def record(self, stream):
            pass

        def query(self):
            return True

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    norm = torch.tensor(3.0)
    with torch.device("meta"):
        host, has_arrived = _checks._copy_from_gpu(norm)
    assert has_arrived()
    assert float(host) == 3.0
    assert [pinned for _, pinned in made] == [True]


@pytest.mark.parametrize("coupling", ALL, ids=repr)
def test_padding_may_hold_anything(coupling):
    data = torch.randn(6, 4, 2, generator=generator(0))
    mask = torch.ones(6, 4, 1, dtype=torch.bool)
    mask[2:, 3] = False
    poisoned = data.masked_fill(~mask, float("nan"))
    zeroed = data.masked_fill(~mask, 0.0)
    result = coupling(poisoned, mask=mask, generator=generator(1))
    assert torch.equal(result, coupling(zeroed, mask=mask, generator=generator(1)))
    with pytest.raises(ValueError, match="data must be finite, got 8 NaN"):
        coupling(poisoned)


def test_import_stays_light():
    heavy = ("torch._dynamo", "diffusers", "transformers", "accelerate", "hydra", "gymnasium", "matplotlib")
    code = (
        "import sys, torch, immiscible_policy.coupling as coupling; coupling.KNN()(torch.zeros(4, 2)); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
