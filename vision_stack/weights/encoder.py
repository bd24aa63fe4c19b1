"""The backbone's part of whole models of transformers: config.json and state dict, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.hgnet_v2 import export_hgnet_v2
from vision_stack.weights.resnet import export_resnet, export_rt_detr_resnet
from vision_stack.weights.swin import export_swin

ENCODER = "model.pixel_level_module.encoder."  # of the backbone's names in MaskFormer and Mask2Former
UNUSED = (r"criterion\.empty_weight", None)  # the weights of the classes in the loss
_FAMILIES: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "resnet": export_resnet,
    "rt_detr_resnet": export_rt_detr_resnet,
    "hgnet_v2": export_hgnet_v2,
}
_COARSEST = 32


def backbone_part(raw: Mapping[str, Any], out_indices: Sequence[int] = (1, 2, 3, 4)) -> dict[str, Any]:
    """The backbone's part of a config.json, as a config.json of its own.

    Args:
        out_indices: of a timm model that only its name describes.
    """
    part = raw.get("backbone_config")
    if isinstance(part, Mapping):
        if part.get("model_type") == "maskformer-swin":  # Swin under another name
            return {**part, "model_type": "swin"}
        return dict(part)
    if isinstance(raw.get("backbone"), str) and raw.get("use_timm_backbone"):
        return {"model_type": "timm_backbone", "backbone": raw["backbone"], "out_indices": list(out_indices)}
    raise ConfigError("backbone_config: missing; only models that describe their backbone themselves are loaded")


def with_frozen_norms(part: Mapping[str, Any]) -> dict[str, Any]:
    """The same backbone with batch norms whose statistics, scales and shifts are fixed."""
    return {**part, "freeze_batch_norm_2d" if part.get("model_type") == "timm_backbone" else "freeze_norm": True}


def split_encoder(
    state: Mapping[str, Tensor], prefix: str | tuple[str, ...] = ENCODER
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of a whole model -> that of its backbone, without prefix, and the rest.

    The backbone's names become those of transformers' backbone classes, also where MaskFormer's Swin has its own.
    """
    encoder = {key: value for key, value in state.items() if key.startswith(prefix)}
    rest = {key: value for key, value in state.items() if key not in encoder}
    for each in (prefix,) if isinstance(prefix, str) else prefix:
        encoder = {key.removeprefix(each): value for key, value in encoder.items()}
    return {_plain(key): value for key, value in encoder.items()}, rest


def _plain(key: str) -> str:
    norm = re.fullmatch(r"hidden_states_norms\.(\d+)\.(\w+)", key)
    return f"hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}" if norm else key.removeprefix("model.")


def state_of(model: nn.Module, *parts: str) -> dict[str, Tensor]:
    """State of some parts of a `VisionModel`, with their whole names, but for what only an auxiliary loss reads."""
    return {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(f"{part}." for part in parts)) and not name.startswith("head.pixel_classifier.")
    }


