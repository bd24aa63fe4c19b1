"""What people type: flags, short names, folders, and words that can mean nothing."""

import json
from pathlib import Path

import pytest

from vision_stack.commands import VERBS
from vision_stack.commands.aliases import ALIASES, VERBS_ELSEWHERE
from vision_stack.commands.unknown import unknown_option
from vision_stack.commands.words import Words, understand

CAN_MEAN_NOTHING = [  # typed -> what the one line must contain: the word, and what to write instead
    (["experiment="], "experiment=: there is nothing after '='; give a value, or leave experiment out"),
    (["run_dir="], "leave run_dir out"),
    (["weights="], "leave weights out"),
    (["source="], "leave source out"),
    (["backbone.pretrained="], "leave backbone.pretrained out"),
    (["run_dir=null"], "leave run_dir out for outputs/"),
    (["trainer=null"], "write trainer=NAME"),
    (["logger=null"], "write logger=none"),
    (["augment=null"], "leave augment out"),
    (["~trainer"], "choose another by trainer=NAME"),
    (["=5"], "write OPTION=VALUE"),
    (["--foo"], "foo: unknown option"),
    (["--epochs", "--lr"], "--epochs VALUE"),
    (["--resume"], "--resume auto"),
    (["--help=x"], "--help takes no value"),
    (["héad=x"], "unknown option; `vision-stack train --help` lists them"),
    (["head.ñ=1"], "unknown option; `vision-stack train --help` lists them"),
    (["a b"], "write OPTION=VALUE"),
    ([""], "remove it"),
    (["backbone"], "write backbone=VALUE"),
    (["backbone==tiny"], "write backbone=tiny"),
    (["imgsz=big"], "imgsz=640"),
    (["imgsz=7"], "32 to 10,000"),
    (["-p"], "-p VALUE"),
    (["--cfg"], "job, hydra, all"),
    (["--cfg", "x.yaml"], "--config-dir DIR experiment=NAME"),
    (["--cfg=x.yaml"], "--config-dir DIR experiment=NAME"),
    (["x.yaml"], "--config-dir DIR experiment=NAME"),
    (["--save-txt"], "results are always written"),
    (["--pretrained", "data=coco"], "--pretrained true"),
    (["SOLVER.MAX_ITER", "10"], "write steps=VALUE"),
    (["head"], "write head=VALUE; --help head lists them"),
    (["x.ckpt"], "did you mean resume=x.ckpt, which continues its run, or weights=x.ckpt"),
    (["x.json"], "'x.json' is not an option; did you mean data=x.json?"),
    (["precision=fp8"], "precision=fp8: unknown; give 32-true, bf16-mixed, 16-mixed, auto, or fp32, bf16, fp16"),
    (["trainer.precision=fp8"], "precision=fp8: unknown; give 32-true, bf16-mixed, 16-mixed, auto, or fp32"),
    (["task=segmnt"], "task=segmnt: unknown task; did you mean task=instance?"),
    (["task=semantics"], "did you mean task=semantic?"),
    (["stepps=2"], "stepps: unknown option; did you mean steps?"),
    (["epoch_s=2"], "did you mean epochs?"),
    (["save_period=2"], "give callbacks.checkpoints.every_n_steps"),
    (["fraction=0.1"], "give data.max_train_images=N"),
    (["epochs=3", "max_epochs=5"], "epochs=3 and max_epochs=5 both set trainer.max_epochs"),
    (["lr=1", "optim.lr=2"], "lr=1 and optim.lr=2 both set optim.lr"),
    (["name=a", "run_dir=b"], "both set run_dir"),
    (["device=cpu", "trainer.accelerator=gpu"], "both set trainer.accelerator"),
    (["data=odd"], "there is no such folder or file, and no data of that name; choose one of: auto, coco"),
    (["data=odd/deep"], "there is no such folder or file"),
    (["data=cocoo"], "did you mean 'coco'?"),
    (["device=tpu7"], "give cpu, cuda"),
]


