"""The order of images: a function of (seed, epoch) that can be entered at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vision_stack.data.sampling import systematic_sample

Key = tuple[int, int]  # (epoch, index): all that a sample's randomness depends on, beside the seed


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator that draws the order of an epoch."""
    return np.random.default_rng((seed, epoch))


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one image in one epoch. (NumPy pads entropy with zeros, so index 0 must not look like none.)"""
    return np.random.default_rng((seed, epoch, index + 1))


class EpochSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) for one rank; a batch sampler whose workers need not be told the epoch.

    An iterator gives the rest of the epoch from the position at which it was made. Whoever iterates sets the position
    (PyTorch makes two iterators for one pass, so this is nothing to count on). Ranks take turns within the global batch
    of `batch_size * world_size` images, so what one step sees does not depend on how many ranks share it.

    Args:
        num_samples: images in all, over all ranks.
        batch_size: images of one rank's batch.
        shuffle: draw a new order for each epoch from (seed, epoch); otherwise in the data's order.
        even: every rank gets the same number of full batches, as training in step needs: what is left over at the end
            of an epoch is dropped, or, where there is less than one global batch, images repeat until each rank has as
            many. Otherwise every image comes exactly once over all ranks, as evaluation needs.
        repeats: [num_samples] how often each image comes in an epoch, on average; once by default. Only with `shuffle`.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        even: bool = True,
        rank: int = 0,
        world_size: int = 1,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        assert 0 <= rank < world_size
        assert repeats is None or shuffle
        self.repeats = repeats
        self.num_samples = num_samples if repeats is None else int(repeats.sum() + 1e-9)  # of an epoch
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.even = even
        self.rank = rank
        self.world_size = world_size
        self.position = (0, 0)

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def set_position(self, epoch: int, batches_done: int = 0) -> None:
        """The next iterator starts in this epoch, after `batches_done` of its batches."""
        self.position = (epoch, batches_done)

    def order(self, epoch: int) -> np.ndarray:
        """This rank's image indices in an epoch, [n] int64."""
        indices = np.arange(self.num_samples)
        if self.repeats is not None:
            indices = systematic_sample(self.repeats, epoch_rng(self.seed, epoch))
        elif self.shuffle:
            indices = epoch_rng(self.seed, epoch).permutation(self.num_samples)
        if self.even and self.num_samples >= self.global_batch_size:
            indices = indices[: self.num_samples // self.global_batch_size * self.global_batch_size]
        elif self.even:
            indices = np.resize(indices, -(-self.num_samples // self.world_size) * self.world_size)
        return indices[self.rank :: self.world_size]

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the position is."""
        if self.even:
            return max(self.num_samples // self.global_batch_size, min(1, self.num_samples))
        mine = len(range(self.rank, self.num_samples, self.world_size))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        # Not a generator function: the position must be taken when the iterator is made, not when it is first used.
        return self._batches(*self.position)

    def _batches(self, epoch: int, batches_done: int) -> Iterator[list[Key]]:
        order = self.order(epoch).tolist()
        for start in range(batches_done * self.batch_size, len(order), self.batch_size):
            yield [(epoch, index) for index in order[start : start + self.batch_size]]
