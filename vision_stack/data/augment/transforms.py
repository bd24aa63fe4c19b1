"""One drawn axis-aligned affine moves image, polygons, RLE masks and boxes alike; masks are rasterised last.

Coordinates are pixel edges: pixel i spans [i, i + 1], an image spans [0, width] x [0, height]. An `Affine` is a
rectangle of whole source pixels and the size to which it is resized, perhaps mirrored: resizing, large-scale jitter,
random crop and flip are all of this form. Padding is left to the collation.

Every draw comes from a generator that the data set seeds with (seed, epoch, index), never from a global one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Mask

from vision_stack.config import Config, ConfigError, Count, Fraction, NonNegative
from vision_stack.ops.image import resample, resized_size, scaled_size
from vision_stack.ops.masks import masks_to_boxes, polygons_to_mask
from vision_stack.structures import Target


@dataclass(frozen=True)
class Affine:
    """Resizes the source pixels within `box` to `size`, then mirrors left and right if `flip`."""

    box: tuple[int, int, int, int]  # (x0, y0, x1, y1) within the source image
    size: tuple[int, int]  # (height, width) of the output
    flip: bool = False

    def image(self, image: Tensor) -> Tensor:
        """uint8 [C, H, W] -> uint8 [C, *size], antialiased bilinear."""
        x0, y0, x1, y1 = self.box
        resized = resample(image[:, y0:y1, x0:x1], self.size)
        return resized.flip(-1) if self.flip else resized

    def polygons(self, polygons: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
        """Flat (x, y, x, y, ...) polygons of the source -> of the output; they may reach beyond it."""
        x0, y0, x1, y1 = self.box
        height, width = self.size
        moved = []
        for polygon in polygons:
            points = np.array(polygon, dtype=np.float64)
            points[0::2] = (points[0::2] - x0) * (width / (x1 - x0))
            points[1::2] = (points[1::2] - y0) * (height / (y1 - y0))
            if self.flip:
                points[0::2] = width - points[0::2]
            moved.append(points)
        return moved

    def boxes(self, boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Boxes (x0, y0, x1, y1) of the source -> of the output, clipped to it, [N, 4]; some may have no area then."""
        x0, y0, x1, y1 = self.box
        height, width = self.size
        scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
        moved = (np.array(boxes, dtype=np.float64).reshape(-1, 4) - (x0, y0, x0, y0)) * scale
        if self.flip:
            moved[:, [0, 2]] = width - moved[:, [2, 0]]
        return np.clip(moved, 0, (width, height, width, height))

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool [H, W] -> bool [*size]: resampled exactly as the image is, then cut at one half."""
        x0, y0, x1, y1 = self.box
        if self.size == (y1 - y0, x1 - x0):
            return self.image(torch.from_numpy(mask)[None])[0].numpy()
        return (self.image(torch.from_numpy(mask.view(np.uint8)).mul(255)[None])[0] >= 128).numpy()

    def label_map(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels [H, W] -> [*size], each pixel the source's nearest, since labels have no values in between."""
        x0, y0, x1, y1 = self.box
        height, width = self.size
        rows = y0 + ((np.arange(height) + 0.5) * ((y1 - y0) / height)).astype(np.int64)
        columns = x0 + ((np.arange(width) + 0.5) * ((x1 - x0) / width)).astype(np.int64)
        return labels[rows[:, None], columns[::-1] if self.flip else columns]

    def segmentation(self, segmentation: Any) -> NDArray[np.bool_]:
        """An object's checked polygons, or checked RLE of the source image's size -> its mask, bool [*size]."""
        if isinstance(segmentation, Mapping):
            return self.mask(coco_mask.decode(segmentation).view(bool))
        return polygons_to_mask(self.polygons(segmentation), *self.size)


