"""The demonstrator's candidates: pushes from one state of the world, and the agent's targets that execute them."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs.pusht import geometry, ways
from envs.pusht.geometry import WINDOW_SIZE
from envs.pusht.physics import WorldState

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_ON_THE_SPOT = -1  # in place of a contact's number: push on from where the agent is


@dataclass(frozen=True)
class DemonstratorConfig:
    """How the demonstrator plans and moves. Lengths in pixels, angles in radians, speeds in pixels a control step.

    Args:
        n_candidates: pushes simulated at once.
        n_copies: inexact executions of each push in the final choice; n_candidates / n_copies pushes take part.
        way_speed, push_speed: of the agent's target, on the way and while pushing.
        hold_steps: steps that the target rests at the end of a push, in which the agent catches up.
        patience: steps until everything is thought over.
        loyalty: by what factor a new push must gain more per step than what remains of the last one.
        solved: coverage that counts as solved while planning. A little above the task's 0.95, so that a policy that
            imitates inexactly still passes that.
        max_angle: between a push's first direction and the outline's normal.
        max_turn: of the direction, per step.
        min_length, max_length: of a push, drawn log-uniformly.
        contact_noise, angle_noise, length_noise: standard deviations of inexact execution; of the length, relative.
        margin: from the window's edge, in which the agent does not walk if it can help it.
    """

    n_candidates: int = 192
    n_copies: int = 8
    way_speed: float = 14.0
    push_speed: float = 7.0
    hold_steps: int = 2
    patience: int = 8
    loyalty: float = 1.15
    solved: float = 0.96
    max_angle: float = 0.7
    max_turn: float = 0.03
    min_length: float = 1.5
    max_length: float = 120.0
    contact_noise: float = 4.0
    angle_noise: float = 0.1
    length_noise: float = 0.1
    margin: float = 12.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_copies <= self.n_candidates:
            raise ValueError(
                f"n_candidates={self.n_candidates}, n_copies={self.n_copies}: needs 1 <= n_copies <= n_candidates, as "
                "n_candidates / n_copies pushes take part in the final choice"
            )


@dataclass(frozen=True)
class Pushes:
    """Candidates (N,): contact's number in `ways.CONTACTS`, angle to the normal there, length, turn per step."""

    contact: Indices
    angle: Floats
    length: Floats
    turn: Floats

    def take(self, rows: Indices) -> "Pushes":
        return Pushes(self.contact[rows], self.angle[rows], self.length[rows], self.turn[rows])


