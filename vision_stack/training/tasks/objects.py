"""Objects with boxes, and with masks or without: detection, instance segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from vision_stack.data.readers.coco import ImageRecord
from vision_stack.metrics import CocoEvaluator, coco_results
from vision_stack.metrics.coco import IouType
from vision_stack.structures import SHOWN_FROM_SCORE, Category, Instances, Threshold
from vision_stack.training.tasks.base import Records, TaskSpec, Written
from vision_stack.visualization.overlay import draw_instances

FEW = 5  # objects that are shown where none would be


class ObjectTask(TaskSpec[Instances]):
    """Evaluated by COCO's AP, the first of `iou_types` being the score; without "segm" masks are left aside."""

    finds = "objects"

    def __init__(self, iou_types: tuple[IouType, ...]) -> None:
        self.iou_types = iou_types
        self.has_masks = self.has_boundary_ap = "segm" in iou_types

    def evaluator(
        self, truth: Any, categories: Sequence[Category], *, top_k: int, boundary_ap: bool = False
    ) -> CocoEvaluator:
        more: tuple[IouType, ...] = ("boundary",) if boundary_ap else ()
        return CocoEvaluator(truth, categories, (*self.iou_types, *more), max_detections=top_k)

    def kept(self, threshold: Threshold | None, top_k: int) -> dict[str, Any]:
        """The best `top_k`, whatever their score; masks as run-length codes."""
        return {"threshold": 0.0, "top_k": top_k, "masks": "rle"}

    def written(self, image_id: int, found: Instances, categories: Sequence[Category]) -> Written:
        return Written(coco_results(image_id, found, categories, boxes=True))

    def read(self, records: Records, folder: Path, categories: Sequence[Category], size: tuple[int, int]) -> Instances:
        """Boxes are those of the masks where there are masks."""
        label_of = {category.id: label for label, category in enumerate(categories)}
        rles = [record["segmentation"] for record in records] if self.has_masks else None
        boxes = coco_mask.toBbox(rles) if rles else np.array([record["bbox"] for record in records], float)
        boxes = boxes.reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Instances(
            torch.from_numpy(boxes).float(),
            torch.tensor([label_of[record["category_id"]] for record in records], dtype=torch.int64),
            torch.tensor([record["score"] for record in records], dtype=torch.float32),
            rles,
        )

    def truth(self, record: ImageRecord) -> Instances:
        """Crowds are left out."""
        objects = [annotation for annotation in record.annotations if not annotation.is_crowd]
        size = (record.height, record.width)
        boxes = torch.tensor([annotation.box for annotation in objects], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([annotation.label for annotation in objects], dtype=torch.int64)
        rles = [_rle(annotation.segmentation, *size) for annotation in objects] if self.has_masks else None
        return self.shown(Instances(boxes, labels, torch.ones(len(objects)), rles), 0.0, size)

    def shown(self, found: Instances, threshold: Threshold, size: tuple[int, int]) -> Instances:
        """Those that score at least `threshold`, decoded."""
        found = found.above(threshold)
        return replace(found, masks=_decoded(found.masks, size)) if isinstance(found.masks, list) else found

    def chosen(self, found: Instances, truth: Instances, point: Mapping[str, float] | None) -> tuple[Instances, str]:
        """What has the score with the best F1 or a better one. Where no detection of any image matches an object, or
        none has that score in an image with objects, the best few of the image instead."""
        matched = point is None or point["f1"] > 0
        threshold = point["threshold"] if point else SHOWN_FROM_SCORE
        kept = found.above(threshold)
        which = f"score >= {threshold:.3g}{', best F1' if point else ''}"
        if matched and (len(kept) or not len(truth)):
            return kept, f"prediction: {len(kept)} with {which}"
        best = found[found.scores.argsort(descending=True, stable=True)[:FEW]]
        why = f"none with {which}" if matched else "no correct detection in any image"
        shown = f"the {len(best)} best of {len(found)} shown" if len(found) else "no detections"
        return best, f"prediction: {why}\n{shown}"

    def draw(self, image: np.ndarray, found: Instances, categories: Sequence[Category]) -> Image.Image:
        return draw_instances(image, found, categories)

    def count(self, record: Mapping[str, Any], lowest: Mapping[int, float]) -> int:
        return int(record["score"] >= lowest[record["category_id"]])

    def summary(self, count: int, threshold: str) -> str:
        return f"{count:,} objects with a score of at least {threshold}"


def _rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    if isinstance(segmentation, list):
        polygons = [polygon.tolist() for polygon in segmentation]
        segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return dict(segmentation)


def _decoded(rles: list[Any], size: tuple[int, int]) -> torch.Tensor:
    masks = coco_mask.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, *size), np.uint8)
    return torch.from_numpy(masks).bool()
