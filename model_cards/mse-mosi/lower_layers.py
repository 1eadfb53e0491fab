"""The lower layers of a frozen LLM: all that a head which reads its middle needs to run.

What an LLM knows of a feeling stands in its middle layers rather than in the last, which prepare the next word. A head
that reads these leaves the layers above unrun, the output layer too. And where the places that depend on the adapter
stand late in the prompt, all before them is a constant: it runs without gradients, and the rest continues its keys and
values.
"""

from inspect import signature

import torch
from torch import nn

from .backbone_trial import arranged, plainly, without_peft

# below so many constant positions a second pass of the layers costs more than it saves
WORTH_A_PASS = 6


def parameters_of(llm):
    """What an LLM's `forward` takes, by name."""
    return signature(without_peft(llm).forward).parameters


def num_layers_of(llm):
    """How many layers an LLM has (`int`).

    Raises:
        ValueError: if they cannot be found: `head_layers` needs them.
    """
    return len(_layers_of(llm))


def states_after(llm, layers, inputs, constant_length=0, options=None):
    """
    Run an LLM's lower layers.

    Args:
        llm (`PreTrainedModel`): frozen; nothing of it is changed, and any number of threads may run it.
        layers (`Sequence[int]`): after which layers, counted from 1 and rising, the states are wanted. Those above the
            last of them do not run.
        inputs (`dict`): inputs_embeds [batch, length, hidden_size], attention_mask [batch, length], position_ids.
        constant_length (`int`): positions at the beginning on which no parameter has an effect. Their states are not
            given where gradients are wanted.
        options (`dict`, *optional*): more for the LLM's own `forward`.

    Returns:
        `list[torch.Tensor]`: by layer, the residual stream [batch, length, hidden_size], or of the positions behind
        the constant ones.
    """
    embeds, options = inputs["inputs_embeds"], (options or {}) | plainly(llm)
    everywhere = torch.arange(embeds.shape[1])
    inputs, positions, as_given = arranged(llm, inputs, everywhere)
    if positions is not everywhere:
        states = _run(llm, layers, inputs, options)[0]
        return [as_given(state[:, positions.to(state.device)]) for state in states]
    needs_gradients = torch.is_grad_enabled() and embeds.requires_grad
    splits = needs_gradients and constant_length >= WORTH_A_PASS and _continues_exactly(llm, layers)
    if not splits:
        return _run(llm, layers, inputs, options)[0]
    return _run_in_two(llm, layers, inputs, constant_length, options)


def observed_run(llm, layers, inputs, options):
    """The whole LLM's outputs, and the states after `layers` as `states_after` gives them."""
    states = []
    view = _with_layers(llm, _layers_of(llm), _observed(_layers_of(llm), layers, states))
    outputs = view(**inputs, **options)
    return outputs, states


def run_and_see_last_states(llm, inputs, options):
    """The whole LLM's outputs, and what its output layer was given: the last hidden states [batch, positions,
    hidden_size]. None where it has no output layer, or does not run it as a module."""
    output_layer = without_peft(llm).get_output_embeddings()
    if output_layer is None:
        return llm(**inputs, **options), None
    seen = []
    view = _with_module(llm, output_layer, _Seen(output_layer, seen))
    outputs = view(**inputs, **options)
    return outputs, seen[0] if seen else None


def _run_in_two(llm, layers, inputs, constant_length, options):
    length = inputs["inputs_embeds"].shape[1]
    beginning = {name: value[:, :constant_length] for name, value in inputs.items()}
    rest = {name: value[:, constant_length:] for name, value in inputs.items()}
    rest["attention_mask"] = inputs["attention_mask"][:, :length]
    with torch.no_grad():
        _, outputs = _run(llm, layers, beginning, options | {"use_cache": True})
    continued = {"use_cache": True, "past_key_values": outputs.past_key_values}
    return _run(llm, layers, rest, options | continued)[0]


def _run(llm, layers, inputs, options):
    """States by layer, and the outputs of the LLM's base model up to the last of `layers`."""
    states, found = [], _layers_of(llm)
    base = without_peft(llm).base_model
    view = _with_layers(base, found, _observed(found[: layers[-1]], layers, states))
    parameters = signature(type(base).forward).parameters
    inputs = {name: value for name, value in inputs.items() if name != "position_ids" or name in parameters}
    outputs = view(**inputs, **options)
    return states, outputs


