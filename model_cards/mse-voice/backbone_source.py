"""Is an LLM in memory what its name gives to others? Merged adapters, further training and resizing leave the name."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import cached_file
from transformers.utils.quantization_config import QuantizationMethod

from .sharded_weights import full_shape, full_weight, is_sharded, weights_come_later

# rounding to bfloat16 and back
TOLERANCE = 2.0**-8


def as_plain_weights(llm):
    """
    Lets an LLM that was read from a GGUF file, whose weights are plain floats by then, be trained around and saved:
    transformers 5.23 takes it for quantized because of where it came from.
    """
    quantizer = getattr(llm, "hf_quantizer", None)
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    if method == QuantizationMethod.GGUF and all(weight.is_floating_point() for weight in llm.parameters()):
        llm.hf_quantizer, llm.is_quantized = None, False
        for config in {id(own): own for own in (llm.config, llm.config.get_text_config())}.values():
            if hasattr(config, "quantization_config"):
                del config.quantization_config
    return llm


def differing_weight(own, given, rows=None):
    """
    The first of an LLM's weights in a file that is not the LLM's own.

    Args:
        own (`dict[str, torch.Tensor]`): the LLM's weights by name; what is on meta counts as equal.
        given (`dict[str, torch.Tensor]`): those in the file, by the same names.
        rows (`int`, *optional*): only so many rows of each need be equal.

    Returns:
        `str`: its name, or None where all are equal.
    """
    for name, value in given.items():
        weight = own.get(name)
        if weight is None or full_shape(weight) != value.shape:
            return name
        weight = weight if weight.is_meta else full_weight(weight)
        if rows is not None:
            weight, value = weight[:rows], value[:rows]
        if not weight.is_meta and not torch.equal(weight.to(value), value):
            return name
    return None


@torch.no_grad()
def differs_from_source(llm, name, revision=None):
    """
    Whether an LLM is another than its name says.

    Two rows of every weight are compared, up to rounding to bfloat16, with the file that the name stands for. What
    cannot be looked at from here (an id that is not in the cache, weights of another format or on meta, quantized
    ones) counts as equal.

    Args:
        llm (`PreTrainedModel`), name (`str`): folder or Hub id, revision (`str`, *optional*).

    Returns:
        `str`: what differs; None where nothing does.
    """
    if weights_come_later():
        return None
    if hasattr(llm, "get_base_model"):
        return f"it is a {type(llm).__name__} around it"
    own = {place: weight for place, weight in llm.state_dict(keep_vars=True).items() if weight.is_floating_point()}
    for file in _weight_files(name, revision):
        with safe_open(file, framework="pt") as weights:
            for place in weights.keys():  # noqa: SIM118 (it is no dict)
                weight = own.get(place)
                if weight is None or weight.is_meta or is_sharded(weight):
                    continue
                if type(weight).__name__ not in ("Parameter", "Tensor"):
                    continue
                stored = weights.get_slice(place)
                if list(stored.get_shape()) != list(weight.shape):
                    return f"{place} has the shape {list(weight.shape)} instead of {list(stored.get_shape())}"
                if weight.ndim == 0 or 0 in weight.shape:
                    continue
                for row in {0, len(weight) // 2}:
                    expected, came = stored[row : row + 1].float(), weight[row : row + 1].cpu().float()
                    if not torch.allclose(came, expected, rtol=TOLERANCE, atol=1e-6):
                        return f"{place} has other values"
    return None


def _weight_files(name, revision):
    """The safetensors files of a folder, or of a Hub id as far as it lies in the cache."""
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    options = {"revision": revision, "local_files_only": True, **quiet}
    try:
        if single := cached_file(name, "model.safetensors", **options):
            return [single]
        index = cached_file(name, "model.safetensors.index.json", **options)
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()) if index else ()
        return [path for file in sorted(names) if (path := cached_file(name, file, **options))]
    except (OSError, ValueError):
        return []
