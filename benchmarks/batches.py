"""Batches that both sides of a benchmark train on, and the turns in which they do."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.data.configs import CocoDataConfig, DataConfig, ShapesDataConfig
from vision_stack.data.datamodule import DataModule, build_datamodule
from vision_stack.structures import Batch, Target


def open_data(folder: Path, size: int, batch_size: int) -> DataModule:
    """Whole images that just fit a square; generated ones where there is no data."""
    return build_datamodule(_config(folder, size, batch_size))


def _config(folder: Path, size: int, batch_size: int) -> DataConfig:
    fit = TrainTransformConfig(mode="large_scale_jitter", crop_size=size, scale_range=(1.0, 1.0), flip=0.0)
    common = {"train_transform": fit, "batch_size": batch_size, "num_workers": 0}
    if folder.is_dir():
        return CocoDataConfig(root=str(folder), **common)  # type: ignore[arg-type]
    print(f"{folder}: not there; generated images instead")
    return ShapesDataConfig(image_size=size, num_train=16, num_val=1, max_objects=16, **common)  # type: ignore[arg-type]


def first_batches(data: DataModule, count: int, device: str = "cpu") -> list[Batch]:
    return [_on_device(batch, device) for batch in itertools.islice(data.train_dataloader(), count)]


def _on_device(batch: Batch, device: str) -> Batch:
    targets = tuple(
        Target(labels=x["labels"].to(device), masks=x["masks"].to(device), boxes=x["boxes"].to(device))
        for x in batch.targets
    )
    return Batch(batch.images.to(device), batch.padding_mask.to(device), targets, batch.infos)


def cycle(step: Callable[[Batch], object], batches: list[Batch]) -> Callable[[], object]:
    """Every side goes through the same batches in the same order."""
    turns: Iterator[Batch] = itertools.cycle(batches)
    return lambda: step(next(turns))


def max_rss() -> float:
    """The most memory that was ever resident in this process, MiB (Linux; `getrusage` would count the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_of_process(script: str, *arguments: object) -> tuple[float, float]:
    """The two figures, MiB at the peak and before, that a script prints last as json."""
    command = [sys.executable, script, *map(str, arguments)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, before = json.loads(printed.splitlines()[-1])
    return peak, before
