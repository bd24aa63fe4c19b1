"""What `auto` becomes: tables of facts and values, what was typed, and where `auto` cannot stand."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vision_stack.model  # noqa: F401  registers the parts
from vision_stack.config import ConfigError, from_dict, to_dict
from vision_stack.data.configs import DataConfig
from vision_stack.training.auto import auto_paths, describe_settled, fitting, settle, settled_values, without_autos
from vision_stack.training.facts import BACKBONES
from vision_stack.training.options import TrainOptions, decode_options
from vision_stack.training.recipe import RULES, Facts, Settled, lookup, quantile
from vision_stack.training.start import PARTS, backbone_warnings, without_pretrained

CONFIGS = Path(__file__).parents[2] / "configs"
PEDESTRIANS = Facts(
    finds="objects",
    num_train=110,
    num_val=30,
    num_classes=1,
    short_edge=412,
    aspect=1.35,
    object_size=0.36,
    max_objects=8,
    device="cpu",
    cores=4,
    pretrained=True,
    backbone="resnet50.tv_in1k",
    backbone_reason="a test",
)
GPU = replace(PEDESTRIANS, device="cuda", device_memory=79.2, has_bf16=True)
PHOTOS = replace(GPU, num_train=5000, num_val=500, short_edge=3000, aspect=1.5, object_size=0.3)


def options(*overrides: str, data: str = "coco") -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["run_dir=x", f"data={data}", "data.root=x", *overrides])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def settled(config: dict[str, Any], facts: Facts | None, stored: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    early = without_autos(config)
    parts = {kind: to_dict(from_dict(without_pretrained(early[kind]), kind=kind)) for kind in PARTS}
    defaults = {**early, **parts, "data": to_dict(from_dict(early["data"], kind="data"))}
    return settle(config, defaults, facts, stored)


def values(facts: Facts, *overrides: str, data: str = "coco") -> dict[str, Any]:
    return settled_values(settled(options(*overrides, data=data), facts)[0])


def check(found: dict[str, Any], **expected: Any) -> None:
    by_name = {path.rpartition(".")[2]: value for path, value in found.items() if "eval_" not in path}
    by_name |= {f"eval_{path.rpartition('.')[2]}": value for path, value in found.items() if "eval_" in path}
    assert {name: by_name[name] for name in expected} == expected


def test_pedestrians_on_a_cpu_get_what_was_measured_to_work() -> None:
    config = settled(options(), PEDESTRIANS)[0]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        known: Any = OmegaConf.to_container(compose("train", ["run_dir=x", "experiment=pennfudan"]), resolve=True)
    same = [path for path in RULES if path.partition(".")[0] in ("head", "neck", "optim", "data")]
    same = [path for path in same if not path.endswith("train_transform.long_edge")]
    assert {path: lookup(config, path) for path in same} == {path: lookup(known, path) for path in same}
    assert lookup(config, "data.train_transform.long_edge") == 608
    assert lookup(config, "backbone.freeze_norm") is True
    assert lookup(config, "trainer.max_steps") == 1000


@pytest.mark.parametrize(("channels", "rate"), [(96, 5e-4), (192, 2.5e-4)])
def test_a_head_without_a_width_of_its_own_has_its_maps(channels: int, rate: float) -> None:
    typed = ["head=mask_rcnn", "neck=fpn", f"neck.channels={channels}"]
    found, _ = settled(fitting(options(*typed), typed), PEDESTRIANS)
    assert lookup(found, "optim.lr") == rate


def test_a_large_gpu_gets_the_head_as_published() -> None:
    found = values(PHOTOS)
    check(found, hidden_dim=256, num_decoder_layers=9, ffn_dim=2048, num_queries=100, channels=256, class_weight=2.0)
    check(found, num_points=12544, eval_short_edge=800, eval_long_edge=1216, batch_size=8, precision="bf16-mixed")
    check(found, max_steps=18750, lr=2.7e-4, backbone_lr_multiplier=0.1, warmup_steps=375)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_train": 4}, {"batch_size": 2, "max_steps": 1000}),
        ({"num_train": 200}, {"max_steps": 1500}),
        ({"num_train": 100_000}, {"max_steps": 3000}),
        ({"max_objects": 40}, {"num_queries": 60}),
        ({"max_objects": 4000}, {"num_queries": 300}),
        ({"short_edge": 200}, {"eval_short_edge": 192, "short_edges": [160, 192, 224]}),
        ({"short_edge": 20}, {"eval_short_edge": 32, "short_edges": [32]}),
        ({"short_edge": 2000, "object_size": 0.05}, {"eval_short_edge": 480}),
        ({"short_edge": 2000, "object_size": 0.001}, {"eval_short_edge": 512}),
        ({"short_edge": 2000, "object_size": None}, {"eval_short_edge": 384}),
        ({"aspect": 9.0}, {"eval_long_edge": 768}),
        ({"pretrained": False}, {"freeze_norm": False, "backbone_lr_multiplier": 1.0, "pixel_ce_weight": 8.0}),
        ({"pretrained": False}, {"mask_feature_pos_embed": True}),
        ({"world_size": 4}, {"lr": 1e-3}),
        ({"num_val": 5000}, {"val_check_interval": 250}),
        ({"num_val": 1}, {"val_check_interval": 84}),
        ({"fine_tunes": True}, {"max_steps": 500, "lr": 9.4e-5, "hidden_dim": 256, "backbone_lr_multiplier": 0.1}),
        ({"cores": 1}, {"num_workers": 0}),
        ({"cores": 64}, {"num_workers": 2}),
        ({"device": "mps"}, {"batch_size": 2, "precision": "32-true", "hidden_dim": 256}),
    ],
    ids=str,
)
def test_value_follows_from_a_fact(change: dict[str, Any], expected: dict[str, Any]) -> None:
    check(values(replace(PEDESTRIANS, **change)), **expected)


@pytest.mark.parametrize(
    ("memory", "batch"), [(4.0, 1), (8.0, 2), (11.0, 2), (15.8, 2), (23.7, 4), (39.5, 4), (79.2, 8), (180.0, 16)]
)
def test_batch_of_a_gpu_goes_by_its_memory(memory: float, batch: int) -> None:
    check(values(replace(PHOTOS, device_memory=memory)), batch_size=batch)


def test_gpu_without_bf16_stays_in_float32() -> None:
    check(values(replace(PHOTOS, has_bf16=False)), precision="32-true", batch_size=8)


@pytest.mark.parametrize("short", [33, 100, 333, 480, 1000, 5000])
@pytest.mark.parametrize("facts", [PEDESTRIANS, GPU], ids=["cpu", "gpu"])
def test_images_are_evaluated_at_whole_strides_and_not_enlarged(facts: Facts, short: int) -> None:
    for size in (None, 0.01, 0.5):
        found = values(replace(facts, short_edge=short, object_size=size))
        assert found["data.eval_transform.short_edge"] <= short
        edges = [*found["data.train_transform.short_edges"], found["data.train_transform.long_edge"]]
        assert all(edge % 32 == 0 for edge in edges)


def test_typed_values_win_and_shape_what_follows() -> None:
    check(values(PEDESTRIANS, "optim.lr=1e-5"), lr=1e-5)
    check(values(PEDESTRIANS, "data.batch_size=16"), batch_size=16, lr=1e-3, freeze_norm=False)
    check(values(PEDESTRIANS, "trainer.accumulate_grad_batches=4"), batch_size=4, lr=1e-3, val_check_interval=336)
    check(values(PEDESTRIANS, "head.hidden_dim=256"), hidden_dim=256, lr=1.9e-4)
    check(values(PEDESTRIANS, "trainer.max_epochs=10"), max_epochs=10, max_steps=-1, val_check_interval=23)
    check(values(PEDESTRIANS, "trainer.max_steps=60"), max_epochs=-1, max_steps=60, val_check_interval=5)
    check(values(PEDESTRIANS, "trainer.check_val_every_n_epoch=2"), val_check_interval=None, check_val_every_n_epoch=2)
    check(values(PEDESTRIANS, "data.eval_transform.short_edge=640"), short_edges=[544, 576, 640, 704, 736])
    check(values(PEDESTRIANS, "data.train_transform.short_edges=[256,320]"), eval_short_edge=320, long_edge=448)
    jitter = ("data.train_transform.mode=large_scale_jitter", "data.train_transform.crop_size=auto")
    check(values(PEDESTRIANS, *jitter), crop_size=512)


def test_named_experiments_keep_their_numbers() -> None:
    for name in ("finetune/instance", "coco_instance/mask2former_swin_tiny", "pennfudan"):
        assert auto_paths(options(f"experiment={name}")) == []


def test_auto_can_be_typed_beside_an_experiment() -> None:
    found = values(PEDESTRIANS, "experiment=finetune/instance", "optim.lr=auto", "data.batch_size=auto")
    check(found, batch_size=4, lr=1.9e-4, max_epochs=50)


@pytest.mark.parametrize("head", ["mask2former", "maskformer"])
@pytest.mark.parametrize("neck", ["fpn", "ms_deform", "pixel_decoder", "simple_pyramid", "none"])
def test_every_neck_and_head_decodes_with_settled_values(neck: str, head: str) -> None:
    for facts in (PEDESTRIANS, GPU):
        config, rows = settled(options(f"neck={neck}", f"head={head}", "backbone=resnet"), facts)
        assert auto_paths(config) == []
        decode_options(config, TrainOptions)
        for kind in PARTS:
            from_dict(without_pretrained(config[kind]), kind=kind)
        assert rows["head.loss.class_weight"].value == (2 if facts is PEDESTRIANS else 1) * (2 if "2" in head else 1)


@pytest.mark.parametrize("data", ["coco", "coco_panoptic", "semantic"])
def test_every_data_set_of_ones_own_has_them(data: str) -> None:
    config = settled(options(data=data), PEDESTRIANS)[0]
    decoded: DataConfig = from_dict(config["data"], kind="data")
    assert decoded.eval_transform.short_edge == 384


def test_an_option_that_a_part_does_not_have_is_left_out() -> None:
    config = options()
    config["backbone"] = {"type": "swin", "freeze_norm": "auto"}
    config["head"]["loss"] = {**config["head"]["loss"], "num_points": "auto"}
    result, rows = settled(config, PEDESTRIANS)
    assert result["backbone"] == {"type": "swin"}
    assert "backbone.freeze_norm" not in rows


@pytest.mark.parametrize(
    "override",
    ["data.eval_batch_size=auto", "optim.weight_decay=auto", "head.num_heads=auto", "seed=auto", "top_k=auto"],
)
def test_auto_where_nothing_follows_is_one_line_that_names_the_option(override: str) -> None:
    name = override.partition("=")[0]
    early, group = without_autos(options(override)), name.partition(".")[0]
    with pytest.raises(ConfigError, match=f"{name}: .*'auto'"):
        from_dict(early[group], kind=group) if group in ("data", "head") else decode_options(early, TrainOptions)


def test_typed_nonsense_beside_auto_is_found_before_the_data_is_read() -> None:
    with pytest.raises(ConfigError, match=r"optim.lr: expected a number"):
        decode_options(without_autos(options("optim.lr=automatic")), TrainOptions)


def test_random_backbone_is_warned_of_unless_it_was_typed() -> None:
    from_scratch = {"model_name": "resnet50", "pretrained": False}
    (warning,) = backbone_warnings(from_scratch, "coco", ["backbone=resnet50"])
    assert "THE BACKBONE STARTS FROM RANDOM WEIGHTS" in warning
    assert backbone_warnings(from_scratch, "coco", ["backbone=resnet50", "backbone.pretrained=false"]) == []
    assert backbone_warnings(from_scratch, "shapes") == []


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (3, Settled(1, "half of 3 steps")),
        (30, Settled(15, "half of 30 steps")),
        (100, Settled(20, "2% of 100 steps, 20 to 500")),
        (5000, Settled(100, "2% of 5,000 steps, 20 to 500")),
    ],
)
def test_warmup_says_why_it_is_as_long_as_it_is(steps: int, expected: Settled) -> None:
    assert settled(options(f"trainer.max_steps={steps}"), PEDESTRIANS)[1]["optim.warmup_steps"] == expected


def test_stored_values_go_before_facts_and_typed_values_before_both() -> None:
    config = options()
    first, _ = settled(config, PEDESTRIANS)
    again, rows = settled(options("optim.warmup_steps=7"), None, settled_values(first))
    assert again == {**first, "optim": {**first["optim"], "warmup_steps": 7}}
    assert rows["optim.lr"] == Settled(5e-4, "as in the interrupted run")


def test_options_are_not_changed_in_place() -> None:
    config = options()
    before = copy.deepcopy(config)
    settled(config, PEDESTRIANS)
    assert config == before


def test_rows_give_value_and_reason() -> None:
    rows = describe_settled(settled(options("backbone.model_name=auto"), PEDESTRIANS)[1])
    text = "\n".join(rows)
    assert "optim.lr 5e-4 (auto: batch 4, head 96 wide)" in text
    assert "head.hidden_dim 96, num_decoder_layers 6, ffn_dim 384 (auto: compact for a CPU)" in text
    assert "backbone.model_name resnet50.tv_in1k (auto: a test)" in text
    assert "max_epochs" not in text


def test_backbones_to_choose_from_are_named_ones_with_published_weights() -> None:
    from vision_stack.backbones.timm_backbone import published_weights

    for name in {name for names in BACKBONES.values() for name in names}:
        assert published_weights(name) is not None, name


def test_quantile_is_one_of_the_values() -> None:
    assert [quantile([3, 1, 2, 4], share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 1, 2, 3, 4]
    assert quantile([7], 0.75) == 7


@pytest.mark.parametrize(
    ("facts", "workers", "reason"),
    [
        ({"cores": 16}, 8, "16 cores"),
        ({"cores": 4}, 3, "4 cores"),
        ({"cores": 1}, 1, "1 core"),
        ({"cores": 16, "world_size": 4}, 3, "4 cores for each device"),
        ({"cores": 16, "shared_memory": 0.3}, 1, "16 cores, 0.3 GB of shared memory"),
        ({"cores": 16, "shared_memory": 0.0625}, 1, "16 cores, 0.1 GB of shared memory"),
        ({"cores": 16, "shared_memory": 64.0}, 8, "16 cores"),
    ],
)
def test_workers_by_cores_and_shared_memory(facts: dict[str, Any], workers: int, reason: str) -> None:
    assert settled(options(), replace(PHOTOS, **facts))[1]["data.num_workers"] == Settled(workers, reason)
