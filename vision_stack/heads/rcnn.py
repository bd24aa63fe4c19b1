"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) from torchvision's components, on any pyramid.

Anchors, proposals, sampling, matching, NMS and losses are torchvision's. Parameters have the names that they have in
torchvision's models, so that published weights fit as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.poolers import LevelMapper

from vision_stack.config import Count, Fraction, Positive, register
from vision_stack.heads.base import Decoder
from vision_stack.heads.boxes import (
    Anchors,
    BoxHead,
    BoxHeadConfig,
    Candidates,
    check_pyramid,
    image_list,
    in_original_pixels,
    instances,
    precise,
)
from vision_stack.ops.boxes import is_ignored
from vision_stack.ops.roi_align import roi_align
from vision_stack.postprocess.paste import paste_masks
from vision_stack.structures import DecodeOptions, Features, FeatureSpec, ImageInfo, Instances, Pyramid, Target, Task

ROI_STRIDES = (4, 8, 16, 32)  # of the maps that boxes are pooled from; coarser ones only propose
MIN_SIDE = 1e-2  # pixels, of a detection


class RegionOutputs(NamedTuple):
    """While training the losses, otherwise scored boxes, and what masks are made of."""

    losses: dict[str, Tensor]
    candidates: list[Candidates]
    maps: dict[str, Tensor]  # by the names that torchvision's pooling knows
    sizes: list[tuple[int, int]]  # (height, width) of each image before padding


@dataclass(frozen=True, kw_only=True)
class FasterRCNNHeadConfig(BoxHeadConfig):
    """Options in torchvision's words. `version: v2` has the layers of torchvision's `_v2` models (Li et al. 2021)."""

    limit: ClassVar[str] = "box_detections_per_img"
    version: Literal["v1", "v2"] = "v1"
    anchor_scale: Positive = 8.0  # side of an anchor, as a multiple of its map's stride
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    representation_size: Count = 1024  # of the box head's fully connected layers
    rpn_pre_nms_top_n: Count = 1000  # proposals per level that enter NMS; twice as many in training
    rpn_post_nms_top_n: Count = 1000  # proposals per image after it; twice as many in training
    rpn_nms_thresh: Fraction = 0.7
    rpn_batch_size_per_image: Count = 256  # anchors that the proposals' loss reads
    box_batch_size_per_image: Count = 512  # proposals that the box and mask losses read
    box_positive_fraction: Fraction = 0.25
    box_score_thresh: Fraction = 0.05
    box_nms_thresh: Fraction = 0.5
    box_detections_per_img: Count = 100

    @property
    def pyramid(self) -> Pyramid:
        return Pyramid(extra_levels="pool")

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> FasterRCNNHead:
        """Raises ConfigError unless the maps have equal channels and strides from 4 to 32."""
        return FasterRCNNHead(self, in_specs, num_classes)

    def mask_branch(self, channels: int, pooled: list[str], num_classes: int) -> dict[str, nn.Module]:
        """Arguments of torchvision's `RoIHeads`; `num_classes` with the background."""
        return {}


register("head", "faster_rcnn")(FasterRCNNHeadConfig)


@register("head", "mask_rcnn")
@dataclass(frozen=True, kw_only=True)
class MaskRCNNHeadConfig(FasterRCNNHeadConfig):
    """Faster R-CNN with a mask branch."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"detection", "instance"})
    needs_masks: ClassVar[bool] = True
    mask_strides: ClassVar[tuple[int, ...]] = (1,)  # cut out by boxes that may be smaller than a few cells
    mask_channels: Count = 256
    mask_pool_size: Count = 14  # masks are predicted at twice this

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> MaskRCNNHead:
        """Raises ConfigError unless the maps have equal channels and strides from 4 to 32."""
        return MaskRCNNHead(self, in_specs, num_classes)

    def mask_branch(self, channels: int, pooled: list[str], num_classes: int) -> dict[str, nn.Module]:
        norm = nn.BatchNorm2d if self.version == "v2" else None
        return {
            "mask_roi_pool": PrecisePool(pooled, self.mask_pool_size, sampling_ratio=2),
            "mask_head": MaskRCNNHeads(channels, (self.mask_channels,) * 4, 1, norm),
            "mask_predictor": MaskRCNNPredictor(self.mask_channels, self.mask_channels, num_classes),
        }


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's, but no anchor in an ignored region counts as background."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            if (ignored := is_ignored(anchor, target)) is not None:
                label[(label == 0) & ignored] = -1
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if not any((label >= 0).any() for label in labels):  # a mean over no anchors
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)


class PreciseRPNHead(RPNHead):
    """Boxes are decoded in the type of what it gives."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [precise(level) for level in objectness], [precise(level) for level in deltas]


