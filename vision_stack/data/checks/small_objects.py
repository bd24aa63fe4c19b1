"""Objects at the size at which a model sees them: too small for the finest feature map, or as large as the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.diagnosis import Diagnosis, Exhibit, Split
from vision_stack.data.checks.issues import Problem, show
from vision_stack.data.checks.object_columns import ObjectColumns
from vision_stack.ops.image import resized_size

_CELLS = 2.0  # edges of an object in cells of the finest map, below which it is called small
_SHARE = 0.05  # of the objects that may be small
_LARGEST = 2048  # longer side in pixels beyond which tiles are better
_WHOLE = 0.98  # of width and height
_SHOWN = 6  # objects of a finding


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model sees images: the resize of evaluation, and its finest feature map."""

    short_edge: int = 800
    long_edge: int = 1333
    stride: int = 4  # of the finest feature map, in pixels
    max_objects: int | None = 100  # that can be found in an image; None: any number

    def __str__(self) -> str:
        return f"{self.short_edge} x {self.long_edge} pixels"

    def scale(self, height: int, width: int) -> float:
        """Resize factor of an image."""
        return max(resized_size(height, width, self.short_edge, self.long_edge)) / max(height, width)


def seen_edges(columns: ObjectColumns, view: View) -> NDArray[np.float64]:
    """[N] edges of the objects in pixels of the resized image."""
    if not len(columns.size):
        return np.zeros(0)
    sizes, index = np.unique(columns.size, axis=0, return_inverse=True)
    scales = np.array([view.scale(height, width) for height, width in sizes.tolist()])
    return columns.edge * scales[index.ravel()]


def find_small_objects(split: Split, columns: ObjectColumns, name: str, view: View) -> Iterator[Diagnosis]:
    """One finding for all of a split, if more than a twentieth of the objects are small; and one for whole images."""
    edges, least = seen_edges(columns, view), _CELLS * view.stride
    small = np.flatnonzero(edges < least)
    if len(small) > _SHARE * len(edges):
        message = (
            f"{len(small):,} of {len(edges):,} objects ({len(small) / len(edges):.0%}) are less than {least:g} pixels "
            f"wide at {view}, {_CELLS:g} cells of a feature map of stride {view.stride}; the median is "
            f"{np.median(edges):.0f}"
        )
        problem = Problem(split.annotation_file, "annotations[].bbox", message, _remedy(columns, view))
        worst = small[np.argsort(edges[small], kind="stable")][:_SHOWN]
        exhibits = tuple(
            _exhibit(split, columns, index, f"{edges[index]:.1f} wide at {view}") for index in worst.tolist()
        )
        yield Diagnosis("small_object", name, problem, exhibits, len(small))
    width, height = (columns.boxes[:, 2:] - columns.boxes[:, :2]).T
    whole = np.flatnonzero((height >= _WHOLE * columns.size[:, 0]) & (width >= _WHOLE * columns.size[:, 1]))
    if len(whole):
        exhibits = tuple(_exhibit(split, columns, index, "as large as the image") for index in whole[:_SHOWN].tolist())
        first = show(exhibits[0].record.file_name)
        message = f"{len(whole):,} of {len(edges):,} objects are as large as their image ({first}, ...)"
        problem = Problem(split.annotation_file, "annotations[].bbox", message, "check that they are meant so")
        yield Diagnosis("whole_image", name, problem, exhibits, len(whole))


def _exhibit(split: Split, columns: ObjectColumns, index: int, what: str) -> Exhibit:
    record, row = split.records[columns.record[index]], int(columns.row[index])
    x0, y0, x1, y1 = columns.boxes[index].tolist()
    name = split.categories[columns.label[index]].name
    caption = f"{show(name)} in {show(record.file_name)} is {x1 - x0:.0f} x {y1 - y0:.0f} pixels, {what}"
    return Exhibit(record, (row,), caption=caption)


def _remedy(columns: ObjectColumns, view: View) -> str:
    """The longer side at which no more than the share that may be small is."""
    longer = columns.size.max(axis=1)
    needed = _CELLS * view.stride * longer / np.maximum(columns.edge, 1e-9)
    size = math.ceil(float(np.quantile(needed, 1 - _SHARE)) / 32) * 32
    if size <= _LARGEST:
        enlarged = size / float(np.median(longer))
        beyond = f", {enlarged:.1f} times the images' own size" if enlarged > 1 else ""
        return f"train with image_size={size}{beyond}"
    return f"image_size={_LARGEST} does not suffice; cut the images into tiles"
