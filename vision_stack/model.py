"""`VisionModel`: backbone -> neck -> head, with the class names and the pixel statistics that belong to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import vision_stack.backbones
import vision_stack.heads
import vision_stack.necks  # noqa: F401  importing the three packages registers what configs may name
from vision_stack.backbones.base import crop_to_image
from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.pretrained import LoadReport, load_initial_weights
from vision_stack.config import Config, ConfigError, Range, from_dict, suggest, to_dict
from vision_stack.data.images import read_image, rgb_array
from vision_stack.data.processor import Pixels
from vision_stack.ops.files import replacing
from vision_stack.ops.image import pad_batch, resize_image, resized_size, to_float
from vision_stack.published import (
    CONFIG_FILE,
    PublishedModel,
    convert,
    locate,
    read_published,
)
from vision_stack.structures import (
    SHOWN_FROM_SCORE,
    BackboneConfig,
    Category,
    DecodeOptions,
    Features,
    HeadConfig,
    ImageInfo,
    NeckConfig,
    PanopticOptions,
    Prediction,
    Target,
    Task,
    Threshold,
)
from vision_stack.weights.checkpoint import model_state, read_checkpoint
from vision_stack.weights.checks import check_finite, check_fit, check_size, faults_of
from vision_stack.weights.export import export_transformers
from vision_stack.weights.files import WEIGHTS_FILE, find_weights_file, read_json, read_tensors, save_tensors
from vision_stack.weights.torchvision_detectors import constructor, to_torchvision

MAX_LETTERS = 2_000_000  # of all class names, so that what is written can be read (weights/files.py)
SIZE_DIVISOR = 32  # what evaluation pads to by default; the same here, so that borders look the same
Positive = Annotated[float, Range(1e-6)]


@dataclass(frozen=True, kw_only=True)
class InputSize(Config):
    """How images are resized for inference: shortest edge to `short_edge`, longest at most `long_edge` pixels."""

    kind: ClassVar[str] = ""
    short_edge: Pixels = 800
    long_edge: Pixels = 1333


@dataclass(frozen=True, kw_only=True)
class VisionModelConfig(Config):
    """All that `VisionModel` is built from; what `config.json` and checkpoints hold. No paths, no initial weights."""

    kind: ClassVar[str] = ""
    backbone: BackboneConfig
    neck: NeckConfig
    head: HeadConfig
    categories: tuple[Category, ...]  # label -> the data set's category id and name
    task: Task = "instance"  # decides post-processing, metrics and what `predict` gives
    panoptic: PanopticOptions = field(default_factory=PanopticOptions)  # only read by task=panoptic
    image_mean: tuple[float, float, float] | None = None  # of RGB in [0, 1]; None: the backbone's own
    image_std: tuple[Positive, Positive, Positive] | None = None
    input_size: InputSize = InputSize()

    def check(self) -> None:
        ids = [category.id for category in self.categories]
        if not ids:
            raise ConfigError("categories: empty; a model needs at least one class")
        if len(set(ids)) != len(ids):
            raise ConfigError("categories: two classes share an id; ids must differ")
        letters = sum(len(category.name) for category in self.categories)
        if letters > MAX_LETTERS:
            raise ConfigError(f"categories: names of {letters:,} letters; at most {MAX_LETTERS:,} fit in a checkpoint")
        object.__setattr__(self, "head", self.head.fitted(self.task))
        self.head.check_task(self.task)
        if tail := self.head.tail:
            if self.neck.type != "none":
                raise ConfigError(f"neck: head={self.head.type} reads no maps but the backbone's tokens; use neck=none")
            object.__setattr__(self, "backbone", self.backbone.with_tail(tail))
        object.__setattr__(self, "neck", self.neck.fitted(self.head.pyramid))


class VisionModel(nn.Module):
    """Backbone, neck and head in one module.

    Convolution weights and inputs are kept in channels_last memory format, in which convolutions run several times
    faster on CPUs and on tensor cores; values and state dicts are the same in either format.
    """

    image_mean: Tensor
    image_std: Tensor
    load_report: LoadReport | None = None  # of a model that transformers wrote

    def __init__(self, config: VisionModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = load_initial_weights(config.backbone.build())
        self.neck = config.neck.build(self.backbone.out_specs)
        self.head = config.head.build(self.neck.out_specs, len(config.categories))
        mean = config.image_mean or self.backbone.image_mean
        std = config.image_std or self.backbone.image_std
        self.register_buffer("image_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    @property
    def categories(self) -> tuple[Category, ...]:
        """Label -> category of the data set."""
        return self.config.categories

    @property
    def device(self) -> torch.device:
        return self.image_mean.device

    def normalize(self, images: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """RGB in 0..255 (uint8) or [0, 1] -> the network's input, [B, 3, H, W], zero where `padding_mask` [B, H, W] is
        True."""
        if images.dtype == torch.uint8:
            images = to_float(images).to(self.image_mean.dtype)
        normalized = (images - self.image_mean) / self.image_std
        return normalized if padding_mask is None else normalized.masked_fill(padding_mask[:, None], 0.0)

    def forward(
        self,
        images: Tensor,
        padding_mask: Tensor | None = None,
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        targets: Sequence[Target] | None = None,
    ) -> Any:
        """Normalised, padded images [B, 3, H, W] -> the head's outputs.

        Args:
            padding_mask: [B, H, W], True = padding, which is set to zero. Nothing else: as in the published models it
                does not mask attention.
            image_sizes: (height, width) of each image before padding; by default nothing is padding. Heads that find
                boxes read them.
            targets: while training, for heads that need them to make their outputs.
        """
        if padding_mask is not None:
            images = images.masked_fill(padding_mask[:, None], 0.0)
        images = images.contiguous(memory_format=torch.channels_last)
        size = (images.shape[-2], images.shape[-1])
        sizes = None if image_sizes is None else tuple(image_sizes)
        found = self.backbone(images)
        maps = self.neck(Features(found.feature_maps, size, sizes, found.tokens, images))
        maps = tuple(crop_to_image(maps, self.neck.out_specs, size))  # a neck may go beyond the image's borders
        return self.head(Features(maps, size, sizes, found.tokens, tail=found.tail), targets)

    @torch.inference_mode()
    def predict(
        self,
        images: Any | Sequence[Any],
        *,
        threshold: float | Mapping[str, float] | None = None,
        top_k: int = 100,
        batch_size: int = 1,
    ) -> list[Prediction]:
        """What the model finds in each image, in the image's own pixels: by its task `Instances` (best first; without
        masks for detection), `PanopticSegmentation` or `SemanticSegmentation`.

        Args:
            images: uint8 arrays [height, width, 3], PIL images, or paths; one or a sequence. Files are turned upright
                as their EXIF orientation says; a PIL image is taken as it is, so that masks fit `np.asarray(image)`.
            threshold: the lowest score to keep; by default 0.5 for objects, and for panoptic segments that of the
                model's config. Nothing to semantic segmentation, in which every pixel has a class. For objects also
                by the name of their class; 0.5 for the classes that are not named.
            top_k: the most instances of one image, before the threshold.
            batch_size: images padded together into one forward pass.

        Raises:
            DataError: an image cannot be read; the line names the file.
            ValueError: something else than images, an image without pixels, or a `batch_size` or `top_k` below 1.
        """
        for name, value in (("batch_size", batch_size), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        limits = self.thresholds(threshold)
        single = isinstance(images, str | Path | Image.Image | np.ndarray)
        items = [images] if single else list(images)
        was_training = self.training
        self.eval()
        try:
            found: list[Prediction] = []
            for start in range(0, len(items), batch_size):
                arrays = [_as_array(item) for item in items[start : start + batch_size]]
                found.extend(self.decode(*self.infer(arrays), threshold=limits, top_k=top_k))
            return found
        finally:
            self.train(was_training)

    @torch.inference_mode()
    def infer(self, arrays: Sequence[np.ndarray]) -> tuple[Any, list[ImageInfo]]:
        """RGB uint8 images [height, width, 3] -> outputs of one forward pass, resized and padded as in evaluation."""
        size = self.config.input_size
        targets = [resized_size(a.shape[0], a.shape[1], size.short_edge, size.long_edge) for a in arrays]
        tensors = [resize_image(a, target) for a, target in zip(arrays, targets, strict=True)]
        infos = [ImageInfo(i, "", a.shape[:2], t) for i, (a, t) in enumerate(zip(arrays, targets, strict=True))]
        images, padding_mask = pad_batch(tensors, size_divisor=SIZE_DIVISOR)
        images, padding_mask = images.to(self.device), padding_mask.to(self.device)
        return self(self.normalize(images, padding_mask).to(self.image_mean.dtype), image_sizes=targets), infos

    def decode(
        self,
        outputs: Any,
        infos: Sequence[ImageInfo],
        *,
        threshold: Threshold | None = None,
        top_k: int = 100,
        masks: Literal["bool", "rle"] = "bool",
    ) -> Iterator[Prediction]:
        """Outputs of `forward` -> what the model's task makes of them, one image after the other. As in `predict`, but
        that masks of instances may be had as run-length codes, which are small, and that thresholds are by label.
        """
        config = self.config
        is_thing = tuple(category.is_thing for category in config.categories)
        lowest = min(threshold) if isinstance(threshold, tuple) else threshold
        options = DecodeOptions(lowest, top_k, masks, is_thing, config.panoptic)
        found = self.head.predict(outputs, infos, config.task, options)
        return (each.above(threshold) for each in found) if isinstance(threshold, tuple) else found

    def thresholds(self, threshold: float | Mapping[str, float] | None) -> Threshold | None:
        """A threshold by the names of classes -> by label, 0.5 where a class is not named; any other as it is.

        Raises:
            ConfigError: a name that no class has, or a score beyond 0 to 1.
        """
        given = threshold if isinstance(threshold, Mapping) else {"": threshold}
        for name, value in given.items():
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"threshold{name and f'.{name}'}: expected a score from 0 to 1, got {value}")
        if not isinstance(threshold, Mapping):
            return threshold
        names = [category.name for category in self.categories]
        for name in threshold:
            if name not in names:
                raise ConfigError(f"threshold.{name}: there is no such class; {suggest(name, names)}")
        return tuple(threshold.get(name, SHOWN_FROM_SCORE) for name in names)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `directory`, which `from_pretrained` reads."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(json.dumps(to_dict(self.config), indent=2) + "\n", encoding="utf-8")
        save_tensors(self.state_dict(), directory / WEIGHTS_FILE)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> VisionModel:
        """The model of a directory that `save_pretrained` wrote, of a training checkpoint (`.ckpt`), of a MaskFormer or
        Mask2Former that transformers wrote, by directory or Hub id, or of a detector of torchvision, by name
        (`torchvision/maskrcnn_resnet50_fpn_v2`) or as a state dict (`.pth`); in eval mode.

        Loads tensors and plain values only; nothing in any of them can import or run code. What became of the tensors
        of a published model is in `load_report`.

        Raises:
            ValueError: the source holds no such model, or its weights do not fit its config; one line.
        """
        path = locate(source)
        if published := read_published(path, source):
            return cls._built(_decode(published.config, published.source), published.state, published.source, published)
        if not path.is_dir():
            return cls.from_checkpoint(read_checkpoint(path), path)
        config = _decode(read_json(path / CONFIG_FILE), path / CONFIG_FILE)
        return cls._built(config, read_tensors(find_weights_file(str(path))), path)

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], source: str | Path) -> VisionModel:
        """As `from_pretrained`, of what `read_checkpoint` gave; `source` names it in messages."""
        return cls._built(_decode(checkpoint["model_config"], source), model_state(checkpoint), source)

    @classmethod
    def _built(
        cls,
        config: VisionModelConfig,
        state: Mapping[str, Tensor],
        source: str | Path,
        published: PublishedModel | None = None,
    ) -> VisionModel:
        """The model of a config and its weights, which are compared before there is memory for it."""
        report = None
        with faults_of(source):
            planned = cls._planned(config)
            check_size((*planned.parameters(), *planned.buffers()), state.values())
            if published is not None:
                state, report = convert(published, planned.backbone, planned.state_dict())
            check_fit(planned.state_dict(), state)
            check_finite(state)
        model = cls(config) if planned.device.type == "meta" else planned
        model.load_state_dict(state)
        model.load_report = report
        return model.eval()

    @classmethod
    def _planned(cls, config: VisionModelConfig) -> VisionModel:
        """The model without memory, or, where a part of the user's own computes while it is built, the model itself."""
        try:
            with on_meta():
                return cls(config)
        except (NotImplementedError, RuntimeError):
            return cls(config)

    def export_transformers(self, directory: str | Path) -> None:
        """Write a directory that transformers' `from_pretrained` loads as MaskFormer or Mask2Former, with equal logits:
        for all images, or, of networks that round the sizes of their maps down, for those of whole strides.

        Raises:
            ConfigError: transformers has no model of these parts; the line says which it has.
        """
        export_transformers(self, self.config, Path(directory))

    def export_torchvision(self, file: str | Path) -> str:
        """Write a state dict that torchvision's detector of the same parts loads, with one class more, the background.

        Returns:
            The call that builds torchvision's detector, as Python.

        Raises:
            ConfigError: torchvision has no detector of these parts; the line says which it has.
        """
        plain = to_dict(self.config)
        state = to_torchvision(plain, self.state_dict())
        with replacing(file) as stream:
            torch.save(state, stream)
        return constructor(plain)


def _decode(plain: Mapping[str, Any], source: str | Path) -> VisionModelConfig:
    """The config of a model; ConfigError names the source."""
    with faults_of(source):
        return from_dict(plain, cls=VisionModelConfig)


def _as_array(image: Any) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a path, a PIL image or an array."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = rgb_array(image, apply_exif=False)
    is_rgb = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if is_rgb and image.size:
        return image
    kind = f"array {image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"images: expected a path, a PIL image or a uint8 array [height, width, 3], got {kind}")
