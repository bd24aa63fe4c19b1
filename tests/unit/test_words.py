"""What people type: flags, short names, folders, and words that can mean nothing."""

import json
from pathlib import Path

import pytest

from vision_stack.commands.words import ALIASES, Words, understand

CAN_MEAN_NOTHING = [  # typed -> what the one line must contain: the word, and what to write instead
    (["experiment="], "experiment=: there is nothing after '='; give a value, or leave experiment out"),
    (["run_dir="], "leave run_dir out"),
    (["weights="], "leave weights out"),
    (["source="], "leave source out"),
    (["backbone.pretrained="], "leave backbone.pretrained out"),
    (["run_dir=null"], "leave run_dir out for outputs/"),
    (["trainer=null"], "write trainer=NAME"),
    (["logger=null"], "write logger=none"),
    (["~trainer"], "choose another by trainer=NAME"),
    (["=5"], "write OPTION=VALUE"),
    (["--foo"], "--foo VALUE"),
    (["--epochs", "--lr"], "--epochs VALUE"),
    (["--resume"], "--resume auto"),
    (["--help=x"], "--help takes no value"),
    (["héad=x"], "unknown option; --help lists them"),
    (["head.ñ=1"], "unknown option; --help lists them"),
    (["a b"], "write OPTION=VALUE"),
    ([""], "remove it"),
    (["backbone"], "write backbone=VALUE"),
    (["backbone==tiny"], "write backbone=tiny"),
    (["imgsz=big"], "imgsz=640"),
    (["imgsz=7"], "imgsz=640"),
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
        (["precision=64-true"], ["trainer.precision=64-true"]),
        (["name=my run"], ["run_dir=outputs/my run"]),
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


def test_other_verbs_have_their_own_short_names() -> None:
    assert understand("predict", ["--model", "a.ckpt", "--conf=0.3"]).options == ["checkpoint=a.ckpt", "threshold=0.3"]
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


def test_data_folder_with_coco_json_is_read_as_coco(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps({}))
    assert understand("train", [f"data={tmp_path}"]).options == ["data=coco", f"data.root={tmp_path}"]
    file = tmp_path / "annotations" / "instances_train.json"
    assert understand("train", [f"data={file}"]).options == [
        "data=coco",
        f"data.root={file.parent}",
        f"data.train_annotations={file}",
    ]


def test_data_folder_of_another_format_says_what_is_there_and_what_is_supported(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/b.jpg", "labels/a.txt", "data.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"2 \.jpg, 1 \.txt and 1 \.yaml files\. Supported: data=coco \(COCO json\)"):
        understand("train", [f"data={tmp_path}"])
    with pytest.raises(ValueError, match=r"cannot read \.yaml files as data\. Supported: data=coco"):
        understand("train", [f"data={tmp_path / 'data.yaml'}"])


def test_data_name_of_a_yaml_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coco").mkdir()
    monkeypatch.chdir(tmp_path)
    assert understand("train", ["data=coco"]).options == ["data=coco"]
