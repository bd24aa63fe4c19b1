"""Key maps of ViT, DINOv2 (with and without registers) and DINOv3 from transformers' layout to timm's.

timm has one matrix for query, key and value; for DINOv3 (`Eva`) their biases apart, and none for keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Rules, join_parts, rename

_EMBEDDINGS: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.(projection\.)?(weight|bias)", r"patch_embed.proj.\2"),
    (r"(layer)?norm\.(\w+)", r"norm.\2"),
)
_ATTENTION: Rules = (
    *(
        (rf"encoder\.layer\.(\d+)\.attention\.attention\.{part}\.(\w+)", rf"blocks.\1.attn.qkv.\2#{i}")
        for i, part in enumerate(("query", "key", "value"))
    ),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
)


def _layers(names: Mapping[str, str]) -> Rules:
    return tuple((rf"(?:encoder\.)?layer\.(\d+)\.{a}\.(\w+)", rf"blocks.\1.{b}.\2") for a, b in names.items())


_VIT: Rules = (
    *_EMBEDDINGS,
    *_ATTENTION,
    *_layers(
        {
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            r"intermediate\.dense": "mlp.fc1",
            r"output\.dense": "mlp.fc2",
        }
    ),
)
_DINOV2: Rules = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    *_layers(
        {
            "norm1": "norm1",
            "norm2": "norm2",
            r"mlp\.fc1": "mlp.fc1",
            r"mlp\.fc2": "mlp.fc2",
            r"mlp\.weights_in": "mlp.fc1",  # SwiGLU: gate and value in one matrix, in this order
            r"mlp\.weights_out": "mlp.fc2",
        }
    ),
)
_DINOV3: Rules = (
    *_EMBEDDINGS,
    *(
        (rf"layer\.(\d+)\.attention\.{part}_proj\.weight", rf"blocks.\1.attn.qkv.weight#{i}")
        for i, part in enumerate("qkv")
    ),
    (r"layer\.(\d+)\.attention\.([qv])_proj\.bias", r"blocks.\1.attn.\2_bias"),
    (r"layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
    *_layers({"norm1": "norm1", "norm2": "norm2", r"attention\.o_proj": "attn.proj"}),
)
_MLP = _layers({r"mlp\.up_proj": "mlp.fc1", r"mlp\.down_proj": "mlp.fc2"})
_GATED_MLP = _layers({r"mlp\.gate_proj": "mlp.fc1_g", r"mlp\.up_proj": "mlp.fc1_x", r"mlp\.down_proj": "mlp.fc2"})


def convert_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `ViTModel` -> timm's `VisionTransformer`."""
    return join_parts(rename(state, _VIT))


def convert_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `Dinov2Model` -> timm's `VisionTransformer`."""
    return join_parts(rename(state, _DINOV2))


def convert_dinov2_with_registers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `Dinov2WithRegistersModel` -> timm's `VisionTransformer` with `no_embed_class`."""
    converted = convert_dinov2(state)
    positions = converted["pos_embed"]
    converted["cls_token"] = converted["cls_token"] + positions[:, :1]
    converted["pos_embed"] = positions[:, 1:]
    return converted


def convert_dinov3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `DINOv3ViTModel` -> timm's `Eva`."""
    gated = any(".mlp.gate_proj." in name for name in state)
    state = {name: value for name, value in state.items() if value.numel()}  # there may be zero registers
    return join_parts(rename(state, (*_DINOV3, *(_GATED_MLP if gated else _MLP))))
