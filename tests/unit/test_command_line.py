import importlib
import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vision_stack.commands import arguments
from vision_stack.commands.plugins import import_plugins
from vision_stack.ops.run_files import mark_finished

PATHS = [
    "/photos/set one",
    "/photos/a=b",
    "/photos/a,b",
    "/photos/[x] {y} (z)",
    "/photos/épreuve à",
    "/photos/it's",
    '/photos/say "x"',
    "C:\\photos\\new",
    "C:\\photos\\",
    "a\\'b",
    "${home}/x",
    "\\${home}",
    "x${y}'",
    "100",
    "#1: a",
    "a$b@c",
]


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "main.yaml").write_text("run_dir: x\nweights: null\nhydra:\n  run:\n    dir: ${run_dir}\n")
    return str(folder)


@pytest.mark.parametrize("path", PATHS)
def test_quote_paths_any_character_reaches_the_config_and_hydra_as_typed(path: str, config_dir: str) -> None:
    with initialize_config_dir(config_dir, version_base="1.3"):
        config = compose(
            "main", arguments.quote_paths([f"run_dir={path}", f"weights={path}"]), return_hydra_config=True
        )
    assert config.run_dir == path
    assert config.hydra.run.dir == path
    assert OmegaConf.to_container(config, resolve=False)["weights"] is not None
    assert config.weights == path


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("data.root=/a b", "data.root='/a b'"),
        ("data.train_annotations=/a,b.json", "data.train_annotations='/a,b.json'"),
        ("backbone.pretrained=/a b", "backbone.pretrained='/a b'"),
        ("backbone.pretrained=true", "backbone.pretrained=true"),
        ("backbone.pretrained=auto", "backbone.pretrained=auto"),
        ("resume=null", "resume=null"),
        ("+data.root=a,b", "+data.root='a,b'"),
        ("run_dir='a,b'", "run_dir='a,b'"),
        ("backbone=resnet18,resnet34", "backbone=resnet18,resnet34"),
        ("data.batch_size=2,4", "data.batch_size=2,4"),
        ("-m", "-m"),
    ],
)
def test_quote_paths_quotes_paths_alone(argument: str, quoted: str) -> None:
    assert arguments.quote_paths([argument]) == [quoted]


def test_quote_paths_leading_tilde_is_the_home_directory() -> None:
    assert arguments.quote_paths(["data.root=~/x y"]) == [f"data.root='{os.path.expanduser('~')}/x y'"]


def test_continue_in_run_dir_resumed_file_of_a_run_goes_on_in_its_folder() -> None:
    argv = arguments.continue_in_run_dir(["resume=outputs/a b/checkpoints/last.ckpt", "seed=1"])
    assert argv == ["resume=outputs/a b/checkpoints/last.ckpt", "seed=1", f"run_dir={Path('outputs/a b').absolute()}"]


def test_continue_in_run_dir_file_named_from_its_own_folder_goes_on_in_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    assert arguments.continue_in_run_dir(["resume=last.ckpt"])[1:] == [f"run_dir={tmp_path / 'run'}"]


def test_continue_in_run_dir_given_run_dir_stays() -> None:
    argv = ["resume=a/checkpoints/last.ckpt", "run_dir=b"]
    assert arguments.continue_in_run_dir(argv) == argv


def test_continue_in_run_dir_auto_takes_the_newest_run(tmp_path: Path) -> None:
    for age, name in enumerate(["old", "new"]):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        last = tmp_path / name / "checkpoints" / "last.ckpt"
        last.touch()
        os.utime(last, (1000 + age, 1000 + age))
    newest = tmp_path / "new"
    argv = arguments.continue_in_run_dir(["resume=auto"], outputs=tmp_path)
    assert argv == [f"resume={newest / 'checkpoints' / 'last.ckpt'}", f"run_dir={newest}"]


def test_continue_in_run_dir_folder_of_a_run_is_its_last_checkpoint(tmp_path: Path) -> None:
    run_dir = finished_run(tmp_path / "run")
    argv = arguments.continue_in_run_dir([f"resume='{run_dir}'"])
    assert argv == [f"resume={run_dir}/checkpoints/last.ckpt", f"run_dir={run_dir}"]


def test_continue_in_run_dir_auto_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*none/checkpoints/last\.ckpt; leave resume out"):
        arguments.continue_in_run_dir(["resume=auto", f"run_dir={tmp_path / 'none'}"])
    with pytest.raises(ValueError, match="give resume=PATH"):
        arguments.continue_in_run_dir(["resume=true"], outputs=tmp_path)


def test_continue_in_run_dir_auto_passes_over_finished_runs_and_says_how_to_extend_them(tmp_path: Path) -> None:
    for age, name in enumerate(["interrupted", "a b"]):
        last = finished_run(tmp_path / name) / "checkpoints" / "last.ckpt"
        os.utime(last, (1000 + age, 1000 + age))
    mark_finished(tmp_path / "a b", epochs=3, steps=1200)
    assert arguments.continue_in_run_dir(["resume=auto"], outputs=tmp_path)[1] == f"run_dir={tmp_path / 'interrupted'}"
    mark_finished(tmp_path / "interrupted", epochs=1, steps=4)
    how = rf"give resume='{tmp_path}/a b/checkpoints/last\.ckpt' with epochs=N or max_steps=N"
    with pytest.raises(ValueError, match=f"^resume=auto: no run .*/a b, has done 3 epochs, 1,200 steps; .*{how}$"):
        arguments.continue_in_run_dir(["resume=auto"], outputs=tmp_path)


