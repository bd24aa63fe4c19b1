"""DEIMv2's decoder (Huang et al. 2025), which is D-FINE's with other norms and feed-forward parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from vision_stack.config import register
from vision_stack.heads.d_fine import ACTIVATIONS, DFineHead, DFineHeadConfig, Gate, SamplingDecoderLayer
from vision_stack.layers.mlp import MLP, SwiGLU
from vision_stack.losses.edge_criterion import EdgeCriterionConfig
from vision_stack.structures import FeatureSpec


def _matchability_aware() -> EdgeCriterionConfig:
    return EdgeCriterionConfig(class_loss="mal")


@register("head", "deimv2")
@dataclass(frozen=True, kw_only=True)
class DEIMv2HeadConfig(DFineHeadConfig):
    """Without gates and with a shared predictor of edges it is that of the smallest models.

    The defaults are the authors'. transformers' has ReLU in its MLPs, but for that of positions, and `encoder_output`.
    """

    loss: EdgeCriterionConfig = field(default_factory=_matchability_aware)
    activation: Literal["relu", "silu"] = "silu"  # of all MLPs
    position_activation: Literal["relu", "silu"] | None = None  # of the one that makes positions; None: as of all
    encoder_output: bool = False  # a linear layer and a norm before cells are scored
    use_gateway: bool = True  # gates for what queries read, instead of a residual
    share_bbox_head: bool = False  # one predictor of edges for all layers

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> DEIMv2Head:
        """Raises ConfigError unless there is a map at stride 8 or coarser, and a number of points for each."""
        return DEIMv2Head(self, in_specs, num_classes)


class DEIMv2Head(DFineHead):
    """`DFineHead` with RMSNorm and SwiGLU, whose width is half of `ffn_dim`."""

    def __init__(self, config: DEIMv2HeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        self.query_position.activation = ACTIVATIONS[config.position_activation or config.activation]
        if not config.encoder_output:
            for name in ("encoder_output", "encoder_norm"):
                setattr(self, name, nn.Identity())
        if config.share_bbox_head:
            self.edge_embed = self.edge_embed[:1]

    @staticmethod
    def decoder_layer(config: Any, num_points: Sequence[int]) -> nn.Module:
        dim = config.hidden_dim
        merge = Gate(dim, RMSNorm) if config.use_gateway else ResidualNorm(dim)
        ffn = SwiGLU(dim, config.ffn_dim // 2)
        return SamplingDecoderLayer(dim, config.num_heads, num_points, ffn, merge, config.dropout, RMSNorm)

    @staticmethod
    def position_mlp(dim: int) -> MLP:
        return MLP(4, dim, dim, num_layers=3)


class ResidualNorm(nn.Module):
    """The norm of a sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.norm(one + other)


class RMSNorm(nn.RMSNorm):
    """In the precision of its weights, which autocast would not see to, unlike LayerNorm's."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))
