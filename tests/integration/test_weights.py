"""`weights=`: fine-tuning from a directory that transformers wrote, from a model of ours, and from what is neither."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_run
import torch
from hydra.utils import instantiate

from vision_stack.commands import to_transformers
from vision_stack.model import VisionModel
from vision_stack.training.evaluation import evaluate
from vision_stack.training.start import read_start, transfer

transformers = pytest.importorskip("transformers")
NAMES = ["Ellipses", "thing", "rectangle", "road"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mask2Former with mean and std of its own, as transformers saves it."""
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[8, 16, 16, 24],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=stages,
        ),
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
        num_queries=12,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        train_num_points=64,
    )
    directory = tmp_path_factory.mktemp("published") / "mask2former-tiny-instance"
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(directory)
    processor = transformers.Mask2FormerImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def run(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One step from the published model, at a rate that changes nothing, and what it printed."""
    import contextlib
    import io

    run_dir, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        tiny_run.train(run_dir, f"weights='{published}'", "optim.lr=1e-12", "trainer.max_steps=1")
    return run_dir, printed.getvalue()


def test_weights_of_transformers_bring_architecture_mean_and_std(run: tuple[Path, str]) -> None:
    config = VisionModel.from_pretrained(run[0] / "checkpoints" / "best.ckpt").config
    assert (config.backbone.type, config.neck.type, config.head.type) == ("resnet", "ms_deform", "mask2former")
    assert config.head.num_queries == 12  # type: ignore[attr-defined]
    assert config.head.loss.num_points == 64  # type: ignore[attr-defined]
    assert (config.image_mean, config.image_std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert config.input_size.short_edge == 64  # that of the data


def test_weights_of_transformers_keep_the_rows_of_classes_with_the_same_name(
    run: tuple[Path, str], published: Path
) -> None:
    trained, source = (VisionModel.from_pretrained(p) for p in (run[0] / "checkpoints" / "best.ckpt", published))
    names = [category.name for category in trained.categories]
    ours, theirs = trained.head.class_embed.weight, source.head.class_embed.weight
    kept = {"ellipse": 0, "rectangle": 2}
    assert kept.keys() < set(names)
    for name in names:
        row = ours[names.index(name)]
        same = [label for label in range(len(NAMES) + 1) if torch.allclose(row, theirs[label], rtol=0, atol=1e-9)]
        assert same == ([kept[name]] if name in kept else []), name
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=0, atol=1e-9)  # no object; one step at a rate of 1e-12


def test_weights_of_transformers_all_else_is_taken_over(run: tuple[Path, str], published: Path) -> None:
    trained, source = (VisionModel.from_pretrained(p) for p in (run[0] / "checkpoints" / "best.ckpt", published))
    theirs = source.state_dict()
    for name, tensor in trained.state_dict().items():
        if not name.startswith("head.class_embed") and "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-9, msg=name)


def test_weights_run_prints_recipe_and_table_of_classes(run: tuple[Path, str], published: Path) -> None:
    lines = run[1].splitlines()
    assert any(line.startswith("recipe") and "rate 1e-12" in line for line in lines)
    assert any(line.startswith("model") and line.endswith(str(published)) for line in lines)
    assert any(line.startswith("loaded") and " 0 missing, 0 unexpected" in line for line in lines)
    rows = [line.split() for line in lines]
    assert ["ellipse", "Ellipses", "spelling"] in rows
    assert ["rectangle", "rectangle", "same", "name"] in rows
    assert ["triangle", "-", "new"] in rows


@pytest.mark.parametrize("write", ["save_pretrained", "export_transformers"])
def test_eval_of_a_directory_gives_what_its_checkpoint_gave(run: tuple[Path, str], tmp_path: Path, write: str) -> None:
    run_dir, _ = run
    getattr(VisionModel.from_pretrained(run_dir / "checkpoints" / "best.ckpt"), write)(tmp_path / "model")
    data = ["++data.type=shapes", "++data.image_size=64", "++data.num_train=8", "++data.num_val=2"]
    config = tiny_run.compose_options("eval", ["trainer.accelerator=cpu", "num_pictures=0", "checkpoint=x", *data])
    config["checkpoint"] = str(tmp_path / "model")
    results = evaluate(
        config, tmp_path / "out", lambda: instantiate(config["trainer"], logger=False, default_root_dir=str(tmp_path))
    )
    before = json.loads((run_dir / "predictions.json").read_text())
    assert len(results.predictions) == len(before) > 0
    scores = [record["score"] for record in results.predictions]
    assert scores == pytest.approx([record["score"] for record in before], rel=1e-4)  # mean and std to six digits


def test_eval_of_a_directory_without_data_says_what_to_give(published: Path, tmp_path: Path) -> None:
    config = tiny_run.compose_options("eval", ["checkpoint=x"]) | {"checkpoint": str(published)}
    with pytest.raises(ValueError, match=r"says nothing of its data; give data\.type=coco data\.root=DIR"):
        evaluate(config, tmp_path, lambda: None)  # type: ignore[arg-type, return-value]


def start_of(source: Path, *overrides: str) -> Any:
    return read_start(str(source), tiny_run.compose_options("train", list(overrides)), overrides)


def test_weights_values_of_the_command_line_go_on_top(published: Path) -> None:
    start = start_of(published, "head.num_queries=5", "head.loss.mask_weight=7.0")
    assert start.parts["head"].num_queries == 5
    assert start.parts["head"].loss.mask_weight == 7.0
    assert start.parts["head"].hidden_dim == 32  # of the weights, not of the yaml
    assert start.changed == ("head.num_queries", "head.loss.mask_weight")


def test_weights_a_part_chosen_on_the_command_line_replaces_theirs(published: Path) -> None:
    start = start_of(published, "backbone=resnet18")
    assert start.parts["backbone"].type == "timm"
    assert start.parts["neck"].type == "ms_deform"
    assert start.pixel_statistics == {}
    config = start.model.config
    other = type(config)(**start.parts, categories=config.categories)
    report = transfer(start, VisionModel(other))
    assert not any(name.startswith("backbone.") for name in report.matched)
    assert "neck.level_embed.weight" in report.matched
    assert report.regrouped == ("head.class_embed.weight", "head.class_embed.bias")


def test_weights_whose_backbone_an_option_makes_unfit_are_warned_about(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.train(tmp_path, f"weights='{published}'", "backbone.out_norms=true", "trainer.max_steps=1")
    assert "warning: with backbone.out_norms the backbone of the weights does not fit" in capsys.readouterr().out


def test_weights_option_that_their_part_does_not_have_fails_in_one_line(published: Path) -> None:
    with pytest.raises(ValueError, match=r"neck\.norm: the neck of the weights has no such option; .* by neck=NAME"):
        start_of(published, "neck.norm=batch")


def test_weights_of_our_own_directory_go_through_the_same_transfer(published: Path, tmp_path: Path) -> None:
    source = VisionModel.from_pretrained(published)
    source.save_pretrained(tmp_path / "ours")
    start = start_of(tmp_path / "ours")
    categories = tuple(reversed(source.categories))
    model = VisionModel(type(source.config)(**start.parts, categories=categories))
    report = transfer(start, model)
    assert report.fresh == ()
    torch.testing.assert_close(model.head.class_embed.weight[:4], source.head.class_embed.weight[:4].flip(0))


def test_weights_with_a_pixel_classifier_keep_its_rows_by_class_and_are_exported_without_it(
    published: Path, tmp_path: Path
) -> None:
    parts = start_of(published, "head.loss.pixel_ce_weight=2").parts
    loaded = VisionModel.from_pretrained(published)
    config, categories = type(loaded.config), loaded.categories
    source = VisionModel(config(**parts, categories=categories)).eval()
    source.save_pretrained(tmp_path / "ours")
    model = VisionModel(config(**parts, categories=tuple(reversed(categories))))
    assert transfer(start_of(tmp_path / "ours"), model).fresh == ()
    own, theirs = model.head.pixel_classifier.weight, source.head.pixel_classifier.weight
    torch.testing.assert_close(own[:4], theirs[:4].flip(0))
    source.export_transformers(tmp_path / "theirs")
    again, images = VisionModel.from_pretrained(tmp_path / "theirs"), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(again(images).pred_logits, source(images).pred_logits, rtol=1e-4, atol=1e-4)


def test_export_of_positions_on_mask_features_fails_in_one_line(published: Path, tmp_path: Path) -> None:
    parts = start_of(published, "head.mask_feature_pos_embed=true").parts
    loaded = VisionModel.from_pretrained(published)
    model = VisionModel(type(loaded.config)(**parts, categories=loaded.categories))
    with pytest.raises(ValueError, match=r"^head.mask_feature_pos_embed: .*; train with head.mask_feature_pos"):
        model.export_transformers(tmp_path)


def test_script_weights_without_experiment_takes_the_recipe_of_fine_tuning(tmp_path: Path) -> None:
    from vision_stack.commands.arguments import recipe_for_weights

    assert recipe_for_weights(["weights=a/b", "data=coco", "data.root=x"])[-1] == "experiment=from_weights"
    others = (["weights=a/b"], ["data=coco"], ["weights=null", "data=coco"], ["weights=a", "data=coco", "experiment=e"])
    for argv in others:
        assert recipe_for_weights(argv) == argv
    options = tiny_run.compose_options("train", ["data=coco", "data.root=x", "experiment=from_weights"])
    assert (options["optim"]["schedule"], options["optim"]["lr"]) == ("cosine", "auto")


def break_json(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "mask2former", ')


def edit(**changes: Any) -> Any:
    def change(directory: Path) -> None:
        raw = json.loads((directory / "config.json").read_text())
        raw |= changes
        (directory / "config.json").write_text(json.dumps(raw))

    return change


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def torn_weights(directory: Path) -> None:
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[: len(data) // 2])


def code_in_a_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, directory / "pytorch_model.bin")


def weights_without_values(directory: Path) -> None:
    state = safetensors.torch.load_file(directory / "model.safetensors")
    state["class_predictor.bias"][0] = torch.nan
    safetensors.torch.save_file(state, directory / "model.safetensors")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil_was_here"),))


BROKEN = {
    "json": (break_json, "not valid json"),
    "another model": (edit(model_type="bert"), "'bert' is not loaded here"),
    "code": (edit(auto_map={"AutoModel": "evil.Model"}), "names code to run, which is never done"),
    "layers": (edit(decoder_layers=10**9), "decoder_layers: expected a whole number from 2 to 200"),
    "width": (edit(hidden_dim=10**12), "hidden_dim: 1000000000000 is outside the allowed range"),
    "wide but allowed": (edit(hidden_dim=99_968), "weights do not fit the config"),
    "wrong type": (edit(num_queries="many"), "head.num_queries: expected"),
    "pre-norm": (edit(pre_norm=True), "pre_norm: True is not built here"),
    "labels": (edit(id2label={"0": "a", "2": "b"}), "id2label: has 2 classes but none numbered 1"),
    "labels of lists": (edit(id2label=[1, 2]), "id2label: expected a mapping"),
    "backbone": (edit(backbone_config={"model_type": "../../evil"}), "'../../evil' is not a model type"),
    "no backbone": (edit(backbone_config=None), "backbone_config: missing"),
    "other depth": (edit(encoder_layers=2), "weights do not fit the config: missing neck.layers.1"),
    "no weights": (no_weights, "holds none of model.safetensors"),
    "nan": (weights_without_values, "head.class_embed.bias has values that are NaN or infinite"),
    "torn weights": (torn_weights, "cannot be read as weights"),
    "pickle": (code_in_a_pickle, "holds more than tensors and plain values, so it is not loaded"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_weights_of_a_broken_directory_fail_in_one_line(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, message: str
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "copy"
    shutil.copytree(published, directory)
    damage(directory)
    with pytest.raises(ValueError) as error:
        start_of(directory)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)
    assert not Path("evil_was_here").exists()


def test_weights_of_a_sharded_directory_are_those_of_the_whole(published: Path, tmp_path: Path) -> None:
    transformers.Mask2FormerForUniversalSegmentation.from_pretrained(published).save_pretrained(
        tmp_path, max_shard_size="100KB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, shards = (VisionModel.from_pretrained(path).state_dict() for path in (published, tmp_path))
    assert all(torch.equal(shards[name], value) for name, value in whole.items())


@pytest.mark.parametrize("name", ["yolo", "yolov8n-seg.pt"])
def test_weights_that_name_nothing_say_what_may_be_given(name: str) -> None:
    expected = rf"^weights: {name}: no such checkpoint; give a \.ckpt file, the folder of a run .* or a Hub id, as in"
    with pytest.raises(ValueError, match=expected):
        start_of(Path(name))


def test_weights_hub_id_without_network_says_what_was_tried() -> None:
    with pytest.raises(
        ValueError,
        match=r"^weights: facebook/no-such-model: no such path, and could not be fetched from the Hub; .* cache",
    ):
        start_of(Path("facebook/no-such-model"))


def test_to_transformers_writes_what_transformers_loads_with_equal_logits(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = VisionModel.from_pretrained(published)
    source.save_pretrained(tmp_path / "ours")
    assert to_transformers.main([str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    model, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(NAMES))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs, ours = model.eval()(images), source(images)
    # float32, logits of size 1
    torch.testing.assert_close(ours.pred_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.pred_masks, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    assert processor.image_mean == pytest.approx([0.4, 0.5, 0.6])
