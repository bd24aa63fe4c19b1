"""Predicting on images of the user's own: overlays, and results in COCO's formats."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from vision_stack.config import to_dict
from vision_stack.data.checks.issues import DataError, data_error
from vision_stack.data.images import read_image
from vision_stack.model import VisionModel
from vision_stack.ops.files import write_file
from vision_stack.structures import SHOWN_FROM_SCORE, Threshold
from vision_stack.training.allocator import return_freed_memory
from vision_stack.training.interrupts import Stopped
from vision_stack.training.journal import Entry, Journal
from vision_stack.training.options import PredictOptions, decode_options, set_nms
from vision_stack.training.pictures import jpeg
from vision_stack.training.results import PREDICTIONS_DIR, PREDICTIONS_FILE, write_config, write_predictions
from vision_stack.training.sources import SourceImage, find_images, named
from vision_stack.training.tasks import TASKS, Written

JOURNAL_FILE = "predictions.jsonl"
LINE_EVERY_S = 15.0  # of progress, where the output is not a terminal


def predict(config: Mapping[str, Any], run_dir: Path) -> None:
    """Go through the images of `config["source"]`, and write what is found in each as soon as it is.

    Objects: overlays show what scores at least `threshold`; `predictions.json` keeps the `top_k` of every image.
    Panoptic and semantic: `predictions.json` has a record for each image, whose label map, named `file_name`, is in the
    folder `predictions`. An image that cannot be read is reported and left out. Images that an earlier run into the
    same folder was done with, by `predictions.jsonl`, are taken over.

    Args:
        config: the plain options of configs/predict.yaml.

    Raises:
        ValueError: no such checkpoint or device, no image at the source that can be read, or results of other options
            in the folder; one line.
    """
    return_freed_memory()
    options = decode_options(config, PredictOptions)
    source = find_images(options.source)
    device = _device(options.device)
    model = VisionModel.from_pretrained(options.checkpoint)
    set_nms(model, options)
    model.thresholds(options.threshold)  # raises before anything is written
    images = {image.name: image for image in named(source)}
    asked = {
        "checkpoint": fingerprint(model),
        "source": os.path.abspath(options.source),
        "threshold": options.threshold,
        "top_k": options.top_k,
    }
    nms = {"nms": options.nms, "nms_iou": options.nms_iou, "class_agnostic_nms": options.class_agnostic_nms}
    asked |= {name: value for name, value in nms.items() if value is not None}
    with Journal(run_dir / JOURNAL_FILE, asked, lambda entry: _is_current(entry, images, run_dir)) as journal:
        write_config(config, run_dir)
        if len(journal):
            print(f"{len(journal):,} of {len(images):,} images were done before and are taken over", flush=True)
        for folder in source.closed:
            print(f"skipped: {folder}", flush=True)
        try:
            skipped = _find_all(model.to(device), images, journal, options, run_dir)
            summary = _finish(model, images, journal, options, run_dir) if len(journal) else ""
        except Stopped as stop:
            done = f"{len(journal):,} of {len(images):,} images are done"
            advice = f"{done}; continue with the same options and run_dir={shlex.quote(str(run_dir))}"
            raise Stopped(stop.signum, advice) from None
        if not len(journal):
            raise ValueError(f"source: {options.source}: no image could be read ({len(images):,} tried); {skipped[0]}")
    folders = f", {run_dir / PREDICTIONS_DIR}" if TASKS[model.config.task].has_label_maps else ""
    counts = [_counted(len(journal), "image")]
    counts += [
        f"{_counted(len(left_out), what)} skipped"
        for left_out, what in ((skipped, "image"), (source.closed, "folder"))
        if left_out
    ]
    print(
        f"{', '.join(counts)}; {summary}",
        f"pictures: {run_dir / 'pictures'}",
        f"results:  {run_dir / PREDICTIONS_FILE}{folders}",
        sep="\n",
    )


def _find_all(
    model: VisionModel, images: Mapping[str, SourceImage], journal: Journal, options: PredictOptions, run_dir: Path
) -> list[str]:
    """All images that the journal does not have yet; what is wrong with those that cannot be read."""
    skipped: list[str] = []
    todo = [image for image in images.values() if image.name not in journal]
    for image in _with_progress(todo, len(images)):
        try:
            journal.add(image.name, _write(model, image, options, run_dir))
        except DataError as error:
            skipped.append(str(error))
            print(f"skipped: {error}", flush=True)
    return skipped


def _write(model: VisionModel, image: SourceImage, options: PredictOptions, run_dir: Path) -> Entry:
    """Write what is found in an image, all but its line in the journal, which it returns.

    Raises:
        DataError: the image cannot be read, or is too large for the memory.
    """
    state = _state(image.path)  # before it is read: a file that is replaced meanwhile is another one
    pixels = read_image(image.path)
    try:
        written, picture = find(model, pixels, image.number, model.thresholds(options.threshold), options.top_k)
        files = {f"pictures/{image.stem}.jpg": jpeg(picture)}
    except (MemoryError, torch.OutOfMemoryError):
        message = f"its {pixels.shape[1]} x {pixels.shape[0]} pixels do not fit in memory"
        raise data_error(image.path, "pixels", message, "make it smaller, or try device=cpu") from None
    if written.label_map is not None:
        files[f"{PREDICTIONS_DIR}/{image.stem}.png"] = written.label_map
    for name, content in files.items():
        write_file(run_dir / name, content, durable=False)
    sizes = {name: len(content) for name, content in files.items()}
    return {"state": state, "stem": image.stem, "files": sizes, "records": written.records}


def _is_current(entry: Entry, images: Mapping[str, SourceImage], run_dir: Path) -> bool:
    """Whether an image has neither changed nor lost its results since its line was written."""
    image = images.get(entry["image"])
    if image is None or image.stem != entry["stem"] or _state(image.path) != entry["state"]:
        return False
    return all(_size(run_dir / name) == size for name, size in entry["files"].items())


def _state(path: Path) -> list[int]:
    """What tells versions of a file apart; nothing of one that cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _size(path: Path) -> int:
    return next(iter(_state(path)), -1)


