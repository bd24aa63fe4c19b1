"""Images per second of the train pipeline: read, transform, rasterise, collate.

    python benchmarks/data.py [--coco ../shared/data/coco_mini] [--workers 0]

Measures generated shapes at 128 px, held decoded, and (where the folder is there) COCO photographs with large-scale
jitter at 640 px, read from disk. Prints the median over epochs. One thread per process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from vision_stack.data.augment.transforms import TrainTransformConfig
from vision_stack.data.configs import CocoDataConfig, DataConfig, ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule


def images_per_second(config: DataConfig, epochs: int) -> str:
    """Median over epochs; the first, which fills caches and starts workers, is not counted."""
    loader = build_datamodule(config).train_dataloader()
    wall, cpu = [], []
    for _ in range(epochs + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        images = sum(len(batch.infos) for batch in loader)
        wall.append(images / (time.perf_counter() - start))
        cpu.append(images / (time.process_time() - cpu_start))
    text = f"{statistics.median(wall[1:]):7.1f} images/s"
    # Of a shared machine, the time on the CPU says more; with workers it is theirs, and not counted here.
    return text if config.num_workers else f"{text}, {statistics.median(cpu[1:]):7.1f} per second on the CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", type=Path, default=Path("../shared/data/coco_mini"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)

    shapes = ShapesDataConfig(num_train=512, num_val=1, num_workers=args.workers)
    print(f"{'shapes, 128 px, flip:':<40} {images_per_second(shapes, args.epochs)}")
    if not args.coco.is_dir():
        print(f"{args.coco}: not there, no photographs measured")
        return
    for color_jitter in (False, True):
        jitter = TrainTransformConfig(mode="large_scale_jitter", crop_size=640, color_jitter=color_jitter)
        coco = CocoDataConfig(root=str(args.coco), num_workers=args.workers, train_transform=jitter)
        colors = ", colour jitter" if color_jitter else ""
        name = f"{args.coco.name}, 640 px, jitter{colors}:"
        print(f"{name:<40} {images_per_second(coco, args.epochs)}")


if __name__ == "__main__":
    main()
