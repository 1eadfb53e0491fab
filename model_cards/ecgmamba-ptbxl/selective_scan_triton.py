"""The selective scan on a CUDA GPU, in Triton: both directions in one launch, forward and backward.

The work is laid out so that a batch of one fills the chip:

- A program owns one direction of one recording, a block of channels and one chunk of time. It walks its chunk step by
  step with the state [d_state, channels] in registers. Channels lie across the 32 lanes of its one warp, so every load
  of x and dt is one contiguous row, and the sum over d_state in y stays within a lane.
- Where batch and channels alone do not fill the chip, time is cut into chunks and the scan has three phases: every
  chunk finds the state it would end in from zero; one short pass hands the states on from chunk to chunk; every chunk
  runs again from the state it was handed, and writes y. What a chunk does to a state is exp(A Σdt), so that Σdt per
  channel is all that is kept of it. With enough parallelism there is one chunk, and only the last phase.
- The backward pass is the same in the mirrored order for the adjoint of the state, r = a g. It needs the states in
  reverse: the forward pass leaves one behind in every `_SPAN` steps, and a span is run again from it, in registers.
- dB and dC are sums over channels, dA, dD and ddt_bias over batch and time. Each program writes its part and torch
  adds the parts up: no atomics, the same bits every time.

What bounds it: one exponential for each channel, state and step. An SM makes 16 of them per clock and does everything
else here (four or five fused operations) at 128, so exponentials and the rest are about in balance; 16 states in
bfloat16 move 6 bytes per channel and step for 16 exponentials, in phases one and three alike. That is why chunks are
made only where they pay, and no more of them than fill the chip.
"""

import math
import os

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def selective_scan_triton(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, mask=None, *, steps_per_chunk=None):
    """Scans on a CUDA GPU; arguments as in `selective_scan`, the state in float32.

    Args:
        steps_per_chunk (`int`, *optional*): length of the chunks into which time is cut; by default as long as fills
            the chip. Every length gives the same result, up to rounding.
    """
    # asked here, as gradients are always off within an autograd.Function
    differentiable = torch.is_grad_enabled()
    return _SelectiveScan.apply(x, dt, A, B, C, D, dt_bias, dt_softplus, mask, steps_per_chunk, differentiable)


def why_not_triton(x, A):
    """Why this backend cannot serve x [directions, batch, time, channels] and A [directions, channels, d_state].

    Returns the reason, or None if it can. With TRITON_INTERPRET=1, Triton's interpreter serves the CPU too.
    """
    if triton is None:
        return "triton is not installed"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"its state is float32; x is {x.dtype}"
    if A.shape[-1] > 64:
        return f"d_state is {A.shape[-1]}; more than 64 states do not fit its registers"
    if x.device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (8, 0):
            return "Triton needs a GPU of compute capability 8.0"
    elif x.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return f"x is on {x.device}; it needs a CUDA GPU"
    return None


# steps between the states that the forward pass keeps; the backward pass is unrolled over them
_SPAN = 8


