"""Names of results, and the record that every number carries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from immiscible_policy.files import finite, write_json

# Published distances compare this many generated images, with a reference no smaller.
CANONICAL_N = 50_000
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_RESERVED = "fid"


@dataclass(frozen=True)
class MetricRecord:
    """What a number was measured with.

    Attributes:
        extractor, canonical, weights_sha256, resize: of the feature extractor.
        n_generated, n_reference: images compared.
        reference: which images those were, such as "cifar10 train".
        settings: of the metric, such as k or the number of subsets.
        run: what the caller adds: sampler, steps, seed, averaging of weights ...
    """

    extractor: str
    canonical: bool
    weights_sha256: str | None
    resize: str
    n_generated: int
    n_reference: int
    reference: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A number with its record.

    Attributes:
        value: the number.
        record: what it was measured with.
        standard_error: of the value; None where none is known.
        notes: what a reader must know to use it.
    """

    value: float
    record: MetricRecord
    standard_error: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; NaN, which JSON lacks, is null."""
        content: dict[str, Any] = finite(asdict(self))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measurement:
        """What ``to_json`` gave."""
        value, record = content["value"], MetricRecord(**content["record"])
        return cls(math.nan if value is None else value, record, content["standard_error"], tuple(content["notes"]))


def result_key(metric: str, extractor: str, n_generated: int, n_reference: int, canonical: bool) -> str:
    """The name under which a result may be quoted: ``{metric}_{extractor}_{n_generated}``.

    One kind alone is called ``fid`` (``fid_{n_generated}`` beyond 50,000): the Frechet distance (``metric="fd"``) in
    the canonical extractor's features, with at least 50,000 images on either side. Anything else is no number to set
    beside published ones.

    Raises:
        ValueError: a name that could be taken for such a number, or that would break the key.
    """
    for role, name in (("metric", metric.replace("_", "-")), ("extractor", extractor)):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{role} must be named by lower-case letters, digits, '.' and '-', got {name!r}")
        if _RESERVED in name:
            raise ValueError(f"{role} must not have {_RESERVED!r} in its name, got {name!r}")
    if metric == "fd" and canonical and min(n_generated, n_reference) >= CANONICAL_N:
        return _RESERVED if n_generated == CANONICAL_N else f"{_RESERVED}_{n_generated}"
    return f"{metric}_{extractor}_{n_generated}"


def as_json(measurements: Mapping[str, Measurement]) -> dict[str, dict[str, Any]]:
    """Measurements as JSON holds them."""
    return {key: measurement.to_json() for key, measurement in measurements.items()}


def save_measurements(path: str | Path, measurements: Mapping[str, Measurement]) -> Path:
    """Write measurements as JSON, atomically: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, as_json(measurements))
    return path
