import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_run
from hydra.utils import instantiate
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pytorch_lightning.profilers import PassThroughProfiler

from vision_stack.commands import arguments
from vision_stack.config import from_dict
from vision_stack.data.datamodule import build_datamodule
from vision_stack.model import VisionModel
from vision_stack.published import locate
from vision_stack.training import evaluation, prediction
from vision_stack.training.evaluation import data_of, evaluate
from vision_stack.training.prediction import predict
from vision_stack.training.results import write_config
from vision_stack.training.sources import find_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    tiny_run.train(run_dir, "trainer.max_steps=1", "optim.lr=1e-9")  # weights as drawn, which find something everywhere
    return run_dir


def run_eval(run_dir: Path, *overrides: str) -> Any:
    config = tiny_run.compose_options("eval", ["trainer.accelerator=cpu", "num_pictures=1", *overrides])
    return evaluate(
        config, run_dir, lambda: instantiate(config["trainer"], logger=False, default_root_dir=str(run_dir))
    )


def test_eval_from_the_checkpoint_alone_gives_the_scores_of_training(run: Path, tmp_path: Path) -> None:
    results = run_eval(tmp_path, f"checkpoint='{run}/checkpoints/best.ckpt'")
    assert results.metrics == json.loads((run / "metrics.json").read_text())
    assert json.loads((tmp_path / "metrics.json").read_text()) == results.metrics
    assert (tmp_path / "config.yaml").is_file()
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 1


