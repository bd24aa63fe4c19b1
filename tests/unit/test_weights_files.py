"""Files of weights: what is damaged, made up or no weights at all is refused in one line, before it takes memory."""

import json
import resource
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from tiny_model import checkpoint_of, make_model

from vision_stack.backbones import PublishedWeights, TimmBackboneConfig, load_pretrained
from vision_stack.backbones.meta import on_meta
from vision_stack.config import ConfigError, from_dict
from vision_stack.heads import Mask2FormerHeadConfig
from vision_stack.model import VisionModel, VisionModelConfig
from vision_stack.training.resume import read_last_checkpoint
from vision_stack.weights.checkpoint import FORMAT_VERSION
from vision_stack.weights.files import read_tensors, save_tensors

NAME = "model.backbone.net.conv1.0.weight"  # [16, 3, 3, 3]
DENSE = "expected a state dict of dense tensors of numbers"


def refusal(path, read=VisionModel.from_pretrained):
    """The one line with which a file is refused, without its beginning, the file's name."""
    with pytest.raises(ValueError) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line
    assert "weights_only" not in line
    assert len(line) < 500 + len(str(path))
    assert str(path) in line
    return line.partition(str(path))[2].removeprefix(": ")


def with_value(value, name=NAME):
    content = checkpoint_of(make_model())
    content["state_dict"][name] = value
    return content


def with_option(**head):
    content = checkpoint_of(make_model())
    content["model_config"]["head"] |= head
    return content


def all_of_one_number():
    """Every weight of a model of 1.2 GB, made of one number each."""
    content = with_option(hidden_dim=4096)
    with on_meta():
        model = VisionModel(from_dict(content["model_config"], cls=VisionModelConfig))
    state = {f"model.{k}": torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in model.state_dict().items()}
    return content | {"state_dict": state}


def within_itself(depth=12):
    """10^12 strings in lists of ten, of which there are only twelve."""
    value = ["a"] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


def many_classes(count):
    content = checkpoint_of(make_model())
    content["model_config"]["categories"] = [{"id": 0, "name": "a"}] * count
    return content


