"""Is the generated data set a toy? Two figures over its val split.

1. The share of images in which an object touches another of the same class and the same base colour.
2. The mask AP of segmentation by colour: smooth, group pixels of like colour (k-means palette, or flood fill with a
   tolerance), connected components, size filter, area as score. The settings are tuned on the very images they are
   scored on, the class of every component is told by the ground truth, components on pure background are withheld, and
   so are the holes of what is not a ring: the figure is what such a method could reach at best.

    python benchmarks/shapes_difficulty.py --num 250
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from scipy.cluster.vq import kmeans2, vq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vision_stack.data.shapes.generate import CATEGORY_IDS, annotate
from vision_stack.data.shapes.render import CATEGORIES, Scene, adjacent_labels, draw_scene

Components = NDArray[np.int32]  # [H, W], 0 = none
MIN_AREA = 40
MAX_AREA_FRACTION = 0.25


def touching_twins(scene: Scene) -> bool:
    """Whether two visible objects of the same class and base colour touch."""
    kinds = [(shape.category, shape.color) for shape in scene.shapes]
    return any(kinds[a - 1] == kinds[b - 1] for a, b in adjacent_labels(scene.label_map))


def palette_components(image: Image.Image, num_colors: int) -> Components:
    """Connected pixels of the same colour of a palette found by k-means."""
    pixels = np.asarray(image, np.float32)
    sample = pixels.reshape(-1, 3)[::5]  # enough to find the palette
    palette, _ = kmeans2(sample, num_colors, iter=10, minit="++", rng=np.random.default_rng(0))
    indices = vq(pixels.reshape(-1, 3), palette)[0].reshape(pixels.shape[:2])
    components = np.zeros(indices.shape, np.int32)
    for color in range(num_colors):
        labels, _ = ndimage.label(indices == color)
        components[labels > 0] = labels[labels > 0] + components.max()
    return components


def flood_components(image: Image.Image, tolerance: float) -> Components:
    """Pixels connected by steps of less than `tolerance` (Euclidean, of 255) in colour."""
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    nodes = np.arange(height * width).reshape(height, width)
    right = np.linalg.norm(np.diff(pixels, axis=1), axis=-1) < tolerance
    down = np.linalg.norm(np.diff(pixels, axis=0), axis=-1) < tolerance
    a = np.concatenate([nodes[:, :-1][right], nodes[:-1][down]])
    b = np.concatenate([nodes[:, 1:][right], nodes[1:][down]])
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(nodes.size, nodes.size))
    return connected_components(graph, directed=False)[1].reshape(height, width) + 1


def detections(components: Components, scene: Scene, image_id: int) -> Iterator[dict[str, Any]]:
    """COCO results for components of a plausible size; the ground truth tells the class."""
    areas = np.bincount(components.ravel())
    plausible = (areas >= MIN_AREA) & (areas <= MAX_AREA_FRACTION * components.size)
    plausible[0] = False
    for label in np.flatnonzero(plausible):
        mask = components == label
        overlap = np.bincount(scene.label_map[mask], minlength=2)[1:]
        if not overlap.any():
            continue
        category = scene.shapes[int(overlap.argmax())].category
        if CATEGORIES[category] != "ring":
            mask = ndimage.binary_fill_holes(mask)
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        score = float(areas[label])
        yield {"image_id": image_id, "category_id": CATEGORY_IDS[category], "segmentation": rle, "score": score}


def mask_ap(truth: COCO, results: list[dict[str, Any]]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def ground_truth(scenes: list[Scene]) -> COCO:
    height, width = scenes[0].label_map.shape
    annotations = [{"image_id": i, **a} for i, scene in enumerate(scenes, start=1) for a in annotate(scene)]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i in range(1, len(scenes) + 1)],
        "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CATEGORIES, strict=True)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=250, help="images of the val split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128)
    args = parser.parse_args()

    options = {"seed": args.seed, "split": "val", "image_size": args.image_size}
    scenes = [draw_scene(index=index, **options) for index in range(args.num)]
    twins = np.mean([touching_twins(scene) for scene in scenes])
    print(f"images with touching objects of one class and colour: {twins:.1%} of {args.num} (wanted: at least 30%)")

    truth = ground_truth(scenes)
    methods = [("palette", palette_components, n) for n in (4, 6, 9)]
    methods += [("flood", flood_components, tolerance) for tolerance in (8, 12, 18)]
    smoothings = {
        "none": ImageFilter.MedianFilter(1),
        "median": ImageFilter.MedianFilter(3),
        "gaussian": ImageFilter.GaussianBlur(2),
    }
    best = 0.0
    for smoothing, image_filter in smoothings.items():
        images = [Image.fromarray(scene.image).filter(image_filter) for scene in scenes]
        for name, method, setting in methods:
            results: list[dict[str, Any]] = []
            for image_id, (image, scene) in enumerate(zip(images, scenes, strict=True), start=1):
                results += detections(method(image, setting), scene, image_id)
            ap = mask_ap(truth, results) if results else 0.0
            best = max(best, ap)
            print(f"  {smoothing:10}{name:8}{setting:3}: mask AP {ap:.3f}, {len(results)} components")
    print(f"colour segmentation, best of these: mask AP {best:.3f} (wanted: at most 0.15)")


if __name__ == "__main__":
    main()
