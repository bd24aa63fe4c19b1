"""Records to samples, samples to batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vision_stack.data.augment.compose import compose
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.placing import MaskStride
from vision_stack.data.augment.plan import Plan, limited
from vision_stack.data.augment.targets import Objects, make_target, wrap_target
from vision_stack.data.augment.transforms import TransformConfig
from vision_stack.data.checks.issues import data_error
from vision_stack.data.image_cache import ImageCache
from vision_stack.data.image_records import ImageFile
from vision_stack.data.images import read_image
from vision_stack.data.sampler import Key, sample_rng
from vision_stack.ops.image import NewZeros, pad_batch, to_tensor, zeros
from vision_stack.ops.masks import fill
from vision_stack.structures import Batch, ImageInfo, Sample, Target


class SegmentationDataset(Dataset[Sample]):
    """Images and their objects (segments, classes), transformed.

    Polygons, RLE and label maps stay what they are until the transform is known; crowd regions never become objects. An
    item is asked for by (epoch, index), and is the same however often and in whatever process it is made, of however
    many images it is composed.

    Args:
        records: one per image.
        transform: what is drawn for each image.
        seed: of all draws, with epoch and index.
        mask_stride: pixels of a cell of the targets' masks; None: they have none.
        targets: False where images alone are wanted, as in validation: no object is read.
        merged: labels of which an image has one segment: all classes of label maps of classes, stuff of panoptic ones.
        max_objects: of an image, drawn among those that can be seen in it.
        planned_epochs: of the whole run, for the transform's `stages`; None: unknown.
        cache: of decoded images; None: they are read each time.
        reduced_decoding: decode JPEGs at 1/2, 1/4 or 1/8 where that is still twice the sample's size; of COCO's
            photographs pixels differ by 0.7 of 255 in the mean then.

    Raises:
        DataError: an image cannot be read, or has changed its size since it was checked; one line that names the file.
    """

    def __init__(
        self,
        records: Sequence[ImageFile],
        transform: TransformConfig,
        *,
        seed: int = 0,
        mask_stride: MaskStride = 1,
        targets: bool = True,
        merged: Collection[int] = (),
        max_objects: int | None = None,
        planned_epochs: float | None = None,
        cache: ImageCache | None = None,
        reduced_decoding: bool = False,
    ) -> None:
        self.records = records
        self.transform = transform
        self._stages: Sequence[tuple[int, TransformConfig]] = transform.stages(planned_epochs)
        self.merged = merged
        self.max_objects = max_objects
        self.seed = seed
        self.mask_stride = mask_stride
        self.targets = targets
        self.cache = cache
        self.reduced_decoding = reduced_decoding

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key | int) -> Sample:
        epoch, index = (0, key) if isinstance(key, int) else key
        record = self.records[index]
        rng = sample_rng(self.seed, epoch, index)
        transform = next(transform for first, transform in reversed(self._stages) if epoch >= first)
        plan: Plan = transform.plan(self.records, index, rng)
        if self.max_objects is not None:
            plan = limited(plan, self.records, self.max_objects, rng)
        if self.targets:
            image, objects = compose(plan, self.records, self._moved, self.merged, self.mask_stride)
        else:
            image, objects = self._moved(index, plan.placements[0].transform), Objects((), ())
        image = transform.photometric_changes(image, rng)
        target, masks = make_target(objects, plan.size, transform.min_pixels, stride=self.mask_stride)
        info = ImageInfo(record.image_id, record.file_name, (record.height, record.width), plan.size)
        return Sample(image, target, masks, info)

    def pixels(self, index: int) -> Tensor:
        """The image as it is stored, turned upright, uint8 [3, height, width]."""
        return to_tensor(self._read(index))

    def _moved(self, index: int, transform: GeometricTransform) -> Tensor:
        """An image that a transform has moved, uint8 [3, *transform.size]."""
        record = self.records[index]
        reduction = 1
        if self.reduced_decoding and self.cache is None:
            reduction = transform.reduction(record.height, record.width)
        image = self._read(index, reduction)
        if image.shape[0] < record.height:
            transform = replace(transform, box=(0, 0, image.shape[1], image.shape[0]))
        return transform.image(to_tensor(image))

    def _read(self, index: int, reduction: int = 1) -> NDArray[np.uint8]:
        """RGB [height, width, 3], of a JPEG divided by `reduction`."""
        record = self.records[index]
        image = None if self.cache is None else self.cache.get(index)
        if image is None:
            image = read_image(record.path, apply_exif=record.apply_exif, reduction=reduction)
            height, width = image.shape[:2]
            if (height, width) not in {(record.height // n, record.width // n) for n in (1, reduction)}:
                message = f"is {width} x {height} now, was {record.width} x {record.height} when training started"
                raise data_error(record.path, "pixels", message, "do not change the files while a run reads them")
            if self.cache is not None:
                self.cache.put(index, image)
        return image


def collate(
    samples: Sequence[Sample],
    size_divisor: int = 1,
    crop_size: int | None = None,
    mask_stride: int = 1,
    new_zeros: NewZeros = zeros,
) -> Batch:
    """Pad samples into one `Batch`: to the largest of them, or to the square of `crop_size` where that is larger.

    Args:
        mask_stride: of the samples' masks.
        new_zeros: shape, dtype -> the tensors for images and masks.
    """
    edge = crop_size or 0
    images, padding_mask = pad_batch([sample.image for sample in samples], size_divisor, (edge, edge), new_zeros)
    size = (images.shape[-2], images.shape[-1])
    targets = tuple(_batched(sample, size, mask_stride, new_zeros) for sample in samples)
    return Batch(images, padding_mask, targets, tuple(sample.info for sample in samples))


def _batched(sample: Sample, size: tuple[int, int], stride: int, new_zeros: NewZeros) -> Target:
    masks = None
    if sample.masks is not None:
        masks = new_zeros((len(sample.masks), *(-(-edge // stride) for edge in size)), torch.bool)
        fill(sample.masks, masks.numpy())
    boxes = sample.target["boxes"].as_subclass(Tensor)
    return wrap_target(sample.target["labels"], boxes, size, masks, sample.target.get("ignored"))
