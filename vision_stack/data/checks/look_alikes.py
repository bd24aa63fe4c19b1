"""Images that are there twice, in one split or in two: the same file, or nearly the same picture; and blank ones.

The same file is found by its content. Nearly the same picture, as of one video, or saved again at another size or
quality, is found by a perceptual hash: whether the brightness of a picture of 9 x 9 pixels grows from each pixel to the
next one, to the right and downwards (dHash, N. Krawetz 2013), 128 bits. Pairs that differ in few bits are then compared
pixel by pixel at 32 x 32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_stack.data.checks.diagnosis import Diagnosis, Exhibit, Split
from vision_stack.data.checks.issues import DataError, Problem, show
from vision_stack.data.checks.split_overlap import same_files
from vision_stack.data.image_records import ImageFile, with_progress
from vision_stack.data.images import open_image

_THREADS = 8
_GRID, _SIDE = 9, 32  # pixels of the pictures that are hashed, and compared
_BANDS = 8  # of 16 bits: pairs that differ in fewer bits than there are bands agree in one of them
_MOST_BITS = 7
_MOST_DIFFERENCE = 6.0  # mean of the absolute differences at 32 x 32, of 255
_BLANK = 2.0  # standard deviation of the brightness, of 255
_AT_MOST = 400  # pictures with one band in common that are compared with each other
_SEPARATE = "validation would measure memorisation; keep the image in one split"
_FIELD = "images[].file_name"
_Owned = tuple[str, Any]  # name of the split, record


class _Look(NamedTuple):
    bits: NDArray[np.uint8]  # [16] the hash
    small: NDArray[np.int16]  # [32, 32] grey


def find_look_alikes(splits: Mapping[str, Split]) -> Iterator[Diagnosis]:
    """The same image twice, nearly the same image twice, and blank images; reads every image file."""
    owned: list[_Owned] = [(name, record) for name, split in splits.items() for record in split.records]
    files = {name: split.annotation_file for name, split in splits.items()}
    same: dict[int, int] = {}  # image -> the first with the same content
    for group in same_files([record for _, record in owned]):
        same.update(dict.fromkeys(group, group[0]))
        yield from _copies([owned[index] for index in group], files)
    looks = list(_looks([record for _, record in owned]))
    for (name, record), look in zip(owned, looks, strict=True):
        if look is not None and look.small.std() < _BLANK:
            message = f"{show(record.file_name)} is of one colour"
            problem = Problem(files[name], _FIELD, message, "export it again, or remove it")
            yield Diagnosis("blank_image", name, problem, (Exhibit(record),))
    for a, b, difference in _similar(looks):
        if same.get(a, a) != same.get(b, b):
            yield _pair(owned[a], owned[b], files, difference)


def _copies(group: Sequence[_Owned], files: Mapping[str, str]) -> Iterator[Diagnosis]:
    by_split: dict[str, list[Any]] = defaultdict(list)
    for name, record in group:
        by_split[name].append(record)
    for name, (first, *others) in by_split.items():
        for other in others:
            message = f"{show(other.file_name)} is the same file as {show(first.file_name)}"
            remedy = "remove one of them, or list it once with all of its annotations"
            problem = Problem(files[name], _FIELD, message, remedy)
            yield Diagnosis("duplicate_image", name, problem, (Exhibit(other, other=first),))
    for (one, (first, *_)), (name, others) in combinations(by_split.items(), 2):
        for other in others:
            message = f"{show(other.file_name)} of {name} is {show(first.file_name)} of {one}"
            problem = Problem(files[name], _FIELD, message, _SEPARATE)
            yield Diagnosis("leak", f"{one}, {name}", problem, (Exhibit(other, other=first),))


def _pair(first: _Owned, second: _Owned, files: Mapping[str, str], difference: float) -> Diagnosis:
    (one, a), (other, b) = first, second
    what = f"(they differ by {difference:.1f} of 255 at {_SIDE} x {_SIDE} pixels)"
    if one != other:
        message = f"{show(b.file_name)} of {other} looks like {show(a.file_name)} of {one} {what}"
        problem = Problem(files[other], _FIELD, message, "keep images of one scene in one split")
        return Diagnosis("similar_in_splits", f"{one}, {other}", problem, (Exhibit(b, other=a),), -difference)
    message = f"{show(b.file_name)} looks like {show(a.file_name)} {what}"
    problem = Problem(files[one], _FIELD, message, "one of them may do")
    return Diagnosis("similar_image", one, problem, (Exhibit(b, other=a),), -difference)


def _looks(records: Sequence[ImageFile]) -> Iterator[_Look | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from with_progress(pool.map(_look, records), len(records), "looking for images that are there twice")


def _look(record: ImageFile) -> _Look | None:
    try:
        with open_image(record.path) as image:
            image.draft("L", (2 * _SIDE, 2 * _SIDE))  # JPEGs are decoded at a fraction of their size
            grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    except DataError:  # reported where the split is read
        return None
    tiny = np.asarray(grey.resize((_GRID, _GRID), Image.Resampling.BOX), np.int16)
    grows = [tiny[:-1, 1:] > tiny[:-1, :-1], tiny[1:, :-1] > tiny[:-1, :-1]]
    return _Look(np.packbits(np.concatenate(grows).ravel()), np.asarray(grey, np.int16))


def _similar(looks: Sequence[_Look | None]) -> list[tuple[int, int, float]]:
    """Pairs of indices, and the mean difference between their pictures; no blank ones."""
    index = [n for n, look in enumerate(looks) if look is not None and look.small.std() >= _BLANK]
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
