"""Which query answers for which object: Hungarian matching of all layers and images at once (MaskFormer, Sec. 3.2).

Mask logits are a product of embeddings and features, so the costs of all queries of all layers with the objects of an
image are one computation. The costs of the whole batch go to the host in one copy, the assignments come back in one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vision_stack.losses.functional import dense_mask_costs, point_mask_costs
from vision_stack.ops.point_sampling import resize_masks, sample_maps, sample_masks
from vision_stack.ops.tiles import slices, tile_elements
from vision_stack.outputs import LayerGroup

UNUSABLE_COST = 1e8  # stands for NaN and infinity: such a query is taken only if there is no other


class Objects(NamedTuple):
    """The targets of a batch as plain tensors, one image after the other."""

    labels: Tensor  # [N1 + ... + NB] int64
    masks: Tensor  # [N1 + ... + NB, H, W] bool
    counts: tuple[int, ...]  # N of every image


class Matches(NamedTuple):
    """M pairs of a query and its object, of all layers and images: object after object, each layer by layer."""

    layers: Tensor  # [M] int64, on the outputs' device as all of these
    images: Tensor  # [M]
    queries: Tensor  # [M]
    objects: Tensor  # [M], position in `Objects`
    counts: tuple[int, ...]  # how many of the M belong to each image
    on_host: Tensor  # [4, M], those four columns
    dropped: int = 0  # objects that no query is left for, since an image has more objects than the head has queries

    @classmethod
    def found(cls, on_host: Tensor, counts: tuple[int, ...], device: torch.device, dropped: int = 0) -> Matches:
        """Takes the columns [4, M] to the device, without waiting for it."""
        layers, images, queries, objects = on_host.to(device, non_blocking=True).unbind(0)
        return cls(layers, images, queries, objects, counts, on_host, dropped)


class Weights(NamedTuple):
    """What a class, mask and dice term counts in the matching cost."""

    class_: float
    mask: float
    dice: float


@torch.no_grad()
def match(
    groups: Sequence[LayerGroup],
    objects: Objects,
    weights: Weights,
    *,
    mask_cost: Literal["focal", "point"] = "focal",
    num_points: int = 12544,
) -> list[Matches]:
    """Assign every object of every image one query per layer, at the least total cost; float32 throughout. A Matches
    for each group of layers.

    With more objects than queries the cheapest Q objects are kept. NaN or infinite costs count as very large ones, and
    are warned about.

    Args:
        groups: layers that share their mask features.
        mask_cost: "focal": focal and dice cost at all pixels, with targets downsampled to h x w by nearest neighbour
            (MaskFormer). "point": cross-entropy and dice cost at points (Mask2Former, Sec. 3.3). Differs from the
            paper: one set of points serves a group's layers and all images, and is the map's own pixels where these are
            fewer.
        num_points: how many points, with "point".
    """
    costs: list[Tensor] = []
    at_pixels: dict[torch.Size, Tensor] = {}  # masks at the pixels of maps, by the maps' size
    for group in groups:
        size = group.mask_features.shape[-2:]
        if mask_cost == "point" and size.numel() > num_points:
            points = torch.rand(num_points, 2, device=group.mask_features.device, dtype=torch.float32)
            inside = sample_masks(objects.masks, points)
        else:
            points = None
            if size not in at_pixels:
                at_pixels[size] = _at_pixels(objects.masks, size, mask_cost)
            inside = at_pixels[size]
        costs += _costs(group, objects, weights, mask_cost, points, inside)
    stacks = [(len(group.logits), group.logits.shape[2]) for group in groups]
    return assign(costs, stacks, objects.counts, groups[0].logits.device)


def _costs(
    group: LayerGroup,
    objects: Objects,
    weights: Weights,
    mask_cost: Literal["focal", "point"],
    points: Tensor | None,
    inside: Tensor,
) -> list[Tensor]:
    """Costs of each image with objects, flat [layers, queries, objects].

    Args:
        points: where masks are compared, [P, 2]; None: at the pixels of the maps.
        inside: the objects' masks there, [N, P].
    """
    layers, batch, num_queries = group.logits.shape[:3]
    embed = group.mask_embed.transpose(0, 1).flatten(1, 2).float()  # [B, R, C], R = L * Q
    prob = group.logits.transpose(0, 1).flatten(1, 2).float().softmax(-1)
    maps = group.mask_features.float()
    images_at_once = max(1, tile_elements(maps.device, 2**20) // (layers * num_queries * inside.shape[1]))
    costs: list[Tensor] = []
    for images in slices(batch, images_at_once):
        counts = objects.counts[images]
        if not any(counts):
            continue
        theirs = padded_rows(objects.counts, images, maps.device)
        features = maps[images].flatten(2)
        if points is not None:
            features = sample_maps(maps[images], points.expand(len(counts), -1, -1))
        pair_costs = dense_mask_costs if mask_cost == "focal" else point_mask_costs
        mask, dice = pair_costs(embed[images], features, inside[theirs])
        labels = objects.labels[theirs][:, None].expand(-1, layers * num_queries, -1)
        cost = weights.mask * mask + weights.dice * dice - weights.class_ * prob[images].gather(2, labels)
        costs += [each[:, :count].flatten() for each, count in zip(cost, counts, strict=True)]
    return costs


def _at_pixels(masks: Tensor, size: torch.Size, mask_cost: Literal["focal", "point"]) -> Tensor:
    """Masks [N, H, W] at the pixels of a map of another size, [N, h * w] float32."""
    if mask_cost == "point":
        return resize_masks(masks, (size[0], size[1])).flatten(1)
    return F.interpolate(masks[:, None].view(torch.uint8), size=size, mode="nearest").flatten(1).float()


def padded_rows(counts: tuple[int, ...], images: slice, device: torch.device) -> Tensor:
    """Each image's objects by their position in `Objects`, filled up with any others: [images, most objects]."""
    first = torch.tensor([sum(counts[:image]) for image in range(len(counts))][images])
    rows = first[:, None] + torch.arange(max(counts[images]))
    return rows.clamp(max=sum(counts) - 1).to(device, non_blocking=True)


