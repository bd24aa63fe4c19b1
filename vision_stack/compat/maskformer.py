"""`VisionModel` with MaskFormer's parts, under the names of transformers' `MaskFormerForInstanceSegmentation`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vision_stack.backbones.auto import as_backbone_config
from vision_stack.backbones.config_json import decode_backbone
from vision_stack.backbones.names import config_from_pretrained
from vision_stack.config import Config, ConfigError, Count, Fraction, NonNegative
from vision_stack.heads import MaskFormerHeadConfig
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import PixelDecoderConfig
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import BackboneConfig, Category, Target

STRIDES = (4, 8, 16, 32)
DEFAULT_BACKBONE = {  # transformers': Swin-B for 384 pixels
    "model_type": "swin",
    "image_size": 384,
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
    "drop_path_rate": 0.3,
}


@dataclass(frozen=True, kw_only=True)
class MaskFormerDecoderConfig(Config):
    """The transformer decoder, as in transformers' `decoder_config`."""

    num_queries: Count = 100
    d_model: Count = 256
    decoder_layers: Count = 6
    decoder_attention_heads: Count = 8
    decoder_ffn_dim: Count = 2048
    dropout: Fraction = 0.1


@dataclass(frozen=True, kw_only=True)
class MaskFormerConfig(Config):
    """transformers' `MaskFormerConfig`: a backbone, by config or by name, and MaskFormer's own options.

        MaskFormerConfig(backbone_config=ResNetConfig.from_pretrained("microsoft/resnet-50"))
        MaskFormerConfig(backbone="resnet50", use_timm_backbone=True, use_pretrained_backbone=True)

    `use_pretrained_backbone` loads weights or fails, when the model is built. Of a backbone that gives other maps than
    MaskFormer needs, the stages at strides 4, 8, 16, 32 are taken, and a line on stderr says so.
    """

    backbone_config: BackboneConfig | None = None  # or a mapping of ours (`type`) or of transformers (`model_type`)
    backbone: str | None = None  # a directory, a hub id, a timm name or one of ours
    use_timm_backbone: bool = False
    use_pretrained_backbone: bool | str = False
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)  # fields of the config that `backbone` leads to
    fpn_feature_size: Count = 256
    mask_feature_size: Count = 256
    decoder_config: MaskFormerDecoderConfig = field(default_factory=MaskFormerDecoderConfig)
    num_labels: Count = 2
    id2label: dict[int, str] | None = None  # names of the classes 0, 1, ...; then `num_labels` follows
    no_object_weight: NonNegative = 0.1
    cross_entropy_weight: NonNegative = 1.0
    mask_weight: NonNegative = 20.0
    dice_weight: NonNegative = 1.0
    use_auxiliary_loss: bool = False  # every decoder layer is trained; transformers' default is only the last
    output_auxiliary_logits: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone_config", choose_stages(self._backbone()))
        if self.id2label is not None:
            names = {int(key) if str(key).isdigit() else key: name for key, name in dict(self.id2label).items()}
            object.__setattr__(self, "id2label", names)
            object.__setattr__(self, "num_labels", len(names))
        super().__post_init__()

    def check(self) -> None:
        if self.id2label is not None and sorted(self.id2label) != list(range(len(self.id2label))):
            raise ConfigError(f"id2label: the classes are 0 to {len(self.id2label) - 1}, each with a name")

    def _backbone(self) -> Any:
        weights = self.use_pretrained_backbone
        if self.backbone is not None and self.backbone_config is not None:
            raise ConfigError("backbone: given as well as backbone_config; give one of them")
        if self.backbone is not None:
            return config_from_pretrained(
                self.backbone,
                use_timm_backbone=self.use_timm_backbone,
                use_pretrained_backbone=weights,
                **self.backbone_kwargs,
            )
        if self.use_timm_backbone:
            raise ConfigError("use_timm_backbone: needs the name of a timm model as `backbone`")
        given = self.backbone_config
        config = decode_backbone(DEFAULT_BACKBONE) if given is None else as_backbone_config(given)
        if weights is False:
            return config
        if not hasattr(config, "starting_from"):
            raise ConfigError(f"use_pretrained_backbone: {type(config).__name__} has none; leave it out")
        return config if weights is True and config.initial_weights is not False else config.starting_from(weights)

    def to_vision_model_config(self) -> VisionModelConfig:
        """What `VisionModel` is built from."""
        decoder = self.decoder_config
        names = self.id2label or {i: f"LABEL_{i}" for i in range(self.num_labels)}
        assert self.backbone_config is not None
        return VisionModelConfig(
            backbone=self.backbone_config,
            neck=PixelDecoderConfig(channels=self.fpn_feature_size, mask_channels=self.mask_feature_size),
            head=MaskFormerHeadConfig(
                num_queries=decoder.num_queries,
                hidden_dim=decoder.d_model,
                num_decoder_layers=decoder.decoder_layers,
                num_heads=decoder.decoder_attention_heads,
                ffn_dim=decoder.decoder_ffn_dim,
                dropout=decoder.dropout,
                deep_supervision=self.use_auxiliary_loss or self.output_auxiliary_logits,
                loss=MaskCriterionConfig(
                    class_weight=self.cross_entropy_weight,
                    mask_weight=self.mask_weight,
                    dice_weight=self.dice_weight,
                    no_object_weight=self.no_object_weight,
                    class_cost=1.0,  # fixed in transformers
                ),
            ),
            categories=tuple(Category(id=i, name=names[i]) for i in range(self.num_labels)),
        )


