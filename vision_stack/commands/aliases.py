"""Short names of options, and the names that other tools give them. Imports nothing heavy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from vision_stack.config import RENAMED

AUGMENTED = "data.train_transform"  # where the presets of `augment=` set options
SMALLEST_IMAGE, LARGEST_IMAGE = 32, 10_000  # pixels


class Alias(NamedTuple):
    """A short name for options."""

    means: Callable[[str, str], list[str]]  # its value and the data's name -> options
    place: str  # what it stands for, as help shows it
    text: str


def _option(key: str, values: dict[str, str] | None = None) -> Callable[[str, str], list[str]]:
    return lambda value, _: [f"{key}={(values or {}).get(value.lower(), value)}"]


def _train_device(value: str, _: str) -> list[str]:
    kind, _colon, number = value.lower().partition(":")
    if kind in ("cpu", "mps", "auto"):
        return [f"trainer.accelerator={kind}"]
    if kind in ("cuda", "gpu"):
        return ["trainer.accelerator=gpu", *([f"trainer.devices=[{number}]"] if number else [])]
    if re.fullmatch(r"\[?\d+(,\d+)*\]?", kind):
        return ["trainer.accelerator=gpu", f"trainer.devices=[{kind.strip('[]')}]"]
    raise ValueError(f"device={value}: unknown; give cpu, cuda, cuda:1, mps, or the numbers of GPUs as in device=0,1")


def _train_size(value: str, data: str) -> list[str]:
    size = _pixels(value)
    if data == "shapes":
        return [f"data.image_size={size}"]
    shorter = ",".join(str(size * part // 8) for part in (5, 6, 7, 8))
    return [
        f"data.train_transform.short_edges=[{shorter}]",
        f"data.train_transform.long_edge={size}",
        *_eval_size(value, data),
    ]


def _eval_size(value: str, _: str) -> list[str]:
    size = _pixels(value)
    return [f"data.eval_transform.short_edge={size}", f"data.eval_transform.long_edge={size}"]


def _pixels(value: str) -> int:
    if not value.isdecimal() or not SMALLEST_IMAGE <= int(value) <= LARGEST_IMAGE:
        raise ValueError(
            f"imgsz={value}: expected the longer side in pixels, {SMALLEST_IMAGE} to {LARGEST_IMAGE:,}, as in imgsz=640"
        )
    return int(value)


_PRECISION = {
    **dict.fromkeys(("fp32", "float32", "32"), "32-true"),
    **dict.fromkeys(("fp16", "float16", "16", "amp"), "16-mixed"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16-mixed"),
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "auto")  # that help speaks of
_MORE_PRECISIONS = frozenset((*PRECISIONS, "16-true", "bf16-true", "64", "64-true", "transformer-engine", "null"))
_TASKS = {
    **dict.fromkeys(("segment", "segmentation", "seg", "instance_segmentation", "instance-segmentation"), "instance"),
    **dict.fromkeys(("detect", "det", "object_detection", "object-detection"), "detection"),
    **dict.fromkeys(("semantic_segmentation", "semantic-segmentation"), "semantic"),
    **dict.fromkeys(("panoptic_segmentation", "panoptic-segmentation"), "panoptic"),
}


def known_value(name: str, value: str) -> str:
    """The value of an option that other tools call otherwise: `detection` for task=detect.

    Raises:
        ValueError: an unknown task or precision; one line with those that there are.
    """
    if name == "task":
        tasks = {task: task for task in ("instance", "detection", "semantic", "panoptic")} | _TASKS
        close = difflib.get_close_matches(value.lower(), tasks, n=1, cutoff=0.7) if value.lower() not in tasks else []
        if close and re.fullmatch(r"[\w-]+", value):
            raise ValueError(f"task={value}: unknown task; did you mean task={tasks[close[0]]}?")
        return _TASKS.get(value.lower(), value)
    if name == "trainer.precision":
        value = _PRECISION.get(value.lower(), value)
        if re.fullmatch(r"\w[\w-]*", value) and value not in _MORE_PRECISIONS:
            raise ValueError(f"precision={value}: unknown; give {', '.join(PRECISIONS)}, or fp32, bf16, fp16")
    return value


_CHECKPOINT = Alias(_option("checkpoint"), "checkpoint", "the model")
_RUN_NAME = Alias(lambda value, _: [f"run_dir=outputs/{value}"], "run_dir=outputs/NAME", "folder of the run")
_FOR_BOTH = {
    "workers": Alias(_option("data.num_workers"), "data.num_workers", "processes that load images"),
    "device": Alias(_train_device, "trainer.accelerator, trainer.devices", "cpu, cuda, cuda:1, mps or 0,1"),
    "precision": Alias(
        lambda value, _: [f"trainer.precision={known_value('trainer.precision', value)}"],
        "trainer.precision",
        "fp32, bf16 or fp16",
    ),
    "name": _RUN_NAME,
    "root": Alias(_option("data.root"), "data.root", "folder of the data"),
}
ALIASES: dict[str, dict[str, Alias]] = {
    "train": {
        "epochs": Alias(_option("trainer.max_epochs"), "trainer.max_epochs", "how often all images are seen"),
        "steps": Alias(_option("trainer.max_steps"), "trainer.max_steps", "optimizer steps, instead of epochs"),
        "lr": Alias(_option("optim.lr"), "optim.lr", "learning rate"),
        "batch_size": Alias(_option("data.batch_size"), "data.batch_size", "images in a training step of one device"),
        "imgsz": Alias(_train_size, "data.train_transform, data.eval_transform", "longest side in pixels"),
        **_FOR_BOTH,
        "pretrained": Alias(_option("backbone.pretrained"), "backbone.pretrained", "true, false, auto or a file"),
    },
    "eval": {
        "batch_size": Alias(_option("data.eval_batch_size"), "data.eval_batch_size", "images in a step"),
        "imgsz": Alias(_eval_size, "data.eval_transform", "longest side in pixels"),
        **_FOR_BOTH,
        "weights": _CHECKPOINT,
        "model": _CHECKPOINT,
    },
    "predict": {
        "conf": Alias(_option("threshold"), "threshold", "lowest score that is drawn"),
        "weights": _CHECKPOINT,
        "model": _CHECKPOINT,
        "name": _RUN_NAME,
    },
}
_OTHER_NAMES = {
    "epochs": ("epoch", "num_epochs", "max_epochs", "max_epoch"),
    "steps": ("max_steps", "max_iter", "max_iters", "iterations", "iters", "num_steps", "solver.max_iter"),
    "lr": ("learning_rate", "lr0", "base_lr", "solver.base_lr"),
    "batch_size": ("batch", "bs", "per_device_train_batch_size"),
    "imgsz": ("img", "image_size", "img_size", "input_size"),
    "workers": ("num_workers", "dataloader.num_workers"),
    "root": ("data_root",),
    "conf": ("confidence", "score_thr", "score_thresh", "score_threshold"),
    "top_k": ("max_det", "max_detections"),
    "nms_iou": ("iou",),
    "class_agnostic_nms": ("agnostic_nms", "agnostic"),
    **{
        f"augment.{name}": others
        for name, others in {
            "flip": ("fliplr", "hflip", "horizontal_flip"),
            "vertical_flip": ("flipud", "vflip"),
            "mosaic": ("mosaic",),
            "mixup": ("mixup",),
            "copy_blend": ("copy_blend", "copyblend"),
            "copy_paste": ("copy_paste", "copypaste"),
            "color_jitter": ("color_jitter", "photometric_distort"),
            "stop_fraction": ("stop_fraction",),
        }.items()
    },
    "run_dir": ("save_dir", "out_dir", "output_dir", "work_dir"),
}
_CANONICAL = {other: name for name, others in _OTHER_NAMES.items() for other in others} | RENAMED
VERBS_ELSEWHERE = {  # what other tools call the commands
    **dict.fromkeys(("fit", "training", "finetune", "resume"), "train"),
    **dict.fromkeys(("val", "validate", "validation", "test", "evaluate", "evaluation"), "eval"),
    **dict.fromkeys(("infer", "inference", "detect", "segment", "prediction", "demo"), "predict"),
    "list": "backbones",
    **dict.fromkeys(("check", "inspect", "analyze", "analyse", "lint"), "doctor"),
    **dict.fromkeys(("zoo", "model-zoo", "weights"), "models"),
    "export": "to-transformers",
}


def canonical(key: str) -> str:
    """An option's own name: `lr` for `learning_rate`, that of the training's transform for `augment.mosaic`."""
    key = _CANONICAL.get(key.lower(), key)
    return f"{AUGMENTED}{key.removeprefix('augment')}" if key.startswith("augment.") else key
