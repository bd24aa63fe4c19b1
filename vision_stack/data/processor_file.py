"""Reading transformers' `preprocessor_config.json`: what each of its image processors does with the file's fields.

transformers' classes ignore some of the fields, need others, and have defaults of their own for those that are left
out; so does this table. Fields that concern label maps (`ignore_index`, `do_reduce_labels`, `num_labels`) change no
pixel of an image. What transformers itself fails on, and classes that are not in the table, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from vision_stack.config import ConfigError
from vision_stack.data.processor import ImageProcessor

_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_BILINEAR, _BICUBIC = {"resample": 2}, {"resample": 3}
_FILTERS = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers, which the files hold
_ALWAYS = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}

_SHORT, _SHORT_LONG, _LONG = {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"longest_edge"}
_EXACT, _WITHIN, _AREA = {"height", "width"}, {"max_height", "max_width"}, {"min_pixels", "max_pixels"}
_ANY = (_EXACT, _SHORT, _SHORT_LONG, _WITHIN)


@dataclass(frozen=True)
class _Kind:
    """One of transformers' image processors."""

    defaults: Mapping[str, Any]
    sizes: tuple[set[str], ...] = _ANY  # the keys of `size` that it resizes by
    square: bool = True  # `default_to_square`: a number for `size` means height and width, not the shortest edge
    crops: bool = True  # follows `do_center_crop`
    pads: bool = True  # follows `do_pad`, and `pad_size` then
    masks: bool = False  # pads with a mask, and in any case where it does not follow `do_pad`
    divides: bool = False  # follows `size_divisor` in resizing
    max_size: bool = False  # follows `max_size`, the longest edge of older files


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


