"""What RT-DETR's head and those that follow it share: queries start as the encoder's best cells (Zhao et al. 2023,
Sec. 4.3); in training there are also noised objects among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vision_stack.config import Fraction, NonNegative, Range
from vision_stack.heads.boxes import precise
from vision_stack.heads.detr import (
    DETRHead,
    DETRHeadConfig,
    Memory,
    box_mlp,
    proposal_logits,
    start_at_prior,
    take,
)
from vision_stack.layers.conv import conv_norm_act
from vision_stack.layers.mlp import MLP
from vision_stack.losses.box_criterion import BoxCriterionConfig
from vision_stack.losses.box_matcher import box_objects
from vision_stack.losses.denoising import attention_between, noised_queries
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import FeatureSpec, Target


def _varifocal() -> BoxCriterionConfig:
    return BoxCriterionConfig(class_loss="varifocal", class_weight=1.0)


@dataclass(frozen=True, kw_only=True)
class QuerySelectionConfig(DETRHeadConfig):
    """Base of configs of heads that derive from `QuerySelectionHead`."""

    dropout: Fraction = 0.0
    loss: BoxCriterionConfig = field(default_factory=_varifocal)
    num_denoising: Annotated[int, Range(0, 1000)] = 100  # about how many noised objects an image has in training
    label_noise_ratio: Fraction = 0.5  # twice the share of them that get a random class
    box_noise_scale: NonNegative = 1.0  # how far their corners are moved, in halves of a side


class Queries(NamedTuple):
    """What a decoder starts from; D noised objects, if there are any, come before the Q chosen cells."""

    x: Tensor  # [B, D + Q, C]
    reference: Tensor  # [B, D + Q, 4] their first boxes
    attend: Tensor | None  # [D + Q, D + Q] bool, who sees whom; None: all see all
    num_noised: int  # D
    encoder_logits: Tensor  # [B, Q, K] of the chosen cells
    encoder_boxes: Tensor  # [B, Q, 4]


class QuerySelectionHead(DETRHead):
    """Base of heads whose decoders start from the best cells: subclasses add layers and `forward`."""

    class_layers: ClassVar[tuple[str, ...]] = ("class_embed.", "encoder_class.", "denoising_class_embed.")

    def __init__(self, config: QuerySelectionConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim = config.hidden_dim
        self.config = config
        self.query_position = self.position_mlp(dim)
        self.encoder_output = nn.Linear(dim, dim)
        self.encoder_norm = nn.LayerNorm(dim)
        self.encoder_class = start_at_prior(nn.Linear(dim, num_classes))
        self.encoder_bbox = box_mlp(dim)
        for linear in (self.encoder_output, *self.query_position.layers):
            nn.init.xavier_uniform_(linear.weight)
        # Only used in training; the last row is for images with fewer objects than others, and stays zero.
        self.denoising_class_embed = (
            nn.Embedding(num_classes + 1, dim, padding_idx=num_classes) if config.num_denoising else None
        )

    @staticmethod
    def projection(in_channels: int, dim: int) -> nn.Module:
        return conv_norm_act(in_channels, dim, 1)

    @staticmethod
    def position_mlp(dim: int) -> MLP:
        """Makes positions of boxes."""
        return MLP(4, 2 * dim, dim, num_layers=2)

    def queries(self, memory: Memory, image_sizes: Tensor, targets: Sequence[Target] | None) -> Queries:
        """The best cells, Q of them, which is less than `num_queries` where there are fewer; while training noised
        objects, too."""
        x, logits, boxes = self._best_cells(memory)
        chosen = Queries(x.detach(), boxes.detach(), None, 0, logits, boxes)
        if self.denoising_class_embed is None or not self.training or targets is None:
            return chosen
        noised = noised_queries(
            box_objects(targets, image_sizes, image_sizes.dtype),
            self.num_classes,
            num_denoising=self.config.num_denoising,
            label_noise=self.config.label_noise_ratio,
            box_noise=self.config.box_noise_scale,
        )
        return chosen._replace(
            x=torch.cat([self.denoising_class_embed(noised.labels), chosen.x], dim=1),
            reference=torch.cat([noised.boxes, chosen.reference], dim=1),
            attend=attention_between(noised, x.shape[1]),
            num_noised=noised.labels.shape[1],
        )

    def outputs(self, queries: Queries, logits: Tensor, boxes: Tensor, image_sizes: Tensor) -> BoxOutputs:
        """Logits [L, B, D + Q, K] and boxes [L, B, D + Q, 4] of all layers -> outputs of the cells, and while training
        of their proposals and of noised objects."""
        sizes = [queries.num_noised, logits.shape[2] - queries.num_noised]
        (noised_logits, logits), (noised_boxes, boxes) = logits.split(sizes, 2), boxes.split(sizes, 2)
        outputs = BoxOutputs(logits[-1], boxes[-1], logits[:-1], boxes[:-1], image_sizes)
        if self.training:
            outputs = outputs._replace(encoder_logits=queries.encoder_logits, encoder_boxes=queries.encoder_boxes)
        if queries.num_noised:
            outputs = outputs._replace(denoising_logits=noised_logits, denoising_boxes=noised_boxes)
        return outputs

    def _best_cells(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, Q, C], class logits [B, Q, K] and boxes [B, Q, 4] of the cells that score best."""
        anchors, usable = proposal_logits(memory)
        x = self.encoder_norm(self.encoder_output(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        logits = self.encoder_class(x)
        chosen = logits.amax(2).topk(min(self.max_objects, x.shape[1])).indices
        x = take(x, chosen)
        boxes = (precise(self.encoder_bbox(x)) + take(anchors.expand(x.shape[0], -1, -1), chosen)).sigmoid()
        return x, take(logits, chosen), boxes
