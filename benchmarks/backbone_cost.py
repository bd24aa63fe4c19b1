"""What a backbone costs in training, under the neck and head of data=coco: parameters, GFLOPs, time, peak memory.

    python benchmarks/backbone_cost.py                                    # eight backbones at 384 and 640 pixels
    python benchmarks/backbone_cost.py --only resnet50 swin_tiny --sizes 512 --batch 4
    python benchmarks/backbone_cost.py --device cuda --precision bf16-mixed
    python benchmarks/backbone_cost.py --head d_fine --sizes 384          # whole detectors: d_fine or rf_detr

Parameters, GFLOPs and the time of one image's forward pass are those of the backbone, of the whole detector with
`--head`. A step is forward, backward and AdamW of random images with five objects each; times are medians. Memory is
the peak of a step: of tensors on a GPU, of the process on a CPU, where each backbone has a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from attention_flops import ATTENTION
from torch.utils.flop_counter import FlopCounterMode

from vision_stack.backbones.names import config_from_pretrained
from vision_stack.config import from_dict
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.structures import Category
from vision_stack.training.allocator import keep_freed_memory
from vision_stack.training.lightning_module import training_losses
from vision_stack.training.memory import peak_memory, reset_peak_memory
from vision_stack.training.optim import OptimConfig, build_optimizer
from vision_stack.training.probe import AUTOCAST, Shape, make_batch

BACKBONES = (
    "efficientnet_lite0",
    "mobilenetv4_medium",
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "swin_tiny",
    "swin_base",
    "convnext_base",
)
SWAPPED = ("resnet18", "convnext_tiny", "swin_tiny", "dinov2_small", "mobilenetv4_medium")  # under detectors
HEADS = {  # head -> neck; a plain ViT has another under d_fine, whose neck reads a pyramid
    "d_fine": {"type": "hybrid_encoder", "fusion": "elan"},
    "rf_detr": {"type": "scale_projector"},
}
OBJECTS = 5
COMPACT = {"hidden_dim": 96, "num_decoder_layers": 6, "ffn_dim": 384, "num_queries": 30}


def main() -> None:
    options = _parse()
    if options.alone:
        measure(options.only[0], options.sizes[0], options)
        return
    print(f"torch {torch.__version__}, {options.device}, {options.precision}, batch {options.batch}")
    columns = f"{'M param.':>10s}{'GFLOP':>8s}{'image ms':>10s}{'step ms':>9s}{'peak MB':>9s}"
    print(f"{'backbone':20s}{'size':>6s}{columns}", flush=True)
    for name in options.only:
        for size in options.sizes:
            same = ["--device", options.device, "--precision", options.precision, "--batch", str(options.batch)]
            same += ["--threads", str(options.threads), "--rounds", str(options.rounds), "--head", options.head]
            command = [sys.executable, __file__, "--alone", "--only", name, "--sizes", str(size), *same]
            subprocess.run(command, check=True)


def measure(name: str, size: int, options: argparse.Namespace) -> None:
    """Print one row."""
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    detector = options.head in HEADS
    model = build_detector(name, options.head) if detector else build(name, compact=device.type == "cpu")
    counted = model.eval() if detector else model.backbone
    parameters = sum(p.numel() for p in counted.parameters()) / 1e6
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    counted.requires_grad_(False)  # the counter would look for gradients
    with counter, torch.no_grad():
        counted(torch.zeros(1, 3, size, size))
    dtype = AUTOCAST.get(options.precision)

    def cast() -> AbstractContextManager[object]:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    model.to(device)
    image = torch.zeros(1, 3, size, size, device=device)

    @torch.inference_mode()
    def infer() -> None:
        with cast():
            counted(image)

    inference = median_ms(infer, 2 * options.rounds, device)
    counted.requires_grad_(True)
    model.train()
    optimizer = build_optimizer(model, OptimConfig())
    batch = make_batch(Shape(size, size, (OBJECTS,) * options.batch), len(model.categories), device)

    def step() -> None:
        with cast():
            loss = torch.stack(list(training_losses(model, batch).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    reset_peak_memory()
    training = median_ms(step, options.rounds, device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
    row = f"{name:20s}{size:6d}{parameters:10.1f}{counter.get_total_flops() / 1e9:8.1f}"
    print(row + f"{inference:10.0f}{training:9.0f}{peak / 1e6:9.0f}", flush=True)


def median_ms(run: Callable[[], None], rounds: int, device: torch.device) -> float:
    """Milliseconds of a run, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])


def build(name: str, *, compact: bool) -> VisionModel:
    """The backbone with random weights, an FPN and Mask2Former's head: compact as on CPUs, or as published."""
    torch.manual_seed(0)
    head = {"type": "mask2former", **(COMPACT if compact else {})}
    config = VisionModelConfig(
        backbone=config_from_pretrained(name, use_pretrained_backbone=False, out_strides=[4, 8, 16, 32]),
        neck=from_dict({"type": "fpn", "channels": 96 if compact else 256}, kind="neck"),
        head=from_dict(head, kind="head"),
        categories=(Category(id=1, name="object"),),
    )
    return VisionModel(config)


def build_detector(name: str, head: str) -> VisionModel:
    """The backbone with random weights, and the neck and head as published; of rf_detr all 13 groups in training."""
    torch.manual_seed(0)
    backbone = config_from_pretrained(name, use_pretrained_backbone=False)
    plain = "dino" in name
    if not plain:
        backbone = config_from_pretrained(name, use_pretrained_backbone=False, out_strides=[8, 16, 32])
    neck = {"type": "simple_pyramid"} if plain and head == "d_fine" else HEADS[head]
    config = VisionModelConfig(
        backbone=backbone,
        neck=from_dict(neck, kind="neck"),
        head=from_dict({"type": head}, kind="head"),
        categories=tuple(Category(id=i, name=str(i)) for i in range(80)),
        task="detection",
    )
    return VisionModel(config)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--head", choices=["mask2former", *HEADS], default="mask2former")
    parser.add_argument("--sizes", nargs="+", type=int, default=[384, 640], metavar="PIXELS")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["32-true", *AUTOCAST], default="32-true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only or (SWAPPED if options.head in HEADS else BACKBONES)
    return options


if __name__ == "__main__":
    main()