def _finish(
    model: VisionModel, images: Mapping[str, SourceImage], journal: Journal, options: PredictOptions, run_dir: Path
) -> str:
    """Write `predictions.json` out of the journal; what is in it, in words."""
    spec = TASKS[model.config.task]
    limits = model.thresholds(options.threshold)
    threshold = SHOWN_FROM_SCORE if limits is None else limits
    by_label = threshold if isinstance(threshold, tuple) else (threshold,) * len(model.categories)
    lowest = {category.id: score for category, score in zip(model.categories, by_label, strict=True)}
    in_words = "that of its class" if isinstance(threshold, tuple) else f"{threshold:g}"
    count, best = 0, 0.0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal count, best
        for name, entry in journal.entries(images):
            image = images[name]
            files = {"image": name, "file_name": f"{image.stem}.png"} if spec.has_label_maps else {"file_name": name}
            for record in entry["records"]:
                count += spec.count(record, lowest)
                best = max(best, record.get("score", 0.0))
                yield {**record, "image_id": image.number, **files}

    write_predictions(run_dir, records(), spec.header(model.categories))
    summary = spec.summary(count, in_words)
    if best and not count:
        lower = 10.0 ** math.floor(math.log10(best))
        summary += f", the highest has {best:.2g}; give threshold={best // lower * lower:.1g} and a new run_dir"
    return summary


def fingerprint(model: VisionModel) -> str:
    """The same for models of the same parts, classes and weights, wherever they were loaded from."""
    digest = hashlib.sha256(json.dumps(to_dict(model.config), sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _with_progress(todo: Sequence[SourceImage], total: int) -> Iterator[SourceImage]:
    """Passes images on; a bar in a terminal, now and then a line elsewhere."""
    console = Console(highlight=False)
    if console.is_terminal:
        yield from track(todo, "predicting", total=total, completed=total - len(todo), console=console, transient=True)
        return
    began = shown = time.monotonic()
    for done, image in enumerate(todo):
        now = time.monotonic()
        if done and now - shown > LINE_EVERY_S:
            shown = now
            left = (now - began) / done * (len(todo) - done)
            print(f"image {total - len(todo) + done:,} of {total:,}, {left / 60:.0f} min left", flush=True)
        yield image


@torch.inference_mode()
def find(
    model: VisionModel, image: np.ndarray, image_id: int, threshold: Threshold | None, top_k: int
) -> tuple[Written, Image.Image]:
    """What the model finds in an RGB uint8 image [height, width, 3], in its own pixels: to be written, and a picture.

    Args:
        threshold, top_k: as in configs/predict.yaml, thresholds by label.
    """
    spec = TASKS[model.config.task]
    outputs, (info,) = model.infer([image])
    (found,) = model.decode(outputs, [info], **spec.kept(threshold, top_k))
    shown = spec.shown(found, SHOWN_FROM_SCORE if threshold is None else threshold, info.size)
    return spec.written(image_id, found, model.categories), spec.draw(image, shown, model.categories)


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.device(name)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0][:120]
            raise ValueError(f"device: {name!r} cannot be used here ({reason}); try auto, cpu, cuda or mps") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
