"""What mask-classification heads share: losses, predictions, and the map that masks are a product with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Fraction, Layers
from vision_stack.heads.base import Decoder, Head
from vision_stack.layers.attention import check_width
from vision_stack.layers.conv import init_conv
from vision_stack.layers.position_encoding import AddedPositions
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.outputs import AnyMaskOutputs
from vision_stack.postprocess.instance import encode_instances, predict_boxes, predict_instances
from vision_stack.postprocess.panoptic import predict_panoptic
from vision_stack.postprocess.semantic import predict_semantic
from vision_stack.structures import (
    DecodeOptions,
    FeatureSpec,
    HeadConfig,
    ImageInfo,
    Instances,
    PanopticSegmentation,
    SemanticSegmentation,
    Target,
    Task,
)

MASK_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig(HeadConfig):
    """Base of configs of heads whose queries each give class logits and an embedding that pixels multiply to a mask."""

    tasks: ClassVar[frozenset[Task]] = frozenset(("detection", "instance", "semantic", "panoptic"))
    num_queries: Count = 100
    hidden_dim: Count = 256
    mask_dim: Count | None = None  # None: that of `mask_features`, or hidden_dim where the neck has no map of that name
    mask_feature_pos_embed: bool = False  # on the mask features, to tell apart objects that look the same
    num_decoder_layers: Layers = 6
    num_heads: Count = 8
    ffn_dim: Count = 2048
    dropout: Fraction = 0.1
    loss: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)

    def check(self) -> None:
        """ConfigError unless attention heads and sine positions fit the width."""
        check_width("hidden_dim", self.hidden_dim, self.num_heads)


class QueryMaskHead(Head[AnyMaskOutputs]):
    """Base of heads that give `MaskOutputs` or `LayeredMaskOutputs`: subclasses add `forward`."""

    class_layers: ClassVar[tuple[str, ...]] = ("class_embed.", "pixel_classifier.")

    def __init__(self, loss: MaskCriterionConfig, num_queries: int, num_classes: int, mask_dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.max_objects = num_queries
        self.mask_dim = mask_dim
        self.criterion = loss.build(num_classes)
        # Only used in training.
        self.pixel_classifier = projection(mask_dim, num_classes + 1) if loss.pixel_ce_weight else None

    def compute_loss(self, outputs: AnyMaskOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is the total. See `vision_stack.losses.criterion`."""
        if self.pixel_classifier is None:
            return self.criterion(outputs, targets)
        return self.criterion(outputs, targets, self.pixel_classifier(outputs.mask_features))

    def _instances(
        self, outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        decode = {"bool": predict_instances, "rle": encode_instances}[options.masks]
        return decode(outputs, infos, top_k=options.top_k, score_threshold=options.lowest_score)

    def _boxes(
        self, outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[Instances]:
        return predict_boxes(outputs, infos, top_k=options.top_k, score_threshold=options.lowest_score)

    def _semantic(
        self, outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[SemanticSegmentation]:
        return predict_semantic(outputs, infos)

    def _panoptic(
        self, outputs: AnyMaskOutputs, infos: Sequence[ImageInfo], options: DecodeOptions
    ) -> Iterator[PanopticSegmentation]:
        needed = options.panoptic
        return predict_panoptic(
            outputs,
            infos,
            options.is_thing,
            score_threshold=needed.score_threshold if options.threshold is None else options.threshold,
            overlap_threshold=needed.overlap_threshold,
        )

    decoders: ClassVar[Mapping[Task, Decoder]] = {
        "detection": _boxes,
        "instance": _instances,
        "semantic": _semantic,
        "panoptic": _panoptic,
    }


class MaskHead(QueryMaskHead):
    """Base of heads whose mask features are a map of the neck."""

    def __init__(self, config: MaskHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        mask_index = _find_mask_features(config.type, in_specs)
        mask_dim, mask_projection = _mask_projection(config, in_specs[mask_index])
        super().__init__(config.loss, config.num_queries, num_classes, mask_dim)
        self.mask_index, self.mask_projection = mask_index, mask_projection


def _find_mask_features(head: str, in_specs: tuple[FeatureSpec, ...]) -> int:
    """Index of the map named `mask_features`, else of the one at stride 4.

    Raises:
        ConfigError: no map of stride 4; the line names necks and backbones that give one.
    """
    at_stride = [i for i, spec in enumerate(in_specs) if spec.stride == MASK_STRIDE]
    if not at_stride:
        raise ConfigError(
            f"head: {head} needs a map at stride {MASK_STRIDE}, got {tuple(s.stride for s in in_specs)}; use "
            "neck=pixel_decoder or neck=fpn with a backbone whose maps start at stride 4 (resnet50, swin_tiny, ...), "
            "or neck=simple_pyramid with a plain ViT"
        )
    named = [i for i in at_stride if in_specs[i].name == "mask_features"]
    return (named or at_stride)[0]


def _mask_projection(config: MaskHeadConfig, spec: FeatureSpec) -> tuple[int, nn.Module]:
    """The mask dimension, and what takes the map to it, with positions on it if asked for."""
    named = spec.name == "mask_features"
    if named and config.mask_dim not in (None, spec.channels):
        raise ConfigError(
            f"head.mask_dim: {config.mask_dim} differs from the {spec.channels} channels of the neck's mask_features; "
            "set neck.mask_channels instead and leave head.mask_dim null"
        )
    dim = spec.channels if named else config.mask_dim or config.hidden_dim
    parts: list[nn.Module] = [] if named else [projection(spec.channels, dim)]
    if config.mask_feature_pos_embed:
        if dim % 4:
            raise ConfigError(
                f"head.mask_feature_pos_embed: needs mask features of a multiple of 4 channels, not {dim}"
            )
        parts.append(AddedPositions(dim))
    return dim, parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    return init_conv(nn.Conv2d(in_channels, out_channels, kernel_size=1))
