"""A PushT environment to play in, whose world may change between steps."""

from envs.pusht import geometry
from envs.pusht.env import Observation, PushTEnv


class PlaygroundEnv(PushTEnv):
    """`PushTEnv` whose world may be changed by hand (`envs.pusht.dragging`), or be that of another environment."""

    def observation(self) -> Observation:
        """What the last reset or step would return if the world had been as it is now."""
        return self._observe()

    def take_over(self, other: PushTEnv) -> None:
        """Goes on in the world of another environment; both share it from now on.

        `max_coverage` goes on, too, if both have the same goal.
        """
        self.world = other.world
        self.max_coverage = self.coverage()
        if self.task.goal_pose == other.task.goal_pose:
            self.max_coverage = max(self.max_coverage, other.max_coverage)

    def pose(self) -> tuple[geometry.Point, geometry.Pose]:
        """Agent x, y and block x, y, angle now; the angle counts full turns."""
        agent, (x, y), angle = self._pose()
        return (agent[0], agent[1]), (x, y, angle)
