"""The selective scan on the CPU, compiled by numba: one pass over time forwards, one backwards.

A task is one sample over a few vectors of LANES channels, in one direction after the other. It goes along time span by
span, in each with one vector after the other, whose states lie in the nearest cache. Direction 1 counts time
downwards: nothing is flipped. The backward pass starts from states that the forward pass left every SPAN steps and
computes the others again. Tasks share no output, and what several of them contribute to is summed afterwards in a
fixed order: the result does not depend on the number of threads.
"""

import math
from collections import namedtuple

import torch

from .numba_vectors import (
    HAS_NUMBA,
    LANES,
    LOG2_E,
    as_rows,
    fill,
    jitable,
    kernel_dtype,
    next_task,
    operator_name,
    pad_channels,
    power_of_two,
    prefetch,
    read,
    run_tasks,
    runs_directly,
    scratch,
    shall_stream,
    silu,
    softplus,
    total,
    unpack,
    write,
    write_output,
)

LOG_2 = math.log(2)
# steps between the states that the forward pass keeps for the backward pass
SPAN = 32
# how many steps before they are read rows are asked for
AHEAD = 2 * SPAN
# vectors of channels in one task of the backward pass: their gradients of B and C are added up before they are written
VECTORS = 4
# and at the most in one of the forward pass, which holds their states in the nearest cache
MOST_VECTORS = 8


def why_not_numba(x, A):
    """Why these kernels cannot scan x with A, or None."""
    if x.device.type != "cpu":
        return f"it runs on the CPU, and x is on {x.device}"
    if not HAS_NUMBA:
        return "numba is not installed (pip install numba)"
    return None


def selective_scan_numba(
    x, dt, A, B, C, D=None, dt_weight=None, dt_bias=None, dt_softplus=False, gate=None, mask=None
):
    """Arguments as in [`~selective_scan.selective_scan`], on the CPU."""
    dtype = kernel_dtype(x)
    tensors = (x, dt, A, B, C, D, dt_weight, dt_bias, gate)
    learns = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    scan = _scan_directly if runs_directly(*tensors, mask) else _scan
    return scan(*tensors, dt_softplus, mask, learns)[0].to(x.dtype)


# custom operators: torch.compile takes them as they are and looks no further


