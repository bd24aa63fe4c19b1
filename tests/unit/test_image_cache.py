"""Decoded images that are kept: what is found again, by whom, and what is not believed."""

import multiprocessing
import os
import pickle
from typing import NamedTuple

import numpy as np
import pytest

from vision_stack.data.image_cache import DiskCache, ImageCache, MemoryCache, open_cache

SIZES = ((4, 6), (8, 5), (3, 3))
BYTES = [3 * height * width for height, width in SIZES]


class Record(NamedTuple):
    path: str
    height: int
    width: int
    apply_exif: bool = True


@pytest.fixture
def records(tmp_path):
    for name in range(3):
        (tmp_path / f"{name}.jpg").write_text("pixels")
    return [Record(str(tmp_path / f"{n}.jpg"), *size) for n, size in enumerate(SIZES)]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def make(kind, records, tmp_path, limit=10_000) -> ImageCache:
    cache = open_cache(kind, records, limit / 1e9, tmp_path / "cache")
    assert cache is not None
    return cache


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_what_was_put_is_found_and_cannot_be_written_to(kind, records, images, tmp_path):
    cache = make(kind, records, tmp_path)
    assert all(cache.get(n) is None for n in range(3))
    for n in (2, 0):
        cache.put(n, images[n])
    assert cache.get(1) is None
    for n in (0, 2):
        found = cache.get(n)
        assert np.array_equal(found, images[n])
        assert not found.flags.writeable


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_only_the_first_images_that_fit_are_kept(kind, records, images, tmp_path):
    cache = make(kind, records, tmp_path, limit=BYTES[0] + BYTES[1])
    for n, image in enumerate(images):
        cache.put(n, image)
    assert [cache.get(n) is not None for n in range(3)] == [True, True, False]
    assert make(kind, records, tmp_path, limit=BYTES[0] - 1).get(0) is None


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_forked_process_fills_the_cache_of_all(kind, records, images, tmp_path):
    cache = make(kind, records, tmp_path)
    worker = multiprocessing.get_context("fork").Process(target=cache.put, args=(1, images[1]))
    worker.start()
    worker.join()
    assert np.array_equal(cache.get(1), images[1])


def test_a_later_run_finds_the_file_and_a_changed_image_makes_a_new_one(records, images, tmp_path):
    make("disk", records, tmp_path).put(0, images[0])
    again = make("disk", records, tmp_path)
    assert np.array_equal(again.get(0), images[0])
    os.utime(records[2].path, (1, 1))
    changed = make("disk", records, tmp_path)
    assert changed.get(0) is None
    assert list((tmp_path / "cache").iterdir()) == [changed.file]
    assert np.array_equal(again.get(0), images[0])  # whoever has it open goes on


def test_pixels_that_do_not_fit_their_checksum_are_not_believed(records, images, tmp_path):
    cache = make("disk", records, tmp_path)
    cache.put(0, images[0])
    with open(cache.file, "r+b") as file:
        file.seek(5)
        file.write(bytes([images[0].reshape(-1)[5] ^ 1]))
    cache = make("disk", records, tmp_path)
    assert cache.get(0) is None
    cache.put(0, images[0])
    assert np.array_equal(cache.get(0), images[0])


def test_a_full_disk_is_no_cache(records, images, tmp_path, monkeypatch):
    cache = make("disk", records, tmp_path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.put(0, images[0])
    monkeypatch.undo()
    cache.put(1, images[1])
    assert cache.get(0) is None
    assert cache.get(1) is None


def test_pickled_for_a_process_of_its_own(records, images, tmp_path):
    memory, disk = (make(kind, records, tmp_path) for kind in ("ram", "disk"))
    for cache in (memory, disk):
        cache.put(0, images[0])
    assert isinstance(memory, MemoryCache)
    assert isinstance(disk, DiskCache)
    assert pickle.loads(pickle.dumps(memory)).get(0) is None  # starts empty
    assert np.array_equal(pickle.loads(pickle.dumps(disk)).get(0), images[0])
