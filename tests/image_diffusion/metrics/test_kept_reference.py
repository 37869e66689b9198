"""Statistics that took long are kept, and found only for the very same images, extractor and options."""

import hashlib
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from image_diffusion.metrics import Pixels, kept_reference, reference_statistics
from image_diffusion.metrics.extractor import references_folder
from image_diffusion.metrics.reference import ReferenceStatistics

IMAGES = torch.randint(0, 256, (30, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
OPTIONS = {"floor": True, "keep_features": True, "max_features": 20}


class Counting(Pixels):
    """Counts the images that it saw."""

    seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        Counting.seen += len(images)
        return super().__call__(images)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMMISCIBLE_REFERENCES", str(tmp_path / "kept"))
    monkeypatch.setattr(Counting, "seen", 0)
    assert references_folder() == tmp_path / "kept"
    return tmp_path / "kept"


def ask(images: Tensor = IMAGES, source: str = "noise", worth_seconds: float = 0.0, **options) -> ReferenceStatistics:
    return kept_reference(
        lambda: iter(images.split(7)),
        Counting((1, 2, 2)),
        source,
        progress=False,
        worth_seconds=worth_seconds,
        **{**OPTIONS, **options},
    )


def same(one: ReferenceStatistics, other: ReferenceStatistics) -> None:
    assert (one.extractor, one.source, one.floor, one.floor_n) == (
        other.extractor,
        other.source,
        other.floor,
        other.floor_n,
    )
    assert (one.statistics.mean == other.statistics.mean).all()
    assert (one.statistics.covariance == other.statistics.covariance).all()
    assert one.features is not None
    assert other.features is not None
    assert torch.equal(one.features, other.features)


def test_the_second_time_no_features_are_computed(folder: Path) -> None:
    plain = reference_statistics(iter(IMAGES.split(7)), Pixels((1, 2, 2)), "noise", progress=False, **OPTIONS)
    first = ask()
    assert Counting.seen == 30
    second = ask()
    assert Counting.seen == 30
    same(plain, first)
    same(first, second)
    assert len(list(folder.iterdir())) == 1


def test_what_differs_is_made() -> None:
    ask()
    changed = IMAGES.clone()
    changed[-1, 0, 1, 1] ^= 1
    for number, other in enumerate(
        (
            {"images": changed},
            {"images": IMAGES.flip(0)},
            {"source": "other noise"},
            {"floor": False},
            {"keep_features": False},
            {"max_features": 10},
        ),
        start=2,
    ):
        ask(**other)
        assert Counting.seen == 30 * number, other


def test_what_was_fast_is_not_kept(folder: Path) -> None:
    ask(worth_seconds=1e6)
    assert not folder.exists()


def test_a_damaged_file_is_made_anew(folder: Path) -> None:
    ask()
    (path,) = folder.iterdir()
    path.write_bytes(b"PK")
    with pytest.warns(UserWarning, match="made anew"):
        made = ask()
    assert Counting.seen == 60
    same(made, ReferenceStatistics.load(path))


def test_where_nothing_can_be_written_there_is_a_warning(folder: Path) -> None:
    folder.write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be kept"):
        made = ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(made, ask(worth_seconds=1e6))


def test_a_known_hash_is_the_one_that_a_pass_over_the_pixels_finds(folder: Path) -> None:
    known = hashlib.sha256(IMAGES.numpy().data).hexdigest()
    first = ask()
    passes = []

    def batches():
        passes.append(1)
        return iter(IMAGES.split(7))

    again = kept_reference(batches, Counting((1, 2, 2)), "noise", known, progress=False, **OPTIONS)
    same(first, again)
    assert not passes
    assert Counting.seen == 30
    (path,) = folder.iterdir()
    assert path.name.endswith(f"-{known}.npz")
