"""transformers' own backbones and ours with the same weights, through files: what tests and benchmarks compare.

Every weight, norm, bias and statistic is perturbed, so that no part can be left out or mixed up unseen. The models are
tiny; sizes of a family differ only in widths and depths.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vision_stack.backbones import load_pretrained
from vision_stack.backbones.base import Backbone, pad_to_multiple
from vision_stack.backbones.config_json import transformers_families

Maps = Callable[[nn.Module, Tensor], list[Tensor]]


def of_backbone(theirs: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    return list(theirs(pixel_values).feature_maps)


def of_vit(theirs: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """Hidden states, of which transformers makes no maps: without class token, row by row."""
    states = theirs(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    patch = theirs.config.patch_size
    size = [n // patch for n in pixel_values.shape[2:]]
    return [x[:, 1:].unflatten(1, size).permute(0, 3, 1, 2) for x in states]


def of_dinov3_convnext(theirs: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """With the output of the stem first, where transformers has the image itself."""
    stem = pixel_values
    for layer in theirs.model.stages[0].downsample_layers:
        stem = layer(stem)
    return [stem, *of_backbone(theirs, pixel_values)]


def of_windowed_dinov2(theirs: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """Of every stage, with the windows of those that the config selected."""
    theirs.config.out_features = theirs.config.stage_names
    return of_backbone(theirs, pixel_values)


@dataclass(frozen=True)
class Case:
    """A family: transformers' model, options of its config, image sizes beside the native one."""

    model: type[nn.Module]
    options: dict[str, Any]
    sizes: tuple[tuple[int, int], ...]  # the native size first
    maps: Maps = of_backbone  # every stage of theirs
    ours: dict[str, Any] = field(default_factory=dict)  # options that transformers' config does not have


PYRAMID = {"out_features": ["stem", "stage1", "stage2", "stage3", "stage4"]}
_THREE = {"out_features": PYRAMID["out_features"][:4]}
_HGNET = {
    "stem_channels": [3, 12, 16],
    "stage_mid_channels": [8, 12, 16, 24],
    "stage_num_blocks": [1, 2, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [3, 3, 2, 2],
}
_STAGES = {"out_features": PYRAMID["out_features"][1:]}
_CONVNEXT = {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 2, 1, 1], "layer_scale_init_value": 1.0}
_PLAIN = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
_LAYERS = {"out_features": ["stem", "stage1", "stage2", "stage3"]}
_DINOV2 = {**_PLAIN, **_LAYERS, "image_size": 70, "patch_size": 14}
_WINDOWS = {"image_size": 56, "num_windows": 2, "out_features": ["stage1", "stage3"]}
_LW_WINDOWS = {"num_windows": 4, "window_block_indices": [0, 2]}
_DINOV3 = {**_PLAIN, **_LAYERS, "intermediate_size": 96}
_SWIN = {"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4, **PYRAMID}

CASES = {
    "resnet": Case(
        transformers.ResNetBackbone,
        {"embedding_size": 24, "hidden_sizes": [32, 64, 64, 128], "depths": [2, 1, 1, 2], **PYRAMID},
        ((64, 64), (65, 98)),
    ),
    "resnet, basic": Case(
        transformers.ResNetBackbone,
        {"hidden_sizes": [64, 32, 64, 64], "depths": [1, 2, 1, 1], "layer_type": "basic", **PYRAMID},
        ((64, 64), (65, 98)),
    ),
    "resnet, v1": Case(
        transformers.ResNetBackbone,
        {"hidden_sizes": [32, 64, 64, 64], "depths": [1, 2, 1, 1], "downsample_in_bottleneck": True, **PYRAMID},
        ((64, 64), (65, 98)),
    ),
    "rt_detr_resnet": Case(
        transformers.RTDetrResNetBackbone,
        {"embedding_size": 24, "hidden_sizes": [32, 64, 64, 128], "depths": [2, 1, 1, 2], **PYRAMID},
        ((64, 64), (65, 98)),
    ),
    "rt_detr_resnet, basic": Case(
        transformers.RTDetrResNetBackbone,
        {"embedding_size": 32, "hidden_sizes": [32, 48, 64], "depths": [2, 1, 1], "layer_type": "basic", **_THREE},
        ((64, 64), (65, 98)),
    ),
    "rt_detr_resnet, v1": Case(
        transformers.RTDetrResNetBackbone,
        {"hidden_sizes": [32, 64, 96], "depths": [1, 2, 1], "downsample_in_bottleneck": True, **_THREE},
        ((64, 64), (65, 98)),
    ),
    "hgnet_v2": Case(
        transformers.HGNetV2Backbone,
        {**_HGNET, "stage_out_channels": [32, 48, 64, 96], "stage_in_channels": [16, 32, 48, 64], **PYRAMID},
        ((64, 64), (65, 98)),
    ),
    "hgnet_v2, affine, three stages": Case(  # as in DEIMv2's smallest
        transformers.HGNetV2Backbone,
        {
            **{name: value[:3] if name.startswith("stage") else value for name, value in _HGNET.items()},
            "stage_out_channels": [32, 48, 64],
            "stage_in_channels": [16, 32, 48],
            "use_learnable_affine_block": True,
            "depths": [1, 1, 1],
            **_THREE,
        },
        ((64, 64), (65, 98)),
    ),
    "swin": Case(transformers.SwinBackbone, _SWIN, ((224, 224), (250, 333))),
    "swinv2": Case(
        transformers.Swinv2Backbone,
        {**_SWIN, "image_size": 128, "pretrained_window_sizes": [3, 3, 3, 2]},
        ((128, 128), (250, 333)),
    ),
    "convnext": Case(transformers.ConvNextBackbone, {**_CONVNEXT, **PYRAMID}, ((64, 64), (65, 98))),
    "convnextv2": Case(
        transformers.ConvNextV2Backbone,
        {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 2, 1, 1], **PYRAMID},
        ((64, 64), (65, 98)),
    ),
    "vit": Case(
        transformers.ViTModel,
        {**_PLAIN, "intermediate_size": 80, "image_size": 64},
        ((64, 64), (65, 98), (96, 32)),
        maps=of_vit,
    ),
    "dinov2": Case(transformers.Dinov2Backbone, _DINOV2, ((70, 70), (65, 98), (140, 42))),
    "dinov2, raw maps": Case(transformers.Dinov2Backbone, {**_DINOV2, "apply_layernorm": False}, ((70, 70), (65, 98))),
    "dinov2, giant": Case(transformers.Dinov2Backbone, {**_DINOV2, "use_swiglu_ffn": True}, ((70, 70), (65, 98))),
    "dinov2_with_registers": Case(
        transformers.Dinov2WithRegistersBackbone,
        {**_DINOV2, "num_register_tokens": 4},
        ((70, 70), (65, 98), (140, 42)),
    ),
    "rf_detr_dinov2": Case(  # of rectangles, transformers' windows are none
        transformers.RfDetrDinov2Backbone, {**_DINOV2, **_WINDOWS}, ((56, 56), (75, 84), (28, 20)), of_windowed_dinov2
    ),
    "rf_detr_dinov2, SwiGLU": Case(
        transformers.RfDetrDinov2Backbone,
        {**_DINOV2, **_WINDOWS, "use_swiglu_ffn": True},
        ((56, 56), (75, 84)),
        of_windowed_dinov2,
    ),
    "lw_detr_vit": Case(
        transformers.LwDetrViTBackbone,
        {**_PLAIN, **_LAYERS, "image_size": 64, "pretrain_image_size": 64, **_LW_WINDOWS},
        ((64, 64), (65, 98), (96, 32)),
    ),
    "dinov3_vit": Case(
        transformers.DINOv3ViTBackbone, {**_DINOV3, "num_register_tokens": 4}, ((64, 64), (65, 98), (96, 32))
    ),
    "dinov3_vit, gated, raw maps": Case(
        transformers.DINOv3ViTBackbone,
        {
            **_DINOV3,
            "use_gated_mlp": True,
            "hidden_act": "silu",
            "apply_layernorm": False,
            "value_bias": False,
            "query_bias": False,
        },
        ((64, 64), (65, 98)),
    ),
    "dinov3_convnext": Case(
        transformers.DINOv3ConvNextBackbone, {**_CONVNEXT, **_STAGES}, ((64, 64), (65, 98)), maps=of_dinov3_convnext
    ),
}


