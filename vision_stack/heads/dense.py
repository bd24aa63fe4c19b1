"""RetinaNet (Lin et al. 2017b) and FCOS (Tian et al. 2019) from torchvision's components, on any pyramid.

Anchors, convolutions, matching and losses are torchvision's. Parameters have the names that they have in torchvision's
models, so that published weights fit as they are, but for their rows of the background, a class that is never found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos, retinanet
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder, Matcher
from torchvision.ops import clip_boxes_to_image

from vision_stack.config import ConfigError, Count, Fraction, Positive, register
from vision_stack.heads.boxes import (
    Anchors,
    BoxHead,
    BoxHeadConfig,
    Candidates,
    check_pyramid,
    image_list,
    precise,
)
from vision_stack.ops.boxes import is_ignored
from vision_stack.structures import Features, FeatureSpec, Pyramid, Target

STRIDES = (8, 16, 32)  # that there must be; coarser maps are read, too
GROUPS = 32  # of group norm
SURELY_NOT = -1e4  # a logit that no loss and no gradient comes from


class DenseOutputs(NamedTuple):
    """What is predicted at each of the N anchors of all maps, in float32 at least."""

    cls_logits: Tensor  # [B, N, K]
    bbox_regression: Tensor  # [B, N, 4]
    bbox_ctrness: Tensor | None  # [B, N, 1]
    anchors: Tensor  # [N, 4] in pixels of the padded batch
    counts: tuple[int, ...]  # anchors of each map
    sizes: tuple[tuple[int, int], ...]  # (height, width) of each image before padding


@dataclass(frozen=True, kw_only=True)
class DenseHeadConfig(BoxHeadConfig):
    """Options that both heads have, in torchvision's words."""

    score_thresh: Fraction = 0.05
    nms_thresh: Fraction = 0.5
    topk_candidates: Count = 1000  # boxes of each map that enter suppression
    detections_per_img: Count = 100

    @property
    def pyramid(self) -> Pyramid:
        return Pyramid(extra_levels="p6p7", finest_stride=STRIDES[0])


@register("head", "retinanet")
@dataclass(frozen=True, kw_only=True)
class RetinaNetHeadConfig(DenseHeadConfig):
    """`version: v2` has the norms and the box loss of torchvision's `retinanet_resnet50_fpn_v2`."""

    version: Literal["v1", "v2"] = "v1"
    detections_per_img: Count = 300
    anchor_scale: Positive = 4.0  # side of the smallest anchor, as a multiple of its map's stride
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    fg_iou_thresh: Fraction = 0.5
    bg_iou_thresh: Fraction = 0.4

    @property
    def pyramid(self) -> Pyramid:
        return super().pyramid._replace(extra_levels="p6p7_on_c5" if self.version == "v2" else "p6p7")

    def check(self) -> None:
        if self.bg_iou_thresh > self.fg_iou_thresh:
            raise ConfigError(
                f"bg_iou_thresh: {self.bg_iou_thresh:g} is above fg_iou_thresh, {self.fg_iou_thresh:g}; lower it"
            )

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> RetinaNetHead:
        """Raises ConfigError unless the maps have equal channels and strides from 8 to 32."""
        return RetinaNetHead(self, in_specs, num_classes)


@register("head", "fcos")
@dataclass(frozen=True, kw_only=True)
class FCOSHeadConfig(DenseHeadConfig):
    """As torchvision's `fcos_resnet50_fpn`: a box for each cell of the maps, with centerness."""

    score_thresh: Fraction = 0.2
    nms_thresh: Fraction = 0.6
    num_convs: Count = 4
    center_sampling_radius: Positive = 1.5  # cells around an object's centre that find it

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> FCOSHead:
        """Raises ConfigError unless the maps have equal channels and strides from 8 to 32."""
        return FCOSHead(self, in_specs, num_classes)


