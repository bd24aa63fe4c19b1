"""What mask-classification heads share: losses, predictions, and the map that masks are a product with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Fraction
from vision_stack.layers.conv import init_conv
from vision_stack.layers.position_encoding import AddedPositions
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.postprocess.instance import predict_instances
from vision_stack.postprocess.panoptic import predict_panoptic
from vision_stack.postprocess.semantic import predict_semantic
from vision_stack.structures import (
    FeatureSpec,
    HeadConfig,
    ImageInfo,
    Instances,
    MaskOutputs,
    PanopticSegmentation,
    SemanticSegmentation,
    Target,
)

MASK_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig(HeadConfig):
    """Base of configs of heads whose queries each give class logits and an embedding that pixels multiply to a mask."""

    num_queries: Count = 100
    hidden_dim: Count = 256
    mask_dim: Count | None = None  # None: that of `mask_features`, or hidden_dim where the neck has no map of that name
    mask_positions: bool = False  # on the mask features, to tell apart objects that look the same
    num_decoder_layers: Count = 6
    num_heads: Count = 8
    ffn_dim: Count = 2048
    dropout: Fraction = 0.1
    loss: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)

    def check(self) -> None:
        """ConfigError unless attention heads and sine positions fit the width."""
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ConfigError(
                f"hidden_dim: {self.hidden_dim} must be a multiple of 4 and of num_heads ({self.num_heads})"
            )


class MaskHead(nn.Module):
    """Base of heads that give `MaskOutputs`: subclasses add `forward`."""

    def __init__(self, config: MaskHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.mask_index = _find_mask_features(config.type, in_specs)
        self.mask_dim, self.mask_projection = _mask_projection(config, in_specs[self.mask_index])
        self.criterion = config.loss.build(num_classes)
        # Of use in training alone.
        self.pixel_classifier = projection(self.mask_dim, num_classes + 1) if config.loss.semantic_weight else None

    def compute_loss(self, outputs: MaskOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is the total. See `vision_stack.losses.criterion`."""
        if self.pixel_classifier is None:
            return self.criterion(outputs, targets)
        return self.criterion(outputs, targets, self.pixel_classifier(outputs.mask_features))

    def predict(
        self, outputs: MaskOutputs, infos: Sequence[ImageInfo], *, top_k: int = 100, score_threshold: float = 0.0
    ) -> Iterator[Instances]:
        """The objects of one image after the other, in its own pixels. See `vision_stack.postprocess.instance`."""
        return predict_instances(outputs, infos, top_k=top_k, score_threshold=score_threshold)

    def predict_semantic(self, outputs: MaskOutputs, infos: Sequence[ImageInfo]) -> Iterator[SemanticSegmentation]:
        """The class of each pixel of one image after the other. See `vision_stack.postprocess.semantic`."""
        return predict_semantic(outputs, infos)

    def predict_panoptic(
        self,
        outputs: MaskOutputs,
        infos: Sequence[ImageInfo],
        is_thing: Sequence[bool],
        *,
        score_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> Iterator[PanopticSegmentation]:
        """Things and stuff of one image after the other. See `vision_stack.postprocess.panoptic`."""
        return predict_panoptic(
            outputs, infos, is_thing, score_threshold=score_threshold, overlap_threshold=overlap_threshold
        )


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
    if config.mask_positions:
        if dim % 4:
            raise ConfigError(f"head.mask_positions: needs mask features of a multiple of 4 channels, not {dim}")
        parts.append(AddedPositions(dim))
    return dim, parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    return init_conv(nn.Conv2d(in_channels, out_channels, kernel_size=1))