@dataclass(frozen=True, kw_only=True)
class EvalTransformConfig(Config):
    """Shortest edge to `short_edge`, longest at most `long_edge` pixels; nothing is drawn."""

    short_edge: Count = 800
    long_edge: Count = 1333
    crop_size: ClassVar[None] = None
    min_pixels: ClassVar[int] = 1

    def affine(self, height: int, width: int, rng: np.random.Generator) -> Affine:
        return Affine((0, 0, width, height), resized_size(height, width, self.short_edge, self.long_edge))

    def photometric(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return image


@dataclass(frozen=True, kw_only=True)
class TrainTransformConfig(Config):
    """Augmentation of a training image.

    `resize`: shortest edge to one of `short_edges`, longest at most `long_edge`, then a random square crop of
    `crop_size` if that is set. `large_scale_jitter` (Ghiasi et al. 2021, Sec. 3): the image that just fits a square of
    `crop_size`, times a factor drawn from `scale_range`; what is larger than the square is cropped at random. With a
    `crop_size`, batches are padded to it.
    """

    mode: Literal["resize", "large_scale_jitter"] = "resize"
    short_edges: tuple[Count, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for each image (mode resize)
    long_edge: Count = 1333
    crop_size: Count | None = None
    scale_range: tuple[NonNegative, NonNegative] = (0.1, 2.0)
    flip: Fraction = 0.5  # probability of mirroring left and right
    color_jitter: bool = False  # brightness, contrast, saturation, hue as in SSD
    min_pixels: Count = 1  # objects with fewer pixels after the transform leave the target

    def check(self) -> None:
        if not self.short_edges:
            raise ConfigError("short_edges: empty; give at least one length in pixels")
        if self.mode == "large_scale_jitter" and self.crop_size is None:
            raise ConfigError("crop_size: large_scale_jitter needs one, the edge of its square in pixels")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ConfigError(
                f"scale_range: {list(self.scale_range)} is not a range; give [low, high] with 0 < low <= high"
            )

    def affine(self, height: int, width: int, rng: np.random.Generator) -> Affine:
        if self.mode == "resize":
            resized = resized_size(height, width, int(rng.choice(self.short_edges)), self.long_edge)
        else:
            assert self.crop_size is not None
            fit = self.crop_size / max(height, width)
            resized = scaled_size(height, width, fit * rng.uniform(*self.scale_range))
        box, size = _random_crop((height, width), resized, self.crop_size, rng)
        return Affine(box, size, bool(rng.random() < self.flip))

    def photometric(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return color_jitter(image, rng) if self.color_jitter else image


TransformConfig = TrainTransformConfig | EvalTransformConfig


def _random_crop(
    source: tuple[int, int], resized: tuple[int, int], crop_size: int | None, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Source box and output size of a random crop of the resized image.

    The box is rounded to whole source pixels, which changes the scale by less than one pixel of the box's edge, so that
    image, polygons and masks need no resampling at fractions of a pixel.
    """
    starts, stops, size = [], [], []
    for length, target in zip(source, resized, strict=True):
        out = target if crop_size is None else min(target, crop_size)
        extent = min(length, max(1, round(out * length / target)))
        start = int(rng.integers(length - extent + 1))
        starts.append(start)
        stops.append(start + extent)
        size.append(out)
    return (starts[1], starts[0], stops[1], stops[0]), (size[0], size[1])


def color_jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
    """SSD's photometric distortion (Liu et al. 2016) of a uint8 image [3, H, W]: each change with probability 1/2.

    Brightness by +-1/8 and hue by +-1/20 of the circle, contrast and saturation by 0.5 to 1.5, contrast first or last.
    The ranges and operations are torchvision's `RandomPhotometricDistort`, without its permutation of channels.
    """
    changes = [
        (F.adjust_brightness, rng.uniform(0.875, 1.125)),
        (F.adjust_contrast, rng.uniform(0.5, 1.5)),
        (F.adjust_saturation, rng.uniform(0.5, 1.5)),
        (F.adjust_hue, rng.uniform(-0.05, 0.05)),
    ]
    chosen = rng.random(4) < 0.5
    contrast_last = rng.random() < 0.5
    for i in (0, 2, 3, 1) if contrast_last else (0, 1, 2, 3):
        if chosen[i]:
            change, amount = changes[i]
            image = change(image, amount)
    return image


class Objects(NamedTuple):
    """N objects of an image where an affine has moved them, and regions to ignore."""

    labels: Sequence[int]
    masks: Sequence[NDArray[np.bool_] | None]  # [H, W]; None of an object that has only a box
    boxes: NDArray[np.float64] = np.zeros((0, 4))  # [N, 4], clipped; read of objects without masks
    ignored: NDArray[np.float64] = np.zeros((0, 4))  # [M, 4]


def make_target(objects: Objects, size: tuple[int, int], min_pixels: int = 1, *, masks: bool = True) -> Target:
    """A `Target` of the objects with at least `min_pixels` pixels, whose boxes are tight around their masks.

    Of an object without a mask the box counts, which must be a pixel wide and high.

    Args:
        masks: whether the target has masks; then all objects must.
    """
    kept: list[int] = []
    for index, mask in enumerate(objects.masks):
        if mask is not None:
            if np.count_nonzero(mask) >= min_pixels:
                kept.append(index)
        else:
            width, height = objects.boxes[index, 2:] - objects.boxes[index, :2]
            if min(width, height) >= 1 and width * height >= min_pixels:
                kept.append(index)
    found = [objects.masks[index] for index in kept]
    stacked = _stacked([mask for mask in found if mask is not None], size)
    boxes = torch.from_numpy(objects.boxes[kept] if len(objects.boxes) else np.zeros((len(kept), 4))).float()
    boxes[[mask is not None for mask in found]] = masks_to_boxes(stacked)
    labels = torch.tensor([objects.labels[index] for index in kept], dtype=torch.int64)
    ignored = torch.from_numpy(objects.ignored[(objects.ignored[:, 2:] > objects.ignored[:, :2]).all(axis=1)]).float()
    return wrap_target(labels, boxes, size, stacked if masks else None, ignored if len(ignored) else None)


def _stacked(masks: Sequence[NDArray[np.bool_]], size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)


def wrap_target(
    labels: Tensor, boxes: Tensor, size: tuple[int, int], masks: Tensor | None = None, ignored: Tensor | None = None
) -> Target:
    """Plain tensors -> a `Target` of tv_tensors. Labels [N], boxes [N, 4] xyxy, masks [N, *size], ignored [M, 4]."""
    target: Target = {
        "labels": labels,
        "boxes": BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=size),
    }
    if masks is not None:
        target["masks"] = Mask(masks)
    if ignored is not None:
        target["ignored"] = ignored
    return target
