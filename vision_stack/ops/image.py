"""Resizing and padding of images: one arithmetic for training, evaluation and `VisionModel.predict`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NewZeros = Callable[[tuple[int, ...], torch.dtype], Tensor]


def resized_size(height: int, width: int, short_edge: int, long_edge: int) -> tuple[int, int]:
    """Size that keeps the aspect: shortest edge `short_edge`, unless the longest would then exceed `long_edge`.

    With `short_edge == long_edge` it is the longest edge that gets this length. Rounds to nearest, as Detectron2 does;
    transformers truncates, so that its free edge is now and then one pixel shorter.
    """
    scale = short_edge / min(height, width)
    if scale * max(height, width) > long_edge:
        scale = long_edge / max(height, width)
    return scaled_size(height, width, scale)


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) times `scale`, rounded half up, at least one pixel."""
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def resample(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize, `align_corners=False`: uint8 or float [C, H, W] -> same dtype [C, *size].

    Of three-channel uint8 images in [H, W, C] memory order this is several times faster than Pillow, and gives the same
    values to within rounding.
    """
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [0, 1], contiguous."""
    return image.to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 [height, width, 3] -> uint8 [3, height, width], a view in [H, W, C] memory order where that is possible."""
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """RGB uint8 [height, width, 3] -> float32 [3, *size] in [0, 1], resized in uint8 as in training."""
    return to_float(resample(to_tensor(image), size))


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of a type of one byte. No page of the memory is touched before it is written to."""
    return torch.from_numpy(np.zeros(shape, np.uint8)).view(dtype)


def pad_batch(
    images: Sequence[Tensor],
    size_divisor: int = 1,
    min_size: tuple[int, int] = (0, 0),
    new_zeros: NewZeros | None = None,
) -> tuple[Tensor, Tensor]:
    """Images of different sizes in one tensor, padded with zeros to the right and below.

    Args:
        images: B images [3, h, w] of one type.
        size_divisor: H and W become multiples of it.
        min_size: the least (H, W).
        new_zeros: shape, dtype -> the tensor that is returned; by default one where the images are.

    Returns:
        images [B, 3, H, W] and `padding_mask` [B, H, W] bool, True = padding.
    """
    height, width = padded_size([image.shape[-2:] for image in images], size_divisor, min_size)
    shape = (len(images), images[0].shape[0], height, width)
    padded = images[0].new_zeros(shape) if new_zeros is None else new_zeros(shape, images[0].dtype)
    padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=padded.device)
    for i, image in enumerate(images):
        h, w = image.shape[-2:]
        padded[i, :, :h, :w] = image
        padding_mask[i, :h, :w] = False
    return padded, padding_mask


def padded_size(
    sizes: Sequence[Sequence[int]], size_divisor: int = 1, min_size: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """(H, W) that holds every (height, width) of `sizes` and `min_size`, in multiples of `size_divisor`."""
    height = max(min_size[0], *(size[0] for size in sizes))
    width = max(min_size[1], *(size[1] for size in sizes))
    return -(-height // size_divisor) * size_divisor, -(-width // size_divisor) * size_divisor
