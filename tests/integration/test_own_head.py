"""docs/your_own_head.md, done: its files, taken from the page, are checked, trained and used."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
from PIL import Image

PAGE = (tiny_run.ROOT / "docs" / "your_own_head.md").read_text(encoding="utf-8")
PLUGIN = "plugins=[my_package.center_points]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's blocks that begin with the name of a file, as files; and its test."""
    folder = tmp_path_factory.mktemp("own head")
    for block in re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL):
        if match := re.match(r"# (my_package/\S+)\n", block):
            file = folder / match[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block, encoding="utf-8")
        elif "def test_" in block:
            (folder / "test_it.py").write_text(block, encoding="utf-8")
    (folder / "my_package" / "__init__.py").touch()
    return folder


def run(folder: Path, *command: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(tiny_run.ROOT)])}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def test_head_of_the_page_passes_the_test_of_the_page(folder: Path) -> None:
    assert run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    code = (folder / "my_package" / "center_points.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) < 100


def test_head_of_the_page_trains_and_predicts(folder: Path) -> None:
    assert f"{PLUGIN} task=detection head=center_points" in PAGE
    script = ["-m", "vision_stack"]
    options = [PLUGIN, "task=detection", "head=center_points", "head.hidden=16", "neck.channels=16"]
    options += ["data.image_size=64", "data.num_train=32", "data.num_val=4", "batch_size=8", "epochs=6", "device=cpu"]
    options += ["run_dir=run", "num_pictures=1", "logger=csv", "trainer.log_every_n_steps=1", "optim.warmup_steps=1"]
    run(folder, *script, "train", *options)
    assert "AP" in json.loads((folder / "run" / "metrics.json").read_text())["bbox"]
    header, *rows = (folder / "run" / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/loss")
    losses = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    Image.new("RGB", (80, 60)).save(folder / "image.png")
    checkpoint, source = "checkpoint=run/checkpoints/best.ckpt", "source=image.png"
    run(folder, *script, "predict", PLUGIN, checkpoint, source, "run_dir=found", "nms=soft", "device=cpu")
    assert all("bbox" in record for record in json.loads((folder / "found" / "predictions.json").read_text()))
