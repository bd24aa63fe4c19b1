"""EoMT as transformers has it (`EomtForUniversalSegmentation`, `EomtDinov3ForUniversalSegmentation`): config.json and
names of tensors, both ways. Their network is one: our backbone's blocks and our head in a row.

The authors publish DINOv3 models in their own format as differences to DINOv3's weights; transformers' are whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import to_fields, to_options
from vision_stack.weights.encoder import UNUSED, state_of
from vision_stack.weights.mask2former import LOSS
from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

DINOV2, DINOV3 = "eomt", "eomt_dinov3"
ARCHITECTURES = {DINOV2: "EomtForUniversalSegmentation", DINOV3: "EomtDinov3ForUniversalSegmentation"}
_FIELDS = (  # theirs, ours, transformers' default
    ("num_queries", "num_queries", 200),
    ("num_blocks", "num_blocks", 4),
    ("num_upscale_blocks", "upscale_blocks", 2),
)
_SHAPE = {  # fields of the backbone in either, and transformers' defaults
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "num_register_tokens": 4,
    "num_channels": 3,
    "hidden_act": "gelu",
}
_OF_DINOV2 = {"image_size": 640, "mlp_ratio": 4, "use_swiglu_ffn": False}
_OF_DINOV3 = {
    "intermediate_size": 4096,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
}

_NET = "backbone.net."
_BLOCK = f"{_NET}blocks.{{i}}."
_QKV = ".attn.qkv."  # query, key and value in one
_HEAD: Names = (
    ("query.weight", "head.query_embed.weight"),
    ("class_predictor.{p}", "head.class_embed.{p}"),
    ("mask_head.fc1.{p}", "head.mask_embed.0.{p}"),
    ("mask_head.fc2.{p}", "head.mask_embed.2.{p}"),
    ("mask_head.fc3.{p}", "head.mask_embed.4.{p}"),
    ("upscale_block.block.{i}.conv1.{p}", "head.upscale.{i}.up.{p}"),
    ("upscale_block.block.{i}.conv2.{p}", "head.upscale.{i}.depthwise.{p}"),
    ("upscale_block.block.{i}.layernorm2d.{p}", "head.upscale.{i}.norm.{p}"),
    ("attn_mask_probs", "head.mask_probability"),
    ("embeddings.cls_token", f"{_NET}cls_token"),
    ("embeddings.register_tokens", f"{_NET}reg_token"),
    ("layernorm.{p}", f"{_NET}norm.{{p}}"),
    ("layers.{i}.norm{j}.{p}", f"{_BLOCK}norm{{j}}.{{p}}"),
    *((f"layers.{{i}}.attention.{x}_proj.weight", f"{_BLOCK}attn.qkv.weight#{n}") for n, x in enumerate("qkv")),
)
_DINOV2: Names = (
    *_HEAD,
    ("embeddings.patch_embeddings.projection.{p}", f"{_NET}patch_embed.proj.{{p}}"),
    ("embeddings.position_embeddings.weight", f"{_NET}pos_embed"),
    *((f"layers.{{i}}.attention.{x}_proj.bias", f"{_BLOCK}attn.qkv.bias#{n}") for n, x in enumerate("qkv")),
    ("layers.{i}.attention.out_proj.{p}", f"{_BLOCK}attn.proj.{{p}}"),
    ("layers.{i}.layer_scale{j}.lambda1", f"{_BLOCK}ls{{j}}.gamma"),
)
_MLP: Names = tuple((f"layers.{{i}}.mlp.{x}.{{p}}", f"{_BLOCK}mlp.{x}.{{p}}") for x in ("fc1", "fc2"))
_SWIGLU: Names = tuple(
    (f"layers.{{i}}.mlp.{theirs}.{{p}}", f"{_BLOCK}mlp.{ours}")
    for theirs, ours in (
        ("gate_proj", "fc1.{p}#0"),
        ("up_proj", "fc1.{p}#1"),
        ("down_proj", "fc2.{p}"),
        ("weights_in", "fc1.{p}"),  # as files from before transformers 5 have them
        ("weights_out", "fc2.{p}"),
    )
)
_DINOV3: Names = (
    *_HEAD,
    ("embeddings.patch_embeddings.{p}", f"{_NET}patch_embed.proj.{{p}}"),
    *((f"layers.{{i}}.attention.{x}_proj.bias", f"{_BLOCK}attn.{x}_bias") for x in "qv"),
    ("layers.{i}.attention.o_proj.{p}", f"{_BLOCK}attn.proj.{{p}}"),
    ("layers.{i}.layer_scale{j}.lambda1", f"{_BLOCK}gamma_{{j}}"),
    ("layers.{i}.mlp.up_proj.{p}", f"{_BLOCK}mlp.fc1.{{p}}"),
    ("layers.{i}.mlp.down_proj.{p}", f"{_BLOCK}mlp.fc2.{{p}}"),
)


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json."""
    loss = {"mask_loss": "point", **to_options(raw, LOSS)}
    return {"type": "none"}, {"type": "eomt", **to_options(raw, _FIELDS), "loss": loss}


