"""Outputs of heads with queries: what heads, losses and post-processing share."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

T = TypeVar("T")


def exportable(cls: type[T]) -> type[T]:
    """Decorates a NamedTuple that a head returns: `torch.export.save` can write it, and loads where it is imported."""
    _register_namedtuple(cls, serialized_type_name=f"vision_stack.{cls.__name__}")
    return cls


@exportable
class MaskLayer(NamedTuple):
    """What one layer of a mask-classification head predicts, as the factors of the mask product, which are cheap.

    Mask logits are the dot product of a query's `mask_embed` and a pixel's `mask_features`.
    """

    pred_logits: Tensor  # [B, Q, K + 1], the last index is "no object"
    mask_embed: Tensor  # [B, Q, C]
    mask_features: Tensor  # [B, C, ceil(H/4), ceil(W/4)]

    @property
    def pred_masks(self) -> Tensor:
        """Mask logits, [B, Q, ceil(H/4), ceil(W/4)]."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed, self.mask_features)


class LayerGroup(NamedTuple):
    """Supervised layers that share their mask features, stacked, so that one product serves all of them."""

    logits: Tensor  # [L, B, Q, K + 1]
    mask_embed: Tensor  # [L, B, Q, C]
    mask_features: Tensor  # [B, C, ceil(H/4), ceil(W/4)]
    layers: tuple[int, ...]  # which layers these are, in the order of the head


@exportable
class MaskOutputs(NamedTuple):
    """Outputs of a mask-classification head whose layers all share one map of mask features."""

    pred_logits: Tensor  # [B, Q, K + 1], the last index is "no object"
    mask_embed: Tensor  # [B, Q, C]
    mask_features: Tensor  # [B, C, ceil(H/4), ceil(W/4)]
    aux_logits: Tensor  # [L, B, Q, K + 1], earlier decoder layers, first to last; L = 0 without deep supervision
    aux_mask_embed: Tensor  # [L, B, Q, C]

    @property
    def last(self) -> MaskLayer:
        """The layer whose output is the prediction."""
        return MaskLayer(self.pred_logits, self.mask_embed, self.mask_features)

    @property
    def pred_masks(self) -> Tensor:
        """Mask logits of the last layer, [B, Q, ceil(H/4), ceil(W/4)]."""
        return self.last.pred_masks

    @property
    def all_logits(self) -> Tensor:
        """Class logits of every supervised layer, the last layer last: [L + 1, B, Q, K + 1]."""
        return torch.cat([self.aux_logits, self.pred_logits[None]])

    @property
    def all_mask_embed(self) -> Tensor:
        """Mask embeddings of every supervised layer, the last layer last: [L + 1, B, Q, C]."""
        return torch.cat([self.aux_mask_embed, self.mask_embed[None]])

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """All supervised layers, as the criterion takes them: here a single group."""
        logits = self.all_logits
        return (LayerGroup(logits, self.all_mask_embed, self.mask_features, tuple(range(len(logits)))),)

    def masks_of(self, image: int, queries: Tensor, layer: int = -1) -> Tensor:
        """Mask logits of chosen queries of one image and layer: queries [M] -> [M, ceil(H/4), ceil(W/4)]."""
        embed = self.all_mask_embed[layer, image, queries]
        return torch.einsum("mc,chw->mhw", embed, self.mask_features[image])


@exportable
class LayeredMaskOutputs(NamedTuple):
    """Outputs of a mask-classification head whose layers have mask features of their own, such as EoMT's."""

    layers: tuple[MaskLayer, ...]  # every supervised layer, the last is the prediction

    @property
    def last(self) -> MaskLayer:
        """The layer whose output is the prediction."""
        return self.layers[-1]

    @property
    def pred_logits(self) -> Tensor:
        """Class logits of the last layer, [B, Q, K + 1]."""
        return self.last.pred_logits

    @property
    def mask_embed(self) -> Tensor:
        """Mask embeddings of the last layer, [B, Q, C]."""
        return self.last.mask_embed

    @property
    def mask_features(self) -> Tensor:
        """Mask features of the last layer, [B, C, ceil(H/4), ceil(W/4)]."""
        return self.last.mask_features

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers, those that share one `mask_features` tensor together."""
        members: dict[int, list[int]] = {}
        for number, layer in enumerate(self.layers):
            members.setdefault(id(layer.mask_features), []).append(number)
        return tuple(
            LayerGroup(
                torch.stack([self.layers[i].pred_logits for i in numbers]),
                torch.stack([self.layers[i].mask_embed for i in numbers]),
                self.layers[numbers[0]].mask_features,
                tuple(numbers),
            )
            for numbers in members.values()
        )


AnyMaskOutputs = MaskOutputs | LayeredMaskOutputs


@exportable
class EdgeDistributions(NamedTuple):
    """Where the edges of boxes are, as D-FINE predicts it; see `vision_stack.ops.box_edges`."""

    logits: Tensor  # [L, B, Q, 4, N] of N bins, of all layers that predict it; left, top, right, bottom edge
    boxes: Tensor  # [B, Q, 4] whose edges are moved
    bin_values: Tensor  # [N]


@exportable
class MaskFactors(NamedTuple):
    """What masks of queries are made of.

    Mask logits are the dot product of a query's embedding and a pixel's features, which every layer has its own of.
    Where there are more predictions of classes and boxes, the first of them are the first layer's, and have its masks.
    """

    embed: Tensor  # [L + 1, B, Q, C]; not in training: the last layer's alone, here and below
    features: Tensor  # [L + 1, B, C, ceil(H/4), ceil(W/4)]
    encoder_embed: Tensor | None = None  # [B, P, C] of the proposals
    encoder_features: Tensor | None = None  # [B, C, ceil(H/4), ceil(W/4)]


@exportable
class BoxOutputs(NamedTuple):
    """Outputs of a head of the DETR family. Boxes are (cx, cy, w, h) as shares of their image without padding.

    While training, Q may be several groups of queries, one after the other.
    """

    pred_logits: Tensor  # [B, Q, K], of sigmoids
    pred_boxes: Tensor  # [B, Q, 4]
    aux_logits: Tensor  # [L, B, Q, K], earlier decoder layers, first to last
    aux_boxes: Tensor  # [L, B, Q, 4]
    image_sizes: Tensor  # [B, 2] (width, height) without padding, in pixels
    encoder_logits: Tensor | None = None  # [B, P, K] of P proposals, or [B, P, 1]: an object of any class
    encoder_boxes: Tensor | None = None  # [B, P, 4]
    denoising_logits: Tensor | None = None  # [L + 1, B, D, K] of all decoder layers, of queries that are noised objects
    denoising_boxes: Tensor | None = None  # [L + 1, B, D, 4]
    edges: EdgeDistributions | None = None
    denoising_edges: EdgeDistributions | None = None
    masks: MaskFactors | None = None  # of heads with masks
