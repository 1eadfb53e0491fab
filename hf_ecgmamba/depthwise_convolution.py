"""The short depthwise convolution before the scan, in both directions at once, with SiLU behind it.

Mamba (arXiv 2312.00752, section 3.4) looks a few steps back before it scans; the second direction looks ahead. On a
CPU numba's kernels do it in one pass; anywhere else it is a sum of shifted signals, which with four taps beats Conv1d
and leaves channels last, where the projections and the scan want them.
"""

import torch
from torch.nn import functional as F

from .numba_vectors import (
    HAS_NUMBA,
    LANES,
    as_rows,
    fill,
    jitable,
    next_task,
    read,
    run_tasks,
    scratch,
    silu,
    unpack,
    write,
)

# steps in one task
CHUNK = 128


def convolve_both_ways(x, weight, bias, mask=None):
    """
    SiLU of two depthwise convolutions: tap k of direction 0 looks `taps - 1 - k` steps back, of direction 1 ahead.

    Args:
        x (`torch.Tensor` of shape `(batch, time, channels)`): any floating dtype; beyond its ends are zeros.
        weight (`torch.Tensor` of shape `(2, channels, taps)`)
        bias (`torch.Tensor` of shape `(2, channels)`)
        mask (`torch.BoolTensor` of shape `(batch, time)`, *optional*): False where a step is padding: it counts as
            zero, and so does its result.

    Returns:
        `torch.Tensor` of shape `(2, batch, time, channels)`, in the dtype of x.
    """
    if x.device.type == "cpu" and HAS_NUMBA:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return _convolve(x.to(dtype), weight.to(dtype), bias.to(dtype), mask).to(x.dtype)
    return convolve_both_ways_by_shifts(x, weight, bias, mask)


def convolve_both_ways_by_shifts(x, weight, bias, mask=None):
    """As [`convolve_both_ways`], in plain torch on any device. The sums grow in place: fresh memory costs as much as
    the arithmetic."""
    if mask is not None:
        x = x * mask.unsqueeze(-1)
    time, reach = x.shape[1], weight.shape[-1] - 1
    padded, taps = F.pad(x, (0, 0, reach, reach)), weight.transpose(1, 2).contiguous()
    both = []
    for direction in (0, 1):
        sums = torch.addcmul(bias[direction], padded[:, reach : reach + time], taps[direction, reach])
        for k in range(reach):
            start = k if direction == 0 else 2 * reach - k
            sums.addcmul_(padded[:, start : start + time], taps[direction, k])
        both.append(sums)
    result = F.silu(torch.stack(both))
    return result if mask is None else result * mask.unsqueeze(-1)


@torch.library.custom_op("hf_ecgmamba::convolve_both_ways", mutates_args=())
def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    inputs = _Inputs(x, weight, bias, mask)
    y = x.new_empty(2, *x.shape[:2], inputs.channels)
    inputs.run(_forward, [y])
    return y[..., : x.shape[-1]].contiguous()


@_convolve.register_fake
def _(x, weight, bias, mask):
    return x.new_empty(2, *x.shape)