class _Observed(nn.Module):
    """A layer of the LLM that notes in a list of this call what it gives.

    A hook on the layer itself would be seen by every thread that runs the LLM.
    """

    def __init__(self, layer, states):
        super().__init__()
        # not registered: it belongs to the LLM
        self.__dict__["layer"], self.__dict__["states"] = layer, states

    def forward(self, *args, **kwargs):
        outputs = self.layer(*args, **kwargs)
        self.states.append(outputs[0] if isinstance(outputs, tuple) else outputs)
        return outputs

    def __getattr__(self, name):
        # an LLM asks its layers what kind of attention they have
        return getattr(self.__dict__["layer"], name)


class _Seen(_Observed):
    """The same for what it is given."""

    def forward(self, *args, **kwargs):
        self.states.append(args[0] if args else next(iter(kwargs.values())))
        return self.layer(*args, **kwargs)


def _observed(found, layers, states):
    return [_Observed(layer, states) if number in layers else layer for number, layer in enumerate(found, start=1)]


def _layers_of(llm):
    """The list of an LLM's layers (`nn.ModuleList`): as many as its config says, beside the input embedding."""
    count = getattr(llm.config.get_text_config(), "num_hidden_layers", None)
    embedding = llm.get_input_embeddings()
    for module in llm.modules():
        for child in module.children():
            is_list = isinstance(child, nn.ModuleList) and len(child) == count
            if is_list and any(other is embedding for other in module.modules()):
                return child
    raise ValueError(f"the layers of {type(llm).__name__} cannot be found; expected head_layers None")


def _with_layers(root, found, layers):
    """`root` as it is, sharing all weights, but with `layers` where `found` stands in it."""
    return _with_module(root, found, nn.ModuleList(layers))


def _with_module(root, found, replacement):
    """`root` as it is, sharing all weights, but with `replacement` where the module `found` stands in it."""
    place = next(name for name, module in root.named_modules() if module is found)
    view = here = _copied(root)
    *parents, last = place.split(".")
    for name in parents:
        here._modules[name] = _copied(here._modules[name])
        here = here._modules[name]
    here._modules[last] = replacement
    return view


def _copied(module):
    # not by `copy`, which makes FSDP2's classes anew
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied.__dict__["_modules"] = dict(module._modules)
    # accelerate binds a dispatched module's `forward` to the module itself; its layers move their inputs themselves
    copied.__dict__.pop("forward", None)
    return copied


@torch.no_grad()
def _continues_exactly(llm, layers):
    """
    Whether this LLM's layers, continued from their keys and values, compute what they compute in one pass.

    Recurrent LLMs change their state in place, and some forget the mask or the positions. Rather than keep a list, a
    trial of a few tokens decides, whose outcome is remembered on the LLM.
    """
    if any(getattr(module, "gradient_checkpointing", False) and module.training for module in llm.modules()):
        # then transformers keeps no cache
        return False
    outcomes = llm.__dict__.setdefault("_continues_exactly", {})
    key = (layers[-1], str(getattr(llm.config.get_text_config(), "_attn_implementation", None)))
    if key not in outcomes:
        outcomes[key] = not getattr(llm, "_is_stateful", False) and _split_equals_whole(llm, layers)
    return outcomes[key]


def _split_equals_whole(llm, layers):
    embedding = llm.get_input_embeddings()
    device = "cpu" if embedding.weight.is_meta else embedding.weight.device
    embeds = embedding(torch.arange(16, device=device).view(2, 8) % embedding.num_embeddings)
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5], device=embeds.device)
    inputs = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    whole = _run(llm, layers, inputs, plainly(llm))[0][-1][:, 5:].float()
    try:
        split = _run_in_two(llm, layers, inputs, 5, plainly(llm))[-1].float()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    # by rounding alone the two differ in bfloat16 by some thousandths
    return bool((split - whole).norm() <= 0.02 * whole.norm())
