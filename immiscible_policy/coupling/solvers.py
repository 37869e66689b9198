"""Solvers of the linear assignment problem: each datum gets a noise of its own at a low total cost.

``exact`` is optimal. ``auction`` (Bertsekas, "The auction algorithm", Annals of Operations Research 14,
1988, in its Jacobi form: all unassigned rows bid at once) and ``greedy`` are approximate, and their
rounds are tensor operations on cost's device. All are deterministic, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Solver = Callable[[Tensor], Tensor]
"""``solver(cost (B, P) with P >= B, finite) -> (B,) int64``: for each row a column of its own, on cost's device."""

_WARM_START_FROM = 768  # rows; below, scipy alone is done sooner
_BLOCK = 64  # columns whose least is found in one vectorised step
_CHUNK = {"cpu": 1 << 18}  # entries that bidders look at in one step: on a CPU, what its cache holds
_MAX_ROUNDS = 1000
_MAX_BIDS_PER_ROW = 50.0  # mean over rows; ordinary costs need 3 to 10


def exact(cost: Tensor) -> Tensor:
    """The optimum, by scipy's ``linear_sum_assignment`` on the CPU in float64; O(B^3) in the worst case.

    Where every column is taken (P = B), a term that belongs to a column alone does not change the
    optimum, nor does one of a row alone, but scipy's search is the shorter the less the rows compete: its
    cost is first relieved of the columns' means or, for large B, of the prices that an auction found. After
    an auction nearly all rows have their least entry in a column of their own; the few columns that nobody
    wants take the longest, and taking the rows' least entries off and searching from the columns shortens it.
    """
    rows, columns = _check(cost)
    cost = _at_least_float32(cost)
    table = cost.cpu().double()
    if rows == columns and rows > 1:
        has_prices = rows >= _WARM_START_FROM
        popularity = _bid(cost, eps=0.05, stop=0.02)[1] if has_prices else -cost.mean(0)
        relieved = table + popularity.cpu().double()
        if has_prices:
            relieved -= relieved.amin(1, keepdim=True)
        # Costs near the largest float may overflow here; scipy then solves them as they are.
        if bool(torch.isfinite(relieved).all()):
            taken = _by_scipy(relieved.T.contiguous()).argsort() if has_prices else _by_scipy(relieved)
            return taken.to(cost.device)
    return _by_scipy(table).to(cost.device)


def auction(cost: Tensor, eps: float = 0.1, stop: float = 0.05, exact_up_to: int = 256) -> Tensor:
    """Near-optimal assignment: an auction among the rows until few are left, which are solved exactly.

    Args:
        cost: (B, P), P >= B, finite.
        eps: least rise of a price, in units of the standard deviation of the cost within its rows (for
            P = B after the columns' means are taken off, which do not matter then). Lower is nearer the
            optimum and slower.
        stop: share of rows in [0, 1). Once at most so many are unassigned, these rows are solved
            exactly for the columns still free. The last bidders take most of the rounds.
        exact_up_to: problems with at most so many rows are solved exactly, since that is faster.

    Returns:
        (B,) int64 columns, all different. Costs that no auction settles soon (rows that are all but
        equal) end it early; the rows then left are solved in the same way.

    Raises:
        ValueError: cost is not finite or not (B, P) with P >= B, or eps, stop are outside their ranges.
    """
    rows, _ = _check(cost)
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be finite and > 0, got {eps!r}")
    if not 0 <= stop < 1:
        raise ValueError(f"stop must be in [0, 1), got {stop!r}")
    if rows <= exact_up_to:
        return exact(cost)
    cost = _at_least_float32(cost)
    taken, _ = _bid(cost, eps, stop)
    left = (taken < 0).nonzero().squeeze(1)
    if len(left) == rows:
        return exact(cost)
    if len(left):
        is_free = torch.ones(cost.shape[1], dtype=torch.bool, device=cost.device)
        is_free[taken[taken >= 0]] = False
        free = is_free.nonzero().squeeze(1)
        taken[left] = free[exact(cost[left][:, free])]
    return taken


def greedy(cost: Tensor) -> Tensor:
    """The global greedy matching: the least entry of all, then the least in the other rows and columns, ...

    Found in rounds: every pair that is the least entry of both its row and its column belongs to it.
    Equal costs are ordered by (column - row) mod P, then by row, so that a constant cost gives the
    diagonal. Ordinary costs take some tens of rounds, sorted ones up to B. Unlike the optimum, the result
    depends on terms of a column alone: from distances it reaches less than from inner products.

    Args:
        cost: (B, P), P >= B, finite.

    Returns:
        (B,) int64 columns, all different.
    """
    n_rows, n_columns = _check(cost)
    cost = _at_least_float32(cost)
    taken = torch.full((n_rows,), -1, dtype=torch.int64, device=cost.device)
    rows = torch.arange(n_rows, device=cost.device)
    columns = torch.arange(n_columns, device=cost.device)
    # Names the partner as well as the tie-break: within a row or a column no offset occurs twice.
    offset = (columns - rows[:, None]).remainder_(n_columns).int()
    while len(rows):
        of_row = _first_least(cost, offset, 1)
        of_column = _first_least(cost, offset, 0)
        place = torch.full((n_columns,), -1, dtype=torch.int64, device=cost.device)
        place[columns] = torch.arange(len(columns), device=cost.device)
        wanted = (rows + of_row).remainder_(n_columns)
        is_mutual = of_column[place[wanted]] == of_row
        taken[rows[is_mutual]] = wanted[is_mutual]
        keep = torch.ones_like(columns, dtype=torch.bool)
        keep[place[wanted[is_mutual]]] = False
        rows, columns = rows[~is_mutual], columns[keep]
        cost, offset = cost[~is_mutual][:, keep], offset[~is_mutual][:, keep]
    return taken