def backbone_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone of a config.json, as a config.json of transformers' DINOv2 or DINOv3."""
    if raw.get("use_gated_mlp"):  # whose activation transformers takes for the head's layers, too
        raise ConfigError("use_gated_mlp: true is not built here; the published models have false")
    shape = {name: raw.get(name, default) for name, default in _SHAPE.items()}
    if raw["model_type"] == DINOV2:
        if not shape["num_register_tokens"]:
            raise ConfigError("num_register_tokens: 0 is not built here; the published models have 4")
        own = {name: raw.get(name, default) for name, default in _OF_DINOV2.items()}
        return {"model_type": "dinov2_with_registers", **shape, **own}
    own = {name: raw.get(name, default) for name, default in _OF_DINOV3.items()}
    rope = raw.get("rope_parameters") or {}
    theta = rope.get("rope_theta", 100.0) if isinstance(rope, Mapping) else rope
    return {"model_type": "dinov3_vit", **shape, **own, "rope_theta": theta}


def convert(architecture: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict -> that of a `VisionModel`.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    if any(key.startswith("network.") for key in state):
        raise ValueError(
            "weights in the authors' own format, of DINOv3 as differences to its weights; give the model in "
            "transformers' format, which transformers' convert_eomt_dinov3_to_hf.py writes"
        )
    state = {key: value for key, value in state.items() if value.numel()}  # there may be zero registers
    found = join_parts(rename(state, (*to_ours(_names(architecture, state)), UNUSED)))
    if architecture == DINOV2:
        found[f"{_NET}pos_embed"] = found[f"{_NET}pos_embed"][None]
    found.setdefault("head.mask_probability", torch.zeros(0))
    return found


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: a backbone that transformers' EoMT does not have.
    """
    net = model.get_submodule("backbone.net")
    net = getattr(net, "model", net)
    state = {
        re.sub(r"^backbone\.net\.model\.", _NET, name): value
        for name, value in state_of(model, "backbone", "head").items()
    }
    raw = _shape(net, state)
    architecture = raw["model_type"]
    if architecture == DINOV2:
        state = _with_their_positions(net, state)
    swiglu = raw.get("use_swiglu_ffn", False)
    state = split_part(split_part(state, _QKV, 3), ".mlp.fc1.", 2) if swiglu else split_part(state, _QKV, 3)
    theirs = rename(state, to_theirs(_names(architecture, state, swiglu=swiglu)))
    theirs.setdefault("embeddings.register_tokens", torch.zeros(1, 0, raw["hidden_size"]))
    probabilities = torch.zeros(plain["head"]["num_blocks"])  # of a head without masked attention
    if not theirs.get("attn_mask_probs", probabilities[:0]).numel():
        theirs["attn_mask_probs"] = probabilities
    raw |= to_fields(plain["head"], _FIELDS) | to_fields(plain["head"]["loss"], LOSS)
    raw.setdefault("image_size", _square(plain["input_size"]["long_edge"], raw["patch_size"]))
    raw["num_upscale_blocks"] = len(model.get_submodule("head.upscale"))  # type: ignore[arg-type]
    return {**raw, "architectures": [ARCHITECTURES[architecture]]}, theirs


def _square(edge: int, patch: int) -> int:
    """The side of square images for a network that takes any."""
    return -(-edge // patch) * patch


def _names(architecture: str, state: Mapping[str, Tensor], swiglu: bool = False) -> Names:
    """Pairs for the kind of MLP that the state has; whether ours of DINOv2 is `swiglu`, its names do not say."""
    if architecture == DINOV2:
        return (*_DINOV2, *(_SWIGLU if swiglu or not any(".mlp.fc1." in key for key in state) else _MLP))
    return _DINOV3


def _shape(net: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The backbone's fields of their config.json, read off timm's network."""
    block = net.blocks[0]
    width = net.embed_dim
    rotary = getattr(net, "rope", None) is not None
    if net.cls_token is None or not hasattr(block.mlp, "fc2") or f"{_NET}norm.weight" not in state:
        raise ConfigError("backbone: transformers' EoMT needs DINOv2, DINOv3, or a ViT with a class token")
    if any(re.search(r"\.(q_norm|k_norm|attn\.norm|norm_pre)\.", key) for key in state):
        raise ConfigError("backbone: transformers' EoMT has no norms of queries and keys, and none before the blocks")
    raw: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": block.attn.num_heads,
        "patch_size": net.patch_embed.patch_size[0],
        "layer_norm_eps": net.norm.eps,
        "num_register_tokens": 0 if net.reg_token is None else net.reg_token.shape[1],
    }
    if not rotary:
        grid = net.patch_embed.grid_size
        if grid[0] != grid[1]:
            raise ConfigError(f"backbone.img_size: transformers' EoMT has square images only, not a grid of {grid}")
        ratio = block.mlp.fc2.in_features / width
        gated = block.mlp.fc1.out_features == 2 * block.mlp.fc2.in_features
        if gated and block.mlp.fc2.in_features == (int(width * 8 / 3) + 7) // 8 * 8:
            ratio = 4.0  # of which SwiGLU has two thirds, rounded up
        if ratio != int(ratio):
            raise ConfigError(f"backbone: transformers' EoMT has MLPs of a whole multiple of the width, not {ratio:g}")
        return {
            "model_type": DINOV2,
            **raw,
            "image_size": grid[0] * raw["patch_size"],
            "mlp_ratio": int(ratio),
            "use_swiglu_ffn": gated,
        }
    if f"{_NET}blocks.0.gamma_1" not in state or f"{_NET}pos_embed" in state or hasattr(block.mlp, "fc1_g"):
        raise ConfigError("backbone: of rotary ViTs, transformers' EoMT has DINOv3 without gates only")
    return {
        "model_type": DINOV3,
        **raw,
        "intermediate_size": block.mlp.fc2.in_features,
        "rope_parameters": {"rope_theta": net.rope.temperature, "rope_type": "default"},
    }


def _with_their_positions(net: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Positions as a table of patches; the class token's is part of the token. Layers without a scale get ones."""
    state = dict(state)
    positions = state[f"{_NET}pos_embed"][0]
    if not net.no_embed_class:
        state[f"{_NET}cls_token"] = state[f"{_NET}cls_token"] + positions[:1]
        positions = positions[1:]
    state[f"{_NET}pos_embed"] = positions
    for i in range(len(net.blocks)):
        for part in (1, 2):
            state.setdefault(f"{_NET}blocks.{i}.ls{part}.gamma", torch.ones(net.embed_dim, dtype=positions.dtype))
    return state
