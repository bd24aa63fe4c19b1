"""What the model will be fed: training images before and after augmentation, objects drawn, in one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from vision_stack.config import ConfigError, from_dict
from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.placing import MaskStride
from vision_stack.data.augment.targets import make_target
from vision_stack.data.datamodule import DataModule, planned_epochs
from vision_stack.data.dataset import SegmentationDataset, collate
from vision_stack.ops.files import write_file
from vision_stack.ops.image import resized_size
from vision_stack.structures import Category, ImageInfo, Instances, Sample, Target
from vision_stack.training.auto import data_for, describe_settled, fitting, settle, task_of_data, without_autos
from vision_stack.training.facts import find_device, gather
from vision_stack.training.pictures import jpeg
from vision_stack.training.start import without_pretrained
from vision_stack.training.tasks import TASKS
from vision_stack.visualization.overlay import draw_instances, side_by_side

CELL = 400  # pixels, side of one picture
EPOCHS = (0, 1, 2)  # of which an image is shown
PICTURE = "augmentation.jpg"


def show(config: Mapping[str, Any], file: Path, rows: int, overrides: Sequence[str]) -> list[str]:
    """Write the picture for the data and the transform of options; what was derived, and how it went, in lines.

    Args:
        config: the plain options of configs/train.yaml.
        file: a .jpg or .png.
        rows: how many images are shown.
        overrides: what was typed.

    Raises:
        ValueError: options or data that the user has to fix; one line.
    """
    if file.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise ConfigError(f"out: {file} is not the name of a picture; end it in .jpg or .png")
    config, notes = task_of_data(fitting(config, overrides), overrides)
    early = without_autos(config)
    data = data_for(from_dict(without_pretrained(early["head"]), kind="head"), early)
    facts = gather(config, data, find_device(config["trainer"]), fine_tunes=False, resumes=True)
    options, settled = settle({name: config[name] for name in ("data", "trainer")}, early, facts)
    data.config = from_dict(options["data"], kind="data")
    picture = augmentation_grid(data, rows)
    if file.suffix.lower() == ".png":
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        content = stream.getvalue()
    else:
        content = jpeg(picture)
    write_file(file, content, durable=False)
    lines = describe_settled({path: value for path, value in settled.items() if path.startswith("data.")})
    return [*lines, *notes, f"wrote {file}: {rows} of {len(data.train_records):,} training images, before and after"]


def draw_augmentation(run_dir: Path, data: DataModule, rows: int = 4) -> Path:
    """The picture in a run's folder."""
    path = run_dir / "pictures" / PICTURE
    write_file(path, jpeg(augmentation_grid(data, rows)), durable=False)
    return path


def length_warnings(trainer: pl.Trainer, data: DataModule) -> list[str]:
    """Where `stop_fraction` and its like can do nothing, since only a time limits the run."""
    transform = data.config.train_transform
    if not transform.has_stages or planned_epochs(trainer, 1) is not None:
        return []
    name = next((name for name in ("stop_fraction", "start_fraction") if getattr(transform, name)), "mosaic_until")
    return [
        f"data.train_transform.{name}: the length of the run is unknown, so augmentation is on from start to end; "
        "give epochs or steps"
    ]


def augmentation_grid(data: DataModule, rows: int) -> Image.Image:
    """A row for each of some training images: as it is, then as the model gets it in the first epochs.

    The pixels and targets are those of the run with the same seed, padded as a batch of one image.

    Raises:
        ConfigError: the transform does not fit the annotations.
    """
    dataset = data.train_dataset()
    chosen = np.linspace(0, len(dataset) - 1, min(rows, len(dataset))).round().astype(int).tolist()
    strips = []
    for index in chosen:
        panels = {f"before: {Path(dataset.records[index].file_name).name}": _before(dataset, index, data.categories)}
        for epoch in EPOCHS:
            sample = dataset[epoch, index]
            batch = collate(
                [sample], data.config.size_divisor, data.config.train_transform.crop_size, dataset.mask_stride or 1
            )
            caption = f"epoch {epoch}: {len(sample.target['labels'])} {TASKS[data.task].finds}"
            panels[caption] = _draw(batch.images[0], batch.targets[0], data.categories)
        strips.append(side_by_side({caption: _in_cell(panel) for caption, panel in panels.items()}))
    picture = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), (255, 255, 255))
    for n, strip in enumerate(strips):
        picture.paste(strip, (0, sum(s.height for s in strips[:n])))
    return picture


def _before(dataset: SegmentationDataset, index: int, categories: Sequence[Category]) -> Image.Image:
    """The whole image with all its objects, no larger than a cell needs."""
    record = dataset.records[index]
    whole = (record.height, record.width)
    size = whole if max(whole) <= 2 * CELL else resized_size(*whole, 2 * CELL, 2 * CELL)
    transform = GeometricTransform((0, 0, record.width, record.height), size)
    image = transform.image(dataset.pixels(index))
    stride: MaskStride = None if dataset.mask_stride is None else 1
    target, masks = make_target(record.objects(transform, stride=stride), size, stride=stride)
    info = ImageInfo(record.image_id, record.file_name, whole, size)
    return _draw(image, collate([Sample(image, target, masks, info)]).targets[0], categories)


def _draw(image: Tensor, target: Target, categories: Sequence[Category]) -> Image.Image:
    """Objects of a target over an image, uint8 [3, H, W]."""
    boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"]
    masks = target["masks"].as_subclass(Tensor) if "masks" in target else None
    if masks is not None:
        stride = image.shape[-2] // masks.shape[-2]
        masks = masks.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return draw_instances(pixels, Instances(boxes, labels, torch.ones(len(labels)), masks), categories)


def _in_cell(picture: Image.Image) -> Image.Image:
    """The whole picture in a square."""
    picture = picture.copy()
    picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (CELL, CELL), (225, 225, 225))
    cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return cell
