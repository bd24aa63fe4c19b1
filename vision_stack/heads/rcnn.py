"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) from torchvision's components, on any pyramid.

Anchors, proposals, sampling, matching, NMS and losses are torchvision's. Parameters have the names that they have in
torchvision's models, so that published weights fit as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from vision_stack.config import ConfigError, Count, Fraction, Positive, register
from vision_stack.heads.base import Decoder, Head
from vision_stack.postprocess.paste import paste_masks
from vision_stack.structures import (
    DecodeOptions,
    Features,
    FeatureSpec,
    HeadConfig,
    ImageInfo,
    Instances,
    Target,
    Task,
)

ROI_STRIDES = (4, 8, 16, 32)  # of the maps that boxes are pooled from; coarser ones only propose


class RegionOutputs(NamedTuple):
    """While training the losses, otherwise the detections of each image in pixels of the resized image."""

    losses: dict[str, Tensor]
    boxes: list[Tensor]  # [N, 4]
    labels: list[Tensor]  # [N], 0..K-1
    scores: list[Tensor]  # [N], falling
    masks: list[Tensor]  # [N, M, M] probabilities inside of the boxes; none without a mask branch


@dataclass(frozen=True, kw_only=True)
class FasterRCNNHeadConfig(HeadConfig):
    """Options in torchvision's words. `version: v2` has the layers of torchvision's `_v2` models (Li et al. 2021)."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"detection"})
    needs_masks: ClassVar[bool] = False
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
    mask_channels: Count = 256
    mask_pool_size: Count = 14  # masks are predicted at twice this

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> MaskRCNNHead:
        """Raises ConfigError unless the maps have equal channels and strides from 4 to 32."""
        return MaskRCNNHead(self, in_specs, num_classes)

    def mask_branch(self, channels: int, pooled: list[str], num_classes: int) -> dict[str, nn.Module]:
        norm = nn.BatchNorm2d if self.version == "v2" else None
        return {
            "mask_roi_pool": MultiScaleRoIAlign(pooled, self.mask_pool_size, sampling_ratio=2),
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
            ignored = target.get("ignored")
            if ignored is not None and len(ignored):
                label[(label == 0) & (covered(anchor, ignored) >= 0.5)] = -1
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if not any((label >= 0).any() for label in labels):  # a mean over no anchors
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)


class RegionHeads(RoIHeads):
    """torchvision's, but no proposal in an ignored region counts as background."""

    _ignored: Sequence[Tensor | None] = ()
    _num_sampled = 0

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, proposal, ignored in zip(labels, proposals, self._ignored, strict=True):
            if ignored is not None and len(ignored):
                label[(label == 0) & (covered(proposal, ignored) >= 0.5)] = -1
        return matched, labels

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Any, targets: Any = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        found, losses = super().forward(features, proposals, image_shapes, targets)
        if self.training and not self._num_sampled:  # means over no proposals
            nothing = next(iter(features.values())).sum() * 0
            losses = {name: nothing for name in losses}
        return found, losses

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        samples = super().select_training_samples(proposals, targets)
        self._num_sampled = sum(map(len, samples[0]))
        return samples


