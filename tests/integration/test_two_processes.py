"""`trainer=ddp` on two CPU processes equals one process with batches twice as large, and needs no objects in each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny_run
import torch
from PIL import Image

# Without dropout, sampled points and batch norm, which are random or go by each process's own images.
EXACT = ["trainer.precision=64-true", "head.dropout=0", "head.loss.mask_loss=focal", "backbone.freeze_norm=true"]
STAGED = ["finetune.freeze_stages=2", "finetune.unfreeze_epochs=[1,2]", "data.num_val=3"]


def test_two_processes_with_staged_unfreezing_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    folder = tmp_path / "two, a=b"
    options = [*tiny_run.TINY, *EXACT, *STAGED, f"run_dir={folder}", "trainer=ddp", "trainer.devices=2"]
    command = [sys.executable, str(tiny_run.ROOT / "train.py"), *options]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    tiny_run.train(tmp_path / "one", *EXACT, *STAGED, "data.batch_size=4")
    two, one = tiny_run.last(folder), tiny_run.last(tmp_path / "one")
    assert two["position"] == one["position"]
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=0, atol=1e-11, msg=name)  # float64 sums
    for name in ("metrics.json", "predictions.json"):
        assert (folder / name).read_text() == (tmp_path / "one" / name).read_text()


def test_two_processes_of_which_one_has_no_objects_train_a_detector(tmp_path: Path) -> None:
    """Two images, of which one is empty: in each step one process has a batch without objects."""
    rng = np.random.default_rng(0)
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 20]}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "ball"}]}
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for image in images:
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / image["file_name"])
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    options = ["task=detection", f"data={tmp_path / 'data'}", "data.filter_empty=false", "data.num_workers=0"]
    options += ["batch_size=1", "imgsz=64", "steps=3", "backbone=resnet18", "pretrained=false", "measure=false"]
    options += ["head=faster_rcnn", "head.version=v2", "head.representation_size=16", "neck.channels=16"]
    options += ["num_pictures=0", f"run_dir={tmp_path / 'run'}", "trainer=ddp", "trainer.devices=2"]
    command = [sys.executable, str(tiny_run.ROOT / "train.py"), *options, "trainer.accelerator=cpu"]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert tiny_run.last(tmp_path / "run")["position"]["step"] == 3
