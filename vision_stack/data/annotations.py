"""Annotations of a whole data set as a few flat arrays.

COCO's 860,000 annotations as Python objects take gigabytes, and every worker process that touches their reference
counts copies them. Flat arrays are small, shared between forked workers, and pickle fast for spawned ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Polygons, each [2 * points], or a compressed RLE; no polygons of an object that has only a box.
Segmentation = list[NDArray[np.float64]] | Mapping[str, Any]


class Annotation(NamedTuple):
    """One object of one image, in pixels of the image that its record describes."""

    label: int  # 0..K-1
    segmentation: Segmentation  # polygons (x0, y0, x1, y1, ...), or {"size": [h, w], "counts": bytes}
    box: tuple[float, float, float, float]  # (x0, y0, x1, y1), clipped to the image
    area: float  # pixels, as the data set says, which COCO's size classes go by
    is_crowd: bool
    annotation_id: int  # positive and unique within the file


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnotationTable:
    """A annotations, those of one image next to each other; P polygons with M coordinates in total."""

    labels: NDArray[np.int64]  # [A]
    boxes: NDArray[np.float64]  # [A, 4] (x, y, width, height) as in the file
    areas: NDArray[np.float64]  # [A]
    crowd: NDArray[np.bool_]  # [A]
    ids: NDArray[np.int64]  # [A]
    polygons: NDArray[np.int64]  # [A, 2] first and stop row of `points_of`
    points_of: NDArray[np.int64]  # [P, 2] first and stop in `points`
    points: NDArray[np.float64]  # [M]
    counts_of: NDArray[np.int64]  # [A, 2] first and stop in `counts`; empty for polygons
    counts: bytes  # of all compressed RLEs

    @property
    def num_without_mask(self) -> int:
        """Objects that have only a box; no crowds."""
        stored = (self.counts_of[:, 1] > self.counts_of[:, 0]) | (self.polygons[:, 1] > self.polygons[:, 0])
        return int(np.count_nonzero(~stored & ~self.crowd))

    def segmentation(self, row: int, height: int, width: int) -> Segmentation:
        first, stop = self.counts_of[row].tolist()
        if stop > first:
            return {"size": [height, width], "counts": self.counts[first:stop]}
        first, stop = self.polygons[row].tolist()
        return [self.points[a:b] for a, b in self.points_of[first:stop].tolist()]

    def annotation(self, row: int, height: int, width: int) -> Annotation:
        """Row of the table, for an image of that size."""
        x, y, w, h = self.boxes[row].tolist()
        return Annotation(
            label=int(self.labels[row]),
            segmentation=self.segmentation(row, height, width),
            box=(max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))),
            area=float(self.areas[row]),
            is_crowd=bool(self.crowd[row]),
            annotation_id=int(self.ids[row]),
        )
