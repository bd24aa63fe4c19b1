"""Multi-head attention on PyTorch's fused kernels (Vaswani et al. 2017, Sec. 3.2.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError


def check_width(name: str, width: int, num_heads: int, purpose: str = "") -> None:
    """ConfigError about the field `name` unless attention heads and sine positions fit the width."""
    if width % num_heads or width % 4:
        raise ConfigError(f"{name}: {width} must be a multiple of 4 and of num_heads ({num_heads}){purpose}")


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with `num_heads` heads; positions are added by the caller.

    Args:
        dim: channels of queries, keys, values and output.
        num_heads: divides `dim`.
        dropout: probability of dropping an attention weight while training.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"attention needs heads that divide its channels, got {num_heads} heads for {dim} channels"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            # The gain makes it the spread that DETR has, whose xavier init sees the three as one [3 * dim, dim] matrix.
            nn.init.xavier_uniform_(projection.weight, gain=0.5**0.5)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """query [B, Q, C], key and value [B, S, C] -> [B, Q, C].

        Args:
            attn_mask: broadcast to [B, heads, Q, S]; bool (True = attend) or float (added to the scores).
        """
        q, k, v = (
            self._split_heads(projection(x))
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, S, C / heads]
