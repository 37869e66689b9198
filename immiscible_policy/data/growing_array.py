"""A zarr array (format 2) on disk that grows along its first axis, and whose every change is one rename.

Rows are written in two steps: first the chunks, where no reader looks yet, then the length. Between the two a
reader sees the array as it was. The format: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Blosc  # type: ignore[import-untyped]

from immiscible_policy.data.replay import DataError

# A chunk is written anew whenever rows are added to it, so it must not grow large.
CHUNK_BYTES = 4 << 20
CHUNK_STEPS = 1024

# The settings of the human set's recorder; written out because newer numcodecs add keys that older ones refuse.
COMPRESSOR = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0}


@dataclass(frozen=True)
class GrowingArray:
    """One zarr array on disk, chunked along its first axis only.

    Attributes:
        folder: where it is.
        step_shape: shape of one row.
        dtype: of the values.
        chunk: rows in a chunk.
    """

    folder: Path
    step_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int

    @classmethod
    def create(cls, folder: Path, step_shape: tuple[int, ...], dtype: str) -> GrowingArray:
        """A new array of length 0."""
        step_bytes = np.dtype(dtype).itemsize * math.prod(step_shape)
        chunk = max(1, min(CHUNK_STEPS, CHUNK_BYTES // max(1, step_bytes)))
        array = cls(folder, step_shape, np.dtype(dtype), chunk)
        folder.mkdir(parents=True)
        array.set_length(0)
        return array

    @classmethod
    def open(cls, folder: Path) -> GrowingArray:
        """An array that this writer made; DataError for any other."""
        metadata = _read_metadata(folder)
        try:
            shape, chunks, dtype = metadata["shape"], metadata["chunks"], np.dtype(metadata["dtype"])
            array = cls(folder, tuple(shape[1:]), dtype, int(chunks[0]))
            # Other zarr libraries add keys and write the fill value in their own way when they extend an array.
            expected = array._metadata(int(shape[0])) | {"fill_value": metadata["fill_value"]}
            same = expected == {name: metadata[name] for name in expected}
            same = same and metadata.get("dimension_separator", ".") == "."
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{folder}/.zarray is damaged ({type(error).__name__}: {error})") from error
        if not same:
            raise DataError(f"{folder} is chunked or encoded in another way than this writer's arrays")
        return array

    @property
    def length(self) -> int:
        """The length that readers see, on disk now."""
        return int(_read_metadata(self.folder)["shape"][0])

    def set_length(self, length: int) -> None:
        """Let readers see `length` rows, all of them or, if this is interrupted, as many as before."""
        write_file(self.folder / ".zarray", json.dumps(self._metadata(length), indent=4).encode())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop, (stop - start, ...)."""
        parts = [np.empty((0, *self.step_shape), self.dtype)]
        for index in range(start // self.chunk, -(-stop // self.chunk)):
            first = index * self.chunk
            parts.append(self._read_chunk(index)[max(0, start - first) : stop - first])
        return np.concatenate(parts)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows from `start` (at most the length) on; the rows before stay, the length too."""
        stop = start + len(rows)
        for index in range(start // self.chunk, -(-stop // self.chunk)):
            first = index * self.chunk
            chunk = np.zeros((self.chunk, *self.step_shape), self.dtype)
            if first < start:
                chunk[: start - first] = self._read_chunk(index)[: start - first]
            part = rows[max(0, first - start) : first + self.chunk - start]
            chunk[max(0, start - first) :][: len(part)] = part
            write_file(self._chunk_path(index), _codec().encode(chunk))

    def remove_beyond_length(self) -> None:
        """Remove the files of chunks that no row is in, and what an interrupted write left."""
        kept = {self._chunk_path(index).name for index in range(-(-self.length // self.chunk))}
        for file in self.folder.iterdir():
            if file.name not in kept and (file.suffix == ".tmp" or file.name[0].isdigit()):
                file.unlink()

    def _chunk_path(self, index: int) -> Path:
        return self.folder / ".".join([str(index), *["0"] * len(self.step_shape)])

    def _read_chunk(self, index: int) -> np.ndarray:
        path = self._chunk_path(index)
        try:
            decoded = np.frombuffer(_codec().decode(path.read_bytes()), self.dtype)
            return decoded.reshape(self.chunk, *self.step_shape)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{path} is missing or damaged ({error})") from error

    def _metadata(self, length: int) -> dict[str, Any]:
        return {
            "zarr_format": 2,
            "shape": [length, *self.step_shape],
            "chunks": [self.chunk, *self.step_shape],
            "dtype": self.dtype.str,
            "compressor": COMPRESSOR,
            "fill_value": 0,
            "filters": None,
            "order": "C",
        }


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that others see the old one or the new one, also after a power failure."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ".zarray").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/.zarray is missing or damaged ({error})") from error


def _codec() -> Blosc:
    return Blosc(**{name: value for name, value in COMPRESSOR.items() if name != "id"})
