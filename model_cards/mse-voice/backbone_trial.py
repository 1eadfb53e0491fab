"""How an LLM reads what an adapter gives it: found out on a small random LLM of the same kind, before it is trusted.

transformers' causal LMs take embeddings, a mask and positions in one form, and mean different things by it. Some want
the tokens besides, some ignore the mask, count positions themselves, or see the future. None says so: the answers
are merely wrong. Rather than keep a list of families, a trial compares: tokens with their embeddings, a text alone
with the same text padded and in company, texts within the attention window with longer ones. It runs on a random LLM
of two layers with the LLM's own code and config, so that nothing depends on where the LLM's weights are (on meta,
on disk, divided among processes).
"""

import copy
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature

import torch
from transformers.utils import logging

from .sharded_weights import is_sharded

logger = logging.get_logger(__name__)

VOCABULARY = 128
WINDOW = 8
# a trial's texts, in tokens: two beyond the window, of which one is padded, one within, one as short as can be
LENGTHS = (21, 13, 6, 2)
MOST_PARAMETERS = 400_000_000
# relative to the spread of the logits; float32 differs by 1e-5, a missing input or a wrong position by more than 0.01
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Reading:
    """
    How an LLM is to be run.

    Attributes:
        takes_positions (`bool`): position ids that count from 0 mean what they say. Otherwise it counts by itself.
        reads_mask (`bool`): padding has no effect. Otherwise no text may have padding before it.
        generates (`bool`): `generate` from embeddings writes what the LLM itself would, or fails.
        failed_to_generate (`bool`): it failed in the trial, and is expected to fail again.
        generates_padded (`bool`): also where texts of several lengths are padded.
        fault (`str`, *optional*): why it cannot be run by embeddings at all.
    """

    takes_positions: bool = True
    reads_mask: bool = True
    generates: bool = True
    generates_padded: bool = True
    failed_to_generate: bool = False
    fault: str | None = None


def without_peft(llm):
    """The LLM itself, where a PEFT model of another type (LoRA) stands around it: what that adds lies within its
    layers, and only the LLM's own signature says what it takes."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


def reading_of(llm):
    """
    How this LLM is to be run (`Reading`), tried once for each class and config.

    Args:
        llm (`PreTrainedModel`): a causal LM, its weights anywhere; or a PEFT model around one.
    """
    llm = without_peft(llm)
    implementation = _attention_of(llm.config)
    known = llm.__dict__.get("_reading")
    # its attention can be exchanged at any time
    if known is None or known[0] != implementation:
        known = implementation, _tried(_Kind(llm)) or _tried_itself(llm)
        llm.__dict__["_reading"] = known
    return known[1]


def _attention_of(config):
    return str(getattr(config.get_text_config(), "_attn_implementation", None))


def plainly(llm):
    """Options of one pass (`dict`), by which an LLM's outputs come by name, without a cache and without what nobody
    reads, whatever its own config says."""
    options, configs = {"use_cache": False}, (llm.config, llm.config.get_text_config())
    for name, plain in (("return_dict", True), ("output_hidden_states", False), ("output_attentions", False)):
        if any(bool(getattr(config, name, plain)) != plain for config in configs):
            options[name] = plain
    return options


def arranged(llm, inputs, positions):
    """
    An LLM's inputs as it reads them: those that ignore the mask get all padding behind the texts, where what a causal
    LLM makes of it has no effect.

    Args:
        llm (`PreTrainedModel`), inputs (`dict`): inputs_embeds, attention_mask, position_ids.
        positions (`torch.Tensor` int64 [positions]): where outputs are wanted.

    Returns:
        `tuple`: inputs; positions; a function from outputs [batch, positions, ...] there to those that were wanted.
    """
    reading = reading_of(llm)
    if not reading.takes_positions:
        inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    mask = inputs["attention_mask"]
    if reading.reads_mask or mask.ndim != 2 or mask.all():
        return inputs, positions, lambda outputs: outputs
    order = texts_first(mask)
    places = order.argsort(dim=1)[:, positions.to(mask.device)]
    wanted, where = places.unique(return_inverse=True)
    rows = torch.arange(len(mask))[:, None]
    moved = inputs | {name: value[rows.to(value.device), order.to(value.device)] for name, value in inputs.items()}
    return moved, wanted, lambda outputs: outputs[rows.to(outputs.device), where.to(outputs.device)]


def put_back(llm, mask, outputs, dims):
    """What an LLM gave for whole sequences that ran `arranged`, in the order of their mask [batch, length] again along
    the dimensions `dims`."""
    if reading_of(llm).reads_mask or mask.ndim != 2 or mask.all():
        return outputs
    back, rows = texts_first(mask).argsort(dim=1).to(outputs.device), torch.arange(len(mask))[:, None]
    for dim in dims:
        if outputs.ndim > dim and outputs.shape[dim] == mask.shape[1]:
            outputs = outputs.transpose(1, dim)[rows, back].transpose(1, dim)
    return outputs


def texts_first(mask):
    """The order [batch, length] that brings each row's texts, which `mask` marks, before its padding."""
    return (mask == 0).int().argsort(dim=1, stable=True)


