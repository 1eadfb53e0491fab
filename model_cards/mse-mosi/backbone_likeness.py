"""Is this the LLM that an adapter was trained for, or one so near that the adapter works with it?

Copies of one LLM differ a little: the Hub's weights from those of a 4-bit file, bfloat16 from float32. Another LLM of
the same shape would answer nonsense without a word. So a published adapter records a few rows of its LLM's weights.
"""

import base64
import logging

import numpy as np
import torch

from .sharded_weights import full_shape, full_weight, weights_come_later

logger = logging.getLogger(__name__)

MINIMUM_COSINE = 0.98
# below it the note says so: rounding to bfloat16 leaves .99999, to 4 bit .99
EXACT_COSINE = 0.9999
NUM_EMBEDDINGS, NUM_MATRICES, ROW_LENGTH = 12, 12, 64
SENTENCES = (
    "I didn't like it, but the 2nd half wasn't bad.",
    "  Two spaces\n\nand a new line: 1,234.50 €",
    "Ça va? 我很喜欢这部电影。 Отлично!",
)


@torch.no_grad()
def likeness_of(llm):
    """
    What tells an LLM from others: its shape, and some rows of its weights.

    Args:
        llm (`PreTrainedModel`)

    Returns:
        `dict`: hidden_size, num_hidden_layers, vocab_size, and rows {"parameter's name:row": base64 of float16 [at
        most 64]}, which JSON can hold.
    """
    rows = {}
    embedding = full_weight(llm.get_input_embeddings().weight)
    for row in np.linspace(0, len(embedding) - 1, NUM_EMBEDDINGS).astype(int):
        rows[f"embedding:{row}"] = _written(embedding[int(row)])
    matrices = _matrices(llm)
    names = sorted(matrices)
    for place in sorted(set(np.linspace(0, len(names) - 1, NUM_MATRICES).astype(int))) if names else ():
        matrix = full_weight(matrices[names[place]])
        row = len(matrix) // 2
        rows[f"{names[place]}:{row}"] = _written(matrix[row])
    # a padding token's embedding may be zero, which points nowhere
    rows = {name: text for name, text in rows.items() if set(base64.b64decode(text)) != {0}}
    return _shape(llm) | {"rows": rows}


def require_likeness(llm, recorded, tokenizers=None, ignore_mismatched_backbone=False):
    """
    Refuse an LLM that is another than the recorded one; say so where it is a near copy.

    Args:
        llm (`PreTrainedModel`), recorded (`dict`): as `likeness_of` gives it.
        tokenizers (`tuple`, *optional*): of the adapter's folder and of the LLM.
        ignore_mismatched_backbone (`bool`): warn instead of refusing.

    Returns:
        `float`: the mean cosine between recorded and found rows, NaN where none could be compared.

    Raises:
        ValueError: naming what differs.
    """
    if weights_come_later():
        return float("nan")
    problem, cosine = _difference(llm, recorded, tokenizers)
    if problem and not ignore_mismatched_backbone:
        raise ValueError(f"the LLM is not the one that this adapter was trained for: {problem}")
    if problem:
        logger.warning(f"the LLM is not the one that this adapter was trained for: {problem}")
    elif cosine < EXACT_COSINE:
        logger.warning(
            f"the LLM is a near copy of the one that this adapter was trained for (cosine of weights {cosine:.4f}): "
            "answers differ a little"
        )
    return cosine


def _difference(llm, recorded, tokenizers):
    for name, found in _shape(llm).items():
        if found != recorded[name]:
            return f"{name} is {found}; expected {recorded[name]}", float("nan")
    if tokenizers is not None:
        expected, found = ([tokenizer(text).input_ids for text in SENTENCES] for tokenizer in tokenizers)
        for text, one, other in zip(SENTENCES, expected, found, strict=True):
            if one != other:
                return f"its tokenizer writes {text!r} as {other}; expected {one}", float("nan")
    cosines = []
    for name, text in recorded["rows"].items():
        found = _found_row(llm, name)
        if found is not None:
            one = torch.from_numpy(np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32))
            cosines.append(torch.cosine_similarity(one, found.float().cpu()[: len(one)], dim=0).item())
    cosine = float(np.mean(cosines)) if cosines else float("nan")
    if cosine < MINIMUM_COSINE:
        return f"the cosine between rows of its weights is {cosine:.3f}; expected {MINIMUM_COSINE} or more", cosine
    return None, cosine


@torch.no_grad()
def _found_row(llm, name):
    """The row that `name` says, or None where it is not to be had (quantised, elsewhere, or of another name)."""
    name, row = name.rsplit(":", 1)
    weight = llm.get_input_embeddings().weight if name == "embedding" else _matrices(llm).get(name)
    if weight is None or not _is_plain(weight) or int(row) >= full_shape(weight)[0]:
        return None
    return full_weight(weight)[int(row)]


def _matrices(llm):
    """The weights of linear layers by name, as far as they are plain numbers."""
    embedding = llm.get_input_embeddings().weight
    return {
        name: weight
        for name, weight in llm.named_parameters()
        if len(full_shape(weight)) == 2 and _is_plain(weight) and weight is not embedding
    }


def _is_plain(weight):
    return weight.is_floating_point() and not weight.is_meta


def _written(row):
    # a copy: what NumPy has looked at can no longer be resized, as FSDP2 does with weights
    return base64.b64encode(row[:ROW_LENGTH].detach().float().cpu().clone().numpy().astype(np.float16)).decode()


def _shape(llm):
    config = llm.config.get_text_config()
    rows, width = full_shape(llm.get_input_embeddings().weight)
    return {
        "hidden_size": width,
        "num_hidden_layers": getattr(config, "num_hidden_layers", None),
        "vocab_size": rows,
    }