# fused multiply-adds, which Triton 3.10 leaves out unless asked
_FUSED = {"enable_fp_fusion": True}


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, dt_bias, dt_softplus, mask, steps_per_chunk, differentiable):
        inputs = _Inputs(x, dt, A, B, C, D, dt_bias, dt_softplus, mask)
        chunk = steps_per_chunk or _steps_per_chunk(inputs)
        chunk = triton.cdiv(chunk, _SPAN) * _SPAN
        chunks = triton.cdiv(inputs.time, chunk)
        states = totals = kept = None
        if chunks > 1:
            states = inputs.new(chunks, inputs.d_state, inputs.channels)
            totals = inputs.new(chunks, inputs.channels)
            inputs.launch(_forward_kernel, chunk, inputs.forward_block, None, states, totals, None)
            inputs.hand_on(states, totals, REVERSE=False)
        if differentiable and any(ctx.needs_input_grad):
            kept = inputs.new(triton.cdiv(inputs.time, _SPAN), inputs.d_state, inputs.channels)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        inputs.launch(_forward_kernel, chunk, inputs.forward_block, y, states, None, kept)
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, mask, totals, kept)
        ctx.dt_softplus, ctx.chunk = dt_softplus, chunk
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, dt, A, B, C, D, dt_bias, mask, totals, kept = ctx.saved_tensors
        inputs = _Inputs(x, dt, A, B, C, D, dt_bias, ctx.dt_softplus, mask)
        dy, chunk, block = dy.contiguous(), ctx.chunk, inputs.backward_block
        chunks, blocks = triton.cdiv(inputs.time, chunk), triton.cdiv(inputs.channels, block)
        adjoints = None
        if chunks > 1:
            adjoints = inputs.new(chunks, inputs.d_state, inputs.channels)
            inputs.launch(_adjoint_kernel, chunk, inputs.forward_block, dy, adjoints)
            inputs.hand_on(adjoints, totals, REVERSE=True)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
        dA = inputs.new(chunks, inputs.d_state, inputs.channels)
        dD = inputs.new(chunks, inputs.channels)
        ddt_bias = inputs.new(chunks, inputs.channels)
        dB = inputs.new(blocks, inputs.time, inputs.d_state)
        dC = inputs.new(blocks, inputs.time, inputs.d_state)
        inputs.launch(_backward_kernel, chunk, block, dy, adjoints, kept, dx, ddt, dA, dB, dC, dD, ddt_bias)
        return (
            dx,
            ddt,
            dA.sum((1, 2)).transpose(1, 2).to(A.dtype),
            dB.sum(2).to(B.dtype),
            dC.sum(2).to(C.dtype),
            None if D is None else dD.sum((1, 2)).to(D.dtype),
            None if dt_bias is None else ddt_bias.sum((1, 2)).to(dt_bias.dtype),
            None,
            None,
            None,
            None,
        )


