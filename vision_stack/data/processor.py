"""From PIL images to pixel values as a published `preprocessor_config.json` says: resize, crop, rescale, normalise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from vision_stack.config import Config, ConfigError, NonNegative, Positive, Range
from vision_stack.data.images import rgb_array
from vision_stack.ops.image import pad_batch, to_tensor

Pixels = Annotated[int, Range(1, 16_384)]
Means = tuple[float, float, float]
Stds = tuple[Positive, Positive, Positive]
_PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which the json files hold
Interpolation = Literal["nearest", "bilinear", "bicubic"]


class ProcessedImages(dict[str, Any]):
    """What a model takes as `model(**inputs)`: `pixel_values` [B, 3, H, W], and `pixel_mask` [B, H, W] where padded."""

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
    """Resizes (antialiased, in 8 bits), crops, rescales and normalises; pads what is `padded`.

    At most one of `exact_size` and `short_edge` is given; neither: images keep their size.
    """

    exact_size: tuple[Pixels, Pixels] | None = None  # (height, width)
    short_edge: Pixels | None = None
    long_edge: Pixels | None = None  # the most the longest edge may become
    size_divisor: Pixels = 1  # height and width become multiples of it
    crop_size: tuple[Pixels, Pixels] | None = None  # from the centre
    interpolation: Interpolation = "bilinear"
    rescale_factor: NonNegative = 1 / 255
    image_mean: Means = (0.0, 0.0, 0.0)
    image_std: Stds = (1.0, 1.0, 1.0)
    padded: bool = False  # images of different sizes in one batch, with a `pixel_mask`, 1 = real

    def check(self) -> None:
        if self.exact_size is not None and self.short_edge is not None:
            raise ConfigError("short_edge: given as well as exact_size; make one of them None")

    def __call__(self, images: Any, return_tensors: str = "pt") -> ProcessedImages:
        """One image or a sequence: PIL, uint8 arrays [H, W, 3], or uint8 tensors [3, H, W].

        Raises:
            ValueError: something else, or different sizes that are not to be padded.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors: {return_tensors!r} is no choice; there is 'pt' alone")
        single = isinstance(images, Image.Image | np.ndarray) or (isinstance(images, Tensor) and images.ndim == 3)
        processed = [self._process(_as_tensor(image)) for image in ([images] if single else images)]
        if self.padded:
            pixel_values, padding_mask = pad_batch(processed)
            return ProcessedImages(pixel_values=pixel_values, pixel_mask=(~padding_mask).long())
        sizes = {tuple(x.shape[1:]) for x in processed}
        if len(sizes) != 1:
            raise ValueError(f"images: of different sizes after resizing, {sorted(sizes)}; give them one at a time")
        return ProcessedImages(pixel_values=torch.stack(processed))

    def _process(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] -> normalised float32."""
        size = self._size(image.shape[1], image.shape[2])
        if size != tuple(image.shape[1:]):
            image = tvf.resize(image, list(size), interpolation=tvf.InterpolationMode(self.interpolation))
        if self.crop_size is not None:
            image = _center_crop(image, *self.crop_size)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (image.float() * self.rescale_factor - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.exact_size is not None:
            return self.exact_size
        if self.short_edge is None:
            return height, width
        # transformers' arithmetic, which cuts off fractions
        short, long = min(height, width), max(height, width)
        edge: float = self.short_edge
        if self.long_edge is not None and long / short * edge > self.long_edge:
            edge = self.long_edge * short / long
        new_short, new_long = round(edge), int(edge * long / short)
        size = (new_short, new_long) if height <= width else (new_long, new_short)
        divisor = self.size_divisor
        return math.ceil(size[0] / divisor) * divisor, math.ceil(size[1] / divisor) * divisor


def decode_processor(raw: Mapping[str, Any]) -> ImageProcessor:
    """An `ImageProcessor` from a parsed preprocessor_config.json of transformers.

    Raises:
        ConfigError: a value of the wrong type or out of range, or a way to resize that is not known here.
    """
    kind = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    options: dict[str, Any] = {}
    if raw.get("do_resize", True) and raw.get("size") is not None:
        options |= _resizing(raw["size"], raw, kind)
    if raw.get("do_center_crop", False):
        options["crop_size"] = _square(raw.get("crop_size"), "crop_size")
    resample = raw.get("resample")
    if resample is not None:
        if not isinstance(resample, int) or resample not in _PILLOW_FILTERS:
            raise ConfigError(f"resample: {resample!r:.40} is not among 0 (nearest), 2 (bilinear), 3 (bicubic)")
        options["interpolation"] = _PILLOW_FILTERS[resample]
    if not raw.get("do_rescale", True):
        options["rescale_factor"] = 1.0
    elif raw.get("rescale_factor") is not None:
        options["rescale_factor"] = raw["rescale_factor"]
    if raw.get("do_normalize", True):
        options |= {name: raw[name] for name in ("image_mean", "image_std") if raw.get(name) is not None}
    if _is_padded(raw, kind):
        options["padded"] = True
    return ImageProcessor(**options)


def _resizing(size: Any, raw: Mapping[str, Any], kind: str) -> dict[str, Any]:
    convnext, padded = kind.startswith("ConvNext"), _is_padded(raw, kind)
    if isinstance(size, int):  # of older files: the meaning depends on the class
        short = convnext or padded or kind.startswith(("Bit", "CLIP"))
        size = {"shortest_edge": size} if short else {"height": size, "width": size}
        if padded:
            size["longest_edge"] = raw.get("max_size", 1333)
    if not isinstance(size, Mapping):
        raise ConfigError(f"size: expected a number or a mapping, got {size!r:.60}")
    if convnext and isinstance(size.get("shortest_edge"), int):
        edge, crop = size["shortest_edge"], raw.get("crop_pct") or 224 / 256
        if edge >= 384 or not isinstance(crop, int | float):
            return {"exact_size": (edge, edge)}
        return {"short_edge": int(edge / crop), "crop_size": (edge, edge)}
    if "height" in size or "width" in size:
        return {"exact_size": _square(size, "size")}
    if "shortest_edge" not in size:
        raise ConfigError(f"size: {sorted(map(str, size))} is not known; give height and width, or shortest_edge")
    options = {"short_edge": size["shortest_edge"], "long_edge": size.get("longest_edge")}
    if padded and raw.get("size_divisor"):
        options["size_divisor"] = raw["size_divisor"]
    return options


def _is_padded(raw: Mapping[str, Any], kind: str) -> bool:
    return kind.startswith(("MaskFormer", "Mask2Former", "OneFormer", "Detr")) and raw.get("do_pad", True) is not False


def _square(size: Any, field: str) -> Sequence[int]:
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return (size["height"], size["width"])
    raise ConfigError(f"{field}: expected a number, or height and width, got {size!r:.60}")


def _center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """As transformers: an odd rest is cut off to the right and below; a smaller image is padded with zeros."""
    missing_y, missing_x = max(0, height - image.shape[1]), max(0, width - image.shape[2])
    if missing_y or missing_x:
        left, top = missing_x // 2, missing_y // 2
        image = F.pad(image, (left, missing_x - left, top, missing_y - top))
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


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