class Scene:
    """Pushes from one state, in the block's frame, and the targets that execute them, in the window."""

    def __init__(self, state: WorldState, config: DemonstratorConfig) -> None:
        self.config = config
        self._origin = np.array(state.block_position)
        cos, sin = math.cos(state.block_angle), math.sin(state.block_angle)
        self._turned = np.array([[cos, sin], [-sin, cos]])
        self._agent = (np.array(state.agent_position) - self._origin) @ self._turned.T
        nearest = ways.nearest_on_block(self._agent)
        gap = float(np.linalg.norm(self._agent - nearest))
        self._at_block = 1e-6 < gap < geometry.AGENT_RADIUS + ways.RUN_UP
        self._inward = (nearest - self._agent) / max(gap, 1e-6)
        self._begin = ways.retreat(self._agent)
        contacts = ways.CONTACTS
        lengths, self._turns = ways.shortest_ways(self._begin, self._inside(ways.CORNERS))
        self._usable = np.flatnonzero(np.isfinite(lengths) & self._inside(contacts.start))
        if not len(self._usable):  # the block is pressed into a corner: outside the margin then
            lengths, self._turns = ways.shortest_ways(self._begin, np.ones(len(ways.CORNERS), bool))
            self._usable = np.flatnonzero(np.isfinite(lengths))

    def _inside(self, points: Floats) -> NDArray[np.bool_]:
        there = points @ self._turned + self._origin
        return ((there > self.config.margin) & (there < WINDOW_SIZE - self.config.margin)).all(axis=-1)

    # --- candidates ---

    def draw(self, random: np.random.Generator, count: int) -> Pushes:
        c = self.config
        contact = random.choice(self._usable, count) if len(self._usable) else np.full(count, _ON_THE_SPOT)
        if self._at_block:
            contact[: count // 4] = _ON_THE_SPOT
        spread = np.where(contact == _ON_THE_SPOT, 1.2, c.max_angle)
        return Pushes(
            contact,
            random.uniform(-1.0, 1.0, count) * spread,
            np.exp(random.uniform(math.log(c.min_length), math.log(c.max_length), count)),
            np.where(random.random(count) < 0.5, 0.0, random.uniform(-c.max_turn, c.max_turn, count)),
        )

    def vary(self, pushes: Pushes, random: np.random.Generator) -> Pushes:
        """Others like these."""
        count = len(pushes.contact)
        varied = self._moved(pushes, random.normal(0.0, 6.0, count), random.normal(0.0, 0.12, count))
        length = np.clip(pushes.length * np.exp(random.normal(0.0, 0.2, count)), 1.0, 1.2 * self.config.max_length)
        turn = np.clip(pushes.turn + random.normal(0.0, 0.01, count), -self.config.max_turn, self.config.max_turn)
        return replace(varied, length=length, turn=turn)

    def perturb(self, pushes: Pushes, random: np.random.Generator, exact: NDArray[np.bool_]) -> Pushes:
        """What comes of these where they are not executed exactly."""
        c, noise = self.config, np.where(exact, 0.0, random.normal(size=(3, len(exact))))
        moved = self._moved(pushes, c.contact_noise * noise[0], c.angle_noise * noise[1])
        return replace(moved, length=pushes.length * np.exp(c.length_noise * noise[2]))

    def _moved(self, pushes: Pushes, along: Floats, turned: Floats) -> Pushes:
        contact = pushes.contact
        if len(self._usable):
            row = np.searchsorted(self._usable, contact) + np.rint(along / ways.CONTACT_SPACING).astype(int)
            moved = self._usable[np.clip(row, 0, len(self._usable) - 1)]
            contact = np.where(contact == _ON_THE_SPOT, contact, moved)
        return replace(pushes, contact=contact, angle=pushes.angle + turned)

    # --- their execution ---

    def targets(self, pushes: Pushes) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """Targets (N, T, 2), in the window, which rest at their ends; the steps (N,) until then; those of the ways."""
        paths = [
            self._path(*push) for push in zip(pushes.contact, pushes.angle, pushes.length, pushes.turn, strict=True)
        ]
        steps = np.array([len(path) for path, _ in paths])
        ways_steps = np.array([on_the_way for _, on_the_way in paths])
        index = np.minimum(np.arange(steps.max()), steps[:, None] - 1)
        offset = np.concatenate([[0], np.cumsum(steps)[:-1]])
        local = np.concatenate([path for path, _ in paths])[offset[:, None] + index]
        return np.clip(local @ self._turned + self._origin, 0.0, WINDOW_SIZE), steps, ways_steps

    def _path(self, contact: int, angle: float, length: float, turn: float) -> tuple[Floats, int]:
        c = self.config
        if contact == _ON_THE_SPOT:
            way, inward = self._agent[None], self._inward
        else:
            turns = self._turns[contact]
            line = np.concatenate(
                [[self._agent, self._begin], ways.CORNERS[turns[turns >= 0]], [ways.CONTACTS.start[contact]]]
            )
            way, inward = _evenly(line, c.way_speed), ways.CONTACTS.inward[contact]
            length = length + ways.RUN_UP
        count = max(1, math.ceil(length / c.push_speed))
        heading = math.atan2(inward[1], inward[0]) + angle + turn * np.arange(count)
        push = way[-1] + np.cumsum(length / count * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        if contact == _ON_THE_SPOT:
            way = way[:0]
        return np.concatenate([way, push, np.repeat(push[-1:], c.hold_steps, axis=0)]), len(way)


def _evenly(line: Floats, speed: float) -> Floats:
    """Points along a polyline, its end included and its start not, at most `speed` apart."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0.0, arc[-1], max(1, math.ceil(arc[-1] / speed)) + 1)[1:]
    return np.stack([np.interp(at, arc, line[:, 0]), np.interp(at, arc, line[:, 1])], axis=1)
