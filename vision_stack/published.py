"""Published models as parts of ours: those of transformers in `weights/architectures.py`, and torchvision's detectors.

They are read here, never by transformers. Nothing in such a directory is imported or executed: json is decoded by the
registry, tensors are read as tensors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_stack.backbones.base import Backbone
from vision_stack.backbones.config_json import decode_backbone
from vision_stack.backbones.hub import PublishedWeights, fetch_from_hub, published_file
from vision_stack.backbones.pretrained import LoadReport
from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.ops.run_files import BEST_CHECKPOINT, LAST_CHECKPOINT
from vision_stack.weights.architectures import architecture_of
from vision_stack.weights.checks import faults_of
from vision_stack.weights.encoder import split_encoder
from vision_stack.weights.files import find_weights_file, read_json, read_tensors
from vision_stack.weights.torchvision_detectors import PREFIX, options_of, published, recognise, to_ours
from vision_stack.weights.transformers_config import (
    OWN_FIELDS,
    OWN_KEY,
    THINGS,
    class_names,
    guess_task,
    is_foreign,
)

CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
_DETECTOR_SUFFIX = ".pth"  # of a state dict of torchvision's


class PublishedModel(NamedTuple):
    """A checkpoint of transformers or torchvision."""

    source: str
    config: dict[str, Any]  # plain options of a `VisionModelConfig`
    state: dict[str, Tensor]  # in their layout
    to_ours: Callable[[Backbone], tuple[dict[str, Tensor], list[str]]]  # its state, and what of theirs is not built


def locate(source: str | Path) -> Path:
    """The directory or file that a path, a Hub id or `torchvision/<detector>` means; the latter two are looked up in
    the cache, then downloaded.

    The folder of a run means its best checkpoint, the last one if nothing was validated.

    Raises:
        ValueError: neither exists; the line says what was tried.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
            if (path / name).is_file():
                return path / name
    if not path.exists() and str(source).startswith(PREFIX):
        weights = published(str(source).removeprefix(PREFIX))
        return published_file(PublishedWeights(None, weights.url), "weights")[0]
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        return path
    tried: list[str] = []
    found = fetch_from_hub(PublishedWeights(str(source), None, (CONFIG_FILE,)), tried)
    if found is not None and fetch_from_hub(PublishedWeights(str(source), None), tried):
        fetch_from_hub(PublishedWeights(str(source), None, (PROCESSOR_FILE,)), [])  # not every repository has one
        return found[0].parent
    raise ValueError(f"{source}: no such path, and could not be fetched from the Hub; tried {', '.join(tried)}")


def read_published(path: Path, source: str | Path) -> PublishedModel | None:
    """The model of a directory that transformers wrote, or of a state dict of one of torchvision's detectors (`.pth`);
    None of any other path, which is one of ours.

    Raises:
        ConfigError: one line with the file and the field: it cannot be read, or is a model that is not built here.
    """
    if path.suffix == _DETECTOR_SUFFIX and not path.is_dir():
        return _read_detector(path, source)
    if (path / CONFIG_FILE).is_file() and is_foreign(raw := read_json(path / CONFIG_FILE)):
        return _read_directory(path, raw, source)
    return None


def _read_directory(directory: Path, raw: Mapping[str, Any], source: str | Path) -> PublishedModel:
    """A directory with config.json, which holds `raw`, weights and, if there is one, preprocessor_config.json."""
    file = directory / CONFIG_FILE
    try:
        architecture = architecture_of(raw)
        neck, head = architecture.parts(raw)
        names = class_names(raw)
        backbone = to_dict(decode_backbone(architecture.backbone(raw)))
        from_dict(neck, kind="neck")
        decoded = from_dict(head, kind="head")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    task = guess_task(str(source), raw["model_type"])
    if not decoded.serves(task):
        task = "detection"
    num_things = THINGS.get((task, len(names)), len(names))
    config = {
        "backbone": backbone,
        "neck": neck,
        "head": head,
        "categories": [{"id": i, "name": name, "is_thing": i < num_things} for i, name in enumerate(names)],
        "task": task,
        **_processing(directory / PROCESSOR_FILE),
        **_own_fields(raw, names),
    }
    state = read_tensors(find_weights_file(str(directory)))
    return PublishedModel(str(source), config, state, partial(from_transformers, raw, state))


def _read_detector(file: Path, source: str | Path) -> PublishedModel:
    """A state dict of one of torchvision's detectors."""
    state = read_tensors(file)
    detector = recognise(state)
    if detector is None:
        raise ConfigError(
            f"{file}: not a state dict of a detector of torchvision; give a .ckpt file, or a directory with config.json"
        )
    with faults_of(file):
        config = options_of(detector, state, file.name)
    return PublishedModel(str(source), config, state, lambda _: (to_ours(detector, state, file.name), []))


