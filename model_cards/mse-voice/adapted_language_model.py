"""An adapter and a frozen LLM at work together: what `MseForConditionalGeneration` and PEFT's tuner both do.

The adapter's pseudo tokens stand before the text, and the LLM writes the label. Whatever LLM it is, only its
embeddings are looked at, and it runs by `inputs_embeds`. One that needs the tokens besides (Gemma 3n with its inputs
to every layer) is refused; one that ignores the attention mask (RWKV) gets no padding before a text: backbone_trial.py
finds out.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.utils import ModelOutput, TransformersKwargs, logging

from .answers import Prediction, left_padded_prompts, require_finite
from .backbone_trial import arranged, plainly, put_back, reading_of, texts_first, without_peft
from .lower_layers import (
    num_layers_of,
    observed_run,
    parameters_of,
    run_and_see_last_states,
    states_after,
)
from .sharded_weights import full_shape, full_state_dict, is_sharded, is_writer, loads_on_one_process

logger = logging.get_logger(__name__)

# what an adapter makes for the LLM, so that nobody else can
MADE_HERE = {
    "inputs_embeds": "an MSE-Adapter embeds by itself; give input_ids",
    "position_ids": "an MSE-Adapter counts positions by the attention_mask; give that",
    "logits_to_keep": "the logits are those at logit_positions: of label tokens, or each prompt's last token",
    "past_key_values": "an MSE-Adapter gives whole prompts to the LLM; generate keeps a cache by itself",
}
SHOWN = ("output_hidden_states", "output_attentions")
BATCH_FIELDS = (
    "input_ids",
    "attention_mask",
    "pseudo_token_mask",
    "text_mask",
    "audio_values",
    "audio_attention_mask",
    "vision_values",
    "vision_attention_mask",
)


@dataclass
class MseOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` [], *optional*): with labels, or label_values for a head.
        logits (`torch.Tensor` [batch, positions, vocabulary], *optional*):
            Of the LLM, only at `logit_positions`. Not there where a head alone reads `head_layers`: the output layer
            is not run then.
        logit_positions (`torch.Tensor` int64 [batch, positions]):
            Where they are in the sequence: every position that predicts a label token in any row (logits at position
            t predict token t + 1); without labels, or with the head alone, each row's last prompt token. All rows
            are alike, so that whoever collects batches (Trainer for `compute_metrics`, which fills up with -100)
            still knows each sample's.
        head_output (`torch.Tensor` [batch, 1 or classes], *optional*): the number, or the classes' logits.
        hidden_states, attentions (`tuple`, *optional*):
            Where they are asked for, the LLM's own, at every position of the sequence. With `head_layers` they come of
            a pass of their own; where lower layers alone are run for a head, of the prompts padded on the left.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logit_positions: torch.Tensor | None = None
    head_output: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


def prepare_inputs(
    adapter,
    llm,
    input_ids=None,
    attention_mask=None,
    pseudo_token_mask=None,
    text_mask=None,
    audio_values=None,
    audio_attention_mask=None,
    vision_values=None,
    vision_attention_mask=None,
    labels=None,
):
    """
    Embed the tokens, and put the pseudo tokens among them.

    Args:
        adapter (`MseAdapter`), llm (`PreTrainedModel`).
        input_ids (`torch.Tensor` int64 [batch, length]); attention_mask [batch, length], all ones by default. Padding
            may be on either side.
        pseudo_token_mask (bool [batch, length]):
            Places kept for pseudo tokens, as many as there are in each row. Without it they are put in front of all.
        text_mask (bool [batch, length]):
            The tokens of the utterance, whose mean guides the mixer. By default all but padding, kept places, labels.
        audio_values, vision_values (float [batch, steps, features]), audio_attention_mask, vision_attention_mask
            ([batch, steps], by default all ones). None, no step, or a row of zeros in the mask: missing.
        labels (int64 [batch, length]): -100 where nothing is to be learnt.

    Returns:
        `dict`: inputs_embeds [batch, length (+ P), hidden_size] in the LLM's dtype, attention_mask, position_ids
        (counted by the mask, so that padding shifts nothing), and labels if given. With the fusion "head" no pseudo
        tokens are among them.

    Raises:
        ValueError: naming the argument, what came and what is expected.
    """
    embeds, mask, is_place, pseudo_tokens = _embedded(
        adapter,
        llm,
        input_ids,
        attention_mask,
        pseudo_token_mask,
        text_mask,
        audio_values,
        audio_attention_mask,
        vision_values,
        vision_attention_mask,
        labels,
    )
    device, pseudo_tokens = embeds.device, pseudo_tokens.to(embeds.dtype)
    if adapter.fusion == "head":
        return _llm_inputs(llm, embeds, mask, labels)
    if is_place is None:
        front = mask.new_ones(pseudo_tokens.shape[:2])
        embeds, mask = torch.cat([pseudo_tokens, embeds], dim=1), torch.cat([front, mask], dim=1)
        labels = None if labels is None else F.pad(labels.to(device), (adapter.num_pseudo_tokens, 0), value=-100)
    else:
        counts = is_place.sum(dim=1)
        if (counts != adapter.num_pseudo_tokens).any():
            raise ValueError(
                f"pseudo_token_mask keeps {counts.tolist()} places in its rows; expected {adapter.num_pseudo_tokens}"
            )
        embeds = embeds.masked_scatter(is_place[..., None], pseudo_tokens)
    return _llm_inputs(llm, embeds, mask, labels)


def _llm_inputs(llm, embeds, mask, labels):
    _require_room(llm, mask)
    inputs = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    return inputs if labels is None else inputs | {"labels": labels.to(embeds.device)}


def _embedded(
    adapter,
    llm,
    input_ids,
    attention_mask,
    pseudo_token_mask,
    text_mask,
    audio_values,
    audio_attention_mask,
    vision_values,
    vision_attention_mask,
    labels,
):
    """The tokens' embeddings, the mask as int64, the places kept for pseudo tokens as bool or None, and these."""
    if input_ids is None or input_ids.ndim != 2 or 0 in input_ids.shape:
        came = None if input_ids is None else list(input_ids.shape)
        raise ValueError(f"input_ids has the shape {came}; expected [batch, length] with at least one token")
    embedding = llm.get_input_embeddings()
    if embedding.weight.is_meta and getattr(embedding, "_hf_hook", None) is None:
        raise ValueError("the LLM's weights are on the meta device; expected weights that were loaded")
    input_ids = _known_ids(input_ids, embedding.num_embeddings, attention_mask, pseudo_token_mask)
    embeds = embedding(input_ids)
    device = embeds.device
    if embeds.shape[-1] != adapter.projector.projection.out_features:
        expected = adapter.projector.projection.out_features
        raise ValueError(
            f"the LLM's embeddings have width {embeds.shape[-1]}; expected {expected}, as the adapter has"
        )
    token_fields = {
        "attention_mask": attention_mask,
        "pseudo_token_mask": pseudo_token_mask,
        "text_mask": text_mask,
        "labels": labels,
    }
    for name, value in token_fields.items():
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(f"{name} has the shape {list(value.shape)}; expected {list(input_ids.shape)}")
    mask = torch.ones_like(input_ids, device=device) if attention_mask is None else attention_mask.to(device).long()
    is_place = None if pseudo_token_mask is None else pseudo_token_mask.to(device).bool()
    is_text = mask.bool() if text_mask is None else text_mask.to(device).bool() & mask.bool()
    if text_mask is None and is_place is not None:
        is_text = is_text & ~is_place
    if text_mask is None and labels is not None:
        is_text = is_text & (labels.to(device) == -100)

    audio = _modality("audio", audio_values, audio_attention_mask, adapter.audio_dim, len(embeds), device)
    vision = _modality("vision", vision_values, vision_attention_mask, adapter.vision_dim, len(embeds), device)
    return embeds, mask, is_place, adapter(embeds, is_text, *audio, *vision)


