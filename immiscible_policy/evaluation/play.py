"""Playing with trained policies on PushT, one world at the pace of a person, who may interfere.

What happens, without a window and without time: `play_window` shows it live, `play_recording` writes it to a video.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np

from envs.pusht.dragging import Drag, displace, hold_agent, point_on_block
from envs.pusht.geometry import Point, Pose
from envs.pusht.task import MAX_SEED
from immiscible_policy.evaluation.history import ObservationHistory
from immiscible_policy.evaluation.play_policies import NamedPolicy, playground
from immiscible_policy.policy import DiffusionPolicy, InferenceCoupling
from immiscible_policy.policy.planner import Planner

# What + and - go through.
STEP_CHOICES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 50, 75, 100)
MESSAGE_STEPS = 25
"""A message is shown for so many control steps."""
GHOST_STEPS = 12
"""Where the block was before a disturbance is shown for so many control steps."""


class Command(Enum):
    """What a key asks for; the value says it in words."""

    NEXT_SEED = "next seed"
    SAME_SEED = "same seed again"
    PAUSE = "pause, go on"
    SINGLE_STEP = "one step, when paused"
    NEXT_POLICY = "next policy, in the same scene"
    PREVIOUS_POLICY = "previous policy"
    DISTURB = "shift and turn the block at random"
    MORE_STEPS = "more inference steps"
    FEWER_STEPS = "fewer inference steps"
    QUIT = "quit"


class PlaySession:
    """One world, the policy that acts in it, and a person who can drag the block, restart and switch policies.

    The episode of a seed is that of an evaluation: the same initial state, initial noises from the stream
    (noise_seed, seed), a chunk of ``n_action_steps`` actions executed before the next is predicted. It does not end by
    itself. As soon as the person moves the block, what is left of the chunk is dropped and the policy predicts
    again from what it sees. Another policy takes the scene over as it stands (with its own goal, if it has another,
    which then is still to be reached) and begins, as at a reset, with a history that repeats what it sees.

    Args:
        policies: at least one; the first one begins.
        seed: initial state, 0 to 2**32 - 1. 100000 and up are the published test states.
        num_inference_steps: network calls for a chunk.
        inference_coupling: how initial noise is chosen: ``none``, ``warm`` or ``two_pass``, see ``InferenceCoupling``.
        noise_scale: the initial noise is multiplied by it.
        legacy: how the initial state is set, see ``envs.pusht.task.Task``; None takes each policy's task.
        noise_seed: of the policies' noises and of random disturbances.

    Attributes: ``seed``, ``n_steps`` made since the reset, ``success_step`` (the first of them at which coverage passed
    0.95, or None), ``paused``, ``finished``, ``num_inference_steps``, ``initial_noise``, ``policies`` and the
    ``index`` of the one that acts.

    Raises ValueError for anything else.
    """

    def __init__(
        self,
        policies: Sequence[NamedPolicy],
        seed: int = 100_000,
        num_inference_steps: int = 10,
        inference_coupling: str = "none",
        legacy: bool | None = None,
        noise_seed: int = 0,
        noise_scale: float = 1.0,
    ) -> None:
        if not policies:
            raise ValueError("policies is empty: give at least one")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed is {seed}; allowed: 0 to {MAX_SEED}")
        self.policies = list(policies)
        limits = [named.policy.objective.max_steps for named in policies]
        self._most_steps = min((limit for limit in limits if limit is not None), default=STEP_CHOICES[-1])
        if not 1 <= num_inference_steps <= self._most_steps:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; allowed: 1 to {self._most_steps}")
        self._environments = [playground(named, legacy) for named in policies]
        self.initial_noise = InferenceCoupling(inference_coupling, noise_scale=noise_scale)
        for _, policy in policies:  # all, because switching to one must not fail later
            Planner(policy, [seed], inference_coupling=self.initial_noise)
        self.seed, self._noise_seed = seed, noise_seed
        self.num_inference_steps = num_inference_steps
        self.index = 0
        self.paused = self.finished = False
        self._message, self._message_age = "", 0
        self._drag: Drag | None = None
        self._env = self._environments[0]
        # Of the episode, see `_reset`.
        self.n_steps = 0
        self.success_step: int | None = None
        self._ghost: Pose | None = None
        self._ghost_age = 0
        self._disturbances = np.random.default_rng()
        self._before = self._now = np.zeros(5)
        # Of what the policy has seen and plans, see `_begin`.
        self._planner = Planner(self.policy, [seed])
        self._chunk, self._executed = np.empty((0, 2), np.float32), 0
        self._world_changed = False
        self._reset()

    # --- what is to be seen ---

    @property
    def name(self) -> str:
        """Of the policy that acts."""
        return self.policies[self.index].name

    @property
    def policy(self) -> DiffusionPolicy:
        """That acts."""
        return self.policies[self.index].policy

    @property
    def goal_pose(self) -> Pose:
        """Where that policy is to put the block."""
        return self._env.task.goal_pose

    @property
    def coverage(self) -> float:
        """Share of the goal, in [0, 1], that the block lies on."""
        return self._env.coverage()

    @property
    def max_coverage(self) -> float:
        """The largest share, whoever moved the block; from the first step on, as evaluations count it."""
        return max(self._env.max_coverage, self.coverage)

    @property
    def plan(self) -> np.ndarray:
        """Targets (n, 2) of the agent in pixels: the one it heads for now and those left of the chunk; may be empty."""
        return self._chunk[max(self._executed - 1, 0) :]

    @property
    def message(self) -> str:
        """For the person; empty when the last one is old."""
        return self._message if self._message_age < MESSAGE_STEPS else ""

    @property
    def ghost(self) -> tuple[Pose, float] | None:
        """Where the block was before a random disturbance a short time ago, and how strongly to show that (1 to 0)."""
        if self._ghost is None or self._ghost_age >= GHOST_STEPS:
            return None
        return self._ghost, 1.0 - self._ghost_age / GHOST_STEPS

    def pose(self, fraction: float) -> tuple[Point, Pose]:
        """Agent x, y and block x, y, angle when ``fraction`` in [0, 1] of the last control step is over."""
        agent_x, agent_y, x, y, angle = (self._before + fraction * (self._now - self._before)).tolist()
        return (agent_x, agent_y), (x, y, angle)

    def pull(self, fraction: float) -> tuple[Point, Point] | None:
        """Where the person holds the block at that moment and where the hand is, window pixels; None if not held."""
        if self._drag is None:
            return None
        (x, y, angle), (u, v) = self.pose(fraction)[1], self._drag.held_at
        cos, sin = np.cos(angle), np.sin(angle)
        return (float(x + cos * u - sin * v), float(y + sin * u + cos * v)), self._drag.hand

    # --- what the person does ---

    def handle(self, command: Command) -> None:
        """Does what a key asks for; nothing once the session is finished."""
        if self.finished:
            return
        if command is Command.QUIT:
            self.finished = True
        elif command in (Command.NEXT_SEED, Command.SAME_SEED):
            self.seed = (self.seed + (command is Command.NEXT_SEED)) % (MAX_SEED + 1)
            self._reset()
            self.say(f"seed {self.seed}")
        elif command is Command.PAUSE:
            self.paused = not self.paused
        elif command is Command.SINGLE_STEP:
            if self.paused:
                self._before = self._now
                self._advance()
        elif command in (Command.NEXT_POLICY, Command.PREVIOUS_POLICY):
            step = 1 if command is Command.NEXT_POLICY else -1
            self.switch((self.index + step) % len(self.policies))
        elif command is Command.DISTURB:
            self.disturb()
        else:
            self._choose_steps(command)

    def switch(self, index: int) -> None:
        """Lets another policy go on in the scene as it stands; indices that there are not are ignored."""
        if self.finished or index == self.index or not 0 <= index < len(self.policies):
            return
        self.index = index
        env = self._environments[index]
        env.take_over(self._env)
        if env.task.goal_pose != self._env.task.goal_pose:
            self.success_step = None
        self._env = env
        self._begin(env.observation())
        self.say(f"policy {index + 1}: {self.name}")

    def press(self, position: Point, fraction: float = 1.0) -> bool:
        """Takes hold of the block where it is shown at that position; False, and nothing happens, beside it."""
        held_at = point_on_block(self.pose(fraction)[1], position)
        if held_at is None or self._drag is not None or self.finished:
            return False
        self._drag = Drag(self._env.world, held_at, position)
        self._forget_plan()
        return True

    def move(self, position: Point) -> None:
        """Moves the hand that holds the block, if it is held."""
        if self._drag is not None:
            self._drag.move(position)

    def release(self) -> None:
        """Lets go of the block."""
        if self._drag is not None:
            self._drag.release()
            self._drag = None
            self._forget_plan()

    def disturb(self) -> None:
        """Shifts and turns the block by a random amount (see ``envs.pusht.dragging.displace``)."""
        _, before = self.pose(1.0)
        self.release()
        try:
            after = displace(self._env.world, self._disturbances)
        except ValueError as error:
            self.say(str(error))
            return
        shift, turn = np.hypot(after[0] - before[0], after[1] - before[1]), np.degrees(after[2] - before[2])
        self._before = self._now = self._pose()
        self._ghost, self._ghost_age = before, 0
        self._moved()
        self.say(f"disturbed: the block was shifted by {shift:.0f} px and turned by {turn:+.0f} degrees")

    def say(self, message: str) -> None:
        """Shows the person a message for a while."""
        self._message, self._message_age = message, 0

    # --- what time does ---

    def step(self) -> None:
        """One control step (0.1 s). While paused only a held block moves."""
        if self.finished:
            return
        self._before = self._now
        self._message_age += 1
        if not self.paused:
            self._advance()
        elif self._drag is not None:
            hold_agent(self._env.world)
            self._env.max_coverage = self.max_coverage
            self._now = self._pose()
            self._moved()

    def _advance(self) -> None:
        if self._executed == len(self._chunk):
            if self._world_changed:
                self._history.push(_batch_of_one(self._env.observation()))
                self._world_changed = False
            self._chunk, self._executed = self._predict(), 0
        if self.n_steps == 0:
            self._env.max_coverage = 0.0  # what the initial state covers is nobody's merit
        observation, _, success, _, _ = self._env.step(self._chunk[self._executed])
        self._executed += 1
        self.n_steps += 1
        self._ghost_age += 1
        if success and self.success_step is None:
            self.success_step = self.n_steps
        self._history.push(_batch_of_one(observation))
        self._now = self._pose()

    def _predict(self) -> np.ndarray:
        """The next chunk (n_action_steps, 2)."""
        observation = self._history.rows([0], self.policy.device)
        self._planner.num_inference_steps = self.num_inference_steps
        return self._planner.act(observation)[0].float().cpu().numpy()

    def _reset(self) -> None:
        self._drag = None  # it held the block of the world that goes
        self._env = self._environments[self.index]
        observation, _ = self._env.reset(seed=self.seed)
        self.n_steps, self.success_step = 0, None
        self._disturbances = np.random.default_rng([self._noise_seed, self.seed, 1])
        self._ghost = None
        self._before = self._now = self._pose()
        self._begin(observation)

    def _begin(self, observation: Any) -> None:
        """Lets the policy begin with an observation as the first one."""
        self._history = ObservationHistory(_batch_of_one(observation), self.policy.n_obs_steps)
        self._planner = Planner(
            self.policy, [self.seed], noise_seed=self._noise_seed, inference_coupling=self.initial_noise
        )
        self._world_changed = False
        self._forget_plan()

    def _moved(self) -> None:
        """The block was moved between two steps: the policy has not seen that yet."""
        self._world_changed = True
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._planner.reset()  # coupled inference would take the plan as executed to its end
        self._chunk, self._executed = np.empty((0, 2), np.float32), 0

    def _choose_steps(self, command: Command) -> None:
        choices = [*(choice for choice in STEP_CHOICES if choice < self._most_steps), self._most_steps]
        if command is Command.MORE_STEPS:
            larger = [choice for choice in choices if choice > self.num_inference_steps]
            self.num_inference_steps = min(larger, default=self._most_steps)
        else:
            smaller = [choice for choice in choices if choice < self.num_inference_steps]
            self.num_inference_steps = max(smaller, default=1)
        self.say(f"inference steps from the next plan on: {self.num_inference_steps}")

    def _pose(self) -> np.ndarray:
        agent, block = self._env.pose()
        return np.array([*agent, *block])


def _batch_of_one(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {name: np.asarray(part)[None] for name, part in observation.items()}
    return np.asarray(observation)[None]
