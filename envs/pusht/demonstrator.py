"""A demonstrator for PushT: it solves the task by simulating many pushes and beginning the best, over and over.

A push is: go around the block to a point on its outline, touch it, and push some way in a direction that may turn; or,
where the agent is at the block already, push on from there. From the current state a few hundred are drawn and
simulated at once (`envs.pusht.worlds`), the best are varied and simulated again, and of those the one is chosen that
gains most per step even if it is executed inexactly. After some steps everything is thought over, and what remains of
the chosen push competes with new ones. So what the demonstrator does next depends on what there is to be seen, not on
a plan in its head, which is what makes it imitable.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.pusht import geometry
from envs.pusht.geometry import OUTLINE
from envs.pusht.physics import World, WorldState
from envs.pusht.pushes import DemonstratorConfig, Scene
from envs.pusht.vertices import points_in_world
from envs.pusht.worlds import Worlds, WorldStates, glide

Floats = NDArray[np.float64]

_OUTLINE = np.array(OUTLINE)
# The estimate of remaining steps: see `Demonstrator.remaining`. Each push costs some steps besides.
_STEPS_PER_FACTOR = 16.0
_STEPS_PER_PIXEL = 0.3
_OVERHEAD = 4.0


@dataclass(frozen=True)
class Demonstration:
    """One episode: states (T, 5) before each step, actions (T, 2), contact points per physics step (T,) before it.

    `coverage` is that after the last step, `solved` whether it passed 0.95.
    """

    states: Floats
    actions: Floats
    n_contacts: NDArray[np.int64]
    coverage: float
    solved: bool


class Demonstrator:
    """Plans pushes from any state of the world; see the module.

    Args:
        config: how.
        goal_pose: where the block belongs.
    """

    def __init__(self, config: DemonstratorConfig | None = None, goal_pose: geometry.Pose = geometry.GOAL_POSE) -> None:
        self.config = config or DemonstratorConfig()
        self.goal_pose = goal_pose
        self._worlds = Worlds(self.config.n_candidates)
        self._goal_corners = np.array(geometry.to_world(OUTLINE, *goal_pose))

    def demonstrate(self, state: Floats, legacy: bool = False, max_steps: int = 300) -> Demonstration:
        """Solves the task from `state` (agent x, y, block x, y, angle), or stops after `max_steps`."""
        world = World()
        world.place(state.tolist(), position_first=legacy)
        world.settle()
        states, actions, contacts = [], [], []
        for action in self._actions(world):
            states.append([*world.agent.position, *world.block.position, world.block.angle])
            contacts.append(world.mean_contacts)
            actions.append(action)
            world.advance(*action.tolist())
            if len(actions) == max_steps:
                break
        coverage = geometry.coverage(*world.block.position, world.block.angle, self.goal_pose)
        return Demonstration(
            np.array(states).reshape(-1, 5),
            np.array(actions).reshape(-1, 2),
            np.array(contacts, np.int64),
            coverage,
            coverage > geometry.SUCCESS_COVERAGE,
        )

    def _actions(self, world: World) -> Iterator[Floats]:
        rest, on_the_way = np.empty((0, 2)), 0
        while True:
            state = world.state()
            if not len(rest) and self._coverage(state) > self.config.solved:
                return
            if self._coverage(state) <= self.config.solved:
                rest, on_the_way = self.plan(state, rest)
            # On the way nothing happens that is worth another thought.
            pause = on_the_way + self.config.patience
            yield from rest[:pause]
            rest, on_the_way = rest[pause:], 0

    def _coverage(self, state: WorldState) -> float:
        return geometry.coverage(*state.block_position, state.block_angle, self.goal_pose)

    def plan(self, state: WorldState, rest: Floats) -> tuple[Floats, int]:
        """The targets (T, 2) of the next push and how many of them are on the way to it.

        `rest` (R, 2) is what remains of the last one. The same numbers are drawn every time, so that the same state
        has the same push, and states alike have pushes alike.
        """
        random = np.random.default_rng(0)
        scene = Scene(state, self.config)
        pushes = scene.draw(random, self.config.n_candidates)
        rates = self._rates(state, *scene.targets(pushes))
        best = rates.argsort()[::-1]
        parents = best[random.integers(0, max(1, len(best) // 16), len(best))]
        pushes = scene.vary(pushes.take(parents), random)
        targets, steps, ways_steps = scene.targets(pushes)
        finalists = self._rates(state, targets, steps, ways_steps).argsort()[::-1][: len(steps) // self.config.n_copies]
        rows = np.resize(np.repeat(finalists, self.config.n_copies), len(steps))
        copies = scene.perturb(pushes.take(rows), random, exact=np.arange(len(rows)) % self.config.n_copies == 0)
        copied, copied_steps, copied_ways = scene.targets(copies)
        if len(rest):
            # What remains of the last push takes the place of one finalist.
            slots = slice((len(finalists) - 1) * self.config.n_copies, len(finalists) * self.config.n_copies)
            copied, copied_steps = _replaced(copied, copied_steps, slots, rest)
            copied_ways[slots] = 0
        rates = self._rates(state, copied, copied_steps, copied_ways)[: len(finalists) * self.config.n_copies]
        rates = rates.reshape(len(finalists), self.config.n_copies).mean(axis=1)
        if len(rest):
            rates[-1] *= self.config.loyalty if rates[-1] > 0 else 1.0
        winner = int(rates.argmax())
        if len(rest) and winner == len(finalists) - 1:
            return rest, 0
        chosen = finalists[winner]
        return targets[chosen][: steps[chosen]], int(ways_steps[chosen])

    def _rates(
        self, state: WorldState, targets: Floats, steps: NDArray[np.int64], ways_steps: NDArray[np.int64]
    ) -> Floats:
        """Simulates targets (N, T, 2), of which `steps` (N,) count; what each gains per step.

        The ways touch nothing, so that the agents can be put where they end.
        """
        x, y = state.block_position
        count = len(targets)
        position = np.tile(np.array(state.agent_position), (count, 1))
        velocity = np.tile(np.array(state.agent_velocity), (count, 1))
        for step in range(ways_steps.max()):
            moved = glide(position, velocity, targets[:, step])
            under_way = (step < ways_steps)[:, None]
            position, velocity = np.where(under_way, moved[0], position), np.where(under_way, moved[1], velocity)
        self._worlds.set_state(
            WorldStates(
                position,
                velocity,
                np.array(state.block_position),
                np.array(state.block_angle),
                np.array(state.block_velocity),
                np.array(state.block_angular_velocity),
            )
        )
        rows = np.arange(count)
        for step in range((steps - ways_steps).max()):
            self._worlds.advance(targets[rows, np.minimum(ways_steps + step, steps - 1)])
        now = self.remaining(np.array([[x, y, state.block_angle]]))[0]
        return (now - self.remaining(self._worlds.block_pose)) / (steps + _OVERHEAD)

    def remaining(self, poses: Floats) -> Floats:
        """A rough estimate of how many steps blocks at poses (N, 3) are from the goal.

        The mean distance of the outline's corners from the goal's says how far there is to push; its logarithm, how
        many more pushes it takes: each brings the block closer by a factor.
        """
        corners = points_in_world(_OUTLINE, poses)
        distance = np.linalg.norm(corners - self._goal_corners, axis=-1).mean(axis=-1)
        solved = geometry.coverage_batch(poses, self.goal_pose) > self.config.solved
        return np.where(solved, 0.0, _STEPS_PER_FACTOR * np.log1p(distance)) + _STEPS_PER_PIXEL * distance


def _replaced(
    targets: Floats, steps: NDArray[np.int64], slots: slice, rest: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    longest = max(targets.shape[1], len(rest))
    targets = np.concatenate([targets, np.repeat(targets[:, -1:], longest - targets.shape[1], axis=1)], axis=1)
    targets[slots] = np.concatenate([rest, np.repeat(rest[-1:], longest - len(rest), axis=0)])
    steps[slots] = len(rest)
    return targets, steps
