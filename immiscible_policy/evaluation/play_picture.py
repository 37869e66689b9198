"""What a person sees of a `PlaySession`: the world, the plan, the hand that holds the block, and lines of text."""

import numpy as np
from numpy.typing import NDArray

from envs.pusht.picture import Picture
from immiscible_policy.evaluation.play import PlaySession

KEYS_IN_WORDS = (
    ("mouse", "press on the block and drag it; the policy plans anew"),
    ("r, shift+r", "next seed, same seed again"),
    ("space", "pause and go on (the block can be dragged meanwhile)"),
    ("n", "a single step, when paused"),
    ("1..9, tab", "switch to another policy, in the same scene"),
    ("+, -", "more or fewer inference steps"),
    ("d", "shift and turn the block at random"),
    ("v", "start and stop saving a video of what is shown"),
    ("h", "this help"),
    ("q, escape", "quit"),
)


class PlayPicture:
    """Draws a session, in memory. ``picture.surface`` is what to show."""

    def __init__(self, session: PlaySession) -> None:
        self.picture = Picture(n_lines=4, goal_pose=session.goal_pose)

    def draw(
        self, session: PlaySession, fraction: float, rate: str, saving: str = "", hint: str = "", overlay: bool = False
    ) -> None:
        """Draws the moment when ``fraction`` in [0, 1] of the last control step is over.

        Args:
            session: what to draw.
            fraction: see above.
            rate: pictures a second, in words.
            saving: state of a video that is being saved, in words.
            hint: what to say while there is no message.
            overlay: show the keys on top.
        """
        if self.picture.goal_pose != session.goal_pose:
            self.picture.goal_pose = session.goal_pose
        agent, (x, y, angle) = session.pose(fraction)
        self.picture.draw(agent, (x, y), angle, status_lines(session, rate, saving, hint))
        if session.ghost is not None:
            self.picture.ghost(*session.ghost)
        self.picture.path(agent, session.plan)
        pull = session.pull(fraction)
        if pull is not None:
            self.picture.pull(*pull)
        if overlay:
            self.picture.box(KEYS_IN_WORDS)

    def array(self) -> NDArray[np.uint8]:
        """A copy of the picture, (height, width, 3) uint8 RGB."""
        return self.picture.array()


def status_lines(session: PlaySession, rate: str, saving: str = "", hint: str = "") -> tuple[str, ...]:
    """The text below the world."""
    state = [f"seed {session.seed}", f"step {session.n_steps}"]
    state += [f"coverage {session.coverage:.0%}", f"max {session.max_coverage:.0%}"]
    state += [f"success at step {session.success_step}"] if session.success_step is not None else []
    state += ["paused"] if session.paused else []
    place = f"{session.index + 1}/{len(session.policies)}  " if len(session.policies) > 1 else ""
    trained = f", trained with {session.policy.coupling}" if session.policy.coupling else ""
    plural = "step" if session.num_inference_steps == 1 else "steps"
    inference = f"{session.num_inference_steps} inference {plural}"
    noise = session.initial_noise
    scale = "" if noise.noise_scale == 1 else f", noise x {noise.noise_scale:g}"
    # The line is cut at the window's edge: news come first, and go again.
    last = (session.message, saving) if session.message else (saving, hint)
    return (
        "   ".join(state),
        f"{place}{session.name}{trained}",
        "   ".join([inference, f"inference coupling {noise.mode}{scale}", rate]),
        "   ".join(part for part in last if part),
    )
