"""RF-DETR-Seg's mask head (Robinson et al. 2025), for any decoder with queries: maps are refined along with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # of the masks


class QueryMasks(nn.Module):
    """Mask features and embeddings, whose dot products are the logits of masks.

    One map of the image is resized to stride 4; a depthwise block refines it once for each layer of the decoder. The
    scalar that is added to all logits is a channel of its own, which is 1 in the embeddings.
    """

    def __init__(self, dim: int, num_layers: int, ffn_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_layers))
        self.projection = nn.Conv2d(dim, dim, kernel_size=1)
        self.query_norm = nn.LayerNorm(dim)
        self.query_mlp = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))
        self.query_projection = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Tensor, size: tuple[int, int], queries: Tensor, proposed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """A map of an image of `size` (height, width), and queries [L, B, Q, C] after the last L of the layers.

        Args:
            proposed: [B, P, C], proposals that are to have masks, too: those of the map as it is.

        Returns:
            embeddings [L, B, Q, C + 1] and features [L, B, C + 1, ceil(H/4), ceil(W/4)]; of the proposals
            [B, P, C + 1] and [B, C + 1, ceil(H/4), ceil(W/4)].
        """
        x = self.resized(x, size)
        refined = list(self.refined(x))[-len(queries) :]
        embed, features = self.embed(queries), torch.stack([self.features(each) for each in refined])
        if proposed is None:
            return embed, features, None, None
        return embed, features, self.embed(proposed), self.with_bias(x)

    def resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """A map of an image of `size` (height, width) -> [B, C, ceil(H/4), ceil(W/4)]."""
        rows, columns = (-(-edge // STRIDE) for edge in size)
        return F.interpolate(x, size=(rows, columns), mode="bilinear")

    def refined(self, x: Tensor) -> Iterator[Tensor]:
        """The resized map, [B, C, h, w], as each layer of the decoder has it."""
        for block in self.blocks:
            x = block(x)
            yield x

    def features(self, x: Tensor) -> Tensor:
        """Mask features of a refined map, [B, C + 1, h, w]."""
        return self.with_bias(self.projection(x))

    def with_bias(self, x: Tensor) -> Tensor:
        """A map [B, C, h, w] with the scalar as its last channel."""
        return torch.cat([x, self.bias.to(x.dtype).view(1, 1, 1, 1).expand(x.shape[0], -1, *x.shape[2:])], dim=1)

    def embed(self, queries: Tensor) -> Tensor:
        """[..., C] -> [..., C + 1]."""
        x = self.query_projection(queries + self.query_mlp(self.query_norm(queries)))
        return F.pad(x, (0, 1), value=1.0)


class Block(nn.Module):
    """A depthwise convolution, LayerNorm, a linear layer and GELU beside a residual: [B, C, h, w] -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pointwise = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.depthwise(x).permute(0, 2, 3, 1)
        return x + F.gelu(self.pointwise(self.norm(cells))).permute(0, 3, 1, 2)
