"""The selective scan on the CPU, compiled by numba: one pass over time forwards, one backwards.

A task is one sample over a few channels, in one direction after the other. It walks along time with LANES channels at
once in vector registers and their states in the nearest cache. Direction 1 counts time downwards: nothing is flipped.
The backward pass starts from states that the forward pass left every SPAN steps and computes the others again. Tasks
share no output, and what several of them contribute to is summed afterwards in a fixed order: the result does not
depend on the number of threads.
"""

import math

import torch
from torch.nn import functional as F

from .numba_vectors import (
    HAS_NUMBA,
    LANES,
    LOG2_E,
    as_rows,
    fill,
    next_task,
    power_of_two,
    prefetch,
    read,
    run_tasks,
    scratch,
    silu,
    softplus,
    total,
    unpack,
    write,
)

LOG_2 = math.log(2)
# steps between the states that the forward pass keeps for the backward pass
SPAN = 32
# vectors of channels in one task of the backward pass: their gradients of B and C are added up before they are written
VECTORS = 2


def why_not_numba(x, A):
    """Why these kernels cannot scan x with A, or None."""
    if x.device.type != "cpu":
        return f"it runs on the CPU, and x is on {x.device}"
    if not HAS_NUMBA:
        return "numba is not installed (pip install numba)"
    return None


def selective_scan_numba(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, gate=None, mask=None):
    """Arguments as in [`~selective_scan.selective_scan`], on the CPU."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in (x, dt, A, B, C, D, dt_bias, gate)]
    learns = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return _scan(*tensors, dt_softplus, mask, learns)[0].to(x.dtype)


# custom operators: torch.compile takes them as they are and looks no further


@torch.library.custom_op("hf_ecgmamba::selective_scan", mutates_args=())
def _scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    dt_softplus: bool,
    mask: torch.Tensor | None,
    keep_states: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and the state at the start of every span, which the backward pass needs (empty without keep_states)."""
    inputs = _Inputs(x, dt, A, B, C, D, dt_bias, gate, dt_softplus, mask)
    *outer, _ = x.shape if gate is None else x.shape[1:]
    y = x.new_empty(*outer, inputs.channels)
    saved = x.new_empty(_shape_of_saved(x, A, keep_states))
    inputs.run(_forward, LANES, [y, saved if keep_states else None])
    return y[..., : x.shape[-1]].contiguous(), saved


@_scan.register_fake
def _(x, dt, A, B, C, D, dt_bias, gate, dt_softplus, mask, keep_states):
    return x.new_empty(x.shape if gate is None else x.shape[1:]), x.new_empty(_shape_of_saved(x, A, keep_states))


