"""Weights that several processes share out among themselves, as a large LLM needs it: with FSDP2 each keeps a part of
every weight (a DTensor), with DeepSpeed's ZeRO-3 an empty one is left where it was.

Both bring a module's weights together when the module is called. Here is what they leave open: the sizes of weights,
their values where they are compared or saved, and methods that are no `forward`.
"""

import functools
import os
import sys

import torch
from torch import nn

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor
else:
    FSDPModule = DTensor = ()


def is_sharded(weight):
    """Whether this process holds but a part of a weight."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def full_shape(weight):
    """A weight's shape, which DeepSpeed notes beside the empty one."""
    return getattr(weight, "ds_shape", weight.shape)


@torch.no_grad()
def full_weight(weight):
    """A weight as a whole, without gradient. Every process has to ask for it at the same time."""
    if isinstance(weight, DTensor):
        return weight.detach().full_tensor()
    if hasattr(weight, "ds_id"):
        # whoever has made it so has imported it
        with sys.modules["deepspeed"].zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach()


def full_state_dict(module):
    """A module's `state_dict` with whole weights on the CPU, or None where no weight is shared out. Every process has
    to ask for it at the same time."""
    weights = module.state_dict(keep_vars=True)
    if not any(map(is_sharded, weights.values())):
        return None
    return {name: full_weight(weight).cpu() for name, weight in weights.items()}


def _are_several():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_writer():
    """Whether this process is the one that writes what all of them hold."""
    return not _are_several() or torch.distributed.get_rank() == 0


def loads_on_one_process():
    """Whether accelerate's FSDP lets only the first process of a machine load weights, for all
    (`fsdp_cpu_ram_efficient_loading`)."""
    names = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    return all(os.environ.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t") for name in names)


def weights_come_later():
    """Whether the weights that this process has loaded are not yet those of the file, but nothing."""
    return _are_several() and loads_on_one_process() and int(os.environ.get("LOCAL_RANK", "-1")) != 0


def with_whole_weights(method):
    """For a method of a model that runs it, but is no `forward`, so that FSDP2 does nothing before it: what no module
    below brings together by itself is whole while it runs."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        parts = _parts(self)
        if not parts:
            return method(self, *args, **kwargs)
        if isinstance(self, FSDPModule):
            if "_run_whole" not in vars(self):
                register_fsdp_forward_method(self, "_run_whole")
            try:
                return self._run_whole(functools.partial(method, self, *args, **kwargs))
            finally:
                self.reshard()
        # FSDP's own module stands around this one, out of reach
        whole = {id(part): nn.Parameter(full_weight(part), requires_grad=False) for _, _, part in parts}
        try:
            for module, name, part in parts:
                setattr(module, name, whole[id(part)])
            return method(self, *args, **kwargs)
        finally:
            for module, name, part in parts:
                setattr(module, name, part)

    return run


def _parts(model):
    """(module, name, DTensor) of all in a model that no FSDP module below it holds."""
    found, modules = [], [model]
    while modules:
        module = modules.pop()
        found += [(module, name, value) for name, value in module._parameters.items() if isinstance(value, DTensor)]
        modules += [child for child in module.children() if not isinstance(child, FSDPModule)]
    return found