def bare_inputs(llm, batch):
    """`prepare_inputs` without an adapter: the same tokens as the LLM's own embeddings, also where pseudo tokens would
    stand, as `forward` and `generate` of a disabled adapter give them to it."""
    embedding = llm.get_input_embeddings()
    embeds = embedding(batch["input_ids"])
    mask = batch["attention_mask"].to(embeds.device).long()
    return {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


def _known_ids(input_ids, num_embeddings, attention_mask, pseudo_token_mask):
    """The ids, where any token may stand (padding, places of pseudo tokens) one that the LLM has.

    Raises:
        ValueError: a token that counts has no row in the LLM's embedding.
    """
    unknown = (input_ids >= num_embeddings) | (input_ids < 0)
    if not unknown.any():
        return input_ids
    counts = torch.ones_like(unknown) if attention_mask is None else attention_mask.to(unknown.device).bool()
    if pseudo_token_mask is not None:
        counts = counts & ~pseudo_token_mask.to(unknown.device).bool()
    if (unknown & counts).any():
        came = int(input_ids[unknown & counts][0])
        raise ValueError(
            f"input_ids holds the token {came}; expected tokens from 0 to {num_embeddings - 1}, as the LLM's "
            "embedding has (resize_token_embeddings adds rows for new ones)"
        )
    return input_ids.masked_fill(unknown, 0)


def _require_room(llm, mask):
    """Refuse more tokens than the LLM has learnt positions for; where it computes them, warn."""
    config = llm.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or mask.shape[1] <= limit or (length := int(mask.sum(dim=1).max())) <= limit:
        return
    message = f"a prompt has {length} tokens; expected at most {limit}, the LLM's max_position_embeddings"
    if getattr(config, "rope_parameters", None) is None:
        raise ValueError(message)
    logger.warning_once(message)


def _modality(name, values, mask, dim, batch_size, device):
    """Values [batch, steps, features] and bool mask [batch, steps] of a modality, with no step where it is missing."""
    if values is None:
        values, mask = torch.zeros(batch_size, 0, dim), None
    if values.ndim != 3 or len(values) != batch_size or values.shape[2] != dim:
        raise ValueError(f"{name}_values has the shape {list(values.shape)}; expected [{batch_size}, steps, {dim}]")
    if mask is None:
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
    if mask.shape != values.shape[:2]:
        raise ValueError(f"{name}_attention_mask has the shape {list(mask.shape)}; expected {list(values.shape[:2])}")
    values, mask = values.to(device), mask.to(device).bool()
    if not values.masked_fill(~mask[..., None], 0).isfinite().all():
        raise ValueError(f"{name}_values holds NaN or infinite numbers at true steps; expected finite ones")
    return values, mask


def require_no_input_of_ours(options):
    """Refuse what only the adapter can give the LLM."""
    for name, reason in MADE_HERE.items():
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} cannot be used with an MSE-Adapter: {reason}")


