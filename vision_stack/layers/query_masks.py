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
    scalar that is added to all logits is a channel of its own, which is 1 in the features.
    Differs from paper: the refined maps are not projected. That is linear, and so is the product with the embeddings,
    of which there are fewer than cells: its transpose is applied to them.
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
        cells = [each.permute(0, 2, 3, 1) for each in refined]
        stacked = torch.stack(cells) if len(cells) > 1 else cells[0][None]  # the latter is no copy
        embed, features = self.projected(self.embed(queries)), with_ones(stacked)
        if proposed is None:
            return embed, features, None, None
        plain = self.embed(proposed)
        plain = torch.cat([plain, self.bias.to(plain.dtype).expand_as(plain[..., :1])], dim=-1)
        return embed, features, plain, with_ones(x.permute(0, 2, 3, 1))

    def resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """A map of an image of `size` (height, width) -> [B, C, ceil(H/4), ceil(W/4)]."""
        rows, columns = (-(-edge // STRIDE) for edge in size)
        return F.interpolate(x, size=(rows, columns), mode="bilinear")

    def refined(self, x: Tensor) -> Iterator[Tensor]:
        """The resized map, [B, C, h, w], as each layer of the decoder has it."""
        for block in self.blocks:
            x = block(x)
            yield x

    def embed(self, queries: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        x: Tensor = self.query_projection(queries + self.query_mlp(self.query_norm(queries)))
        return x

    def projected(self, embed: Tensor) -> Tensor:
        """Embeddings of projected maps, and the scalar, as those of maps and of ones: [..., C] -> [..., C + 1]."""
        weight, bias = self.projection.weight.flatten(1), self.projection.bias
        assert bias is not None
        rows = torch.cat([weight.T, bias[None]])
        return F.linear(embed, rows, F.pad(self.bias, (len(weight), 0)))


class Block(nn.Module):
    """A depthwise convolution, LayerNorm, a linear layer and GELU beside a residual: [B, C, h, w] -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pointwise = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.norm(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # As a convolution, which adds the bias on the way; the sum is in place, since maps are large.
        return F.gelu(F.conv2d(cells, self.pointwise.weight[..., None, None], self.pointwise.bias)).add_(x)


def with_ones(cells: Tensor) -> Tensor:
    """Maps cell by cell, [..., h, w, C], with a last channel of ones -> [..., C + 1, h, w], stored so, too."""
    return F.pad(cells, (0, 1), value=1.0).movedim(-1, -3)
