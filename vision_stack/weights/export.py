"""Writing a model as a directory that transformers' `from_pretrained` loads; transformers is not needed for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vision_stack.config import Config, ConfigError, to_dict
from vision_stack.weights import eomt, mask2former, maskformer, rf_detr
from vision_stack.weights.encoder import ENCODER
from vision_stack.weights.files import WEIGHTS_FILE, save_tensors
from vision_stack.weights.resnet import export_resnet
from vision_stack.weights.swin import export_swin
from vision_stack.weights.transformers_config import OWN_FIELDS, OWN_KEY, Parts, from_parts, labels_of

_PROCESSORS = {
    "maskformer": "MaskFormerImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
    "rf_detr": "RfDetrImageProcessor",
}
TRAINING_ONLY = "head.pixel_classifier."  # of an auxiliary loss
_DECODERS = {"maskformer": maskformer.export_decoder, "mask2former": mask2former.export_decoder}


def export_transformers(model: nn.Module, config: Config, directory: Path) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Args:
        model: a `VisionModel`.
        config: its config.

    Raises:
        ConfigError: transformers has no model of these parts; the line says which it has.
    """
    plain = to_dict(config)
    names = [category["name"] for category in plain["categories"]]
    if plain["head"]["type"] in rf_detr.ARCHITECTURES:
        raw, exported = rf_detr.export(model, plain)
    elif plain["head"]["type"] == "eomt":
        raw, exported = eomt.export(model, plain)
    else:
        raw, exported = _encoder_and_decoder(model, plain, names)
    raw |= labels_of(names)
    raw[OWN_KEY] = {name: plain[name] for name in OWN_FIELDS}
    if "no_object_weight" in raw:
        class_weights = torch.ones(len(names) + 1)
        class_weights[-1] = raw["no_object_weight"]
        exported["criterion.empty_weight"] = class_weights
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(exported, directory / WEIGHTS_FILE)
    _write(directory / "config.json", raw)
    _write(directory / "preprocessor_config.json", _processor(raw, model, plain))


def _encoder_and_decoder(
    model: nn.Module, plain: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and state dict of transformers' MaskFormer or Mask2Former."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    raw = from_parts(Parts(plain["neck"], plain["head"]), names)
    if plain["neck"]["channels"] % 32:
        wrong = plain["neck"]["channels"]
        raise ConfigError(f"neck.channels: transformers' group norms need a multiple of 32, not {wrong}")
    encoder = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    rest = {k: v for k, v in state.items() if not k.startswith(("backbone.", TRAINING_ONLY))}
    raw["backbone_config"], converted = _backbone(plain["backbone"], model.get_submodule("backbone"), encoder, raw)
    exported = {f"{ENCODER}{name}": tensor for name, tensor in converted.items()}
    return raw, exported | _DECODERS[raw["model_type"]](rest)


def _backbone(
    options: Mapping[str, Any], backbone: Any, state: Mapping[str, Tensor], raw: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The backbone's config.json and state, both as transformers has them."""
    net, strides = backbone.net, [spec.stride for spec in backbone.out_specs]
    if strides != [4, 8, 16, 32]:
        raise ConfigError(
            f"backbone.out_strides: transformers' models read maps of strides 4, 8, 16, 32, not {strides}"
        )
    inner = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    stages = {"out_features": [f"stage{i}" for i in range(1, 5)], "num_channels": 3}
    if "patch_embed.proj.weight" in inner and any(k.endswith("relative_position_bias_table") for k in inner):
        return _swin(options, backbone, net, state, inner, stages, maskformer=raw["model_type"] == "maskformer")
    if len(inner) < len(state):
        raise ConfigError("backbone.out_norms: only Swin has norms on its maps in transformers")
    if options["type"] == "resnet":
        fields = ("embedding_size", "hidden_sizes", "depths", "layer_type", "downsample_in_bottleneck")
        return {
            "model_type": "resnet",
            **{name: options[name] for name in fields},
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            **stages,
        }, export_resnet(inner)
    if options["type"] == "timm":
        model_name = options["model_name"].partition(".")[0]
        described = {"backbone": model_name, "out_indices": backbone.config.out_indices}
        state = _as_extractor(model_name, backbone.config.out_indices, inner)
        return {"model_type": "timm_backbone", "features_only": True, **described}, state
    raise ConfigError(
        f"backbone: {options['type']} cannot be written for transformers; swin, resnet and timm's convolutional "
        "networks can"
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
    if {k: v.shape for k, v in ours.items()} != {k: theirs[name].shape for k, name in names.items()}:
        raise ConfigError(f"backbone.model_name: transformers builds {model_name} otherwise, so it cannot be written")
    return {f"_backbone.{names[flat]}": value for flat, value in ours.items()}


def _swin(
    options: Mapping[str, Any],
    backbone: Any,
    net: Any,
    state: Mapping[str, Tensor],
    inner: Mapping[str, Tensor],
    stages: Mapping[str, Any],
    *,
    maskformer: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
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


def _processor(raw: Mapping[str, Any], model: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    architecture = raw["model_type"]
    if architecture in eomt.ARCHITECTURES:
        edge = raw["image_size"]  # of the square that images are padded to
        own = {
            "image_processor_type": "EomtImageProcessor",
            "size": {"shortest_edge": edge, "longest_edge": edge},
            "do_pad": True,
        }
    else:
        name = _PROCESSORS[architecture]
        size = plain["input_size"]
        edges = {"shortest_edge": size["short_edge"], "longest_edge": size["long_edge"]}
        own = {"image_processor_type": name, "size": edges, "size_divisor": 32}
    return {
        **own,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(x), 6) for x in model.image_mean.flatten()],
        "image_std": [round(float(x), 6) for x in model.image_std.flatten()],
    }


def _write(file: Path, raw: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
