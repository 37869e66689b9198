"""Figure of the ways round the block: paths until first contact, over the picture of the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from envs.pusht.geometry import GOAL_POSE, WINDOW_SIZE, Pose
from envs.pusht.modes import DIRECT, MODES
from envs.pusht.rendering import Renderer, resized
from immiscible_policy.evaluation.modes import Trajectories
from immiscible_policy.files import save_figure

COLORS = {"clockwise": "#0b62c4", "counter_clockwise": "#d9480f", "direct": "#5f6b76", "none": "#b5179e"}


def plot_modes(
    arms: Mapping[str, Trajectories],
    path: Path,
    starts: Sequence[int] = (0, 1, 2, 3),
    direct: float = DIRECT,
    goal_pose: Pose = GOAL_POSE,
) -> None:
    """A row a policy, a column a start: the agent's paths coloured by mode, their split above; a PNG, atomically.

    Args:
        arms: by name, all from the same starts.
        path: of the PNG.
        starts: which of them; of ``symmetric_starts`` the first four are of four kinds.
        direct: as for ``count_modes``.
        goal_pose: that of the task, for the picture.

    Raises:
        ValueError: no arms or starts, a start out of range, or arms from different starts.
    """
    if not arms or not len(starts):
        raise ValueError(f"arms has {len(arms)} entries and starts {len(starts)}; allowed: at least one of each")
    first = next(iter(arms.values())).states[:, 0, 0]
    for name, trajectories in arms.items():
        begin = trajectories.states[:, 0, 0]
        if begin.shape != first.shape or not np.allclose(begin, first, atol=1e-6):
            raise ValueError(f"arms[{name!r}] begins in other states than the first arm; allowed: the same for all")
    unknown = [start for start in starts if not 0 <= start < len(first)]
    if unknown:
        raise ValueError(f"starts has {unknown}; allowed: 0 to {len(first) - 1}")
    renderer = Renderer(goal_pose)
    size = (2.6 * len(starts) + 0.3, 3.1 * len(arms) + 0.6)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08))
    grid = figure.subplots(len(arms), len(starts), squeeze=False)
    for row, (name, trajectories) in zip(grid, arms.items(), strict=True):
        row[0].set_ylabel(name, fontsize=10)
        for axes, start in zip(row, starts, strict=True):
            x, y, block_x, block_y, angle = first[start].tolist()
            surface = renderer.draw((x, y), (block_x, block_y), angle)
            axes.imshow(resized(surface, WINDOW_SIZE, WINDOW_SIZE), extent=(0, WINDOW_SIZE, WINDOW_SIZE, 0), alpha=0.55)
            _draw_paths(axes, trajectories, start, direct)
            axes.set(xticks=[], yticks=[], xlim=(0, WINDOW_SIZE), ylim=(WINDOW_SIZE, 0))
    lines = [Line2D([], [], color=color, label=mode.replace("_", "-")) for mode, color in COLORS.items()]
    lines[-1].set_label("no contact")
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=9, frameon=False)
    save_figure(figure, path, dpi=110)


def _draw_paths(axes: Axes, trajectories: Trajectories, start: int, direct: float) -> None:
    counts = dict.fromkeys(MODES, 0)
    for repeat, length in enumerate(trajectories.lengths[start].tolist()):
        way = trajectories.first_way(start, repeat, direct)
        counts[way.mode] += 1
        end = length if way.contact is None else way.contact + 1
        agent = trajectories.states[start, repeat, :end, :2]
        axes.plot(*agent.T, color=COLORS[way.mode], linewidth=1.0, alpha=0.75)
        axes.plot(*agent[-1], "o", color=COLORS[way.mode], markersize=2.5)
    around = counts["clockwise"] + counts["counter_clockwise"]
    share = counts["clockwise"] / around if around else math.nan
    title = f"{100 * share:.0f}% clockwise ({counts['clockwise']} of {around})" if around else "none went round"
    rest = [f"{counts[mode]} {label}" for mode, label in (("direct", "direct"), ("none", "no contact")) if counts[mode]]
    axes.set_title("\n".join([title, ", ".join(rest) or " "]), fontsize=8)
