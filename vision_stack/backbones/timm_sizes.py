"""What timm's models ask of an image's size, by timm module, and how each of them is given images of any size.

Images are padded with zeros to the right and below, never resized. Most models need a multiple of their coarsest stride
or nothing at all. Those with tables or layers for one size (`_ONE_SIZE`) get every image padded to that size, their
canvas, which `img_size` chooses.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from timm.layers.halo_attn import HaloAttn
from timm.models.maxxvit import TransformerBlock2d
from torch import Tensor, nn

Pads = Literal["nothing", "patch", "coarsest", "windows", "canvas"]

# Built for one image size, these classes otherwise refuse others; Swin would also drop the shift of its last stage.
_ANY_SIZE = {"strict_img_size": False, "always_partition": True, "dynamic_img_size": True}
# fmt: off
# All strided layers round up. Models of other modules are padded to the coarsest stride that is asked for.
_ROUND_UP = (
    "dpn", "efficientnet", "ghostnet", "hardcorenas", "hgnet", "mobilenetv3", "nfnet", "pvt_v2", "regnet", "repvit",
    "res2net", "resnest", "resnet", "resnetv2", "rexnet", "sknet",
)
# These pad between their stages, so that only the patches of the stem must come out even.
_PAD_THEMSELVES = ("swin_transformer", "swin_transformer_v2")
# Position tables, token mixing or global queries of one size.
_ONE_SIZE = (
    "beit", "cait", "coat", "convit", "crossvit", "efficientformer", "efficientformer_v2", "gcvit", "hiera", "levit",
    "maxxvit", "mlp_mixer", "mvitv2", "nest", "pit", "tnt", "visformer", "vision_transformer_relpos", "volo",
)
IMG_SIZE_UNUSED = ("efficientformer",)  # takes the option and builds for its native size all the same
# Convolutions and poolings without padding, which lose the rim of their input: it is given to them.
_RIMLESS = {
    "inception_resnet_v2": ("conv2d_1a", "conv2d_2a", "maxpool_3a", "conv2d_4a", "maxpool_5a", "mixed_6a", "mixed_7a"),
    "inception_v3": (
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Pool1", "Conv2d_4a_3x3", "Pool2", "Mixed_6a", "Mixed_7a",
    ),
    "inception_v4": tuple(f"features.{i}" for i in (0, 1, 3, 4, 5, 10, 18)),
}
# fmt: on


class ImageSizes(NamedTuple):
    """What a model asks of an image's size."""

    pads: Pads  # what the image is padded to, if anything
    options: dict[str, Any]  # keyword arguments of timm's constructor that lift its own checks
    native: tuple[int, int]  # (height, width) that the published weights were made for


def image_sizes(whole: Any) -> ImageSizes:
    """Of a timm classifier."""
    accepted = inspect.signature(type(whole).__init__).parameters
    options = {name: value for name, value in _ANY_SIZE.items() if name in accepted}
    return ImageSizes(_pads(whole), options, tuple(whole.pretrained_cfg["input_size"][1:]))


def family(whole: Any) -> str:
    """timm's module that a model is from."""
    return type(whole).__module__.rsplit(".", 1)[-1]


def _pads(whole: Any) -> Pads:
    name = family(whole)
    kinds = {type(module) for module in whole.modules()}
    if HaloAttn in kinds or (name == "maxxvit" and TransformerBlock2d not in kinds):
        return "windows"  # which divide the native size: as many of that as it takes
    if name in _ONE_SIZE:
        return "canvas"
    if name in _RIMLESS or (name in _ROUND_UP and not any(_rounds_down(module) for module in whole.modules())):
        return "nothing"
    return "patch" if name in _PAD_THEMSELVES else "coarsest"


def _rounds_down(module: Any) -> bool:
    """A pooling that drops the last row of an odd height, as anti-aliased convolutional networks have."""
    halves = isinstance(module, nn.AvgPool2d) and module.stride in (2, (2, 2))
    return halves and not (module.padding or module.ceil_mode)


def keep_rims(net: nn.Module, family: str) -> nn.Module:
    """A row of zeros around what the layers without padding read, so that maps are ceil(H/stride) x ceil(W/stride).

    Differs from the published Inception networks at the rim of each map, which they lose.
    """
    names = _RIMLESS.get(family, ())
    for name, module in net.named_modules():
        if name.removeprefix("model.") in names or name.replace("_", ".", 1) in names:  # timm's extractors rename
            module.register_forward_pre_hook(_add_rim)
    return net


def _add_rim(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (F.pad(args[0], (1, 1, 1, 1)), *args[1:])


def pad_to(pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros to the right and below, up to `size` = (height, width)."""
    height, width = pixel_values.shape[-2:]
    below, right = size[0] - height, size[1] - width
    return F.pad(pixel_values, (0, right, 0, below)) if right or below else pixel_values