def assign(
    costs: Sequence[Tensor], stacks: Sequence[tuple[int, int]], counts: tuple[int, ...], device: torch.device
) -> list[Matches]:
    """Solve all assignment problems on the host, to which the costs go in one copy; the assignments come back in one.

    NaN or infinite costs count as very large ones, and are warned about.

    Args:
        costs: flat parts, one after the other those of all stacks; each stack's image by image as [layers, num_queries,
            count].
        stacks: (layers, num_queries) of layers that have equally many queries; a Matches is given for each.
        counts: objects of every image.
    """
    on_host = torch.cat(list(costs)).cpu().numpy() if costs else np.empty(0, dtype=np.float32)
    if not np.isfinite(on_host).all():
        _warn_about_costs()
        on_host = np.nan_to_num(on_host, nan=UNUSABLE_COST, posinf=UNUSABLE_COST, neginf=UNUSABLE_COST)
    ends = np.cumsum([layers * num_queries * sum(counts) for layers, num_queries in stacks])
    parts = np.split(on_host, ends[:-1])
    pairs = [_pairs(part, *stack, counts) for part, stack in zip(parts, stacks, strict=True)]
    columns = torch.from_numpy(np.concatenate(pairs).T.copy())  # [4, M], of all stacks
    sizes = [len(part) for part in pairs]
    moved = columns.to(device, non_blocking=True).split(sizes, dim=1)
    matches = []
    for (layers, num_queries), found, on_device in zip(stacks, columns.split(sizes, dim=1), moved, strict=True):
        kept = [min(count, num_queries) for count in counts]
        per_image, dropped = tuple(layers * each for each in kept), sum(counts) - sum(kept)
        on_layer, of_image, queries, objects = on_device.unbind(0)
        matches.append(Matches(on_layer, of_image, queries, objects, per_image, found, dropped))
    return matches


def _pairs(costs: np.ndarray, layers: int, num_queries: int, counts: tuple[int, ...]) -> np.ndarray:
    """Solve the assignment problems, laid out image by image as [layers, num_queries, count]: (layer, image, query,
    object) of all pairs, [M, 4]."""
    pairs = []
    first_object = first_cost = 0
    for image, count in enumerate(counts):
        size = layers * num_queries * count
        problems = costs[first_cost : first_cost + size].reshape(layers, num_queries, count)
        kept = min(count, num_queries)
        found = np.empty((layers, kept, 4), dtype=np.int64)
        for layer, problem in enumerate(problems if count else ()):
            queries, chosen = linear_sum_assignment(problem)
            found[layer] = np.stack([np.full(kept, layer), np.full(kept, image), queries, chosen + first_object], 1)
        rows = found.reshape(-1, 4)
        pairs.append(rows[rows[:, 3].argsort(kind="stable")])
        first_object += count
        first_cost += size
    return np.concatenate(pairs)


def warn_about_dropped(dropped: int, num_queries: int) -> None:
    """Say that objects are not learnt from, if any are not."""
    if dropped:
        warnings.warn(
            f"some images have more objects than the head has queries ({num_queries}); the objects that fit worst "
            "are not learnt from; raise head.num_queries",
            stacklevel=1,  # of one place, so that it is said once, whoever found it
        )


def _warn_about_costs() -> None:
    warnings.warn(
        "the matching costs contain NaN or infinity, so some objects get an arbitrary query; the usual cause is a "
        "diverged model: lower the learning rate, clip gradients, or train with precision bf16-mixed instead of "
        "16-mixed",
        RuntimeWarning,
        stacklevel=1,
    )
