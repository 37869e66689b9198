"""Objectives: what a network learns to predict, and how samples are drawn from what it learnt."""

from collections.abc import Mapping
from typing import Any

from immiscible_policy.diffusion.consistency import Consistency
from immiscible_policy.diffusion.ddpm import DDPM
from immiscible_policy.diffusion.flow_matching import FlowMatching
from immiscible_policy.diffusion.objective import Hold, Network, Objective, couple

__all__ = [
    "DDPM",
    "OBJECTIVES",
    "Consistency",
    "FlowMatching",
    "Hold",
    "Network",
    "Objective",
    "build_objective",
    "couple",
]

OBJECTIVES: dict[str, type[Objective]] = {"ddpm": DDPM, "flow_matching": FlowMatching, "consistency": Consistency}


def build_objective(config: Mapping[str, Any]) -> Objective:
    """The objective that ``config`` names under ``name``, with the rest of ``config`` as its arguments.

    Raises:
        ValueError: the name is unknown, or an argument is unknown or out of range.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}: choose one of {', '.join(OBJECTIVES)}")
    try:
        return OBJECTIVES[name](**options)
    except TypeError as error:
        raise ValueError(f"objective {name!r}: {error}") from error
