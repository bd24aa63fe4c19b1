"""The types that flow between the parts.

Legend used everywhere: B images of a batch, N objects of one image, Q queries, K classes, C channels, L earlier
decoder layers, H x W pixels of the padded batch. Boxes are (x0, y0, x1, y1) in pixels; class labels are 0..K-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_stack.config import Config, ConfigError, Fraction, registered

Task = Literal["detection", "instance", "semantic", "panoptic"]
WITH_OBJECTS: frozenset[Task] = frozenset(("detection", "instance", "panoptic"))  # annotations tell objects apart
WITH_MASKS: frozenset[Task] = frozenset(("instance", "semantic", "panoptic"))  # annotations say which pixels
LABEL_MAPS: frozenset[Task] = frozenset(("semantic", "panoptic"))  # a pixel has one label
Threshold = float | tuple[float, ...]  # of scores: one for all classes, or one for each label
RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes}, as pycocotools has it


class FeatureSpec(NamedTuple):
    """What a feature map is: declared by whoever makes it, checked by whoever takes it, before any tensor exists."""

    name: str  # "stage1", "p4", "mask_features", ...
    channels: int
    stride: int  # the map of an H x W image is ceil(H / stride) x ceil(W / stride)


class TailSpec(NamedTuple):
    """What a head asks of a plain transformer whose last blocks it runs itself."""

    num_blocks: int
    num_queries: int  # that come before all other tokens


class Tail(NamedTuple):
    """The last blocks of a plain transformer, which the head runs on `Features.tokens` and tokens of its own."""

    # Each: tokens [B, Q + P + h * w, C], and which of them see which, [B, 1, N, N] bool, or None -> tokens.
    blocks: tuple[Callable[[Tensor, Tensor | None], Tensor], ...]
    norm: Callable[[Tensor], Tensor]  # the final one, of tokens
    num_prefix: int  # P, class and register tokens
    grid: tuple[int, int]  # h, w
    stride: int  # of the grid


@dataclass(frozen=True, slots=True)
class Features:
    """What flows from the backbone through the neck to the head: the maps of a batch, and what else is known of it.

    It is a sequence of its maps, so that a neck or head that only reads maps takes a plain tuple of them as well.
    """

    maps: tuple[Tensor, ...]  # [B, C, ceil(H / stride), ceil(W / stride)] each, as declared, fine to coarse
    size: tuple[int, int]  # (H, W) of the padded batch
    unpadded_sizes: tuple[tuple[int, int], ...] | None = None  # of each image; None: there is no padding
    tokens: Tensor | None = None  # [B, P + h * w, C] after the last block that ran; of plain transformers only
    pixels: Tensor | None = None  # [B, 3, H, W], the backbone's input, for necks that look for details in it
    tail: Tail | None = None  # what has not run, of heads whose config has a `tail`

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image before padding."""
        # Heads that never ask can be exported for any batch: a tuple of its length would fix the length.
        return (self.size,) * len(self.maps[0]) if self.unpadded_sizes is None else self.unpadded_sizes

    def __getitem__(self, index: int) -> Tensor:
        return self.maps[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)


@dataclass(frozen=True, kw_only=True)
class Category(Config):
    """One class of a data set. Its position in a model's `categories` is the label used inside."""

    kind: ClassVar[str] = ""
    id: int  # the data set's own category id, which every result file carries
    name: str
    is_thing: bool = True  # countable objects; False: stuff, such as sky, of which an image has one segment


class ImageInfo(NamedTuple):
    """Where an image of a batch comes from, and how to get back to its own pixels."""

    image_id: int
    file_name: str
    size: tuple[int, int]  # (height, width) of the original, upright image
    input_size: tuple[int, int]  # (height, width) it was resized to, before padding


class Target(TypedDict):
    """The objects of one image, in pixels of the resized image: the dict that torchvision's detectors take.

    For panoptic segmentation these are its segments, things and stuff; for semantic segmentation one mask per class.
    """

    labels: Tensor  # [N] int64
    boxes: Tensor  # [N, 4] float32 (tv_tensors.BoundingBoxes, XYXY): those of the masks where there are masks
    # [N, H, W] bool (tv_tensors.Mask), padded to the batch; only if the head needs them. With `data.mask_stride=4`
    # [N, H / 4, W / 4], a cell being True where the object covers half of it.
    masks: NotRequired[Tensor]
    ignored: NotRequired[Tensor]  # [M, 4] float32, crowds: neither to be found nor wrong to find; only if there are any


