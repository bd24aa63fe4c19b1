"""Nothing outside of the data root is opened, and nothing in a file is run or unfolds, whatever the format."""

import builtins
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import format_files as ff
import pytest

from vision_stack.data.checks.issues import DataError
from vision_stack.data.configs import AutoDataConfig
from vision_stack.data.readers.auto import recognise
from vision_stack.data.readers.xml_file import parse_xml

ENTITY = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><bndbox/><filename>&x;</filename></annotation>'
)
LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation><bndbox/>&b;</annotation>'


def read(root: Path, **options: Any) -> list[Any]:
    config = AutoDataConfig(root=str(root), **options)
    return [config.read(split, "instance") for split in ("train", "val")]


def assert_inside_or_one_line(root: Path) -> None:
    """What a path that leads out stands for is the root's own file of that name, or nothing."""
    try:
        found: list[Any] | str = read(root)
    except DataError as error:
        found = str(error)
    if isinstance(found, str):
        assert "\n" not in found
    else:
        assert all(Path(r.path).resolve().is_relative_to(root) for split in found for r in split.records)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder beside the data root that is a data set, too: whoever follows a path finds good images."""
    folder = tmp_path / "secret"
    ff.yolo(folder)
    for name in ("a", "x"):
        ff.photo(folder / f"{name}.jpg")
    return folder


@pytest.fixture
def root(tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Opening anything in `secret` fails the test."""
    opened = builtins.open

    def watched(file: Any, *rest: Any, **options: Any) -> Any:
        assert not str(file).startswith(str(secret)), f"{file} was opened"
        return opened(file, *rest, **options)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(io, "open", watched)  # pathlib's
    return tmp_path / "root"


@pytest.mark.parametrize(
    "path", ["../secret/images/train", "{secret}/images/train", "images/../../secret/images/train"]
)
@pytest.mark.parametrize("key", ["train", "path"])
def test_yaml_paths_do_not_lead_out_of_the_root(path: str, key: str, root: Path, secret: Path) -> None:
    ff.yolo(root)
    text = (root / "data.yaml").read_text()
    value = path.format(secret=secret)
    if key == "train":
        text = text.replace("train: images/train", f"train: {value}")
    else:
        text = text.replace("path: .", f"path: {value}")
    (root / "data.yaml").write_text(text)
    assert_inside_or_one_line(root)


def test_yaml_path_to_nothing_inside_of_the_root_is_one_line(root: Path, secret: Path) -> None:
    ff.yolo(root)
    text = (root / "data.yaml").read_text().replace("train: images/train", "train: ../secret")
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml: train: no images at '\.\./secret' .*nothing outside of the data"):
        read(root)


def test_text_file_of_a_yaml_that_lists_images_elsewhere_is_one_line(root: Path, secret: Path) -> None:
    ff.yolo(root)
    text = (root / "data.yaml").read_text().replace("train: images/train", "train: train.txt")
    (root / "data.yaml").write_text(text)
    (root / "train.txt").write_text(f"./images/train/b.jpg\n{secret}/x.jpg\n")
    with pytest.raises(DataError, match=r"train\.txt: line 2: there is no image '.* in the data set; add it"):
        read(root)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {file}']", "!!python/name:os.system"])
def test_yaml_runs_nothing(tag: str, root: Path, tmp_path: Path) -> None:
    ff.yolo(root)
    file = tmp_path / "touched"
    (root / "data.yaml").write_text(f"train: images/train\nnames: [cat, dog]\nx: {tag.format(file=file)}\n")
    with pytest.raises(DataError, match=r"data\.yaml: file: cannot be read as yaml"):
        read(root)
    assert not file.exists()


def test_yaml_does_not_unfold(root: Path) -> None:
    ff.yolo(root)
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
    (root / "data.yaml").write_text(f"train: images/train\nnames: [cat, dog]\nl0: &l0 [x]\n{levels}")
    with pytest.raises(DataError, match=r"cannot be read as yaml \(aliases are not supported"):
        read(root)


@pytest.mark.parametrize("xml", [ENTITY, LAUGHS, ENTITY.encode("utf-16"), ENTITY.encode("utf-16-le")])
def test_xml_has_no_entities(xml: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    with pytest.raises(
        DataError, match=r"a\.xml: file: has a document type or entities, which are not read; remove them"
    ):
        parse_xml(str(file))


def test_voc_with_entities_is_one_line(root: Path) -> None:
    ff.voc(root)
    (root / "VOC2012/Annotations/a.xml").write_text(ENTITY)
    with pytest.raises(DataError, match=r"Annotations/a\.xml: file: has a document type or entities"):
        read(root)


def _voc(root: Path, name: str) -> None:
    file = root / "VOC2012/Annotations/a.xml"
    file.write_text(file.read_text().replace("<filename>a.jpg<", f"<filename>{name}<"))


def _labelme(root: Path, name: str) -> None:
    content = json.loads((root / "train/a.json").read_text())
    ff.text(root / "train/a.json", {**content, "imagePath": name})


def _imagefolder(root: Path, name: str) -> None:
    file = root / "train/metadata.jsonl"
    file.write_text(file.read_text().replace('"a.png"', json.dumps(name)))


def _run_lengths(root: Path, name: str) -> None:
    file = root / "train.csv"
    file.write_text(file.read_text().replace("a.jpg", name))


def _coco(root: Path, name: str) -> None:
    file = root / "labels.json"
    file.write_text(file.read_text().replace('"a.jpg"', json.dumps(name)))


@pytest.mark.parametrize(
    ("write", "point"),
    [
        (ff.voc, _voc),
        (ff.labelme, _labelme),
        (ff.imagefolder, _imagefolder),
        (ff.run_lengths, _run_lengths),
        (ff.fiftyone, _coco),
    ],
)
@pytest.mark.parametrize("name", ["../../../secret/x.jpg", "{secret}/x.jpg", "..\\..\\..\\secret\\x.jpg"])
def test_names_of_images_do_not_lead_out_of_the_root(
    write: Callable[[Path], None], point: Callable[[Path, str], None], name: str, root: Path, secret: Path
) -> None:
    write(root)
    point(root, name.format(secret=secret))
    assert_inside_or_one_line(root)


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_links_that_lead_out_are_not_followed(folder: str, root: Path, secret: Path) -> None:
    ff.yolo(root)
    (root / folder).rename(root.parent / "moved")  # a label file elsewhere in the root would be found
    (root / folder).symlink_to(secret / folder)
    with pytest.raises(DataError):
        read(root, format="yolo")


def test_links_within_the_root_are_followed_and_rings_are_left(root: Path) -> None:
    ff.yolo(root)
    (root / "images").rename(root / "photos")
    (root / "images").symlink_to(root / "photos")
    (root / "photos" / "again").symlink_to(root)
    assert recognise(root, "instance").format == "yolo"
    assert [record.num_objects for record in read(root)[0].records] == [2, 1, 0]
