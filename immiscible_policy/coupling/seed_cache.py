"""SeedCache: each datum remembers its noises, which batches exchange until the whole data set is assigned.

LOOM-CFM (Davtyan, Dadi, Cevher & Favaro, "Faster inference of flow-based generative models via improved
data-noise coupling", ICLR 2025), section 3: assignments within batches, whose noises are kept as seeds
from epoch to epoch, converge towards an assignment over the data set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_policy.coupling import solvers
from immiscible_policy.coupling._checks import compute_dtype
from immiscible_policy.coupling._costs import METRICS, pairwise_cost
from immiscible_policy.coupling._ranks import Alone, all_ranks, world_size
from immiscible_policy.coupling._settings import require_count, require_one_of, require_own_columns
from immiscible_policy.coupling.base import Context, Coupling, Source

_SEEDS = 1 << 32  # torch's generators tell no more seeds than these apart on the CPU


@dataclass(frozen=True, repr=False)
class SeedCache(Coupling):
    """Each datum keeps seeds of ``n_caches`` noises; every call lets its batch exchange them for nearer ones.

    A call takes one of each datum's seeds at random, makes the noises again, assigns them within the
    batch at the least cost, and gives each datum the seed of the noise that it got. Seeds change owners
    but are never lost, so that all cached noises together remain independent draws from the source.
    Needs ``indices``, each at most once a batch, and makes its own noise (``noise`` must be None).

    A seed's noise depends on the seed, the shape of a datum and whether data is float64, on nothing else:
    every row is drawn on the CPU by a generator of its own and then moved. (The vectorised alternative, a
    counter-based generator in tensor operations, is slower on a CPU and rounds differently on a GPU.)
    The seeds follow from one number, drawn from the generator of the first call and kept in the state.

    With torch.distributed every call is collective: ranks assign their own batches and exchange the new
    owners, so that all hold the same table. (Where two ranks visit one datum's cache at once, as padded
    samplers may make them, the later rank's seed is kept, and one seed is lost for a doubled one.)

    >>> data_set = torch.randn(1000, 16, 2)
    >>> coupling = SeedCache(n_data=len(data_set), n_caches=2)
    >>> indices = torch.randperm(1000)[:64]
    >>> noise = coupling(data_set[indices], indices=indices)

    Args:
        n_data: size of the data set; None is what :meth:`fit` or :meth:`fit_size` is told.
        n_caches: noises per datum, >= 1.
        metric: cost of a pair: "l2", "sqeuclidean", "l1" or "inner", as in LinearAssignment.
        solver: "exact", "auction", "greedy" (see :mod:`~immiscible_policy.coupling.solvers`), or a callable
            ``cost (B, B) -> (B,)`` different columns.
        resample_every: visits after which a datum's cache gets a fresh seed; None keeps seeds for ever, so
            that the network never sees more than ``n_caches`` noises per datum.
        source: distribution of the noise, ``(shape, generator) -> tensor``, called with the shape of one
            row (1, ...) and a CPU generator; None is N(0, I).

    Raises:
        ValueError: on construction for an argument outside these ranges; on call without ``indices``, for
            indices outside the data set or repeated, for a given ``noise``, or where neither ``n_data`` nor
            :meth:`fit` nor :meth:`fit_size` told the size of the data set.
    """

    n_data: int | None = None
    n_caches: int = 6
    metric: Literal["l2", "sqeuclidean", "l1", "inner"] = "sqeuclidean"
    solver: str | Callable[[Tensor], Tensor] = "exact"
    resample_every: int | None = None
    source: Source | None = None
    _state: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_data is not None:
            require_count("n_data", self.n_data)
        require_count("n_caches", self.n_caches)
        if self.resample_every is not None:
            require_count("resample_every", self.resample_every)
        require_one_of("metric", self.metric, METRICS)
        if not callable(self.solver):
            require_one_of("solver", self.solver, tuple(solvers.SOLVERS), "a callable")

    def _couple(self, data: Tensor, noise: Tensor | None, context: Context) -> Tensor:
        if noise is not None:
            raise ValueError("noise must be None for SeedCache, which makes the noises of its own seeds; got a tensor")
        if self._is_snapshot and context.indices is None:
            return self._exchange(data, self._unseen(data, context), context.mask)[0]
        rows = self._rows(context.indices, data.shape[0])
        if self.is_collective:
            group: Alone = all_ranks(data, None, None, context.generator, repr(self))
        else:
            group = Alone((data.shape[0],), (context.generator,))
        seeds, visits = self._table(group.generators[0], data.device)
        slots = torch.randint(
            self.n_caches, rows.shape, generator=group.generators[group.rank], device=data.device
        ).cpu()
        noise, new = self._exchange(data, self._current(rows, slots), context.mask)
        if not self._is_snapshot:
            written = torch.stack((rows, slots, new), 1)
            if self.is_collective:
                written = group.gather(written.to(data.device)).cpu()
            # One rank after the other: the order decides where two of them write to one place.
            for part in written.split(group.sizes):
                place = part[:, 0], part[:, 1]
                seeds[place] = part[:, 2]
                visits[place] += 1
        return noise

    def _exchange(self, data: Tensor, seeds: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, ...) noises of (B,) seeds, assigned to data, and (B,) the seeds in that order."""
        noise = self._noise(seeds, data)
        if data.shape[0] <= 1:
            return noise, seeds
        cost = pairwise_cost(data, noise, self.metric, mask, drop_constants=True)
        if callable(self.solver):
            columns = self.solver(cost)
            require_own_columns(columns, cost)
            columns = columns.to(device=cost.device, dtype=torch.int64)
        else:
            columns = solvers.SOLVERS[self.solver](cost)
        return noise[columns], seeds[columns.cpu()]

    def _noise(self, seeds: Tensor, data: Tensor) -> Tensor:
        """(B, ...) noise like ``data``, row by row from (B,) seeds."""
        if len(seeds) == 0:
            return torch.empty_like(data)
        like = torch.empty(0, dtype=compute_dtype(data), device="cpu")
        context = Context(generator=torch.Generator("cpu"))
        drawn = []
        for seed in seeds.tolist():
            context.generator.manual_seed(seed)  # type: ignore[union-attr]
            drawn.append(self._draw((1, *data.shape[1:]), like, context))
        return torch.cat(drawn).to(device=data.device, dtype=data.dtype)

    def _current(self, rows: Tensor, slots: Tensor) -> Tensor:
        """(b,) the seeds at these places of the table; fresh ones where they have been visited often enough."""
        seeds, visits = self._state["seeds"][rows, slots], self._state["visits"][rows, slots].long()
        if self.resample_every is None or self._is_snapshot:
            return seeds
        # Which seed is fresh follows from the place and its visits, so that no two places ever share one.
        size = self._state["seeds"].numel()
        fresh = visits // self.resample_every * size + rows * self.n_caches + slots
        is_due = (visits > 0) & (visits % self.resample_every == 0)
        return torch.where(is_due, _scatter(fresh, self._state["base"]), seeds)

    def _unseen(self, data: Tensor, context: Context) -> Tensor:
        """(B,) seeds for data without a place in the table."""
        return torch.randint(_SEEDS, data.shape[:1], generator=context.generator, device=data.device).cpu()

    def _rows(self, indices: Tensor | None, batch: int) -> Tensor:
        """(B,) int64 places in the table on the CPU, checked."""
        n_data = self._size()
        if n_data is None:
            raise ValueError(
                "n_data must be given to SeedCache, or fit(data) be called with the whole data set, or fit_size(n_data)"
            )
        if indices is None:
            raise ValueError("indices must be given to SeedCache: (B,) places of the samples in the data set, got None")
        rows = indices.detach().cpu().long()
        if batch and (int(rows.min()) < 0 or int(rows.max()) >= n_data):
            raise ValueError(
                f"indices must be in [0, n_data) = [0, {n_data}), got {int(rows.min())} to {int(rows.max())}"
            )
        repeated = batch - len(torch.unique(rows))
        if repeated:
            raise ValueError(f"indices must differ within a batch, got {repeated} of {batch} repeated")
        return rows

    def _size(self) -> int | None:
        return self.n_data if self.n_data is not None else self._state.get("n_data")

    def _table(self, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """(N, C) seeds and visits, made at the first call."""
        if "seeds" not in self._state:
            shape = (self._size() or 0, self.n_caches)
            base = int(torch.randint(_SEEDS, (), generator=generator, device=device))
            with torch.inference_mode(False):  # what is made in inference mode cannot be written to outside of it
                places = torch.arange(shape[0] * shape[1], device="cpu").reshape(shape)
                visits = torch.zeros(shape, dtype=torch.int32, device="cpu")
                self._state.update(base=base, seeds=_scatter(places, base), visits=visits)
        return self._state["seeds"], self._state["visits"]

    @property
    def _is_snapshot(self) -> bool:
        return bool(self._state.get("is_snapshot"))

    @property
    def is_collective(self) -> bool:
        return world_size() > 1 and not self._is_snapshot

    @property
    def uses_indices(self) -> bool:
        return not self._is_snapshot

    @property
    def takes_noise(self) -> bool:
        return False

    @property
    def caveat(self) -> str | None:
        seen = "for ever" if self.resample_every is None else f"for {self.resample_every} visits"
        return (
            f"each datum meets the same {self.n_caches} noises {seen}, ever nearer ones, so that p(noise | datum), and "
            "with it p(noise | condition), narrows, although all cached noises together are the source's"
        )

    def fit_size(self, n_data: int) -> None:
        """Take the size of the data set, where ``n_data`` of the settings is None.

        Raises:
            ValueError: it is more than ``n_data`` of the settings, or not the number that the seeds were made for.
        """
        if self.n_data is not None:
            if n_data > self.n_data:
                raise ValueError(f"data must have at most n_data={self.n_data} samples, got {n_data}")
            return
        known = self._state["seeds"].shape[0] if "seeds" in self._state else n_data
        if n_data != known:
            raise ValueError(f"data must have the {known} samples that the seeds were made for, got {n_data}")
        require_count("the number of samples in data", n_data)
        self._state["n_data"] = n_data

    def for_validation(self) -> SeedCache:
        """A copy that exchanges noises within batches but remembers nothing of it.

        Without ``indices``, as for data that is not in the table, it takes seeds from the generator.
        """
        copy = dataclasses.replace(self)
        copy._state.update(self._state, is_snapshot=True)
        for name in ("seeds", "visits"):
            if name in copy._state:
                copy._state[name] = copy._state[name].clone()
        return copy

    def at_inference(self) -> SeedCache:
        raise ValueError(
            "SeedCache keeps noises for the samples of its data set: it has none for data that is being sampled"
        )

    def state_dict(self) -> dict[str, Any]:
        """``seeds`` (N, C) int64, ``visits`` (N, C) int32 and ``base`` () int64; empty before the first call."""
        if "seeds" not in self._state:
            return {}
        state = self._state
        base = torch.tensor(state["base"], device="cpu")
        return {"seeds": state["seeds"].clone(), "visits": state["visits"].clone(), "base": base}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: ``state`` holds other keys, or tables of another data set or number of caches.
        """
        if not state:
            for name in ("seeds", "visits", "base"):
                self._state.pop(name, None)
            return
        if set(state) != {"seeds", "visits", "base"}:
            raise ValueError(f"state of SeedCache must hold seeds, visits and base, got the keys {sorted(state)}")
        size = self._size()
        for name, dtype in (("seeds", torch.int64), ("visits", torch.int32)):
            table = state[name]
            found = (table.dtype, tuple(table.shape)) if isinstance(table, Tensor) else type(table).__name__
            rows = len(state["seeds"]) if isinstance(state["seeds"], Tensor | list) else 0
            wanted = (size if size is not None else rows, self.n_caches)
            if found != (dtype, wanted):
                raise ValueError(
                    f"{name} of the state must be {dtype} of shape (n_data, n_caches) = {wanted}, got {found}"
                )
            if table.numel() and int(table.min()) < 0:
                raise ValueError(f"{name} of the state must be at least 0, got {int(table.min())}")
        base = state["base"]
        if isinstance(base, Tensor) and base.numel() == 1:
            base = base.item()
        if isinstance(base, bool) or not isinstance(base, int):
            raise ValueError(f"base of the state must be an integer, got {base!r}")
        with torch.inference_mode(False):  # as for a new table
            seeds, visits = (state[name].detach().cpu().clone() for name in ("seeds", "visits"))
        self._state.update(seeds=seeds, visits=visits, base=base)
        if self.n_data is None:
            self._state["n_data"] = state["seeds"].shape[0]


def _scatter(numbers: Tensor, base: int) -> Tensor:
    """A permutation of the 32-bit numbers that depends on ``base``: counts in, seeds out, none of them twice."""
    return _mix(_mix(numbers % _SEEDS) ^ base)


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, a bijection, on int64 tensors of numbers below 2^32."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) % _SEEDS
    return x ^ (x >> 16)
