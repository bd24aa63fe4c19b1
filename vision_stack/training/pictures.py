"""Pictures of what a model finds: of validation images at the end of a run, of a user's own images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from vision_stack.data.coco import ImageRecord
from vision_stack.data.images import read_image
from vision_stack.structures import Category, EncodedInstances, Instances
from vision_stack.training.results import PREDICTIONS_FILE
from vision_stack.visualization.overlay import draw_instances, side_by_side

SHOWN_FROM_SCORE = 0.5


def draw_validation(
    run_dir: Path, records: Sequence[ImageRecord], categories: Sequence[Category], count: int
) -> list[Path]:
    """The first `count` validation images, with ground truth and `predictions.json`, in `run_dir/pictures`."""
    chosen = {record.image_id: record for record in records[:count]}
    results: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in chosen}
    for result in json.loads((run_dir / PREDICTIONS_FILE).read_text(encoding="utf-8")):
        if result["image_id"] in results:
            results[result["image_id"]].append(result)
    paths = []
    for image_id, record in chosen.items():
        path = (run_dir / "pictures" / f"{image_id}_{Path(record.file_name).name}").with_suffix(".jpg")
        image = read_image(record.path, apply_exif=record.apply_exif)
        found = decoded(encoded(results[image_id], categories), image.shape[:2], SHOWN_FROM_SCORE)
        path.parent.mkdir(parents=True, exist_ok=True)
        side_by_side(image, ground_truth(record), found, categories, threshold=SHOWN_FROM_SCORE).save(path, quality=90)
        paths.append(path)
    return paths


def draw_encoded(
    image: np.ndarray, found: EncodedInstances, categories: Sequence[Category], threshold: float, path: Path
) -> None:
    """Write the image with what scores at least `threshold`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_instances(image, decoded(found, image.shape[:2], threshold), categories).save(path, quality=90)


def decoded(found: EncodedInstances, size: tuple[int, ...], threshold: float = 0.0) -> Instances:
    """Instances of an image of `size` (height, width) that score at least `threshold`; only those are decoded."""
    keep = found.scores >= threshold
    rles = [rle for rle, kept in zip(found.rles, keep.tolist(), strict=True) if kept]
    masks = coco_mask.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, *size), np.uint8)
    return Instances(found.boxes[keep], found.labels[keep], found.scores[keep], torch.from_numpy(masks).bool())


def ground_truth(record: ImageRecord) -> Instances:
    """The objects of an image as its annotations have them, crowds left out."""
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
    return decoded(EncodedInstances(boxes, labels, torch.ones(len(objects)), rles), (record.height, record.width))


def encoded(results: Iterable[dict[str, Any]], categories: Sequence[Category]) -> EncodedInstances:
    """The records of one image out of a COCO results file; boxes are those of the masks."""
    results = list(results)
    label_of = {category.id: label for label, category in enumerate(categories)}
    rles = [r["segmentation"] for r in results]
    boxes = coco_mask.toBbox(rles).reshape(-1, 4) if rles else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    return EncodedInstances(
        torch.from_numpy(boxes).float(),
        torch.tensor([label_of[r["category_id"]] for r in results], dtype=torch.int64),
        torch.tensor([r["score"] for r in results], dtype=torch.float32),
        rles,
    )