class FasterRCNNHead(Head[RegionOutputs]):
    """Proposals from all maps, boxes (and masks) from those at strides 4 to 32."""

    def __init__(self, config: FasterRCNNHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__()
        channels = _checked(config.type, in_specs)
        self.num_classes = num_classes
        self.max_objects = config.box_detections_per_img
        self.names = [str(i) if s.stride <= max(ROI_STRIDES) else f"extra{i}" for i, s in enumerate(in_specs)]
        pooled = [name for name in self.names if name.isdigit()]
        second = config.version == "v2"
        sizes = tuple((int(config.anchor_scale * spec.stride),) for spec in in_specs)
        anchors = AnchorGenerator(sizes, (tuple(config.aspect_ratios),) * len(sizes))
        self.rpn = ProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2 if second else 1),
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
            MultiScaleRoIAlign(pooled, size, sampling_ratio=2),
            box_head,
            FastRCNNPredictor(width, num_classes + 1),
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
        """Maps of `in_specs` -> losses if there are targets, otherwise detections."""
        maps = dict(zip(self.names, features.maps, strict=True))
        sizes = [tuple(size) for size in features.image_sizes]
        images = ImageList(torch.empty(len(sizes), 3, *features.size, device="meta"), sizes)  # read for its shape
        theirs = None if targets is None else [_target(t, with_masks=self.roi_heads.has_mask()) for t in targets]
        self.roi_heads._ignored = [t.get("ignored") for t in targets or ()]
        proposals, proposal_losses = self.rpn(images, maps, theirs)
        found, losses = self.roi_heads(maps, proposals, sizes, theirs)
        if self.training and targets is not None:
            return RegionOutputs({**proposal_losses, **losses}, [], [], [], [])
        columns = ([f[key] for f in found] for key in ("boxes", "labels", "scores"))
        boxes, labels, scores = columns
        return RegionOutputs(
            {}, boxes, [label - 1 for label in labels], scores, [f["masks"][:, 0] for f in found if "masks" in f]
        )

    def compute_loss(self, outputs: RegionOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses of proposals, boxes, classes and masks, all of weight 1."""
        return outputs.losses

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

    def _boxes(self, outputs: RegionOutputs, infos: Sequence[ImageInfo], options: DecodeOptions) -> Iterator[Instances]:
        return self._decode(outputs, infos, options, with_masks=False)

    def _decode(
        self, outputs: RegionOutputs, infos: Sequence[ImageInfo], options: DecodeOptions, *, with_masks: bool
    ) -> Iterator[Instances]:
        for image, info in enumerate(infos):
            keep = outputs.scores[image] >= options.lowest_score
            boxes, labels, scores = (column[image][keep][: options.top_k] for column in outputs[1:4])
            (height, width), (input_height, input_width) = info.size, info.input_size
            factors = boxes.new_tensor([width / input_width, height / input_height] * 2)
            boxes = boxes.float() * factors
            masks: Any = None
            if with_masks:
                masks = paste_masks(
                    outputs.masks[image][keep][: options.top_k].float(), boxes, info.size, options.masks
                )
            if options.masks == "rle":
                boxes, labels, scores = boxes.cpu(), labels.cpu(), scores.cpu()
            yield Instances(boxes, labels, scores.float(), masks)

    decoders: ClassVar[Mapping[Task, Decoder]] = {"detection": _boxes}


class MaskRCNNHead(FasterRCNNHead):
    """With the mask branch that its config asks for."""

    def _instances(
        self, outputs: RegionOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        return self._decode(outputs, infos, options, with_masks=True)

    decoders: ClassVar[Mapping[Task, Decoder]] = {**FasterRCNNHead.decoders, "instance": _instances}


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """The largest share of each box [N, 4] that lies in one of the regions [M, 4]: [N]."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    corner, end = torch.maximum(boxes[:, None, :2], regions[:, :2]), torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    common = (end - corner).clamp(min=0).prod(2)  # [N, M]
    return (common / area[:, None].clamp(min=1e-6)).amax(1)


def _target(target: Target, *, with_masks: bool) -> dict[str, Tensor]:
    """A target as torchvision's detectors take it: class 0 is the background."""
    theirs = {"boxes": target["boxes"].float().as_subclass(Tensor), "labels": target["labels"] + 1}
    if with_masks:
        theirs["masks"] = target["masks"].as_subclass(Tensor).to(torch.uint8)
    if "ignored" in target:
        theirs["ignored"] = target["ignored"]
    return theirs


def _checked(head: str, in_specs: tuple[FeatureSpec, ...]) -> int:
    """Channels of the maps.

    Raises:
        ConfigError: they differ, or strides are missing; the line says which neck fits.
    """
    strides = tuple(spec.stride for spec in in_specs)
    channels = {spec.channels for spec in in_specs}
    if len(channels) > 1 or not set(ROI_STRIDES) <= set(strides):
        raise ConfigError(
            f"head: {head} needs maps of equal channels at strides {', '.join(map(str, ROI_STRIDES))}, got "
            f"{', '.join(f'{s.channels} at {s.stride}' for s in in_specs)}; use neck=fpn, or neck=simple_pyramid with "
            "a plain ViT"
        )
    return channels.pop()
