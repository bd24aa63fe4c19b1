import time

import pytest
import torch

from vision_stack.training import progress
from vision_stack.training.progress import Pace


def test_printed_losses_add_up_to_the_total() -> None:
    losses = {"loss_ce": 1.0, "loss_mask": 2.0, "loss_ce_0": 0.5, "loss_mask_0": 0.25, "loss_ce_1": 0.125}
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    assert progress._read(tensors) == "loss 3.875 = ce 1.625 + mask 2.250"


def test_pace_counts_batches_and_the_wait_for_data_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    for waiting, working in ((0.5, 0.5), (0.5, 0.5)):
        now[0] += waiting
        pace.data_is_there()
        now[0] += working
        pace.step_done()
    pace.pause()
    now[0] += 100.0
    pace.resume()
    assert pace.read() == "1 it/s, data 50%"
    now[0] += 1.0
    pace.data_is_there()
    now[0] += 3.0
    pace.step_done()
    assert pace.read() == "0.25 it/s, data 25%"  # since it was last read


def test_memory_of_this_process_is_shown_in_gib() -> None:
    value, unit = progress._memory(torch.device("cpu")).split()
    assert unit == "GiB"
    assert 0.05 < float(value) < 100


def test_logged_losses_are_the_printed_ones() -> None:
    losses = {"loss_mask": torch.tensor(2.0), "loss_mask_0": torch.tensor(0.25), "loss_rpn_box": torch.tensor(1.0)}
    summed = {name: value.item() for name, value in progress.summed_over_layers(losses).items()}
    assert summed == {"loss_mask": 2.25, "loss_rpn_box": 1.0}
