"""Predicting on images of the user's own: overlays, and a COCO results file."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from vision_stack.data.images import read_image
from vision_stack.data.validation import DataError
from vision_stack.metrics.coco import coco_results
from vision_stack.model import VisionModel
from vision_stack.ops.image import pad_batch, resize_image, resized_size
from vision_stack.postprocess import encode_instances
from vision_stack.structures import EncodedInstances, ImageInfo
from vision_stack.training.pictures import draw_encoded
from vision_stack.training.results import write_config

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}


def predict(config: Mapping[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """Go through the images of `config["source"]`; give the records that `predictions.json` gets.

    Overlays show what scores at least `threshold`; `predictions.json` keeps the `top_k` of every image. An image that
    cannot be read is reported and left out.

    Args:
        config: the plain options of configs/predict.yaml.

    Raises:
        ValueError: no such checkpoint, or no image at the source; one line.
    """
    paths, base = find_images(config["source"])
    device = _device(config["device"])
    model = VisionModel.from_pretrained(config["checkpoint"]).to(device)
    write_config(config, run_dir)
    pictures = run_dir / "pictures"
    records: list[dict[str, Any]] = []
    skipped: list[str] = []
    for image_id, path in enumerate(track(paths, "predicting", transient=True), start=1):
        name = os.path.relpath(path, base)
        try:
            image = read_image(path)
        except DataError as error:
            skipped.append(str(error))
            continue
        found = detect(model, image, config["top_k"])
        records += [{**r, "file_name": name} for r in coco_results(image_id, found, model.categories, boxes=True)]
        draw_encoded(image, found, model.categories, config["threshold"], (pictures / name).with_suffix(".jpg"))
    (run_dir / "predictions.json").write_text(json.dumps(records), encoding="utf-8")
    for line in skipped:
        print(f"skipped: {line}")
    counted = f"{len(paths) - len(skipped):,} images" + (f", {len(skipped):,} skipped" if skipped else "")
    shown = sum(record["score"] >= config["threshold"] for record in records)
    print(
        f"{counted}; {shown:,} objects with a score of at least {config['threshold']:g}",
        f"pictures: {pictures}",
        f"results:  {run_dir / 'predictions.json'}",
        sep="\n",
    )
    return records


@torch.inference_mode()
def detect(model: VisionModel, image: np.ndarray, top_k: int) -> EncodedInstances:
    """The `top_k` detections of an RGB uint8 image [height, width, 3], masks as RLE in its own pixels."""
    height, width = image.shape[:2]
    size = resized_size(height, width, model.config.input_size.short_edge, model.config.input_size.long_edge)
    images, padding_mask = pad_batch([resize_image(image, size)])
    images, padding_mask = images.to(model.device), padding_mask.to(model.device)
    outputs = model(model.normalize(images, padding_mask))
    return next(iter(encode_instances(outputs, [ImageInfo(0, "", (height, width), size)], top_k=top_k)))


def find_images(source: str) -> tuple[list[Path], Path]:
    """The images of a file, a folder (with its subfolders) or a glob, sorted, and the folder they have in common.

    Raises:
        ValueError: there are none.
    """
    path = Path(source)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        hint = f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder"
    elif path.is_file():
        found, hint = [path], ""
    else:
        found = [p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file()]
        hint = "no such file or folder, and no file that matches it as a pattern"
    if not found:
        raise ValueError(f"source: {source}: {hint}")
    return sorted(found), path if path.is_dir() else Path(os.path.commonpath([p.parent for p in found]))


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError:
            raise ValueError(f"device: {name!r} is no device; choose one of: auto, cpu, cuda, cuda:1, mps") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
