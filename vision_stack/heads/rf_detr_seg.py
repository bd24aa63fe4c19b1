"""RF-DETR-Seg (Robinson et al. 2025): RF-DETR with a mask for each query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vision_stack.config import Count, Layers, register
from vision_stack.heads.base import Decoder
from vision_stack.heads.boxes import instances
from vision_stack.heads.detr import in_pixels
from vision_stack.heads.rf_detr import RFDETRHead, RFDETRHeadConfig
from vision_stack.layers.deformable import to_maps
from vision_stack.layers.query_masks import QueryMasks
from vision_stack.losses.box_mask_criterion import BoxMaskCriterionConfig
from vision_stack.outputs import MaskedBoxOutputs
from vision_stack.postprocess.instance import query_masks
from vision_stack.structures import DecodeOptions, Features, FeatureSpec, ImageInfo, Instances, Target, Task


def _iou_aware() -> BoxMaskCriterionConfig:
    return BoxMaskCriterionConfig(class_loss="ia_bce", class_weight=1.0)


@register("head", "rf_detr_seg")
@dataclass(frozen=True, kw_only=True)
class RFDETRSegHeadConfig(RFDETRHeadConfig):
    """The defaults are RF-DETR-Seg's small model; nano has 4 layers, too, medium and large 5, the larger ones 6."""

    tasks: ClassVar[frozenset[Task]] = frozenset({"detection", "instance"})
    needs_masks: ClassVar[bool] = True
    num_queries: Count = 100
    num_decoder_layers: Layers = 4
    mask_ffn_dim: Count = 1024  # of the layers between queries and masks
    loss: BoxMaskCriterionConfig = field(default_factory=_iou_aware)

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> RFDETRSegHead:
        """Raises ConfigError unless there is a map at stride 8 or coarser."""
        return RFDETRSegHead(self, in_specs, num_classes)


class RFDETRSegHead(RFDETRHead):
    """Masks are made of the finest map that the queries read."""

    def __init__(self, config: RFDETRSegHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        self.masks = QueryMasks(config.hidden_dim, config.num_decoder_layers, config.mask_ffn_dim)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> MaskedBoxOutputs:  # type: ignore[override]
        """Maps of `in_specs` -> class logits, boxes and masks; while training also those of the chosen proposals."""
        decoded = self.decoded(features)
        finest = to_maps(decoded.memory.tokens, decoded.memory.shapes)[0]
        resized = self.masks.resized(finest, features.size)
        refined = list(self.masks.refined(resized))
        supervised = slice(None) if self.training else slice(-1, None)  # layers
        embed = self.masks.embed(decoded.hidden[supervised])
        maps = torch.stack([self.masks.features(x) for x in refined[supervised]])
        if not self.training:
            return MaskedBoxOutputs(decoded.outputs, embed, maps)
        proposed = self.masks.embed(decoded.proposed)
        return MaskedBoxOutputs(decoded.outputs, embed, maps, proposed, self.masks.with_bias(resized))

    def compute_loss(self, outputs: MaskedBoxOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:  # type: ignore[override]
        """Weighted losses by name; their sum is the total. See `vision_stack.losses.box_mask_criterion`."""
        return self.criterion(outputs, targets, 1 if outputs.encoder_embed is None else self.num_groups)

    def _detection(
        self, outputs: MaskedBoxOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        return self._boxes(outputs.boxes, infos, options)

    def _instances(
        self, outputs: MaskedBoxOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        embed, features = outputs.mask_embed[-1], outputs.mask_features[-1]
        for image, ((found, queries), info) in enumerate(zip(self.ranked(outputs.boxes, options), infos, strict=True)):
            masks = query_masks(features[image], embed[image], queries, info, options.masks)
            yield instances(found, in_pixels(found, info), options, masks)

    decoders: ClassVar[Mapping[Task, Decoder]] = {"detection": _detection, "instance": _instances}
