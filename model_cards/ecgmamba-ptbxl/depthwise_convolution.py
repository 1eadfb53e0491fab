"""The short depthwise convolution before the scan, in both directions at once, with SiLU behind it.

Mamba (arXiv 2312.00752, section 3.4) looks a few steps back before it scans; the second direction looks ahead. On a
CPU numba's kernels do it in one pass; anywhere else it is a sum of shifted signals, which with four taps beats Conv1d
and leaves channels last, where the projections and the scan want them.
"""

from collections import namedtuple

import torch
from torch.nn import functional as F

from .numba_vectors import (
    HAS_NUMBA,
    LANES,
    as_rows,
    fill,
    jitable,
    kernel_dtype,
    next_task,
    operator_name,
    pad_channels,
    prefetch,
    read,
    run_tasks,
    runs_directly,
    scratch,
    shall_stream,
    silu,
    unpack,
    write,
    write_output,
)

# steps in one task
CHUNK = 64


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
    if torch.compiler.is_exporting():
        return convolve_both_ways_by_conv1d(x, weight, bias, mask)
    if x.device.type == "cpu" and HAS_NUMBA:
        dtype = kernel_dtype(x)
        convolve = _convolve_directly if runs_directly(x, weight, bias, mask) else _convolve
        return convolve(x.to(dtype), weight.to(dtype), bias.to(dtype), mask).to(x.dtype)
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
    result = F.silu(torch.stack(both)).to(x.dtype)
    return result if mask is None else result * mask.unsqueeze(-1)


def convolve_both_ways_by_conv1d(x, weight, bias, mask=None):
    """As [`convolve_both_ways`], as one operator, for graphs that leave torch."""
    if mask is not None:
        x = x * mask.unsqueeze(-1)
    time, channels, reach = *x.shape[1:], weight.shape[-1] - 1
    padded = F.pad(x.transpose(1, 2), (reach, reach))
    taps = torch.stack((weight[0], weight[1].flip(-1)), 1)  # of each channel, one direction after the other
    sums = F.conv1d(padded, taps.flatten(0, 1).unsqueeze(1), bias.t().flatten(), groups=channels)
    sums = sums.unflatten(1, (channels, 2)).permute(2, 0, 3, 1)
    result = F.silu(torch.stack((sums[0, :, :time], sums[1, :, reach : reach + time])))
    return result if mask is None else result * mask.unsqueeze(-1)


@torch.library.custom_op(operator_name(__name__, "convolve_both_ways"), mutates_args=())
def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return _convolve_directly(x, weight, bias, mask)


def _convolve_directly(x, weight, bias, mask):
    inputs = _Inputs(x, weight, bias, mask)
    y = x.new_empty(2, *x.shape[:2], inputs.channels)
    inputs.run(_forward, _ForwardArrays, shall_stream(y), y=y)
    return y[..., : x.shape[-1]].contiguous()


@_convolve.register_fake
def _(x, weight, bias, mask):
    return x.new_empty(2, *x.shape)


