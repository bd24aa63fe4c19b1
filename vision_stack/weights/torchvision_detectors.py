"""torchvision's detectors with a ResNet: which parts of ours they are, and their tensors by our names, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, detection, get_model_weights

from vision_stack.config import ConfigError, registered, to_dict

PREFIX = "torchvision/"  # of the names that `weights=` takes


class Detector(NamedTuple):
    """One of torchvision's models."""

    head: str
    version: str | None = None  # of the head
    zero_eps: bool = False  # the published weights were trained with batch norms that add nothing to the variance


DETECTORS: dict[str, Detector] = {
    "fasterrcnn_resnet50_fpn": Detector("faster_rcnn", "v1", zero_eps=True),
    "fasterrcnn_resnet50_fpn_v2": Detector("faster_rcnn", "v2"),
    "maskrcnn_resnet50_fpn": Detector("mask_rcnn", "v1", zero_eps=True),
    "maskrcnn_resnet50_fpn_v2": Detector("mask_rcnn", "v2"),
    "retinanet_resnet50_fpn": Detector("retinanet", "v1", zero_eps=True),
    "retinanet_resnet50_fpn_v2": Detector("retinanet", "v2"),
    "fcos_resnet50_fpn": Detector("fcos"),
}
HEADS = frozenset(detector.head for detector in DETECTORS.values())
# Blocks of layer3, convolutions of a block -> name.
_RESNETS = {(2, 2): "resnet18", (6, 2): "resnet34", (6, 3): "resnet50", (23, 3): "resnet101", (36, 3): "resnet152"}
_REMEDY = {  # name -> options of its parts
    name: " ".join(
        [
            f"head={known.head}",
            *([f"head.version={known.version}"] if known.version else []),
            "backbone=resnet50 neck=fpn neck.channels=256",
            f"neck.norm={'batch' if 'rcnn' in known.head and known.version == 'v2' else 'none'}",
            "and the other options of the neck and the head at their defaults",
        ]
    )
    for name, known in DETECTORS.items()
}
_EPS = 1e-5  # of batch norms
# Layers before torchvision 0.13, which the older published files have -> as they are since.
_OLD_NAMES = [
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
]
_OLD_MASK = re.compile(r"(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)$")
_OLD_DENSE = re.compile(r"(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)$")
_OURS = [  # beginnings of names: theirs, ours
    ("backbone.body.", "backbone.net."),
    ("backbone.fpn.inner_blocks.", "neck.lateral."),
    ("backbone.fpn.layer_blocks.", "neck.output."),
    ("backbone.fpn.extra_blocks.p6.", "neck.extra.0."),
    ("backbone.fpn.extra_blocks.p7.", "neck.extra.1."),
    ("rpn.", "head.rpn."),
    ("roi_heads.", "head.roi_heads."),
    ("head.", "head.head."),
]
_FPN = ("neck.lateral.", "neck.output.")
_FPN_LAYERS = {"0": "conv", "1": "norm"}
_FPN_NUMBERS = {ours: theirs for theirs, ours in _FPN_LAYERS.items()}
_CLASSIFIER = "head.classification_head.cls_logits."  # of RetinaNet and FCOS
NEVER = -100.0  # the logit of a class that is not to be found


def published(name: str) -> WeightsEnum:
    """The published weights of `torchvision/<name>`; ConfigError if there is no such detector."""
    if name not in DETECTORS:
        raise ConfigError(f"weights: no detector {PREFIX}{name}; there are {', '.join(DETECTORS)}")
    return get_model_weights(name).DEFAULT


def _published_as(file: str) -> str | None:
    """The name of the detector whose published weights torch.hub keeps in a file of this name."""
    return next((name for name in DETECTORS if PurePath(urlparse(published(name).url).path).name == file), None)


def recognise(state: Mapping[str, Tensor]) -> Detector | None:
    """The detector that a state dict is of; None if it is of none."""
    if not any(key.startswith("backbone.body.layer1.") for key in state) or not any(".fpn." in key for key in state):
        return None
    if "roi_heads.box_predictor.cls_score.weight" in state:
        head = "mask_rcnn" if any(key.startswith("roi_heads.mask_head.") for key in state) else "faster_rcnn"
        return Detector(head, "v2" if "backbone.fpn.inner_blocks.0.1.weight" in state else "v1")
    if "head.regression_head.bbox_ctrness.weight" in state:
        return Detector("fcos")
    if "head.classification_head.cls_logits.weight" in state:
        return Detector("retinanet", "v2" if "head.classification_head.conv.0.1.weight" in state else "v1")
    return None


