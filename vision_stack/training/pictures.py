"""Pictures of what a model finds in validation images, at the end of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vision_stack.data.images import read_image
from vision_stack.ops.files import write_file
from vision_stack.structures import Category, Task
from vision_stack.training.results import METRICS_FILE, PREDICTIONS_DIR, PREDICTIONS_FILE
from vision_stack.training.tasks import TASKS
from vision_stack.visualization.overlay import draw_image, side_by_side


def draw_validation(
    run_dir: Path, records: Sequence[Any], categories: Sequence[Category], count: int, task: Task
) -> list[Path]:
    """The first `count` validation images, with ground truth and what the run wrote, in `run_dir/pictures`.

    Captions say which predictions are shown. Images beyond those that validation was limited to are left out.
    """
    spec = TASKS[task]
    metrics = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))
    chosen = records[: min(count, metrics.get("num_images", count))]
    results: dict[int, list[dict[str, Any]]] = {record.image_id: [] for record in chosen}
    content = json.loads((run_dir / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    for result in content["annotations"] if isinstance(content, dict) else content:
        if result["image_id"] in results:
            results[result["image_id"]].append(result)
    paths = []
    for record in chosen:
        size = (record.height, record.width)
        found = spec.read(results[record.image_id], run_dir / PREDICTIONS_DIR, categories, size)
        if found is None:
            continue  # not among the images that validation was limited to
        image, truth = read_image(record.path, apply_exif=record.apply_exif), spec.truth(record)
        chosen_part, caption = spec.chosen(found, truth, metrics.get("operating_point"))
        panels = {
            "image": draw_image(image),
            "ground truth": spec.draw(image, truth, categories),
            caption: spec.draw(image, spec.shown(chosen_part, 0.0, size), categories),
        }
        path = (run_dir / "pictures" / f"{record.image_id}_{Path(record.path).name}").with_suffix(".jpg")
        write_file(path, jpeg(side_by_side(panels)), durable=False)
        paths.append(path)
    return paths


def jpeg(picture: Image.Image) -> bytes:
    """The content of a file. Pillow, writing one itself, does not say that the disk is full."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()