def forward_with_adapter(
    adapter,
    llm,
    config,
    label_values=None,
    num_items_in_batch=None,
    num_samples_in_batch=None,
    llm_states=None,
    return_dict=None,
    **inputs,
):
    """
    Run the LLM behind the adapter; logits and loss only where a label is.

    Args:
        adapter (`MseAdapter`), llm (`PreTrainedModel`).
        config (`PreTrainedConfig`): whose return_dict, output_hidden_states and output_attentions are the defaults.
        label_values ([batch], *optional*): numbers or class indices for the head.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*):
            Label tokens in all batches that one optimiser step accumulates, as Trainer counts them. The loss is then
            this batch's share of the mean over them.
        num_samples_in_batch (`int`, *optional*):
            Samples in all these batches: a head's loss is then this batch's share of the mean over them. Where only
            the label tokens are counted (Trainer by itself counts nothing else), a head's batches weigh by those.
        llm_states (`torch.Tensor` [batch, layers, hidden_size], *optional*):
            For the fusion "head", what `llm_states_of` gave for these words before: the LLM is not run.
        return_dict (`bool`, *optional*)
        inputs: arguments of `prepare_inputs`, output_hidden_states, output_attentions; others go to the LLM.

    Returns:
        `MseOutput`, or with return_dict=False a tuple of what is in it.

    Raises:
        ValueError: naming the argument, what came and what is expected.
    """
    llm_options = {name: inputs.pop(name) for name in list(inputs) if name not in (*BATCH_FIELDS, "labels")}
    shown = {name: llm_options.pop(name, None) for name in SHOWN}
    shown = {name: getattr(config, name, None) if value is None else value for name, value in shown.items()}
    outputs = _forward(
        adapter,
        llm,
        inputs,
        label_values,
        num_items_in_batch,
        num_samples_in_batch,
        llm_states,
        llm_options,
        # which states, too: numbers of layers may stand for True
        {name: value for name, value in shown.items() if value is not None and value is not False},
    )
    return_dict = getattr(config, "return_dict", True) if return_dict is None else return_dict
    return outputs if return_dict else outputs.to_tuple()


