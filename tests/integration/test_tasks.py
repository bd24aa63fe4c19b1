"""Training, evaluation and prediction of panoptic and semantic models, on tiny images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from hydra.utils import instantiate
from PIL import Image

from vision_stack.config import from_dict
from vision_stack.data.configs import ShapesDataConfig
from vision_stack.data.datamodule import build_datamodule
from vision_stack.model import VisionModel
from vision_stack.ops.label_maps import rgb_to_ids
from vision_stack.structures import PanopticSegmentation, SemanticSegmentation
from vision_stack.training.evaluation import evaluate
from vision_stack.training.prediction import predict

IDS = {3, 7, 11, 20, 31, 32, 40}  # the data set's own category ids


@pytest.fixture(scope="module", params=["panoptic", "semantic"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One step, with thresholds at which even an untrained model finds segments."""
    run_dir = tmp_path_factory.mktemp(request.param)
    options = [f"task={request.param}", "panoptic.score_threshold=0.1", "panoptic.overlap_threshold=0.0"]
    tiny_run.train(run_dir, *options, "trainer.max_steps=1", "num_pictures=2", "logger=csv")
    return request.param, run_dir


def test_run_leaves_label_maps_metrics_pictures_and_the_task_in_its_checkpoint(run: tuple[str, Path]) -> None:
    task, run_dir = run
    metrics = json.loads((run_dir / "metrics.json").read_text())
    score = metrics["all"]["PQ"] if task == "panoptic" else metrics["mIoU"]
    assert score == tiny_run.best(run_dir)["best_score"]
    assert len(metrics["per_class"]) == len(metrics["categories"]) == 7
    results = json.loads((run_dir / "predictions.json").read_text())
    assert len(results["annotations"]) == len(list((run_dir / "predictions").iterdir())) == 2
    assert {path.suffix for path in (run_dir / "pictures").iterdir()} == {".jpg", ".png"}  # and the plots
    for record in results["annotations"]:
        pixels = np.asarray(Image.open(run_dir / "predictions" / record["file_name"]))
        if task == "semantic":
            assert set(np.unique(pixels)) <= IDS
        else:
            assert set(np.unique(rgb_to_ids(pixels))) - {0} == {s["id"] for s in record["segments_info"]}
            assert {s["category_id"] for s in record["segments_info"]} <= IDS
    model = VisionModel.from_pretrained(run_dir / "checkpoints" / "best.ckpt")
    assert model.config.task == task
    assert [category.is_thing for category in model.categories] == [True] * 4 + [task == "semantic"] * 3


def test_eval_from_the_checkpoint_alone_gives_the_scores_of_training(run: tuple[str, Path], tmp_path: Path) -> None:
    _, run_dir = run
    config = tiny_run.compose_options("eval", ["trainer.accelerator=cpu", "num_pictures=1", "checkpoint=x"])
    config["checkpoint"] = str(run_dir / "checkpoints" / "best.ckpt")
    results = evaluate(
        config, tmp_path, lambda: instantiate(config["trainer"], logger=False, default_root_dir=str(tmp_path))
    )
    assert results.metrics == json.loads((run_dir / "metrics.json").read_text())
    for path in (run_dir / "predictions").iterdir():
        assert path.read_bytes() == (tmp_path / "predictions" / path.name).read_bytes()
    assert len(list((tmp_path / "pictures").glob("[0-9]*.jpg"))) == 1
    for name in ("pictures/confusion.png", "pictures/classes.png", "confusion.csv"):
        assert (tmp_path / name).is_file()


def test_limit_of_one_batch_scores_its_images_and_a_limit_of_one_whole_all(
    run: tuple[str, Path], tmp_path: Path
) -> None:
    """Trainer's limits: the int 1 is a batch, the float 1.0 the whole."""
    _, run_dir = run

    def metrics(*overrides: str) -> dict[str, Any]:
        options = ["trainer.accelerator=cpu", "num_pictures=0", "checkpoint=x", "++data.eval_batch_size=1", *overrides]
        config = tiny_run.compose_options("eval", options)
        config["checkpoint"] = str(run_dir / "checkpoints" / "best.ckpt")
        trainer = instantiate(config["trainer"], logger=False, default_root_dir=str(tmp_path))
        return evaluate(config, tmp_path, lambda: trainer).metrics

    everything, first = metrics(), metrics("++data.max_val_images=1")
    assert first != everything
    assert metrics("trainer.limit_val_batches=1") == first
    assert metrics("trainer.limit_val_batches=1.0") == everything


