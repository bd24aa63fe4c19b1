"""From the outputs of 8 images to semantic and panoptic segmentations of 480 x 640 pixels, beside transformers.

    python benchmarks/dense_postprocess.py [--rounds 5] [--threads 2]

Same outputs, one process, taking turns; medians, ratios and how far the results agree. transformers is given the mask
logits, vision_stack multiplies them itself.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import torch
from maskformer_postprocess import CLASSES, IMAGES, INPUT, SIZE, ellipses
from timing import alternate, report
from transformers import Mask2FormerImageProcessor

from vision_stack.postprocess import predict_panoptic, predict_semantic
from vision_stack.structures import ImageInfo, PanopticSegmentation, SemanticSegmentation

THINGS = 60  # of the classes; the others are stuff
THRESHOLD, OVERLAP = 0.8, 0.8
CONFIDENT = 15  # queries of an image


def compare_dense_postprocessing(rounds: int) -> None:
    processor = Mask2FormerImageProcessor()
    infos = [ImageInfo(i, "", SIZE, INPUT) for i in range(IMAGES)]
    is_thing = [label < THINGS for label in range(CLASSES)]
    outputs = ellipses(CONFIDENT)
    named = SimpleNamespace(class_queries_logits=outputs.pred_logits, masks_queries_logits=outputs.pred_masks)
    sizes = [SIZE] * IMAGES

    def semantic() -> list[SemanticSegmentation]:
        return list(predict_semantic(outputs, infos))

    def their_semantic() -> list[torch.Tensor]:
        return processor.post_process_semantic_segmentation(named, target_sizes=sizes)

    def panoptic() -> list[PanopticSegmentation]:
        thresholds = {"score_threshold": THRESHOLD, "overlap_threshold": OVERLAP}
        return list(predict_panoptic(outputs, infos, is_thing, **thresholds))

    def their_panoptic() -> list[dict[str, Any]]:
        return processor.post_process_panoptic_segmentation(
            named,
            threshold=THRESHOLD,
            overlap_mask_area_threshold=OVERLAP,
            label_ids_to_fuse=set(range(THINGS, CLASSES)),
            target_sizes=sizes,
        )

    size = f"{IMAGES} images to {SIZE[0]} x {SIZE[1]}, {CLASSES} classes"
    print(f"{size}: {_same_classes(semantic(), their_semantic())}")
    report("semantic", alternate({"vision_stack": semantic, "transformers": their_semantic}, rounds), "vision_stack", 2)
    print(f"\n{size}, {CONFIDENT} sure queries: {_same_segments(panoptic(), their_panoptic())}")
    report("panoptic", alternate({"vision_stack": panoptic, "transformers": their_panoptic}, rounds), "vision_stack", 3)


def _same_classes(ours: list[SemanticSegmentation], theirs: list[torch.Tensor]) -> str:
    same = [(a.label_map == b).float().mean().item() for a, b in zip(ours, theirs, strict=True)]
    return f"same class in {100 * sum(same) / len(same):.4f}% of the pixels"


def _same_segments(ours: list[PanopticSegmentation], theirs: list[dict[str, Any]]) -> str:
    """transformers gives pixels outside of a query's own mask to its segment, and counts overlaps of other areas; so
    segments are counted, and classes compared where both have one and the mask is positive."""
    same, counts = [], [0, 0]
    for own, other in zip(ours, theirs, strict=True):
        labels = {info["id"]: info["label_id"] for info in other["segments_info"]}
        inside = (own.segment_map > 0) & (other["segmentation"] > 0)
        names = torch.tensor([labels.get(n, -1) for n in range(max(labels, default=0) + 1)])
        mine = own.labels[own.segment_map[inside] - 1]
        same.append((mine == names[other["segmentation"][inside].long()]).float().mean().item())
        counts = [counts[0] + len(own.labels), counts[1] + len(labels)]
    return (
        f"{counts[0] / IMAGES:.1f} segments an image (transformers {counts[1] / IMAGES:.1f}), "
        f"same class in {100 * sum(same) / len(same):.2f}% of the pixels that both have in a segment"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compare_dense_postprocessing(args.rounds)


if __name__ == "__main__":
    main()
