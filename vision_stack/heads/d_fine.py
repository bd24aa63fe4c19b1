"""D-FINE's decoder (Peng et al. 2024): each layer refines the distribution of where a box's edges are (Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Positive, register
from vision_stack.heads.boxes import precise
from vision_stack.heads.detr import Memory, box_mlp, image_sizes_of, refined, start_at_prior
from vision_stack.heads.query_selection import Queries, QuerySelectionConfig, QuerySelectionHead
from vision_stack.layers.attention import MultiHeadAttention
from vision_stack.layers.deformable import DeformableSampling, Padding, Shapes, on_each_map
from vision_stack.layers.mlp import MLP, FeedForward
from vision_stack.losses.edge_criterion import EdgeCriterionConfig
from vision_stack.ops.box_edges import NUM_BINS, bin_values, move_edges
from vision_stack.outputs import BoxOutputs, EdgeDistributions
from vision_stack.structures import Features, FeatureSpec, Target

PUBLISHED_POINTS = {2: (6, 6), 3: (3, 6, 3)}  # by the number of maps
LARGEST_POSITION = 10.0
LARGEST_HALF = 65504.0  # of float16
ACTIVATIONS = {"relu": F.relu, "silu": F.silu}
TOP_BINS = 4  # whose probabilities tell how certain an edge is
QUALITY_DIM = 64


@register("head", "d_fine")
@dataclass(frozen=True, kw_only=True)
class DFineHeadConfig(QuerySelectionConfig):
    """The defaults are those of the published D-FINE-L; S has 3 layers, M has 4, X a `reg_scale` of 8."""

    loss: EdgeCriterionConfig = field(default_factory=EdgeCriterionConfig)
    # That a head of a query reads of each map, the finest first; "auto": 3, 6, 3 of three maps, 6 of two, else 4.
    num_points: Literal["auto"] | tuple[Count, ...] = "auto"
    reg_scale: Positive = 4.0  # how much finer the bins around 0 are than those of large moves
    activation: Literal["relu", "silu"] = "relu"  # of all MLPs; DEIM has "silu"

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> DFineHead:
        """Raises ConfigError unless there is a map at stride 8 or coarser, and a number of points for each."""
        return DFineHead(self, in_specs, num_classes)


class DFineHead(QuerySelectionHead):
    """After the first layer a query has a box, whose edges all layers move; what they say of an edge adds up.

    The first layer predicts a box of its own before, as those of RT-DETR do, which is the first of the outputs' `aux`.
    Differs from paper: none with neck=hybrid_encoder and images of one size; see `RTDETRHead`.
    """

    def __init__(self, config: DFineHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        num_points = config.num_points
        if num_points == "auto":
            num_points = PUBLISHED_POINTS.get(self.num_levels, (4,) * self.num_levels)
        if len(num_points) != self.num_levels:
            raise ConfigError(
                f"head.num_points: {list(num_points)} is of {len(num_points)} maps, but those at strides "
                f"{tuple(in_specs[index].stride for index in self.read)} are read; set head.num_points=auto"
            )
        dim = config.hidden_dim
        self.reg_scale = config.reg_scale
        self.layers = nn.ModuleList(self.decoder_layer(config, num_points) for _ in range(config.num_decoder_layers))
        self.class_embed = nn.ModuleList(start_at_prior(nn.Linear(dim, num_classes)) for _ in self.layers)
        self.first_bbox = box_mlp(dim)
        self.edge_embed = nn.ModuleList(_zero_at_first(MLP(dim, dim, 4 * NUM_BINS, num_layers=3)) for _ in self.layers)
        self.quality = nn.ModuleList(LocationQuality() for _ in self.layers)
        for module in self.modules():
            if isinstance(module, MLP | FeedForward):
                module.activation = ACTIVATIONS[config.activation]

    @staticmethod
    def decoder_layer(config: DFineHeadConfig, num_points: Sequence[int]) -> nn.Module:
        """One layer of the decoder; `num_points` of each map."""
        dim, dropout = config.hidden_dim, config.dropout
        return SamplingDecoderLayer(
            dim, config.num_heads, num_points, FeedForward(dim, config.ffn_dim, dropout), Gate(dim), dropout
        )

    @staticmethod
    def projection(in_channels: int, dim: int) -> nn.Module:
        return nn.Identity() if in_channels == dim else QuerySelectionHead.projection(in_channels, dim)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> BoxOutputs:
        """Maps of `in_specs` -> class logits and boxes; while training also those of the proposals that were taken, of
        noised objects, and the distributions of edges."""
        memory, image_sizes = self.memory(features), image_sizes_of(features)
        queries = self.queries(memory, image_sizes, targets)
        logits, boxes, edges, hidden = self._decode(queries, memory)
        masks = self.mask_factors([x[:, queries.num_noised :] for x in hidden], memory, features)
        outputs = self.outputs(queries, logits, boxes, image_sizes)._replace(masks=masks)
        if self.training:
            noised = queries.num_noised
            outputs = outputs._replace(edges=_of_queries(edges, slice(noised, None)))
            if noised:
                outputs = outputs._replace(denoising_edges=_of_queries(edges, slice(noised)))
        return outputs

    def _decode(self, queries: Queries, memory: Memory) -> tuple[Tensor, Tensor, EdgeDistributions, list[Tensor]]:
        """Logits [1 + L, B, D + Q, K] and boxes [1 + L, B, D + Q, 4], those of the first box first, edges, and the
        queries [B, D + Q, C] after each layer."""
        x, reference = queries.x, queries.reference
        values = bin_values(self.reg_scale, reference)
        all_logits, boxes, all_edges, hidden = [], [], [], []
        for number, layer in enumerate(self.layers):
            places = on_each_map(reference, memory.padding, self.num_levels)
            position = self.query_position(reference.to(x.dtype)).clamp(-LARGEST_POSITION, LARGEST_POSITION)
            before = x.detach()
            x = layer(x, position, memory.tokens, memory.shapes, places, memory.padding, queries.attend)
            hidden.append(x)
            logits = self.class_embed[number](x)
            if number == 0:
                first = refined(precise(self.first_bbox(x)), reference)
                all_logits.append(logits)
                boxes.append(first)
                edges = precise(self.edge_embed[0](x))
            else:
                edge_embed = self.edge_embed[number % len(self.edge_embed)]  # layers may share a single one
                edges = edges + precise(edge_embed(x + before))
            probabilities = edges.unflatten(2, (4, NUM_BINS)).softmax(-1)
            moves = (probabilities * values).sum(-1)  # autocast would make a product of matrices bfloat16
            boxes.append(move_edges(first.detach(), moves))
            all_logits.append(logits + self.quality[number](probabilities.to(x.dtype)))
            all_edges.append(edges)
            reference = boxes[-1].detach()
        distributions = torch.stack(all_edges).unflatten(3, (4, NUM_BINS))
        edges_of = EdgeDistributions(distributions, first.detach(), values)
        return torch.stack(all_logits), torch.stack(boxes), edges_of, hidden


class SamplingDecoderLayer(nn.Module):
    """Self-attention of the queries, sampling of the maps, feed-forward.

    Args:
        num_points: that a head of a query reads, of each map.
        merge: makes one of the queries and of what they read, norm included: D-FINE has gates there (Sec. 4.3).
        norm: made for a width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_points: Sequence[int],
        ffn: nn.Module,
        merge: nn.Module,
        dropout: float,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.self_attn_norm = norm(dim)
        self.cross_attn = DeformableSampling(dim, num_heads, num_points)
        self.merge = merge
        self.ffn = ffn
        self.ffn_norm = norm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        shapes: Shapes,
        reference: Tensor,
        padding: Padding | None,
        attend: Tensor | None,
    ) -> Tensor:
        """See `vision_stack.layers.deformable.DeformableDecoderLayer`."""
        q = x + query_position
        x = self.self_attn_norm(x + self.dropout(self.self_attn(q, q, x, attend)))
        read = self.cross_attn(x + query_position, memory, shapes, reference, padding)
        x = self.merge(x, self.dropout(read))
        # The sum is beyond float16 in some trained models.
        return self.ffn_norm((x + self.dropout(self.ffn(x))).clamp(-LARGEST_HALF, LARGEST_HALF))