class PrecisePredictor(FastRCNNPredictor):
    """Boxes are decoded in the type of what it gives."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return precise(scores), precise(deltas)


class PrecisePool(MultiScaleRoIAlign):
    """Pools in the type of the boxes, gives that of the maps; on CPUs in this project's own way, which is faster."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        dtype = next(iter(x.values())).dtype
        x = {name: precise(level) for name, level in x.items()}
        if boxes[0].device.type == "cpu" and not torch.compiler.is_compiling():
            return self._pool([x[name] for name in self.featmap_names], boxes).to(dtype)
        pooled: Tensor = super().forward(x, boxes, image_shapes)
        return pooled.to(dtype)

    def _pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        images = torch.cat([torch.full((len(b),), number) for number, b in enumerate(boxes)])
        levels = LevelMapper(*(int(math.log2(s)) for s in (ROI_STRIDES[0], ROI_STRIDES[len(maps) - 1])))(list(boxes))
        flat = torch.cat(list(boxes)).detach()
        size = self.output_size[0]
        pooled, places = [], []
        for level, (x, stride) in enumerate(zip(maps, ROI_STRIDES, strict=False)):
            place = torch.where(levels == level)[0]
            pooled.append(roi_align(x, flat[place], images[place], size, 1 / stride, self.sampling_ratio))
            places.append(place)
        return torch.cat(pooled)[torch.cat(places).argsort()]


