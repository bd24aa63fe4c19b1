"""From PIL images to pixel values as a published `preprocessor_config.json` says: resize, crop, rescale, normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vision_stack.config import Config, ConfigError, NonNegative, Positive, Range
from vision_stack.data.images import rgb_array
from vision_stack.ops.image import pad_batch, to_tensor

Pixels = Annotated[int, Range(1, 16_384)]
Means = tuple[float, float, float]
Stds = tuple[Positive, Positive, Positive]
Interpolation = Literal["nearest-exact", "lanczos", "bilinear", "bicubic"]


class ProcessedImages(dict[str, Any]):
    """What a model takes as `model(**inputs)`: `pixel_values` [B, 3, H, W] and, `with_mask`, `pixel_mask` [B, H, W]."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *args: Any, **kwargs: Any) -> ProcessedImages:
        """Every tensor moved, as by `Tensor.to`."""
        return ProcessedImages({name: value.to(*args, **kwargs) for name, value in self.items()})


@dataclass(frozen=True, kw_only=True)
class ImageProcessor(Config):
    """Resizes (antialiased, in 8 bits), crops, rescales, normalises and pads, in this order.

    At most one of `exact_size`, `short_edge` and `fit_within` is given; none of them: images keep their size. Sizes are
    transformers' to the pixel: fractions are cut off.
    """

    exact_size: tuple[Pixels, Pixels] | None = None  # (height, width)
    short_edge: Pixels | None = None
    long_edge: Pixels | None = None  # the most the longest edge may become
    fit_within: tuple[Pixels, Pixels] | None = None  # (height, width), one of which is met
    keep_aspect_ratio: bool = False  # meets only that side of `exact_size` which changes the image less
    nearest_multiple: Pixels = 1  # the sides of `exact_size` are rounded to multiples of it
    size_divisor: Pixels = 1  # height and width become multiples of it, the next larger ones
    crop_size: tuple[Pixels, Pixels] | None = None  # from the centre
    interpolation: Interpolation = "bilinear"
    rescale_first: bool = False  # before resizing, which then computes in floats
    rescale_factor: NonNegative = 1 / 255
    image_mean: Means = (0.0, 0.0, 0.0)
    image_std: Stds = (1.0, 1.0, 1.0)
    padded: bool = False  # to the right and below: images of different sizes in one batch
    pad_size: tuple[Pixels, Pixels] | None = None  # of what is `padded`; None: the largest height and width
    with_mask: bool = True  # of what is `padded`: gives a `pixel_mask`, 1 = real
    pad_divisor: Pixels = 1  # zeros on all sides, until height and width are multiples of it

    def check(self) -> None:
        given = [name for name in ("exact_size", "short_edge", "fit_within") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{given[1]}: given as well as {given[0]}; make one of them None")
        if self.interpolation == "lanczos" and _torchvision_version() < (0, 27):
            raise ConfigError("interpolation: 'lanczos' needs torchvision 0.27; update it, or choose 'bicubic'")

    def __call__(self, images: Any, return_tensors: str = "pt") -> ProcessedImages:
        """One image or a sequence: PIL, uint8 arrays [H, W, 3], or uint8 tensors [3, H, W].

        Raises:
            ValueError: something else, different sizes that are not to be padded, or one that cannot be resized so.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors: {return_tensors!r} is not supported; leave it at 'pt'")
        single = isinstance(images, Image.Image | np.ndarray) or (isinstance(images, Tensor) and images.ndim == 3)
        processed = [self._process(_as_tensor(image)) for image in ([images] if single else images)]
        if not processed:
            raise ValueError("images: an empty list; give at least one image")
        if self.padded:
            return self._padded(processed)
        sizes = {tuple(x.shape[1:]) for x in processed}
        if len(sizes) != 1:
            raise ValueError(f"images: of different sizes after resizing, {sorted(sizes)}; give them one at a time")
        return ProcessedImages(pixel_values=torch.stack(processed))

    def _padded(self, images: list[Tensor]) -> ProcessedImages:
        for image in images:
            size = tuple(image.shape[1:])
            if self.pad_size is not None and (size[0] > self.pad_size[0] or size[1] > self.pad_size[1]):
                raise ValueError(
                    f"images: one of {size} after resizing does not fit pad_size {self.pad_size}; enlarge it"
                )
        pixel_values, padding_mask = pad_batch(images, min_size=self.pad_size or (0, 0))
        if not self.with_mask:
            return ProcessedImages(pixel_values=pixel_values)
        return ProcessedImages(pixel_values=pixel_values, pixel_mask=(~padding_mask).long())

    def _process(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] -> normalised float32."""
        height, width = image.shape[1:]
        size = self._size(height, width)
        if 0 in size:
            raise ValueError(
                f"images: one of {height} x {width} pixels would become {size[0]} x {size[1]}; leave it out"
            )
        if self.rescale_first:
            image = image * self.rescale_factor
        if size != (height, width):
            image = tvf.resize(image, list(size), interpolation=tvf.InterpolationMode(self.interpolation))
        if self.crop_size is not None:
            image = _center_crop(image, *self.crop_size)
        if not self.rescale_first:
            image = image.float() * self.rescale_factor
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return _pad_around((image - mean) / std, self.pad_divisor)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.exact_size is not None:
            size = self._near_exact_size(height, width)
        elif self.fit_within is not None:
            scale = min(self.fit_within[0] / height, self.fit_within[1] / width)
            size = int(height * scale), int(width * scale)
        elif self.short_edge is not None:
            size = _short_edge_size(height, width, self.short_edge, self.long_edge)
        else:
            return height, width
        divisor = self.size_divisor
        return math.ceil(size[0] / divisor) * divisor, math.ceil(size[1] / divisor) * divisor

    def _near_exact_size(self, height: int, width: int) -> tuple[int, int]:
        """DPT's arithmetic, whose rounding takes halves to the even multiple."""
        assert self.exact_size is not None
        scale_y, scale_x = self.exact_size[0] / height, self.exact_size[1] / width
        if self.keep_aspect_ratio:
            scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
        elif self.nearest_multiple == 1:
            return self.exact_size
        multiple = self.nearest_multiple
        return round(scale_y * height / multiple) * multiple, round(scale_x * width / multiple) * multiple


def _short_edge_size(height: int, width: int, short_edge: int, long_edge: int | None) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    edge: float = short_edge
    if long_edge is not None and long / short * edge > long_edge:
        edge = long_edge * short / long
    new_short = round(edge)
    new_long = long if long_edge is not None and new_short == short else int(edge * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def _center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """As transformers: an odd rest is cut off to the right and below; a smaller image is padded with zeros."""
    missing_y, missing_x = max(0, height - image.shape[1]), max(0, width - image.shape[2])
    if missing_y or missing_x:
        left, top = missing_x // 2, missing_y // 2
        image = F.pad(image, (left, missing_x - left, top, missing_y - top))
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def _pad_around(image: Tensor, divisor: int) -> Tensor:
    """Zeros on all sides until height and width are multiples; an odd one goes to the right and below."""
    rest_y, rest_x = -image.shape[1] % divisor, -image.shape[2] % divisor
    return F.pad(image, (rest_x // 2, rest_x - rest_x // 2, rest_y // 2, rest_y - rest_y // 2))


def _torchvision_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torchvision.__version__.split(".")[:2])


def _as_tensor(image: Any) -> Tensor:
    """uint8 [3, H, W]."""
    if isinstance(image, Image.Image):
        return to_tensor(rgb_array(image, apply_exif=False))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return to_tensor(image)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return image
    shown = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray | Tensor) else type(image).__name__
    raise ValueError(f"images: expected PIL images, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W], got {shown}")