@torch.library.custom_op("hf_ecgmamba::convolve_both_ways_backward", mutates_args=())
def _convolve_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight and bias."""
    inputs = _Inputs(x, weight, bias, mask)
    (batch, time, channels), taps = x.shape, weight.shape[-1]
    dy = F.pad(dy, (0, inputs.channels - channels)).contiguous()
    dx = x.new_empty(batch, time, inputs.channels)
    # of each task, summed below in a fixed order; the bias comes last
    d_taps = x.new_empty(inputs.num_tasks, 2, taps + 1, inputs.channels)
    inputs.run(_backward, [dy, dx, d_taps])
    d_taps = d_taps.sum(0)[..., :channels]
    return dx[..., :channels].contiguous(), d_taps[:, :taps].transpose(1, 2).contiguous(), d_taps[:, taps].contiguous()


@_convolve_backward.register_fake
def _(dy, x, weight, bias, mask):
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(bias.shape)


def _keep_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy):
    return *_convolve_backward(dy, *ctx.saved_tensors), None


_convolve.register_autograd(_differentiate, setup_context=_keep_for_backward)


class _Inputs:
    """The arguments as the kernels want them: whole vectors of channels, taps as [2, taps, channels]; x is read where
    it is, for it may be a slice of a wider tensor."""

    def __init__(self, x, weight, bias, mask):
        padding = (0, -x.shape[-1] % LANES)
        x = as_rows(F.pad(x, padding) if padding[1] else x)
        weight, bias = (F.pad(tensor, padding).contiguous() for tensor in (weight.transpose(1, 2), bias))
        mask = None if mask is None else mask.to(x.dtype).contiguous()
        batch, time, self.channels = x.shape
        self.num_tasks = batch * -(-time // CHUNK)
        self.sizes = [batch, time, self.channels, x.stride(-2), weight.shape[1], mask is not None]
        self.arrays = [x, weight, bias, mask]

    def run(self, kernel, outputs):
        run_tasks(kernel, self.arrays[0].dtype, self.num_tasks, self.sizes, [*self.arrays, *outputs])


@jitable
def _load(rows, x, x_row, mask, has_mask, sample, time, start, stop, first):
    """rows = the steps from start to stop of LANES channels, zeros where there are none or they are masked."""
    for t in range(start, stop):
        value = fill(x, 0.0)
        if 0 <= t < time and not (has_mask and mask[sample * time + t] == 0):
            value = read(x, (sample * time + t) * x_row + first)
        write(rows, (t - start) * LANES, value)


def _forward(job):
    (batch, time, channels, x_row, taps, has_mask), (x, weight, bias, mask, y) = unpack(job, 6, 5)
    reach, chunks = taps - 1, (time + CHUNK - 1) // CHUNK
    rows = scratch(x, (CHUNK + 2 * reach) * LANES)
    task = next_task(job)
    while task >= 0:
        sample, start = task // chunks, task % chunks * CHUNK
        stop = min(start + CHUNK, time)
        for first in range(0, channels, LANES):
            _load(rows, x, x_row, mask, has_mask, sample, time, start - reach, stop + reach, first)
            for direction in range(2):
                for t in range(start, stop):
                    result = read(bias, direction * channels + first)
                    for k in range(taps):
                        # the row of step t is t - start + reach
                        row = t - start + k if direction == 0 else t - start + 2 * reach - k
                        result = result + read(weight, (direction * taps + k) * channels + first) * read(
                            rows, row * LANES
                        )
                    result, _ = silu(result)
                    if has_mask and mask[sample * time + t] == 0:
                        result = fill(x, 0.0)
                    write(y, ((direction * batch + sample) * time + t) * channels + first, result)
        task = next_task(job)


def _backward(job):
    (batch, time, channels, x_row, taps, has_mask), (x, weight, bias, mask, dy, dx, d_taps) = unpack(job, 6, 7)
    reach, chunks = taps - 1, (time + CHUNK - 1) // CHUNK
    rows, d_sums = scratch(x, (CHUNK + 4 * reach) * LANES), scratch(x, (CHUNK + 2 * reach) * LANES)
    d_rows, d_taps_here = scratch(x, CHUNK * LANES), scratch(x, taps * LANES)
    task = next_task(job)
    while task >= 0:
        sample, start = task // chunks, task % chunks * CHUNK
        stop = min(start + CHUNK, time)
        for first in range(0, channels, LANES):
            _load(rows, x, x_row, mask, has_mask, sample, time, start - 2 * reach, stop + 2 * reach, first)
            for direction in range(2):
                for k in range(taps):
                    write(d_taps_here, k * LANES, fill(x, 0.0))
                # gradients of the sums before SiLU, of this chunk and of as many steps around as it is seen from
                d_bias = fill(x, 0.0)
                for t in range(start - reach, stop + reach):
                    d_sum = fill(x, 0.0)
                    if 0 <= t < time and not (has_mask and mask[sample * time + t] == 0):
                        result = read(bias, direction * channels + first)
                        for k in range(taps):
                            # the row of step t is t - start + 2 * reach
                            row = t - start + reach + k if direction == 0 else t - start + 3 * reach - k
                            result = result + read(weight, (direction * taps + k) * channels + first) * read(
                                rows, row * LANES
                            )
                        _, slope = silu(result)
                        d_sum = slope * read(dy, ((direction * batch + sample) * time + t) * channels + first)
                        if start <= t < stop:
                            d_bias = d_bias + d_sum
                            for k in range(taps):
                                row = t - start + reach + k if direction == 0 else t - start + 3 * reach - k
                                product = d_sum * read(rows, row * LANES)
                                write(d_taps_here, k * LANES, read(d_taps_here, k * LANES) + product)
                    write(d_sums, (t - start + reach) * LANES, d_sum)
                for t in range(start, stop):
                    here = (t - start) * LANES
                    d_row = fill(x, 0.0)
                    if direction == 1:
                        d_row = read(d_rows, here)
                    for k in range(taps):
                        row = t - start + 2 * reach - k if direction == 0 else t - start + k
                        d_row = d_row + read(weight, (direction * taps + k) * channels + first) * read(
                            d_sums, row * LANES
                        )
                    write(d_rows, here, d_row)
                plane = (task * 2 + direction) * (taps + 1)
                for k in range(taps):
                    write(d_taps, (plane + k) * channels + first, read(d_taps_here, k * LANES))
                write(d_taps, (plane + taps) * channels + first, d_bias)
            for t in range(start, stop):
                d_row = read(d_rows, (t - start) * LANES)
                if has_mask and mask[sample * time + t] == 0:
                    d_row = fill(x, 0.0)
                write(dx, (sample * time + t) * channels + first, d_row)
        task = next_task(job)
