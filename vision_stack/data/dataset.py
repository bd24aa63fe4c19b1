"""Records to samples, samples to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vision_stack.data.augment.transforms import TransformConfig, make_target, wrap_target
from vision_stack.data.checks.issues import data_error
from vision_stack.data.image_records import ImageFile
from vision_stack.data.images import read_image
from vision_stack.data.sampler import Key, sample_rng
from vision_stack.ops.image import pad_batch, to_float, to_tensor
from vision_stack.structures import Batch, ImageInfo, Sample, Target


class SegmentationDataset(Dataset[Sample]):
    """Images and their objects (segments, classes), transformed.

    Polygons, RLE and label maps stay what they are until the affine is known; crowd regions never become objects. An
    item is asked for by (epoch, index), and is the same however often and in whatever process it is made.

    Args:
        records: one per image.
        transform: what is drawn for each image.
        seed: of all draws, with epoch and index.
        masks: whether targets have masks.
        cache: "decoded" keeps every image in memory as uint8 once it has been read (in each worker its own).

    Raises:
        DataError: an image cannot be read, or has changed its size since it was checked; one line that names the file.
    """

    def __init__(
        self,
        records: Sequence[ImageFile],
        transform: TransformConfig,
        *,
        seed: int = 0,
        masks: bool = True,
        cache: Literal["none", "decoded"] = "none",
    ) -> None:
        self.records = records
        self.transform = transform
        self.seed = seed
        self.masks = masks
        self._decoded: dict[int, NDArray[np.uint8]] | None = {} if cache == "decoded" else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key | int) -> Sample:
        epoch, index = (0, key) if isinstance(key, int) else key
        record = self.records[index]
        rng = sample_rng(self.seed, epoch, index)
        affine = self.transform.affine(record.height, record.width, rng)
        image = self.transform.photometric(affine.image(to_tensor(self._read(index))), rng)
        target = make_target(record.objects(affine), affine.size, self.transform.min_pixels, masks=self.masks)
        info = ImageInfo(record.image_id, record.file_name, (record.height, record.width), affine.size)
        return Sample(to_float(image), target, info)

    def _read(self, index: int) -> NDArray[np.uint8]:
        if self._decoded is not None and index in self._decoded:
            return self._decoded[index]
        record = self.records[index]
        image = read_image(record.path, apply_exif=record.apply_exif)
        height, width = image.shape[:2]
        if (height, width) != (record.height, record.width):
            message = f"is {width} x {height} now, was {record.width} x {record.height} when training started"
            raise data_error(record.path, "pixels", message, "do not change the files while a run reads them")
        if self._decoded is not None:
            self._decoded[index] = image
        return image


def collate(samples: Sequence[Sample], size_divisor: int = 1, crop_size: int | None = None) -> Batch:
    """Pad samples into one `Batch`: to the largest of them, or to the square of `crop_size` where that is larger."""
    edge = crop_size or 0
    images, padding_mask = pad_batch([sample.image for sample in samples], size_divisor, (edge, edge))
    size = (images.shape[-2], images.shape[-1])
    targets = tuple(_pad_target(sample.target, size) for sample in samples)
    return Batch(images, padding_mask, targets, tuple(sample.info for sample in samples))


def _pad_target(target: Target, size: tuple[int, int]) -> Target:
    masks = _pad_masks(target["masks"], size) if "masks" in target else None
    return wrap_target(target["labels"], _plain(target["boxes"]), size, masks, target.get("ignored"))


def _pad_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, h, w] -> [N, *size], False where padded."""
    masks = _plain(masks)
    height, width = masks.shape[-2:]
    if (height, width) == size:
        return masks
    padded = masks.new_zeros(len(masks), *size)
    padded[:, :height, :width] = masks
    return padded


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(torch.Tensor)
