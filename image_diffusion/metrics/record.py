"""Names of results, and the record that every number carries."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from immiscible_policy.files import alone, finite, write_json

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


def read_measurements(path: str | Path) -> dict[str, dict[str, Any]]:
    """Measurements in a file as JSON holds them, by their keys; none where there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        content = None
    if not isinstance(content, dict) or not all(isinstance(one, dict) and "record" in one for one in content.values()):
        raise ValueError(f"{path}: holds something other than measurements; choose another file, or remove it")
    return content


def add_measurements(path: str | Path, measurements: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """Add measurements to those in a file, of which none is lost, whoever else adds to it; atomically.

    One whose key the file has already, from other settings, goes under the key with the settings that differ, such as
    ``fd_pixels_500 guidance_scale=2.0``. Where the settings are the same and the number is another, as of another model
    of the same name, it is counted: ``fd_pixels_500 (2)``.

    Returns:
        The measurements by the keys that they have in the file.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(path)
    placed = {}
    with alone(path):
        content = read_measurements(path)
        for key, measurement in measurements.items():
            one = json.loads(json.dumps(measurement.to_json()))
            name = key + _difference(content.get(key, one)["record"], one["record"])
            names = chain([name], (f"{name} ({number})" for number in count(2)))
            free = next(name for name in names if content.get(name, one) == one)
            content[free], placed[free] = one, measurement
        write_json(path, content)
    return placed


def _difference(before: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What a record has otherwise than an earlier one, to be put behind its key; empty for the same."""
    old, new = _settings(before), _settings(record)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "".join(f"{',' if place else ''} {name}={new.get(name)}" for place, name in enumerate(changed))


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without its levels; settings of the metric are called so, as a run has a seed, too."""
    flat = {name: value for name, value in record.items() if name not in ("settings", "run")}
    return {**flat, **{f"settings.{name}": value for name, value in record["settings"].items()}, **record["run"]}