class _Kind:
    """An LLM's class and config as the key of a cache: equal where trials would be."""

    def __init__(self, llm):
        self.model_class, self.config = type(llm), llm.config
        implementation = _attention_of(llm.config)
        # others need a GPU, and are held to the same meaning by transformers
        self.implementation = implementation if implementation == "sdpa" else "eager"
        unimportant = r'"(_name_or_path|transformers_version|dtype|torch_dtype|architectures|quantization_config)"'
        lines = llm.config.to_json_string(use_diff=False).splitlines()
        self.key = (
            self.model_class,
            self.implementation,
            "\n".join(line for line in lines if not re.match(rf"\s*{unimportant}: ", line)),
        )

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key


@lru_cache(maxsize=256)
def _tried(kind):
    # also where an LLM is being built on meta
    with torch.device("cpu"):
        llm = small_llm(kind.model_class, kind.config, kind.implementation)
        return None if llm is None else trial(llm)


def _tried_itself(llm):
    """Without a small LLM of its kind, the LLM itself has to show it, where its weights are at hand."""
    weight = llm.get_input_embeddings().weight
    if not weight.is_meta and not is_sharded(weight):
        was_training = llm.training
        try:
            with weight.device:
                return trial(llm.eval())
        except torch.OutOfMemoryError:
            pass
        finally:
            llm.train(was_training)
    logger.warning(f"{type(llm).__name__} could not be tried on a small scale: how it reads padding is not known")
    return Reading()


@torch.no_grad()
def trial(llm):
    """Run texts through an LLM in each way that there is, and take the first that gives what its tokens give."""
    texts, embedding = _texts(llm), llm.get_input_embeddings()
    try:
        expected = [_logits(llm, input_ids=text[None])[0] for text in texts]
        beginning = _logits(llm, input_ids=texts[0][None, :7])[0]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return Reading(fault=f"does not run by input_ids alone ({_first_line(error)})")
    if not _equal(beginning, expected[0][:7]):
        return Reading(fault="sees later tokens, as no causal LM does (some want is_decoder=True in their config)")
    try:
        by_embeddings = [_logits(llm, inputs_embeds=embedding(text[None]))[0] for text in texts]
        # pseudo tokens are no token's embedding: some LLMs look up which one it is
        between = (embedding(texts[0][None]) + embedding(texts[0].flip(0)[None])) / 2
        _logits(llm, inputs_embeds=between)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each family refuses in its own way
        return Reading(fault=f"does not run by inputs_embeds alone ({_first_line(error)})")
    if not all(map(_equal, by_embeddings, expected)):
        return Reading(fault="computes something else from embeddings than from their tokens")
    faults = []
    for reads_mask in (True, False):
        for takes_positions in (True, False):
            if takes_positions and "position_ids" not in signature(llm.forward).parameters:
                continue
            reading = Reading(takes_positions, reads_mask)
            fault = _fault_of(llm, reading, texts, expected)
            if fault is None:
                padded = reads_mask and bool(_generates(llm, reading, [texts[1:]]))
                alone = padded or _generates(llm, reading, [[text] for text in texts[1:]])
                return replace(
                    reading,
                    generates=alone is not False,
                    generates_padded=padded,
                    failed_to_generate=alone is None,
                )
            faults.append(fault)
    return Reading(fault=f"gives other answers to a text in a batch than alone ({faults[-1]})")