@torch.library.custom_op(operator_name(__name__, "convolve_both_ways_backward"), mutates_args=())
def _convolve_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight and bias."""
    inputs = _Inputs(x, weight, bias, mask)
    (batch, time, channels), taps = x.shape, weight.shape[-1]
    dy = pad_channels(dy).contiguous()
    dx = x.new_empty(batch, time, inputs.channels)
    # of each task, summed below in a fixed order; the bias comes last
    d_taps = x.new_empty(inputs.num_tasks, 2, taps + 1, inputs.channels)
    inputs.run(_backward, _BackwardArrays, shall_stream(dx), dy=dy, dx=dx, d_taps=d_taps)
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
        x = as_rows(pad_channels(x))
        weight, bias = (pad_channels(tensor).contiguous() for tensor in (weight.transpose(1, 2), bias))
        mask = None if mask is None else mask.to(x.dtype).contiguous()
        batch, time, self.channels = x.shape
        self.num_tasks = batch * -(-time // CHUNK)
        self.sizes = batch, time, self.channels, x.stride(-2), weight.shape[1], mask is not None
        self.tensors = {"x": x, "weight": weight, "bias": bias, "mask": mask}

    def run(self, kernel, arrays, streams, **outputs):
        sizes, arrays = _Sizes(*self.sizes, streams), arrays(**self.tensors, **outputs)
        run_tasks(kernel, self.tensors["x"].dtype, self.num_tasks, sizes, arrays)


_Sizes = namedtuple("_Sizes", "batch time channels x_row taps has_mask streams")
_ForwardArrays = namedtuple("_ForwardArrays", "x weight bias mask y")
_BackwardArrays = namedtuple("_BackwardArrays", "x weight bias mask dy dx d_taps")

# The kernels. Their arrays are flat. A task is CHUNK steps of one sample, taken LANES channels at a time, whose x is
# first copied to `rows`, with the steps around it that the taps reach.


def _forward(job):
    sizes, arrays = unpack(job, _Sizes, _ForwardArrays)
    time, channels, reach = sizes.time, sizes.channels, sizes.taps - 1
    chunks, rows = (time + CHUNK - 1) // CHUNK, scratch(arrays.x, (CHUNK + 2 * reach) * LANES)
    task = next_task(job)
    while task >= 0:
        sample, start = task // chunks, task % chunks * CHUNK
        stop = min(start + CHUNK, time)
        for first in range(0, channels, LANES):
            _copy_rows(sizes, arrays, sample, first, start - reach, stop + reach, rows)
            for direction in range(2):
                for t in range(start, stop):
                    result, _ = silu(_sum_taps(sizes, arrays, direction, first, rows, t - start + reach))
                    if not _is_real(sizes, arrays, sample, t):
                        result = fill(arrays.x, 0.0)
                    here = ((direction * sizes.batch + sample) * time + t) * channels + first
                    write_output(arrays.y, here, result, sizes.streams)
        task = next_task(job)


@jitable
def _is_real(sizes, arrays, sample, t):
    return 0 <= t < sizes.time and not (sizes.has_mask and arrays.mask[sample * sizes.time + t] == 0)


@jitable
def _copy_rows(sizes, arrays, sample, first, start, stop, rows):
    for t in range(start, stop):
        value = fill(arrays.x, 0.0)
        if _is_real(sizes, arrays, sample, t):
            here = (sample * sizes.time + t) * sizes.x_row + first
            prefetch(arrays.x, here + LANES)
            value = read(arrays.x, here)
        write(rows, (t - start) * LANES, value)


@jitable
def _sum_taps(sizes, arrays, direction, first, rows, row):
    result = read(arrays.bias, direction * sizes.channels + first)
    for k in range(sizes.taps):
        tap = read(arrays.weight, (direction * sizes.taps + k) * sizes.channels + first)
        result = result + tap * read(rows, _row_of_tap(sizes, direction, row, k) * LANES)
    return result


@jitable
def _row_of_tap(sizes, direction, row, k):
    distance = sizes.taps - 1 - k
    return row - distance if direction == 0 else row + distance


def _backward(job):
    sizes, arrays = unpack(job, _Sizes, _BackwardArrays)
    time, channels, taps, reach = sizes.time, sizes.channels, sizes.taps, sizes.taps - 1
    chunks, rows = (time + CHUNK - 1) // CHUNK, scratch(arrays.x, (CHUNK + 4 * reach) * LANES)
    d_sums, d_rows = scratch(arrays.x, (CHUNK + 2 * reach) * LANES), scratch(arrays.x, CHUNK * LANES)
    task = next_task(job)
    while task >= 0:
        sample, start = task // chunks, task % chunks * CHUNK
        stop = min(start + CHUNK, time)
        for first in range(0, channels, LANES):
            _copy_rows(sizes, arrays, sample, first, start - 2 * reach, stop + 2 * reach, rows)
            for t in range(start, stop):
                write(d_rows, (t - start) * LANES, fill(arrays.x, 0.0))
            for direction in range(2):
                # of this chunk, and of the steps around it that look into it
                for t in range(start - reach, stop + reach):
                    d_sum = fill(arrays.x, 0.0)
                    if _is_real(sizes, arrays, sample, t):
                        _, slope = silu(_sum_taps(sizes, arrays, direction, first, rows, t - start + 2 * reach))
                        here = ((direction * sizes.batch + sample) * time + t) * channels + first
                        prefetch(arrays.dy, here + LANES)
                        d_sum = slope * read(arrays.dy, here)
                    write(d_sums, (t - start + reach) * LANES, d_sum)
                d_bias = fill(arrays.x, 0.0)
                for t in range(start, stop):
                    d_bias = d_bias + read(d_sums, (t - start + reach) * LANES)
                write(arrays.d_taps, ((task * 2 + direction) * (taps + 1) + taps) * channels + first, d_bias)
                for k in range(taps):
                    tap = read(arrays.weight, (direction * taps + k) * channels + first)
                    d_tap = fill(arrays.x, 0.0)
                    for t in range(start, stop):
                        seen = _row_of_tap(sizes, direction, t - start + 2 * reach, k)
                        d_tap = d_tap + read(d_sums, (t - start + reach) * LANES) * read(rows, seen * LANES)
                        # a tap that looks back from a step looks ahead from the step that it sees
                        seen_by = _row_of_tap(sizes, 1 - direction, t - start + reach, k)
                        d_row = read(d_rows, (t - start) * LANES) + tap * read(d_sums, seen_by * LANES)
                        write(d_rows, (t - start) * LANES, d_row)
                    write(arrays.d_taps, ((task * 2 + direction) * (taps + 1) + k) * channels + first, d_tap)
            for t in range(start, stop):
                d_row = read(d_rows, (t - start) * LANES)
                if not _is_real(sizes, arrays, sample, t):
                    d_row = fill(arrays.x, 0.0)
                write_output(arrays.dx, (sample * time + t) * channels + first, d_row, sizes.streams)
        task = next_task(job)