@pytest.mark.parametrize(
    ("typed", "longer"),
    [
        ([], False),
        (["trainer.max_epochs=3"], False),
        (["trainer.max_epochs=3", "trainer.max_steps=1200"], False),
        (["trainer.max_epochs=4"], True),
        (["trainer.max_steps=1201"], True),
        (["trainer.max_steps=-1"], True),
        (["trainer.max_time=00:01:00:00"], True),
    ],
)
def test_continue_in_run_dir_finished_run_is_resumed_only_to_train_longer(
    typed: list[str], longer: bool, tmp_path: Path
) -> None:
    mark_finished(finished_run(tmp_path / "run"), epochs=3, steps=1200)
    for resume in (f"resume={tmp_path}/run/checkpoints/last.ckpt", "resume=auto"):
        argv = [resume, f"run_dir={tmp_path}/run", *typed]
        if longer:
            assert arguments.continue_in_run_dir(argv)[-len(typed) :] == typed
        else:
            with pytest.raises(ValueError, match=r"is finished \(3 epochs, 1,200 steps\); to train it longer give"):
                arguments.continue_in_run_dir(argv)


def test_train_arguments_resumed_into_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    old, other = finished_run(tmp_path / "old"), finished_run(tmp_path / "other")
    with pytest.raises(ValueError, match="other already contains a run"):
        arguments.train_arguments([f"resume={old}", f"run_dir={other}"])


def finished_run(run_dir: Path) -> Path:
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "last.ckpt").touch()
    return run_dir


@pytest.mark.parametrize("more", [[], ["resume=null"], ["resume="]])
def test_train_arguments_run_dir_of_a_finished_run_is_refused(more: list[str], tmp_path: Path) -> None:
    run_dir = finished_run(tmp_path / "a, b")
    with pytest.raises(
        ValueError, match=r"run_dir: .*a, b already contains a run.* resume=auto; .* give another run_dir"
    ):
        arguments.train_arguments([f"run_dir={run_dir}", *more])


def test_train_arguments_run_dir_below_home_of_a_finished_run_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    finished_run(tmp_path / "run")
    with pytest.raises(ValueError, match="already contains a run"):
        arguments.train_arguments(["run_dir=~/run"])
    assert (
        arguments.train_arguments(["run_dir=~/run", "resume=auto"])[1] == f"resume={tmp_path}/run/checkpoints/last.ckpt"
    )


def test_train_arguments_what_replaces_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    run_dir = finished_run(tmp_path / "run")
    for argv, one_run in (
        ([f"run_dir={run_dir}", f"resume={run_dir}/checkpoints/last.ckpt"], True),
        ([f"run_dir={run_dir}"], False),  # --cfg=job; or a sweep, which writes into run/0 and run/1
        ([f"run_dir={tmp_path / 'other'}"], True),
    ):
        assert arguments.train_arguments(argv, one_run=one_run) == argv


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data=coco", "++data.type=coco"),
        ("+data=coco", "++data.type=coco"),
        ("data.root=a", "++data.root=a"),
        ("data={root: a}", "data={root: a}"),
        ("data=null", "data=null"),
        ("database=x", "database=x"),
    ],
)
def test_open_group_takes_a_name_as_the_type(typed: str, meant: str) -> None:
    assert arguments.open_group([typed], "data") == [meant]


@pytest.mark.parametrize("names", [3, [3], None])
def test_import_plugins_no_names_says_what_is_expected(names: object) -> None:
    with pytest.raises(ValueError, match=r"plugins: expected a list of modules"):
        import_plugins(names)  # type: ignore[arg-type]


def test_choose_stages_anew_one_selection_clears_the_others_of_the_yaml() -> None:
    given = ["backbone=swin_tiny", "backbone.out_indices=[1,2]"]
    assert arguments.choose_stages_anew(given) == [*given, "backbone.out_features=null", "backbone.out_strides=null"]


@pytest.mark.parametrize(
    "argv",
    [["backbone=swin_tiny"], ["backbone.out_features=[a]", "backbone.out_indices=[1]", "backbone.out_strides=[4]"]],
)
def test_choose_stages_anew_none_or_all_given_stay_as_typed(argv: list[str]) -> None:
    assert arguments.choose_stages_anew(argv) == argv


def test_data_of_ones_own_without_a_word_on_the_model_gets_a_backbone_chosen() -> None:
    chosen = ["backbone=timm", "backbone.model_name=auto"]
    for argv in (["data=coco", "data.root=x"], ["data=semantic", "backbone.pretrained=f", "resume=a.ckpt"]):
        assert arguments.backbone_for_own_data(argv) == [*chosen, *argv]
    for typed in ("backbone=tiny", "weights=m", "experiment=debug"):
        argv = ["data=coco", typed]
        assert arguments.backbone_for_own_data(argv) == argv
    for argv in ([], ["data=shapes"], ["data=shapes,coco"], ["task=panoptic"]):
        assert arguments.backbone_for_own_data(argv) == argv


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_results_do_not_replace_those_of_a_training_run(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = finished_run(tmp_path / "run")
    (run_dir / "config.yaml").write_text("the run's own")
    module = importlib.import_module(f"vision_stack.commands.{verb}")
    assert module.main(["checkpoint=x", "source=x", f"run_dir={run_dir}"][:: 2 if verb == "eval" else 1]) == 2
    assert "contains a training run" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"contains a training run.*give another run_dir"):
        module.run({}, run_dir)
    assert (run_dir / "config.yaml").read_text() == "the run's own"
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "config.yaml"]
