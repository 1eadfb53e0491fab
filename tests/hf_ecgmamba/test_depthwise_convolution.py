"""The depthwise convolution in both directions, against torch's Conv1d in float64."""

import pytest
import torch
from torch.nn import functional as F

from hf_ecgmamba import depthwise_convolution
from hf_ecgmamba.depthwise_convolution import CHUNK, convolve_both_ways, convolve_both_ways_by_shifts
from hf_ecgmamba.numba_vectors import HAS_NUMBA

WAYS = [convolve_both_ways_by_shifts, *([convolve_both_ways] if HAS_NUMBA else [])]
every_way = pytest.mark.parametrize("convolve", WAYS)
SHAPES = {
    "one step": (2, 1, 5, 4),
    "shorter than the taps": (1, 3, 5, 4),
    "one tap": (2, 20, 33, 1),
    "whole vectors": (2, CHUNK, 64, 4),
    "a little over a chunk": (1, CHUNK + 1, 40, 4),
    "chunks, odd channels, many taps": (2, 3 * CHUNK - 5, 7, 9),
}


def make_inputs(batch, time, channels, taps, masked):
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(batch, time, 2 * channels, generator=random, dtype=torch.float64)
    weight = torch.randn(2, channels, taps, generator=random, dtype=torch.float64)
    bias = torch.randn(2, channels, generator=random, dtype=torch.float64)
    mask = torch.rand(batch, time, generator=random) > 0.3 if masked else None
    return [wide, weight, bias], mask


def by_conv1d(x, weight, bias, mask):
    """Direction 1 is direction 0 on a flipped recording."""
    x, channels = (x if mask is None else x * mask.unsqueeze(-1)).transpose(1, 2), weight.shape[1]
    left = F.pad(x, (weight.shape[-1] - 1, 0))
    right = F.pad(x.flip(-1), (weight.shape[-1] - 1, 0))
    both = [F.conv1d(left, weight[0].unsqueeze(1), bias[0], groups=channels)]
    both += [F.conv1d(right, weight[1].unsqueeze(1), bias[1], groups=channels).flip(-1)]
    y = F.silu(torch.stack(both)).transpose(2, 3)
    return y if mask is None else y * mask.unsqueeze(-1)


def run(convolve, inputs, mask, dtype):
    wide, weight, bias = leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    y = convolve(wide[..., : weight.shape[1]], weight, bias, mask)  # a slice, as a model has it
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return y, *torch.autograd.grad(y, leaves, upstream.to(dtype))


@every_way
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_conv1d(convolve, shape, masked):
    inputs, mask = make_inputs(*shape, masked)
    expected = run(by_conv1d, inputs, mask, torch.float64)
    for result, right in zip(run(convolve, inputs, mask, torch.float64), expected, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-10, atol=1e-10)
    for result, right in zip(run(convolve, inputs, mask, torch.float32), expected, strict=True):
        assert (result - right).abs().max() <= 1e-5 * right.abs().max()


@every_way
def test_what_is_masked_is_not_seen(convolve):
    (wide, weight, bias), mask = make_inputs(2, 50, 6, 4, masked=True)
    other = torch.where(mask.unsqueeze(-1), wide, 1e3)
    results = [convolve(x[..., :6], weight, bias, mask) for x in (wide, other)]
    assert torch.equal(*results)
    assert (results[0][:, ~mask] == 0).all()


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_the_number_of_threads_changes_no_bit():
    inputs, mask = make_inputs(2, 500, 70, 4, masked=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(convolve_both_ways, inputs, mask, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(result, first) for result, first in zip(other, results[0], strict=True))


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_large_outputs_that_go_past_the_caches_are_the_same(monkeypatch):
    inputs, mask = make_inputs(2, 300, 70, 4, masked=True)
    written = run(convolve_both_ways, inputs, mask, torch.float32)
    monkeypatch.setattr(depthwise_convolution, "shall_stream", lambda output: True)
    streamed = run(convolve_both_ways, inputs, mask, torch.float32)
    assert all(torch.equal(*pair) for pair in zip(written, streamed, strict=True))


@every_way
def test_bfloat16_stays_bfloat16(convolve):
    inputs, _ = make_inputs(2, 30, 8, 4, masked=False)
    wide, weight, bias = (tensor.bfloat16() for tensor in inputs)
    y = convolve(wide[..., :8], weight, bias)
    assert y.dtype == torch.bfloat16
    # as autocast has it: the weights are float32
    assert convolve(wide[..., :8], weight.float(), bias.float()).dtype == torch.bfloat16
    expected = by_conv1d(wide[..., :8].double(), weight.double(), bias.double(), None)
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)
