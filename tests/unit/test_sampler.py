"""The order of images as a function of (seed, epoch), entered anywhere, shared by ranks."""

import itertools

import pytest

from vision_stack.data.sampler import EpochSampler, epoch_rng, sample_rng


def epochs(sampler, count):
    """Batches of the rest of this epoch and of the following ones, epoch by epoch."""
    first, _ = sampler.position
    passes = []
    for epoch in range(first, first + count):
        passes.append(list(sampler))
        sampler.set_position(epoch + 1)
    return passes


def test_epochs_are_permutations_that_differ_and_repeat_with_the_seed():
    first, second = epochs(EpochSampler(12, 3, seed=5), 2)
    assert {epoch for batch in first for epoch, _ in batch} == {0}
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    orders = [[index for batch in batches for _, index in batch] for batches in (first, second)]
    assert [sorted(order) for order in orders] == [list(range(12))] * 2
    assert orders[0] != orders[1]
    assert epochs(EpochSampler(12, 3, seed=5), 2) == [first, second]
    assert epochs(EpochSampler(12, 3, seed=6), 1) != [first]


@pytest.mark.parametrize(("epoch", "batches_done"), [(0, 0), (0, 3), (1, 1), (2, 4), (1, 5)])
def test_restart_at_a_batch_gives_the_rest_of_the_uninterrupted_order(epoch, batches_done):
    uninterrupted = list(itertools.chain(*epochs(EpochSampler(11, 2, seed=1), 4)))
    sampler = EpochSampler(11, 2, seed=1)
    sampler.set_position(epoch, batches_done)
    assert len(sampler) == 5
    assert list(itertools.chain(*epochs(sampler, 4 - epoch))) == uninterrupted[epoch * 5 + batches_done :]


def test_position_is_taken_when_the_iterator_is_made():
    sampler = EpochSampler(8, 2)
    sampler.set_position(2, 1)
    batches = iter(sampler)
    sampler.set_position(7)
    assert [batch[0][0] for batch in batches] == [2, 2, 2]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_steps_of_training_see_the_same_images_on_any_number_of_ranks(world_size):
    whole = list(EpochSampler(37, 8, seed=3))
    ranks = [
        list(EpochSampler(37, 8 // world_size, seed=3, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(whole)} == {4}
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(key for batches in ranks for key in batches[step])


def test_training_with_less_than_one_global_batch_repeats_to_equal_lengths():
    assert [len(batch) for batch in EpochSampler(5, 8)] == [5]
    ranks = [list(EpochSampler(5, 8, rank=rank, world_size=3)) for rank in range(3)]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[2], [2], [2]]
    assert {index for batches in ranks for _, index in batches[0]} == set(range(5))
    assert len(EpochSampler(5, 8, world_size=3)) == 1
    assert list(EpochSampler(0, 8)) == []
    assert len(EpochSampler(0, 8)) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 13])
def test_evaluation_gives_every_image_once_over_all_ranks(world_size):
    seen = []
    for rank in range(world_size):
        sampler = EpochSampler(11, 2, shuffle=False, even=False, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        seen += [index for batch in batches for _, index in batch]
    assert sorted(seen) == list(range(11))


def test_generators_of_order_and_of_samples_are_all_different():
    draws = [epoch_rng(0, epoch).integers(2**62) for epoch in range(4)]
    draws += [sample_rng(0, epoch, index).integers(2**62) for epoch in range(4) for index in range(4)]
    draws += [sample_rng(1, 0, 0).integers(2**62)]
    assert len(set(draws)) == len(draws)
