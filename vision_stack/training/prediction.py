"""Predicting on images of the user's own: overlays, and results in COCO's formats."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track

from vision_stack.data.images import IMAGE_SUFFIXES, read_image
from vision_stack.data.validation import DataError
from vision_stack.metrics.coco import coco_results
from vision_stack.metrics.panoptic import encode_panoptic, panoptic_categories
from vision_stack.metrics.semantic import encode_semantic, semantic_categories
from vision_stack.model import VisionModel
from vision_stack.postprocess import encode_instances
from vision_stack.structures import Category, PanopticSegmentation, Segmentation, SemanticSegmentation, Task
from vision_stack.training.allocator import return_freed_memory
from vision_stack.training.options import PredictOptions, decode_options
from vision_stack.training.pictures import SHOWN_FROM_SCORE, decoded
from vision_stack.training.results import PREDICTIONS_DIR, PREDICTIONS_FILE, is_run_dir, write_config
from vision_stack.visualization.overlay import draw_segmentation


class Found(NamedTuple):
    """What is written and drawn of one image."""

    records: list[dict[str, Any]]  # for predictions.json
    label_map: bytes | None  # PNG, of segment ids (panoptic) or category ids (semantic)
    shown: Segmentation


def predict(config: Mapping[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """Go through the images of `config["source"]`; give the records that `predictions.json` gets.

    Instances: overlays show what scores at least `threshold`; `predictions.json` keeps the `top_k` of every image.
    Panoptic and semantic: `predictions.json` has a record for each image, whose label map, named `file_name`, is in the
    folder `predictions`. An image that cannot be read is reported and left out.

    Args:
        config: the plain options of configs/predict.yaml.

    Raises:
        ValueError: no such checkpoint or device, or no image at the source that can be read; one line.
    """
    return_freed_memory()
    options = decode_options(config, PredictOptions)
    paths, base = find_images(options.source)
    device = _device(options.device)
    model = VisionModel.from_pretrained(options.checkpoint).to(device)
    write_config(config, run_dir)
    records: list[dict[str, Any]] = []
    skipped: list[str] = []
    used: set[str] = set()
    for image_id, path in enumerate(track(paths, "predicting", transient=True), start=1):
        name = os.path.relpath(path, base)
        try:
            image = read_image(path)
        except DataError as error:
            skipped.append(str(error))
            continue
        stem = os.path.splitext(name)[0]
        stem = f"{stem}_{image_id}" if stem in used else stem  # a.jpg beside a.png
        used.add(stem)
        found = find(model, image, image_id, options.threshold, options.top_k)
        if found.label_map is None:
            records += [{**record, "file_name": name} for record in found.records]
        else:
            _write(run_dir / PREDICTIONS_DIR / f"{stem}.png", found.label_map)
            records += [{**record, "image": name, "file_name": f"{stem}.png"} for record in found.records]
        picture = run_dir / "pictures" / f"{stem}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_segmentation(image, found.shown, model.categories).save(picture, quality=90)
    if len(skipped) == len(paths):
        raise ValueError(f"source: {options.source}: no image could be read ({len(paths):,} tried); {skipped[0]}")
    task = model.config.task
    content = records if task == "instance" else {"annotations": records, **_header(task, model.categories)}
    (run_dir / PREDICTIONS_FILE).write_text(json.dumps(content), encoding="utf-8")
    for line in skipped:
        print(f"skipped: {line}")
    counted = f"{len(paths) - len(skipped):,} images" + (f", {len(skipped):,} skipped" if skipped else "")
    print(
        f"{counted}; {_summary(task, records, options.threshold)}",
        f"pictures: {run_dir / 'pictures'}",
        f"results:  {run_dir / PREDICTIONS_FILE}" + ("" if task == "instance" else f", {run_dir / PREDICTIONS_DIR}"),
        sep="\n",
    )
    return records


@torch.inference_mode()
def find(model: VisionModel, image: np.ndarray, image_id: int, threshold: float | None, top_k: int) -> Found:
    """What the model finds in an RGB uint8 image [height, width, 3], in its own pixels.

    Args:
        threshold, top_k: as in configs/predict.yaml.
    """
    outputs, (info,) = model.infer([image])
    if model.config.task == "instance":
        (found,) = encode_instances(outputs, [info], top_k=top_k)
        records = coco_results(image_id, found, model.categories, boxes=True)
        shown: Segmentation = decoded(found, info.size, SHOWN_FROM_SCORE if threshold is None else threshold)
        return Found(records, None, shown)
    (shown,) = model.segment(outputs, [info], threshold=threshold)
    if isinstance(shown, PanopticSegmentation):
        label_map, segments = encode_panoptic(shown, model.categories)
        return Found([{"image_id": image_id, "segments_info": segments}], label_map, shown)
    assert isinstance(shown, SemanticSegmentation)
    return Found([{"image_id": image_id}], encode_semantic(shown, model.categories), shown)


def _header(task: Task, categories: Sequence[Category]) -> dict[str, Any]:
    return {"categories": panoptic_categories(categories) if task == "panoptic" else semantic_categories(categories)}


def _summary(task: Task, records: list[dict[str, Any]], threshold: float | None) -> str:
    if task == "semantic":
        return "every pixel has a class"
    if task == "panoptic":
        return f"{sum(len(record['segments_info']) for record in records):,} segments"
    threshold = SHOWN_FROM_SCORE if threshold is None else threshold
    shown = sum(record["score"] >= threshold for record in records)
    return f"{shown:,} objects with a score of at least {threshold:g}"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def find_images(source: str) -> tuple[list[Path], Path]:
    """The images of a file, a folder (with its subfolders) or a glob, sorted, and the folder they have in common.

    In a folder, what is hidden and what a run of the scripts wrote below it is left out.

    Raises:
        ValueError: there are none.
    """
    path = Path(source)
    if path.is_dir():
        found = [p for p in _files_below(path) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        hint = f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder, those that a run wrote left out"
    elif path.is_file():
        found, hint = [path], ""
    else:
        found = [p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file()]
        hint = "no such file or folder, and no file that matches it as a pattern"
    if not found:
        raise ValueError(f"source: {source}: {hint}")
    return sorted(found), path if path.is_dir() else Path(os.path.commonpath([p.parent for p in found]))


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        written = {"pictures", PREDICTIONS_DIR} if is_run_dir(Path(parent)) else set()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in written]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.device(name)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0][:120]
            raise ValueError(f"device: {name!r} cannot be used here ({reason}); try auto, cpu, cuda or mps") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