def _forward(
    adapter,
    llm,
    inputs,
    label_values,
    num_items_in_batch,
    num_samples_in_batch,
    llm_states,
    llm_options,
    shown,
):
    require_no_input_of_ours(llm_options)
    if llm_options.pop("use_cache", None):
        raise ValueError("use_cache is True, but the forward pass of an MSE-Adapter keeps no cache; generate does")
    # many LLMs take whatever they are given, and a misspelt modality would be a missing one
    known = {*parameters_of(llm), *TransformersKwargs.__annotations__}
    if unknown := sorted(name for name, value in llm_options.items() if value is not None and name not in known):
        raise ValueError(
            f"unknown arguments {', '.join(unknown)}; expected {', '.join(BATCH_FIELDS)}, or the LLM's own"
        )
    if num_items_in_batch is not None and inputs.get("labels") is None:
        raise ValueError(
            "labels is missing, though its tokens were counted (num_items_in_batch): Trainer takes it from the model "
            "for label_smoothing_factor and compute_loss_func; expected neither (a compute_loss of your own keeps it)"
        )
    if llm_states is not None and adapter.fusion != "head":
        raise ValueError(f"llm_states is given, but fusion is {adapter.fusion!r}; expected 'head' for such states")
    if adapter.head_layers is not None and adapter.head_use == "alone":
        head_output, states = _head_on_lower_layers(adapter, llm, inputs, llm_states, llm_options, shown)
        share = _token_share(inputs.get("labels"), num_items_in_batch)
        loss = _head_loss(adapter, head_output, label_values, share, num_samples_in_batch)
        return MseOutput(loss=loss, head_output=head_output, **states)
    prepared = prepare_inputs(adapter, llm, **inputs)
    labels = prepared.pop("labels", None)
    mask = prepared["attention_mask"].bool()
    is_prompt = mask if labels is None else mask & (labels == -100)
    steps = torch.arange(mask.shape[1], device=mask.device)
    prompt_ends = torch.where(is_prompt, steps, 0).amax(dim=1)

    learns_tokens = labels is not None and adapter.head_use != "alone"
    wanted = torch.zeros_like(steps, dtype=torch.bool)
    if learns_tokens:
        wanted[:-1] = (labels[:, 1:] != -100).any(dim=0)
        if not wanted.any():
            raise ValueError("labels has no token to learn; expected one other than -100, not in the first position")
    if not learns_tokens or adapter.head_use == "beside":
        wanted[prompt_ends] = True
    positions = wanted.nonzero()[:, 0]
    logits, hidden_states, states = _run_llm(
        llm, prepared, positions, adapter.head_use != "none", adapter.head_layers, llm_options, shown
    )
    if hidden_states is None and adapter.head_use != "none":
        raise ValueError(f"head is {adapter.head_use!r}, but {type(llm).__name__} shows no hidden states")

    token_share = _token_share(labels, num_items_in_batch)
    losses, head_output = [], None
    if learns_tokens:
        targets = F.pad(labels, (0, 1), value=-100)[:, positions + 1].to(logits.device)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        losses.append(_share_of(loss, token_share))
    if hidden_states is not None:
        places = torch.searchsorted(positions, prompt_ends).to(hidden_states.device)
        rows = torch.arange(len(places), device=places.device)
        head_output = adapter.head_output(hidden_states[rows, places].to(prompt_ends.device))
        if label_values is not None:
            losses.append(_head_loss(adapter, head_output, label_values, token_share, num_samples_in_batch))
    loss = sum(item.to(losses[0].device) for item in losses) if losses else None
    rows = positions.repeat(len(mask), 1)
    return MseOutput(loss=loss, logits=logits, logit_positions=rows, head_output=head_output, **states)


def _head_on_lower_layers(adapter, llm, inputs, states, options, shown):
    """The head's output [batch, 1 or classes] where it reads lower layers alone: label tokens, the layers above and
    the output layer are not run. And what is `shown` of the LLM, which is run for it then."""
    prompts = _prompts(inputs)
    options = {name: value for name, value in options.items() if value is not None}
    if adapter.fusion == "head":
        states = llm_states_of(adapter, llm, prompts, options) if states is None else states
        fields = {name: prompts.get(name) for name in (*BATCH_FIELDS, "labels")}
        _, mask, _, pseudo_tokens = _embedded(adapter, llm, **fields)
        if states.shape[:2] != (len(mask), len(adapter.head_layers)):
            expected = f"[{len(mask)}, {len(adapter.head_layers)}, hidden_size]"
            raise ValueError(f"llm_states has the shape {list(states.shape)}; expected {expected}")
        prepared = prepare_inputs(adapter, llm, **prompts) if shown else None
        return adapter.head_output(states.to(mask.device), pseudo_tokens), _shown(llm, prepared, shown, options)
    prepared = prepare_inputs(adapter, llm, **prompts)
    places = prompts.get("pseudo_token_mask")
    constant_length = 0 if places is None else int(places.bool().any(dim=0).int().argmax())
    head_output = adapter.head_output(_last_states(adapter, llm, prepared, constant_length, options))
    return head_output, _shown(llm, prepared, shown, options)


