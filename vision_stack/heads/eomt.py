"""EoMT (Kerssies et al. 2025): queries join the tokens of a plain ViT before its last blocks; there is no decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Fraction, Range, register
from vision_stack.heads.mask import MASK_STRIDE, QueryMaskHead
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.outputs import LayeredMaskOutputs, MaskLayer
from vision_stack.structures import Features, FeatureSpec, HeadConfig, Tail, TailSpec, Target, Task

DECAY = 0.9  # exponent of the annealing (Sec. 3.3)


def _losses() -> MaskCriterionConfig:
    return MaskCriterionConfig(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, mask_loss="point")


@register("head", "eomt")
@dataclass(frozen=True, kw_only=True)
class EoMTHeadConfig(HeadConfig):
    """Attention of queries inside of the masks predicted so far is only an aid of training, and fades block by block.

    `anneal_start` and `anneal_end` say when for each of the last blocks, as parts of the training; by default one block
    after the other in equal phases, the first and the last of which change nothing.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset(("detection", "instance", "semantic", "panoptic"))
    num_queries: Count = 200
    num_blocks: Count = 4  # last blocks of the backbone that queries pass through
    masked_attention: bool = True  # in training; False: no predictions but the last are made or supervised
    anneal_start: tuple[Fraction, ...] | None = None
    anneal_end: tuple[Fraction, ...] | None = None
    upscale_blocks: Annotated[int, Range(1, 4)] | None = None  # each doubles the grid; None: up to a stride near 4
    loss: MaskCriterionConfig = field(default_factory=_losses)

    def check(self) -> None:
        for name, times in (("anneal_start", self.anneal_start), ("anneal_end", self.anneal_end)):
            if times is not None and len(times) != self.num_blocks:
                raise ConfigError(f"{name}: one entry for each of the {self.num_blocks} num_blocks, got {len(times)}")
        for start, end in self.phases:
            if start > end:
                raise ConfigError(f"anneal_end: a block that starts at {start:g} of the training cannot end at {end:g}")

    @property
    def tail(self) -> TailSpec:
        return TailSpec(self.num_blocks, self.num_queries)

    @property
    def phases(self) -> list[tuple[float, float]]:
        """Of each block, the parts of the training between which its masked attention fades."""
        blocks = range(1, self.num_blocks + 1)
        starts = self.anneal_start or [i / (self.num_blocks + 2) for i in blocks]
        ends = self.anneal_end or [(i + 1) / (self.num_blocks + 2) for i in blocks]
        return list(zip(starts, ends, strict=True))

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> EoMTHead:
        """Raises ConfigError where the backbone's maps are not of one width and stride."""
        if len({(spec.channels, spec.stride) for spec in in_specs}) > 1:
            raise ConfigError(
                f"head: eomt needs a plain ViT and neck=none, not maps {[tuple(s[1:]) for s in in_specs]}"
            )
        return EoMTHead(self, in_specs[-1], num_classes)