def test_written_label_maps_score_as_evaluation_said(run: tuple[str, Path]) -> None:
    """Pixels counted on the files against the annotations as they are read, without the evaluator."""
    task, run_dir = run
    stored = tiny_run.best(run_dir)["run_config"]["data"]
    truth = build_datamodule(from_dict(stored, kind="data"), task=task).val_ground_truth()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    index = {category["id"]: category["index"] for category in metrics["categories"]}
    hits = total = 0
    for record in json.loads((run_dir / "predictions.json").read_text())["annotations"]:
        pixels = np.asarray(Image.open(run_dir / "predictions" / record["file_name"]))
        if task == "semantic":
            expected = truth[record["image_id"]].label_map.numpy()
            hits += int((np.vectorize(index.get)(pixels) == expected).sum())
            total += expected.size
        else:
            hits += len(record["segments_info"])
            total = 1
    if task == "semantic":
        assert hits / total == pytest.approx(metrics["pixel_accuracy"])
    else:  # every segment is a true or a false positive: there is no void and no crowd in these scenes
        assert hits == sum(values["TP"] + values["FP"] for values in metrics["per_class"].values()) > 0


def test_predict_writes_a_label_map_and_a_picture_for_each_image(run: tuple[str, Path], tmp_path: Path) -> None:
    _, run_dir = run
    photos = tmp_path / "photos, [a] é"
    (photos / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("a.jpg", (40, 60)), ("more/b.jpg", (90, 30))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(photos / name)
    config = tiny_run.compose_options("predict", ["checkpoint=x", "source=x"])
    paths = {"checkpoint": str(run_dir / "checkpoints" / "best.ckpt"), "source": str(photos), "device": "cpu"}
    predict({**config, **paths}, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    records = content["annotations"]
    assert [record["image"] for record in records] == ["a.jpg", "a.png", "more/b.jpg"]
    assert [record["file_name"] for record in records] == ["a.png", "a_2.png", "more/b.png"]  # neither is overwritten
    sizes = [Image.open(tmp_path / "out" / "predictions" / record["file_name"]).size for record in records]
    assert sizes == [(60, 40), (60, 40), (30, 90)]
    assert len(list((tmp_path / "out" / "pictures").rglob("*.jpg"))) == 3
    assert {category["id"] for category in content["categories"]} == IDS


def test_model_predict_gives_the_type_of_its_task(run: tuple[str, Path]) -> None:
    task, run_dir = run
    model = VisionModel.from_pretrained(run_dir / "checkpoints" / "best.ckpt")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    (found,) = model.predict(image)
    if task == "semantic":
        assert isinstance(found, SemanticSegmentation)
        assert found.label_map.shape == (40, 60)
        assert set(found.label_map.unique().tolist()) <= set(range(7))
        return
    assert isinstance(found, PanopticSegmentation)
    assert found.segment_map.shape == (40, 60)
    assert found.segment_map.max() == len(found.labels) == len(found.scores) > 0
    (none,) = model.predict(image, threshold=1.0)
    assert len(none.labels) == int(none.segment_map.any()) == 0


def test_more_segments_than_queries_is_said_before_training(tmp_path: Path, capsys: Any) -> None:
    tiny_run.train(tmp_path, "task=panoptic", "head.num_queries=3", "trainer.max_steps=1", "data.num_train=8")
    out = capsys.readouterr().out
    assert "training images have more than 3 segments, the most that can be found in one; raise head.num_queries" in out
    assert out.index("warning") < out.index("validation: PQ")


def test_images_without_objects_train(tmp_path: Path) -> None:
    """One batch of all images, empty ones among them."""
    torch.manual_seed(0)
    options = ["data.filter_empty=false", "data.num_train=40", "data.batch_size=40", "trainer.max_steps=1"]
    trainer = tiny_run.train(tmp_path, *options)
    assert any(record.num_objects == 0 for record in trainer.datamodule.train_records)
    assert all(torch.isfinite(loss) for loss in trainer.lightning_module.losses.values())


def test_boundary_ap_is_an_option_of_evaluation(tmp_path: Path) -> None:
    tiny_run.train(tmp_path / "run", "trainer.max_steps=1")
    overrides = ["trainer.accelerator=cpu", "num_pictures=0", "checkpoint=x", "boundary_ap=true"]
    config = tiny_run.compose_options("eval", overrides)
    config["checkpoint"] = str(tmp_path / "run" / "checkpoints" / "best.ckpt")
    results = evaluate(
        config, tmp_path, lambda: instantiate(config["trainer"], logger=False, default_root_dir=str(tmp_path))
    )
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results.metrics["segm"] == before["segm"]
    assert results.metrics["boundary"].keys() == before["segm"].keys()


def test_validation_set_of_crowds_is_said_before_training_and_has_no_score(tmp_path: Path, capsys: Any) -> None:
    folder = ShapesDataConfig(root=str(tmp_path), image_size=64, num_train=8, num_val=2).folder()
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    file.write_text(json.dumps(content))
    tiny_run.train(tmp_path / "run", f"data.root={tmp_path}", "trainer.max_epochs=2")
    printed = capsys.readouterr().out
    before, _, after = printed.partition("results in")
    assert f"warning: {file}: no validation image has an object, only crowd regions" in before
    assert "mask AP -" in after
    assert "-1.0" not in printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["segm"]["AP"] is None
    assert tiny_run.best(tmp_path / "run")["position"]["step"] == 8  # the last, since none is better
