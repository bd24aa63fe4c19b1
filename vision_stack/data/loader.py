"""A data loader whose errors take one line, whichever process they come from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.data.sampler import EpochSampler
from vision_stack.data.validation import DataError
from vision_stack.structures import Batch


class BatchLoader(DataLoader[Any]):
    """Gives `Batch`es in a sampler's order. With workers, images are prepared ahead in other processes.

    One pass is one epoch, or the rest of one, however much of it is used; the next pass begins with the next epoch.
    """

    batch_sampler: EpochSampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        epoch, _ = self.batch_sampler.position
        self.batch_sampler.set_position(epoch + 1)
        return _one_line_errors(batches)


def make_loader(
    dataset: SegmentationDataset, sampler: EpochSampler, *, size_divisor: int, num_workers: int
) -> BatchLoader:
    """The loader of a data set. PyTorch limits each worker to one thread by itself."""
    return BatchLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(collate, size_divisor=size_divisor, crop_size=dataset.transform.crop_size),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Its own, so that making an iterator takes nothing from the global generator: a resumed run makes fewer.
        generator=torch.Generator(),
    )


def _one_line_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    except DataError as error:  # from a worker it comes with a traceback's text around it
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
