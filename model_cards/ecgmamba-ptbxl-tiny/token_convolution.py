"""Convolutions along time with channels last, as matrix products with half the multiplications.

Toom and Cook's scheme ("Winograd convolution" in the field): six neighbouring steps are sent through a small fixed
matrix, multiplied by weights sent through another, and the products through a third give `7 - taps` outputs at once;
three taps cost six products for four outputs where twelve would be due. All three maps are linear, so the backward
pass saves as much. With a stride, `stride` neighbouring steps count as one with as many times the channels. On a CPU
numba's kernels apply the maps and torch multiplies the matrices; anywhere else it is torch's Conv1d.
"""

import ctypes
import math
from collections import namedtuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from .numba_vectors import (
    HAS_NUMBA,
    LANES,
    fill,
    gelu,
    jitable,
    next_task,
    operator_name,
    read,
    run_tasks,
    scratch,
    total,
    unpack,
    write,
)

# the points at which products are taken are 0, 1, -1, 2, -2 and infinity
POINTS = 6
# tiles of outputs in one task
TILES = 32
# and in one product of matrices: what lies between two convolutions is to stay in the second-level caches
TILES_AT_ONCE = 256


def convolve_tokens(x, weight, bias, stride=1, padding=0, num_outputs=None):
    """
    Conv1d with channels last.

    Args:
        x (`torch.Tensor` of shape `(batch, time, channels)`): any floating dtype.
        weight (`torch.Tensor` of shape `(outputs, channels, taps)`), bias (`torch.Tensor` of shape `(outputs,)`)
        stride (`int`, defaults to 1)
        padding (`int`, defaults to 0): zeros before the first step; behind the last are as many as are read.
        num_outputs (`int`, *optional*): steps of the result; by default those of a padding on both sides.

    Returns:
        `torch.Tensor` of shape `(batch, num_outputs, outputs)`, in the dtype of x.
    """
    time, taps = x.shape[1], weight.shape[2]
    if num_outputs is None:
        num_outputs = (time + 2 * padding - taps) // stride + 1
    if taps == stride == 1 and padding == 0:
        return F.linear(x, weight.squeeze(-1), bias)
    if can_use_kernels(x, weight, stride):
        return _convolve(x, weight, bias, stride, padding, num_outputs)
    behind = (num_outputs - 1) * stride + taps - time - padding
    x = F.pad(x, (0, 0, padding, behind)).transpose(1, 2)
    if torch.compiler.is_exporting():
        return F.conv1d(x, weight, bias, stride).transpose(1, 2)
    # as an image of one row, whose result may have its channels last
    x = x.unsqueeze(2)
    return F.conv2d(x, weight.unsqueeze(2), bias, (1, stride)).squeeze(2).transpose(1, 2).contiguous()


