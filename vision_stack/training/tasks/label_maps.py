"""A segment or a class for every pixel: panoptic and semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vision_stack.data.checks.segments import PanopticRecord, SemanticRecord
from vision_stack.data.images import open_image
from vision_stack.metrics import PanopticEvaluator, SemanticEvaluator
from vision_stack.metrics.panoptic import encode_panoptic, panoptic_categories
from vision_stack.metrics.semantic import encode_semantic, semantic_categories
from vision_stack.ops.label_maps import rgb_to_ids
from vision_stack.structures import Category, PanopticSegmentation, SemanticSegmentation
from vision_stack.training.tasks.base import Records, TaskSpec, Written
from vision_stack.visualization.overlay import draw_panoptic, draw_semantic


class PanopticTask(TaskSpec[PanopticSegmentation]):
    """Evaluated by panoptic quality; PNGs of segment ids."""

    finds = "segments"
    has_label_maps = True

    def evaluator(
        self, truth: Any, categories: Sequence[Category], *, top_k: int, boundary_ap: bool = False
    ) -> PanopticEvaluator:
        return PanopticEvaluator(truth, categories)

    def written(self, image_id: int, found: PanopticSegmentation, categories: Sequence[Category]) -> Written:
        label_map, segments = encode_panoptic(found, categories)
        return Written([{"image_id": image_id, "segments_info": segments}], label_map)

    def header(self, categories: Sequence[Category]) -> dict[str, Any]:
        return {"categories": panoptic_categories(categories)}

    def read(
        self, records: Records, folder: Path, categories: Sequence[Category], size: tuple[int, int]
    ) -> PanopticSegmentation | None:
        if not records:
            return None
        label_of = {category.id: label for label, category in enumerate(categories)}
        segments = records[0]["segments_info"]  # numbered 1, 2, ... in this order
        return PanopticSegmentation(
            torch.from_numpy(rgb_to_ids(_pixels(folder / records[0]["file_name"]))),
            torch.tensor([label_of[segment["category_id"]] for segment in segments], dtype=torch.int64),
            torch.tensor([segment["score"] for segment in segments], dtype=torch.float32),
        )

    def truth(self, record: PanopticRecord) -> PanopticSegmentation:
        return record.truth().segmentation

    def chosen(
        self, found: PanopticSegmentation, truth: PanopticSegmentation, point: Mapping[str, float] | None
    ) -> tuple[PanopticSegmentation, str]:
        count = len(found.labels)
        return found, f"prediction: {count or 'no'} segments{'' if count else ' above panoptic.score_threshold'}"

    def draw(self, image: np.ndarray, found: PanopticSegmentation, categories: Sequence[Category]) -> Image.Image:
        return draw_panoptic(image, found, categories)

    def count(self, record: Mapping[str, Any], lowest: Mapping[int, float]) -> int:
        return len(record["segments_info"])

    def summary(self, count: int, threshold: str) -> str:
        return f"{count:,} segments" if count else "0 segments; give a lower threshold and a new run_dir"


class SemanticTask(TaskSpec[SemanticSegmentation]):
    """Evaluated by mean IoU; PNGs of category ids."""

    finds = "classes"
    has_label_maps = True

    def evaluator(
        self, truth: Any, categories: Sequence[Category], *, top_k: int, boundary_ap: bool = False
    ) -> SemanticEvaluator:
        return SemanticEvaluator(truth, categories)

    def written(self, image_id: int, found: SemanticSegmentation, categories: Sequence[Category]) -> Written:
        return Written([{"image_id": image_id}], encode_semantic(found, categories))

    def header(self, categories: Sequence[Category]) -> dict[str, Any]:
        return {"categories": semantic_categories(categories)}

    def read(
        self, records: Records, folder: Path, categories: Sequence[Category], size: tuple[int, int]
    ) -> SemanticSegmentation | None:
        if not records:
            return None
        values = np.full(max(category.id for category in categories) + 1, -1, np.int32)
        for label, category in enumerate(categories):
            values[category.id] = label
        return SemanticSegmentation(torch.from_numpy(values[_pixels(folder / records[0]["file_name"])]))

    def truth(self, record: SemanticRecord) -> SemanticSegmentation:
        return record.truth()

    def draw(self, image: np.ndarray, found: SemanticSegmentation, categories: Sequence[Category]) -> Image.Image:
        return draw_semantic(image, found, categories)

    def count(self, record: Mapping[str, Any], lowest: Mapping[int, float]) -> int:
        return 0

    def summary(self, count: int, threshold: str) -> str:
        return "every pixel has a class"


def _pixels(path: Path) -> NDArray[Any]:
    with open_image(path) as image:
        return np.asarray(image)