_SEGMENTER = {**_BILINEAR, **_IMAGENET, "size": {"shortest_edge": 800, "longest_edge": 1333}}
_MASKFORMER = _Kind(
    {**_SEGMENTER, "size_divisor": 32},
    sizes=(_EXACT, _SHORT_LONG, _WITHIN),
    square=False,
    crops=False,
    pads=False,
    masks=True,
    divides=True,
    max_size=True,
)
_CLIP_KIND = _Kind(
    {**_BICUBIC, **_CLIP, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": _square(224)},
    square=False,
)
_KINDS = {
    "Beit": _Kind({**_BICUBIC, **_HALF, "size": _square(224), "crop_size": _square(224)}, pads=False),
    "Bit": _CLIP_KIND,
    "CLIP": _CLIP_KIND,
    "ConvNext": _Kind(
        {**_BICUBIC, **_HALF, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
        sizes=(_SHORT, _SHORT_LONG),
        square=False,
        pads=False,
    ),
    "DINOv3ViT": _Kind({**_BILINEAR, **_IMAGENET, "size": _square(224)}, pads=False),
    "DPT": _Kind({**_BICUBIC, **_HALF, "size": _square(384), "ensure_multiple_of": 1}, sizes=(_EXACT,), pads=False),
    "DeiT": _Kind(
        {**_BICUBIC, **_HALF, "size": _square(256), "do_center_crop": True, "crop_size": _square(224)},
    ),
    "Detr": _Kind(
        {**_SEGMENTER, "do_pad": True},
        sizes=(_EXACT, _SHORT_LONG, _WITHIN),
        square=False,
        crops=False,
        masks=True,
        max_size=True,
    ),
    "Mask2Former": _MASKFORMER,
    "MaskFormer": _MASKFORMER,
    "OneFormer": _Kind(_SEGMENTER, square=False, crops=False, pads=False, masks=True),
    "Pvt": _Kind({**_BICUBIC, **_IMAGENET, "size": _square(224)}),
    "Segformer": _Kind({**_BILINEAR, **_IMAGENET, "size": _square(512)}, crops=False, pads=False),
    "Siglip": _Kind({**_BICUBIC, **_HALF, "size": _square(224)}, square=False),
    "ViT": _Kind({**_BILINEAR, **_HALF, "size": _square(224)}),
}
# Of a model's config.json, for files that do not name their class.
_KIND_OF_MODEL = {
    "beit": "Beit",
    "bit": "Bit",
    "clip": "CLIP",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "deit": "DeiT",
    "detr": "Detr",
    "dinat": "ViT",
    "dinov2": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "dpt": "DPT",
    "focalnet": "Bit",
    "hiera": "Bit",
    "mask2former": "Mask2Former",
    "maskformer": "MaskFormer",
    "oneformer": "OneFormer",
    "pvt_v2": "Pvt",
    "resnet": "ConvNext",
    "segformer": "Segformer",
    "siglip": "Siglip",
    "swin": "ViT",
    "swinv2": "ViT",
    "vit": "ViT",
}


def decode_processor(file: Mapping[str, Any], model_type: Any = None) -> ImageProcessor:
    """An `ImageProcessor` from a parsed preprocessor_config.json of transformers.

    Args:
        file: its fields.
        model_type: of the config.json beside it; says the class where the file does not.

    Raises:
        ConfigError: a class that is not known here, a value of the wrong type or out of range, or values on which
            transformers itself fails.
    """
    name = _kind_name(file, model_type)
    kind = _KINDS[name]
    raw = {**_ALWAYS, **kind.defaults, **{field: value for field, value in file.items() if value is not None}}
    options: dict[str, Any] = {}
    if raw["do_resize"]:
        options = {"interpolation": _interpolation(raw["resample"]), **_resizing(name, kind, raw, file)}
    if raw.get("do_center_crop"):
        crop_size = _height_width(raw.get("crop_size"), "crop_size")
        if "crop_size" in options:
            raise ConfigError("do_center_crop: true as well as crop_pct, which crops already; leave it false")
        options |= {"crop_size": crop_size} if kind.crops else {}
    options["rescale_factor"] = raw["rescale_factor"] if raw["do_rescale"] else 1.0
    if raw["do_normalize"]:
        options |= {field: _per_channel(raw[field]) for field in ("image_mean", "image_std")}
    if name == "DINOv3ViT":
        if raw["do_normalize"] and not raw["do_rescale"]:
            raise ConfigError(
                "do_rescale: false, with which transformers does not normalise; set do_normalize to false"
            )
        options["rescale_first"] = bool(raw["do_rescale"])
    return ImageProcessor(**options, **_padding(name, kind, raw))


def _kind_name(file: Mapping[str, Any], model_type: Any) -> str:
    given = file.get("image_processor_type")
    if given is None and isinstance(file.get("feature_extractor_type"), str):
        given = file["feature_extractor_type"].replace("FeatureExtractor", "ImageProcessor")
    if given is None:
        if isinstance(model_type, str) and model_type in _KIND_OF_MODEL:
            return _KIND_OF_MODEL[model_type]
        raise ConfigError("image_processor_type: missing; give transformers' class, for example 'ViTImageProcessor'")
    suffixes = ("Fast", "Pil", "ImageProcessor")  # which implementation of the same
    name = str(given)
    for suffix in suffixes:
        name = name.removesuffix(suffix)
    if name not in _KINDS:
        close = get_close_matches(name, _KINDS, n=1)
        advice = f"did you mean '{close[0]}ImageProcessor'?" if close else f"known are {', '.join(_KINDS)}"
        raise ConfigError(f"image_processor_type: {given!r:.60} is not supported; {advice}")
    return name


def _interpolation(resample: Any) -> str:
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in _FILTERS:
        known = ", ".join(f"{number} ({name})" for number, name in _FILTERS.items())
        raise ConfigError(f"resample: {resample!r:.40} is not among {known}")
    return _FILTERS[resample]


def _resizing(name: str, kind: _Kind, raw: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    size = _size(name, kind, raw, file)
    keys = set(size)
    if keys not in kind.sizes:
        known = " or ".join(" and ".join(sorted(each)) for each in kind.sizes)
        raise ConfigError(f"size: {sorted(map(str, keys))} is not what {name}ImageProcessor resizes by; give {known}")
    if name == "ConvNext":
        return _convnext_resizing(size["shortest_edge"], raw["crop_pct"])
    options: dict[str, Any] = {}
    if keys == _EXACT:
        options["exact_size"] = (size["height"], size["width"])
    elif keys == _WITHIN:
        options["fit_within"] = (size["max_height"], size["max_width"])
    else:
        options |= {"short_edge": size["shortest_edge"], "long_edge": size.get("longest_edge")}
    if kind.divides and raw["size_divisor"] != 0:
        options["size_divisor"] = raw["size_divisor"]
    if name == "DPT":
        options["keep_aspect_ratio"] = bool(raw.get("keep_aspect_ratio", False))
        options["nearest_multiple"] = raw["ensure_multiple_of"]
    return options


def _size(name: str, kind: _Kind, raw: Mapping[str, Any], file: Mapping[str, Any]) -> Mapping[str, Any]:
    """`size` as a mapping, whichever way it is written, with `max_size` of older files."""
    size, longest = raw["size"], file.get("max_size")
    if isinstance(size, list | tuple) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    if isinstance(size, int) and not isinstance(size, bool):
        if not kind.max_size and raw.get("default_to_square", kind.square):
            return _square(size)
        longest = 1333 if name == "Detr" and longest is None else longest
        return {"shortest_edge": size} | ({"longest_edge": longest} if kind.max_size and longest is not None else {})
    if not isinstance(size, Mapping):
        raise ConfigError(f"size: expected a number or a mapping, got {size!r:.60}")
    if kind.divides and file.get("size") is None and longest is not None:
        return {**size, "longest_edge": longest}
    return size


def _convnext_resizing(edge: Any, crop: Any) -> dict[str, Any]:
    if not isinstance(edge, int) or not isinstance(crop, int | float) or isinstance(crop, bool) or not 0 < crop <= 10:
        raise ConfigError(
            f"crop_pct: expected a part of the image above 0, and a whole shortest_edge, got {crop!r:.40}"
        )
    if edge >= 384:
        return {"exact_size": (edge, edge)}
    return {"short_edge": int(edge / crop), "crop_size": (edge, edge)}


def _padding(name: str, kind: _Kind, raw: Mapping[str, Any]) -> dict[str, Any]:
    if name == "DPT":
        if not raw.get("do_pad"):
            return {}
        if raw.get("size_divisor") is None:
            raise ConfigError("size_divisor: missing, while do_pad is true; give it, or set do_pad to false")
        return {"pad_divisor": raw["size_divisor"]}
    if not (raw.get("do_pad") if kind.pads else kind.masks):
        return {}
    options: dict[str, Any] = {"padded": True, "with_mask": kind.masks}
    if raw.get("pad_size") is not None and (kind.pads or kind.divides):
        options["pad_size"] = _height_width(raw["pad_size"], "pad_size")
    return options


def _per_channel(value: Any) -> Any:
    return [value] * 3 if isinstance(value, int | float) and not isinstance(value, bool) else value


def _height_width(size: Any, field: str) -> tuple[Any, Any]:
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size)
    if isinstance(size, list | tuple) and len(size) == 2:
        return (size[0], size[1])
    if isinstance(size, Mapping) and set(size) == _EXACT:
        return (size["height"], size["width"])
    raise ConfigError(f"{field}: expected a number, or height and width, got {size!r:.60}")