@torch.no_grad()
def llm_states_of(adapter, llm, batch, options=None, ends=None):
    """
    What the LLM makes of the words alone: the states of `head_layers` at each prompt's last token.

    They do not depend on the adapter's weights, so that who asks for a text often may keep them, and give them back
    as `llm_states`.

    Args:
        adapter (`MseAdapter`): with the fusion "head".
        llm (`PreTrainedModel`), batch (`dict`): as `MseProcessor` makes it.
        options (`dict`, *optional*): for the LLM's own `forward`.
        ends (`list[tuple[int, int]]`, *optional*):
            Pairs (row, number of tokens): the states after so many of a row's tokens instead, which are those of a
            prompt that is the beginning of another. So a dialogue is read once for all of its utterances.

    Returns:
        `torch.Tensor` [batch, layers, hidden_size], or [ends, layers, hidden_size], in the LLM's dtype.
    """
    if adapter.fusion != "head":
        raise ValueError(f"fusion is {adapter.fusion!r}; expected 'head': else the LLM's states change in training")
    prompts = _prompts(batch)
    embedding = llm.get_input_embeddings()
    mask = prompts["attention_mask"].to(device_of(embedding)).long()
    ids = _known_ids(prompts["input_ids"].to(mask.device), embedding.num_embeddings, mask, None)
    prepared = _llm_inputs(llm, embedding(ids), mask, None)
    if ends is None:
        return _last_states(adapter, llm, prepared, 0, options or {})
    states = states_after(llm, adapter.head_layers, prepared, 0, options or {})
    rows, counts = torch.tensor(ends, device=mask.device).unbind(dim=1)
    # padded on the left
    places = mask.shape[1] - mask.sum(dim=1)[rows] + counts - 1
    return torch.stack([state.to(mask.device)[rows, places] for state in states], dim=1)


def _last_states(adapter, llm, prepared, constant_length, options):
    """States of `head_layers` at the prompts' ends [batch, layers, hidden_size]: the last place, as they are padded on
    the left."""
    states = states_after(llm, adapter.head_layers, prepared, constant_length, options)
    device = prepared["attention_mask"].device
    return torch.stack([state[:, -1].to(device) for state in states], dim=1)


def _head_loss(adapter, output, label_values, token_share, num_samples_in_batch):
    """The head's loss as its share, by samples or else by label tokens, of the mean over several batches."""
    if label_values is None:
        return None
    share = token_share if num_samples_in_batch is None else len(output) / num_samples_in_batch
    return _share_of(adapter.head_loss(output, label_values.to(output.device)), share)


def _token_share(labels, num_items_in_batch):
    """This batch's part of all label tokens that were counted; None where nothing was."""
    if labels is None or num_items_in_batch is None:
        return None
    return (labels[:, 1:] != -100).sum() / torch.as_tensor(num_items_in_batch, device=labels.device)


def _share_of(loss, share):
    """A batch's mean loss as its share (a number or tensor []) of the mean over several batches; None: all of it."""
    return loss if share is None else loss * torch.as_tensor(share, device=loss.device)


