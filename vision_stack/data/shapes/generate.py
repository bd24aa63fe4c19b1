"""The generated data set: scenes of textured, overlapping shapes, written as an ordinary COCO folder.

It needs no download, is the same for the same parameters, and goes through the same reader as any other data set:
polygons where a shape is seen whole, RLE where it is partly hidden or has a hole, sparse category ids, images without
objects. Panoptic and semantic annotations lie beside those of instances.
"""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from vision_stack.data.shapes.labels import CATEGORY_IDS, SceneSegments, SegmentFiles, scene_files
from vision_stack.data.shapes.render import CATEGORIES, SPLITS, Scene, Shape, draw_scene, rasterize
from vision_stack.ops import rle
from vision_stack.ops.files import scratch_folder

FORMAT_VERSION = 6  # of the scenes and of the files; to be raised whenever the same parameters give other bytes
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}
JPEG_QUALITY = 95
SCENES_PER_PROCESS = 200  # with fewer, one process alone is done sooner
CHUNK = 16  # scenes that a process draws at a time


def generate_shapes(
    root: Path,
    *,
    seed: int = 0,
    image_size: int = 128,
    num_train: int,
    num_val: int,
    min_objects: int = 1,
    max_objects: int = 6,
) -> Path:
    """Write the data set into a folder of its own below `root`, unless it is there already, and give that folder.

    The folder holds `annotations/instances_{train,val}.json`, `train/*.jpg` and `val/*.jpg`, and what `SegmentFiles`
    writes; its name tells all the parameters and the format's version. It appears at once and complete, also when
    several processes write it.

    Args:
        seed: of the scenes; train and val draw from separate streams, and a scene depends only on its index.
        image_size: height and width in pixels, at least 32.
        min_objects, max_objects: bounds of an image's number of objects. Every thirtieth or so has none; in a crowded
            image, fewer than drawn may fit.

    Raises:
        ValueError: a parameter out of range, or the folder cannot be written.
    """
    _check(seed, image_size, num_train, num_val, min_objects, max_objects)
    name = f"shapes_v{FORMAT_VERSION}_seed{seed}_{image_size}px_{num_train}+{num_val}_{min_objects}to{max_objects}"
    folder = Path(root) / name
    counts = {"train": num_train, "val": num_val}
    if _is_complete(folder, counts):
        return folder
    options = {"seed": seed, "image_size": image_size, "min_objects": min_objects, "max_objects": max_objects}
    try:
        with scratch_folder(folder) as scratch:
            _write(scratch, counts, options)
            _publish(scratch, folder, counts)
    except OSError as error:
        raise ValueError(
            f"{root}: the generated images cannot be written ({error.strerror or error}); make room or change its "
            "permissions, or choose another folder with data.root=DIR or the environment variable VISION_STACK_CACHE"
        ) from error
    return folder


def generate_tiny_shapes(root: Path, *, seed: int = 0) -> Path:
    """A dozen 64 px images (8 train, 4 val) for tests and for trying things out."""
    return generate_shapes(root, seed=seed, image_size=64, num_train=8, num_val=4, max_objects=4)


