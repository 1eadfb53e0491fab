"""This project's scan for the Mamba models of transformers, whose own is quadratic in length in the backward pass.

    import hf_ecgmamba
    hf_ecgmamba.accelerate_mamba()             # from here on
    with hf_ecgmamba.accelerate_mamba(): ...   # or for a while

transformers' own door for such functions is a repository of kernels (`KernelConfig`); `selective_scan_fn` has the
signature that it wants.
"""

import functools
import inspect
import threading
from importlib import import_module

import torch
import transformers
from torch.nn import functional as F

from .numba_vectors import HAS_NUMBA
from .selective_scan import selective_scan
from .selective_scan_mamba_ssm import selective_scan_fn as selective_scan_of_mamba_ssm

FAMILIES = ("mamba", "falcon_mamba", "jamba", "zamba")
_NAME = "mamba_selective_scan"
# what transformers 5.23 calls it with
_PARAMETERS = ("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state")


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """
    The selective scan with the signature of `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`, on any device.

    Args:
        u (`torch.Tensor` of shape `(batch, channels, time)`), delta (of the same shape): signal and step sizes.
        A (`torch.Tensor` of shape `(channels, d_state)`): decay rates, zero or negative.
        B (`torch.Tensor` of shape `(batch, d_state, time)`), C (of the same shape)
        D (`torch.Tensor` of shape `(channels,)`, *optional*)
        z (`torch.Tensor` of shape `(batch, channels, time)`, *optional*): the output is multiplied by SiLU(z).
        delta_bias (`torch.Tensor` of shape `(channels,)`, *optional*), delta_softplus (`bool`, defaults to `False`)
        return_last_state (`bool`, defaults to `False`): no gradient flows through that state.

    Returns:
        `torch.Tensor` of shape `(batch, channels, time)`, in the dtype of u; with return_last_state, also the state
        behind the last step, `(batch, channels, d_state)`.

    Raises:
        ValueError: for shapes that do not fit.
    """
    for name, tensor, ndim in (("u", u, 3), ("delta", delta, 3), ("A", A, 2), ("B", B, 3), ("C", C, 3)):
        if tensor.ndim != ndim:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; expected {ndim} dimensions")
    x, dt, B, C = (tensor.transpose(1, 2).unsqueeze(0) for tensor in (u, delta, B, C))
    A, D, bias = (None if tensor is None else tensor.unsqueeze(0) for tensor in (A, D, delta_bias))
    gate = None if z is None else z.transpose(1, 2)
    y = selective_scan(x, dt, A, B, C, D, dt_bias=bias, dt_softplus=delta_softplus, gate=gate)
    y = (y if z is not None else y[0]).transpose(1, 2)
    if not return_last_state:
        return y
    with torch.no_grad():
        return y, _last_state(x, dt, A, B, bias, delta_softplus)


def _last_state(x, dt, A, B, bias, softplus):
    """[batch, channels, d_state]: where a state ends is the sum of what each step wrote, as far as it has decayed."""
    dt = dt[0].float() if bias is None else dt[0].float() + bias.float()
    dt = F.softplus(dt) if softplus else dt
    # how much time is left after each step, summed from the end
    left = F.pad(dt[:, 1:], (0, 0, 0, 1)).flip(1).cumsum(1).flip(1)
    written, state = dt * x[0].float(), []
    for n in range(A.shape[-1]):  # one number of the state at a time, or memory would grow by as much
        decayed = torch.exp(left * A[0, :, n].float()) * written
        state.append(torch.einsum("btc,bt->bc", decayed, B[0, :, :, n].float()))
    return torch.stack(state, -1)


class accelerate_mamba:
    """
    Puts this project's scan in the place of transformers' own in its Mamba, FalconMamba, Jamba and Zamba, on the CPU
    (on a GPU where mamba_ssm is not installed). Parameters, outputs and gradients are the same; training is faster by
    more than the length in hundreds of tokens (benchmarks/RESULTS.md). Models that exist already are accelerated too.
    What a context manager has changed it changes back, unless another call still wants it.

    Raises:
        ImportError: where this version of transformers has no function of that name and signature.
    """

    _lock = threading.RLock()
    _originals = {}
    _wishes = 0

    def __init__(self):
        modules = [import_module(f"transformers.models.{family}.modeling_{family}") for family in FAMILIES]
        with self._lock:
            for module in modules:
                if module not in self._originals:
                    _check(module)
            for module in modules:
                if module not in self._originals:
                    self._originals[module] = original = getattr(module, _NAME)
                    setattr(module, _NAME, _in_place_of(original))
            type(self)._wishes += 1
        self._is_active = True

    def undo(self):
        """Gives transformers its own scan back, unless another call of `accelerate_mamba` still wants this one."""
        with self._lock:
            if not self._is_active:
                return
            self._is_active = False
            type(self)._wishes -= 1
            if type(self)._wishes == 0:
                for module, original in self._originals.items():
                    setattr(module, _NAME, original)
                self._originals.clear()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.undo()


def _check(module):
    function = getattr(module, _NAME, None)
    parameters = () if function is None else tuple(inspect.signature(function).parameters)
    if parameters[: len(_PARAMETERS)] != _PARAMETERS:
        found = f"has {_NAME}{parameters}" if parameters else f"has no {_NAME}"
        raise ImportError(
            f"transformers {transformers.__version__}: {module.__name__} {found}; accelerate_mamba expects "
            f"{_NAME}{_PARAMETERS}, as transformers 5.23 has it"
        )


def _in_place_of(original):
    @functools.wraps(original)
    def scan(hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
             return_last_state=False, **options):  # fmt: skip
        arguments = hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
        packed = options.get("cu_seqlens") is not None or options.get("seq_idx") is not None
        if packed or not _is_faster(hidden_states) or (return_last_state and torch.is_grad_enabled()):
            return original(*arguments, **options)
        # as theirs, whose dtype is what u, D and z promote to
        result = selective_scan_fn(*arguments)
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in (hidden_states, D, z) if t is not None))
        return (result[0].to(dtype), result[1]) if return_last_state else result.to(dtype)

    return scan


def _is_faster(x):
    if x.device.type == "cpu":
        return HAS_NUMBA
    return x.device.type == "cuda" and selective_scan_of_mamba_ssm is None