def test_folder_of_a_run_means_its_best_checkpoint(run: Path, tmp_path: Path) -> None:
    assert locate(run) == run / "checkpoints" / "best.ckpt"
    results = run_eval(tmp_path, f"checkpoint='{run}'")
    assert results.metrics == json.loads((run / "metrics.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert locate(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"  # nothing was validated


def test_eval_in_a_process_beside_the_first_writes_no_results(run: Path, tmp_path: Path) -> None:
    """Such a process validates its share of the images and sends what it found to the first."""
    config = tiny_run.compose_options("eval", [f"checkpoint='{run}/checkpoints/best.ckpt'"])
    trainer: Any = SimpleNamespace(validate=lambda *_, **__: None, profiler=PassThroughProfiler())
    assert evaluate(config, tmp_path, lambda: trainer) is None
    assert not (tmp_path / "metrics.json").exists()


def test_eval_on_other_data_scores_equal_those_of_pycocotools_on_the_written_file(run: Path, tmp_path: Path) -> None:
    """Ground truth made of some detections, so that there is something to find."""
    stored = from_dict(tiny_run.best(run)["run_config"]["data"], kind="data")
    truth = build_datamodule(stored).val_ground_truth()
    found = json.loads((run / "predictions.json").read_text())
    chosen = [r for n, r in enumerate(found) if n % 3 and coco_mask.area(r["segmentation"]) > 9]
    truth["annotations"] = [
        {
            "id": number,
            "iscrowd": 0,
            "area": float(coco_mask.area(r["segmentation"])),
            "bbox": coco_mask.toBbox(r["segmentation"]).tolist(),
            **{key: r[key] for key in ("image_id", "category_id", "segmentation")},
        }
        for number, r in enumerate(chosen, start=1)
    ]
    json_file = tmp_path / "truth, [1].json"
    json_file.write_text(json.dumps(truth))
    images = stored.split_paths("val").image_dir
    argv = ["data.type=coco", f"data.root={tmp_path}", f"data.val_annotations={json_file}", f"data.val_images={images}"]
    argv += ["data.num_workers=0"]
    argv = arguments.open_group(arguments.quote_paths([f"checkpoint={run}/checkpoints/best.ckpt", *argv]), "data")
    metrics = run_eval(tmp_path / "out", *argv).metrics

    with redirect_stdout(io.StringIO()):
        coco = COCO(str(json_file))
        results = coco.loadRes(str(tmp_path / "out" / "predictions.json"))
        evaluations = {kind: COCOeval(coco, results, kind) for kind in ("segm", "bbox")}
        for evaluation in evaluations.values():
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    for kind, evaluation in evaluations.items():
        assert 0.1 < metrics[kind]["AP"] < 1.0
        stats = [None if value == -1 else value for value in evaluation.stats]
        assert list(metrics[kind].values()) == pytest.approx(stats, abs=1e-9)


def test_eval_checkpoint_outside_its_run_folder_needs_the_root_said(run: Path, tmp_path: Path) -> None:
    stray = tmp_path / "best.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", stray)
    checkpoint = {"run_config": {"data": {"type": "coco", "root": "/etc", "val_annotations": "/etc/passwd"}}}
    with pytest.raises(ValueError, match=r"give data\.root=DIR"):
        data_of(checkpoint, stray, {})
    config = data_of(checkpoint, stray, {"root": "/mine"})
    assert (config.root, config.val_annotations) == ("/mine", None)


def test_eval_data_options_of_a_run_can_be_overridden(run: Path) -> None:
    path = run / "checkpoints" / "best.ckpt"
    config = data_of(tiny_run.best(run), path, {"eval_transform": {"long_edge": 96}, "max_val_images": 2})
    assert (config.eval_transform.short_edge, config.eval_transform.long_edge, config.max_val_images) == (64, 96, 2)


@pytest.mark.parametrize("says_its_data", [True, False])
def test_eval_other_type_of_data_keeps_the_size_of_the_models_input(says_its_data: bool, run: Path) -> None:
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = tiny_run.best(run) if says_its_data else {**tiny_run.best(run), "run_config": {}}
    config = data_of(checkpoint, path, {"type": "coco", "root": "/mine"})
    assert (config.eval_transform.short_edge, config.eval_transform.long_edge) == (64, 64)
    config = data_of(checkpoint, path, {"type": "coco", "root": "/mine", "eval_transform": {"long_edge": 96}})
    assert (config.eval_transform.short_edge, config.eval_transform.long_edge) == (64, 96)


def test_eval_checkpoint_named_from_its_own_folder_is_in_its_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = {"run_config": {"data": {"type": "coco", "root": "/mine"}}}
    monkeypatch.chdir(run / "checkpoints")
    assert data_of(checkpoint, Path("best.ckpt"), {}).root == "/mine"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos, [a] é"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("more/b.jpg", (90, 30))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def run_predict(run: Path, source: str, run_dir: Path, **options: Any) -> list[dict[str, Any]]:
    config = tiny_run.compose_options("predict", ["checkpoint=x", "source=x"])
    given = {"checkpoint": str(run / "checkpoints" / "best.ckpt"), "source": source, "device": "cpu"}
    predict({**config, **given, **options}, run_dir)
    return json.loads((run_dir / "predictions.json").read_text())


def test_predict_folder_draws_each_image_and_skips_the_broken_one(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = run_predict(run, str(photos), tmp_path / "out", threshold=0.01)
    pictures = {str(p.relative_to(tmp_path / "out" / "pictures")) for p in (tmp_path / "out" / "pictures").rglob("*.*")}
    assert pictures == {"a.jpg", "more/b.jpg"}
    assert {(r["image_id"], r["file_name"]) for r in records} == {(1, "a.png"), (3, "more/b.jpg")}
    assert all(r["segmentation"]["size"] == ([40, 60] if r["image_id"] == 1 else [90, 30]) for r in records)
    assert {r["category_id"] for r in records} <= {3, 7, 11, 20}  # the data set's own ids
    out = capsys.readouterr().out
    assert "2 images, 1 image skipped" in out
    assert "broken.jpg" in out


def test_predict_display_threshold_leaves_the_results_file_alone(run: Path, photos: Path, tmp_path: Path) -> None:
    low = run_predict(run, str(photos / "a.png"), tmp_path / "low", threshold=0.01)
    high = run_predict(run, str(photos / "a.png"), tmp_path / "high", threshold=0.99)
    assert low == high
    assert len(low) > 0


def test_predict_that_shows_nothing_suggests_a_threshold(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = run_predict(run, str(photos / "a.png"), tmp_path / "high", threshold=0.99)
    best = max(record["score"] for record in records)
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("1 image"))
    lower = float(re.search(rf"0 objects .* the highest has {best:.2g}; give threshold=([\d.]+) and", first)[1])
    assert 0 < lower <= best
    run_predict(run, str(photos / "a.png"), tmp_path / "low", threshold=lower)
    assert "give threshold" not in capsys.readouterr().out


def test_predict_gives_what_the_model_gives_in_python(run: Path, photos: Path, tmp_path: Path) -> None:
    records = run_predict(run, str(photos / "a.png"), tmp_path / "out")
    (found,) = VisionModel.from_pretrained(run / "checkpoints" / "best.ckpt").predict(photos / "a.png", threshold=0.0)
    assert [r["score"] for r in records] == pytest.approx(found.scores.tolist(), rel=1e-5)  # written with six digits
    assert len(records) > 0


class Called(Exception):
    pass


def call(*_: Any) -> None:
    raise Called


def test_scripts_return_freed_memory_before_anything_large(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VisionModel, "from_pretrained", lambda *_: pytest.fail("there is a model already"))
    monkeypatch.setattr(evaluation, "return_freed_memory", call)
    with pytest.raises(Called):
        run_eval(tmp_path, f"checkpoint='{run}/checkpoints/best.ckpt'")
    monkeypatch.setattr(prediction, "return_freed_memory", call)
    with pytest.raises(Called):
        run_predict(run, str(photos), tmp_path)


def test_find_images_file_folder_and_pattern(photos: Path) -> None:
    assert [p.name for p in find_images(str(photos))[0]] == ["a.png", "broken.jpg", "b.jpg"]
    assert find_images(str(photos / "a.png")) == ([photos / "a.png"], photos, [])
    with pytest.raises(ValueError, match="no such file or folder"):
        find_images(str(photos / "*.webp"))


def test_find_images_folder_without_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image"):
        find_images(str(tmp_path))


def test_find_images_folder_leaves_out_hidden_files_and_what_runs_wrote(photos: Path) -> None:
    expected = find_images(str(photos))[0]
    run_dir = photos / "outputs" / "run"
    write_config({"source": str(photos)}, run_dir)
    hidden = [photos / "._a.png", photos / ".ipynb_checkpoints" / "a.png"]
    for path in (*hidden, run_dir / "pictures" / "a.jpg", run_dir / "predictions" / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "a.png", path)
    assert find_images(str(photos))[0] == expected
    assert find_images(str(run_dir / "pictures"))[0] == [run_dir / "pictures" / "a.jpg"]  # said in so many words
    with pytest.raises(ValueError, match="pictures written by runs are ignored"):
        find_images(str(run_dir))


def test_find_images_folder_named_pictures_of_the_users_own_is_taken(photos: Path) -> None:
    (photos / "pictures").mkdir()
    shutil.copy(photos / "a.png", photos / "pictures" / "c.png")
    (photos / "config.yaml").write_text("names: [cat, dog]\n")  # of some other program
    assert photos / "pictures" / "c.png" in find_images(str(photos))[0]


def test_predict_nothing_that_can_be_read_is_an_error(run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source: .*broken\.jpg: no image could be read \(1 tried\); .*broken\.jpg"):
        run_predict(run, str(photos / "broken.jpg"), tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize("device", ["cuda:99", "meta", "gpu"])
def test_predict_device_that_is_not_there_is_one_line(device: str, run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^device: '{device}' cannot be used here .*; try auto, cpu") as error:
        run_predict(run, str(photos), tmp_path / "out", device=device)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_eval_root_that_does_not_exist_is_refused_and_not_created(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root: there is no folder .*nosuch; check the path"):
        run_eval(tmp_path / "out", f"checkpoint={run}/checkpoints/best.ckpt", f"++data.root={tmp_path / 'nosuch'}")
    assert not (tmp_path / "nosuch").exists()