def choose_stages(config: Any) -> Any:
    """The config with maps that MaskFormer takes: its own where they start at stride 4 and grow, else 4, 8, 16, 32.

    Raises:
        ConfigError: the backbone has no such pyramid.
    """
    if not hasattr(config, "select"):  # a backbone of somebody's own, with fixed maps
        return config
    strides = [spec.stride for spec in config.out_specs]
    if strides[0] == STRIDES[0] and len(strides) > 1 and all(fine < coarse for fine, coarse in pairwise(strides)):
        return config
    chosen = copy.deepcopy(config)
    try:
        chosen.select(out_strides=STRIDES)
    except ConfigError:
        remedy = "take one that has; for a plain ViT there is VisionModel with neck=simple_pyramid"
        found = sorted({stage.stride for stage in config.stages})
        raise ConfigError(
            f"backbone_config: MaskFormer needs maps at strides {list(STRIDES)}, this backbone has {found}; {remedy}"
        ) from None
    print(
        f"MaskFormer needs maps at strides {list(STRIDES)}: taking {chosen.out_features} in place of "
        f"{config.out_features}",
        file=sys.stderr,
    )
    return chosen


class MaskFormerOutput(NamedTuple):
    """Field names of transformers' `MaskFormerForInstanceSegmentationOutput`."""

    loss: Tensor | None
    class_queries_logits: Tensor  # [B, Q, K + 1], the last index is "no object"
    masks_queries_logits: Tensor  # [B, Q, ceil(H/4), ceil(W/4)]
    auxiliary_logits: tuple[dict[str, Tensor], ...] | None = None  # of earlier decoder layers, first to last


class MaskFormerForInstanceSegmentation(nn.Module):
    """MaskFormer (Cheng et al. 2021) that takes processed pixels; `vision_model` is the `VisionModel` that does it."""

    def __init__(self, config: MaskFormerConfig) -> None:
        """Raises ConfigError where pretrained weights are wanted and cannot be had."""
        super().__init__()
        if not isinstance(config, MaskFormerConfig):
            raise ConfigError(f"config: expected a MaskFormerConfig, got a {type(config).__name__}")
        self.config = config
        self.vision_model = VisionModel(config.to_vision_model_config())

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
    ) -> MaskFormerOutput:
        """Logits of the queries and, with labels, the loss.

        Args:
            pixel_values: [B, 3, H, W], normalised.
            pixel_mask: [B, H, W], 1 = real, 0 = padding.
            mask_labels: of each image the masks of its objects [N, H, W], in 0 and 1.
            class_labels: of each image the classes of its objects [N].

        Raises:
            ValueError: labels that do not go together or do not fit the images; one line.
        """
        padding_mask = None if pixel_mask is None else pixel_mask == 0
        outputs = self.vision_model(pixel_values, padding_mask)
        loss = None
        if mask_labels is not None or class_labels is not None:
            targets = make_targets(pixel_values, mask_labels, class_labels, self.config.num_labels)
            supervised = outputs if self.config.use_auxiliary_loss else _last_layer(outputs)
            loss = torch.stack(list(self.vision_model.head.compute_loss(supervised, targets).values())).sum()
        earlier = _earlier_layers(outputs) if self.config.output_auxiliary_logits else None
        return MaskFormerOutput(loss, outputs.pred_logits, outputs.pred_masks, earlier)


def make_targets(
    pixel_values: Tensor,
    mask_labels: Sequence[Tensor] | None,
    class_labels: Sequence[Tensor] | None,
    num_labels: int,
) -> list[Target]:
    """transformers' labels as our targets, checked; boxes, which MaskFormer does not read, stay zero."""
    if mask_labels is None or class_labels is None:
        raise ValueError("mask_labels: given without class_labels, or the reverse; the loss needs both")
    batch, _, height, width = pixel_values.shape
    if not len(mask_labels) == len(class_labels) == batch:
        raise ValueError(f"mask_labels: of {len(mask_labels)} images, class_labels of {len(class_labels)}, not {batch}")
    targets: list[Target] = []
    for i, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if tuple(masks.shape) != (len(labels), height, width):
            raise ValueError(f"mask_labels[{i}]: {list(masks.shape)} is not {[len(labels), height, width]}")
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_labels):
            raise ValueError(f"class_labels[{i}]: {labels.tolist()} are not all in 0 to {num_labels - 1}")
        device = pixel_values.device
        boxes = torch.zeros(len(labels), 4, device=device)
        targets.append(Target(labels=labels.to(device).long(), masks=masks.to(device) > 0.5, boxes=boxes))
    return targets


def _last_layer(outputs: MaskOutputs) -> MaskOutputs:
    return outputs._replace(aux_logits=outputs.aux_logits[:0], aux_mask_embed=outputs.aux_mask_embed[:0])


def _earlier_layers(outputs: MaskOutputs) -> tuple[dict[str, Tensor], ...]:
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs.aux_mask_embed, outputs.mask_features)
    return tuple(
        {"class_queries_logits": logits, "masks_queries_logits": mask}
        for logits, mask in zip(outputs.aux_logits, masks, strict=True)
    )