def export_backbone(
    model: nn.Module,
    plain: Mapping[str, Any],
    finest: int,
    coarsest: int = _COARSEST,
    *,
    maskformer: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and state dict of the backbone of a `VisionModel`, both as transformers has them.

    Args:
        plain: the model's plain options.
        finest, coarsest: strides of the maps that the whole model reads.
        maskformer: whether that model is MaskFormer, whose Swin is a class of its own.

    Raises:
        ConfigError: a backbone that transformers does not have; the line says which can be written.
    """
    options, backbone = plain["backbone"], model.get_submodule("backbone")
    config: Any = backbone.config
    read = [finest <= spec.stride <= coarsest for spec in backbone.out_specs]  # type: ignore[union-attr]
    strides = [spec.stride for spec, chosen in zip(backbone.out_specs, read, strict=True) if chosen]  # type: ignore
    wanted = [finest * 2**i for i in range((coarsest // finest).bit_length())]
    if strides != wanted:
        raise ConfigError(
            f"backbone.out_strides: transformers' model reads maps of strides {', '.join(map(str, wanted))}, not "
            f"{strides}"
        )
    state = {name.removeprefix("backbone."): value for name, value in state_of(model, "backbone").items()}
    inner = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    stages = {"out_features": [f"stage{stride.bit_length() - 2}" for stride in strides], "num_channels": 3}
    if "patch_embed.proj.weight" in inner and any(k.endswith("relative_position_bias_table") for k in inner):
        return _swin(options, backbone, state, inner, stages, maskformer=maskformer)
    if len(inner) < len(state):
        raise ConfigError("backbone.out_norms: only Swin has norms on its maps in transformers")
    if options["type"] in _FAMILIES:
        described = config.to_config_json()
        for name in ("out_indices", "out_strides"):  # index 0 is the stem in either, but the names say it all
            described.pop(name, None)
        return {**described, **stages}, _FAMILIES[options["type"]](inner)
    if options["type"] == "timm":
        model_name = options["model_name"].partition(".")[0]
        indices = [index for index, chosen in zip(config.out_indices, read, strict=True) if chosen]
        described = {"backbone": model_name, "out_indices": indices}
        state = _as_extractor(model_name, indices, inner)
        return {"model_type": "timm_backbone", "features_only": True, **described}, state
    raise ConfigError(
        f"backbone: {options['type']} cannot be written for transformers; swin, {', '.join(_FAMILIES)} and timm's "
        "convolutional networks can"
    )


def _as_extractor(model_name: str, out_indices: list[int], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of our timm network, named as in the extractor of features that transformers has of it.

    The two need not be of the same class: ours may keep the whole model below `model`, theirs may join the name of a
    sequence and its member.
    """
    with torch.device("meta"):
        theirs = timm.create_model(model_name, features_only=True, out_indices=out_indices).state_dict()
    names = {name.replace(".", "_"): name for name in theirs}
    ours = {name.removeprefix("model.").replace(".", "_"): value for name, value in state.items()}
    counted = {k for k in names if k.endswith("num_batches_tracked")} - ours.keys()  # which frozen norms have not
    if {k: v.shape for k, v in ours.items()} != {k: theirs[n].shape for k, n in names.items() if k not in counted}:
        raise ConfigError(f"backbone.model_name: transformers builds {model_name} otherwise, so it cannot be written")
    return {f"_backbone.{names[flat]}": value for flat, value in ours.items()}


def _swin(
    options: Mapping[str, Any],
    backbone: Any,
    state: Mapping[str, Tensor],
    inner: Mapping[str, Tensor],
    stages: Mapping[str, Any],
    *,
    maskformer: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    net = backbone.net
    norms = {k: v for k, v in state.items() if k.startswith("norms.")}
    if not norms:
        raise ConfigError("backbone.out_norms: transformers' Swin has norms on its maps, this one has not")
    layers = [getattr(net, f"layers_{i}", None) or net.layers[i] for i in range(4)]
    blocks = [layer.blocks[0] for layer in layers]
    windows = [block.attn.window_size[0] for layer in layers for block in layer.blocks]
    if len(set(windows)) > 1:
        raise ConfigError(f"backbone: transformers' Swin has windows of one size, this one of {sorted(set(windows))}")
    attention, mlp = blocks[0].attn, blocks[0].mlp
    config = {
        "model_type": "maskformer-swin" if maskformer else "swin",
        "patch_size": 4,
        "embed_dim": blocks[0].norm1.normalized_shape[0],
        "depths": [len(layer.blocks) for layer in layers],
        "num_heads": [block.attn.num_heads for block in blocks],
        "window_size": attention.window_size[0],
        "mlp_ratio": mlp.fc1.out_features / mlp.fc1.in_features,
        "qkv_bias": attention.qkv.bias is not None,
        "layer_norm_eps": blocks[0].norm1.eps,
        "drop_path_rate": options.get("drop_path_rate") or 0.0,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        **stages,
    }
    converted = export_swin(inner)
    # The norm of the classifier, which no segmentation model reads, but transformers looks for.
    width = backbone.out_specs[-1].channels
    unread = {"layernorm.weight": torch.ones(width), "layernorm.bias": torch.zeros(width)}
    if not maskformer:
        for name, value in norms.items():
            _, level, part = name.split(".")
            converted[f"hidden_states_norms.stage{int(level) + 1}.{part}"] = value
        return config, converted | {f"swin.{name}": value for name, value in unread.items()}
    for stage, layer in enumerate(layers):
        for number, block in enumerate(layer.blocks):
            name = f"encoder.layers.{stage}.blocks.{number}.attention.self.relative_position_index"
            converted[name] = block.attn.relative_position_index.reshape(2 * [attention.window_area]).cpu()
    own = {f"model.{name}": value for name, value in (converted | unread).items()}  # its Swin is a class of its own
    return config, own | {f"hidden_states_{name}": value for name, value in norms.items()}
