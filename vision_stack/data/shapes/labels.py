"""The generated scenes as COCO panoptic files and as semantic label maps; the background's texture is their stuff.

`annotations/panoptic_{split}.json` with a folder of that name, `labels/{split}/*.png` with `labels/classes.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.shapes.render import BACKGROUNDS, CATEGORIES, Scene
from vision_stack.ops.label_maps import class_png, segment_png

CATEGORY_IDS = (3, 7, 11, 20)  # sparse on purpose, as in many real data sets
STUFF_IDS = (31, 32, 40)  # of BACKGROUNDS


class SceneSegments(NamedTuple):
    """A scene's label maps as PNG files, and its segments."""

    segment_png: bytes
    class_png: bytes
    segments_info: list[dict[str, Any]]


def scene_files(scene: Scene) -> SceneSegments:
    """Both kinds of annotations of a scene."""
    segments, ids = scene_segments(scene), segment_ids(scene)
    category_of = np.array([0, *(segment["category_id"] for segment in segments)])
    return SceneSegments(segment_png(ids), class_png(category_of[ids]), segments)


class SegmentFiles:
    """Writes both kinds of annotations of one split, image by image."""

    def __init__(self, folder: Path, split: str) -> None:
        self.annotation_file = folder / "annotations" / f"panoptic_{split}.json"
        self.label_dir = folder / "labels" / split
        self._annotations: list[dict[str, Any]] = []
        self.annotation_file.with_suffix("").mkdir(parents=True)
        self.label_dir.mkdir(parents=True)

    def add(self, image: dict[str, Any], files: SceneSegments) -> None:
        """`image`: its entry in the json."""
        name = Path(image["file_name"]).with_suffix(".png").name
        (self.annotation_file.with_suffix("") / name).write_bytes(files.segment_png)
        (self.label_dir / name).write_bytes(files.class_png)
        annotation = {"image_id": image["id"], "file_name": name, "segments_info": files.segments_info}
        self._annotations.append(annotation)

    def close(self, info: dict[str, Any], images: list[dict[str, Any]]) -> None:
        """Write the json and the table of classes."""
        categories = [{"id": i, "name": n, "isthing": 1} for i, n in zip(CATEGORY_IDS, CATEGORIES, strict=True)]
        categories += [{"id": i, "name": n, "isthing": 0} for i, n in zip(STUFF_IDS, BACKGROUNDS, strict=True)]
        content = {"info": info, "categories": categories, "images": images, "annotations": self._annotations}
        self.annotation_file.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        table = json.dumps([{"id": c["id"], "name": c["name"]} for c in categories], indent=1)
        (self.label_dir.parent / "classes.json").write_text(table + "\n", encoding="utf-8")


def segment_ids(scene: Scene) -> NDArray[np.int32]:
    """[H, W]: shapes are 1, 2, ... as in the scene, the background comes after them."""
    return np.where(scene.label_map == 0, len(scene.shapes) + 1, scene.label_map)


def scene_segments(scene: Scene) -> list[dict[str, Any]]:
    """COCO's `segments_info` of a scene: shapes in the order of their ids, then the background if it is seen."""
    ids = segment_ids(scene)
    category_ids = [*(CATEGORY_IDS[shape.category] for shape in scene.shapes), STUFF_IDS[scene.background]]
    segments = []
    for number, category_id in enumerate(category_ids, start=1):
        mask = ids == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
        segments.append(
            {
                "id": number,
                "category_id": category_id,
                "area": int(mask.sum()),
                "bbox": [int(edge) for edge in box],
                "iscrowd": 0,
            }
        )
    return segments
