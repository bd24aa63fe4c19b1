"""Peak memory of evaluation: real images at full size with 100 detections each, and one very large image.

    python benchmarks/eval_memory.py                       # 79 validation images of ../shared/data/coco_mini
    python benchmarks/eval_memory.py --data DIR --images 20
    python benchmarks/eval_memory.py --parts large         # 100 detections on 2000 x 3000 pixels, only post-processing

As in eval.py, glibc gives large freed tensors back at once; with its own settings (--allocator default) resident memory
creeps up with every new image size, because large tensors end up between small ones on the heap.

Resident memory (MiB) is sampled every 5 ms. The model is small and its weights are random: it scores nothing, but
finds as many objects, with masks as large and ragged, as any.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vision_stack.backbones import TimmBackboneConfig
from vision_stack.data.augment.transforms import EvalTransformConfig
from vision_stack.data.configs import CocoDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.heads import MaskFormerHeadConfig
from vision_stack.metrics import CocoEvaluator
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.necks import PixelDecoderConfig
from vision_stack.outputs import MaskOutputs
from vision_stack.postprocess import encode_instances
from vision_stack.structures import Category, ImageInfo
from vision_stack.training.allocator import return_freed_memory

QUERIES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["large", "images"], choices=["large", "images"])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/coco_mini")
    parser.add_argument("--images", type=int, default=79)
    parser.add_argument("--short-edge", type=int, default=800, help="the network's input; masks are at full size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=["eval", "default"], default="eval")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.allocator == "eval":
        return_freed_memory()
    if "large" in options.parts:
        _large_image(2000, 3000)
    if "images" in options.parts:
        _whole_evaluation(options)


def _large_image(height: int, width: int) -> None:
    """Smooth blobs of all sizes, seen by the network at 800 x 1200 pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 16, 12, 18, generator=generator)
    features = torch.nn.functional.interpolate(coarse, size=(200, 300), mode="bicubic")
    embed = torch.randn(1, QUERIES, 16, generator=generator) - 0.2
    logits = torch.randn(1, QUERIES, 2, generator=generator)
    outputs = MaskOutputs(logits, embed, features, logits[None][:0], embed[None][:0])
    info = ImageInfo(image_id=0, file_name="", size=(height, width), input_size=(800, 1200))
    before, start = _resident(), time.perf_counter()
    with _peak() as peak:
        (found,) = encode_instances(outputs, [info], top_k=QUERIES)
    seconds = time.perf_counter() - start
    print(f"{len(found.scores)} detections on {height} x {width} pixels, run-length encoded in {seconds:.1f} s:")
    print(f"  peak {peak[0] - before:.0f} MiB above the {before:.0f} before", flush=True)
    if len(found.scores) < QUERIES:
        raise SystemExit("some of the 100 queries have an empty mask: the measurement is not what it says")


def _whole_evaluation(options: argparse.Namespace) -> None:
    evaluation = EvalTransformConfig(short_edge=options.short_edge, long_edge=options.short_edge * 5 // 3)
    data = build_datamodule(
        CocoDataConfig(root=str(options.data), num_workers=0, eval_transform=evaluation, max_val_images=options.images)
    )
    model = _model(data.categories)
    evaluator = CocoEvaluator(data.val_ground_truth(), model.categories)
    print(f"\n{len(data.val_records)} images of {options.data}, input {options.short_edge} px, masks at full size")
    before = _resident()
    print(f"resident before the first image: {before:.0f} MiB")
    print("images  detections  resident after  peak so far")
    highest = before
    with torch.inference_mode():
        for count, batch in enumerate(data.val_dataloader(), start=1):
            with _peak() as peak:
                outputs = model(model.normalize(batch.images, batch.padding_mask))
                for info, found in zip(batch.infos, encode_instances(outputs, batch.infos), strict=True):
                    evaluator.update(info.image_id, found)
                del outputs
            highest = max(highest, peak[0])
            if count == 1 or count % 10 == 0 or count == len(data.val_records):
                detections = len(evaluator.results())
                print(f"{count:6d}  {detections:10d}  {_resident():14.0f}  {highest:11.0f}", flush=True)
    size = sum(len(record["segmentation"]["counts"]) for record in evaluator.results()) / 2**20
    with _peak() as peak:
        evaluator.compute()
    print(f"run-length codes held: {size:.1f} MiB; peak while AP is computed: {peak[0]:.0f} MiB")
    print(f"peak of the whole: {max(highest, peak[0]):.0f} MiB, {max(highest, peak[0]) - before:.0f} above the start")


def _model(categories: tuple[Category, ...]) -> VisionModel:
    torch.manual_seed(0)
    config = VisionModelConfig(
        backbone=TimmBackboneConfig("resnet18", out_strides=[4, 8, 16, 32]),
        neck=PixelDecoderConfig(),
        head=MaskFormerHeadConfig(num_queries=QUERIES, num_decoder_layers=2, deep_supervision=False),
        categories=categories,
    )
    return VisionModel(config).eval()


@contextmanager
def _peak() -> Iterator[list[float]]:
    """A list whose one number is, afterwards, the most memory that was resident inside."""
    gc.collect()
    highest, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        highest[0] = max(highest[0], _resident())
        done.set()
        watcher.join()


def _resident() -> float:
    """MiB of this process in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
