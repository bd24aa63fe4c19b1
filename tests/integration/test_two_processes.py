"""`trainer=ddp` on two CPU processes, with unfreezing, equals one process with batches twice as large."""

import os
import subprocess
import sys
from pathlib import Path

import tiny_run
import torch

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
