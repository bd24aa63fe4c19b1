"""What augmentation and sampling need of the annotations: refused in one line before anything is trained."""

from __future__ import annotations

from vision_stack.config import ConfigError
from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.data.sampling import SamplingConfig
from vision_stack.structures import LABEL_MAPS, WITH_OBJECTS, Task


def check_fits_task(transform: TrainTransformConfig, sampling: SamplingConfig, task: Task, without_mask: int) -> None:
    """Raise ConfigError for an option that these annotations cannot serve.

    Args:
        without_mask: how many objects have only a box.
    """
    where = "data.train_transform"
    for name in ("mixup", "copy_blend"):
        if getattr(transform, name) and task in LABEL_MAPS:
            raise ConfigError(f"{where}.{name}: a pixel has one label with task={task}, not two; give augment.{name}=0")
    if transform.copy_paste and task not in WITH_OBJECTS:
        raise ConfigError(
            f"{where}.copy_paste: task={task} has no single objects to paste; give augment.copy_paste=0, or mosaic"
        )
    if transform.copy_paste and without_mask:
        raise ConfigError(
            f"{where}.copy_paste: {without_mask:,} objects have only a box, and cannot be cut out; "
            "give augment.copy_paste=0, or augment.copy_paste=auto"
        )
    if task in WITH_OBJECTS:
        return
    for name, on in (
        ("repeat_threshold", sampling.repeat_threshold),
        ("class_weights", sampling.class_weights),
        ("max_objects", sampling.max_objects),
    ):
        if on:
            off = "0" if name == "repeat_threshold" else "null"
            raise ConfigError(
                f"data.sampling.{name}: with task={task} only the label maps say what is in an image; give {off}"
            )