class Batch(NamedTuple):
    """What the data loader gives: RGB in 0..255, of which `VisionModel.normalize` makes the network's input."""

    images: Tensor  # [B, 3, H, W] uint8, zero where padded
    padding_mask: Tensor  # [B, H, W] bool, True = padding
    targets: tuple[Target, ...]
    infos: tuple[ImageInfo, ...]

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image before padding."""
        return tuple(info.input_size for info in self.infos)


@dataclass(frozen=True)
class Instances:
    """The objects found in one image, best first, in the image's own pixels."""

    boxes: Tensor  # [N, 4] float32, as predicted; tight around the masks of heads that find masks alone
    labels: Tensor  # [N] int64, index into the model's `categories`
    scores: Tensor  # [N] float32 in [0, 1]
    masks: Tensor | list[RLE] | None = None  # [N, height, width] bool, or N RLEs (all else is then on the CPU), or none

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Instances:
        """A subset, by boolean mask, indices or slice."""
        masks = self.masks
        if isinstance(masks, list):
            masks = [masks[i] for i in torch.arange(len(masks))[index].tolist()]
        elif masks is not None:
            masks = masks[index]
        return Instances(self.boxes[index], self.labels[index], self.scores[index], masks)

    def above(self, threshold: Threshold) -> Instances:
        """Those that score at least `threshold`."""
        lowest = self.scores.new_tensor(threshold)
        return self[self.scores >= (lowest[self.labels] if lowest.ndim else lowest)]


class PanopticSegmentation(NamedTuple):
    """Things and stuff of one image, in its own pixels; no two segments overlap."""

    segment_map: Tensor  # [height, width] int32: n + 1 where segment n is, 0 where there is none
    labels: Tensor  # [N] int64, index into the model's `categories`
    scores: Tensor  # [N] float32 in [0, 1], the query's class probability

    def above(self, threshold: Threshold) -> NoReturn:
        """ConfigError: a segment that goes leaves its pixels to others."""
        raise ConfigError("threshold: is by class only for objects (task=detection, task=instance); give one number")


class SemanticSegmentation(NamedTuple):
    """The class of every pixel of one image."""

    label_map: Tensor  # [height, width] int32, index into the model's `categories`; -1 where a ground truth says none

    def above(self, threshold: Threshold) -> NoReturn:
        """ConfigError: every pixel has a class."""
        raise ConfigError("threshold: every pixel has a class, whatever its score; leave it out")


Prediction = Instances | PanopticSegmentation | SemanticSegmentation  # what a model gives for an image, by its task


@dataclass(frozen=True, kw_only=True)
class PanopticOptions(Config):
    """What a segment of a panoptic segmentation needs (MaskFormer, Sec. 3.4)."""

    kind: ClassVar[str] = ""
    score_threshold: Fraction = 0.8  # class probabilities must be above it
    overlap_threshold: Fraction = 0.8  # the part of its own mask that a query must keep


class DecodeOptions(NamedTuple):
    """What turns outputs into predictions beside the outputs; each task's decoder reads what concerns it."""

    threshold: float | None = None  # lowest score to keep; None: 0.5, or for panoptic segments that of `panoptic`
    top_k: int = 100  # the most objects of an image
    masks: Literal["bool", "rle"] = "bool"  # of instances
    is_thing: tuple[bool, ...] = ()  # per class
    panoptic: PanopticOptions = PanopticOptions()

    @property
    def lowest_score(self) -> float:
        """Of objects."""
        return SHOWN_FROM_SCORE if self.threshold is None else self.threshold


SHOWN_FROM_SCORE = 0.5  # objects that score less are kept in results, but not shown unless asked for


class PlacedMask(NamedTuple):
    """One object's mask: the window around it in a grid whose other cells are False. Most objects are small."""

    top: int  # cells
    left: int
    cells: NDArray[np.bool_]  # [h, w], with a True one at each of its four edges; [0, 0] of an empty mask