def options_of(detector: Detector, state: Mapping[str, Tensor], file: str) -> dict[str, Any]:
    """Plain options of a `VisionModelConfig` for the weights of `file`, with a class per row but the background's.

    Raises:
        ConfigError: the ResNet is not one of torchvision's, or a tensor that says the sizes is missing.
    """
    resnet = _resnet(state)
    if resnet is None:
        raise ConfigError("a detector of torchvision, but its backbone is not a ResNet-18, 34, 50, 101 or 152")
    dense, second = "rcnn" not in detector.head, detector.version == "v2"
    return {
        "backbone": {
            "type": "torchvision",
            "model_name": resnet,
            "out_strides": [8, 16, 32] if dense else [4, 8, 16, 32],
            "freeze_norm": "backbone.body.bn1.num_batches_tracked" not in state,
        },
        "neck": {"type": "fpn", "norm": "batch" if second and not dense else "none"},
        "head": {"type": detector.head, **({"version": detector.version} if detector.version else {})},
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(_class_names(detector, state, file), 1)
        ],
        "task": "instance" if detector.head == "mask_rcnn" else "detection",
        "input_size": {"short_edge": 800, "long_edge": 1333},
    }


def to_ours(detector: Detector, state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """torchvision's tensors by our names.

    Two things differ beside the names: ours have no row of the background where it is never found, and our batch norms
    an epsilon.
    """
    name = _published_as(file)
    zero_eps = name is not None and DETECTORS[name].zero_eps
    anchors = 0 if "rcnn" in detector.head else _anchors(state)
    ours = {}
    for old, value in state.items():
        key = _renewed(old, detector)
        if zero_eps and key.startswith("backbone.body.") and key.endswith("running_var"):
            value = value - _EPS  # which our batch norms add again
        ours[_renamed(key)] = _without_background(key, value, anchors)
    return ours


def to_torchvision(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by torchvision's names, for the model that `constructor` names.

    Args:
        config: plain options of a `VisionModelConfig`.
        state: of a `VisionModel` with `head=faster_rcnn`, `mask_rcnn`, `retinanet` or `fcos` on a ResNet and an FPN.

    Raises:
        ConfigError: torchvision has no detector of these parts; the line says which it has.
    """
    if config["head"]["type"] not in HEADS or config["neck"]["type"] != "fpn":
        parts = f"head={config['head']['type']} neck={config['neck']['type']}"
        raise ConfigError(f"{parts}: torchvision has only {', '.join(sorted(HEADS))}, with neck=fpn")
    theirs = {_named_theirs(name): value for name, value in state.items() if not name.startswith("image_")}
    anchors = 0 if "rcnn" in config["head"]["type"] or _resnet(theirs) is None else _anchors(theirs)
    theirs = {key: _with_background(key, value, anchors) for key, value in theirs.items()}
    name = _name_of(config)
    if problem := _misfit(name, config, theirs):
        raise ConfigError(f"{problem}, so torchvision's {name} does not load it; train with {_REMEDY[name]}")
    return theirs


def constructor(config: Mapping[str, Any]) -> str:
    """The call that builds torchvision's model for what `to_torchvision` returns, with its sizes of images."""
    size = config["input_size"]
    sizes = {"min_size": (size["short_edge"], 800), "max_size": (size["long_edge"], 1333)}
    arguments = ["weights=None", "weights_backbone=None", f"num_classes={len(config['categories']) + 1}"]
    arguments += [f"{name}={value}" for name, (value, default) in sizes.items() if value != default]
    return f"torchvision.models.detection.{_name_of(config)}({', '.join(arguments)})"


def _name_of(config: Mapping[str, Any]) -> str:
    """Of torchvision's model with this head."""
    head = config["head"]
    return next(
        name for name, known in DETECTORS.items() if (known.head, known.version) == (head["type"], head.get("version"))
    )


def _misfit(name: str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str | None:
    """What differs from torchvision's model of this name: an option, or a tensor; None if it loads the state."""
    network = str(config["backbone"].get("model_name")).partition(".")[0]
    if network != "resnet50" or _resnet(state) != "resnet50":
        return f"backbone={config['backbone']['type']}: not a ResNet-50 of torchvision's or timm's"
    default = to_dict(registered("head")[config["head"]["type"]]())
    for option in ("anchor_scale", "aspect_ratios"):  # which no tensor shows
        if config["head"].get(option) != default.get(option):
            return f"head.{option}: {config['head'][option]}, not {default[option]}"
    if config["neck"]["upsample"] != "nearest":
        return f"neck.upsample: {config['neck']['upsample']}, not nearest"
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=len(config["categories"]) + 1)
    wanted = _shapes(model.state_dict())
    differing = sorted(key for key, shape in (_shapes(state).items() ^ wanted.items()))
    return f"{differing[0]}: another layer, or one of another size" if differing else None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Without counters, which frozen batch norms do not have."""
    return {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _resnet(state: Mapping[str, Tensor]) -> str | None:
    """The name of the ResNet in a state dict of torchvision's."""
    blocks = {key.split(".")[3] for key in state if key.startswith("backbone.body.layer3.")}
    convs = [key for key in state if re.fullmatch(r"backbone\.body\.layer1\.0\.conv\d\.weight", key)]
    return _RESNETS.get((len(blocks), len(convs)))


def _class_names(detector: Detector, state: Mapping[str, Tensor], file: str) -> list[str]:
    """Of all rows but the background's; those of published weights as torchvision has them."""
    name = _published_as(file)
    if name and DETECTORS[name].head == detector.head:
        names = published(name).meta["categories"][1:]
        return [each if each != "N/A" else f"unused {i}" for i, each in enumerate(names, 1)]
    if "rcnn" in detector.head:
        rows = _rows(state, "roi_heads.box_predictor.cls_score.weight")
    else:
        anchors = _anchors(state)
        rows = _rows(state, f"{_CLASSIFIER}weight", multiple_of=anchors) // anchors
    return [f"class {i}" for i in range(1, rows)]


def _anchors(state: Mapping[str, Tensor]) -> int:
    """Of each cell, of RetinaNet and FCOS."""
    return _rows(state, "head.regression_head.bbox_reg.weight", multiple_of=4) // 4


def _rows(state: Mapping[str, Tensor], key: str, multiple_of: int = 1) -> int:
    """Of the tensor of this name, at least one.

    Raises:
        ConfigError: there is no such tensor, or it has another number of rows.
    """
    if key not in state:
        raise ConfigError(f"{key}: missing from the state dict")
    shape = tuple(state[key].shape)
    if not shape or not shape[0] or shape[0] % multiple_of:
        raise ConfigError(f"{key}: its shape {list(shape)} does not start with a multiple of {multiple_of}")
    return shape[0]


def _renewed(key: str, detector: Detector) -> str:
    """The key of a layer as it is named since torchvision 0.13."""
    for pattern, now in _OLD_NAMES:
        key = pattern.sub(now, key)
    key = _OLD_MASK.sub(lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}", key)
    if detector == Detector("retinanet", "v1"):  # where ReLUs were counted, too
        key = _OLD_DENSE.sub(lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", key)
    return key


def _renamed(key: str) -> str:
    """Their key -> ours."""
    return _translated(key, _OURS, _FPN_LAYERS)


def _named_theirs(name: str) -> str:
    """Our key -> theirs."""
    return _translated(name, [(ours, theirs) for theirs, ours in _OURS], _FPN_NUMBERS)


def _translated(key: str, beginnings: Sequence[tuple[str, str]], fpn_layers: Mapping[str, str]) -> str:
    """The key with its beginning exchanged and, in an FPN, the last layer but one, too."""
    for old, new in beginnings:
        if key.startswith(old):
            name = new + key.removeprefix(old)
            if not {old, new} & set(_FPN):
                return name
            path, layer, tensor = name.rsplit(".", 2)
            return f"{path}.{fpn_layers.get(layer, layer)}.{tensor}"
    return key


def _without_background(key: str, value: Tensor, anchors: int) -> Tensor:
    """RetinaNet's and FCOS's row of class 0, which is never found, is not built here."""
    return value.unflatten(0, (anchors, -1))[:, 1:].flatten(0, 1) if key.startswith(_CLASSIFIER) else value


def _with_background(key: str, value: Tensor, anchors: int) -> Tensor:
    if not key.startswith(_CLASSIFIER):
        return value
    rows = value.unflatten(0, (anchors, -1))
    background = torch.zeros_like(rows[:, :1])
    if key.endswith("bias"):
        background.fill_(NEVER)
    return torch.cat([background, rows], 1).flatten(0, 1)
