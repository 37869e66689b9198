"""Objectives: what a network learns to predict, and how samples are drawn from what it learnt."""

from collections.abc import Mapping
from typing import Any

from immiscible_policy.diffusion.ddpm import DDPM

__all__ = ["DDPM", "build_objective"]

OBJECTIVES = {"ddpm": DDPM}


def build_objective(config: Mapping[str, Any]) -> DDPM:
    """The objective that ``config`` names under ``name``, with the rest of ``config`` as its arguments."""
    options = dict(config)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}: choose one of {', '.join(OBJECTIVES)}")
    try:
        return OBJECTIVES[name](**options)
    except TypeError as error:
        raise ValueError(f"objective {name!r}: {error}") from error
