"""Figures that a test looks into, instead of their files."""

import pytest
from matplotlib.figure import Figure


def kept_figures(monkeypatch: pytest.MonkeyPatch, module: str) -> list[Figure]:
    """What this module of the evaluation draws from here on."""
    drawn: list[Figure] = []
    monkeypatch.setattr(
        f"immiscible_policy.evaluation.{module}.save_figure", lambda figure, *_, **__: drawn.append(figure)
    )
    return drawn