class EoMTHead(QueryMaskHead):
    """Runs the backbone's last blocks (`Features.tail`) on the queries and all tokens together.

    While training each block is preceded by a prediction, inside whose masks its queries look, each with the block's
    `mask_probability`. In eval mode a block's queries look inside their masks, and predictions are made for it, while
    that is over a half; after a whole training only the last prediction is left.
    Differs from paper: that threshold, where the authors' code draws in eval mode as well.
    """

    query_layers: ClassVar[tuple[str, ...]] = ("query_embed.",)
    mask_probability: Tensor

    def __init__(self, config: EoMTHeadConfig, spec: FeatureSpec, num_classes: int) -> None:
        dim = spec.channels
        super().__init__(config.loss, config.num_queries, num_classes, dim)
        self.phases = config.phases if config.masked_attention else []
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        widths = [nn.Linear(dim, dim) for _ in range(3)]
        self.mask_embed = nn.Sequential(widths[0], nn.GELU(), widths[1], nn.GELU(), widths[2])
        count = config.upscale_blocks or max(1, round(math.log2(spec.stride / MASK_STRIDE)))
        self.upscale = nn.Sequential(*(Upscale(dim) for _ in range(count)))
        self.register_buffer("mask_probability", torch.full((len(self.phases),), 1.0))
        self._probabilities = [1.0] * len(self.phases)  # the same, where it is read without waiting for a device
        self.register_load_state_dict_post_hook(EoMTHead._read_probabilities)

    def set_progress(self, step: int, total: int | None) -> None:
        """Fade the masked attention of the blocks whose turn it is; without a known end it stays."""
        if total:
            before = self._probabilities
            self._probabilities = [_faded(step / total, start, end) for start, end in self.phases]
            for block, probability in enumerate(self._probabilities):
                if probability != before[block]:  # a fill, unlike a copy from the host, makes no device wait
                    self.mask_probability[block].fill_(probability)

    def _read_probabilities(self, _: object = None) -> None:
        if self.mask_probability.device.type != "meta":
            self._probabilities = self.mask_probability.tolist()

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> LayeredMaskOutputs:
        """Tokens and the blocks that are left -> predictions of the last block and, while training, before each."""
        tail, tokens = features.tail, features.tokens
        if tail is None or tokens is None:
            raise ValueError("head: eomt runs a backbone's last blocks; build the backbone `with_tail(config.tail)`")
        x = torch.cat([self.query_embed.weight.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        layers = []
        for number, block in enumerate(tail.blocks):
            probability = self._probabilities[number] if self.phases else 0.0
            mask = None
            if self.phases and (self.training or probability > 0.5):
                logits, embed, maps = self._predict(tail.norm(x), tail)
                if self.training:
                    layers.append(MaskLayer(logits, embed, _at_mask_stride(maps, tail, features.size)))
                if probability > 0:
                    mask = self._attend(embed, maps, probability, tail.grid, x.shape[1])
            x = block(x, mask)
        logits, embed, maps = self._predict(tail.norm(x), tail)
        layers.append(MaskLayer(logits, embed, _at_mask_stride(maps, tail, features.size)))
        return LayeredMaskOutputs(tuple(layers))

    def _predict(self, tokens: Tensor, tail: Tail) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits and mask embeddings of normed tokens, and their map for the masks, at a stride of its own."""
        queries = tokens[:, : self.query_embed.num_embeddings]
        patches = tokens[:, self.query_embed.num_embeddings + tail.num_prefix :]
        maps = self.upscale(patches.transpose(1, 2).unflatten(2, tail.grid))
        return self.class_embed(queries), self.mask_embed(queries), maps

    @torch.no_grad()
    def _attend(
        self, mask_embed: Tensor, maps: Tensor, probability: float, grid: tuple[int, int], length: int
    ) -> Tensor:
        """Where tokens look, [B, 1, N, N] bool: everywhere, but queries at patches inside of their masks only."""
        inside = mask_embed @ F.interpolate(maps, size=grid, mode="bilinear").flatten(2) > 0
        if self.training and probability < 1:
            inside |= torch.rand(inside.shape[:2], device=inside.device)[..., None] > probability
        allowed = inside.new_ones(inside.shape[0], 1, length, length)  # `len` would fix the batch of an export
        allowed[:, 0, : inside.shape[1], -inside.shape[2] :] = inside
        return allowed


class Upscale(nn.Module):
    """Doubles height and width of a map [B, C, h, w] (Sec. 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.gelu(self.up(x)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _faded(progress: float, start: float, end: float) -> float:
    """1 until `start`, 0 from `end` on, polynomial in between (Sec. 3.3)."""
    if progress < start:
        return 1.0
    return (1 - (progress - start) / (end - start)) ** DECAY if progress < end else 0.0


def _at_mask_stride(x: Tensor, tail: Tail, size: tuple[int, int]) -> Tensor:
    """A map of any stride, of an image padded to whole patches -> ceil(H/4) x ceil(W/4), as all mask features."""
    height, width = (-(-edge // MASK_STRIDE) for edge in size)
    stride = tail.stride * tail.grid[0] / x.shape[2]
    if stride != MASK_STRIDE:
        x = F.interpolate(x, scale_factor=stride / MASK_STRIDE, mode="bilinear", recompute_scale_factor=False)
        missing = (max(0, height - x.shape[2]), max(0, width - x.shape[3]))
        x = F.pad(x, (0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x
    return x[:, :, :height, :width]