def _fault_of(llm, reading, texts, expected):
    for side in ("left", "right") if reading.reads_mask else ("right",):
        try:
            logits = _logits(llm, **_padded(llm, reading, texts, side))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return _first_line(error)
        for length, row, alone in zip(LENGTHS, logits, expected, strict=True):
            if not _equal(row[-length:] if side == "left" else row[:length], alone):
                return f"{length} tokens padded on the {side}"
    return None


def _padded(llm, reading, texts, side):
    longest = max(map(len, texts))
    ids = texts[0].new_zeros(len(texts), longest)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if side == "left" else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    inputs = {"inputs_embeds": llm.get_input_embeddings()(ids), "attention_mask": mask}
    if reading.takes_positions:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return inputs


def _generates(llm, reading, batches):
    """Whether what `generate` writes from embeddings has the logits that the tokens so far have; None: it fails."""
    if not llm.can_generate():
        # remote code may lack it and still score answers
        return True
    for batch in batches:
        inputs = _padded(llm, reading, batch, "left")
        inputs.pop("position_ids", None)
        try:
            written = llm.generate(
                **inputs,
                max_new_tokens=3,
                min_new_tokens=3,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each family in its own way; that it fails is the outcome
            logger.debug(f"{type(llm).__name__} does not generate: {_first_line(error)}")
            return None
        for row, text in enumerate(batch):
            whole = torch.cat([text, written.sequences[row, :-1].to(text.device)])
            expected = _logits(llm, input_ids=whole[None])[0, len(text) - 1 :]
            if not _equal(torch.stack([step[row] for step in written.logits]).float(), expected):
                return False
    return True


def _texts(llm):
    weight = llm.get_input_embeddings().weight
    generator, count = torch.Generator().manual_seed(0), min(VOCABULARY, len(weight))
    texts = [torch.randint(count // 2, count, (length,), generator=generator) for length in LENGTHS]
    return [text.to(weight.device) for text in texts]


def _logits(llm, **inputs):
    return llm(**inputs, **plainly(llm)).logits


def _equal(a, b):
    if a.shape != b.shape or not b.isfinite().all():
        return False
    tolerance = max(TOLERANCE, 16 * torch.finfo(b.dtype).eps)
    return bool((a.float() - b.float()).abs().max() <= tolerance * b.float().std())


def _first_line(error):
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150] if str(error).strip() else ''}"


@torch.no_grad()
def small_llm(model_class, config, implementation="eager"):
    """
    A random LLM of a class, as its config says but for few layers, a small vocabulary, short windows and, where that
    runs, thin layers. None where none runs.
    """
    for few_layers, divisor in ((True, 16), (True, 8), (True, 4), (False, 16), (False, 8), (True, 2), (True, 1)):
        try:
            small = small_config(config, divisor, few_layers)
            small._attn_implementation = implementation
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in model_class(copy.deepcopy(small)).parameters())
            if count > MOST_PARAMETERS:
                continue
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                llm = model_class(small).float().eval()
                for stir in (_stir, _stir_gently):
                    stir(llm)
                    logits = _logits(llm, input_ids=_texts(llm)[0][None])
                    if logits.isfinite().all() and logits.std() > 0:
                        return llm
        except Exception as error:  # its config allows no such size, each in its own way: the next one is tried
            logger.debug(f"{model_class.__name__} at 1/{divisor}: {_first_line(error)}")
    return None


def _stir(llm):
    """Weights at which every part of the LLM has an effect, also those that usually begin at zero."""
    for parameter in llm.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1 / math.sqrt(max(parameter.shape[-1], 1)))
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    torch.nn.init.normal_(llm.get_input_embeddings().weight)


