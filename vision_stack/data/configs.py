"""What a run reads, and how: the configs of kind "data"."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from vision_stack.config import Config, ConfigError, Count, NonNegative, Range, register, registered
from vision_stack.data.augment.transforms import EvalTransformConfig, TrainTransformConfig
from vision_stack.data.checks.issues import Problem, data_error
from vision_stack.data.checks.segments import LabelMapSplit
from vision_stack.data.holding_out import hold_out, listed_images
from vision_stack.data.readers.auto import recognise, tasks_of
from vision_stack.data.readers.coco import CocoSplit, read_coco
from vision_stack.data.readers.coco_layouts import named_json
from vision_stack.data.readers.coco_panoptic import read_coco_panoptic
from vision_stack.data.readers.files import some
from vision_stack.data.readers.formats import Part, Reading, Recognised
from vision_stack.data.readers.layout import (
    SplitName,
    SplitPaths,
    find_label_dir,
    find_semantic,
    find_splits,
    named_file,
)
from vision_stack.data.readers.semantic import SemanticFolders, read_semantic
from vision_stack.data.sampling import SamplingConfig
from vision_stack.data.shapes.generate import generate_shapes
from vision_stack.structures import Category, Task

Split = CocoSplit | LabelMapSplit
Categories = Sequence[Category] | None
VAL_FRACTION = 0.2  # of the training images, where there is no validation split
Reader = Callable[[Any, SplitName, Categories], Split]  # config, split, the classes to use if known already


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What all data sets share. A subclass says where its files are, and reads them.

    `readers` has an entry for each task that there are annotations for.
    """

    kind: ClassVar[str] = "data"
    readers: ClassVar[Mapping[Task, Reader]] = {}
    root: str | None = None  # folder of the data set
    batch_size: Count = 4  # images of one training step on one device
    eval_batch_size: Count = 1
    num_workers: Annotated[int, Range(0, 256)] = 2  # processes that prepare batches; 0: the training process itself
    loader_timeout: Count = 600  # seconds to wait for a batch of theirs before giving up
    size_divisor: Count = 32  # height and width of a batch are multiples of it
    train_transform: TrainTransformConfig = field(default_factory=TrainTransformConfig)
    eval_transform: EvalTransformConfig = field(default_factory=EvalTransformConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    # Of decoded images: in memory, or in a file that later runs find, too. "decoded" is the old name of ram.
    cache: Literal["none", "ram", "disk", "decoded"] = "none"
    cache_gb: NonNegative = 8.0  # the most that is kept of a split, by each process that trains
    reduced_decoding: bool = False  # decode JPEGs at 1/2, 1/4 or 1/8 where that is still twice the input's size
    mask_stride: Literal[1, 4] = 1  # pixels of a cell of the masks that are trained on; 4: by the area they cover
    on_error: Literal["raise", "skip"] = "raise"  # what to do about broken records
    filter_empty: bool = True  # leave out training images without objects
    max_train_images: Count | None = None  # use only the first ones
    max_val_images: Count | None = None

    def check(self) -> None:
        if self.cache == "decoded":
            object.__setattr__(self, "cache", "ram")
        if self.size_divisor % self.mask_stride:
            raise ConfigError(
                f"size_divisor: {self.size_divisor} is not a multiple of mask_stride, {self.mask_stride}; give 32"
            )

    def read(self, split: SplitName, task: Task, categories: Categories = None) -> Split:
        """The checked records of a split for a task; `categories` are the classes to use, if known already.

        Raises:
            ConfigError: there is no such task, or there are no annotations for it.
            DataError: files are missing or broken.
        """
        if task not in get_args(Task):
            raise ConfigError(f"task: expected {', '.join(get_args(Task))}, got {task!r}")
        if task not in self.readers:
            others = registered("data").items()
            fitting = ", ".join(f"data={name}" for name, cls in others if task in getattr(cls, "readers", ()))
            raise ConfigError(
                f"task: data={self.type} has no annotations for {task}; "
                f"say task={' or task='.join(self.readers)}, or use {fitting}"
            )
        return self.readers[task](self, split, categories)

    def describe(self, task: Task, train: Split | None, val: Split) -> list[str]:
        """What was found in the folder, a line each, for printing; nothing where the user said it all."""
        return []

    def held_out(self, task: Task, val: Split) -> list[str]:
        """Names below the root of images that were drawn from the training data for validation."""
        return []

    def _existing_root(self) -> str:
        if self.root is None:
            raise ConfigError("data.root: missing; give the folder of the data set, data.root=DIR")
        return self.root


@register("data", "coco")
@dataclass(frozen=True, kw_only=True)
class CocoDataConfig(DataConfig):
    """COCO-style json files and folders of images; what is not given is looked for below `root`."""

    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None

    annotation_kind: ClassVar[Literal["instances", "panoptic"]] = "instances"

    def split_paths(self, split: SplitName) -> SplitPaths:
        """The annotation file and image folder of a split. Raises DataError if they are not there."""
        layout = find_splits(self._existing_root(), **self._given_paths(), required=(split,), kind=self.annotation_kind)
        paths = layout.train if split == "train" else layout.val
        assert paths is not None  # required
        return paths

    def _given_paths(self) -> dict[str, str | None]:
        names = ("train_annotations", "train_images", "val_annotations", "val_images")
        return {name: getattr(self, name) for name in names}

    def _boxes(self, split: SplitName, categories: Categories) -> Split:
        return read_coco(*self.split_paths(split), on_error=self.on_error, categories=categories, masks=False)

    def _masks(self, split: SplitName, categories: Categories) -> Split:
        return read_coco(*self.split_paths(split), on_error=self.on_error, categories=categories)

    readers: ClassVar[Mapping[Task, Reader]] = {"detection": _boxes, "instance": _masks}


def _reader_for(task: Task) -> Reader:
    return lambda self, split, categories: self._read_for(task, split, categories)


@register("data", "auto")
@dataclass(frozen=True, kw_only=True)
class AutoDataConfig(CocoDataConfig):
    """A folder in any format that is read: which one is recognised, unless json files are named as for `coco`."""

    format: str | None = None  # null: recognised
    classes: str | None = None  # table of classes, where the format has none; an `id name` a line, or a name
    ignore_labels: tuple[Annotated[int, Range(0, 65535)], ...] | None = None  # of label maps; null: by the format
    split: Literal["val", "test", "train"] = "val"  # the split that evaluation reads
    val_fraction: Annotated[float, Range(0.001, 0.9)] | None = None  # held out; null: 0.2 if there is no val split
    group_by: str | None = None  # pattern of file names whose images stay together: "^(video_\\d+)_"
    split_seed: Annotated[int, Range(0, 2**31)] = 0  # of the images that are held out
    val_list: str | None = None  # json of the images that an earlier run held out; goes before the three above

    def recognised(self, task: Task) -> Recognised:
        """The format. DataError if there is none for the task, or several."""
        if self.train_annotations or self.val_annotations:
            return named_json(self._existing_root(), self._given_paths())
        return recognise(self._existing_root(), task, self.format)

    def tasks(self) -> tuple[Task, ...]:
        """Those that there are annotations for, if there is no doubt about the format."""
        if self.train_annotations or self.val_annotations:
            return self.recognised("instance").tasks
        return tasks_of(self._existing_root(), self.format)

    def holds_out(self, found: Recognised) -> float | None:
        """The share of the training images that is the validation split."""
        if self.val_fraction is None and not self.val_list and "val" in found.splits:
            return None
        return self.val_fraction or VAL_FRACTION

    def describe(self, task: Task, train: Split | None, val: Split) -> list[str]:
        found = self.recognised(task)
        lines = [f"found       {found.what} in {self.root}", f"known by    {found.how}"]
        splits = [("train", train), (self.split, val)]
        made = [f"{name} {_sizes(split)}" for name, split in splits if split is not None]
        names = [category.name for category in val.categories]
        lines.append(f"read as     {'; '.join(made)}; {_counted(len(names), 'class')}: {some(names)}")
        return lines

    def held_out(self, task: Task, val: Split) -> list[str]:
        found = self.recognised(task)
        if self.val_list or not self.holds_out(found) or self.split != "val":
            return []
        return [os.path.relpath(record.path, self._existing_root()) for record in val.records]

    def _hold_out(self, whole: Split, part: Part, fraction: float) -> Split:
        """The training images, or those that are held out for validation."""
        records: list[Any] = whole.records
        if self.val_list:
            chosen = listed_images(self.val_list, [os.path.relpath(r.path, self._existing_root()) for r in records])
        else:
            chosen = hold_out(records, fraction, seed=self.split_seed, group_by=self.group_by)
        records = [record for record, held in zip(records, chosen.val, strict=True) if held == (part == "val")]
        instead = "data.val_fraction, data.group_by and data.split_seed draw others"
        note = Problem(str(self.root), "validation", chosen.text, instead)
        return replace(whole, records=records, notes=(*whole.notes, note))

    def _read_for(self, task: Task, split: SplitName, categories: Categories) -> Split:
        found = self.recognised(task)
        part: Part = "train" if split == "train" else self.split
        classes = self.classes and str(named_file(self._existing_root(), self.classes, "data.classes"))
        reading = Reading(task, self.on_error, categories, part == "train", classes, self.ignore_labels)
        fraction = None if part == "test" else self.holds_out(found)
        if (needed := "train" if fraction else part) not in found.splits:
            there = ", ".join(found.splits)
            message = f"there is no {needed} split; there is {there} ({found.what}: {found.how})"
            raise data_error(self.root, "data.split", message, "give another folder, or data.split=NAME for evaluation")
        whole = found.read(needed, reading)
        return self._hold_out(whole, part, fraction) if fraction else whole

    readers: ClassVar[Mapping[Task, Reader]] = dict(zip(get_args(Task), map(_reader_for, get_args(Task)), strict=True))


def _sizes(split: Split) -> str:
    images = _counted(len(split.records), "image")
    if not split.lists_objects:
        return images
    return f"{images} with {_counted(sum(record.num_objects for record in split.records), 'object')}"


def _counted(number: int, what: str) -> str:
    plural = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{plural}"


@register("data", "coco_panoptic")
@dataclass(frozen=True, kw_only=True)
class CocoPanopticDataConfig(CocoDataConfig):
    """COCO panoptic json files, folders of PNGs with segment ids, and folders of images."""

    annotation_kind: ClassVar[Literal["instances", "panoptic"]] = "panoptic"
    train_labels: str | None = None
    val_labels: str | None = None

    def _panoptic(self, split: SplitName, categories: Categories) -> Split:
        paths = self.split_paths(split)
        labels = self.train_labels if split == "train" else self.val_labels
        label_dir = find_label_dir(self._existing_root(), split, paths.annotation_file, labels)
        return read_coco_panoptic(*paths, label_dir, on_error=self.on_error, categories=categories)

    readers: ClassVar[Mapping[Task, Reader]] = {"panoptic": _panoptic}


@register("data", "semantic")
@dataclass(frozen=True, kw_only=True)
class SemanticDataConfig(DataConfig):
    """Folders of images, folders of label maps with the same names, and a table of classes."""

    train_images: str | None = None
    train_labels: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    classes: str | None = None  # json list of {id, name}, or text with an `id name` a line
    ignore_labels: tuple[Annotated[int, Range(0, 65535)], ...] = (255,)  # values of pixels that say nothing
    image_suffix: str | None = None  # "_leftImg8bit.png": what image names end in; null: any image
    label_suffix: str = ".png"  # what takes its place in the names of label maps

    def _semantic(self, split: SplitName, categories: Categories) -> Split:
        given = (self.train_images, self.train_labels) if split == "train" else (self.val_images, self.val_labels)
        paths = find_semantic(self._existing_root(), split, *given, self.classes)
        folders = SemanticFolders(
            **paths._asdict(),
            ignore_labels=self.ignore_labels,
            image_suffix=self.image_suffix,
            label_suffix=self.label_suffix,
        )
        training = split == "train"
        return read_semantic(folders, on_error=self.on_error, categories=categories, training=training)

    readers: ClassVar[Mapping[Task, Reader]] = {"semantic": _semantic}


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
    cache: Literal["none", "ram", "disk", "decoded"] = "ram"
    image_size: Annotated[int, Range(32, 4096)] = 128  # height and width in pixels
    num_train: Count = 2000
    num_val: Count = 200
    min_objects: Count = 1
    max_objects: Count = 6
    seed: Annotated[int, Range(0, 2**31)] = 0  # of the scenes; the run's own seed orders and augments them

    def check(self) -> None:
        super().check()
        if self.min_objects > self.max_objects:
            raise ConfigError(f"min_objects: {self.min_objects} is more than max_objects, {self.max_objects}")

    def folder(self) -> Path:
        """The folder of the data set, generated if it is not there.

        Raises:
            ConfigError: `root` holds files of somebody else's, among which nothing is written.
        """
        root = Path(self.root).expanduser() if self.root else None
        if root is not None and root.is_dir():
            names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
            if names and not any(name.startswith("shapes_") for name in names):
                raise ConfigError(
                    f"root: {root} holds other files ({names[0]}, ...), and generated scenes are not written among "
                    f"them; write data={root} to train on your own data, or give an empty folder"
                )
        return generate_shapes(
            root or cache_folder() / "shapes",
            seed=self.seed,
            image_size=self.image_size,
            num_train=self.num_train,
            num_val=self.num_val,
            min_objects=self.min_objects,
            max_objects=self.max_objects,
        )

    def split_paths(self, split: SplitName) -> SplitPaths:
        """The instances' annotation file and the image folder of a split."""
        folder = self.folder()
        return SplitPaths(folder / "annotations" / f"instances_{split}.json", folder / split)

    def _boxes(self, split: SplitName, categories: Categories) -> Split:
        return read_coco(*self.split_paths(split), on_error=self.on_error, categories=categories, masks=False)

    def _masks(self, split: SplitName, categories: Categories) -> Split:
        return read_coco(*self.split_paths(split), on_error=self.on_error, categories=categories)

    def _panoptic(self, split: SplitName, categories: Categories) -> Split:
        folder = self.folder()
        file = folder / "annotations" / f"panoptic_{split}.json"
        label_dir = file.with_suffix("")
        return read_coco_panoptic(file, folder / split, label_dir, on_error=self.on_error, categories=categories)

    def _semantic(self, split: SplitName, categories: Categories) -> Split:
        labels = self.folder() / "labels"
        folders = SemanticFolders(
            image_dir=self.folder() / split, label_dir=labels / split, classes=labels / "classes.json"
        )
        return read_semantic(folders, on_error=self.on_error, categories=categories)

    readers: ClassVar[Mapping[Task, Reader]] = {
        "detection": _boxes,
        "instance": _masks,
        "semantic": _semantic,
        "panoptic": _panoptic,
    }


def cache_folder() -> Path:
    """Where generated data is kept: $VISION_STACK_CACHE, or `vision_stack` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("VISION_STACK_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision_stack"
