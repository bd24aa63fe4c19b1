"""One affine moves image, polygons, RLE masks, label maps and boxes alike; masks are rasterised last.

Coordinates are pixel edges: pixel i spans [i, i + 1], an image spans [0, width] x [0, height]. A `GeometricTransform`
is a rectangle of whole source pixels and the size to which it is resized, perhaps mirrored, rotated and sheared.
Resizing, large-scale jitter, random crop and flip need no rotation, and never resample at fractions of a pixel.
Padding is left to the collation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import grid_sample

from vision_stack.ops.image import resample
from vision_stack.ops.masks import polygons_to_mask

FILL = (124, 116, 104)  # where there is no image: ImageNet's mean, about zero once normalised, as padding is
Window = tuple[int, int, int, int]  # (x0, y0, x1, y1), whole pixels


@dataclass(frozen=True)
class GeometricTransform:
    """Resizes the source pixels within `box` to `size`, mirrors them, then rotates and shears about the middle.

    Rotated, the output also shows what lies around `box` in the source, and `FILL` beyond the source.
    """

    box: Window  # within the source image
    size: tuple[int, int]  # (height, width) of the output
    flip: bool = False  # left and right
    vertical_flip: bool = False  # top and bottom
    rotation: float = 0.0  # degrees, counter-clockwise
    shear: float = 0.0  # degrees by which vertical lines lean to the right at the bottom

    @property
    def is_axis_aligned(self) -> bool:
        return self.rotation == 0.0 and self.shear == 0.0

    def reduction(self, height: int, width: int) -> int:
        """By how much (1, 2, 4 or 8) the source may be smaller, for an output that is half of that or less.

        Only of whole images whose edges divide without a remainder, so that nothing shifts.
        """
        if not self.is_axis_aligned or self.box != (0, 0, width, height):
            return 1
        fitting = (
            n
            for n in (8, 4, 2)
            if height % n == width % n == 0 and 2 * self.size[0] <= height // n and 2 * self.size[1] <= width // n
        )
        return next(fitting, 1)

    def matrix(self) -> NDArray[np.float64]:
        """[2, 3] that takes (x, y, 1) of the source to (x, y) of the output."""
        x0, y0, x1, y1 = self.box
        height, width = self.size
        scale = np.diag([width / (x1 - x0), height / (y1 - y0)])
        offset = -scale @ [x0, y0]
        for axis, mirrored in enumerate((self.flip, self.vertical_flip)):
            if mirrored:
                scale[axis] *= -1
                offset[axis] = (width, height)[axis] - offset[axis]
        middle = np.array([width / 2, height / 2])
        turn = self._turn()
        return np.column_stack([turn @ scale, turn @ (offset - middle) + middle])

    def _turn(self) -> NDArray[np.float64]:
        """[2, 2] of rotation after shear; y points down."""
        cos, sin = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        shear = math.tan(math.radians(self.shear))
        return np.array([[cos, sin], [-sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]])

    def image(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, *size], antialiased bilinear."""
        if not self.is_axis_aligned:
            height, width = self.size
            return self._warp(image, FILL[: len(image)], (0, 0, width, height))
        x0, y0, x1, y1 = self.box
        return self._mirror(resample(image[:, y0:y1, x0:x1], self.size))

    def _mirror(self, image: Tensor) -> Tensor:
        axes = [-1] * self.flip + [-2] * self.vertical_flip
        return image.flip(axes) if axes else image

    def _warp(self, image: Tensor, fill: Sequence[int], window: Window) -> Tensor:
        """The part of the output within `window`: the source is brought to the output's scale, then sampled.

        uint8 [C, H, W] -> uint8 [C, y1 - y0, x1 - x0].
        """
        left, top, right, bottom = window
        inverse = _inverted(self.matrix())
        corners = inverse[:, :2] @ [[left, right, left, right], [top, top, bottom, bottom]] + inverse[:, 2:]
        shrink_x, shrink_y = (self.box[2] - self.box[0]) / self.size[1], (self.box[3] - self.box[1]) / self.size[0]
        margin = np.array([2 * max(shrink_x, 1.0), 2 * max(shrink_y, 1.0)])  # that antialiasing reads
        low = np.maximum(np.floor(corners.min(1) - margin), 0).astype(int)
        high = np.minimum(np.ceil(corners.max(1) + margin), (image.shape[2], image.shape[1])).astype(int)
        colour = torch.tensor(fill, dtype=torch.float32)[:, None, None]
        if (high <= low).any():
            return colour.to(torch.uint8).expand(-1, bottom - top, right - left).clone()
        extent = high - low
        scaled = np.maximum(1, np.round(extent / (shrink_x, shrink_y))).astype(int)
        region = resample(image[:, low[1] : high[1], low[0] : high[0]], (int(scaled[1]), int(scaled[0])))
        # Pixel centres of the window in [-1, 1] of the region, as grid_sample has it without align_corners.
        to_grid = inverse.copy()
        to_grid[:, 2] -= low
        to_grid *= (2.0 / extent)[:, None]
        to_grid[:, 2] -= 1.0
        x, y = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
        grid = x[None, :, None] * to_grid[:, 0] + y[:, None, None] * to_grid[:, 1] + to_grid[:, 2]
        pixels = region.to(torch.float32, memory_format=torch.contiguous_format) - colour
        sampled = grid_sample(pixels[None], torch.from_numpy(grid[None]).float(), align_corners=False)[0]
        return (sampled + colour).round_().clamp_(0, 255).to(torch.uint8)

    def polygons(self, polygons: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
        """Flat (x, y, x, y, ...) polygons of the source -> of the output; they may reach beyond it."""
        if not self.is_axis_aligned:
            return [self._points(np.array(polygon, dtype=np.float64)) for polygon in polygons]
        x0, y0, x1, y1 = self.box
        height, width = self.size
        moved = []
        for polygon in polygons:
            points = np.array(polygon, dtype=np.float64)
            points[0::2] = (points[0::2] - x0) * (width / (x1 - x0))
            points[1::2] = (points[1::2] - y0) * (height / (y1 - y0))
            if self.flip:
                points[0::2] = width - points[0::2]
            if self.vertical_flip:
                points[1::2] = height - points[1::2]
            moved.append(points)
        return moved

    def _points(self, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        matrix = self.matrix()
        return (flat.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]).ravel()

    def boxes(self, boxes: Sequence[Sequence[float]] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (x0, y0, x1, y1) of the source -> of the output, clipped to it, [N, 4]; some may have no area then.

        Rotated, they are the boxes around the corners.
        """
        x0, y0, x1, y1 = self.box
        height, width = self.size
        given = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        if not self.is_axis_aligned:
            corners = self._points(given[:, [0, 1, 2, 1, 2, 3, 0, 3]].ravel()).reshape(-1, 4, 2)
            moved = np.concatenate([corners.min(1), corners.max(1)], axis=1)
            return np.clip(moved, 0, (width, height, width, height))
        scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
        moved = (given - (x0, y0, x0, y0)) * scale
        if self.flip:
            moved[:, [0, 2]] = width - moved[:, [2, 0]]
        if self.vertical_flip:
            moved[:, [1, 3]] = height - moved[:, [3, 1]]
        return np.clip(moved, 0, (width, height, width, height))

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool [H, W] -> bool [*size]: resampled exactly as the image is, then cut at one half."""
        x0, y0, x1, y1 = self.box
        if not self.is_axis_aligned:
            return self._warped_mask(mask)
        if self.size == (y1 - y0, x1 - x0):
            return self.image(torch.from_numpy(mask)[None])[0].numpy()
        return (self.image(torch.from_numpy(mask.view(np.uint8)).mul(255)[None])[0] >= 128).numpy()

    def _warped_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Looks only where the mask lands: most objects are much smaller than the image."""
        moved = np.zeros(self.size, bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return moved
        (around,) = self.boxes([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]])
        left, top = np.maximum(np.floor(around[:2]) - 1, 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(around[2:]) + 1, self.size[::-1]).astype(int).tolist()
        if left < right and top < bottom:
            pixels = torch.from_numpy(mask.view(np.uint8)).mul(255)[None]
            moved[top:bottom, left:right] = (self._warp(pixels, (0,), (left, top, right, bottom))[0] >= 128).numpy()
        return moved

    def label_map(self, labels: NDArray[Any], outside: int = 0) -> NDArray[Any]:
        """Labels [H, W] -> [*size], each pixel the source's nearest, since labels have no values in between.

        Args:
            outside: label of pixels beyond the source.
        """
        x0, y0, x1, y1 = self.box
        height, width = self.size
        if not self.is_axis_aligned:
            return self._warped_labels(labels, outside)
        rows = y0 + ((np.arange(height) + 0.5) * ((y1 - y0) / height)).astype(np.int64)
        columns = x0 + ((np.arange(width) + 0.5) * ((x1 - x0) / width)).astype(np.int64)
        rows = rows[::-1] if self.vertical_flip else rows
        return labels[rows[:, None], columns[::-1] if self.flip else columns]

    def _warped_labels(self, labels: NDArray[Any], outside: int) -> NDArray[Any]:
        height, width = self.size
        inverse = _inverted(self.matrix())
        x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        columns, rows = (np.floor(a * x + b * y + c).astype(np.int64) for a, b, c in inverse)
        inside = (columns >= 0) & (rows >= 0) & (columns < labels.shape[1]) & (rows < labels.shape[0])
        moved = np.full(self.size, outside, labels.dtype)
        moved[inside] = labels[rows[inside], columns[inside]]
        return moved

    def segmentation(self, segmentation: Any) -> NDArray[np.bool_]:
        """An object's checked polygons, or checked RLE of the source image's size -> its mask, bool [*size]."""
        if isinstance(segmentation, Mapping):
            return self.mask(coco_mask.decode(segmentation).view(bool))
        return polygons_to_mask(self.polygons(segmentation), *self.size)


def _inverted(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine [2, 3] that undoes one."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])
