"""What a frozen LLM makes of each text of a data set, computed once: with the fusion "head" that is all that training
needs of the LLM."""

import hashlib
import itertools
import logging
from collections import defaultdict
from pathlib import Path

import datasets
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_mse_adapter.processing_mse_adapter import MODALITIES

logger = logging.getLogger(__name__)

# raise it when the code below, or the LLM's part of the adapter, gives other states than before
CACHE_VERSION = 1
TOKENS_PER_PASS = 1024


class StatesCollator:
    """`processor.collate` for samples that bring their `llm_states` [layers, hidden_size]."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, samples):
        states = [sample["llm_states"] for sample in samples]
        samples = [{name: value for name, value in sample.items() if name != "llm_states"} for sample in samples]
        batch = self.processor.collate(samples)
        batch["llm_states"] = torch.stack(states)
        return batch


def llm_states_of_samples(model, processor, samples, cache_dir=None):
    """
    The states that a model with the fusion "head" reads, of every sample.

    The prompts go through the LLM sorted by length, as many at once as fill about a thousand tokens. One that is the
    beginning of another, as an utterance's in a dialogue whose later utterances show it as context, is read on the
    other's way. The result is kept on disk, by the LLM's weights, dtype and the prompts' tokens.

    Args:
        model (MseForConditionalGeneration), processor (MseProcessor).
        samples (MsaSamples): their texts, contexts and speakers count.
        cache_dir (str or Path, optional): instead of a folder beside the caches of `datasets`.

    Returns:
        torch.Tensor [samples, layers, hidden_size] in the LLM's dtype, on the CPU.
    """
    words = samples.words()
    prompts = [processor(**{name: sample.get(name) for name in ("text", "context", "speaker")}) for sample in words]
    rows = [prompt["input_ids"][0] for prompt in prompts]
    place = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "mse_llm_states")
    file = place / f"{_key(model, rows)}.safetensors"
    if file.is_file():
        try:
            return load_file(file)["states"]
        except SafetensorError:
            logger.warning(f"{file} is damaged: the LLM's states are computed again")
    owners = prompts_within_others(rows)
    members = defaultdict(list)
    for sample, owner in enumerate(owners):
        members[owner].append(sample)
    states = None
    for chunk in _chunks(sorted(members, key=lambda sample: len(rows[sample])), rows):
        batch = processor(**{name: [words[i].get(name) for i in chunk] for name in ("text", "context", "speaker")})
        batch = {name: value for name, value in batch.items() if not name.startswith(MODALITIES)}
        read = [(row, sample) for row, owner in enumerate(chunk) for sample in members[owner]]
        found = model.llm_states(**batch, ends=[(row, len(rows[sample])) for row, sample in read]).cpu()
        states = found.new_zeros(len(rows), *found.shape[1:]) if states is None else states
        states[torch.tensor([sample for _, sample in read])] = found
    place.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{torch.randint(2**31, ()).item()}.unfinished")
    save_file({"states": states}, unfinished)
    unfinished.replace(file)
    return states


def prompts_within_others(rows):
    """For each row of tokens the longest row that begins with it: itself, where there is no other (list[int])."""
    tokens = [row.tolist() for row in rows]
    order = sorted(range(len(rows)), key=tokens.__getitem__)
    owners = list(range(len(rows)))
    # in this order a beginning stands right before what it begins
    for sample, following in reversed(list(itertools.pairwise(order))):
        if tokens[following][: len(tokens[sample])] == tokens[sample]:
            owners[sample] = owners[following]
    return owners


def _chunks(order, rows):
    """Parts of `order` of at most TOKENS_PER_PASS tokens, or one sample, as padded to the longest."""
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * len(rows[order[stop]]) > TOKENS_PER_PASS:
            yield order[start:stop]
            start = stop


def _key(model, rows):
    llm = model.language_model
    digest = hashlib.sha256(
        repr((CACHE_VERSION, transformers.__version__, str(llm.dtype), model.config.head_layers)).encode()
    )
    digest.update(repr(llm.config.to_diff_dict().get("quantization_config")).encode())
    for name, parameter in llm.named_parameters():
        digest.update(name.encode())
        if parameter.is_floating_point():
            digest.update(
                parameter.detach().flatten()[:: max(1, parameter.numel() // 64)].float().cpu().numpy().tobytes()
            )
    for row in rows:
        digest.update(row.numpy().tobytes() + b"|")
    return digest.hexdigest()[:32]