@torch.no_grad()
def perturb(model: nn.Module) -> nn.Module:
    """Random values everywhere; maps keep a spread of about 1 through the layers."""
    torch.manual_seed(0)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            scale = "norm" in type(module).__name__.lower() and name == "weight"
            if isinstance(module, nn.BatchNorm2d) and scale:
                p.uniform_(1.0, 2.0)  # a ReLU follows
            elif scale or name in ("lambda1", "gamma", "layer_scale_parameter", "scale"):
                p.uniform_(0.5, 1.5)
            elif p.ndim == 1 or "position" in name or "token" in name or "GRN" in type(module).__name__:
                p.normal_(std=0.5)
            elif name == "logit_scale":
                p.uniform_(1.0, 3.0)
            else:  # fan-in scaling keeps the signal's size through all layers
                p.normal_(std=p[0].numel() ** -0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def pair(name: str) -> tuple[nn.Module, Backbone]:
    """transformers' model, and ours with the weights that it saved; every stage is selected."""
    case = CASES[name]
    theirs = perturb(case.model(case.model.config_class(**case.options)))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        raw = json.loads((Path(folder) / "config.json").read_text())
        cls = transformers_families()[raw["model_type"]]
        config = cls.from_transformers({**raw, **case.ours})
        config.out_indices = list(range(len(config.stages)))
        ours = config.build()
        report = load_pretrained(ours, config, folder)
    assert not report.missing
    assert not report.unexpected
    return theirs, ours.eval()


@torch.no_grad()
def differences(name: str, theirs: nn.Module, ours: Backbone, size: tuple[int, int]) -> dict[str, float]:
    """Largest difference of each stage's maps, in standard deviations of transformers' map.

    Where ours pads an image, transformers gets the padded one (most of its models drop the rest of an image that
    their strides do not divide), and its maps are cropped.
    """
    pixel_values = 2 * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    pixel_values = pixel_values.to(next(ours.parameters()).dtype)
    maps = ours(pixel_values).feature_maps
    found = {}
    expected = CASES[name].maps(theirs, pad_to_multiple(pixel_values, ours.multiple))
    for spec, x, y in zip(ours.out_specs, maps, expected, strict=True):
        y = y[:, :, : x.shape[2], : x.shape[3]]
        assert x.shape == y.shape
        assert y.std() >= 1, f"{name} {spec.name}: a spread of {float(y.std()):.2g} shows nothing"
        found[spec.name] = float((x - y).abs().max() / y.std())
    return found
