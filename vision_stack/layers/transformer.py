"""DETR's transformer layers (Carion et al. 2020, Appendix A.3): post-norm, positions only on queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.layers.attention import MultiHeadAttention
from vision_stack.layers.mlp import FeedForward


class DetrEncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, the residual and a LayerNorm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout, activation)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x [B, S, C], position broadcast to it -> [B, S, C]."""
        q = k = x + position
        x = self.self_attn_norm(x + self.dropout(self.self_attn(q, k, x)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class MapEncoder(nn.ModuleList):
    """DETR's encoder layers on the cells of one map."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x [B, C, h, w], position of its cells, row by row [h * w, C] -> [B, C, h, w]."""
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self:
            tokens = layer(tokens, position)
        # Tokens row by row are a channels-last map already: views, no copies.
        return tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class DetrDecoderLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the memory, feed-forward; residual and LayerNorm after each."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.cross_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, query_position: Tensor, memory: Tensor, memory_key: Tensor) -> Tensor:
        """x [B, Q, C], query_position broadcast to it, memory [B, S, C] -> [B, Q, C].

        Args:
            memory_key: memory plus its positions, [B, S, C]; the same for every layer, so made once by the caller.
        """
        q = k = x + query_position
        x = self.self_attn_norm(x + self.dropout(self.self_attn(q, k, x)))
        x = self.cross_attn_norm(x + self.dropout(self.cross_attn(x + query_position, memory_key, memory)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class MaskedDecoderLayer(nn.Module):
    """Masked cross-attention first, then self-attention and feed-forward (Mask2Former, Sec. 3.2.1); post-norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.cross_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, memory_key: Tensor, attend: Tensor | None
    ) -> Tensor:
        """x [B, Q, C], memory and memory_key (with positions) [B, S, C], attend [B, Q, S] bool -> [B, Q, C]."""
        mask = None if attend is None else attend[:, None]
        x = self.cross_attn_norm(x + self.dropout(self.cross_attn(x + query_position, memory_key, memory, mask)))
        q = k = x + query_position
        x = self.self_attn_norm(x + self.dropout(self.self_attn(q, k, x)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))
