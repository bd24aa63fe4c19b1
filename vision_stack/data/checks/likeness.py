"""Whether two images show nearly the same, as frames of one video do, or a picture saved again.

A perceptual hash finds candidates: whether the brightness of a picture of 9 x 9 pixels grows from each pixel to the
next one, to the right and downwards (dHash, N. Krawetz 2013), 128 bits. Pairs that differ in few bits are then compared
pixel by pixel at 32 x 32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_stack.data.checks.issues import DataError
from vision_stack.data.image_records import with_progress
from vision_stack.data.images import open_image

SIDE = 32  # pixels of the pictures that are compared
_THREADS = 8
_GRID = 9  # pixels of the pictures that are hashed
_BANDS = 8  # of 16 bits: pairs that differ in fewer bits than there are bands agree in one of them
_MOST_BITS = 7
_MOST_DIFFERENCE = 6.0  # mean of the absolute differences at 32 x 32, of 255
_BLANK = 2.0  # standard deviation of the brightness, of 255
_AT_MOST = 400  # pictures with one band in common that are compared with each other


class Look(NamedTuple):
    bits: NDArray[np.uint8]  # [16] the hash
    small: NDArray[np.int16]  # [32, 32] grey

    @property
    def is_blank(self) -> bool:
        return bool(self.small.std() < _BLANK)


def looks_of(paths: Sequence[str]) -> list[Look | None]:
    """What images look like; None of those that cannot be read. Reads every file."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(with_progress(pool.map(_look, paths), len(paths), "looking for images that look the same"))


def _look(path: str) -> Look | None:
    try:
        with open_image(path) as image:
            image.draft("L", (2 * SIDE, 2 * SIDE))  # JPEGs are decoded at a fraction of their size
            grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except DataError:  # reported where the split is read
        return None
    tiny = np.asarray(grey.resize((_GRID, _GRID), Image.Resampling.BOX), np.int16)
    grows = [tiny[:-1, 1:] > tiny[:-1, :-1], tiny[1:, :-1] > tiny[:-1, :-1]]
    return Look(np.packbits(np.concatenate(grows).ravel()), np.asarray(grey, np.int16))


def similar_pairs(looks: Sequence[Look | None]) -> list[tuple[int, int, float]]:
    """Pairs of indices of images that are nearly the same, and the mean difference; no blank ones."""
    index = [n for n, look in enumerate(looks) if look is not None and not look.is_blank]
    found: dict[tuple[int, int], float] = {}
    if len(index) < 2:
        return []
    hashes = np.stack([look.bits for n in index if (look := looks[n]) is not None])
    bands = hashes.reshape(len(index), _BANDS, -1)
    for band in range(_BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for place, key in enumerate(bands[:, band]):
            buckets[key.tobytes()].append(place)
        for places in buckets.values():
            for a, b in _close(hashes, places):
                one, other = looks[index[a]], looks[index[b]]
                assert one is not None
                assert other is not None
                difference = float(np.abs(one.small - other.small).mean())
                if difference <= _MOST_DIFFERENCE:
                    found[index[a], index[b]] = difference
    return [(a, b, difference) for (a, b), difference in sorted(found.items())]


def _close(hashes: NDArray[np.uint8], places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs whose hashes differ in few bits. Where very many share a band, each is compared with the next ones."""
    for start in range(len(places) - 1):
        others = np.array(places[start + 1 : start + _AT_MOST])
        bits = np.bitwise_count(hashes[places[start]] ^ hashes[others]).sum(axis=1)
        for other in others[bits <= _MOST_BITS].tolist():
            yield places[start], other