def _run_llm(llm, prepared, positions, needs_hidden_states, layers, options, shown):
    """Logits [batch, positions, vocabulary]; if needed and to be had, the last hidden states [batch, positions,
    hidden_size], or with `layers` those after each of them [batch, positions, layers, hidden_size]; and what is
    `shown` of the LLM."""
    options = {name: value for name, value in options.items() if value is not None}
    inputs, positions, as_wanted = _taken_by(llm, prepared, positions)
    can_choose = "logits_to_keep" in parameters_of(llm)
    if can_choose:
        inputs["logits_to_keep"] = positions

    if needs_hidden_states and layers is not None:
        outputs, states = observed_run(llm, layers, inputs, options | plainly(llm))
        logits = outputs.logits if can_choose else outputs.logits[:, positions.to(outputs.logits.device)]
        states = torch.stack([state[:, positions.to(state.device)].to(logits.device) for state in states], dim=2)
        return as_wanted(logits), as_wanted(states), _shown(llm, prepared, shown, options)

    hidden_states, whole, run_options = None, not can_choose, options | plainly(llm) | shown
    if needs_hidden_states:
        # what the output layer is given is the last hidden state; asking for all layers' would hold them in memory
        outputs, hidden_states = run_and_see_last_states(llm, inputs, run_options)
        if hidden_states is None:
            outputs, whole = llm(**inputs, **(run_options | {"output_hidden_states": True})), True
            hidden_states = outputs.hidden_states[-1] if outputs.hidden_states else None
    else:
        outputs = llm(**inputs, **run_options)
    logits = outputs.logits if can_choose else outputs.logits[:, positions.to(outputs.logits.device)]
    if hidden_states is not None:
        hidden_states = hidden_states[:, positions.to(hidden_states.device)] if whole else hidden_states
        hidden_states = as_wanted(hidden_states)
    return as_wanted(logits), hidden_states, _shown_of(llm, outputs, prepared["attention_mask"], shown)


def _taken_by(llm, prepared, positions):
    """As [`arranged`], without the positions that not every LLM takes."""
    inputs, positions, as_wanted = arranged(llm, prepared, positions)
    inputs = {name: value for name, value in inputs.items() if name != "position_ids" or name in parameters_of(llm)}
    return inputs, positions, as_wanted


def _shown(llm, prepared, shown, options):
    """hidden_states and attentions of the LLM's own pass over the prepared inputs, as far as they are `shown`."""
    if not shown:
        return {}
    inputs, _, _ = _taken_by(llm, prepared, torch.arange(prepared["attention_mask"].shape[1]))
    if "logits_to_keep" in parameters_of(llm):
        inputs["logits_to_keep"] = 1
    outputs = llm(**inputs, **(options | plainly(llm) | shown))
    return _shown_of(llm, outputs, prepared["attention_mask"], shown)


def _shown_of(llm, outputs, mask, shown):
    found = {}
    for name, dims in (("hidden_states", (1,)), ("attentions", (2, 3))):
        states = outputs.get(name) if f"output_{name}" in shown else None
        if states is not None:
            found[name] = tuple(None if each is None else put_back(llm, mask, each, dims) for each in states)
    return found


def generate_with_adapter(adapter, llm, **kwargs):
    """
    The LLM writes on after each prompt.

    Args:
        adapter (`MseAdapter`), llm (`PreTrainedModel`).
        kwargs: a batch as `MseProcessor` makes it, padded on either side (label tokens in it are left out), and
            options of `GenerationMixin.generate`.

    Returns:
        `torch.Tensor` int64 [batch, new tokens]: the new tokens only.
    """
    require_no_input_of_ours(kwargs)
    batch = {name: kwargs.pop(name) for name in (*BATCH_FIELDS, "labels", "label_values") if name in kwargs}
    prepared = prepare_inputs(adapter, llm, **_prompts(batch))
    # `generate` counts positions by the mask itself
    del prepared["position_ids"]
    reading = reading_of(llm)
    if not reading.generates:
        raise ValueError(
            f"the LLM is a {type(llm).__name__}, whose generate() writes something else from embeddings than from "
            "their tokens; expected a method that scores answers, or a head"
        )
    try:
        if not reading.generates_padded and not prepared["attention_mask"].all():
            return _generate_by_length(llm, prepared, kwargs)
        return llm.generate(**prepared, **kwargs)
    except (AttributeError, LookupError, TypeError) as error:
        # most often a cache that is handled as in transformers 4; answers by likelihood need none
        if is_remote_code(llm):
            raise remote_code_error(type(llm).__name__, error) from error
        if reading.failed_to_generate:
            raise _generation_error(llm, error) from error
        raise
    except (RuntimeError, ValueError) as error:
        if reading.failed_to_generate and not isinstance(error, torch.OutOfMemoryError):
            raise _generation_error(llm, error) from error
        raise


def _generation_error(llm, error):
    reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
    return ValueError(
        f"the LLM is a {type(llm).__name__}, whose generate() fails from embeddings ({reason}); expected a method "
        "that scores answers, or a head"
    )