class Sample(NamedTuple):
    """One image out of the data set, transformed but not yet padded into a `Batch`."""

    image: Tensor  # [3, h, w] uint8 RGB
    target: Target  # without masks
    masks: tuple[PlacedMask, ...] | None  # N, of the target's objects; None where the head needs none
    info: ImageInfo


class Pyramid(NamedTuple):
    """The maps that a head is made for; necks follow where their own options say `auto`."""

    extra_levels: Literal["none", "pool", "p6p7", "p6p7_on_c5"] = "none"  # maps coarser than the backbone's
    finest_stride: int = 1  # finer maps are not read


class BackboneConfig(Config):
    """Base of backbone configs. `build()` gives a `Backbone` (`vision_stack.backbones.base`).

    Derive a frozen dataclass from it, or one with stages to choose from `BackboneConfigMixin`.
    """

    kind: ClassVar[str] = "backbone"

    def with_tail(self, tail: TailSpec) -> BackboneConfig:
        """The config of a backbone that leaves its last blocks to the head; ConfigError where it has no such blocks."""
        raise ConfigError(
            f"backbone: {self.type} has no last blocks to leave to the head; choose a plain ViT: "
            "backbone=dinov2_small, dinov3_small, vit_small, eva02_small, ..."
        )

    def build(self) -> Any:
        """The backbone, with random weights."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NeckConfig(Config):
    """Base of neck configs. `build()` gives a module with `out_specs` that maps `Features` to a tuple of maps."""

    kind: ClassVar[str] = "neck"

    def fitted(self, pyramid: Pyramid) -> NeckConfig:
        """With options that say `auto` as a head's pyramid has them."""
        return self

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> Any:
        """The neck for maps of `in_specs`; ConfigError where it cannot take them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """Base of head configs. `build()` gives a `Head` (`vision_stack.heads.base`)."""

    kind: ClassVar[str] = "head"
    tasks: ClassVar[frozenset[Task]]  # that the head can be trained for
    needs_masks: ClassVar[bool] = True  # in targets, whatever the task
    mask_strides: ClassVar[tuple[int, ...]] = (1, 4)  # of targets' masks that its losses take; none without masks
    limit: ClassVar[str] = "num_queries"  # the option by which the number of objects in an image is limited

    @property
    def pyramid(self) -> Pyramid:
        """The maps that the head is made for, which are built unless the neck's options say otherwise."""
        return Pyramid()

    @property
    def tail(self) -> TailSpec | None:
        """The last blocks of a plain transformer that the head runs itself."""
        return None

    @property
    def reads_masks(self) -> bool:
        """Whether targets must have masks with these options."""
        return self.needs_masks

    def fitted(self, task: Task) -> HeadConfig:
        """With options that say `auto` as the task has them."""
        return self

    def serves(self, task: Task) -> bool:
        """Whether the head can be trained for the task with these options."""
        return task in self.tasks

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> Any:
        """The head for maps of `in_specs`; ConfigError where a stride that it needs is not among them."""
        raise NotImplementedError

    def check_task(self, task: Task) -> None:
        """ConfigError unless the head can be trained for the task; the line says which heads can."""
        if task not in self.tasks:
            fitting = heads_for(task)
            remedy = f", or {' or '.join(fitting)}" if fitting else ""
            own = " or ".join(f"task={name}" for name in sorted(self.tasks))
            raise ConfigError(f"task: head={self.type} cannot be trained for {task}; use {own}{remedy}")

    def check_mask_stride(self, stride: int) -> None:
        """ConfigError where the head's losses do not take targets with masks of that stride."""
        if stride != 1 and not self.reads_masks:
            raise ConfigError(f"data.mask_stride: head={self.type} learns from boxes, not from masks; leave it out")
        if stride not in self.mask_strides:
            raise ConfigError(
                f"data.mask_stride: head={self.type} reads masks in finer detail than {stride} pixels; say "
                "data.mask_stride=1"
            )


def heads_for(task: Task, *, boxes: bool = False) -> list[str]:
    """Heads that can be trained for a task, as options; with `boxes`, those that need no masks for it."""
    known = ((name, cls) for name, cls in registered("head").items() if issubclass(cls, HeadConfig))
    return [f"head={name}" for name, cls in known if task in cls.tasks and not (boxes and cls.needs_masks)]
