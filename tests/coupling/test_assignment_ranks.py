"""One assignment over the batches of all ranks, on real gloo processes: as one process on the whole batch.

Run as a script, this file is one such process. The tests start 2 and 3 of them, once each, and compare what
they saved with the same calls in this process.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_policy.coupling import LinearAssignment
from immiscible_policy.coupling._ranks import Alone, world_size
from immiscible_policy.coupling.condition_weight import ClusteredConditions, ConditionWeight, TargetRate

SIZES = {2: (7, 4), 3: (5, 2, 6)}
EMPTY = {2: (6, 0), 3: (0, 4, 3)}

# name -> settings of the coupling, and what is special about the batch
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "l2": ({}, {"noise": "given"}),
    "sqeuclidean, drawn": ({"metric": "sqeuclidean"}, {}),
    "l1, shared mask": ({"metric": "l1"}, {"mask": "shared"}),
    "inner, float64": ({"metric": "inner"}, {"dtype": torch.float64, "noise": "given"}),
    "half precision data": ({}, {"dtype": torch.float16, "noise": "given"}),
    "bfloat16 data": ({}, {"dtype": torch.bfloat16}),
    "rounded cost beyond its range on one rank": ({"metric": "sqeuclidean", "cost_dtype": "fp16"}, {"far": 4000.0}),
    "standardize": ({"metric": "sqeuclidean", "standardize": True}, {"far": 3.0}),
    "standardize, mask": ({"standardize": True}, {"mask": "rows"}),
    "flipped": ({"target": "flipped"}, {"noise": "given"}),
    "within labels": ({"within": "condition"}, {"condition": "labels"}),
    "fixed weight": ({"condition_weight": 2.0}, {"condition": "vectors", "noise": "given"}),
    "weight of labels": ({"metric": "sqeuclidean", "condition_weight": 1e6}, {"condition": "labels"}),
    "target rate": ({"metric": "sqeuclidean", "condition_weight": TargetRate(rate=0.2)}, {"condition": "vectors"}),
    "clusters": ({"condition_weight": ClusteredConditions(n_clusters=3)}, {"condition": "vectors"}),
    "pool": ({"metric": "sqeuclidean", "pool_factor": 1.5}, {}),
    "pool, noise given": ({"pool_factor": 2}, {"noise": "given"}),
    "pool within labels": ({"pool_factor": 2, "within": "condition"}, {"condition": "labels"}),
    "pool, most labels alone": ({"pool_factor": 1.3, "within": "condition"}, {"condition": "all different"}),
    "greedy": ({"solver": "greedy"}, {}),
    "a rank without samples": ({}, {"sizes": EMPTY}),
    "a rank without samples, everything on": (
        {"standardize": True, "within": "condition", "cost_dtype": "bf16", "pool_factor": 2},
        {"sizes": EMPTY, "condition": "labels", "mask": "rows", "noise": "given"},
    ),
    "one sample each": ({}, {"sizes": {2: (1, 1), 3: (1, 1, 1)}}),
    "one sample in all": ({}, {"sizes": {2: (0, 1), 3: (0, 1, 0)}}),
    "no samples": ({}, {"sizes": {2: (0, 0), 3: (0, 0, 0)}, "noise": "given"}),
    "scalars": ({"metric": "l2"}, {"shape": ()}),
    "rows of nothing": ({}, {"shape": (0,), "noise": "given"}),
}  # fmt: skip


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorder:
    """A Gaussian source that keeps what it drew."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.drawn: list[torch.Tensor] = []

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        self.drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        return self.drawn[-1]


def whole_batch(options: dict[str, Any], world: int, seed: int) -> dict[str, Any]:
    """The arguments of one call on the batch of all ranks."""
    sizes, shape = options.get("sizes", SIZES)[world], options.get("shape", (5, 3))
    batch, dtype = sum(sizes), options.get("dtype", torch.float32)
    data = 0.7 * torch.randn(batch, *shape, generator=generator(seed))
    data[: sizes[0]] += options.get("far", 0.0)
    call: dict[str, Any] = {"data": data.to(dtype)}
    if "noise" in options:
        call["noise"] = torch.randn(batch, *shape, generator=generator(seed + 1)).to(dtype)
    if options.get("condition") == "labels":
        call["condition"] = torch.randint(0, 3, (batch,), generator=generator(seed + 2))
    if options.get("condition") == "all different":
        call["condition"] = torch.arange(batch)
    if options.get("condition") == "vectors":
        call["condition"] = torch.randn(batch, 2, generator=generator(seed + 2))
    if "mask" in options:
        rows = 1 if options["mask"] == "shared" else batch
        call["mask"] = torch.rand(rows, *shape, generator=generator(seed + 3)) < 0.6
    return call


def of_rank(call: dict[str, Any], sizes: tuple[int, ...], rank: int) -> dict[str, Any]:
    start = sum(sizes[:rank])
    shared = call.get("mask") is not None and len(call["mask"]) == 1 < len(call["data"])
    return {
        name: value if name == "mask" and shared else value[start : start + sizes[rank]] for name, value in call.items()
    }