MADE_UP = {
    "string": (lambda: with_value("x"), f"{NAME} is of type str; {DENSE}"),
    "none": (lambda: with_value(None), f"{NAME} is None; {DENSE}"),
    "sparse": (lambda: with_value(torch.zeros(4, 4).to_sparse()), f"{NAME} is of layout sparse_coo; {DENSE}"),
    "quantised": (
        lambda: with_value(torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)),
        f"{NAME} is of type qint8; {DENSE}",
    ),
    "complex": (lambda: with_value(torch.zeros(3, dtype=torch.complex64)), f"{NAME} is of type complex64; {DENSE}"),
    "meta": (lambda: with_value(torch.zeros(3, device="meta")), f"{NAME} is on the meta device, without values"),
    "integers": (
        lambda: with_value(torch.zeros(16, 3, 3, 3, dtype=torch.int32)),
        "weights do not fit the config: backbone.net.conv1.0.weight has int32 values, not float32",
    ),
    "number as name": (lambda: with_value(torch.zeros(1), 3), f"a tensor is named by a int; {DENSE}"),
    "long name": (lambda: with_value(torch.zeros(1), "model." + "x" * 10**5), "weights do not fit the config: unexp"),
    "huge": (lambda: with_value(torch.zeros(1).expand(100_000, 100_000)), "tensors of 38,147.4 MiB share 0.5 MiB"),
    "nan": (
        lambda: with_value(torch.full((16, 3, 3, 3), torch.nan)),
        "backbone.net.conv1.0.weight has values that are NaN or infinite",
    ),
    "infinite": (
        lambda: with_value(torch.full((16, 3, 3, 3), 70_000.0).half()),
        "backbone.net.conv1.0.weight has values that are NaN or infinite",
    ),
    "wide": (lambda: with_option(hidden_dim=4096), "weights do not fit the config: they are 0.5 MiB, its model would"),
    "wide, of one number": (all_of_one_number, "tensors of 1,1"),
    "deep": (lambda: with_option(num_decoder_layers=10**5), "head.num_decoder_layers: 100000 is outside the allowed"),
    "wrong config": (lambda: with_option(hidden_dim=within_itself()), "head.hidden_dim: expected a whole number, got"),
    "many classes": (lambda: many_classes(110_000), "categories: 110,000 entries; at most 100,000 are possible"),
    "plain values": (
        lambda: checkpoint_of(make_model(), run_config={"a": "a" * 17_000_000}),
        "17,0",
    ),
    "list": (lambda: [1], "has no 'model_config' and 'state_dict'"),
    "no weights": (lambda: checkpoint_of(make_model(), state_dict={}), "holds no tensors by name"),
    "no format": (
        lambda: {k: v for k, v in checkpoint_of(make_model()).items() if k != "format_version"},
        "format_version: expected a whole number from 1, got none",
    ),
    "format text": (
        lambda: checkpoint_of(make_model(), format_version="1"),
        "format_version: expected a whole number from 1, got a str",
    ),
    "format true": (
        lambda: checkpoint_of(make_model(), format_version=True),
        "format_version: expected a whole number from 1, got a bool",
    ),
    "format to come": (
        lambda: checkpoint_of(make_model(), format_version=FORMAT_VERSION + 1),
        f"format_version: {FORMAT_VERSION + 1} is newer than {FORMAT_VERSION}, the newest known; update vision_stack",
    ),
    "run config": (lambda: checkpoint_of(make_model(), run_config=[1]), "run_config: expected options, got a list"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize(("content", "line"), MADE_UP.values(), ids=MADE_UP)
def test_checkpoint_made_up_is_refused_in_one_line_in_seconds_and_little_memory(tmp_path, content, line):
    torch.save(content(), tmp_path / "x.ckpt")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert refusal(tmp_path / "x.ckpt").startswith(line)
    assert time.monotonic() - start < 20  # a second or two where nothing else is going on
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KB


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_checkpoint_of_no_kind_never_advises_to_load_it_without_care(tmp_path):
    files = {name: tmp_path / name for name in ("text", "module", "script", "cut", "compressed")}
    files["text"].write_text("root:x:0:0:root:/root:/bin/sh\n" * 40)
    torch.save(torch.nn.Linear(2, 2), files["module"])
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), files["script"])
    torch.save(checkpoint_of(make_model()), tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    files["cut"].write_bytes(whole[: len(whole) // 2])
    repacked(tmp_path / "whole.ckpt", files["compressed"], zipfile.ZIP_DEFLATED)
    lines = {name: refusal(path) for name, path in files.items()}
    assert lines["text"].startswith("cannot be read as weights: torch.save did not write it")
    assert lines["module"] == (
        "holds more than tensors and plain values, so it is not loaded; give a file of only a state dict"
    )
    assert lines["cut"].startswith("damaged")
    assert lines["compressed"] == lines["script"] == "is compressed, which torch.save never does, so it is not loaded"
    for path in files.values():  # the same files as initial weights of a backbone
        path.rename(path.with_suffix(".pth"))
        refusal(path.with_suffix(".pth"), read_tensors)


def repacked(source: Path, target: Path, method: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def test_checkpoint_with_any_bit_flipped_in_its_tensors_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint_of(make_model()), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size > 64]
    for entry in entries[::40]:
        start = content.index(entry.filename.encode()) + len(entry.filename)
        flipped = bytearray(content)
        flipped[content.index(zipped(path, entry), start) + 1] ^= 1  # the last bits of a number: no NaN, no other size
        path.write_bytes(flipped)
        torch.load(path, weights_only=True)  # does not notice
        assert refusal(path) == "damaged: its contents do not match their checksums; copy it again"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(checkpoint_of(make_model()), path)
    finally:
        torch.serialization.set_crc32_options(True)
    VisionModel.from_pretrained(path)  # which has no checksums


def zipped(path: Path, entry: zipfile.ZipInfo) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(entry)


def test_directory_with_a_bit_flipped_is_refused_and_other_writers_files_are_read(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    state = safetensors.torch.load_file(file)  # does not notice
    assert refusal(file, read_tensors).startswith("damaged: its tensors do not have the checksum in its metadata")
    assert "damaged" in refusal(tmp_path)
    safetensors.torch.save_file(state, file)  # has no checksum
    VisionModel.from_pretrained(tmp_path)
    state["backbone.net.conv1.0.weight"][0, 0, 0, 0] = torch.inf
    save_tensors(state, file)
    assert refusal(tmp_path).startswith("backbone.net.conv1.0.weight has values that are NaN or infinite")


def test_initial_weights_of_a_backbone_that_are_not_finite_are_refused(tmp_path):
    config = TimmBackboneConfig("test_resnet")
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight"][0, 0, 0, 0] = torch.nan
    for ending in ("pth", "safetensors"):
        path = tmp_path / f"w.{ending}"
        torch.save(state, path) if ending == "pth" else save_tensors(state, path)
        line = refusal(path, lambda path: load_pretrained(config.build(), config, str(path)))
        assert line.startswith("net.conv1.0.weight has values that are NaN or infinite")
    state["conv1.0.weight"] = torch.zeros(state["conv1.0.weight"].shape, dtype=torch.int64)
    torch.save(state, tmp_path / "w.pth")
    line = refusal(tmp_path / "w.pth", lambda path: load_pretrained(config.build(), config, str(path)))
    assert "1 of another kind (e.g. net.conv1.0.weight: int64 values, not float32)" in line


LAST = {
    "position": dict(epoch=0, batches_done=1, total_batches=1, step=1, validated=True),
    "best_score": None,
    "optimizer": {"param_groups": [{"params": [0]}], "state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2)}}},
    "callbacks": {},
    "precision": {},
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, ""),
        ({"position": [1]}, "position: expected a mapping"),
        ({"position": {"epoch": 1}}, "position: expected epoch, batches_done, total_batches, step, validated"),
        ({"best_score": "high"}, "best_score: expected a number"),
        ({"optimizer": {"param_groups": 3, "state": {}}}, "optimizer.param_groups: expected"),
        ({"optimizer": {"param_groups": [], "state": {0: 1}}}, "optimizer.state: expected"),
        (
            {"optimizer": {"param_groups": [], "state": {0: {"exp_avg": torch.tensor([1, torch.nan])}}}},
            "optimizer.0.exp_avg has values that are NaN or infinite",
        ),
        (
            {"current_model_state": {"model.x": torch.tensor([torch.inf])}},
            "model.x has values that are NaN or infinite",
        ),
        ({"current_model_state": {"model.x": "y"}}, f"model.x is of type str; {DENSE}"),
    ],
)
def test_last_checkpoint_with_other_than_it_should_hold_is_refused(tmp_path, change, line):
    torch.save(checkpoint_of(make_model(), **(LAST | change)), tmp_path / "last.ckpt")
    if line:
        assert refusal(tmp_path / "last.ckpt", read_last_checkpoint).startswith(line)
    else:
        read_last_checkpoint(tmp_path / "last.ckpt")


def sharded(folder: Path, state, ending=".safetensors", base="model"):
    """Two shards and their index, as transformers writes them."""
    names = sorted(state)
    parts, places = (names[::2], names[1::2]), {}
    for number, part in enumerate(parts, start=1):
        file = f"{base}-0000{number}-of-00002{ending}"
        content = {name: state[name].contiguous() for name in part}
        safetensors.torch.save_file(content, folder / file) if ending == ".safetensors" else torch.save(
            content, folder / file
        )
        places |= dict.fromkeys(part, file)
    index = folder / f"{base}{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_sharded_directory_is_the_model_and_what_is_missing_is_named(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = sharded(tmp_path, model.state_dict())
    loaded = VisionModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())

    places = json.loads(index.read_text())
    for file in ("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "x.py", 3, None):
        wrong = {**places["weight_map"], "head.x": file}
        index.write_text(json.dumps({"weight_map": wrong}))
        assert "expected a file in the same folder, got" in refusal(index, read_tensors)
    index.write_text(json.dumps({"weight_map": {**places["weight_map"], "head.x": "model-00001-of-00002.safetensors"}}))
    assert "head.x is not in it, though model.safetensors.index.json says so" in refusal(tmp_path)
    index.write_text(json.dumps({"weight_map": []}))
    assert "weight_map: expected the file of each tensor" in refusal(tmp_path)
    index.write_text(json.dumps(places))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    line = refusal(tmp_path)
    assert line == "model-00002-of-00002.safetensors of 2 shards missing; copy the folder again"


@pytest.mark.parametrize(("ending", "base"), [(".safetensors", "model"), (".bin", "pytorch_model")])
def test_sharded_initial_weights_are_found_in_a_folder_and_in_the_cache_of_the_hub(tmp_path, monkeypatch, ending, base):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--a--b"
    folder = repository / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    config, state = TimmBackboneConfig("test_resnet"), timm.create_model("test_resnet").state_dict()
    sharded(folder, state, ending, base)
    for source in (str(folder), PublishedWeights("a/b", None)):
        backbone = config.build()
        load_pretrained(backbone, config, source)
        assert torch.equal(backbone.state_dict()["net.conv1.0.weight"], state["conv1.0.weight"])
    (folder / f"{base}-00001-of-00002{ending}").unlink()
    with pytest.raises(ConfigError, match="tried the cache"):
        load_pretrained(config.build(), config, PublishedWeights("a/b", None))


def test_model_with_a_part_that_computes_while_it_is_built_is_loaded(tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path)
    build = Mask2FormerHeadConfig.build

    def computing(*args):
        assert float(torch.ones(1).item()) == 1  # not to be had on the meta device
        return build(*args)

    monkeypatch.setattr(Mask2FormerHeadConfig, "build", computing)
    assert VisionModel.from_pretrained(tmp_path).device.type == "cpu"


def test_config_names_of_all_classes_together_fit_in_a_checkpoint():
    content = checkpoint_of(make_model())["model_config"]
    content["categories"] = [{"id": i, "name": "a" * 1_000_000} for i in range(3)]
    with pytest.raises(ConfigError, match="categories: names of 3,000,000 letters; at most 2,000,000 fit"):
        from_dict(content, cls=VisionModelConfig)