def annotate(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene's visible parts, back to front, without `id` and `image_id`."""
    annotations = []
    for label, shape in enumerate(scene.shapes, start=1):
        mask = scene.label_map == label
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        annotations.append(
            {
                "category_id": CATEGORY_IDS[shape.category],
                "segmentation": _as_polygon(shape, mask) or rle.to_json(rle.encode(mask)),
                "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )
    return annotations


def _as_polygon(shape: Shape, mask: NDArray[np.bool_]) -> list[list[float]] | None:
    """The contour as COCO polygon, if it says exactly what is visible."""
    height, width = mask.shape
    outline = shape.loops[0]
    if len(shape.loops) > 1 or outline.min() < 0 or (outline > [width, height]).any():
        return None
    return [outline.ravel().tolist()] if (rasterize(shape.loops, height, width) == mask).all() else None


def _write(folder: Path, counts: dict[str, int], options: dict[str, int]) -> None:
    (folder / "annotations").mkdir()
    progress = _progress(sum(counts.values()), "generating shapes")
    for split in SPLITS:
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        segments = SegmentFiles(folder, split)
        for files in _scenes(split, counts[split], options):
            name = f"{len(images):06d}.jpg"
            (folder / split / name).write_bytes(files.jpeg)
            image: dict[str, Any] = {"id": FIRST_IMAGE_ID[split] + len(images), "file_name": name, **files.size}
            images.append(image)
            for annotation in files.annotations:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
            segments.add(image, files.segments)
            next(progress)
        info = {"description": "generated shapes", "version": str(FORMAT_VERSION), "split": split, **options}
        content = {
            "info": info,
            "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CATEGORIES, strict=True)],
            "images": images,
            "annotations": annotations,
        }
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        segments.close(info, images)
    progress.close()


class _SceneFiles(NamedTuple):
    """What is written of a scene."""

    size: dict[str, int]  # height, width
    jpeg: bytes
    annotations: list[dict[str, Any]]
    segments: SceneSegments


def _scenes(split: str, count: int, options: dict[str, int]) -> Iterator[_SceneFiles]:
    """The scenes of a split in their order, drawn by as many processes as there are cores to them."""
    draw = functools.partial(_draw, split, options)
    processes = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, count // SCENES_PER_PROCESS
    )
    if processes < 2:
        yield from map(draw, range(count))
        return
    # Forked: a fresh interpreter would take longer to import what it needs than to draw some hundred scenes.
    context = multiprocessing.get_context("fork")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        try:
            chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
            for future in [pool.submit(_draw_all, draw, chunk) for chunk in chunks]:
                yield from future.result()
        except BaseException:  # such as a signal, perhaps only to this process
            for process in set(multiprocessing.active_children()) - others:
                process.kill()  # what waits then fails; cancelled first, it would make the pool's thread fail
            raise


def _end_with(parent: int) -> None:
    """Let this process end when its parent does: after `kill -9` nobody tells it to."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_all(draw: Callable[[int], _SceneFiles], indices: Iterable[int]) -> list[_SceneFiles]:
    return [draw(index) for index in indices]


def _draw(split: str, options: dict[str, int], index: int) -> _SceneFiles:
    scene = draw_scene(split=split, index=index, **options)
    height, width = scene.label_map.shape
    jpeg = io.BytesIO()
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return _SceneFiles({"height": height, "width": width}, jpeg.getvalue(), annotate(scene), scene_files(scene))


def _progress(total: int, title: str) -> Generator[None]:
    """Each `next` counts one; a bar is shown once two seconds have passed."""
    start = time.monotonic()
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, visible=False)
        while True:
            yield
            bar.update(task, advance=1, visible=time.monotonic() - start > 2)


def _publish(scratch: Path, folder: Path, counts: dict[str, int]) -> None:
    """Rename to the final name; where another process was faster, its folder stays."""
    if folder.exists() and not _is_complete(folder, counts):
        shutil.rmtree(folder)  # somebody deleted a part of it: it never appears otherwise
    try:
        scratch.rename(folder)
    except OSError:
        if not _is_complete(folder, counts):
            raise


def _is_complete(folder: Path, counts: dict[str, int]) -> bool:
    return all(
        all((folder / "annotations" / f"{kind}_{split}.json").is_file() for kind in ("instances", "panoptic"))
        and (folder / "labels" / "classes.json").is_file()
        and all(
            part.is_dir() and len(os.listdir(part)) == count
            for part in (folder / split, folder / "annotations" / f"panoptic_{split}", folder / "labels" / split)
        )
        for split, count in counts.items()
    )


def _check(seed: int, image_size: int, num_train: int, num_val: int, min_objects: int, max_objects: int) -> None:
    if seed < 0:
        raise ValueError(f"seed: {seed} is negative; choose 0 or more")
    if image_size < 32:
        raise ValueError(f"image_size: {image_size} px is too small for shapes; choose 32 or more")
    if num_train < 1 or num_val < 1:
        raise ValueError(f"num_train, num_val: got {num_train} and {num_val}; choose 1 or more of each")
    if not 1 <= min_objects <= max_objects:
        raise ValueError(f"min_objects, max_objects: got {min_objects} and {max_objects}; need 1 <= min <= max")
