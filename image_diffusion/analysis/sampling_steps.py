"""How good images are with fewer sampling steps (Immiscible Diffusion, 2024, figure 5 and table 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from image_diffusion.analysis.arms import Models, models_by_seed
from image_diffusion.analysis.curves import DistanceCurves
from image_diffusion.analysis.trajectory import n_calls
from image_diffusion.evaluation import ImageEvaluation, evaluate_model
from image_diffusion.metrics import FeatureExtractor, Measurement, ReferenceStatistics, result_key
from immiscible_policy.checks import is_integer

PUBLISHED_STEPS = (1000, 500, 100, 50, 20)


def check_steps(steps: Sequence[int]) -> None:
    """Raise a ValueError for no numbers of network calls, one twice, or one that is none."""
    if not steps or not all(is_integer(count, 1) for count in steps) or len(set(steps)) < len(steps):
        raise ValueError(f"steps={list(steps)}: needs different integers, each at least 1")


def sampling_steps(
    models: Models,
    reference: ReferenceStatistics,
    extractor: FeatureExtractor,
    config: ImageEvaluation,
    steps: Sequence[int] = PUBLISHED_STEPS,
    record: Mapping[str, Any] | None = None,
    known: Mapping[tuple[str, int, int], Measurement] | None = None,
    on_measured: Callable[[str, int, int, Measurement], None] | None = None,
    progress: bool = True,
) -> DistanceCurves:
    """Frechet distances of samples against the network calls that they took, for the same seeds everywhere.

    Args:
        models: see ``arms.Models``.
        reference: of the data, ``evaluation.data_reference``.
        config: of each evaluation; ``metrics`` and ``num_inference_steps`` are set here.
        steps: network calls, in the order of the table.
        record: more for the records.
        known: (arm, training seed, steps) -> measurements of an earlier, interrupted call, which are not made again.
        on_measured: told of every new measurement, with its arm, training seed and steps: to keep it.

    Raises:
        ValueError: no steps, one twice or more than a model can take (all before any work is done).
    """
    check_steps(steps)
    arms = models_by_seed(models)
    for arm, by_seed in arms.items():
        for model in by_seed.values():
            n_calls(model)
            most = model.objective.max_steps
            if most is not None and max(steps) > most:
                raise ValueError(f"steps={max(steps)}: {arm} was trained with {most} steps and cannot take more")
    measured: dict[str, dict[int, tuple[Measurement, ...]]] = {}
    for arm, by_seed in arms.items():
        measured[arm] = {}
        for training_seed, model in by_seed.items():
            row = []
            for count in steps:
                found = (known or {}).get((arm, training_seed, count))
                if found is None:
                    settings = replace(config, metrics=("fd",), num_inference_steps=count)
                    own = {"arm": arm, "training_seed": training_seed, **(record or {})}
                    (found,) = evaluate_model(model, reference, extractor, settings, own, progress).values()
                    if on_measured is not None:
                        on_measured(arm, training_seed, count, found)
                row.append(found)
            measured[arm][training_seed] = tuple(row)
    key = result_key("fd", extractor.name, config.n_samples, reference.statistics.n, extractor.canonical)
    return DistanceCurves(key, "sampling steps", tuple(steps), measured)