class RegionHeads(RoIHeads):
    """torchvision's, but no proposal in an ignored region counts as background; detections and masks in two steps."""

    _targets: Sequence[Mapping[str, Any]] = ()
    _num_sampled = 0

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, proposal, target in zip(labels, proposals, self._targets, strict=True):
            if (ignored := is_ignored(proposal, target)) is not None:
                label[(label == 0) & ignored] = -1
        return matched, labels

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        samples = super().select_training_samples(proposals, targets)
        self._num_sampled = sum(map(len, samples[0]))
        return samples

    def training_losses(
        self, maps: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]], targets: Any
    ) -> dict[str, Tensor]:
        """torchvision's losses; zeros where all proposals are ignored."""
        self._targets = targets
        _, losses = self(maps, proposals, sizes, targets)
        if not self._num_sampled:  # means over no proposals
            losses = dict.fromkeys(losses, next(iter(maps.values())).sum() * 0)
        return losses

    def candidates(
        self, maps: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[Candidates]:
        """As torchvision's `postprocess_detections` before suppression."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals, sizes)))
        counts = [len(p) for p in proposals]
        boxes_of = self.box_coder.decode(deltas, proposals).split(counts)
        scores_of = F.softmax(logits, -1).split(counts)
        found = []
        for all_boxes, all_scores, size in zip(boxes_of, scores_of, sizes, strict=True):
            boxes = clip_boxes_to_image(all_boxes, size)[:, 1:].reshape(-1, 4)  # without the background
            scores = all_scores[:, 1:].reshape(-1)
            keep = torch.where(scores > self.score_thresh)[0]
            keep = keep[remove_small_boxes(boxes[keep], min_size=MIN_SIDE)]
            found.append(Candidates(boxes[keep], keep % (all_scores.shape[1] - 1), scores[keep]))
        return found

    @torch.no_grad()
    def masks(
        self, maps: dict[str, Tensor], found: Sequence[Candidates], sizes: list[tuple[int, int]]
    ) -> Sequence[Tensor]:
        """Probabilities [N, M, M] inside of the boxes of each image."""
        dtype = next(self.mask_head.parameters()).dtype  # autocast, in which the maps were made, may be over
        maps = {name: level.to(dtype) for name, level in maps.items()}
        boxes = [each.boxes for each in found]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, boxes, sizes)))
        return [m[:, 0] for m in maskrcnn_inference(logits.float(), [each.labels + 1 for each in found])]


class FasterRCNNHead(BoxHead[RegionOutputs]):
    """Proposals from all maps, boxes (and masks) from those at strides 4 to 32."""

    def __init__(self, config: FasterRCNNHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__()
        channels = check_pyramid(config.type, in_specs, ROI_STRIDES)
        self.num_classes = num_classes
        self.max_objects = config.box_detections_per_img
        self.suppression = config.suppression(config.box_nms_thresh)
        self.names = [str(i) if s.stride <= max(ROI_STRIDES) else f"extra{i}" for i, s in enumerate(in_specs)]
        pooled = [name for name in self.names if name.isdigit()]
        second = config.version == "v2"
        sizes = tuple((int(config.anchor_scale * spec.stride),) for spec in in_specs)
        anchors = Anchors(sizes, (tuple(config.aspect_ratios),) * len(sizes))
        self.rpn = ProposalNetwork(
            anchors,
            PreciseRPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2 if second else 1),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=config.rpn_batch_size_per_image,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * config.rpn_pre_nms_top_n, "testing": config.rpn_pre_nms_top_n},
            post_nms_top_n={"training": 2 * config.rpn_post_nms_top_n, "testing": config.rpn_post_nms_top_n},
            nms_thresh=config.rpn_nms_thresh,
        )
        size, width = 7, config.representation_size
        box_head: nn.Module = TwoMLPHead(channels * size**2, width)
        if second:
            box_head = FastRCNNConvFCHead((channels, size, size), [256] * 4, [width], norm_layer=nn.BatchNorm2d)
        self.roi_heads = RegionHeads(
            PrecisePool(pooled, size, sampling_ratio=2),
            box_head,
            PrecisePredictor(width, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.box_batch_size_per_image,
            positive_fraction=config.box_positive_fraction,
            bbox_reg_weights=None,
            score_thresh=config.box_score_thresh,
            nms_thresh=config.box_nms_thresh,
            detections_per_img=config.box_detections_per_img,
            **config.mask_branch(channels, pooled, num_classes + 1),
        )

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> RegionOutputs:
        """Maps of `in_specs` -> losses if there are targets, otherwise scored boxes."""
        maps = dict(zip(self.names, features.maps, strict=True))
        images = image_list(features)
        theirs = None if targets is None else [_target(t, maps["0"].dtype, self.roi_heads.has_mask()) for t in targets]
        proposals, losses = self.rpn(images, maps, theirs)
        if self.training and theirs is not None:
            losses |= self.roi_heads.training_losses(maps, proposals, images.image_sizes, theirs)
            return RegionOutputs(losses, [], {}, [])
        found = self.roi_heads.candidates(maps, proposals, images.image_sizes)
        return RegionOutputs({}, found, maps if self.roi_heads.has_mask() else {}, images.image_sizes)

    def compute_loss(self, outputs: RegionOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses of proposals, boxes, classes and masks, all of weight 1."""
        return outputs.losses

    def candidates(self, outputs: RegionOutputs) -> list[Candidates]:
        return outputs.candidates

    def class_rows(self) -> dict[str, Tensor]:
        """Background is the first class."""
        foreground = torch.arange(1, self.num_classes + 1)[:, None]
        rows = {}
        for layer, each in (("box_predictor.cls_score", 1), ("box_predictor.bbox_pred", 4)):
            for kind in ("weight", "bias"):
                rows[f"roi_heads.{layer}.{kind}"] = foreground * each + torch.arange(each)
        if self.roi_heads.has_mask():
            for kind in ("weight", "bias"):
                rows[f"roi_heads.mask_predictor.mask_fcn_logits.{kind}"] = foreground
        return rows


class MaskRCNNHead(FasterRCNNHead):
    """With the mask branch that its config asks for."""

    def _instances(
        self, outputs: RegionOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        detections = self.detections(outputs, options)
        masks_of = self.roi_heads.masks(outputs.maps, detections, outputs.sizes)
        for found, masks, info in zip(detections, masks_of, infos, strict=True):
            boxes = in_original_pixels(found.boxes, info)
            yield instances(found, boxes, options, paste_masks(masks, boxes, info.size, options.masks))

    decoders: ClassVar[Mapping[Task, Decoder]] = {**BoxHead.decoders, "instance": _instances}


def _target(target: Target, dtype: torch.dtype, with_masks: bool) -> dict[str, Tensor]:
    """A target as torchvision's detectors take it, for maps of `dtype`: class 0 is the background."""
    boxes = target["boxes"].as_subclass(Tensor).to(torch.promote_types(dtype, torch.float32))
    theirs = {"boxes": boxes, "labels": target["labels"] + 1}
    if with_masks:
        theirs["masks"] = target["masks"].as_subclass(Tensor).to(torch.uint8)
    if "ignored" in target:
        theirs["ignored"] = target["ignored"].to(boxes.dtype)
    return theirs
