"""Decoded images, kept in memory or in a file that the processes of a machine share.

Which images are kept is settled beforehand: the first ones that fit. With every image read once an epoch, in an order
drawn anew, no choice would be found again more often.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_KNOWN = 1 << 32  # in an image's mark, above the checksum of its pixels


class CachedImage(Protocol):
    """What is known of an image before it is read."""

    @property
    def path(self) -> str: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def apply_exif(self) -> bool: ...


class ImageCache:
    """Places for images of known sizes.

    Args:
        images: all of them, by index.
        limit: bytes of pixels.
    """

    def __init__(self, images: Sequence[CachedImage], limit: int) -> None:
        self.shapes = [(image.height, image.width, 3) for image in images]
        sizes = np.array([3 * height * width for height, width, _ in self.shapes], dtype=np.int64)
        stops = np.cumsum(sizes)
        self.count = int(np.searchsorted(stops, limit, side="right"))  # of images that are kept
        self.total = int(stops[self.count - 1]) if self.count else 0
        self.starts = stops - sizes

    def get(self, index: int) -> Pixels | None:
        """RGB [height, width, 3], not to be written to; None of an image that is not there."""
        raise NotImplementedError

    def put(self, index: int, image: Pixels) -> None:
        """Keep an image, if there is a place for it."""
        raise NotImplementedError


class MemoryCache(ImageCache):
    """In memory that forked workers share. A process that is started anew has a cache of its own."""

    def __init__(self, images: Sequence[CachedImage], limit: int) -> None:
        super().__init__(images, limit)
        self._map()

    def _map(self) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, max(self.total + self.count, 1)), dtype=np.uint8)  # pages as used
        self._known = self._memory[self.total :]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_memory", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def get(self, index: int) -> Pixels | None:
        if index >= self.count or not self._known[index]:
            return None
        start, shape = self.starts[index], self.shapes[index]
        image = self._memory[start : start + shape[0] * shape[1] * 3].reshape(shape)
        image.flags.writeable = False
        return image

    def put(self, index: int, image: Pixels) -> None:
        if index < self.count:
            start = self.starts[index]
            self._memory[start : start + image.size] = image.reshape(-1)
            self._known[index] = 1  # last, so that nobody sees half an image


class DiskCache(ImageCache):
    """In a file that later runs find again, as long as the images' files have the same sizes and times.

    An image is there once its mark is, which holds a checksum: what a killed process or a power cut left half written
    is decoded again. Once the disk is full, images are read as if there were no cache.

    Args:
        folder: of the caches; what an earlier state of the same images left there is removed.
    """

    def __init__(self, images: Sequence[CachedImage], limit: int, folder: Path) -> None:
        super().__init__(images, limit)
        folder.mkdir(parents=True, exist_ok=True)
        names, states = hashlib.sha256(), hashlib.sha256(str(self.count).encode())
        for image in images:
            names.update(f"{os.path.abspath(image.path)}\0".encode(errors="surrogateescape"))
            states.update(f"{image.apply_exif} {image.height} {image.width} {_state(image.path)}\0".encode())
        prefix = names.hexdigest()[:20]
        self.file = folder / f"{prefix}-{states.hexdigest()[:20]}.rgb"
        for other in folder.glob(f"{prefix}-*.rgb"):
            if other != self.file:
                other.unlink(missing_ok=True)
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        size = max(self.total + 8 * self.count, 1)
        if os.fstat(self._descriptor).st_size != size:
            os.ftruncate(self._descriptor, size)  # zeros, which take no room until images are written
        self._memory = np.frombuffer(mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ), dtype=np.uint8)
        self._checked = bytearray(self.count)
        self._full = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_memory", "_descriptor")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def get(self, index: int) -> Pixels | None:
        if index >= self.count:
            return None
        place = self.total + 8 * index
        mark = int.from_bytes(self._memory[place : place + 8].tobytes(), "little")
        if not mark:
            return None
        start, shape = self.starts[index], self.shapes[index]
        image = self._memory[start : start + shape[0] * shape[1] * 3].reshape(shape)
        if not self._checked[index]:
            if mark != _mark(image):
                return None
            self._checked[index] = 1
        return image

    def put(self, index: int, image: Pixels) -> None:
        if index >= self.count or self._full:
            return
        image = np.ascontiguousarray(image)
        mark = _mark(image).to_bytes(8, "little")
        try:  # not through the map: a page for which the disk has no room would be a bus error
            written = os.pwrite(self._descriptor, image.data, int(self.starts[index]))
            self._full = written < image.size or os.pwrite(self._descriptor, mark, self.total + 8 * index) < 8
        except OSError:
            self._full = True


def open_cache(kind: str, images: Sequence[CachedImage], gigabytes: float, folder: Path) -> ImageCache | None:
    """The cache of a config's `cache` and `cache_gb`."""
    limit = int(gigabytes * 1e9)
    if kind == "disk":
        return DiskCache(images, limit, folder)
    return MemoryCache(images, limit) if kind == "ram" else None


def _mark(image: Pixels) -> int:
    return _KNOWN | zlib.crc32(image.data)


def _state(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # reading it will say what is wrong
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
