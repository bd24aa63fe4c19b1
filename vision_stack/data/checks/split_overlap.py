"""Finds images that are there twice, in one split or in two, by what their files hold."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vision_stack.data.image_records import ImageFile, with_progress

_THREADS = 8
_END = 4096  # bytes at both ends of a file


def shared_images(train: Sequence[ImageFile], val: Sequence[ImageFile]) -> list[tuple[ImageFile, ImageFile]]:
    """Validation images whose file's content is a training image's, too: pairs of (val, train).

    Files of the same size are compared by both ends, and read as a whole only where these are the same.
    """
    pairs: list[tuple[ImageFile, ImageFile]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for step in (_size, _ends, _content):
            keys_train, keys_val = (_keys(step, [each.path for each in records], pool) for records in (train, val))
            found = {key: record for key, record in zip(keys_train, train, strict=True) if key is not None}
            common = found.keys() & set(keys_val)
            train = [record for key, record in zip(keys_train, train, strict=True) if key in common]
            pairs = [(record, found[key]) for key, record in zip(keys_val, val, strict=True) if key in common]
            val = [record for record, _ in pairs]
    return pairs


def same_files(paths: Sequence[str]) -> list[list[int]]:
    """Indices of files with the same content, in groups of two or more; read as in `shared_images`."""
    groups = [list(range(len(paths)))]
    with ThreadPoolExecutor(_THREADS) as pool:
        for step in (_size, _ends, _content):
            left = [index for group in groups for index in group]
            keys = dict(zip(left, _keys(step, [paths[index] for index in left], pool), strict=True))
            split: dict[tuple[int, object], list[int]] = defaultdict(list)
            for number, group in enumerate(groups):
                for index in group:
                    if keys[index] is not None:
                        split[number, keys[index]].append(index)
            groups = [group for group in split.values() if len(group) > 1]
    return groups


def _keys(key: Callable[[str], object], paths: Sequence[str], pool: ThreadPoolExecutor) -> list[object]:
    return list(with_progress(pool.map(key, paths), len(paths), "looking for images that are there twice"))


def _size(path: str) -> object:
    try:
        return os.stat(path).st_size
    except OSError:  # reported when it is read
        return None


def _ends(path: str) -> object:
    try:
        with open(path, "rb") as file:
            first = file.read(_END)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(length - _END, 0))
            return hashlib.sha1(first + file.read() + str(length).encode()).digest()
    except OSError:
        return None


def _content(path: str) -> object:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha1").digest()
    except OSError:
        return None