def can_use_kernels(x, weight, stride=1):
    """Whether the convolution of x by weight saves multiplications here."""
    if not HAS_NUMBA or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
        return False
    whole_vectors = weight.shape[0] % LANES == 0 and weight.shape[1] % LANES == 0
    return x.dtype == weight.dtype == torch.float32 and whole_vectors and 2 <= -(-weight.shape[2] // stride) <= 5


def convolve_and_normalise(x, convolution, norm, num_outputs, mask=None):
    """GELU of the LayerNorm of a convolution, without gradients.

    Args:
        x (`torch.Tensor` of shape `(batch, time, channels)`): where `can_use_kernels` and `runs_directly` say so.
        convolution (`torch.nn.Conv1d`), norm (`torch.nn.LayerNorm`)
        num_outputs (`int`)
        mask (`torch.BoolTensor` of shape `(batch, num_outputs)`, *optional*): False where the result is to be zero.

    Returns:
        `torch.Tensor` of shape `(batch, num_outputs, outputs)`.
    """
    x, stride, weight = x.contiguous(), convolution.stride[0], _kept_weight(convolution.weight, convolution.stride[0])
    padding = (convolution.kernel_size[0] - stride) // 2
    one = _Sizes.of(x[:1], convolution.weight, stride, padding, num_outputs, mask)
    mask = None if mask is None else mask.float().contiguous()
    y = x.new_empty(len(x), num_outputs, one.outputs)
    for some, sizes in _in_parts(x, one):
        products = torch.bmm(_transform_input(sizes._replace(has_mask=False), x[some]), weight)
        part = None if mask is None else mask[some]
        _transform_output(sizes, products, convolution.bias, y[some], norm=norm, mask=part)
    return y


def feed_forward(x, expand, contract, mask=None):
    """Two convolutions of as many taps, each padded to keep the length, with GELU between, without gradients.

    Args:
        x (`torch.Tensor` of shape `(batch, time, channels)`): where `can_use_kernels` and `runs_directly` say so.
        expand, contract (`torch.nn.Conv1d`)
        mask (`torch.BoolTensor` of shape `(batch, time)`, *optional*): False where a step counts as zero.

    Returns:
        `torch.Tensor` of shape `(batch, time, channels)`.
    """
    x, weights = x.contiguous(), [_kept_weight(expand.weight), _kept_weight(contract.weight)]
    one = _Sizes.of(x[:1], expand.weight, 1, expand.padding[0], x.shape[1], mask)
    mask = None if mask is None else mask.float().contiguous()
    y = x.new_empty(*x.shape[:2], contract.weight.shape[0])
    for some, first in _in_parts(x, one):
        second = first._replace(channels=contract.weight.shape[1], outputs=contract.weight.shape[0])
        part = None if mask is None else mask[some]
        products = torch.bmm(_transform_input(first, x[some], part), weights[0])
        between = _new_planes(x, second.num_tiles, second.channels)
        arrays = _Arrays(products, expand.bias, part, between)
        run_tasks(_between_kernel, x.dtype, second.num_tasks, second, arrays)
        _transform_output(second._replace(has_mask=False), torch.bmm(between, weights[1]), contract.bias, y[some])
    return y


def _in_parts(x, sizes):
    """As many recordings at once as have TILES_AT_ONCE tiles: (which, their sizes)."""
    at_once = max(1, TILES_AT_ONCE // sizes.tiles)
    for start in range(0, len(x), at_once):
        yield slice(start, start + at_once), sizes._replace(batch=min(at_once, len(x) - start))


@torch.library.custom_op(operator_name(__name__, "convolve_tokens"), mutates_args=())
def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int, padding: int, num_outputs: int
) -> torch.Tensor:
    x, weights = x.contiguous(), _transform_weight(weight, stride).transpose(1, 2)
    one = _Sizes.of(x[:1], weight, stride, padding, num_outputs)
    y = x.new_empty(len(x), num_outputs, one.outputs)
    for some, sizes in _in_parts(x, one):
        _transform_output(sizes, torch.bmm(_transform_input(sizes, x[some]), weights), bias, y[some])
    return y


@_convolve.register_fake
def _(x, weight, bias, stride, padding, num_outputs):
    return x.new_empty(x.shape[0], num_outputs, weight.shape[0])


@torch.library.custom_op(operator_name(__name__, "convolve_tokens_backward"), mutates_args=())
def _convolve_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight and bias."""
    x, dy, weights = x.contiguous(), dy.contiguous(), _transform_weight(weight, stride)
    one = _Sizes.of(x[:1], weight, stride, padding, dy.shape[1])
    dx, d_bias = torch.empty_like(x), x.new_zeros(one.outputs)
    d_weights = torch.zeros_like(weights)
    for some, sizes in _in_parts(x, one):
        d_products = _new_planes(x, sizes.num_tiles, sizes.outputs)
        run_tasks(_output_adjoint, x.dtype, sizes.num_tasks, sizes, _Arrays(dy[some], None, None, d_products))
        d_inputs = torch.bmm(d_products, weights)
        run_tasks(_input_adjoint, x.dtype, sizes.num_tasks, sizes, _Arrays(d_inputs, None, None, dx[some]))
        d_weights.baddbmm_(d_products.transpose(1, 2), _transform_input(sizes, x[some]))
        # the products at the point 1 are those of all outputs of a tile, each once
        d_bias += d_products[1].sum(0)
    d_weight = torch.mm(_weight_map(one.taps, x).t(), d_weights.flatten(1))
    d_weight = d_weight.view(one.taps, one.outputs, stride, one.channels).permute(1, 3, 0, 2)
    d_weight = d_weight.reshape(one.outputs, one.channels, -1)[..., : weight.shape[2]].contiguous()
    return dx, d_weight, d_bias


@_convolve_backward.register_fake
def _(dy, x, weight, stride, padding):
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape[:1])


def _keep_for_backward(ctx, inputs, output):
    x, weight, _, ctx.stride, ctx.padding, _ = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, dy):
    return *_convolve_backward(dy, *ctx.saved_tensors, ctx.stride, ctx.padding), None, None, None


_convolve.register_autograd(_differentiate, setup_context=_keep_for_backward)


class _Sizes(namedtuple("_Sizes", "batch time channels outputs num_outputs taps stride padding tiles has_mask")):
    """`taps` are those over steps of `stride` samples; `tiles` those of one recording, of 7 - taps outputs each."""

    @classmethod
    def of(cls, x, weight, stride, padding, num_outputs, mask=None):
        (batch, time, channels), taps = x.shape, -(-weight.shape[2] // stride)
        tiles = -(-num_outputs // (POINTS + 1 - taps))
        outputs = weight.shape[0]
        return cls(batch, time, channels, outputs, num_outputs, taps, stride, padding, tiles, mask is not None)

    @property
    def num_tiles(self):
        return self.batch * self.tiles

    @property
    def num_tasks(self):
        return self.batch * -(-self.tiles // TILES)


_Arrays = namedtuple("_Arrays", "source bias mask target")


_WeightSizes = namedtuple("_WeightSizes", "channels outputs kernel taps stride")
_WeightArrays = namedtuple("_WeightArrays", "weight target")


def _weight_map(taps, like):
    """[points, taps]: the powers of each point, over the product of its distances from the others."""
    rows = [[scale * point**k for k in range(taps)] for point, scale in _SCALES]
    return like.new_tensor([*rows, [0.0] * (taps - 1) + [1.0]])


_SCALES = ((0, 1 / 4), (1, -1 / 6), (-1, -1 / 6), (2, 1 / 24), (-2, 1 / 24))


def _transform_weight(weight, stride=1):
    """[points, outputs, stride * channels]; so cheap that it is never kept, and never out of date."""
    outputs, channels, kernel = weight.shape
    result = weight.new_empty(POINTS, outputs, stride * channels)
    sizes = _WeightSizes(channels, outputs, kernel, -(-kernel // stride), stride)
    run_tasks(_weight_kernel, weight.dtype, outputs, sizes, _WeightArrays(weight.contiguous(), result))
    return result


def _kept_weight(weight, stride=1):
    """[points, stride * channels, outputs], kept from the last time. Whether it is still true is found by comparing
    every byte, for a version counter does not see a change of `weight.data`."""
    numbers, kept = weight.detach().contiguous().view(-1).numpy().view(np.int32), _kept_weights.get(weight)
    if kept is None or kept[0] != stride or not _are_equal(kept[1], numbers):
        kept = stride, numbers.copy(), _transform_weight(weight.detach(), stride).transpose(1, 2)
        _kept_weights[weight] = kept
    return kept[2]


_kept_weights = WeakIdKeyDictionary()


def _are_equal(left, right):
    if _compare_memory is None or left.size != right.size:
        return np.array_equal(left, right)
    return _compare_memory(left.ctypes.data, right.ctypes.data, left.nbytes) == 0


def _find_compare_memory():
    """C's memcmp, twice as fast as numpy, or None."""
    try:
        function = ctypes.CDLL(None).memcmp
    except (TypeError, OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    return function


_compare_memory = _find_compare_memory()


def _new_planes(like, rows, width):
    """[points, rows, width]"""
    return like.new_empty(POINTS, rows * width).view(POINTS, rows, width)


def _transform_input(sizes, x, mask=None):
    """[points, tiles of all recordings, stride * channels]"""
    inputs = _new_planes(x, sizes.num_tiles, sizes.stride * sizes.channels)
    run_tasks(_input_kernel, x.dtype, sizes.num_tasks, sizes, _Arrays(x, None, mask, inputs))
    return inputs


def _transform_output(sizes, products, bias, y=None, norm=None, mask=None):
    """The convolution's result; with a `norm`, its GELU, zero where `mask` says so."""
    if y is None:
        y = products.new_empty(sizes.batch, sizes.num_outputs, sizes.outputs)
    if norm is None:
        run_tasks(_output_kernel, y.dtype, sizes.num_tasks, sizes, _Arrays(products, bias, mask, y))
        return y
    epsilon = y.new_tensor([norm.eps])
    arrays = _NormArrays(products, bias, norm.weight, norm.bias, epsilon, mask, y)
    run_tasks(_normalising_output_kernel, y.dtype, sizes.num_tasks, sizes, arrays)
    return y


_NormArrays = namedtuple("_NormArrays", "source bias norm_weight norm_bias epsilon mask target")


# The kernels. Their arrays are flat. A task is TILES tiles of one recording.


@jitable
def _tiles_of_task(sizes, task):
    """(recording, first tile, the one behind the last)"""
    tasks = (sizes.tiles + TILES - 1) // TILES
    start = task % tasks * TILES
    return task // tasks, start, min(start + TILES, sizes.tiles)


def _weight_kernel(job):
    """A task is one output: its taps by their values at the points, over the points' distances from one another."""
    sizes, arrays = unpack(job, _WeightSizes, _WeightArrays)
    width = sizes.stride * sizes.channels
    plane, apart = sizes.outputs * width, scratch(arrays.weight, sizes.kernel * sizes.channels)
    output = next_task(job)
    while output >= 0:
        for tap in range(sizes.kernel):
            for channel in range(sizes.channels):
                source = (output * sizes.channels + channel) * sizes.kernel + tap
                apart[tap * sizes.channels + channel] = arrays.weight[source]
        for phase in range(sizes.stride):
            for first in range(0, sizes.channels, LANES):
                even_one, odd_one = fill(arrays.weight, 0.0), fill(arrays.weight, 0.0)
                even_two, odd_two, last = even_one, even_one, even_one
                here = output * width + phase * sizes.channels + first
                for k in range(sizes.taps):
                    tap, power = k * sizes.stride + phase, float(1 << k)
                    last = fill(arrays.weight, 0.0)
                    if tap < sizes.kernel:
                        last = read(apart, tap * sizes.channels + first)
                    if k == 0:
                        write(arrays.target, here, last * (1 / 4))
                    if k % 2 == 0:
                        even_one, even_two = even_one + last, even_two + power * last
                    else:
                        odd_one, odd_two = odd_one + last, odd_two + power * last
                write(arrays.target, here + plane, (even_one + odd_one) * (-1 / 6))
                write(arrays.target, here + 2 * plane, (even_one - odd_one) * (-1 / 6))
                write(arrays.target, here + 3 * plane, (even_two + odd_two) * (1 / 24))
                write(arrays.target, here + 4 * plane, (even_two - odd_two) * (1 / 24))
                write(arrays.target, here + 5 * plane, last)
        output = next_task(job)


def _input_kernel(job):
    sizes, arrays = unpack(job, _Sizes, _Arrays)
    per_tile, width = 7 - sizes.taps, sizes.stride * sizes.channels
    task = next_task(job)
    while task >= 0:
        sample, start, stop = _tiles_of_task(sizes, task)
        for tile in range(start, stop):
            row = sample * sizes.tiles + tile
            for phase in range(sizes.stride):
                step = per_tile * tile * sizes.stride + phase - sizes.padding
                for first in range(0, sizes.channels, LANES):
                    d0 = _read_step(sizes, arrays, sample, step, first)
                    d1 = _read_step(sizes, arrays, sample, step + sizes.stride, first)
                    d2 = _read_step(sizes, arrays, sample, step + 2 * sizes.stride, first)
                    d3 = _read_step(sizes, arrays, sample, step + 3 * sizes.stride, first)
                    d4 = _read_step(sizes, arrays, sample, step + 4 * sizes.stride, first)
                    d5 = _read_step(sizes, arrays, sample, step + 5 * sizes.stride, first)
                    here = row * width + phase * sizes.channels + first
                    _write_points(arrays.target, here, sizes.batch * sizes.tiles * width, d0, d1, d2, d3, d4, d5)
        task = next_task(job)


@jitable
def _read_step(sizes, arrays, sample, step, first):
    value = fill(arrays.source, 0.0)
    if _is_real(sizes, arrays, sample, step):
        value = read(arrays.source, (sample * sizes.time + step) * sizes.channels + first)
    return value


@jitable
def _is_real(sizes, arrays, sample, step):
    return 0 <= step < sizes.time and not (sizes.has_mask and arrays.mask[sample * sizes.time + step] == 0)


@jitable
def _write_points(target, here, plane, d0, d1, d2, d3, d4, d5):
    """Six steps through the products of (x - point) over all points but one."""
    write(target, here, 4.0 * d0 - 5.0 * d2 + d4)
    even, odd = d4 - 4.0 * d2, d3 - 4.0 * d1
    write(target, here + plane, even + odd)
    write(target, here + 2 * plane, even - odd)
    even, odd = d4 - d2, 2.0 * (d3 - d1)
    write(target, here + 3 * plane, even + odd)
    write(target, here + 4 * plane, even - odd)
    write(target, here + 5 * plane, 4.0 * d1 - 5.0 * d3 + d5)


@jitable
def _read_points(source, here, plane):
    """Products at the points as (at 0, even and odd at 1, even and odd at 2, at infinity)."""
    one, minus_one = read(source, here + plane), read(source, here + 2 * plane)
    two, minus_two = read(source, here + 3 * plane), read(source, here + 4 * plane)
    pairs = one + minus_one, one - minus_one, two + minus_two, two - minus_two
    return read(source, here), pairs[0], pairs[1], pairs[2], pairs[3], read(source, here + 5 * plane)


@jitable
def _output_of(products, i, per_tile):
    """The i-th output of a tile: powers of the points."""
    at_zero, even_one, odd_one, even_two, odd_two, at_infinity = products
    power = float(1 << i)
    if i % 2 == 0:
        value = even_one + power * even_two
    else:
        value = odd_one + power * odd_two
    if i == 0:
        value = value + at_zero
    if i == per_tile - 1:
        value = value + at_infinity
    return value


def _output_kernel(job):
    sizes, arrays = unpack(job, _Sizes, _Arrays)
    per_tile, width = 7 - sizes.taps, sizes.outputs
    plane = sizes.batch * sizes.tiles * width
    task = next_task(job)
    while task >= 0:
        sample, start, stop = _tiles_of_task(sizes, task)
        for tile in range(start, stop):
            for first in range(0, width, LANES):
                products = _read_points(arrays.source, (sample * sizes.tiles + tile) * width + first, plane)
                shift = read(arrays.bias, first)
                for i in range(min(per_tile, sizes.num_outputs - tile * per_tile)):
                    row = sample * sizes.num_outputs + tile * per_tile + i
                    write(arrays.target, row * width + first, shift + _output_of(products, i, per_tile))
        task = next_task(job)


def _normalising_output_kernel(job):
    """As `_output_kernel`, with LayerNorm, GELU and mask behind."""
    sizes, arrays = unpack(job, _Sizes, _NormArrays)
    per_tile, width = 7 - sizes.taps, sizes.outputs
    plane, rows = sizes.batch * sizes.tiles * width, scratch(arrays.source, 5 * width)
    task = next_task(job)
    while task >= 0:
        sample, start, stop = _tiles_of_task(sizes, task)
        for tile in range(start, stop):
            count = min(per_tile, sizes.num_outputs - tile * per_tile)
            for first in range(0, width, LANES):
                products = _read_points(arrays.source, (sample * sizes.tiles + tile) * width + first, plane)
                shift = read(arrays.bias, first)
                for i in range(count):
                    write(rows, i * width + first, shift + _output_of(products, i, per_tile))
            for i in range(count):
                row = sample * sizes.num_outputs + tile * per_tile + i
                if sizes.has_mask and arrays.mask[row] == 0:
                    for first in range(0, width, LANES):
                        write(arrays.target, row * width + first, fill(arrays.source, 0.0))
                    continue
                mean, scale = _moments(rows, i * width, width, arrays.epsilon[0])
                for first in range(0, width, LANES):
                    value = (read(rows, i * width + first) - mean) * scale
                    value = value * read(arrays.norm_weight, first) + read(arrays.norm_bias, first)
                    write(arrays.target, row * width + first, gelu(value))
        task = next_task(job)


@jitable
def _moments(rows, start, width, epsilon):
    """Mean of a row, and one over its standard deviation."""
    summed = fill(rows, 0.0)
    for first in range(0, width, LANES):
        summed = summed + read(rows, start + first)
    mean, squares = total(summed) / width, fill(rows, 0.0)
    for first in range(0, width, LANES):
        distance = read(rows, start + first) - mean
        squares = squares + distance * distance
    return mean, 1.0 / math.sqrt(total(squares) / width + epsilon)


def _between_kernel(job):
    """From the products of one convolution to the inputs of the next, which has as many taps: bias, GELU, mask."""
    sizes, arrays = unpack(job, _Sizes, _Arrays)
    per_tile, width = 7 - sizes.taps, sizes.channels
    plane, rows = sizes.batch * sizes.tiles * width, scratch(arrays.source, (TILES * 5 + 6) * LANES)
    task = next_task(job)
    while task >= 0:
        sample, start, stop = _tiles_of_task(sizes, task)
        # the first step that is read, and how many are
        begin = start * per_tile - sizes.padding
        count = (stop - start) * per_tile + 6 - per_tile
        for first in range(0, width, LANES):
            shift = read(arrays.bias, first)
            for i in range(count):
                if begin + i < 0 or begin + i >= sizes.time:
                    write(rows, i * LANES, fill(arrays.source, 0.0))
            first_tile, last_tile = max(begin, 0) // per_tile, min(begin + count - 1, sizes.time - 1) // per_tile
            for tile in range(first_tile, last_tile + 1):
                products = _read_points(arrays.source, (sample * sizes.tiles + tile) * width + first, plane)
                for i in range(per_tile):
                    step = tile * per_tile + i
                    if begin <= step < begin + count and step < sizes.time:
                        value = gelu(shift + _output_of(products, i, per_tile))
                        if not _is_real(sizes, arrays, sample, step):
                            value = fill(arrays.source, 0.0)
                        write(rows, (step - begin) * LANES, value)
            for tile in range(start, stop):
                at = (tile - start) * per_tile * LANES
                d0, d1, d2 = read(rows, at), read(rows, at + LANES), read(rows, at + 2 * LANES)
                d3, d4, d5 = read(rows, at + 3 * LANES), read(rows, at + 4 * LANES), read(rows, at + 5 * LANES)
                _write_points(
                    arrays.target, (sample * sizes.tiles + tile) * width + first, plane, d0, d1, d2, d3, d4, d5
                )
        task = next_task(job)


def _output_adjoint(job):
    """Gradients of outputs to gradients of products."""
    sizes, arrays = unpack(job, _Sizes, _Arrays)
    per_tile, width, target = 7 - sizes.taps, sizes.outputs, arrays.target
    plane = sizes.batch * sizes.tiles * width
    task = next_task(job)
    while task >= 0:
        sample, start, stop = _tiles_of_task(sizes, task)
        for tile in range(start, stop):
            for first in range(0, width, LANES):
                zero = fill(arrays.source, 0.0)
                at_zero, even_one, odd_one, even_two, odd_two, at_infinity = zero, zero, zero, zero, zero, zero
                for i in range(min(per_tile, sizes.num_outputs - tile * per_tile)):
                    row = sample * sizes.num_outputs + tile * per_tile + i
                    value, power = read(arrays.source, row * width + first), float(1 << i)
                    if i == 0:
                        at_zero = value
                    if i == per_tile - 1:
                        at_infinity = value
                    if i % 2 == 0:
                        even_one, even_two = even_one + value, even_two + power * value
                    else:
                        odd_one, odd_two = odd_one + value, odd_two + power * value
                here = (sample * sizes.tiles + tile) * width + first
                write(target, here, at_zero)
                write(target, here + plane, even_one + odd_one)
                write(target, here + 2 * plane, even_one - odd_one)
                write(target, here + 3 * plane, even_two + odd_two)
                write(target, here + 4 * plane, even_two - odd_two)
                write(target, here + 5 * plane, at_infinity)
        task = next_task(job)


def _input_adjoint(job):
    """Gradients of transformed inputs to gradients of steps; those that several tiles read are summed here."""
    sizes, arrays = unpack(job, _Sizes, _Arrays)
    per_tile, width, stride, source = 7 - sizes.taps, sizes.stride * sizes.channels, sizes.stride, arrays.source
    plane, rows = sizes.batch * sizes.tiles * width, scratch(arrays.source, (TILES * 5 + 6) * LANES)
    task = next_task(job)
    while task >= 0:
        sample, start, stop = _tiles_of_task(sizes, task)
        begin, end = start * per_tile, stop * per_tile
        if stop == sizes.tiles:  # and what the last tiles read beyond
            end = max(begin, (sizes.time - 1 + sizes.padding) // stride + 1)
        for phase in range(stride):
            for first in range(0, sizes.channels, LANES):
                for i in range(min(end - begin, TILES * 5 + 6)):
                    write(rows, i * LANES, fill(source, 0.0))
                for tile in range(max(0, start - 5), stop):
                    here = (sample * sizes.tiles + tile) * width + phase * sizes.channels + first
                    at = tile * per_tile - begin
                    if at + 5 < 0:
                        continue
                    zero, infinity = read(source, here), read(source, here + 5 * plane)
                    one, minus_one = read(source, here + plane), read(source, here + 2 * plane)
                    two, minus_two = read(source, here + 3 * plane), read(source, here + 4 * plane)
                    even_one, odd_one = one + minus_one, one - minus_one
                    even_two, odd_two = two + minus_two, 2.0 * (two - minus_two)
                    _add_row(rows, at, end - begin, 4.0 * zero)
                    _add_row(rows, at + 1, end - begin, 4.0 * infinity - 4.0 * odd_one - odd_two)
                    _add_row(rows, at + 2, end - begin, 0.0 - 5.0 * zero - 4.0 * even_one - even_two)
                    _add_row(rows, at + 3, end - begin, odd_one + odd_two - 5.0 * infinity)
                    _add_row(rows, at + 4, end - begin, zero + even_one + even_two)
                    _add_row(rows, at + 5, end - begin, infinity)
                for i in range(end - begin):
                    step = (begin + i) * stride + phase - sizes.padding
                    if 0 <= step < sizes.time:
                        value = fill(source, 0.0)
                        if i < TILES * 5 + 6:
                            value = read(rows, i * LANES)
                        write(arrays.target, (sample * sizes.time + step) * sizes.channels + first, value)
        task = next_task(job)


@jitable
def _add_row(rows, i, count, value):
    if 0 <= i < count:
        write(rows, i * LANES, read(rows, i * LANES) + value)
