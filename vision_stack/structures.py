"""The types that flow between the parts.

Legend used everywhere: B images of a batch, N objects of one image, Q queries, K classes, C channels, L earlier
decoder layers, H x W pixels of the padded batch. Boxes are (x0, y0, x1, y1) in pixels; class labels are 0..K-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from vision_stack.config import Config

Task = Literal["instance", "semantic", "panoptic"]


class FeatureSpec(NamedTuple):
    """What a feature map is: declared by whoever makes it, checked by whoever takes it, before any tensor exists."""

    name: str  # "stage1", "p4", "mask_features", ...
    channels: int
    stride: int  # the map of an H x W image is ceil(H / stride) x ceil(W / stride)


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
    """The objects of one image, in pixels of the resized image; masks are padded to the batch's size.

    For panoptic segmentation these are its segments, things and stuff; for semantic segmentation one mask per class.
    """

    labels: Tensor  # [N] int64
    masks: Tensor  # [N, H, W] bool (tv_tensors.Mask)
    boxes: Tensor  # [N, 4] float32 (tv_tensors.BoundingBoxes, XYXY)


class Batch(NamedTuple):
    """What the data loader gives. Images are RGB in [0, 1]; `VisionModel.normalize` makes them the network's input."""

    images: Tensor  # [B, 3, H, W] float32, zero where padded
    padding_mask: Tensor  # [B, H, W] bool, True = padding
    targets: tuple[Target, ...]
    infos: tuple[ImageInfo, ...]


class MaskOutputs(NamedTuple):
    """Outputs of a mask-classification head, kept as the factors of the mask product, which are cheap.

    Mask logits are the dot product of a query's `mask_embed` and a pixel's `mask_features`.
    """

    pred_logits: Tensor  # [B, Q, K + 1], the last index is "no object"
    mask_embed: Tensor  # [B, Q, C]
    mask_features: Tensor  # [B, C, ceil(H/4), ceil(W/4)]
    aux_logits: Tensor  # [L, B, Q, K + 1], earlier decoder layers, first to last; L = 0 without deep supervision
    aux_mask_embed: Tensor  # [L, B, Q, C]

    @property
    def pred_masks(self) -> Tensor:
        """Mask logits of the last layer, [B, Q, ceil(H/4), ceil(W/4)]."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed, self.mask_features)

    @property
    def all_logits(self) -> Tensor:
        """Class logits of every supervised layer, the last layer last: [L + 1, B, Q, K + 1]."""
        return torch.cat([self.aux_logits, self.pred_logits[None]])

    @property
    def all_mask_embed(self) -> Tensor:
        """Mask embeddings of every supervised layer, the last layer last: [L + 1, B, Q, C]."""
        return torch.cat([self.aux_mask_embed, self.mask_embed[None]])

    def masks_of(self, image: int, queries: Tensor, layer: int = -1) -> Tensor:
        """Mask logits of chosen queries of one image and layer: queries [M] -> [M, ceil(H/4), ceil(W/4)]."""
        embed = self.all_mask_embed[layer, image, queries]
        return torch.einsum("mc,chw->mhw", embed, self.mask_features[image])


@dataclass(frozen=True)
class Instances:
    """The objects found in one image, best first, in the image's own pixels."""

    boxes: Tensor  # [N, 4] float32, tight around the masks
    labels: Tensor  # [N] int64, index into the model's `categories`
    scores: Tensor  # [N] float32 in [0, 1]
    masks: Tensor  # [N, height, width] bool

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Instances:
        """A subset, by boolean mask, indices or slice."""
        return Instances(self.boxes[index], self.labels[index], self.scores[index], self.masks[index])


class PanopticSegmentation(NamedTuple):
    """Things and stuff of one image, in its own pixels; no two segments overlap."""

    segment_map: Tensor  # [height, width] int32: n + 1 where segment n is, 0 where there is none
    labels: Tensor  # [N] int64, index into the model's `categories`
    scores: Tensor  # [N] float32 in [0, 1], the query's class probability


class SemanticSegmentation(NamedTuple):
    """The class of every pixel of one image."""

    label_map: Tensor  # [height, width] int32, index into the model's `categories`; -1 where a ground truth says none


Segmentation = Instances | PanopticSegmentation | SemanticSegmentation  # what a model gives for an image, by its task


class EncodedInstances(NamedTuple):
    """`Instances` with masks as COCO RLE: what evaluation keeps of an image."""

    boxes: Tensor  # [N, 4] float32, on the CPU
    labels: Tensor  # [N] int64
    scores: Tensor  # [N] float32
    rles: list[dict[str, Any]]  # N x {"size": [height, width], "counts": bytes}


class Sample(NamedTuple):
    """One image out of the data set, transformed but not yet padded into a `Batch`."""

    image: Tensor  # [3, h, w] float32 RGB in [0, 1]
    target: Target  # masks [N, h, w]
    info: ImageInfo


class BackboneConfig(Config):
    """Base of backbone configs. `build()` gives a `Backbone` (`vision_stack.backbones.base`).

    Derive a frozen dataclass from it, or one with stages to choose from `BackboneConfigMixin`.
    """

    kind: ClassVar[str] = "backbone"

    def build(self) -> Any:
        """The backbone, with random weights."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NeckConfig(Config):
    """Base of neck configs. `build()` gives a module with `out_specs`, which maps a tuple of maps to another."""

    kind: ClassVar[str] = "neck"

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> Any:
        """The neck for maps of `in_specs`; ConfigError where it cannot take them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """Base of head configs. `build()` gives a module with `forward`, `compute_loss` and `predict`."""

    kind: ClassVar[str] = "head"

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> Any:
        """The head for maps of `in_specs`; ConfigError where a stride that it needs is not among them."""
        raise NotImplementedError
