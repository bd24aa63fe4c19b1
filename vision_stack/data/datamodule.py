"""The data of a run: records, classes, ground truth, and loaders that can start at any batch of any epoch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray

from vision_stack.data.augment.requirements import check_fits_task
from vision_stack.data.checks.issues import Problem, data_error, show
from vision_stack.data.checks.split_overlap import shared_images
from vision_stack.data.configs import DataConfig, Split, cache_folder
from vision_stack.data.dataset import SegmentationDataset
from vision_stack.data.image_cache import open_cache
from vision_stack.data.image_records import ImageFile
from vision_stack.data.loader import BatchLoader, make_loader
from vision_stack.data.sampler import EpochSampler
from vision_stack.data.sampling import describe_repeats, repeat_factors
from vision_stack.structures import Category, Task, heads_for


def build_datamodule(
    config: DataConfig,
    seed: int = 0,
    categories: Sequence[Category] | None = None,
    task: Task = "instance",
    *,
    masks: bool = True,
) -> DataModule:
    """The data that a config describes. Files are read when they are first asked for.

    Args:
        config: of kind "data".
        seed: of order and augmentation, with epoch and index.
        categories: the classes of a trained model; by default those of the training split.
        task: which annotations are read.
        masks: whether targets have masks: `needs_masks` of the head.
    """
    return DataModule(config, seed, categories, task, masks=masks)


class DataModule(pl.LightningDataModule):
    """Train and val split of a data set, and their loaders.

    The next batch depends only on (seed, epoch, batch). `set_position` before `fit` makes training begin in the
    middle: the position is that of batches trained, so how far workers have read ahead does not matter. One iteration
    over the train loader is one epoch. Sharding over ranks is done here: `Trainer(use_distributed_sampler=False)`.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int = 0,
        categories: Sequence[Category] | None = None,
        task: Task = "instance",
        *,
        masks: bool = True,
    ) -> None:
        super().__init__()
        self.masks = masks
        self.task = task
        self.config = config
        self.seed = seed
        self._categories = None if categories is None else tuple(categories)
        self._position = (0, 0)
        # With fewer val images than ranks, some have nothing to evaluate, and that is fine.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    def categories(self) -> tuple[Category, ...]:
        """Label -> category."""
        return self.train_split.categories if self._categories is None else self._categories

    @cached_property
    def train_split(self) -> Split:
        """DataError where there are objects without the masks that the head learns from."""
        split = self.config.read("train", self.task, self._categories)
        if self.masks and (count := split.num_without_mask):
            message = f"objects without masks: {count:,}, but the head learns from masks"
            heads = " or ".join(heads_for(self.task, boxes=True))
            raise data_error(
                split.annotation_file,
                "annotations[].segmentation",
                message,
                f"give head.masks=false if the head has masks as an option, or {heads}",
            )
        return split

    @cached_property
    def val_split(self) -> Split:
        split = self._whole_val_split
        return dataclasses.replace(split, records=split.records[: self.config.max_val_images])

    @cached_property
    def _whole_val_split(self) -> Split:
        return self.config.read("val", self.task, self.categories)

    def held_out(self) -> list[str]:
        """Images, by names below the data root, that were drawn from the training data for validation."""
        return self.config.held_out(self.task, self._whole_val_split)

    @property
    def problems(self) -> list[Problem]:
        """The broken records of both splits that are left out (on_error: skip), each once."""
        return list(dict.fromkeys((*self.train_split.problems, *self.val_split.problems)))

    @cached_property
    def train_records(self) -> list[ImageFile]:
        """Those trained on.

        Raises:
            DataError: there are none.
        """
        records: list[Any] = self.train_split.records
        if self.config.filter_empty and self.train_split.lists_objects:  # else every label map would have to be read
            records = [record for record in records if record.num_objects]
        records = records[: self.config.max_train_images]
        if not _has_objects(self.train_split, records):
            file, crowds = self.train_split.annotation_file, self.train_split.num_crowds
            message, remedy = "no training image has an object", "annotate some, or give another file"
            if crowds:
                message += f"; {crowds:,} annotations are crowd regions (iscrowd=1), which are not trained on"
                remedy = "write iscrowd=0 for single objects"
            raise data_error(file, "annotations", message, remedy)
        return records

    @property
    def val_records(self) -> list[ImageFile]:
        return list(self.val_split.records)

    def notes(self) -> list[str]:
        """What was skipped, fixed or looks odd in either split and between them, a line each, for printing."""
        found = self.config.describe(self.task, self.train_split, self.val_split)
        reports = [*self.train_split.report().splitlines(), *self._val_notes()]
        lines = [*found, *dict.fromkeys(reports)]  # of one file that is both splits, once
        if (factors := self._repeats()) is not None:
            lines.append(f"note: data.sampling: {describe_repeats(factors, self.epoch_size)}")
        files = (self.train_split.annotation_file, self.val_split.annotation_file)
        remedy = "validation would measure memorisation; use separate images"
        paths = {record.path for record in self.train_split.records}
        both = any(record.path in paths for record in self.val_split.records)
        if both and self.train_split.lists_objects and os.path.realpath(files[0]) == os.path.realpath(files[1]):
            return [*lines, f"note: {files[1]}: the annotations of training and validation are one file; {remedy}"]
        if shared := shared_images(self.train_records, self.val_records):
            val, train = shared[0]
            count = f"{len(shared):,} of {len(self.val_records):,} validation images are training images, too"
            lines.append(f"note: {files[1]}: {count} ({show(val.file_name)} is {show(train.file_name)}); {remedy}")
        return lines

    def val_notes(self) -> list[str]:
        """The same for only the validation split."""
        return [*self.config.describe(self.task, None, self.val_split), *self._val_notes()]

    def _val_notes(self) -> list[str]:
        lines = self.val_split.report().splitlines()
        if not _has_objects(self.val_split, self.val_records):
            crowds = ", only crowd regions" if self.val_split.num_crowds else ""
            message = f"no validation image has an object{crowds}; there will be no score"
            lines.append(f"warning: {self.val_split.annotation_file}: {message}")
        return lines

    def val_ground_truth(self) -> Any:
        """What the task's evaluator takes, of just the images that `val_dataloader` gives, crowds included.

        For instances COCO's format for `pycocotools`, otherwise the annotation of each image by its id.
        """
        return self.val_split.ground_truth()

    def num_train_images_with_more_objects_than(self, limit: int) -> int:
        """How many training images have more objects (segments, classes) than a head with `limit` queries can find."""
        if not self.train_split.lists_objects and len(self.categories) <= limit:
            return 0  # without reading the label maps
        most = self.config.sampling.max_objects
        if most is not None and most <= limit:
            return 0
        return sum(record.num_objects > limit for record in self.train_records)

    @property
    def epoch_size(self) -> int:
        """Training images of an epoch, over all ranks; some may come more than once."""
        factors = self._repeats()
        count = len(self.train_records)
        return count if factors is None else EpochSampler(count, 1, repeats=factors).num_samples

    def check_augmentation(self) -> None:
        """Raise ConfigError where augmentation or sampling ask for more than the annotations have."""
        without_mask = self.train_split.num_without_mask
        check_fits_task(self.config.train_transform, self.config.sampling, self.task, without_mask)
        self._repeats()

    def _repeats(self) -> NDArray[np.float64] | None:
        """How often each training image comes in an epoch; None: once."""
        sampling = self.config.sampling
        if not sampling.repeats:
            return None
        labels = [record.object_labels() for record in self.train_records]
        return repeat_factors([each for each in labels if each is not None], self.categories, sampling)

    def train_dataset(self, planned_epochs: float | None = None) -> SegmentationDataset:
        """The training images as `train_dataloader` gives them, padding aside.

        Raises:
            ConfigError: as `check_augmentation`.
        """
        self.check_augmentation()
        whole = {"semantic": lambda _: True, "panoptic": lambda category: not category.is_thing}
        is_merged = whole.get(self.task, lambda _: False)
        return SegmentationDataset(
            self.train_records,
            self.config.train_transform,
            seed=self.seed,
            mask_stride=self.config.mask_stride if self.masks else None,
            merged=frozenset(n for n, category in enumerate(self.categories) if is_merged(category)),
            max_objects=self.config.sampling.max_objects,
            planned_epochs=planned_epochs,
            **self._reading(self.train_records),
        )

    def set_position(self, epoch: int, batches_done: int = 0) -> None:
        """Training begins in this epoch, after `batches_done` of each rank's batches. To be called before `fit`."""
        self._position = (epoch, batches_done)

    def train_dataloader(self) -> BatchLoader:
        rank, world_size = self._rank()
        sampler = EpochSampler(
            len(self.train_records),
            self.config.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            repeats=self._repeats(),
        )
        sampler.set_position(*self._position)
        planned = None if self.trainer is None else planned_epochs(self.trainer, len(sampler))
        return self._loader(self.train_dataset(planned), sampler)

    def val_dataloader(self) -> BatchLoader:
        """Images without targets: predictions are compared with `val_ground_truth`."""
        config, (rank, world_size) = self.config, self._rank()
        records = self.val_records
        sampler = EpochSampler(
            len(records),
            config.eval_batch_size,
            seed=self.seed,
            shuffle=False,
            even=False,
            rank=rank,
            world_size=world_size,
        )
        dataset = SegmentationDataset(
            records,
            config.eval_transform,
            seed=self.seed,
            mask_stride=None,
            targets=False,
            **self._reading(records),
        )
        return self._loader(dataset, sampler)

    def _reading(self, records: Sequence[ImageFile]) -> dict[str, Any]:
        """Options of a data set."""
        config = self.config
        return {
            "cache": open_cache(config.cache, records, config.cache_gb, cache_folder() / "images"),
            "reduced_decoding": config.reduced_decoding,
        }

    def _rank(self) -> tuple[int, int]:
        """This process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, dataset: SegmentationDataset, sampler: EpochSampler) -> BatchLoader:
        return make_loader(
            dataset,
            sampler,
            size_divisor=self.config.size_divisor,
            num_workers=self.config.num_workers,
            timeout=self.config.loader_timeout,
        )


def planned_epochs(trainer: pl.Trainer, batches: int) -> float | None:
    """How many epochs a run will have by its options, of so many batches each; None where only a time limits it."""
    epochs = float(trainer.max_epochs) if trainer.max_epochs and trainer.max_epochs > 0 else None
    limit = trainer.limit_train_batches  # a float is a share, an int a number
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if trainer.max_steps > 0:
        by_steps = trainer.max_steps / max(-(-batches // trainer.accumulate_grad_batches), 1)
        epochs = by_steps if epochs is None else min(epochs, by_steps)
    return epochs


def _has_objects(split: Split, records: Sequence[ImageFile]) -> bool:
    """Whether there are images, and objects in any; what is in label maps was looked at when they were checked."""
    return bool(records) and (not split.lists_objects or any(record.num_objects for record in records))
