"""Time and memory of reading a json of LVIS's size, and of the workers that are forked afterwards.

    python benchmarks/large_json.py [--annotations 1300000] [--workers 2]

Generates a COCO json of 100,000 images and 1.3 million polygons of LVIS's mean length (about 1.1 GB; images are not
there, so their files are not checked), reads and checks it in a process of its own, then forks workers that go through
records of the whole data set. A worker's memory is what only it has (private pages of `smaps_rollup`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.readers.coco import read_coco
from vision_stack.training.memory import peak_memory

REQUIRED_SECONDS, REQUIRED_GB, REQUIRED_WORKER_MB = 60, 2.5, 100
CLASSES, POOL = 1203, 4096


def write(path: Path, annotations: int) -> None:
    """The json; polygons of 5 to 89 points with two decimals."""
    rng = np.random.default_rng(0)
    shapes = []
    for _ in range(POOL):
        count = int(rng.integers(5, 90))
        angles = np.arange(count) / count * 2 * np.pi
        radius = rng.uniform(0.8, 1.0, count) * rng.uniform(4, 100)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None] + rng.uniform(110, 300, 2)
        x, y = points.min(axis=0)
        w, h = np.ptp(points, axis=0)
        area = 0.5 * abs(np.sum(points[:, 0] * np.roll(points[:, 1], 1) - points[:, 1] * np.roll(points[:, 0], 1)))
        flat = ", ".join(f"{value:.2f}" for value in points.ravel())
        shapes.append(f'"segmentation": [[{flat}]], "bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], "area": {area:.2f}')
    images = max(1, annotations // 13)
    owners, classes = rng.integers(1, images + 1, annotations), rng.integers(1, CLASSES + 1, annotations)
    with path.open("w") as file:
        file.write('{"info": {}, "annotations": [')
        for n in range(annotations):
            comma = ", " if n else ""
            file.write(
                f'{comma}{{"id": {n + 1}, "image_id": {owners[n]}, "category_id": {classes[n]}, "iscrowd": 0, '
                f"{shapes[n % POOL]}}}"
            )
        listed = [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640, "neg_category_ids": [1, 2, 3]}
            for n in range(1, images + 1)
        ]
        categories = [{"id": n, "name": f"class {n}", "synonyms": ["a", "b"]} for n in range(1, CLASSES + 1)]
        file.write(f'], "images": {json.dumps(listed)}, "categories": {json.dumps(categories)}}}')


def private_memory() -> float:
    """MB that only this process has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _go_through(records: list[Any], results: Any) -> None:
    before = private_memory()
    for record in records[:: max(1, len(records) // 20_000)]:
        transform = GeometricTransform((0, 0, record.width, record.height), (record.height // 2, record.width // 2))
        record.objects(transform, stride=4)
    results.put((before, private_memory()))


def _read(path: Path, workers: int) -> None:
    began = time.perf_counter()
    split = read_coco(path, path.parent, check_images=False)
    seconds, gigabytes = time.perf_counter() - began, peak_memory() / 1e9
    read = f"{len(split.records):,} images, {len(split.table.labels):,} annotations, {path.stat().st_size / 1e9:.2f} GB"
    print(f"{read}: {seconds:.0f} s (required: {REQUIRED_SECONDS})", flush=True)
    print(f"at most {gigabytes:.2f} GB (required: {REQUIRED_GB})", flush=True)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    forked = [context.Process(target=_go_through, args=(split.records, results)) for _ in range(workers)]
    for process in forked:
        process.start()
    for _ in forked:
        before, after = results.get()
        print(f"a worker: {before:.0f} MB of its own at first, {after:.0f} MB later (required: {REQUIRED_WORKER_MB})")
    for process in forked:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=1_300_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep it there, or read it if it is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.json or Path(folder) / "large.json"
        if not path.is_file():
            write(path, args.annotations)
        process = multiprocessing.get_context("spawn").Process(target=_read, args=(path, args.workers))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
