"""Recording PushT demonstrations: a person moves the agent with the mouse.

What happens, without a window (`envs.pusht.teleoperation_window` has that). The recording is that of the Diffusion
Policy paper (Chi et al. 2023): the agent waits until the mouse comes near it, then follows it, at 10 actions a
second, until the block covers the goal.
"""

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.pusht import geometry
from envs.pusht.env import PushTEnv
from envs.pusht.geometry import Point
from envs.pusht.keypoints import keypoints_in_world
from envs.pusht.task import wrapped

START_DISTANCE = 2.0 * geometry.AGENT_RADIUS
"""The agent follows the mouse from when it has come this near, pixels; the recorded demonstrations' 30 px."""
CONFIRMING_STEPS = 30
"""Deleting must be confirmed within so many control steps, 3 s."""


class Phase(Enum):
    """Where an episode is; the value is what the person is told."""

    WAITING = "move the mouse to the blue agent"
    RECORDING = "recording"
    PAUSED = "paused"
    DONE = "not saved yet"


class Command(Enum):
    """What a key asks for."""

    RESTART = "restart"
    SAVE = "save"
    DELETE = "delete"
    PAUSE = "pause"
    QUIT = "quit"


class EpisodeStore(Protocol):
    """Where whole episodes go, such as `immiscible_policy.data.replay_writer.ReplayWriter`."""

    @property
    def n_episodes(self) -> int: ...

    def append(self, episode: Mapping[str, NDArray[Any]]) -> None: ...

    def drop_last(self) -> None: ...


