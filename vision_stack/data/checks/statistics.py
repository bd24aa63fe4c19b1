"""What is in a split, in numbers: images, objects, classes, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.diagnosis import Split
from vision_stack.data.checks.object_columns import ObjectColumns
from vision_stack.data.checks.small_objects import View, seen_edges
from vision_stack.data.checks.split_classes import ClassCount, count_classes

_QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True, eq=False)
class SplitStatistics:
    """Arrays to plot, and numbers to print."""

    num_images: int
    num_objects: int | None  # None: only label maps would tell
    num_crowds: int
    num_without_mask: int
    classes: Mapping[str, ClassCount]
    sizes: NDArray[np.int64]  # [images, 2] height and width
    objects_per_image: NDArray[np.int64] | None  # [images]
    edges: NDArray[np.float64]  # [objects] square roots of the areas of boxes, in pixels of the image
    seen: NDArray[np.float64]  # [objects] the same in pixels of the resized image

    def plain(self) -> dict[str, Any]:
        """For json."""
        longest = self.sizes.max(axis=1)
        by_size = np.argsort(longest, kind="stable")
        chosen = {"min": by_size[0], "median": by_size[len(by_size) // 2], "max": by_size[-1]} if len(by_size) else {}
        empty = None if self.objects_per_image is None else int(np.count_nonzero(self.objects_per_image == 0))
        return {
            "images": self.num_images,
            "objects": self.num_objects,
            "crowd_regions": self.num_crowds,
            "objects_without_mask": self.num_without_mask,
            "images_without_objects": empty,
            "image_sizes": {name: self.sizes[index][::-1].tolist() for name, index in chosen.items()},
            "objects_per_image": _quantiles(self.objects_per_image),
            "object_edge": _quantiles(self.edges),
            "object_edge_seen": _quantiles(self.seen),
            "classes": {name: count._asdict() for name, count in self.classes.items()},
        }


def statistics_of(split: Split, columns: ObjectColumns | None, view: View) -> SplitStatistics:
    """Reads label maps of classes, which are the only place where their classes are."""
    records = split.records
    per_image = None
    if split.lists_objects:
        per_image = np.array([record.num_objects for record in records], np.int64)
    return SplitStatistics(
        num_images=len(records),
        num_objects=None if per_image is None else int(per_image.sum()),
        num_crowds=split.num_crowds,
        num_without_mask=split.num_without_mask,
        classes=count_classes(split),
        sizes=np.array([(record.height, record.width) for record in records], np.int64).reshape(-1, 2),
        objects_per_image=per_image,
        edges=np.zeros(0) if columns is None else columns.edge,
        seen=np.zeros(0) if columns is None else seen_edges(columns, view),
    )


def _quantiles(values: NDArray[Any] | None) -> dict[str, float]:
    if values is None or not len(values):
        return {}
    return {name: round(float(np.quantile(values, q)), 2) for name, q in _QUANTILES.items()}
