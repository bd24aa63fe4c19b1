"""`AutoImageProcessor`: the pixels that the weights of a name were trained on."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vision_stack.backbones.config_json import read_json
from vision_stack.backbones.hub import CONFIG_FILE
from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.names import PROCESSOR_FILE, companion_file, find_backbone
from vision_stack.config import ConfigError
from vision_stack.data.processor import ImageProcessor
from vision_stack.data.processor_file import decode_processor


class AutoImageProcessor:
    """Gives the image processor that a name means; never made itself."""

    def __init__(self) -> None:
        raise TypeError("AutoImageProcessor is not a processor; call AutoImageProcessor.from_pretrained")

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> ImageProcessor:
        """The processor of a directory, a hub id, a timm name or one of ours, with `options` in place of its own.

        Every field of a preprocessor_config.json means what it means to the class of transformers that it names. Where
        there is no such file, images keep their size and are normalised with the mean and std that belong to the
        weights of that name.

        Raises:
            ConfigError: no such name, or a file that describes no processor; one line.
        """
        file = companion_file(name, PROCESSOR_FILE)
        if file is None:
            with on_meta():
                backbone = find_backbone(name).build()
            processor = ImageProcessor(image_mean=backbone.image_mean, image_std=backbone.image_std)
        else:
            raw = read_json(file)
            try:
                processor = decode_processor(raw, _model_type(name, raw))
            except ConfigError as error:
                raise ConfigError(f"{file}: {error}") from None
        try:
            return replace(processor, **options) if options else processor
        except TypeError:
            known = [field.name for field in fields(processor)]
            unknown = sorted(options.keys() - set(known))
            raise ConfigError(f"options: {unknown} is not an option of an image processor; there are {known}") from None


def _model_type(name: str | Path, raw: dict[str, Any]) -> Any:
    """That of the config.json, which says the class of a processor file that does not."""
    if raw.get("image_processor_type") is not None or raw.get("feature_extractor_type") is not None:
        return None
    config = companion_file(name, CONFIG_FILE)
    return None if config is None else read_json(config).get("model_type")