@pytest.mark.parametrize(("argv", "expected"), CAN_MEAN_NOTHING, ids=lambda value: " ".join(value)[:30])
def test_word_that_can_mean_nothing_is_one_line_with_the_remedy(argv: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as error:
        understand("train", argv)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["epochs=10"], ["trainer.max_epochs=10"]),
        (["--epochs", "10"], ["trainer.max_epochs=10"]),
        (["--num-epochs=10"], ["trainer.max_epochs=10"]),
        (["lr=1e-4"], ["optim.lr=1e-4"]),
        (["--lr0", "1e-4"], ["optim.lr=1e-4"]),
        (["batch=-1"], ["data.batch_size=-1"]),
        (["--batch", "-1"], ["data.batch_size=-1"]),
        (["batch_size=8"], ["data.batch_size=8"]),
        (["workers=0"], ["data.num_workers=0"]),
        (["imgsz=64"], ["data.image_size=64"]),
        (["device=cpu"], ["trainer.accelerator=cpu"]),
        (["device=cuda:1"], ["trainer.accelerator=gpu", "trainer.devices=[1]"]),
        (["device=0,1"], ["trainer.accelerator=gpu", "trainer.devices=[0,1]"]),
        (["precision=bf16"], ["trainer.precision=bf16-mixed"]),
        (["task=segment"], ["task=instance"]),
        (["task=instance_segmentation"], ["task=instance"]),
        (["--task", "detect"], ["task=detection"]),
        (["trainer.precision=bf16"], ["trainer.precision=bf16-mixed"]),
        (["precision=16-mixed,bf16-mixed"], ["trainer.precision=16-mixed,bf16-mixed"]),
        (["per_device_train_batch_size=3"], ["data.batch_size=3"]),
        (["precision=64-true"], ["trainer.precision=64-true"]),
        (["name=my run"], ["run_dir=outputs/my run"]),
        (["save_dir=x y"], ["run_dir=x y"]),
        (["head.mask_positions=true"], ["head.mask_feature_pos_embed=true"]),
        (["++head.loss.semantic_weight=4"], ["++head.loss.pixel_ce_weight=4"]),
        (["SOLVER.MAX_ITER=10"], ["trainer.max_steps=10"]),
        (["max_iter=10"], ["trainer.max_steps=10"]),
        (["img=64"], ["data.image_size=64"]),
        (["--no-pretrained", "data=coco"], ["backbone.pretrained=false", "data=coco"]),
        (["--no-measure"], ["measure=false"]),
        (["lr=1", "lr=2"], ["optim.lr=1", "optim.lr=2"]),  # the last counts, as in a script's "$@"
        (["lr=1", "optim.lr=1"], ["optim.lr=1", "optim.lr=1"]),
        (["--data", "coco", "--root", "a b"], ["data=coco", "data.root=a b"]),
        (["--backbone=swin_tiny"], ["backbone=swin_tiny"]),
        (["optim.lr=1", "+x.y=2", "~callbacks.progress"], ["optim.lr=1", "+x.y=2", "~callbacks.progress"]),
    ],
)
def test_short_names_and_flags_are_options(typed: list[str], meant: list[str]) -> None:
    assert understand("train", typed) == Words([], meant)


def test_image_size_of_real_data_is_its_longest_side() -> None:
    assert understand("train", ["data=coco", "imgsz=640"]).options == [
        "data=coco",
        "data.train_transform.short_edges=[400,480,560,640]",
        "data.train_transform.long_edge=640",
        "data.eval_transform.short_edge=640",
        "data.eval_transform.long_edge=640",
    ]


def test_options_of_parts_that_come_with_weights_are_added_to_those_of_the_yaml_files() -> None:
    typed = ["weights=a.ckpt", "head.num_blocks=3", "head.typo=1", "optim.lr=1"]
    assert understand("train", typed).options == ["weights=a.ckpt", "++head.num_blocks=3", "head.typo=1", "optim.lr=1"]
    assert understand("train", [*typed[:2], "head=eomt"]).options == [*typed[:2], "head=eomt"]
    assert understand("train", typed[1:2]).options == typed[1:2]