def _stir_gently(llm):
    """The same for an LLM that overflows so: its own initialisation, and a little of everything."""
    llm.init_weights()
    for parameter in llm.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.03)


LAYER_COUNT = re.compile(r"(num_.*layers|n_layers?|num_blocks|.*_layers|n_block|depth)$")
WIDTH = re.compile(
    r"(.*(hidden|intermediate|ffn|inner|embd|embed|width|dim|rank|d_model|d_ff|d_kv|d_head)(_.*)?|.*_size)$"
)
NO_WIDTH = re.compile(
    r".*(vocab|window|chunk|kernel|patch|image|position|token|layer|conv|num_|n_head|_heads|factor|block_size"
    r"|group|state|dims|_type|_id)"
)
PERIOD = re.compile(r".*(_period|_interval|_pattern|_freq|_frequency|every_n.*|_step)$")


def small_config(config, divisor, few_layers=True):
    """A copy of an LLM's config with all widths divided, two layers and one more for each further kind of layer."""
    small = copy.deepcopy(config)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    _shrink(small, divisor, few_layers, set())
    return small


def _shrink(config, divisor, few_layers, seen):
    if id(config) in seen:
        return
    seen.add(id(config))
    names = [name for name in vars(config) if not name.startswith("_")]
    count = getattr(config, "num_hidden_layers", None)
    kept = _kept_layers(config, count, names) if few_layers else list(range(count or 0))
    for name in names:
        value = vars(config)[name]
        new = value
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            _shrink(value, divisor, few_layers, seen)
        elif isinstance(value, list | tuple) and count and len(value) == count and count > 1:
            new = type(value)(value[index] for index in kept)
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int):
            new = _small_int(name, value, divisor, few_layers and (len(kept) or 2))
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            new = _small_rope(value, divisor)
        if new is not value and new != value:
            try:
                setattr(config, name, new)
            except Exception as error:  # a field that is derived, or whose check refuses: it stays as it is
                logger.debug(f"{name}: {error}")


def _kept_layers(config, count, names):
    """The first layer of each kind, and at least two."""
    if not count:
        return []
    lists = [value for name in names if isinstance(value := vars(config)[name], list | tuple) and len(value) == count]
    firsts = {}
    for index in range(count):
        firsts.setdefault(repr([value[index] for value in lists]) if count > 1 else "", index)
    kept = sorted(firsts.values())
    if len(kept) > 4:
        kept = kept[:4]
    for index in range(count):
        if len(kept) >= min(2, count):
            break
        if index not in kept:
            kept.append(index)
    # layers that take the keys and values of others: each kind once more
    return sorted(kept) * (2 if getattr(config, "num_kv_shared_layers", 0) else 1)


def _small_int(name, value, divisor, layers):
    if "vocab_size" in name and "type" not in name:
        return min(value, VOCABULARY)
    if re.search(r"(token_id|token_index|_token_type_id)$", name):
        return value if 0 <= value < VOCABULARY // 2 else _small_id(name)
    if ("window" in name or "chunk" in name) and value > WINDOW:
        return WINDOW
    if layers and LAYER_COUNT.match(name) and value:
        return layers // 2 if "shared" in name else min(value, layers)
    if layers and PERIOD.match(name) and value > 2:
        return 2
    if layers and name.endswith("_offset"):
        return value % 2
    if WIDTH.match(name) and not NO_WIDTH.match(name) and value % divisor == 0 and value >= 4 * divisor:
        return value // divisor
    return value


def _small_id(name):
    return sum(map(ord, name)) % (VOCABULARY // 2)


def _small_rope(value, divisor):
    small = {}
    for name, item in value.items():
        if isinstance(item, dict):
            item = _small_rope(item, divisor)
        elif isinstance(item, list) and item and all(isinstance(number, int) for number in item):
            item = [number // divisor for number in item]
        elif isinstance(item, list) and item and isinstance(item[0], float):
            item = item[::divisor]
        small[name] = item
    return small