class _Inputs:
    """What all kernels are given, and how they are launched."""

    def __init__(self, x, dt, A, B, C, D, dt_bias, dt_softplus, mask):
        self.directions, self.batch, self.time, self.channels = x.shape
        self.d_state, self.device = A.shape[-1], x.device
        # the kernels raise 2 to a power, and read parameters with the channels side by side
        self.rates = (A.float() * math.log2(math.e)).transpose(1, 2).contiguous()
        D, dt_bias = (None if row is None else row.float().contiguous() for row in (D, dt_bias))
        # B and C are mostly slices of one projection: they are read where they lie, as are directions that share an x
        per_step = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (x, dt, B, C)]
        strides = [stride for tensor in per_step for stride in tensor.stride()[:3]]
        mask = None if mask is None else mask.contiguous().view(torch.uint8)
        self.tensors = (*per_step, self.rates, D, dt_bias, mask)
        self.sizes = (*strides, self.batch, self.time, self.channels)
        states = triton.next_power_of_2(self.d_state)
        self.constants = {
            "D_STATE": self.d_state,
            "STATES": states,
            "SOFTPLUS": dt_softplus,
            "num_warps": 1,
            **_FUSED,
        }
        # a lane holds 16 numbers of the state in the forward pass, and 8 in the backward pass, for each step of a span
        self.forward_block = max(8, min(32, 512 // states))
        self.backward_block = max(4, min(32, 256 // states))

    def new(self, *shape):
        return torch.empty(self.directions, self.batch, *shape, dtype=torch.float32, device=self.device)

    def launch(self, kernel, chunk, block, *tensors):
        blocks, chunks = triton.cdiv(self.channels, block), triton.cdiv(self.time, chunk)
        grid = (blocks * chunks * self.batch * self.directions,)
        with torch.cuda.device_of(self.tensors[0]):
            kernel[grid](*self.tensors, *tensors, *self.sizes, chunk, BLOCK=block, SPAN=_SPAN, **self.constants)

    def hand_on(self, states, totals, REVERSE):
        """Turns the states in which chunks end from zero into those in which they start, in place."""
        numbers, chunks, block = self.d_state * self.channels, states.shape[2], 128
        grid = (triton.cdiv(numbers, block) * self.batch * self.directions,)
        sizes = (self.batch, chunks, self.channels, numbers)
        with torch.cuda.device_of(states):
            _hand_on_kernel[grid](states, totals, self.rates, *sizes, REVERSE=REVERSE, BLOCK=block, **_FUSED)


def _steps_per_chunk(inputs):
    """As many chunks as give each multiprocessor 16 programs, or one where two would not pay for their second run."""
    if inputs.device.type == "cpu":
        return inputs.time
    processors = torch.cuda.get_device_properties(inputs.device).multi_processor_count
    programs = triton.cdiv(inputs.channels, inputs.forward_block) * inputs.batch * inputs.directions
    chunks = 16 * processors // programs
    if chunks <= 2:
        return inputs.time
    return max(32, triton.cdiv(inputs.time, chunks))


if triton is not None:
    # time and chunk vary from batch to batch: no kernel is compiled anew for them
    _vary = ["time", "chunk", "chunks"]

    @triton.jit
    def _step_size(dt, bias, SOFTPLUS: tl.constexpr):
        """softplus(dt + bias) and its derivative; the logarithm as 2 atanh(e / (2 + e)), exact to the last bits of
        the smallest step size, where log(1 + e) loses them all."""
        z = dt + bias
        if SOFTPLUS:
            e = tl.exp(-tl.abs(z))
            s = e / (2.0 + e)
            q = s * s
            series = 1.0 + q * (
                1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15))))))
            )
            size = tl.maximum(z, 0.0) + 2.0 * s * series
            slope = tl.where(z >= 0, 1.0, e) / (1.0 + e)
        else:
            size = z
            slope = tl.full(z.shape, 1.0, tl.float32)
        return size, slope

    @triton.jit
    def _place(batch, time, channels, chunk, BLOCK: tl.constexpr):
        """Which row (a direction of a recording), chunk of time and block of channels this program owns; in 64 bits,
        as what follows from them outgrows 32: 16 recordings of 65,536 steps and 1024 channels, both ways."""
        blocks, chunks = tl.cdiv(channels, BLOCK), tl.cdiv(time, chunk)
        program = tl.program_id(0).to(tl.int64)
        block, part, row = program % blocks, program // blocks % chunks, program // blocks // chunks
        return row, row // batch, row % batch, part, chunks, block

    @triton.jit(do_not_specialize=_vary)
    def _forward_kernel(
        x, dt, B, C, A, D, bias, mask,
        y, states, totals, kept,
        x_direction, x_batch, x_time, dt_direction, dt_batch, dt_time,
        B_direction, B_batch, B_time, C_direction, C_batch, C_time,
        batch, time, channels, chunk,
        D_STATE: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr,
        BLOCK: tl.constexpr, SPAN: tl.constexpr,
    ):  # fmt: skip
        """Walks one chunk from the state that it was handed to y; with no y, from zero to end state and Σdt."""
        row, direction, recording, part, chunks, block = _place(batch, time, channels, chunk, BLOCK)
        c = block * BLOCK + tl.arange(0, BLOCK)
        n = tl.arange(0, STATES)
        c_ok, n_ok = c < channels, n < D_STATE
        ok = n_ok[:, None] & c_ok[None, :]
        nc = n[:, None] * channels + c[None, :]
        x += direction * x_direction + recording * x_batch + c
        dt += direction * dt_direction + recording * dt_batch + c
        B += direction * B_direction + recording * B_batch + n
        C += direction * C_direction + recording * C_batch + n
        rates = tl.load(A + direction * D_STATE * channels + nc, mask=ok, other=0.0)
        shift = tl.zeros([BLOCK], tl.float32)
        if bias is not None:
            shift = tl.load(bias + direction * channels + c, mask=c_ok, other=0.0)
        skip = tl.zeros([BLOCK], tl.float32)
        if D is not None:
            skip = tl.load(D + direction * channels + c, mask=c_ok, other=0.0)

        h = tl.zeros([STATES, BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        if y is not None and states is not None:
            h = tl.load(states + (row * chunks + part) * D_STATE * channels + nc, mask=ok, other=0.0)
        start = part * chunk
        for step in range(start, tl.minimum(start + chunk, time)):
            t = step + direction * (time - 1 - 2 * step)  # direction 1 walks from the last step to the first
            x_t = tl.load(x + t * x_time, mask=c_ok, other=0.0).to(tl.float32)
            dt_t = tl.load(dt + t * dt_time, mask=c_ok, other=0.0).to(tl.float32)
            B_t = tl.load(B + t * B_time, mask=n_ok, other=0.0).to(tl.float32)
            size, _ = _step_size(dt_t, shift, SOFTPLUS)
            if mask is not None:
                # a step of size zero that writes nothing; chosen, not multiplied, as padding may hold NaN
                real = tl.load(mask + recording * time + t) != 0
                size = tl.where(real, size, 0.0)
                x_t = tl.where(real, x_t, 0.0)
                B_t = tl.where(real, B_t, 0.0)
            if kept is not None and step % SPAN == 0:
                at = (row * tl.cdiv(time, SPAN) + step // SPAN) * D_STATE * channels
                tl.store(kept + at + nc, h, mask=ok)
            h = tl.exp2(size[None, :] * rates) * h + (size * x_t)[None, :] * B_t[:, None]
            if y is None:
                total += size
            else:
                C_t = tl.load(C + t * C_time, mask=n_ok, other=0.0).to(tl.float32)
                y_t = tl.sum(h * C_t[:, None], 0) + skip * x_t
                if mask is not None:
                    y_t = tl.where(real, y_t, 0.0)
                tl.store(y + (row * time + t) * channels + c, y_t, mask=c_ok)
        if y is None:
            tl.store(states + (row * chunks + part) * D_STATE * channels + nc, h, mask=ok)
            tl.store(totals + (row * chunks + part) * channels + c, total, mask=c_ok)

    @triton.jit(do_not_specialize=_vary)
    def _hand_on_kernel(
        states, totals, A, batch, chunks, channels, numbers, REVERSE: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Walks from chunk to chunk: each is handed what the one before it was handed, decayed, plus what it made."""
        blocks = tl.cdiv(numbers, BLOCK)
        program = tl.program_id(0).to(tl.int64)
        row = program // blocks
        at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
        ok = at < numbers
        rates = tl.load(A + (row // batch) * numbers + at, mask=ok, other=0.0)
        h = tl.zeros([BLOCK], tl.float32)
        for step in tl.range(0, chunks, num_stages=4):
            part = row * chunks + step
            if REVERSE:
                part = row * chunks + chunks - 1 - step
            made = tl.load(states + part * numbers + at, mask=ok, other=0.0)
            total = tl.load(totals + part * channels + at % channels, mask=ok, other=0.0)
            tl.store(states + part * numbers + at, h, mask=ok)
            h = tl.exp2(total * rates) * h + made

    @triton.jit(do_not_specialize=_vary)
    def _adjoint_kernel(
        x, dt, B, C, A, D, bias, mask,
        dy, adjoints,
        x_direction, x_batch, x_time, dt_direction, dt_batch, dt_time,
        B_direction, B_batch, B_time, C_direction, C_batch, C_time,
        batch, time, channels, chunk,
        D_STATE: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr,
        BLOCK: tl.constexpr, SPAN: tl.constexpr,
    ):  # fmt: skip
        """Walks one chunk backwards: what it alone asks of the state before it, r_t = a_t (C_t dy_t + r_(t+1))."""
        row, direction, recording, part, chunks, block = _place(batch, time, channels, chunk, BLOCK)
        c = block * BLOCK + tl.arange(0, BLOCK)
        n = tl.arange(0, STATES)
        c_ok, n_ok = c < channels, n < D_STATE
        ok = n_ok[:, None] & c_ok[None, :]
        nc = n[:, None] * channels + c[None, :]
        dt += direction * dt_direction + recording * dt_batch + c
        C += direction * C_direction + recording * C_batch + n
        rates = tl.load(A + direction * D_STATE * channels + nc, mask=ok, other=0.0)
        shift = tl.zeros([BLOCK], tl.float32)
        if bias is not None:
            shift = tl.load(bias + direction * channels + c, mask=c_ok, other=0.0)
        r = tl.zeros([STATES, BLOCK], tl.float32)
        start = part * chunk
        end = tl.minimum(start + chunk, time)
        for back in range(0, end - start):
            step = end - 1 - back
            t = step + direction * (time - 1 - 2 * step)
            dy_t = tl.load(dy + (row * time + t) * channels + c, mask=c_ok, other=0.0).to(tl.float32)
            dt_t = tl.load(dt + t * dt_time, mask=c_ok, other=0.0).to(tl.float32)
            C_t = tl.load(C + t * C_time, mask=n_ok, other=0.0).to(tl.float32)
            size, _ = _step_size(dt_t, shift, SOFTPLUS)
            if mask is not None:
                real = tl.load(mask + recording * time + t) != 0
                size = tl.where(real, size, 0.0)
                dy_t = tl.where(real, dy_t, 0.0)
                C_t = tl.where(real, C_t, 0.0)
            r = tl.exp2(size[None, :] * rates) * (r + C_t[:, None] * dy_t[None, :])
        tl.store(adjoints + (row * chunks + part) * D_STATE * channels + nc, r, mask=ok)

    @triton.jit(do_not_specialize=_vary)
    def _backward_kernel(
        x, dt, B, C, A, D, bias, mask,
        dy, adjoints, kept, dx, ddt, dA, dB, dC, dD, dbias,
        x_direction, x_batch, x_time, dt_direction, dt_batch, dt_time,
        B_direction, B_batch, B_time, C_direction, C_batch, C_time,
        batch, time, channels, chunk,
        D_STATE: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr,
        BLOCK: tl.constexpr, SPAN: tl.constexpr,
    ):  # fmt: skip
        """Walks one chunk backwards, a span at a time: forwards through the span from the state kept at its start, to
        have the states before each step; then back, with g_t = C_t dy_t + r_(t+1), to every gradient."""
        row, direction, recording, part, chunks, block = _place(batch, time, channels, chunk, BLOCK)
        c = block * BLOCK + tl.arange(0, BLOCK)
        n = tl.arange(0, STATES)
        c_ok, n_ok = c < channels, n < D_STATE
        ok = n_ok[:, None] & c_ok[None, :]
        nc = n[:, None] * channels + c[None, :]
        x += direction * x_direction + recording * x_batch + c
        dt += direction * dt_direction + recording * dt_batch + c
        B += direction * B_direction + recording * B_batch + n
        C += direction * C_direction + recording * C_batch + n
        rates = tl.load(A + direction * D_STATE * channels + nc, mask=ok, other=0.0)
        shift = tl.zeros([BLOCK], tl.float32)
        if bias is not None:
            shift = tl.load(bias + direction * channels + c, mask=c_ok, other=0.0)
        skip = tl.zeros([BLOCK], tl.float32)
        if D is not None:
            skip = tl.load(D + direction * channels + c, mask=c_ok, other=0.0)

        r = tl.zeros([STATES, BLOCK], tl.float32)
        if adjoints is not None:
            r = tl.load(adjoints + (row * chunks + part) * D_STATE * channels + nc, mask=ok, other=0.0)
        sum_A = tl.zeros([STATES, BLOCK], tl.float32)
        sum_D = tl.zeros([BLOCK], tl.float32)
        sum_bias = tl.zeros([BLOCK], tl.float32)
        blocks = tl.cdiv(channels, BLOCK)
        first = part * chunk // SPAN  # chunks are whole spans, but for the last
        last = tl.cdiv(tl.minimum(part * chunk + chunk, time), SPAN) - 1
        for back in range(0, last - first + 1):
            span = last - back
            h = tl.load(kept + (row * tl.cdiv(time, SPAN) + span) * D_STATE * channels + nc, mask=ok, other=0.0)
            before = ()
            for i in tl.static_range(SPAN):
                step = span * SPAN + i
                real = step < time
                t = step + direction * (time - 1 - 2 * step)
                if mask is not None:
                    real = tl.load(mask + recording * time + t, mask=real, other=0) != 0
                # a step that is not there, or is padding, reads as zeros and has a size of zero
                c_end, n_end = tl.where(real, channels, 0), tl.where(real, D_STATE, 0)
                x_t = tl.load(x + t * x_time, mask=c < c_end, other=0.0).to(tl.float32)
                dt_t = tl.load(dt + t * dt_time, mask=c < c_end, other=0.0).to(tl.float32)
                B_t = tl.load(B + t * B_time, mask=n < n_end, other=0.0).to(tl.float32)
                size, _ = _step_size(dt_t, shift, SOFTPLUS)
                size = tl.where(real, size, 0.0)
                before = before + (h,)  # noqa: RUF005 (Triton knows no starred tuples)
                h = tl.exp2(size[None, :] * rates) * h + (size * x_t)[None, :] * B_t[:, None]
            for j in tl.static_range(SPAN):
                step = span * SPAN + SPAN - 1 - j
                inside = step < time
                real = inside
                t = step + direction * (time - 1 - 2 * step)
                if mask is not None:
                    real = tl.load(mask + recording * time + t, mask=inside, other=0) != 0
                c_end, n_end = tl.where(real, channels, 0), tl.where(real, D_STATE, 0)
                x_t = tl.load(x + t * x_time, mask=c < c_end, other=0.0).to(tl.float32)
                dt_t = tl.load(dt + t * dt_time, mask=c < c_end, other=0.0).to(tl.float32)
                dy_t = tl.load(dy + (row * time + t) * channels + c, mask=c < c_end, other=0.0).to(tl.float32)
                B_t = tl.load(B + t * B_time, mask=n < n_end, other=0.0).to(tl.float32)
                C_t = tl.load(C + t * C_time, mask=n < n_end, other=0.0).to(tl.float32)
                size, slope = _step_size(dt_t, shift, SOFTPLUS)
                size = tl.where(real, size, 0.0)
                slope = tl.where(real, slope, 0.0)

                a = tl.exp2(size[None, :] * rates)
                decayed = a * before[SPAN - 1 - j]
                h = decayed + (size * x_t)[None, :] * B_t[:, None]
                g = r + C_t[:, None] * dy_t[None, :]
                r = a * g
                gB = tl.sum(g * B_t[:, None], 0)
                faded = g * decayed
                # the rates carry the 1 / log(2) that makes powers of 2 of powers of e
                dsize = x_t * gB + 0.6931471805599453 * tl.sum(faded * rates, 0)
                draw = dsize * slope
                c_real = c < tl.where(inside, channels, 0)
                n_real = n < tl.where(inside, D_STATE, 0)
                at = (row * time + t) * channels + c
                tl.store(dx + at, size * gB + skip * dy_t, mask=c_real)
                tl.store(ddt + at, draw, mask=c_real)
                at = ((row * blocks + block) * time + t) * D_STATE + n
                tl.store(dB + at, tl.sum(g * (size * x_t)[None, :], 1), mask=n_real)
                tl.store(dC + at, tl.sum(h * dy_t[None, :], 1), mask=n_real)
                sum_A += faded * size[None, :]
                sum_D += dy_t * x_t
                sum_bias += draw
        at = row * chunks + part
        tl.store(dA + at * D_STATE * channels + nc, sum_A, mask=ok)
        tl.store(dD + at * channels + c, sum_D, mask=c_ok)
        tl.store(dbias + at * channels + c, sum_bias, mask=c_ok)