class Teleoperation:
    """One person's session: what commands and the mouse do to episodes. Knows nothing of windows or time.

    Episode i of the store (0-based) starts at the initial state of seed `seed_start + i`, as the human
    demonstrations do: with `seed_start=0` episode i starts where the i-th of them did. A deleted episode is
    therefore recorded again from the same state.

    Every step is stored as it was before the action: `state` (5,) agent xy, block xy in pixels, block angle in
    [0, 2 pi); `action` (2,) the mouse, pixels in [0, 511]; `keypoint` (9, 2) pixels; `n_contacts` (1,); all
    float32; with `images` also `img` (96, 96, 3) uint8. Replaying the actions from the first state
    (`reset(options={"state": ...})` with `legacy=False`) gives the same states.

    Args:
        store: takes the episodes.
        images: also record the picture.
        seed_start: see above; at least 0.
        limit: the session is finished when the store holds so many episodes.
        success_threshold: coverage at which an episode is complete and saved.

    Attributes: `phase`, `seed` and `number` (1-based) of the episode, `coverage` in [0, 1], `n_steps` recorded of
    it, `message` for the person, `finished`.
    """

    def __init__(
        self,
        store: EpisodeStore,
        images: bool = False,
        seed_start: int = 0,
        limit: int | None = None,
        success_threshold: float = geometry.SUCCESS_COVERAGE,
    ) -> None:
        self._store, self._seed_start, self._limit = store, seed_start, limit
        self._env = PushTEnv("pixels" if images else "state", success_threshold=success_threshold)
        self._images = images
        # The human demonstrations were started this way, but only legacy=False starts at a given state.
        self._placing = PushTEnv(legacy=True)
        self.phase = Phase.WAITING
        self.number, self.seed = 1, seed_start
        self.message = ""
        self.finished = False
        self._steps_to_confirm = 0  # that are left to confirm deleting; 0: it was not asked for
        self._observation: NDArray[Any]
        self._info: dict[str, Any]
        self._pose_before: NDArray[np.float64]
        self._pose_now: NDArray[np.float64]
        self._steps: list[dict[str, NDArray[Any]]]
        self._start()

    @property
    def n_steps(self) -> int:
        return len(self._steps)

    @property
    def coverage(self) -> float:
        return float(self._info["coverage"])

    def handle(self, command: Command) -> None:
        """Does what a key asks for; nothing once the session is finished."""
        if self.finished:
            return
        confirmed, self._steps_to_confirm = self._steps_to_confirm > 0, 0
        if command is Command.QUIT:
            self.finished = True
        elif command is Command.RESTART:
            self._start()
            self.message = f"started seed {self.seed} again"
        elif command is Command.SAVE:
            self._save()
        elif command is Command.DELETE:
            self._delete(confirmed)
        elif self.phase is not Phase.DONE:
            # After a pause the mouse is elsewhere: like at the start, the agent waits until it comes near.
            self.phase = Phase.WAITING if self.phase is Phase.PAUSED else Phase.PAUSED

    def step(self, mouse: Point | None) -> None:
        """One control step (0.1 s) with the mouse at this pixel of the window; None if it was not seen yet."""
        self._pose_before = self._pose_now
        if self._steps_to_confirm > 0:
            self._steps_to_confirm -= 1
            if self._steps_to_confirm == 0:
                self.message = ""
        if mouse is None or self.finished:
            return
        if self.phase is Phase.WAITING and math.dist(mouse, self._info["pos_agent"]) < START_DISTANCE:
            self.phase = Phase.RECORDING
        if self.phase is not Phase.RECORDING:
            return
        action = np.clip(np.array(mouse, np.float32), 0, geometry.WINDOW_SIZE - 1)
        self._steps.append(self._current_step() | {"action": action})
        self._observation, _, complete, _, self._info = self._env.step(action)
        self._pose_now = self._pose()
        if complete:
            self.phase = Phase.DONE
            self._save()

    def pose(self, fraction: float) -> tuple[Point, Point, float]:
        """Agent and block position and block angle when `fraction` in [0, 1] of the last control step is over."""
        now = self._pose_before + fraction * (self._pose_now - self._pose_before)
        agent_x, agent_y, block_x, block_y, angle = now.tolist()
        return (agent_x, agent_y), (block_x, block_y), angle

    def _start(self) -> None:
        """Starts the next episode, or this one again."""
        self.number = self._store.n_episodes + 1
        self.seed = self._seed_start + self.number - 1
        # In the precision of the store, so that replaying from the stored state repeats every digit.
        state = self._placing.reset(seed=self.seed)[0].astype(np.float32)
        self._observation, self._info = self._env.reset(options={"state": state})
        self._steps = []
        self._pose_before = self._pose_now = self._pose()
        self._steps_to_confirm = 0
        self.phase = Phase.WAITING
        self.finished = self._limit is not None and self._store.n_episodes >= self._limit

    def _pose(self) -> NDArray[np.float64]:
        return np.concatenate([self._info["pos_agent"], self._info["block_pose"]])

    def _current_step(self) -> dict[str, NDArray[Any]]:
        *position, angle = self._pose()
        recorded: dict[str, NDArray[Any]] = {
            "state": np.array([*position, wrapped(angle)], np.float32),
            "keypoint": keypoints_in_world(*self._info["block_pose"]).astype(np.float32),
            "n_contacts": np.array([self._info["n_contacts"]], np.float32),
        }
        return recorded | {"img": self._observation} if self._images else recorded

    def _save(self) -> None:
        if not self._steps:
            self.message = "nothing is recorded yet"
            return
        episode = {name: np.stack([step[name] for step in self._steps]) for name in self._steps[0]}
        try:
            self._store.append(episode)
        except OSError as error:
            # A full disk must not cost the person's work.
            self.phase, self._steps_to_confirm = Phase.DONE, 0
            self.message = f"not saved, n tries again: {error}"
            return
        self.message = (
            f"saved episode {self.number}: seed {self.seed}, {self.n_steps} steps, coverage {self.coverage:.1%}"
        )
        self._start()

    def _delete(self, confirmed: bool) -> None:
        n_episodes = self._store.n_episodes
        if self.phase is Phase.DONE:
            # Going on with the seed of the deleted episode would cost the person this work.
            self.message = f"episode {self.number} is not saved yet: first n to save it, or r to drop it"
        elif n_episodes == 0:
            self.message = "there is no saved episode to delete"
        elif not confirmed:
            self._steps_to_confirm = CONFIRMING_STEPS
            dropped = f" and drop the {self.n_steps} steps on the screen" if self._steps else ""
            self.message = f"press d again to delete episode {n_episodes}{dropped}"
        else:
            try:
                self._store.drop_last()
            except OSError as error:
                # Where only the clearing up failed, the episode is gone.
                if self._store.n_episodes == n_episodes:
                    self.message = f"not deleted: {error}"
                    return
            self._start()
            self.message = f"deleted episode {self.number}"