class Gate(nn.Module):
    """How much of either input passes is a function of both; a norm after their sum. Starts as the mean."""

    def __init__(self, dim: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.gates = nn.Linear(2 * dim, 2 * dim)
        self.norm = norm(dim)
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        gates = self.gates(torch.cat([one, other], dim=-1)).sigmoid().chunk(2, dim=-1)
        return self.norm(gates[0] * one + gates[1] * other)


class LocationQuality(MLP):
    """What is added to the class logits of a query for how certain its edges are (D-FINE, Sec. 4.3); nothing at first.

    The largest probabilities of each edge and their mean tell (GFLv2, Li et al. 2021, Sec. 3.2).
    """

    def __init__(self) -> None:
        super().__init__(4 * (TOP_BINS + 1), QUALITY_DIM, 1, num_layers=2)
        _zero_at_first(self)

    def forward(self, probabilities: Tensor) -> Tensor:
        """[B, Q, 4, N] -> [B, Q, 1]."""
        top = probabilities.topk(TOP_BINS).values
        return super().forward(torch.cat([top, top.mean(-1, keepdim=True)], dim=-1).flatten(2))


def _zero_at_first(mlp: MLP) -> MLP:
    for parameter in mlp.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return mlp


def _of_queries(edges: EdgeDistributions, chosen: slice) -> EdgeDistributions:
    return edges._replace(logits=edges.logits[:, :, chosen], boxes=edges.boxes[:, chosen])