def test_other_verbs_have_their_own_short_names() -> None:
    assert understand("predict", ["--model", "a.ckpt", "--conf=0.3"]).options == ["checkpoint=a.ckpt", "threshold=0.3"]
    assert understand("predict", ["score_thr=0.3"]).options == ["threshold=0.3"]
    assert understand("eval", ["weights=a.ckpt", "batch=2"]).options == ["checkpoint=a.ckpt", "data.eval_batch_size=2"]


def test_flags_of_hydra_stay_its_own_and_tell_a_run_from_a_sweep() -> None:
    words = understand("train", ["-m", "--cfg", "job", "seed=1,2", "--config-dir=x"])
    assert words == Words(["-m", "--cfg", "job", "--config-dir=x"], ["seed=1,2"])
    assert not words.one_run
    assert not understand("train", ["-m", "seed=1,2"]).one_run
    assert understand("train", ["-cd", "x", "seed=1"]).one_run


def test_every_short_name_says_what_it_stands_for() -> None:
    for aliases in ALIASES.values():
        assert all(alias.text and alias.place for alias in aliases.values())


def test_data_folder_is_recognised_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps({}))
    assert understand("train", [f"data={tmp_path}"]).options == ["data=auto", f"data.root={tmp_path}"]
    file = tmp_path / "annotations" / "instances_train.json"
    assert understand("train", [f"data={file}"]).options == [
        "data=auto",
        f"data.root={file.parent}",
        f"data.train_annotations={file}",
    ]


def test_data_file_of_a_known_layout_is_told_of_the_folder(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps({}))
    file = tmp_path / "train" / "_annotations.coco.json"
    with pytest.raises(ValueError, match=rf"did you mean data={tmp_path}\?"):
        understand("train", [f"data={file}"])
    assert understand("train", [f"data={file}", "data.val_annotations=x.json"]).options[0] == "data=auto"


def test_yaml_of_a_yolo_data_set_stands_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").touch()
    expected = ["data=auto", f"data.root={tmp_path}", "data.format=yolo"]
    assert understand("train", [f"data={tmp_path}/data.yaml"]).options == expected
    (tmp_path / "notes.docx").touch()
    with pytest.raises(ValueError, match=r"cannot read \.docx files as data; give the folder"):
        understand("train", [f"data={tmp_path}/notes.docx"])


def test_data_name_of_a_yaml_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coco").mkdir()
    monkeypatch.chdir(tmp_path)
    assert understand("train", ["data=coco"]).options == ["data=coco"]


INSTEAD = [  # unknown option -> what the line must name
    ("train", "optimizer", "optim.weight_decay"),
    ("train", "patience", "callbacks=[early_stopping] callbacks.early_stopping.patience=VALUE"),
    ("train", "callbacks.early_stopping.patience", "comes with callbacks=[early_stopping]; add that"),
    ("train", "logger.wandb.project", "comes with logger=[csv,wandb]; add that"),
    ("train", "logger.tensorboard.name", "comes with logger=[csv,tensorboard]; add that"),
    ("train", "project", "logger=[csv,wandb] logger.wandb.project=NAME"),
    ("train", "early_stopping", "give callbacks=[early_stopping]"),
    ("train", "wandb", "give logger=[csv,wandb]"),
    ("train", "data.num_classes", "classes come from the data"),
    ("train", "num_classes", "classes come from the data"),
    ("train", "data.classes", "but of data=auto, semantic"),
    ("train", "model", "backbone=NAME and head=NAME"),
    ("train", "amp", "precision=bf16"),
    ("train", "half", "precision=fp16"),
    ("train", "augmentation", "augment=none, light, standard, lsj or strong"),
    ("train", "degrees", "augment.rotation"),
    ("train", "conf", "predict has threshold=0.5"),
    ("train", "nbs", "trainer.accumulate_grad_batches"),
    ("train", "config_file", "--config-dir DIR experiment=NAME"),
    ("train", "split", "data.val_fraction=0.2"),
    ("train", "gpus", "trainer=ddp trainer.devices=2"),
    ("train", "trainer.epochs", "epochs=VALUE (trainer.max_epochs)"),
    ("train", "trainer.min_epochs", "write +trainer.min_epochs=VALUE"),
    ("train", "trainer.gradient_clip_val", "optim.clip_norm"),
    ("train", "dropout", "head.dropout or neck.dropout"),
    ("train", "weight_decay", "did you mean optim.weight_decay?"),
    ("train", "freeze_at", "finetune.freeze_stages=N"),
    ("eval", "conf", "every score counts"),
    ("eval", "split", "give data.split=test"),
    ("eval", "epochs", "one of train's"),
    ("predict", "imgsz", "images are resized as the model was trained"),
    ("predict", "half", "float32"),
    ("predict", "data", "source=FILE"),
]


