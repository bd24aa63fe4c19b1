"""Files of weights: tensors by name, and json. Nothing in a file is imported or executed; damage is found and refused.

Where a file has checksums they are compared: torch's archives have one for each tensor, and safetensors files of ours
one in their metadata, for the format itself has none.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import clean_state_dict
from torch import Tensor

from vision_stack.config import ConfigError
from vision_stack.weights.checks import check_tensors, faults_of

WEIGHTS_FILE = "model.safetensors"
INDEX_ENDING = ".index.json"  # of the file that says which shard has which tensor
# Looked for in a repository of the hub, in this order; and in a directory.
HUB_FILE_NAMES = (WEIGHTS_FILE, WEIGHTS_FILE + INDEX_ENDING, "pytorch_model.bin", "pytorch_model.bin" + INDEX_ENDING)
FILE_NAMES = (*HUB_FILE_NAMES, "model.pth")
# Of plain values, which Python reads slowly; 100,000 classes with names of 20 letters are 5 MB in a checkpoint.
MAX_PLAIN_BYTES, MAX_JSON_BYTES = 16_000_000, 32_000_000
CHECKSUM = "crc32"  # in the metadata of a safetensors file
_CODE = ("auto_map", "_target_", "_partial_", "trust_remote_code", "custom_pipelines")  # ask to run code
_CHUNK = 2**20


def find_weights_file(text: str) -> Path:
    """The file, or the one in the directory, that this path means; ConfigError if there is none."""
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        found = next((path / name for name in FILE_NAMES if (path / name).is_file()), None)
        if found is None:
            raise ConfigError(f"{path} holds none of {', '.join(FILE_NAMES)}; name the file itself")
        return found
    if not os.path.isfile(path):
        raise ConfigError(f"no file {path}; give auto, true, false, or the path of a .safetensors, .pth or .bin file")
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pth` or `.bin` file, or of the shards that an `.index.json` names, by name.

    Raises:
        ConfigError: damaged, unreadable, or not dense tensors of numbers; one line.
    """
    if path.name.endswith(INDEX_ENDING):
        return _read_shards(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _state_dict(read_plain(path))
    with faults_of(path):
        check_tensors(state)
    return state


def read_plain(path: Path) -> Any:
    """What `torch.save` wrote: tensors and plain values.

    Raises:
        ConfigError: damaged, unreadable, or more than that; one line.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\3\4"
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give another file") from None
    if is_archive:
        _check_archive(path)
    try:
        # Namespaces hold plain values too; timm's training checkpoints have one.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that torch is about to give up
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        message = "holds more than tensors and plain values, so it is not loaded; give a file of only a state dict"
        raise ConfigError(f"{path}: {message}") from None
    except MemoryError:
        raise
    except Exception:  # torch's unpickler raises whatever other contents lead it to
        raise ConfigError(
            f"{path}: cannot be read as weights: torch.save did not write it, or not to the end; give another file"
        ) from None


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a `.safetensors` file with a checksum, which `read_tensors` compares."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(state, path, metadata={"format": "pt", CHECKSUM: _checksum(state)})


def shards_of(index: Path) -> dict[str, list[str]]:
    """The files that an `.index.json` names, all of them beside it, and the tensors in each.

    Raises:
        ConfigError: no such index, or one that names something else; one line.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConfigError(f"{index}: weight_map: expected the file of each tensor")
    shards: dict[str, list[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).suffix not in (".safetensors", ".bin") or set(file) & set("/\\\0:"):
            raise ConfigError(f"{index}: weight_map: {name[:80]}: expected a file in the same folder, got {file!r:.60}")
        shards.setdefault(file, []).append(name)
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a json file.

    Raises:
        ConfigError: missing, too large, no json, no mapping, or a mapping that names code to run.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the folder of a run, or one that save_pretrained wrote")
    if path.stat().st_size > MAX_JSON_BYTES:
        size = path.stat().st_size
        raise ConfigError(f"{path}: {size:,} bytes are not a config; at most {MAX_JSON_BYTES:,} are read")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a config") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: not valid json ({str(error)[:80]})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got a {type(raw).__name__}")
    for name in _CODE:
        if raw.get(name):
            raise ConfigError(f"{path}: {name!r} names code to run, which is never done; take another model")
    return raw


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
    except (SafetensorError, OSError) as error:
        reason = str(error).split("\n")[0][:80]
        raise ConfigError(f"{path}: cannot be read as weights ({reason}); give a whole safetensors file") from None
    if CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(state):
        raise ConfigError(f"{path}: damaged: its tensors do not have the checksum in its metadata; copy it again")
    return state


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = shards_of(index)
    missing = [file for file in shards if not (index.parent / file).is_file()]
    if missing:
        raise ConfigError(
            f"{index.parent}: {', '.join(missing[:3])} of {len(shards)} shards missing; copy the folder again"
        )
    state: dict[str, Tensor] = {}
    for file, names in shards.items():
        found = read_tensors(index.parent / file)
        absent = [name for name in names if name not in found]
        if absent:
            raise ConfigError(f"{index.parent / file}: {absent[0]:.100} is not in it, though {index.name} says so")
        state |= {name: found[name] for name in names}
    return state


def _state_dict(content: Any) -> Any:
    """The state dict in what a file holds, by the names that timm's and torchvision's training give it."""
    if not isinstance(content, Mapping):
        return content
    names = ("state_dict_ema", "model_ema", "state_dict", "model")
    state = next((content[name] for name in names if content.get(name) is not None), content)
    plain = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    return clean_state_dict(dict(state)) if plain else state


def _check_archive(path: Path) -> None:
    """Compare the checksums of an archive of torch, which `torch.load` does not.

    Raises:
        ConfigError: one differs; or the contents are larger than the file, as nothing that torch writes is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ConfigError(f"{path}: is compressed, which torch.save never does, so it is not loaded")
            plain = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
            if plain > MAX_PLAIN_BYTES:
                raise ConfigError(
                    f"{path}: {plain:,} bytes of plain values are not a checkpoint's; "
                    f"at most {MAX_PLAIN_BYTES:,} are read"
                )
            for entry in entries:
                if entry.CRC:  # 0 where torch was told to write none
                    with archive.open(entry) as file:
                        while file.read(_CHUNK):
                            pass
    except (ConfigError, MemoryError):
        raise
    except Exception:  # zipfile raises whatever damage leads it to
        raise ConfigError(f"{path}: damaged: its contents do not match their checksums; copy it again") from None


def _checksum(state: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(state):
        tensor = state[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