def coupling_of(settings: dict[str, Any], source: Recorder, across_ranks: bool) -> LinearAssignment:
    weight = settings.get("condition_weight", 0)
    if isinstance(weight, ConditionWeight):
        weight = dataclasses.replace(weight)  # with a memory of its own
    coupling = LinearAssignment(**{**settings, "condition_weight": weight}, source=source, across_ranks=across_ranks)
    coupling.fit(torch.zeros(50, 1), torch.randn(50, 2, generator=generator(77)))
    return coupling


# What one process does. ------------------------------------------------------------------------------------


def run_cases(rank: int, world: int) -> dict[str, Any]:
    saved = {}
    for position, (name, (settings, options)) in enumerate(CASES.items()):
        source = Recorder()
        coupling = coupling_of(settings, source, across_ranks=True)
        assert coupling.is_collective
        call = of_rank(whole_batch(options, world, position), options.get("sizes", SIZES)[world], rank)
        result = coupling(**call, generator=generator(5))  # seeded alike on all ranks, as training scripts do
        saved[name] = {"result": result, "drawn": source.drawn, "state": coupling.state_dict()}
    return saved


def run_errors(rank: int, world: int) -> dict[str, str]:
    """Calls that differ between ranks; every rank must raise, and the next call work."""
    data, last = torch.zeros(3, 4), rank == world - 1
    calls = {
        "shape": (LinearAssignment(across_ranks=True), {"data": torch.zeros(3, 5) if last else data}),
        "dtype": (LinearAssignment(across_ranks=True), {"data": data.double() if last else data}),
        "noise": (LinearAssignment(across_ranks=True), {"data": data, "noise": data if last else None}),
        "settings": (LinearAssignment("l1" if last else "l2", across_ranks=True), {"data": data}),
        "condition": (
            LinearAssignment(within="condition", across_ranks=True),
            {"data": data, "condition": None if last else torch.zeros(3, 2)},
        ),
        "no condition": (LinearAssignment(within="condition", across_ranks=True), {"data": data}),
        "infinite cost": (
            LinearAssignment("l2", "fp16", across_ranks=True),
            {"data": data + 1e5 * last, "noise": data},
        ),
        "infinite condition": (
            LinearAssignment(condition_weight=1.0, across_ranks=True),
            {"data": data, "condition": torch.full((3, 1), float("nan") if last else 0.0)},
        ),
    }
    messages = {}
    for name, (coupling, call) in calls.items():
        try:
            coupling(**call)
            messages[name] = "no error"
        except ValueError as error:
            messages[name] = str(error)
    return messages


def run_accelerate(rank: int) -> dict[str, Any]:
    """Gradient accumulation with an uneven last batch, through accelerate."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(even_batches=False, split_batches=False),
    )
    assert accelerator.num_processes == 2
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 3)
    loader = torch.utils.data.DataLoader(torch.randn(22, 3, generator=generator(1)), batch_size=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    source = Recorder()
    coupling = LinearAssignment("sqeuclidean", across_ranks=True, source=source)
    steps = []
    draws = generator(100 + rank)
    for data in loader:
        with accelerator.accumulate(network):
            source.drawn.clear()
            noise = coupling(data, generator=draws)
            loss = (network(data + noise) - noise).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        steps.append({"data": data, "noise": noise, "drawn": list(source.drawn)})
    return {"steps": steps, "weight": accelerator.unwrap_model(network).weight.detach()}


def main(rank: int, world: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    saved: dict[str, Any] = {"cases": run_cases(rank, world), "errors": run_errors(rank, world)}
    if rank == 0:
        # Validation runs on one rank alone: this would wait for ever if it were collective.
        coupling = LinearAssignment(across_ranks=True).for_validation()
        saved["validation"] = coupling(torch.ones(3, 2), torch.eye(3)[:, :2])
    if world == 2:
        saved["accelerate"] = run_accelerate(rank)
    torch.distributed.barrier()
    torch.save(saved, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


# What the tests check. -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    world = request.param
    folder = tmp_path_factory.mktemp(f"ranks{world}")
    processes = []
    for rank in range(world):
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }  # fmt: skip
        command = [sys.executable, __file__, str(rank), str(world), str(folder)]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def best_of_pool(settings: dict[str, Any], call: dict[str, Any], pool: torch.Tensor, beside: torch.Tensor):
    """The rows of a pool that minimise the total cost, from the definition."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(call["data"].double().flatten(1), pool.double().flatten(1))
    cost = cost if settings.get("metric", "l2") == "l2" else cost.square()
    if "within" in settings:
        cost = cost + 1e6 * (call["condition"][:, None] != call["condition"][beside][None])
    return pool[torch.from_numpy(linear_sum_assignment(cost.numpy())[1])]


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_together_are_one_process_on_the_whole_batch(ranks, name):
    settings, options = CASES[name]
    world = len(ranks)
    sizes = options.get("sizes", SIZES)[world]
    call = whole_batch(options, world, list(CASES).index(name))
    found = [rank["cases"][name] for rank in ranks]
    assert [len(part["result"]) for part in found] == list(sizes)
    result = torch.cat([part["result"] for part in found])
    assert result.dtype == call["data"].dtype
    for part in found[1:]:
        # Every rank drew the same noises of all ranks, and remembers the same.
        assert all(torch.equal(a, b) for a, b in zip(part["drawn"], found[0]["drawn"], strict=True))
        assert str(part["state"]) == str(found[0]["state"])
    drawn = [part.to(call["data"].dtype) for part in found[0]["drawn"]]
    factor = settings.get("pool_factor", 1)
    reference = coupling_of(settings, Recorder(), across_ranks=False)
    if factor == 1:
        call.setdefault("noise", torch.cat(drawn) if drawn else call["data"])
        assert torch.equal(result, reference(**call))
        remembered, expected = found[0]["state"], reference.state_dict()
        if name == "target rate":
            # A process's rows of a matrix product differ from those of the whole in the last bit.
            remembered, expected = remembered["condition_weight"], expected["condition_weight"]
            assert remembered["weight"] == pytest.approx(expected["weight"], rel=1e-6)
        else:
            assert str(remembered) == str(expected)
        return
    extra = iter(drawn)
    pool, beside, start = [], [], 0
    for size in sizes:
        pool.append(call["noise"][start : start + size] if "noise" in call else next(extra))
        number = round(factor * size)
        if number > size:
            pool.append(next(extra))
        beside += [start + j % size for j in range(number)]
        start += size
    assert next(extra, None) is None
    whole = torch.cat(pool)
    assert len(whole) == len(beside) == sum(round(factor * size) for size in sizes)
    if "standardize" not in settings:
        assert torch.equal(result, best_of_pool(settings, call, whole, torch.tensor(beside)))
    else:
        taken = (result[:, None] == whole[None]).flatten(2).all(-1)
        assert (taken.sum(1) == 1).all()
        assert int(taken.sum(0).max()) == 1