def convert(
    model: PublishedModel, backbone: Backbone, own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """State in their layout -> state of the `VisionModel` with this backbone, whose present state is `own`.

    Raises:
        ConfigError: the weights do not fit the config; one line.
    """
    try:
        ours, not_built = model.to_ours(backbone)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(f"weights do not fit the config ({error})") from None
    # A counter of batch norms matters to no prediction; older files have none, and frozen norms need none.
    counters = {name for name in own.keys() | ours.keys() if name.endswith("num_batches_tracked")}
    ours = {name: value for name, value in ours.items() if name in own or name not in counters}
    ours |= {name: torch.tensor(0) for name in counters - ours.keys() if name in own}
    shapes = {tuple(value.shape) for value in model.state.values()}
    report = LoadReport(
        source=model.source,
        image_mean=tuple(backbone.image_mean),
        image_std=tuple(backbone.image_std),
        matched=tuple(name for name in ours if name in own),
        missing=tuple(name for name in own if name not in ours),
        unexpected=tuple(name for name in ours if name not in own),
        reshaped=tuple(name for name, value in ours.items() if tuple(value.shape) not in shapes),
        not_built=tuple(not_built),
    )
    return ours, report


def from_transformers(
    raw: Mapping[str, Any], state: Mapping[str, Tensor], backbone: Backbone
) -> tuple[dict[str, Tensor], list[str]]:
    """State of the model of a config.json in transformers' layout -> ours, and what of it is not built."""
    entry = architecture_of(raw)
    if entry.prefix is None:
        return entry.convert(state), []
    encoder, rest = split_encoder(state, entry.prefix)
    converted, not_built = backbone.convert_weights(encoder)
    ours = {f"backbone.{name}": value for name, value in converted.items()}
    training_only = [name for name in rest if name == "criterion.empty_weight"]
    return ours | entry.convert(rest), [*not_built, *training_only]


def _own_fields(raw: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What `export_transformers` wrote beside transformers' fields, unless the classes have since become others."""
    own = raw.get(OWN_KEY)
    if not isinstance(own, Mapping):
        return {}
    categories = own.get("categories")
    if not isinstance(categories, list) or not all(isinstance(each, Mapping) for each in categories):
        return {}
    if [each.get("name") for each in categories] != list(names):
        return {}
    return {name: own[name] for name in OWN_FIELDS if name in own}


def _processing(file: Path) -> dict[str, Any]:
    """Mean, std and input size that a preprocessor_config.json says; nothing where there is no such file.

    Raises:
        ConfigError: pixels of a scale that says nothing.
    """
    if not file.is_file():
        return {}
    raw = read_json(file)
    found = {name: raw[name] for name in ("image_mean", "image_std") if isinstance(raw.get(name), list)}
    if raw.get("do_normalize") is False:
        found = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    factor = 255 * _rescale_factor(file, raw)  # of pixels in [0, 1], which ours are
    if abs(factor - 1) > 1e-6:
        if len(found) < 2 or not all(isinstance(x, int | float) for values in found.values() for x in values):
            raise ConfigError(f"{file}: image_mean, image_std: needed in full where rescale_factor is not 1/255")
        found = {name: [x / factor for x in values] for name, values in found.items()}
    return {**found, **_input_size(file, raw)}


def _input_size(file: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The size that images are resized to. Where theirs are stretched to a height and a width, ours fit into them."""
    size = raw.get("size")
    edges = size if isinstance(size, Mapping) else {"shortest_edge": size, "longest_edge": raw.get("max_size")}
    for names in (("shortest_edge", "longest_edge"), ("height", "width")):
        short, long = (edges.get(name) for name in names)
        if isinstance(short, int) and isinstance(long, int):
            if "height" in names:
                warnings.warn(
                    f"{file}: size: {size!r:.80} stretches images; here they are scaled to fit into it and keep their "
                    "aspect",
                    stacklevel=4,
                )
            return {"input_size": {"short_edge": min(short, long), "long_edge": max(short, long)}}
    if size is not None or raw.get("do_resize") is False:
        given = "do_resize: false" if raw.get("do_resize") is False else f"size: {size!r:.80}"
        warnings.warn(
            f"{file}: {given} is not a shortest and longest edge; images are resized to the model's "
            "input_size instead, which keeps their aspect",
            stacklevel=4,
        )
    return {}


def _rescale_factor(file: Path, raw: Mapping[str, Any]) -> float:
    """What pixels in 0..255 are multiplied by."""
    if raw.get("do_rescale") is False:
        return 1.0
    factor = raw.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ConfigError(f"{file}: rescale_factor: expected a positive number, got {factor!r:.60}")
    return float(factor)