@pytest.mark.parametrize(("verb", "key", "expected"), INSTEAD)
def test_unknown_option_is_one_line_that_names_what_to_write(verb: str, key: str, expected: str) -> None:
    line = unknown_option(verb, key)
    assert line.startswith(f"{key}: ")
    assert expected in line
    assert "\n" not in line
    if "." not in key:  # is refused before Hydra reads anything
        with pytest.raises(ValueError, match=f"^{key}: unknown option; "):
            understand(verb, [f"{key}=x"])


@pytest.mark.parametrize(
    ("verb", "word", "expected"),
    [
        ("eval", "runs/best.ckpt", "did you mean checkpoint=runs/best.ckpt"),
        ("predict", "best.ckpt", "did you mean checkpoint=best.ckpt"),
        ("predict", "a.jpg", "did you mean source=a.jpg"),
        ("predict", "photos/*.png", "did you mean source=photos/"),
    ],
)
def test_bare_path_says_which_option_it_is(verb: str, word: str, expected: str) -> None:
    with pytest.raises(ValueError) as error:
        understand(verb, [word])
    assert expected in str(error.value)


def test_bare_folder_says_which_option_it_is(tmp_path: Path) -> None:
    for verb, expected in (("train", "data="), ("eval", "data="), ("predict", "source=")):
        with pytest.raises(ValueError, match=rf"did you mean {expected}{tmp_path}.*\?$"):
            understand(verb, [str(tmp_path)])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for verb, expected in (("train", "resume="), ("eval", "checkpoint="), ("predict", "checkpoint=")):
        with pytest.raises(ValueError, match=rf"did you mean {expected}{tmp_path}.*\?$"):
            understand(verb, [str(tmp_path)])


def test_data_file_leaves_the_root_that_is_typed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert understand("train", [f"data={tmp_path}/a.json", "root=/images"]).options == [
        "data=auto",
        f"data.train_annotations={tmp_path}/a.json",
        "data.root=/images",
    ]


def test_data_of_the_users_own_yaml_files_is_left_to_hydra() -> None:
    assert understand("train", ["--config-dir", "conf", "data=mine"]).options == ["data=mine"]
    assert understand("train", ["data=coco,shapes"]).options == ["data=coco,shapes"]


def test_help_takes_groups_and_refuses_other_words() -> None:
    assert understand("train", ["--help", "head"]).topics == ("head",)
    for topic in ("experiment", "lr", "optim.lr", "num_queries", "learning_rate"):
        assert understand("train", ["--help", topic]).topics == (topic,)
    assert understand("train", ["--help", "head=maskformer"]).options == ["head=maskformer"]
    with pytest.raises(ValueError, match="is not an option"):
        understand("train", ["--help", "nope"])


def test_commands_of_other_tools_are_ones_of_ours() -> None:
    assert set(VERBS_ELSEWHERE.values()) <= set(VERBS)