def test_ranks_with_generators_seeded_alike_draw_different_noises(ranks):
    drawn = torch.cat(ranks[0]["cases"]["sqeuclidean, drawn"]["drawn"]).flatten(1)
    assert len(torch.unique(drawn, dim=0)) == len(drawn) == sum(SIZES[len(ranks)])
    assert abs(float(torch.corrcoef(drawn[:2])[0, 1])) < 0.9


def test_the_assignment_does_cross_ranks(ranks):
    parts = [rank["cases"]["sqeuclidean, drawn"] for rank in ranks]
    own = (parts[0]["result"].double()[:, None] == parts[0]["drawn"][0].float().double()[None]).flatten(2).all(-1)
    assert not own.any(1).all()


def test_calls_that_differ_between_ranks_fail_on_all(ranks):
    world = len(ranks)
    expected = {
        "shape": "data must be alike on all ranks, got ['torch.float32 (B, 4)', ",
        "dtype": f"'torch.float32 (B, 4)', {'' if world == 2 else chr(39) + 'torch.float32 (B, 4)' + chr(39) + ', '}"
        "'torch.float64 (B, 4)']",
        "noise": "noise must be alike on all ranks, got ['None', ",
        "settings": "the settings of the coupling must be alike on all ranks, got ['checksum ",
        "condition": "condition must be alike on all ranks, got ['torch.float32 (B, 2)', ",
        "no condition": "condition must be given to LinearAssignment(",
        "infinite cost": f"cost of data against noise must be finite, got {9 * world} NaN or infinite",
        "infinite condition": f"condition must be finite, got 3 NaN or infinite of {3 * world} entries",
    }
    for rank in ranks:
        assert set(rank["errors"]) == set(expected)
        for name, message in expected.items():
            assert message in rank["errors"][name], name


def test_validation_runs_on_one_rank_alone(ranks):
    assert ranks[0]["validation"].shape == (3, 2)


def test_accumulated_gradients_with_an_uneven_last_batch(ranks):
    if len(ranks) != 2:
        pytest.skip("run with 2 ranks only")
    steps = [rank["accelerate"]["steps"] for rank in ranks]
    assert [[len(step["data"]) for step in rank] for rank in steps] == [[4, 4, 4], [4, 4, 2]]
    for parts in zip(*steps, strict=True):
        data, noise = (torch.cat([part[name] for part in parts]) for name in ("data", "noise"))
        pool = torch.cat(parts[0]["drawn"]).float()
        assert torch.equal(noise, LinearAssignment("sqeuclidean")(data, pool))
    assert torch.equal(ranks[0]["accelerate"]["weight"], ranks[1]["accelerate"]["weight"])


def test_without_a_process_group_it_is_the_plain_assignment():
    data = torch.randn(8, 3, generator=generator(0))
    coupling = LinearAssignment(across_ranks=True)
    assert world_size() == 1
    assert not coupling.is_collective
    assert torch.equal(coupling(data, generator=generator(1)), LinearAssignment()(data, generator=generator(1)))


def test_one_process_gathers_itself():
    alone = Alone((4,), (None,))
    rows = torch.arange(4)
    assert alone.gather(rows) is rows
    assert alone.gather_same(rows).shape == (1, 4)
    assert alone.mine == slice(0, 4)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