def _generate_by_length(llm, prepared, options):
    """`generate` for an LLM that reads padding then: texts of equal length together, without any."""
    mask, embeds = prepared["attention_mask"], prepared["inputs_embeds"]
    order, lengths = texts_first(mask), mask.sum(dim=1)
    allowed = options.get("prefix_allowed_tokens_fn")
    # transformers counts samples of a prompt as rows, beams not
    copies = (options.get("num_return_sequences") or 1) if (options.get("num_beams") or 1) == 1 else 1
    written = {}
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        if allowed is not None:

            def allowed_here(index, ids, rows=rows):
                return allowed(int(rows[index // copies]) * copies + index % copies, ids)

            options = options | {"prefix_allowed_tokens_fn": allowed_here}
        tokens = llm.generate(
            inputs_embeds=embeds[rows[:, None], order[rows, :length]],
            attention_mask=mask.new_ones(len(rows), length),
            **options,
        )
        if not isinstance(tokens, torch.Tensor):
            raise ValueError(
                f"generate gave a {type(tokens).__name__}; expected tokens alone for texts of several lengths, as a "
                f"{type(llm).__name__} reads padding"
            )
        written |= dict(zip(rows.tolist(), tokens.unflatten(0, (len(rows), -1)), strict=True))
    longest = max(tokens.shape[-1] for tokens in written.values())
    padding = options.get("pad_token_id", llm.generation_config.pad_token_id)
    padded = [
        F.pad(written[row], (0, longest - written[row].shape[-1]), value=padding or 0) for row in sorted(written)
    ]
    return torch.cat(padded)


def predict_with_adapter(model, adapter, batch, answers, method):
    """Answer a batch by `method`: "head", by default where there is one, or one of `AnswerFormat.predict`."""
    if method is None and adapter.head_use != "none":
        method = "head"
    if method != "head":
        return answers.predict(model, batch, method)
    if adapter.head_use == "none":
        raise ValueError("method is 'head', but the adapter was configured without one (head='none')")
    with torch.no_grad():
        states = batch.get("llm_states")
        output = _forward(
            adapter, model.language_model, _prompts(batch), None, None, None, states, llm_options={}, shown={}
        ).head_output
    require_finite(output, "head outputs", model.language_model.dtype)
    if adapter.task == "classification":
        return answers.predictions_of(output, "likeliest")
    values = output[:, 0].clamp(answers.candidates[0], answers.candidates[-1]).tolist()
    return [Prediction(value, answers.text_of(value)) for value in values]


def _prompts(batch):
    """The batch's prompts, left padded and without labels; a mask is made where there is none."""
    batch = {name: value for name, value in batch.items() if value is not None}
    if "input_ids" in batch:
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        batch = left_padded_prompts(batch)
    return {name: batch[name] for name in BATCH_FIELDS if name in batch}


def require_head_fits(config, llm):
    """Raise ValueError where `head_layers` names a layer that the LLM does not have, or a head would read states of
    another width than the embeddings'."""
    if config.head_layers is not None and config.head_layers[-1] > (count := num_layers_of(llm)):
        raise ValueError(f"head_layers is {config.head_layers}; expected layers from 1 to {count}, as the LLM has")
    if config.head == "none":
        return
    if config.head_layers is not None and loads_on_one_process():
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true, but accelerate hands out no buffers, in which head_layers keeps "
            "means and deviations; expected false"
        )
    width, came = embedding_width(llm), _width_of_states(llm, config.head_layers)
    if came not in (None, width):
        raise ValueError(
            f"head is {config.head!r}, but the LLM is a {type(without_peft(llm)).__name__} with hidden states of "
            f"width {came} and embeddings of width {width}; expected one width, or head 'none'"
        )


def _width_of_states(llm, layers):
    """Width of what a head reads: what the output layer is given, or what layers give."""
    llm = without_peft(llm)
    output_layer = llm.get_output_embeddings()
    if layers is None and output_layer is not None:
        width = getattr(output_layer, "in_features", None)
        return full_shape(output_layer.weight)[-1] if width is None else width
    return getattr(llm.config.get_text_config(), "hidden_size", None)


def train_only_adapter(llm, mode=True):
    """
    Bring a frozen LLM into training mode as far as it may go: without dropout, so that it computes what it does alone
    (choice). Only a block that is to recompute its activations gets its own `training` flag, as it asks for that; in
    the few architectures whose blocks apply dropout themselves (OPT), it is active then.
    """
    llm.eval()
    for module in llm.modules():
        if mode and getattr(module, "gradient_checkpointing", False):
            module.training = True


def embedding_width(llm):
    """Width of an LLM's input embeddings."""
    return full_shape(llm.get_input_embeddings().weight)[-1]


def require_width(embedding, width):
    """Raise ValueError where an embedding has another width than an adapter was made for."""
    if (came := full_shape(embedding.weight)[-1]) != width:
        raise ValueError(f"the embedding has the width {came}; expected {width}, as the LLM's")


def device_of(embedding):
    """Where an embedding computes, also if accelerate keeps its weights elsewhere until then."""
    hook = getattr(embedding, "_hf_hook", None)
    return getattr(hook, "execution_device", None) if embedding.weight.is_meta and hook else embedding.weight.device


def load_language_model(name, **options):
    """
    `AutoModelForCausalLM.from_pretrained` with one clear error where code that the LLM brings fails.

    Raises:
        ValueError: naming the LLM and what its code lacks.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except (AttributeError, ImportError, LookupError, TypeError) as error:
        if options.get("trust_remote_code"):
            raise remote_code_error(name, error) from error
        raise


def save_language_model(llm, folder):
    """Write an LLM into a folder of a model's own folder. Code that it brings is looked for beside the model's, so it
    stands there, too. Where several processes share its weights out, all have to call it, and the first writes."""
    state_dict = full_state_dict(llm)
    if state_dict is not None and not is_writer():
        return
    llm.save_pretrained(folder, state_dict=state_dict)
    for file in Path(folder).glob("*.py"):
        shutil.copyfile(file, Path(folder).parent / file.name)


def is_remote_code(llm):
    """Whether an LLM's class came from its own repository, by `trust_remote_code`."""
    return type(llm).__module__.startswith("transformers_modules.")


def remote_code_error(name, error):
    """ValueError that says whose code has failed, and the way out."""
    return ValueError(
        f"{name} brings code of its own, which fails under transformers {transformers.__version__} "
        f"({type(error).__name__}: {error}); expected an LLM that runs by inputs_embeds, as one of transformers' own "
        "classes does"
    )


def require_embeddings_are_enough(llm):
    """
    Refuse an LLM that is no causal LM, or does not run by `inputs_embeds` as it does by their tokens.

    Raises:
        ValueError: naming the LLM's class and what it does.
    """
    _require_inputs_embeds(llm)
    if fault := reading_of(llm).fault:
        raise ValueError(
            f"the LLM is a {type(llm).__name__}, which {fault}; expected one that runs by inputs_embeds as it does by "
            "its tokens"
        )


@torch.no_grad()
def _require_inputs_embeds(llm):
    """Remote code shows in itself whether it runs: it may ignore embeddings, or take them in another layout."""
    name, parameters = type(without_peft(llm)).__name__, parameters_of(llm)
    if "inputs_embeds" not in parameters:
        raise ValueError(f"the LLM is a {name}; expected one that runs by inputs_embeds")
    # remote code may lack `generate` and still score answers
    if llm.config.is_encoder_decoder or not (llm.can_generate() or is_remote_code(llm)):
        raise ValueError(f"the LLM is a {name}; expected a causal one, as AutoModelForCausalLM loads it")
    if getattr(getattr(llm, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            f"the LLM is a {name} with {type(llm.active_peft_config).__name__}, whose virtual tokens would stand "
            "before ours; expected one without prompt learning"
        )
    embedding = llm.get_input_embeddings()
    if not is_remote_code(llm) or embedding.weight.is_meta or is_sharded(embedding.weight):
        return
    ids = torch.arange(8, device=embedding.weight.device).view(2, 4) % embedding.weight.shape[0]
    options = {"attention_mask": torch.ones_like(ids)} | plainly(llm)
    was_training = llm.training
    llm.eval()
    try:
        logits = llm(inputs_embeds=embedding(ids), **options).logits
        expected = llm(input_ids=ids, **options).logits if "input_ids" in parameters else logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise remote_code_error(name, error) from error
    finally:
        llm.train(was_training)
    if logits.shape != expected.shape or (logits - expected).abs().max() > 0.01 * expected.abs().max():
        raise ValueError(f"the LLM is a {name}, to which embeddings mean something else than their tokens")
