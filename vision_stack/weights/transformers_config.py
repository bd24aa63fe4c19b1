"""What the config.json of all whole models of transformers have in common: classes, and what is guessed from a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vision_stack.config import ConfigError
from vision_stack.structures import Task

OWN_KEY = "vision_stack"  # in a config.json that is written here: what transformers has no field for
OWN_FIELDS = ("task", "categories", "panoptic")
THINGS = {("panoptic", 133): 80}  # task, number of classes -> how many of them, the first, are things; else all are


def is_foreign(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is transformers' and not ours."""
    return "model_type" in raw or "architectures" in raw


def labels_of(names: Sequence[str]) -> dict[str, Any]:
    """The fields that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def class_names(raw: Mapping[str, Any]) -> list[str]:
    """Names of the classes by label; ConfigError unless the labels are 0, 1, ..."""
    id2label = raw.get("id2label")
    if id2label is None:
        count = raw.get("num_labels", 2)
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise ConfigError(f"num_labels: expected a number of classes, got {count!r:.40}")
        return [f"LABEL_{i}" for i in range(count)]
    if not isinstance(id2label, Mapping) or not id2label or not all(isinstance(n, str) for n in id2label.values()):
        raise ConfigError("id2label: expected a mapping from numbers to names")
    by_label = {str(label): name for label, name in id2label.items()}
    missing = next((i for i in range(len(by_label)) if str(i) not in by_label), None)
    if missing is not None:
        raise ConfigError(f"id2label: has {len(by_label)} classes but none numbered {missing}")
    return [by_label[str(i)] for i in range(len(by_label))]


def guess_task(source: str, architecture: str) -> Task:
    """Published configs do not say for which task they were trained; the names of published checkpoints do."""
    name = source.lower().rstrip("/").rpartition("/")[2]  # not the folders that it is in
    tasks: tuple[Task, ...] = ("instance", "panoptic", "semantic")
    for task in tasks:
        if task in name:
            return task
    if architecture == "maskformer" and re.search(r"maskformer-[\w-]*-(ade|coco-stuff|cityscapes|vistas)$", name):
        return "semantic"
    if architecture == "maskformer" and re.search(r"maskformer-[\w-]*-coco$", name):
        return "panoptic"
    return "instance"
