"""RoIAlign on CPUs against torchvision's: values and gradients, also of boxes beyond the map."""

import pytest
import torch
from torchvision.ops import roi_align as reference

from vision_stack.ops.roi_align import roi_align


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("size", "shape"), [(7, (2, 8, 13, 17)), (14, (1, 3, 5, 4)), (2, (1, 3, 1, 1))])
def test_values_and_gradients_equal_torchvisions(size, shape, samples):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    corners = torch.rand(40, 2, dtype=torch.float64) * 160 - 40
    boxes = torch.cat([corners, corners + torch.rand(40, 2, dtype=torch.float64) * 90], 1)  # some within one cell
    images = torch.randint(0, shape[0], (40,))
    expected = reference(x, torch.cat([images[:, None].double(), boxes], 1), size, 1 / 8, samples)
    found = roi_align(x, boxes, images, size, 1 / 8, samples)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(found)
    (one,), (other,) = torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_no_boxes_give_nothing_and_a_gradient_of_zero():
    x = torch.ones(1, 4, 6, 6, requires_grad=True)
    found = roi_align(x, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7, 0.25, 2)
    assert found.shape == (0, 4, 7, 7)
    found.sum().backward()
    assert x.grad.abs().sum() == 0