@torch.library.custom_op("hf_ecgmamba::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    dt_softplus: bool,
    mask: torch.Tensor | None,
    saved: torch.Tensor,
) -> list[torch.Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_bias and gate, in the shapes of [`selective_scan`]'s arguments."""
    inputs = _Inputs(x, dt, A, B, C, D, dt_bias, gate, dt_softplus, mask)
    directions, batch, time, _ = x.shape
    channels, d_state, per_task = inputs.channels, A.shape[2], LANES * VECTORS
    dx, d_dt = (x.new_empty(directions, batch, time, channels) for _ in range(2))
    d_gate = x.new_empty(batch, time, channels)
    # what each task adds to gradients that tasks have in common, summed below in a fixed order
    dA = x.new_empty(directions, batch, d_state, channels)
    dD, d_bias = x.new_empty(2, directions, batch, channels)
    dB, dC = x.new_empty(2, -(-channels // per_task), directions, batch, time, d_state)
    dy = F.pad(dy, (0, channels - dy.shape[-1])).contiguous()
    inputs.run(_backward, per_task, [saved, dy, dx, d_dt, dA, dB, dC, dD, d_bias, d_gate])
    dA, dD, d_bias = (gradient.sum(1) for gradient in (dA, dD, d_bias))
    dx, d_dt, dA, dD, d_bias, d_gate = (
        gradient[..., : x.shape[-1]].contiguous() for gradient in (dx, d_dt, dA, dD, d_bias, d_gate)
    )
    return [dx, d_dt, dA.transpose(1, 2).contiguous(), dB.sum(0), dC.sum(0), dD, d_bias, d_gate]


@_scan_backward.register_fake
def _(dy, x, dt, A, B, C, D, dt_bias, gate, dt_softplus, mask, saved):
    per_channel = A.shape[:2]
    shapes = (x.shape, x.shape, A.shape, B.shape, C.shape, per_channel, per_channel, x.shape[1:])
    return [x.new_empty(shape) for shape in shapes]


def _keep_for_backward(ctx, inputs, output):
    x, dt, A, B, C, D, dt_bias, gate, ctx.dt_softplus, mask, _ = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, gate, mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dy, _):
    x, dt, A, B, C, D, dt_bias, gate, mask, saved = ctx.saved_tensors
    gradients = _scan_backward(dy, x, dt, A, B, C, D, dt_bias, gate, ctx.dt_softplus, mask, saved)
    optional = zip(gradients[5:], (D, dt_bias, gate), strict=True)
    optional = (None if tensor is None else gradient for gradient, tensor in optional)
    return *gradients[:5], *optional, None, None, None


_scan.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _shape_of_saved(x, A, keep_states):
    directions, batch, time, channels = x.shape
    spans = -(-time // SPAN) if keep_states else 0
    return directions, batch, spans, A.shape[2], -(-channels // LANES) * LANES


class _Inputs:
    """The scan's arguments as the kernels want them.

    Zeros fill up the last vector of channels and stand for what is absent; A becomes [directions, d_state, channels].
    B, C and gate may be slices of a wider tensor: they are read where they are.
    """

    def __init__(self, x, dt, A, B, C, D, dt_bias, gate, dt_softplus, mask):
        absent, padding = x.new_zeros(A.shape[0], A.shape[1]), -x.shape[-1] % LANES
        tensors = [x, dt, A.transpose(1, 2), absent if D is None else D, absent if dt_bias is None else dt_bias]
        if padding:
            tensors = [F.pad(tensor, (0, padding)) for tensor in tensors]
            gate = None if gate is None else F.pad(gate, (0, padding))
        B, C, gate = (None if tensor is None else as_rows(tensor) for tensor in (B, C, gate))
        mask = None if mask is None else mask.to(x.dtype).contiguous()
        self.arrays = [*(tensor.contiguous() for tensor in tensors), B, C, gate, mask]
        directions, self.batch, time, self.channels = tensors[0].shape
        rows = [0 if tensor is None else tensor.stride(-2) for tensor in (B, C, gate)]
        flags = [dt_softplus, gate is not None, mask is not None]
        self.sizes = [directions, self.batch, time, self.channels, A.shape[2], *rows, *flags]

    def run(self, kernel, per_task, outputs):
        num_tasks = self.batch * -(-self.channels // per_task)
        keeps_states = outputs[-1] is not None
        run_tasks(kernel, self.arrays[0].dtype, num_tasks, [*self.sizes, keeps_states], [*self.arrays, *outputs])


def _forward(job):
    sizes, arrays = unpack(job, 12, 11)
    (directions, batch, time, channels, d_state, B_row, C_row, gate_row) = sizes[:8]
    dt_softplus, has_gate, has_mask, keeps_states = sizes[8:]
    x, dt, A, D, dt_bias, B, C, gate, mask, y, saved = arrays
    states, rates = scratch(x, d_state * LANES), scratch(x, d_state * LANES)
    steps, drives, outputs = scratch(x, SPAN * LANES), scratch(x, SPAN * LANES), scratch(x, SPAN * LANES)
    vectors, spans = channels // LANES, (time + SPAN - 1) // SPAN
    task = next_task(job)
    while task >= 0:
        sample, first = task // vectors, task % vectors * LANES
        for direction in range(directions):
            plane = direction * batch + sample
            bias, skip = read(dt_bias, direction * channels + first), read(D, direction * channels + first)
            for s in range(d_state):
                write(rates, s * LANES, read(A, (direction * d_state + s) * channels + first) * LOG2_E)
                write(states, s * LANES, fill(x, 0.0))
            for span in range(spans):
                if keeps_states:
                    for s in range(d_state):
                        at = ((plane * spans + span) * d_state + s) * channels + first
                        write(saved, at, read(states, s * LANES))
                start, count = span * SPAN, min(SPAN, time - span * SPAN)
                for j in range(count):
                    t = time - 1 - start - j if direction == 1 else start + j
                    here = (plane * time + t) * channels + first
                    shared = (sample * time + t) * channels + first
                    ahead = SPAN if direction == 0 else -SPAN
                    for array in (x, dt):
                        prefetch(array, here + ahead * channels)
                    prefetch(y, (shared if has_gate else here) + ahead * channels)
                    if has_gate and direction == directions - 1:
                        prefetch(gate, (sample * time + t + ahead) * gate_row + first)
                    signal, step = read(x, here), read(dt, here) + bias
                    if dt_softplus:
                        step, _ = softplus(step)
                    write(steps, j * LANES, step)
                    write(drives, j * LANES, step * signal)
                    write(outputs, j * LANES, skip * signal)
                for j in range(count):
                    t = time - 1 - start - j if direction == 1 else start + j
                    if has_mask and mask[sample * time + t] == 0:
                        continue
                    row = plane * time + t
                    step, drive, output = read(steps, j * LANES), read(drives, j * LANES), read(outputs, j * LANES)
                    for s in range(d_state):
                        h = read(states, s * LANES)
                        scale, excess = power_of_two(step * read(rates, s * LANES))
                        h = scale * (h + excess * h) + B[row * B_row + s] * drive
                        write(states, s * LANES, h)
                        output = output + C[row * C_row + s] * h
                    write(outputs, j * LANES, output)
                for j in range(count):
                    t = time - 1 - start - j if direction == 1 else start + j
                    output = read(outputs, j * LANES)
                    if has_mask and mask[sample * time + t] == 0:
                        output = fill(x, 0.0)
                    here = (plane * time + t) * channels + first
                    if has_gate:
                        here = (sample * time + t) * channels + first
                        if direction > 0:
                            output = output + read(y, here)
                        if direction == directions - 1:
                            gated, _ = silu(read(gate, (sample * time + t) * gate_row + first))
                            output = output * gated
                    write(y, here, output)
        task = next_task(job)


def _backward(job):
    sizes, arrays = unpack(job, 12, 19)
    (directions, batch, time, channels, d_state, B_row, C_row, gate_row) = sizes[:8]
    dt_softplus, has_gate, has_mask, _ = sizes[8:]
    x, dt, A, D, dt_bias, B, C, gate, mask, saved, dy, dx, d_dt, dA, dB, dC, dD, d_bias, d_gate = arrays
    states, rates = scratch(x, d_state * LANES), scratch(x, d_state * LANES)
    d_states, d_rates = scratch(x, d_state * LANES), scratch(x, d_state * LANES)
    signals, steps, slopes = scratch(x, SPAN * LANES), scratch(x, SPAN * LANES), scratch(x, SPAN * LANES)
    outputs, d_outputs = scratch(x, SPAN * LANES), scratch(x, SPAN * LANES)
    decayed, scales = scratch(x, SPAN * d_state * LANES), scratch(x, SPAN * d_state * LANES)
    excesses = scratch(x, SPAN * d_state * LANES)
    groups, spans = (channels + VECTORS * LANES - 1) // (VECTORS * LANES), (time + SPAN - 1) // SPAN
    task = next_task(job)
    while task >= 0:
        sample, group = task // groups, task % groups
        for direction in range(directions):
            plane = direction * batch + sample
            for first in range(group * VECTORS * LANES, min((group + 1) * VECTORS * LANES, channels), LANES):
                bias, skip = read(dt_bias, direction * channels + first), read(D, direction * channels + first)
                d_bias_sum, d_skip_sum = fill(x, 0.0), fill(x, 0.0)
                for s in range(d_state):
                    write(rates, s * LANES, read(A, (direction * d_state + s) * channels + first) * LOG2_E)
                    write(d_states, s * LANES, fill(x, 0.0))
                    write(dA, (plane * d_state + s) * channels + first, fill(x, 0.0))
                for span in range(spans - 1, -1, -1):
                    start, count = span * SPAN, min(SPAN, time - span * SPAN)
                    for j in range(count):
                        t = time - 1 - start - j if direction == 1 else start + j
                        here, shared = (plane * time + t) * channels + first, (sample * time + t) * channels + first
                        # spans are walked towards the start of the scan
                        ahead = SPAN if direction == 1 else -SPAN
                        for array in (x, dt, dx, d_dt):
                            prefetch(array, here + ahead * channels)
                        prefetch(dy, (shared if has_gate else here) + ahead * channels)
                        if has_gate:
                            prefetch(d_gate, shared + ahead * channels)
                            prefetch(gate, (sample * time + t + ahead) * gate_row + first)
                        signal, step, slope = read(x, here), read(dt, here) + bias, fill(x, 1.0)
                        if dt_softplus:
                            step, slope = softplus(step)
                        if has_gate:
                            gated, _ = silu(read(gate, (sample * time + t) * gate_row + first))
                            d_output = read(dy, (sample * time + t) * channels + first) * gated
                        else:
                            d_output = read(dy, here)
                        write(signals, j * LANES, signal)
                        write(steps, j * LANES, step)
                        write(slopes, j * LANES, slope)
                        write(outputs, j * LANES, skip * signal)
                        write(d_outputs, j * LANES, d_output)
                    # forwards: the states again
                    for s in range(d_state):
                        at = ((plane * spans + span) * d_state + s) * channels + first
                        write(states, s * LANES, read(saved, at))
                        write(d_rates, s * LANES, fill(x, 0.0))
                    for j in range(count):
                        t = time - 1 - start - j if direction == 1 else start + j
                        if has_mask and mask[sample * time + t] == 0:
                            continue
                        row, step, output = plane * time + t, read(steps, j * LANES), read(outputs, j * LANES)
                        drive = step * read(signals, j * LANES)
                        for s in range(d_state):
                            h, at = read(states, s * LANES), (j * d_state + s) * LANES
                            scale, excess = power_of_two(step * read(rates, s * LANES))
                            h = scale * (h + excess * h)
                            write(scales, at, scale)
                            write(excesses, at, excess)
                            write(decayed, at, h)
                            h = h + B[row * B_row + s] * drive
                            write(states, s * LANES, h)
                            output = output + C[row * C_row + s] * h
                        write(outputs, j * LANES, output)
                    if has_gate:
                        for j in range(count):
                            t = time - 1 - start - j if direction == 1 else start + j
                            here = (sample * time + t) * channels + first
                            output = read(outputs, j * LANES)
                            if has_mask and mask[sample * time + t] == 0:
                                output = fill(x, 0.0)
                            if direction > 0:
                                output = output + read(d_gate, here)
                            if direction == directions - 1:
                                _, slope = silu(read(gate, (sample * time + t) * gate_row + first))
                                output = output * slope * read(dy, here)
                            write(d_gate, here, output)
                    # backwards: the gradients; d_states holds that of the state before the step, as far as it is known
                    d_bias_span, d_skip_span = fill(x, 0.0), fill(x, 0.0)
                    for j in range(count - 1, -1, -1):
                        t = time - 1 - start - j if direction == 1 else start + j
                        row = plane * time + t
                        here, shared = row * channels + first, ((group * directions * batch) + plane) * time + t
                        if has_mask and mask[sample * time + t] == 0:
                            write(dx, here, fill(x, 0.0))
                            write(d_dt, here, fill(x, 0.0))
                            for s in range(d_state):
                                dB[shared * d_state + s] = 0
                                dC[shared * d_state + s] = 0
                            continue
                        step, signal = read(steps, j * LANES), read(signals, j * LANES)
                        drive, d_output = step * signal, read(d_outputs, j * LANES)
                        d_step, d_drive, through_drive = fill(x, 0.0), fill(x, 0.0), total(d_output * drive)
                        for s in range(d_state):
                            b, at = B[row * B_row + s], (j * d_state + s) * LANES
                            h, excess = read(decayed, at), read(excesses, at)
                            d_h = read(d_states, s * LANES) + C[row * C_row + s] * d_output
                            d_exponent = d_h * h
                            d_step = d_step + d_exponent * read(rates, s * LANES)
                            d_drive = d_drive + b * d_h
                            write(d_rates, s * LANES, read(d_rates, s * LANES) + d_exponent * step)
                            write(d_states, s * LANES, read(scales, at) * (d_h + excess * d_h))
                            d_b, d_c = total(d_h * drive), total(d_output * h) + b * through_drive
                            if first > group * VECTORS * LANES:
                                d_b += dB[shared * d_state + s]
                                d_c += dC[shared * d_state + s]
                            dB[shared * d_state + s] = d_b
                            dC[shared * d_state + s] = d_c
                        d_step = (d_step * LOG_2 + d_drive * signal) * read(slopes, j * LANES)
                        write(dx, here, d_drive * step + skip * d_output)
                        write(d_dt, here, d_step)
                        d_bias_span, d_skip_span = d_bias_span + d_step, d_skip_span + d_output * signal
                    # sums of sums lose fewer digits over long recordings
                    d_bias_sum, d_skip_sum = d_bias_sum + d_bias_span, d_skip_sum + d_skip_span
                    for s in range(d_state):
                        at = (plane * d_state + s) * channels + first
                        write(dA, at, read(dA, at) + read(d_rates, s * LANES))
                write(d_bias, plane * channels + first, d_bias_sum)
                write(dD, plane * channels + first, d_skip_sum)
        task = next_task(job)
