"""Pictures of what a model finds: of validation images at the end of a run, of a user's own images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from vision_stack.data.coco import ImageRecord
from vision_stack.data.images import open_image, read_image
from vision_stack.ops.files import write_file
from vision_stack.ops.label_maps import rgb_to_ids
from vision_stack.structures import (
    OBJECT_TASKS,
    Category,
    Instances,
    PanopticSegmentation,
    Prediction,
    SemanticSegmentation,
    Task,
)
from vision_stack.training.results import METRICS_FILE, PREDICTIONS_DIR, PREDICTIONS_FILE
from vision_stack.visualization.overlay import side_by_side

SHOWN_FROM_SCORE = 0.5


def draw_validation(
    run_dir: Path, records: Sequence[Any], categories: Sequence[Category], count: int, task: Task
) -> list[Path]:
    """The first `count` validation images, with ground truth and what the run wrote, in `run_dir/pictures`.

    Instances are shown from the score on that has the best F1. Images beyond those that validation was limited to are
    left out.
    """
    metrics = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))
    threshold = metrics.get("operating_point", {}).get("threshold", SHOWN_FROM_SCORE)
    chosen = records[: min(count, metrics.get("num_images", count))]
    results: dict[int, list[dict[str, Any]]] = {record.image_id: [] for record in chosen}
    content = json.loads((run_dir / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    for result in content if task in OBJECT_TASKS else content["annotations"]:
        if result["image_id"] in results:
            results[result["image_id"]].append(result)
    paths = []
    for record in chosen:
        path = (run_dir / "pictures" / f"{record.image_id}_{Path(record.path).name}").with_suffix(".jpg")
        image = read_image(record.path, apply_exif=record.apply_exif)
        mine = results[record.image_id]
        if task in OBJECT_TASKS:
            found: Prediction = decoded(encoded(mine, categories), image.shape[:2], threshold)
        elif mine:
            found = read_label_map(run_dir / PREDICTIONS_DIR, mine[0], categories, task)
        else:
            continue  # not among the images that validation was limited to
        picture = side_by_side(image, ground_truth(record, task), found, categories, threshold=threshold)
        write_file(path, jpeg(picture), durable=False)
        paths.append(path)
    return paths


def jpeg(picture: Image.Image) -> bytes:
    """The content of a file. Pillow, writing one itself, does not say that the disk is full."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def read_label_map(
    folder: Path, result: dict[str, Any], categories: Sequence[Category], task: Task
) -> PanopticSegmentation | SemanticSegmentation:
    """What evaluation wrote of an image: its record out of `predictions.json`, its PNG out of `folder`."""
    label_of = {category.id: label for label, category in enumerate(categories)}
    with open_image(folder / result["file_name"]) as image:
        pixels = np.asarray(image)
    if task == "panoptic":
        segments = result["segments_info"]  # numbered 1, 2, ... in this order
        return PanopticSegmentation(
            torch.from_numpy(rgb_to_ids(pixels)),
            torch.tensor([label_of[segment["category_id"]] for segment in segments], dtype=torch.int64),
            torch.tensor([segment["score"] for segment in segments], dtype=torch.float32),
        )
    values = np.full(max(label_of) + 1, -1, np.int32)
    values[list(label_of)] = list(label_of.values())
    return SemanticSegmentation(torch.from_numpy(values[pixels]))


def decoded(found: Instances, size: tuple[int, ...], threshold: float = 0.0) -> Instances:
    """Instances of an image of `size` (height, width) that score at least `threshold`; only those are decoded."""
    keep = found.scores >= threshold
    found = found[keep]
    if not isinstance(found.masks, list):
        return found
    masks = coco_mask.decode(found.masks).transpose(2, 0, 1) if found.masks else np.zeros((0, *size), np.uint8)
    return replace(found, masks=torch.from_numpy(masks).bool())


def ground_truth(record: Any, task: Task) -> Prediction:
    """What an image's annotation says, in the form of a prediction; crowds are left out of instances."""
    if task == "panoptic":
        return record.truth().segmentation
    if task == "semantic":
        return record.truth()
    found = _true_instances(record)
    return replace(found, masks=None) if task == "detection" else found


def _true_instances(record: ImageRecord) -> Instances:
    objects = [annotation for annotation in record.annotations if not annotation.is_crowd]
    rles = []
    for annotation in objects:
        segmentation = annotation.segmentation
        if isinstance(segmentation, list):
            polygons = [polygon.tolist() for polygon in segmentation]
            segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, record.height, record.width))
        rles.append(dict(segmentation))
    boxes = torch.tensor([annotation.box for annotation in objects], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([annotation.label for annotation in objects], dtype=torch.int64)
    return decoded(Instances(boxes, labels, torch.ones(len(objects)), rles), (record.height, record.width))


def encoded(results: Iterable[dict[str, Any]], categories: Sequence[Category]) -> Instances:
    """The records of one image out of a COCO results file; boxes are those of the masks where there are masks."""
    results = list(results)
    label_of = {category.id: label for label, category in enumerate(categories)}
    rles = [r["segmentation"] for r in results if "segmentation" in r]
    boxes = coco_mask.toBbox(rles) if rles else np.array([r["bbox"] for r in results], float)
    boxes = boxes.reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Instances(
        torch.from_numpy(boxes).float(),
        torch.tensor([label_of[r["category_id"]] for r in results], dtype=torch.int64),
        torch.tensor([r["score"] for r in results], dtype=torch.float32),
        rles if len(rles) == len(results) and results else None,
    )