@torch.library.custom_op(operator_name(__name__, "selective_scan"), mutates_args=())
def _scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_weight: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    dt_softplus: bool,
    mask: torch.Tensor | None,
    keep_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and the state at the start of every span, which the backward pass needs (empty without keep_states)."""
    return _scan_directly(x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask, keep_states)


def _scan_directly(x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask, keep_states):
    inputs = _Inputs(x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask)
    *outer, _ = x.shape if gate is None else x.shape[1:]
    y = x.new_empty(*outer, inputs.channels)
    saved = x.new_empty(_shape_of_saved(x, A, keep_states))
    # as much of a row at once as leaves every thread a task
    vectors = max(1, min(MOST_VECTORS, inputs.batch * inputs.channels // LANES // torch.get_num_threads()))
    inputs.run(_forward, _ForwardArrays, vectors, shall_stream(y), y=y, saved=saved if keep_states else None)
    return y[..., : x.shape[-1]].contiguous(), saved


@_scan.register_fake
def _(x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask, keep_states):
    return x.new_empty(x.shape if gate is None else x.shape[1:]), x.new_empty(_shape_of_saved(x, A, keep_states))


@torch.library.custom_op(operator_name(__name__, "selective_scan_backward"), mutates_args=())
def _scan_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_weight: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    dt_softplus: bool,
    mask: torch.Tensor | None,
    saved: torch.Tensor,
) -> list[torch.Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_weight, dt_bias and gate, in the shapes of [`selective_scan`]'s arguments."""
    inputs = _Inputs(x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask)
    directions, batch, time, _ = x.shape
    channels, d_state = inputs.channels, A.shape[2]
    dx, d_dt = (x.new_empty(directions, batch, time, channels) for _ in range(2))
    d_gate = x.new_empty(batch, time, channels)
    # what each task adds to gradients that tasks have in common, summed below in a fixed order
    dA = x.new_empty(directions, batch, d_state, channels)
    dD, d_bias = x.new_empty(2, directions, batch, channels)
    dB, dC = x.new_empty(2, -(-channels // (LANES * VECTORS)), directions, batch, time, d_state)
    dy = pad_channels(dy).contiguous()
    outputs = {"dx": dx, "d_dt": d_dt, "dA": dA, "dB": dB, "dC": dC, "dD": dD, "d_bias": d_bias, "d_gate": d_gate}
    inputs.run(_backward, _BackwardArrays, VECTORS, shall_stream(dx), saved=saved, dy=dy, **outputs)
    dA, dD, d_bias = (gradient.sum(1) for gradient in (dA, dD, d_bias))
    dx, d_dt, dA, dD, d_bias, d_gate = (
        gradient[..., : x.shape[-1]].contiguous() for gradient in (dx, d_dt, dA, dD, d_bias, d_gate)
    )
    d_weight = x.new_empty(0)
    if dt_weight is not None:
        d_steps, dt = d_dt.flatten(1, 2), dt.flatten(1, 2)
        d_dt = torch.bmm(d_steps, dt_weight.transpose(1, 2)).unflatten(1, x.shape[1:3])
        d_weight = torch.bmm(dt.transpose(1, 2), d_steps)
    return [dx, d_dt, dA.transpose(1, 2).contiguous(), dB.sum(0), dC.sum(0), dD, d_weight, d_bias, d_gate]


@_scan_backward.register_fake
def _(dy, x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask, saved):
    per_channel, weight = A.shape[:2], (0,) if dt_weight is None else dt_weight.shape
    shapes = (x.shape, dt.shape, A.shape, B.shape, C.shape, per_channel, weight, per_channel, x.shape[1:])
    return [x.new_empty(shape) for shape in shapes]


def _keep_for_backward(ctx, inputs, output):
    *tensors, ctx.dt_softplus, mask, _ = inputs
    ctx.save_for_backward(*tensors, mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dy, _):
    *tensors, mask, saved = ctx.saved_tensors
    gradients = _scan_backward(dy, *tensors, ctx.dt_softplus, mask, saved)
    wanted = zip(gradients, tensors, strict=True)
    return *(None if tensor is None else gradient for gradient, tensor in wanted), None, None, None


_scan.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _shape_of_saved(x, A, keep_states):
    directions, batch, time, channels = x.shape
    spans = -(-time // SPAN) if keep_states else 0
    return directions, batch, spans, A.shape[2], -(-channels // LANES) * LANES


class _Inputs:
    """The scan's arguments as the kernels want them.

    Zeros fill up the last vector of channels and stand for what is absent; A becomes [directions, d_state, channels].
    B, C, gate and a dt that wants its weight may be slices of a wider tensor: they are read where they are.
    """

    def __init__(self, x, dt, A, B, C, D, dt_weight, dt_bias, gate, dt_softplus, mask):
        absent, rank = x.new_zeros(A.shape[0], A.shape[1]), 0
        dense = {"x": x, "A": A.transpose(1, 2), "D": absent if D is None else D}
        dense |= {"dt_bias": absent if dt_bias is None else dt_bias}
        if dt_weight is None:
            dense["dt"] = dt
        else:
            dense["dt_weight"], dt, rank = dt_weight, as_rows(dt), dt.shape[-1]
        dense = {name: pad_channels(tensor).contiguous() for name, tensor in dense.items()}
        gate = None if gate is None else pad_channels(gate)
        B, C, gate = (None if tensor is None else as_rows(tensor) for tensor in (B, C, gate))
        mask = None if mask is None else mask.to(x.dtype).contiguous()
        self.tensors = {"dt": dt, "dt_weight": None} | dense | {"B": B, "C": C, "gate": gate, "mask": mask}
        directions, self.batch, time, self.channels = dense["x"].shape
        rows = [rank, *(0 if tensor is None else tensor.stride(-2) for tensor in (dt, B, C, gate))]
        flags = [dt_softplus, gate is not None, mask is not None]
        self.sizes = [directions, self.batch, time, self.channels, A.shape[2], *rows, *flags]

    def run(self, kernel, arrays, vectors, streams, **outputs):
        num_tasks = self.batch * -(-self.channels // (LANES * vectors))
        sizes = _Sizes(*self.sizes, vectors=vectors, keeps_states=outputs["saved"] is not None, streams=streams)
        run_tasks(kernel, self.tensors["x"].dtype, num_tasks, sizes, arrays(**self.tensors, **outputs))


_Sizes = namedtuple(
    "_Sizes",
    "directions batch time channels d_state rank dt_row B_row C_row gate_row dt_softplus has_gate has_mask "
    "vectors keeps_states streams",
)
_INPUTS = "x dt dt_weight A D dt_bias B C gate mask"
_ForwardArrays = namedtuple("_ForwardArrays", f"{_INPUTS} y saved")
_BackwardArrays = namedtuple("_BackwardArrays", f"{_INPUTS} saved dy dx d_dt dA dB dC dD d_bias d_gate")

# The kernels. Their arrays are flat. A span lies at a place (direction, sample, first channel, first step, number of
# steps), whose steps are counted from where the scan starts.


def _forward(job):
    sizes, arrays = unpack(job, _Sizes, _ForwardArrays)
    batch, time, channels, d_state = sizes.batch, sizes.time, sizes.channels, sizes.d_state
    x, saved = arrays.x, arrays.saved
    per_vector, per_task = d_state * LANES, sizes.vectors * LANES
    states, rates = scratch(x, sizes.vectors * per_vector), scratch(x, sizes.vectors * per_vector)
    steps, drives, outputs = scratch(x, SPAN * LANES), scratch(x, SPAN * LANES), scratch(x, SPAN * LANES)
    groups, spans = (channels + per_task - 1) // per_task, (time + SPAN - 1) // SPAN
    task = next_task(job)
    while task >= 0:
        sample, group = task // groups, task % groups
        firsts = range(group * per_task, min((group + 1) * per_task, channels), LANES)
        for direction in range(sizes.directions):
            for first in firsts:
                _begin(sizes, arrays, direction, first, (first - firsts.start) * d_state, rates, states)
            for span in range(spans):
                for first in firsts:
                    own = (first - firsts.start) * d_state
                    own_states, own_rates = states[own : own + per_vector], rates[own : own + per_vector]
                    if sizes.keeps_states:
                        for s in range(d_state):
                            at = (((direction * batch + sample) * spans + span) * d_state + s) * channels + first
                            write_output(saved, at, read(own_states, s * LANES), sizes.streams)
                    place = direction, sample, first, span * SPAN, min(SPAN, time - span * SPAN)
                    _read_steps(sizes, arrays, place, steps, drives, outputs)
                    _walk(sizes, arrays, place, own_rates, own_states, steps, drives, outputs)
                    _write_outputs(sizes, arrays, place, outputs)
        task = next_task(job)


@jitable
def _begin(sizes, arrays, direction, first, own, rates, states):
    """Puts at `own` the rates of a vector of channels, as exponents of two; zeros for states or their gradients."""
    for s in range(sizes.d_state):
        rate = read(arrays.A, (direction * sizes.d_state + s) * sizes.channels + first)
        write(rates, own + s * LANES, rate * LOG2_E)
        write(states, own + s * LANES, fill(arrays.A, 0.0))


@jitable
def _rows(sizes, direction, sample, i):
    """Where the step lies that is i steps from where the scan starts: in tensors of both directions, of one."""
    t = sizes.time - 1 - i if direction == 1 else i
    return (direction * sizes.batch + sample) * sizes.time + t, sample * sizes.time + t


@jitable
def _read_steps(sizes, arrays, place, steps, drives, outputs):
    (direction, sample, first, start, count), channels = place, sizes.channels
    x, y, gate = arrays.x, arrays.y, arrays.gate
    skip = read(arrays.D, direction * channels + first)
    ahead = AHEAD if direction == 0 else -AHEAD
    for j in range(count):
        row, shared = _rows(sizes, direction, sample, start + j)
        here = row * channels + first
        prefetch(x, here + ahead * channels)
        if sizes.has_gate or not sizes.streams:
            prefetch(y, (shared if sizes.has_gate else row) * channels + first + ahead * channels)
        if sizes.has_gate and direction == sizes.directions - 1:
            prefetch(gate, (shared + ahead) * sizes.gate_row + first)
        signal, step = read(x, here), _step(sizes, arrays, direction, first, row, ahead)
        if sizes.dt_softplus:
            step, _ = softplus(step)
        write(steps, j * LANES, step)
        write(drives, j * LANES, step * signal)
        write(outputs, j * LANES, skip * signal)


@jitable
def _step(sizes, arrays, direction, first, row, ahead):
    """The step size with its bias; where it comes without its weight, those `ahead` steps from here are prefetched."""
    dt, dt_weight, channels = arrays.dt, arrays.dt_weight, sizes.channels
    step = read(arrays.dt_bias, direction * channels + first)
    for r in range(sizes.rank):
        step = step + dt[row * sizes.dt_row + r] * read(dt_weight, (direction * sizes.rank + r) * channels + first)
    if sizes.rank == 0:
        prefetch(dt, (row + ahead) * channels + first)
        step = step + read(dt, row * channels + first)
    return step


@jitable
def _walk(sizes, arrays, place, rates, states, steps, drives, outputs):
    (direction, sample, _, start, count), (B, C) = place, (arrays.B, arrays.C)
    for j in range(count):
        row, shared = _rows(sizes, direction, sample, start + j)
        if sizes.has_mask and arrays.mask[shared] == 0:
            continue
        step, drive, output = read(steps, j * LANES), read(drives, j * LANES), read(outputs, j * LANES)
        for s in range(sizes.d_state):
            h = read(states, s * LANES)
            scale, excess = power_of_two(step * read(rates, s * LANES))
            h = scale * (h + excess * h) + B[row * sizes.B_row + s] * drive
            write(states, s * LANES, h)
            output = output + C[row * sizes.C_row + s] * h
        write(outputs, j * LANES, output)


@jitable
def _write_outputs(sizes, arrays, place, outputs):
    (direction, sample, first, start, count), y = place, arrays.y
    for j in range(count):
        row, shared = _rows(sizes, direction, sample, start + j)
        here, output = row * sizes.channels + first, read(outputs, j * LANES)
        if sizes.has_mask and arrays.mask[shared] == 0:
            output = fill(y, 0.0)
        if sizes.has_gate:
            here = shared * sizes.channels + first
            if direction > 0:
                output = output + read(y, here)
            if direction == sizes.directions - 1:
                gated, _ = silu(read(arrays.gate, shared * sizes.gate_row + first))
                output = output * gated
        # before a gate, the second direction reads again what the first has written
        write_output(y, here, output, sizes.streams and not sizes.has_gate)


def _backward(job):
    sizes, arrays = unpack(job, _Sizes, _BackwardArrays)
    batch, time, channels, d_state = sizes.batch, sizes.time, sizes.channels, sizes.d_state
    x, saved, dA = arrays.x, arrays.saved, arrays.dA
    per_vector, per_task = d_state * LANES, sizes.vectors * LANES
    states, d_rates = scratch(x, per_vector), scratch(x, per_vector)
    rates, d_states = scratch(x, sizes.vectors * per_vector), scratch(x, sizes.vectors * per_vector)
    signals, steps, slopes = scratch(x, SPAN * LANES), scratch(x, SPAN * LANES), scratch(x, SPAN * LANES)
    outputs, d_outputs = scratch(x, SPAN * LANES), scratch(x, SPAN * LANES)
    inputs = signals, steps, slopes, outputs, d_outputs
    walked = scratch(x, SPAN * per_vector), scratch(x, SPAN * per_vector), scratch(x, SPAN * per_vector)
    groups, spans = (channels + per_task - 1) // per_task, (time + SPAN - 1) // SPAN
    task = next_task(job)
    while task >= 0:
        sample, group = task // groups, task % groups
        firsts = range(group * per_task, min((group + 1) * per_task, channels), LANES)
        for direction in range(sizes.directions):
            plane = direction * batch + sample
            for first in firsts:
                _begin(sizes, arrays, direction, first, (first - firsts.start) * d_state, rates, d_states)
                for s in range(d_state):
                    write(dA, (plane * d_state + s) * channels + first, fill(x, 0.0))
                write(arrays.d_bias, plane * channels + first, fill(x, 0.0))
                write(arrays.dD, plane * channels + first, fill(x, 0.0))
            for span in range(spans - 1, -1, -1):
                for first in firsts:
                    own = (first - firsts.start) * d_state
                    own_rates, own_d_states = rates[own : own + per_vector], d_states[own : own + per_vector]
                    for s in range(d_state):
                        at = ((plane * spans + span) * d_state + s) * channels + first
                        write(states, s * LANES, read(saved, at))
                        write(d_rates, s * LANES, fill(x, 0.0))
                    place = direction, sample, first, span * SPAN, min(SPAN, time - span * SPAN)
                    _read_steps_and_gradients(sizes, arrays, place, inputs)
                    _walk_again(sizes, arrays, place, own_rates, states, inputs, walked)
                    if sizes.has_gate:
                        _write_gradient_of_gate(sizes, arrays, place, outputs)
                    d_bias, dD = _walk_back(sizes, arrays, place, own_rates, inputs, walked, own_d_states, d_rates)
                    # sums of the spans' sums lose fewer digits over long recordings
                    at = plane * channels + first
                    write(arrays.d_bias, at, read(arrays.d_bias, at) + d_bias)
                    write(arrays.dD, at, read(arrays.dD, at) + dD)
                    for s in range(d_state):
                        at = (plane * d_state + s) * channels + first
                        write(dA, at, read(dA, at) + read(d_rates, s * LANES))
        task = next_task(job)


@jitable
def _read_steps_and_gradients(sizes, arrays, place, inputs):
    (direction, sample, first, start, count), channels = place, sizes.channels
    signals, steps, slopes, outputs, d_outputs = inputs
    x, gate, dy = arrays.x, arrays.gate, arrays.dy
    skip = read(arrays.D, direction * channels + first)
    ahead = AHEAD if direction == 1 else -AHEAD  # the spans are taken from the end of the scan
    for j in range(count):
        row, shared = _rows(sizes, direction, sample, start + j)
        here = row * channels + first
        prefetch(x, here + ahead * channels)
        if not sizes.streams:
            for array in (arrays.dx, arrays.d_dt):
                prefetch(array, here + ahead * channels)
        signal, step, slope = read(x, here), _step(sizes, arrays, direction, first, row, ahead), fill(x, 1.0)
        if sizes.dt_softplus:
            step, slope = softplus(step)
        if sizes.has_gate:
            prefetch(gate, (shared + ahead) * sizes.gate_row + first)
            for array in (dy, arrays.d_gate):
                prefetch(array, (shared + ahead) * channels + first)
            gated, _ = silu(read(gate, shared * sizes.gate_row + first))
            d_output = read(dy, shared * channels + first) * gated
        else:
            prefetch(dy, here + ahead * channels)
            d_output = read(dy, here)
        write(signals, j * LANES, signal)
        write(steps, j * LANES, step)
        write(slopes, j * LANES, slope)
        write(outputs, j * LANES, skip * signal)
        write(d_outputs, j * LANES, d_output)


@jitable
def _walk_again(sizes, arrays, place, rates, states, inputs, walked):
    """As the forward pass did, from the state that it left; keeps each state as it was before the step wrote to it,
    and its decay."""
    (direction, sample, _, start, count), (signals, steps, _, outputs, _) = place, inputs
    (decayed, scales, excesses), (B, C) = walked, (arrays.B, arrays.C)
    for j in range(count):
        row, shared = _rows(sizes, direction, sample, start + j)
        if sizes.has_mask and arrays.mask[shared] == 0:
            continue
        step, output = read(steps, j * LANES), read(outputs, j * LANES)
        drive = step * read(signals, j * LANES)
        for s in range(sizes.d_state):
            h, at = read(states, s * LANES), (j * sizes.d_state + s) * LANES
            scale, excess = power_of_two(step * read(rates, s * LANES))
            h = scale * (h + excess * h)
            write(scales, at, scale)
            write(excesses, at, excess)
            write(decayed, at, h)
            h = h + B[row * sizes.B_row + s] * drive
            write(states, s * LANES, h)
            output = output + C[row * sizes.C_row + s] * h
        write(outputs, j * LANES, output)


@jitable
def _write_gradient_of_gate(sizes, arrays, place, outputs):
    """The last direction knows the sum of the outputs; the first leaves its own where the gradient will be."""
    (direction, sample, first, start, count), d_gate = place, arrays.d_gate
    for j in range(count):
        _, shared = _rows(sizes, direction, sample, start + j)
        here, output = shared * sizes.channels + first, read(outputs, j * LANES)
        if sizes.has_mask and arrays.mask[shared] == 0:
            output = fill(d_gate, 0.0)
        if direction > 0:
            output = output + read(d_gate, here)
        if direction == sizes.directions - 1:
            _, slope = silu(read(arrays.gate, shared * sizes.gate_row + first))
            output = output * slope * read(arrays.dy, here)
        write(d_gate, here, output)


@jitable
def _walk_back(sizes, arrays, place, rates, inputs, walked, d_states, d_rates):
    """Writes gradients; `d_states` is that of the state before the step, as far as later steps know it.

    Returns the span's share of the gradients of dt_bias and D.
    """
    (direction, sample, first, start, count), d_state = place, sizes.d_state
    (signals, steps, slopes, _, d_outputs), (decayed, scales, excesses) = inputs, walked
    x, B, C, dx, d_dt, dB, dC = arrays.x, arrays.B, arrays.C, arrays.dx, arrays.d_dt, arrays.dB, arrays.dC
    group, skip = first // (sizes.vectors * LANES), read(arrays.D, direction * sizes.channels + first)
    d_bias, d_skip = fill(x, 0.0), fill(x, 0.0)
    for j in range(count - 1, -1, -1):
        row, shared = _rows(sizes, direction, sample, start + j)
        here = row * sizes.channels + first
        part = (group * sizes.directions * sizes.batch * sizes.time + row) * d_state
        if sizes.has_mask and arrays.mask[shared] == 0:
            write(dx, here, fill(x, 0.0))
            write(d_dt, here, fill(x, 0.0))
            for s in range(sizes.d_state):
                dB[part + s] = 0
                dC[part + s] = 0
            continue
        step, signal, d_output = read(steps, j * LANES), read(signals, j * LANES), read(d_outputs, j * LANES)
        drive = step * signal
        d_step, d_drive, through_drive = fill(x, 0.0), fill(x, 0.0), total(d_output * drive)
        for s in range(sizes.d_state):
            b, at = B[row * sizes.B_row + s], (j * d_state + s) * LANES
            h, excess = read(decayed, at), read(excesses, at)
            d_h = read(d_states, s * LANES) + C[row * sizes.C_row + s] * d_output
            d_exponent = d_h * h
            d_step = d_step + d_exponent * read(rates, s * LANES)
            d_drive = d_drive + b * d_h
            write(d_rates, s * LANES, read(d_rates, s * LANES) + d_exponent * step)
            write(d_states, s * LANES, read(scales, at) * (d_h + excess * d_h))
            d_b, d_c = total(d_h * drive), total(d_output * h) + b * through_drive
            if first > group * sizes.vectors * LANES:  # what the task's vectors of channels before this one wrote
                d_b += dB[part + s]
                d_c += dC[part + s]
            dB[part + s] = d_b
            dC[part + s] = d_c
        d_step = (d_step * LOG_2 + d_drive * signal) * read(slopes, j * LANES)
        write_output(dx, here, d_drive * step + skip * d_output, sizes.streams)
        write_output(d_dt, here, d_step, sizes.streams)
        d_bias, d_skip = d_bias + d_step, d_skip + d_output * signal
    return d_bias, d_skip
