"""What a run reads, and how: the configs of kind "data"."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from vision_stack.config import Config, ConfigError, Count, Range, register
from vision_stack.data.layout import SplitName, SplitPaths, find_splits
from vision_stack.data.shapes import generate_shapes
from vision_stack.data.transforms import EvalTransformConfig, TrainTransformConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What all data sets share. A subclass says where its COCO-style files are."""

    kind: ClassVar[str] = "data"
    root: str | None = None  # folder of the data set
    batch_size: Count = 4  # images of one training step on one device
    eval_batch_size: Count = 1
    num_workers: Annotated[int, Range(0, 256)] = 2  # processes that prepare batches; 0: the training process itself
    size_divisor: Count = 32  # height and width of a batch are multiples of it
    train_transform: TrainTransformConfig = field(default_factory=TrainTransformConfig)
    eval_transform: EvalTransformConfig = field(default_factory=EvalTransformConfig)
    cache: Literal["none", "decoded"] = "none"  # decoded: images stay in memory, for small data sets
    on_error: Literal["raise", "skip"] = "raise"  # what to do about broken records
    filter_empty: bool = True  # leave out training images without objects
    max_train_images: Count | None = None  # the first so many only
    max_val_images: Count | None = None

    def split_paths(self, split: SplitName) -> SplitPaths:
        """The annotation file and image folder of a split. Raises DataError if they are not there."""
        raise NotImplementedError


@register("data", "coco")
@dataclass(frozen=True, kw_only=True)
class CocoDataConfig(DataConfig):
    """COCO-style json files and folders of images; what is not given is looked for below `root`."""

    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None

    def split_paths(self, split: SplitName) -> SplitPaths:
        if self.root is None:
            raise ConfigError("data.root: missing; give the folder of the data set, data.root=DIR")
        layout = find_splits(
            self.root,
            self.train_annotations,
            self.train_images,
            self.val_annotations,
            self.val_images,
            required=(split,),
        )
        paths = layout.train if split == "train" else layout.val
        assert paths is not None  # required
        return paths


@register("data", "shapes")
@dataclass(frozen=True, kw_only=True)
class ShapesDataConfig(DataConfig):
    """Generated scenes, written as a COCO folder below `root` (the cache folder by default) when first asked for."""

    batch_size: Count = 16
    eval_batch_size: Count = 16
    num_workers: Annotated[int, Range(0, 256)] = 0  # images of this size are decoded faster than they are passed on
    train_transform: TrainTransformConfig = field(
        default_factory=lambda: TrainTransformConfig(short_edges=(128,), long_edge=128)
    )
    eval_transform: EvalTransformConfig = field(
        default_factory=lambda: EvalTransformConfig(short_edge=128, long_edge=128)
    )
    cache: Literal["none", "decoded"] = "decoded"
    image_size: Annotated[int, Range(32, 4096)] = 128  # height and width in pixels
    num_train: Count = 2000
    num_val: Count = 200
    min_objects: Count = 1
    max_objects: Count = 6
    seed: Annotated[int, Range(0, 2**31)] = 0  # of the scenes; the run's own seed orders and augments them

    def check(self) -> None:
        if self.min_objects > self.max_objects:
            raise ConfigError(f"min_objects: {self.min_objects} is more than max_objects, {self.max_objects}")

    def split_paths(self, split: SplitName) -> SplitPaths:
        folder = generate_shapes(
            Path(self.root).expanduser() if self.root else cache_folder() / "shapes",
            seed=self.seed,
            image_size=self.image_size,
            num_train=self.num_train,
            num_val=self.num_val,
            min_objects=self.min_objects,
            max_objects=self.max_objects,
        )
        return SplitPaths(folder / "annotations" / f"instances_{split}.json", folder / split)


def cache_folder() -> Path:
    """Where generated data is kept: $VISION_STACK_CACHE, or `vision_stack` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("VISION_STACK_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision_stack"