SOLVERS: dict[str, Solver] = {"exact": exact, "auction": auction, "greedy": greedy}


def _bid(cost: Tensor, eps: float, stop: float) -> tuple[Tensor, Tensor]:
    """Auction until at most ``stop`` of the rows are unassigned.

    Returns:
        (B,) int64 columns, -1 where unassigned; and (P,) prices. cost + price is the dual's view: each
        assigned row is within eps of its least entry.
    """
    n_rows, n_columns = cost.shape
    price = _first_prices(cost)
    # A few hundred rows tell the spread well enough for a step size.
    some = cost[:: max(1, n_rows // 256)]
    step = eps * (some + price).std(1, correction=0).mean()
    taken = torch.full((n_rows,), -1, dtype=torch.int64, device=cost.device)
    if not bool((step > 0) & torch.isfinite(step)):
        return taken, price
    padding = -n_columns % _BLOCK
    padded_cost = torch.nn.functional.pad(cost, (0, padding), value=math.inf) if padding else cost
    price = torch.nn.functional.pad(price, (0, padding))
    owner = torch.full_like(price, n_rows, dtype=torch.int64)  # n_rows: nobody
    chunk = max(1, _CHUNK.get(cost.device.type, 1 << 26) // len(price))
    bidders = torch.arange(n_rows, device=cost.device)
    n_bids = n_rounds = 0
    while len(bidders) > stop * n_rows and n_rounds < _MAX_ROUNDS and n_bids < _MAX_BIDS_PER_ROW * n_rows:
        n_rounds, n_bids = n_rounds + 1, n_bids + len(bidders)
        parts = [_two_least(padded_cost.index_select(0, rows).add_(price)) for rows in bidders.split(chunk)]
        least, second, wanted = (torch.cat(part) for part in zip(*parts, strict=True))
        bid = price[wanted] + (second - least) + step
        highest = torch.full_like(price, -math.inf).scatter_reduce_(0, wanted, bid, "amax")
        # Of equal bids the lowest row's wins: unlike plain indexing, least and greatest do not depend
        # on the order in which a GPU happens to write.
        candidate = torch.where(bid == highest[wanted], bidders, n_rows)
        winner = torch.full_like(owner, n_rows).scatter_reduce_(0, wanted, candidate, "amin")
        sold = (winner < n_rows).nonzero().squeeze(1)
        previous = owner[sold]
        taken[previous[previous < n_rows]] = -1
        owner[sold] = winner[sold]
        taken[winner[sold]] = sold
        price[sold] = highest[sold]
        bidders = (taken < 0).nonzero().squeeze(1)
    return taken, price[:n_columns]


def _first_prices(cost: Tensor) -> Tensor:
    """(P,) prices to begin with: any will do if every column gets taken, else all must be equal."""
    if cost.shape[0] < cost.shape[1]:
        return torch.zeros_like(cost[0])
    return -cost.mean(0)


def _two_least(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least and second least of each row of (b, n * _BLOCK), and the least's column; (b,) each.

    By way of the blocks' least, since torch reduces along the last axis several times as fast as it
    finds an index or a ``topk``.
    """
    blocks = cost.unflatten(1, (-1, _BLOCK))
    block_least = blocks.amin(2)
    _, block = block_least.min(1, keepdim=True)
    inside = blocks.gather(1, block.unsqueeze(2).expand(-1, -1, _BLOCK)).squeeze(1)
    least, place = inside.min(1, keepdim=True)
    second = torch.minimum(
        block_least.scatter_(1, block, math.inf).amin(1), inside.scatter_(1, place, math.inf).amin(1)
    )
    return least.squeeze(1), second, (block * _BLOCK + place).squeeze(1)


def _first_least(cost: Tensor, offset: Tensor, dim: int) -> Tensor:
    """The lowest offset among the least entries along ``dim``."""
    return offset.where(cost == cost.amin(dim, keepdim=True), torch.iinfo(offset.dtype).max).amin(dim)


def _by_scipy(cost: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # costs a quarter of a second to import

    # Rows are data and columns noise: as they come, scipy solves this orientation faster than its transpose.
    _, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(columns)


def _at_least_float32(cost: Tensor) -> Tensor:
    cost = cost.detach()
    return cost if cost.dtype in (torch.float32, torch.float64) else cost.float()


def _check(cost: Tensor) -> tuple[int, int]:
    if cost.ndim != 2 or cost.shape[1] < cost.shape[0]:
        raise ValueError(f"cost must be (B, P) with at least as many columns as rows, got {tuple(cost.shape)}")
    # NaN would leave a row without a least entry, and greedy without an end.
    if cost.numel() and not bool(torch.isfinite(torch.stack(cost.aminmax())).all()):
        raise ValueError(f"cost must be finite, got {int((~torch.isfinite(cost)).sum())} NaN or infinite entries")
    return cost.shape[0], cost.shape[1]
