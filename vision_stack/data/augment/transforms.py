"""The transforms of training and evaluation as configs: what is drawn for an image, and in which order.

Every draw comes from a generator that the data set seeds with (seed, epoch, index), never from a global one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vision_stack.config import Config, ConfigError, Count, Fraction, NonNegative, Range
from vision_stack.data.augment.geometry import GeometricTransform, Window
from vision_stack.data.augment.photometric import apply_changes, check_changes, color_jitter
from vision_stack.data.augment.plan import (
    Mirror,
    Placement,
    Plan,
    Record,
    blended_in,
    iou_crop,
    mixed_in,
    mosaic,
    pasted,
    random_crop,
    zoomed_out,
)
from vision_stack.ops.image import resized_size, scaled_size

Boxes = NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class EvalTransformConfig(Config):
    """Shortest edge to `short_edge`, longest at most `long_edge` pixels; nothing is drawn."""

    short_edge: Count = 800
    long_edge: Count = 1333
    crop_size: ClassVar[None] = None
    min_pixels: ClassVar[int] = 1

    def geometry(self, height: int, width: int, rng: np.random.Generator) -> GeometricTransform:
        return GeometricTransform((0, 0, width, height), resized_size(height, width, self.short_edge, self.long_edge))

    def plan(self, records: Sequence[Record], index: int, rng: np.random.Generator) -> Plan:
        transform = self.geometry(records[index].height, records[index].width, rng)
        return Plan(transform.size, (Placement(index, transform),))

    def photometric_changes(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return image

    def stages(self, planned_epochs: float | None) -> list[tuple[int, EvalTransformConfig]]:
        return [(0, self)]


@dataclass(frozen=True, kw_only=True)
class TrainTransformConfig(Config):
    """Augmentation of a training image.

    `resize`: shortest edge to one of `short_edges`, longest at most `long_edge`, then a random square crop of
    `crop_size` if that is set. `large_scale_jitter` (Ghiasi et al. 2021, Sec. 3): the image that just fits a square of
    `crop_size`, times a factor drawn from `scale_range`; what is larger than the square is cropped at random. With a
    `crop_size`, batches are padded to it.

    All else is off unless it has a probability. docs/augmentation.md has each of them, and the presets.
    """

    mode: Literal["resize", "large_scale_jitter"] = "resize"
    short_edges: tuple[Count, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for each image (mode resize)
    long_edge: Count = 1333
    crop_size: Count | None = None
    scale_range: tuple[NonNegative, NonNegative] = (
        0.1,
        2.0,
    )  # of the jitter, and of what copy_paste takes objects from
    keep_objects: bool = False  # crops hold the centre of an object; of label maps none is known
    flip: Fraction = 0.5  # probability of mirroring left and right
    vertical_flip: Fraction = 0.0  # probability of mirroring top and bottom
    warp: Fraction = 0.0  # probability of rotation and shear
    rotation: Annotated[float, Range(0, 180)] = 10.0  # degrees, the most to either side
    shear: Annotated[float, Range(0, 60)] = 5.0  # degrees, the most to either side
    iou_crop: Fraction = 0.0  # probability of a crop that overlaps an object by a drawn IoU
    zoom_out: Fraction = 0.0  # probability of a smaller image on a canvas of its size
    max_zoom_out: Annotated[float, Range(1, 16)] = 4.0  # the most by which it is smaller
    mosaic: Fraction = 0.0  # probability of four images in one
    mixup: Fraction = 0.0  # probability of blending with another image, objects of both; not with label maps
    copy_blend: Fraction = 0.0  # probability of blending in objects of another image, without mixup; their boxes do
    copy_paste: Fraction = 0.0  # probability of pasting objects of another image; they need masks
    color_jitter: bool = False  # brightness, contrast, saturation, hue as in SSD
    photometric: tuple[dict[str, Any], ...] = ()  # more changes of colour: {name: GaussianBlur, kernel_size: 5}
    start_fraction: Fraction = 0.0  # of the run, at its start, with only resizing, crops of crop_size and flips
    mosaic_until: Fraction = 1.0  # part of the run after which there is no mosaic and no mixup
    stop_fraction: Fraction = 0.0  # of the run, at its end, as at its start
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
        check_changes(self.photometric)

    @property
    def most_images(self) -> int:
        """That one may be composed of."""
        return (4 if self.mosaic else 1) + bool(self.mixup or self.copy_blend) + bool(self.copy_paste)

    @property
    def mirror(self) -> Mirror:
        return Mirror(self.flip, self.vertical_flip, self.warp, self.rotation, self.shear)

    def geometry(
        self,
        height: int,
        width: int,
        rng: np.random.Generator,
        *,
        window: Window | None = None,
        boxes: Boxes = None,
    ) -> GeometricTransform:
        """Size, crop, mirroring and rotation of one image.

        Args:
            window: the part of it that is looked at; all of it by default.
            boxes: of its objects [N, 4], for `keep_objects`.
        """
        window = window or (0, 0, width, height)
        height, width = window[3] - window[1], window[2] - window[0]
        if self.mode == "resize":
            resized = resized_size(height, width, int(rng.choice(self.short_edges)), self.long_edge)
        else:
            assert self.crop_size is not None
            fit = self.crop_size / max(height, width)
            resized = scaled_size(height, width, fit * rng.uniform(*self.scale_range))
        limit = resized if self.crop_size is None else (self.crop_size, self.crop_size)
        crop = random_crop(window, resized, limit, rng, boxes if self.keep_objects else None)
        return self.mirror.apply(crop, rng)

    def plan(self, records: Sequence[Record], index: int, rng: np.random.Generator) -> Plan:
        """What the image at `index` becomes. Nothing is drawn for what is off."""
        record = records[index]
        boxes = record.object_boxes() if self.iou_crop or self.keep_objects else None
        window = None
        if self.iou_crop and rng.random() < self.iou_crop:
            window = iou_crop(record.height, record.width, boxes, rng)
        transform = self.geometry(record.height, record.width, rng, window=window, boxes=boxes)
        placements = [Placement(index, transform)]
        size = transform.size
        if self.mode == "large_scale_jitter" and self.most_images > 1:
            assert self.crop_size is not None
            canvas = (self.crop_size, self.crop_size)
        else:
            canvas = size
        if self.mosaic and rng.random() < self.mosaic:
            size = canvas
            placements = mosaic(records, index, size, self.mirror, rng, self.keep_objects)
        elif self.zoom_out and rng.random() < self.zoom_out:
            placements = [zoomed_out(index, transform, self.max_zoom_out, rng)]
        if self.mixup and rng.random() < self.mixup:
            size = canvas
            placements.append(mixed_in(records, size, self.mirror, rng))
        elif self.copy_blend and rng.random() < self.copy_blend:
            size = canvas
            placements += blended_in(records, size, self.mirror, rng)
        if self.copy_paste and rng.random() < self.copy_paste:
            size = canvas
            placements.append(pasted(records, size, self.scale_range, self.mirror, rng))
        return Plan(size, tuple(placements))

    def photometric_changes(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Changes of colour, uint8 [3, H, W]."""
        image = color_jitter(image, rng) if self.color_jitter else image
        return apply_changes(image, self.photometric, rng)

    @property
    def has_stages(self) -> bool:
        """Whether there are parts of a run with less augmentation than the rest."""
        return bool(self.start_fraction or self.stop_fraction) or self.mosaic_until < 1

    def stages(self, planned_epochs: float | None) -> list[tuple[int, TrainTransformConfig]]:
        """What is drawn from an epoch on: (first epoch, transform), in order. Of a run of unknown length always all."""
        if planned_epochs is None or not self.has_stages:
            return [(0, self)]
        off = dict.fromkeys(("warp", "iou_crop", "zoom_out", "mosaic", "mixup", "copy_blend", "copy_paste"), 0.0)
        plain = replace(self, color_jitter=False, photometric=(), **off)  # type: ignore[arg-type]
        single = replace(self, mosaic=0.0, mixup=0.0)
        parts = (self.start_fraction, self.mosaic_until, 1 - self.stop_fraction)
        start, no_mosaic, stop = (round(part * planned_epochs) for part in parts)

        def at(epoch: int) -> TrainTransformConfig:
            return plain if epoch < start or epoch >= stop else self if epoch < no_mosaic else single

        return [(epoch, at(epoch)) for epoch in sorted({0, start, no_mosaic, stop})]


TransformConfig = TrainTransformConfig | EvalTransformConfig