class DenseHead(BoxHead[DenseOutputs]):
    """What both do with what torchvision's convolutions give."""

    head: nn.Module
    anchor_generator: Anchors
    box_coder: Any

    def __init__(self, config: DenseHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__()
        self.channels = check_pyramid(config.type, in_specs, STRIDES)
        self.num_classes = num_classes
        self.max_objects = config.detections_per_img
        self.suppression = config.suppression(config.nms_thresh)
        self.score_thresh, self.topk_candidates = config.score_thresh, config.topk_candidates
        self.read = [index for index, spec in enumerate(in_specs) if spec.stride >= STRIDES[0]]
        self.strides = [in_specs[index].stride for index in self.read]

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DenseOutputs:
        """Maps of `in_specs` -> logits and boxes at all anchors."""
        maps = [features.maps[index] for index in self.read]
        found = {name: precise(value) for name, value in self.head(maps).items()}
        anchors = self.anchor_generator(image_list(features), maps)[0]
        each = self.anchor_generator.num_anchors_per_location()[0]
        counts = tuple(each * x.shape[-2] * x.shape[-1] for x in maps)
        return DenseOutputs(
            found["cls_logits"],
            found["bbox_regression"],
            found.get("bbox_ctrness"),
            anchors,
            counts,
            tuple(features.image_sizes),
        )

    def compute_loss(self, outputs: DenseOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Focal loss of the classes, and that of the boxes; for FCOS also of the centerness. All of weight 1."""
        theirs = [_target(target, outputs.anchors.dtype) for target in targets]
        predicted = {"cls_logits": outputs.cls_logits, "bbox_regression": outputs.bbox_regression}
        if outputs.bbox_ctrness is not None:
            predicted["bbox_ctrness"] = outputs.bbox_ctrness
        losses = self.losses(theirs, predicted, [outputs.anchors] * len(targets), outputs.counts)
        return {f"loss_{name}": loss for name, loss in losses.items()}

    def losses(self, targets: Any, predicted: dict[str, Tensor], anchors: list[Tensor], counts: Any) -> Any:
        """torchvision's."""
        raise NotImplementedError

    def candidates(self, outputs: DenseOutputs) -> list[Candidates]:
        """Of each map the best boxes above the lowest score."""
        columns: list[Tensor | None] = [outputs.cls_logits, outputs.bbox_regression, outputs.bbox_ctrness]
        levels = [[None] * len(outputs.counts) if c is None else c.split(outputs.counts, 1) for c in columns]
        anchors = outputs.anchors.split(outputs.counts)
        found = []
        for image, size in enumerate(outputs.sizes):
            parts = [
                self._best(logits[image], deltas[image], None if centers is None else centers[image], level)
                for logits, deltas, centers, level in zip(*levels, anchors, strict=True)
            ]
            boxes, labels, scores = (torch.cat(column) for column in zip(*parts, strict=True))
            found.append(Candidates(clip_boxes_to_image(boxes, size), labels, scores))
        return found

    def _best(self, logits: Tensor, deltas: Tensor, centers: Tensor | None, anchors: Tensor) -> Candidates:
        """Of one map and image: logits [n, K], deltas [n, 4], centers [n, 1], anchors [n, 4]."""
        flat = logits.flatten()
        floor = self.score_thresh if centers is None else self.score_thresh**2
        # The score is at most the square root of the class's probability: few entries need more than a comparison.
        index = torch.where(flat >= _logit(floor))[0]
        scores = flat[index].sigmoid()
        anchor = torch.div(index, self.num_classes, rounding_mode="floor")
        if centers is not None:
            scores = torch.sqrt(scores * centers[anchor, 0].sigmoid())
        above = torch.where(scores > self.score_thresh)[0]
        scores, order = scores[above].topk(min(self.topk_candidates, len(above)))
        above = above[order]
        anchor = anchor[above]
        boxes = self.box_coder.decode(deltas[anchor], anchors[anchor])
        return Candidates(boxes, index[above] % self.num_classes, scores)

    def class_rows(self) -> dict[str, Tensor]:
        """A row per class for each anchor of a cell, anchor by anchor; there is none for the background."""
        each = self.anchor_generator.num_anchors_per_location()[0]
        rows = torch.arange(self.num_classes)[:, None] + self.num_classes * torch.arange(each)
        return {f"head.classification_head.cls_logits.{kind}": rows for kind in ("weight", "bias")}


class _RetinaNetLayers(retinanet.RetinaNetHead):
    def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> Any:
        heard = _without_ignored(targets, head_outputs, anchors, matched_idxs)
        return super().compute_loss(targets, heard, anchors, matched_idxs)


class _FCOSLayers(fcos.FCOSHead):
    def __init__(self, channels: int, num_classes: int, num_convs: int) -> None:
        nn.Module.__init__(self)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.classification_head = fcos.FCOSClassificationHead(
            channels, 1, num_classes, num_convs, norm_layer=_group_norm
        )
        self.regression_head = fcos.FCOSRegressionHead(channels, 1, num_convs, norm_layer=_group_norm)

    def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> Any:
        heard = _without_ignored(targets, head_outputs, anchors, matched_idxs)
        return super().compute_loss(targets, heard, anchors, matched_idxs)


class RetinaNetHead(DenseHead):
    """Nine anchors at each cell, three sizes of three aspect ratios."""

    def __init__(self, config: RetinaNetHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        sides = [config.anchor_scale * stride for stride in self.strides]
        sizes = tuple((int(s), int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in sides)
        self.anchor_generator = Anchors(sizes, (tuple(config.aspect_ratios),) * len(sizes))
        norm = _group_norm if config.version == "v2" else None
        layers = _RetinaNetLayers(self.channels, self.anchor_generator.num_anchors_per_location()[0], num_classes, norm)
        if config.version == "v2":
            layers.regression_head._loss_type = "giou"
        self.head = layers
        self.box_coder = _BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.proposal_matcher = Matcher(config.fg_iou_thresh, config.bg_iou_thresh, allow_low_quality_matches=True)

    def losses(self, targets: Any, predicted: dict[str, Tensor], anchors: list[Tensor], counts: Any) -> Any:
        model: Any = self  # has all that the method reads of a `RetinaNet`
        return retinanet.RetinaNet.compute_loss(model, targets, predicted, anchors)


class FCOSHead(DenseHead):
    """A box at each cell, given as distances to its four sides."""

    def __init__(self, config: FCOSHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        self.anchor_generator = Anchors(tuple((stride,) for stride in self.strides), ((1.0,),) * len(self.strides))
        self.head = _FCOSLayers(self.channels, num_classes, config.num_convs)
        self.box_coder = self.head.box_coder
        self.center_sampling_radius = config.center_sampling_radius

    def losses(self, targets: Any, predicted: dict[str, Tensor], anchors: list[Tensor], counts: Any) -> Any:
        model: Any = self  # has all that the method reads of an `FCOS`
        return fcos.FCOS.compute_loss(model, targets, predicted, anchors, counts)


class _BoxCoder(BoxCoder):
    """With the call of `BoxLinearCoder`."""

    def decode(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return self.decode_single(rel_codes, boxes)


def _without_ignored(
    targets: Sequence[dict[str, Tensor]],
    predicted: dict[str, Tensor],
    anchors: Sequence[Tensor],
    matched: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Predictions in which no anchor of the background that lies in an ignored region has a loss."""
    masks = [is_ignored(a, t) for a, t in zip(anchors, targets, strict=True)]
    if all(mask is None for mask in masks):
        return predicted
    rows = [
        torch.zeros_like(m, dtype=torch.bool) if mask is None else mask & (m == Matcher.BELOW_LOW_THRESHOLD)
        for mask, m in zip(masks, matched, strict=True)
    ]
    return {**predicted, "cls_logits": predicted["cls_logits"].masked_fill(torch.stack(rows)[..., None], SURELY_NOT)}


def _target(target: Target, dtype: torch.dtype) -> dict[str, Tensor]:
    """A target as torchvision's detectors take it, but that there is no background among the classes."""
    theirs = {"boxes": target["boxes"].as_subclass(Tensor).to(dtype), "labels": target["labels"]}
    if "ignored" in target:
        theirs["ignored"] = target["ignored"].to(dtype)
    return theirs


def _logit(probability: float) -> float:
    """A little below it, so that rounding leaves nothing out."""
    probability = min(max(probability * (1 - 1e-4), 0.0), 1 - 1e-6)
    return math.log(probability / (1 - probability)) if probability else -math.inf


def _group_norm(channels: int) -> nn.GroupNorm:
    """torchvision's 32 groups, or the most that divide the channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
