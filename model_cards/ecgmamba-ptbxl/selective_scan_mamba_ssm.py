"""The selective scan by mamba_ssm's CUDA kernel: one call per direction, the second on flipped copies.

mamba_ssm has time last and knows neither masks nor a second direction, so tensors are masked, transposed and flipped
on their way in, and y on its way out.
"""

import torch

try:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except ImportError as error:  # not installed, or its compiled part does not fit this torch
    selective_scan_fn, _import_error = None, str(error)


def selective_scan_mamba_ssm(x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, mask=None):
    """Scans by `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`; arguments as in `selective_scan`, the state
    in float32."""
    dtype = x.dtype
    if dt_bias is not None and not dt_softplus:  # added here, or the size of a padded step could not be zero
        dt, dt_bias = dt + dt_bias[:, None, None], None
    if mask is not None:
        padded = ~mask.unsqueeze(-1)
        # softplus(-10000) is zero, and so is its slope
        dt = dt.masked_fill(padded, -10_000 if dt_softplus else 0)
        x, B, C = (tensor.masked_fill(padded, 0) for tensor in (x, B, C))
    for tensor in (dt, B, C):
        dtype = torch.promote_types(dtype, tensor.dtype)
    outputs = []
    for direction in range(x.shape[0]):
        per_step = (tensor[direction].to(dtype) for tensor in (x, dt, B, C))
        u, delta, B_, C_ = (tensor.flip(1) if direction == 1 else tensor for tensor in per_step)
        y = selective_scan_fn(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            A[direction].float().contiguous(),
            B_.transpose(1, 2),
            C_.transpose(1, 2),
            D=None if D is None else D[direction].float(),
            delta_bias=None if dt_bias is None else dt_bias[direction].float(),
            delta_softplus=dt_softplus,
        ).transpose(1, 2)
        outputs.append(y.flip(1) if direction == 1 else y)
    return torch.stack(outputs).to(x.dtype)


def why_not_mamba_ssm(x, A):
    """Why this backend cannot serve x [directions, batch, time, channels] and A [directions, channels, d_state].

    Returns the reason, or None if it can.
    """
    if selective_scan_fn is None:
        return f"mamba_ssm cannot be imported: {_import_error}"
    if x.device.type != "cuda":
        return f"x is on {x.device}; it needs a CUDA GPU"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"its state is float32; x is {x.dtype}"
    if A.shape[-1] > 256:
        return f"d_state is {A.shape[-1]}; it takes at most 256"
    return None
