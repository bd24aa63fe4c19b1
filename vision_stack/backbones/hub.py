"""Published weights and configs: the local caches, the hub and other addresses."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from vision_stack.config import ConfigError
from vision_stack.weights.files import HUB_FILE_NAMES, INDEX_ENDING, shards_of

CONFIG_FILE = "config.json"
PATIENCE = 2.0  # seconds to wait for a first sign of life from the network


class PublishedWeights(NamedTuple):
    """Where the published weights of a backbone are: a file of a hub repository, or an address."""

    repo_id: str | None
    url: str | None
    filenames: tuple[str, ...] = HUB_FILE_NAMES


def published_file(weights: PublishedWeights | None, option: str) -> tuple[Path, str]:
    """The published weights on this disk, downloaded if need be, and where they come from."""
    if weights is None:
        raise ConfigError(f"none are published; give {option}=<path> or {option}=false")
    tried: list[str] = []
    for fetch in (fetch_from_hub, _from_address):
        found = fetch(weights, tried)
        if found is not None:
            return found
    raise ConfigError(
        f"tried {', '.join(tried)}; connect to the network, or give {option}=<path> "
        f"(a .safetensors or .pth file) or {option}=false"
    )


def can_be_had(weights: PublishedWeights | None) -> bool:
    """Whether published weights are on this disk, or have been downloaded just now."""
    try:
        return published_file(weights, "")[0].is_file()
    except ConfigError:
        return False


def is_cached(weights: PublishedWeights | None) -> bool:
    """Whether published weights are on this disk. The network is not asked."""
    return weights is not None and (_in_hub_cache(weights) is not None or _in_torch_cache(weights) is not None)


def _in_hub_cache(weights: PublishedWeights) -> Path | None:
    if weights.repo_id is None:
        return None
    found = (try_to_load_from_cache(weights.repo_id, name) for name in weights.filenames)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _in_torch_cache(weights: PublishedWeights) -> Path | None:
    if weights.url is None:
        return None
    path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(weights.url).path)
    return path if path.is_file() else None


def fetch_from_hub(weights: PublishedWeights, tried: list[str]) -> tuple[Path, str] | None:
    """One of the files of a hub repository, from the cache or the network, and where it comes from.

    Shards that it names are fetched with it. None if it cannot be had; what was tried is then appended to `tried`.
    """
    found = _fetch_file(weights, tried)
    if found is not None and found[0].name.endswith(INDEX_ENDING):
        for shard in shards_of(found[0]):
            if _fetch_file(weights._replace(filenames=(shard,)), tried) is None:
                return None
    return found


def _fetch_file(weights: PublishedWeights, tried: list[str]) -> tuple[Path, str] | None:
    if weights.repo_id is None:
        return None
    if cached := _in_hub_cache(weights):
        return cached, f"{weights.repo_id} (cached)"
    tried.append(f"the cache {constants.HF_HUB_CACHE}")
    if constants.HF_HUB_OFFLINE:
        tried.append("not the hub, for HF_HUB_OFFLINE is set")
        return None
    if not _answers(constants.ENDPOINT):
        tried.append(f"{constants.ENDPOINT} (no answer)")
        return None
    for name in weights.filenames:
        try:
            return Path(hf_hub_download(weights.repo_id, name, etag_timeout=PATIENCE)), weights.repo_id
        except EntryNotFoundError:
            continue  # the repository has it under another name
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            tried.append(f"{constants.ENDPOINT}/{weights.repo_id} ({type(error).__name__})")
            return None
    tried.append(f"{weights.repo_id} (holds none of {', '.join(weights.filenames)})")
    return None


def _from_address(weights: PublishedWeights, tried: list[str]) -> tuple[Path, str] | None:
    if weights.url is None:
        return None
    if cached := _in_torch_cache(weights):
        return cached, f"{cached.name} (cached)"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / os.path.basename(urlparse(weights.url).path)
    tried.append(f"the cache {folder}")
    if not _answers(weights.url):
        tried.append(f"{weights.url} (no answer)")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), progress=True)
    except OSError as error:
        tried.append(f"{weights.url} ({type(error).__name__})")
        return None
    return path, weights.url


def _answers(address: str) -> bool:
    """Whether a server says anything at all within `PATIENCE`, looking up its name included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)  # a name server may keep a thread waiting for longer than that
    asking.start()
    asking.join(PATIENCE)
    return answered.is_set()
