"""Two processes with half of a batch each against one with all of it: the mean of their gradients is the same."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from vision_stack.losses import MaskCriterionConfig
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import Target

NUM_CLASSES, QUERIES = 3, 6
OBJECTS = {"uneven": (4, 1, 0, 2), "empty rank": (0, 0, 3, 1), "one object": (0, 1, 0, 0), "none": (0, 0, 0, 0)}
Gradients = dict[str, Tensor]


def gradients(images: slice, counts: tuple[int, ...]) -> Gradients:
    """Of the criterion's total with respect to everything that it is given of some images of a batch of four."""
    torch.manual_seed(0)
    like = {"dtype": torch.float64}
    logits, embed = torch.randn(3, 4, QUERIES, NUM_CLASSES + 1, **like), torch.randn(3, 4, QUERIES, 8, **like)
    inputs = {
        "logits": logits[:, images].requires_grad_(),
        "embed": embed[:, images].requires_grad_(),
        "features": torch.randn(4, 8, 6, 7, **like)[images].requires_grad_(),
        "pixels": torch.randn(4, NUM_CLASSES + 1, 6, 7, **like)[images].requires_grad_(),
    }
    outputs = MaskOutputs(
        pred_logits=inputs["logits"][-1],
        mask_embed=inputs["embed"][-1],
        mask_features=inputs["features"],
        aux_logits=inputs["logits"][:-1],
        aux_mask_embed=inputs["embed"][:-1],
    )
    targets: list[Target] = [
        {
            "labels": torch.randint(NUM_CLASSES, (count,)),
            "masks": torch.rand(count, 24, 28) > 0.6,
            "boxes": torch.zeros(count, 4),
        }
        for count in counts
    ]
    criterion = MaskCriterionConfig(pixel_ce_weight=2.0).build(NUM_CLASSES)
    losses = criterion(outputs, targets[images], inputs["pixels"])
    torch.stack(list(losses.values())).sum().backward()
    return {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}


def one_rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    reduce, exchanges = torch.distributed.all_reduce, []
    torch.distributed.all_reduce = lambda tensor: exchanges.append(reduce(tensor))
    found = [gradients(slice(2 * rank, 2 * rank + 2), counts) for counts in OBJECTS.values()]
    assert len(exchanges) == len(OBJECTS), "one exchange a step"
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Gradients], list[Gradients]]:
    """For each of `OBJECTS` the gradients of rank 0 and of rank 1."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, (folder,), nprocs=2)
    return torch.load(folder / "0.pt"), torch.load(folder / "1.pt")


@pytest.mark.parametrize("case", OBJECTS)
def test_mean_gradient_of_two_ranks_equals_that_of_one_process(
    case: str, of_ranks: tuple[list[Gradients], list[Gradients]]
) -> None:
    alone = gradients(slice(0, 4), OBJECTS[case])
    one, other = (rank[list(OBJECTS).index(case)] for rank in of_ranks)
    assert alone.keys() == one.keys() == other.keys()
    for name, expected in alone.items():
        together = torch.cat([one[name], other[name]], 1 if name in ("logits", "embed") else 0) / 2
        torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-15, msg=name)  # the same sums in float64
