"""What a run does by its task: `TASKS` has one entry for each. Nothing else in training asks which task it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vision_stack.config import ConfigError
from vision_stack.data.datamodule import DataModule
from vision_stack.metrics import Evaluator
from vision_stack.model import VisionModel
from vision_stack.structures import ImageInfo, Prediction, Task
from vision_stack.training.tasks.base import TaskSpec, Written
from vision_stack.training.tasks.label_maps import PanopticTask, SemanticTask
from vision_stack.training.tasks.objects import ObjectTask

__all__ = ["TASKS", "TaskSpec", "Written", "build_evaluator", "predictions_for"]

TASKS: Mapping[Task, TaskSpec[Any]] = MappingProxyType(
    {
        "detection": ObjectTask(("bbox",)),
        "instance": ObjectTask(("segm", "bbox")),
        "semantic": SemanticTask(),
        "panoptic": PanopticTask(),
    }
)


def build_evaluator(data: DataModule, *, top_k: int, boundary_ap: bool = False) -> Evaluator:
    """The evaluator of the validation images, for the task that the data is read for.

    Args:
        top_k: detections of an image that count (objects).
        boundary_ap: boundary AP beside mask and box AP (objects with masks).

    Raises:
        ConfigError: boundary AP of a task without it.
    """
    spec = TASKS[data.task]
    if boundary_ap and not spec.has_boundary_ap:
        having = " or ".join(f"task={name}" for name, each in TASKS.items() if each.has_boundary_ap)
        raise ConfigError(f"boundary_ap: task={data.task} has none, only {having}; leave it out")
    return spec.evaluator(data.val_ground_truth(), data.categories, top_k=top_k, boundary_ap=boundary_ap)


def predictions_for(
    evaluator: Evaluator, model: VisionModel, outputs: Any, infos: Sequence[ImageInfo]
) -> Iterator[Prediction]:
    """What the evaluator takes of a batch, one image after the other."""
    return model.decode(outputs, infos, **TASKS[model.config.task].kept(None, evaluator.max_detections))
