"""Networks that ours are compared with: their published sizes, and that they learn."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from ecg_peers import PEERS, S4D, S4DLayer

# of the published networks for 71 labels, in thousands
PARAMETERS = {"xresnet1d101": (1850, 1950), "resnet1d_wang": (450, 550), "S4D 512 x 4": (2100, 2300)}


@pytest.mark.parametrize("name", PEERS)
def test_they_have_their_published_size_and_every_parameter_learns(name):
    torch.manual_seed(0)
    model = PEERS[name](71)
    low, high = PARAMETERS[name]
    assert low < sum(parameter.numel() for parameter in model.parameters()) / 1000 < high
    model(torch.randn(2, 12, 250)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_kernel_of_s4d_is_its_recurrence():
    torch.manual_seed(0)
    layer = S4DLayer(3, d_state=4).double()
    A = torch.complex(-layer.log_A_real.exp(), layer.A_imag)
    step = layer.log_dt.exp().unsqueeze(-1)
    decay, read = torch.exp(step * A), torch.view_as_complex(layer.C)
    impulse = (decay - 1) / A  # the state behind an impulse, by zero-order hold
    for direction, kernel in enumerate(layer.kernel(9)):
        state = impulse
        for t in range(9):
            torch.testing.assert_close(kernel[:, t], 2 * (read[direction] * state).sum(-1).real)
            state = decay * state


def test_s4d_looks_both_ways():
    model = S4D(2, channels=8, layers=1).eval()
    x = torch.randn(1, 12, 40)
    layer = model.layers[0]
    hidden = model.encoder(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(hidden)[..., 20].sum(), hidden)
    assert (gradient[..., 5] != 0).any() and (gradient[..., 35] != 0).any()
