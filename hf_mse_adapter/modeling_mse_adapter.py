"""MSE-Adapter (AAAI-25, arXiv 2502.12478): the trainable modules, how they speak to a frozen LLM, and a model of both.

Audio and vision become a few pseudo tokens that stand before the text; the LLM then writes the label. Whatever LLM it
is, only its embeddings are looked at, and it runs by `inputs_embeds`. Where the paper is silent, docstrings say
"choice".
"""

import copy
import json
from dataclasses import dataclass
from inspect import signature
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from .answers import Prediction, left_padded_prompts, require_finite
from .configuration_mse_adapter import MseAdapterConfig, MseConfig

PEFT_CONTAINER = "mse_adapter_modules"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
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


class ModalityEncoder(nn.Module):
    """
    One feature sequence to one vector: a uni-directional LSTM over the true steps, its final hidden state, dropout, a
    linear layer (section "modality encoders" of the paper).

    Args:
        input_dim, hidden_size, output_dim (`int`), dropout (`float`).
    """

    def __init__(self, input_dim, hidden_size, output_dim, dropout):
        super().__init__()
        self.lstm = nn.LSTM(input_dim, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(hidden_size, output_dim)

    def forward(self, values, mask):
        """
        Args:
            values (`torch.Tensor` float [batch, time, input_dim]).
            mask (`torch.Tensor` bool [batch, time]): the true steps, wherever they are. A row without any gives zeros.

        Returns:
            `torch.Tensor` [batch, output_dim]
        """
        if values.shape[1] == 0:
            # one masked step, so that every parameter has a gradient, as distributed training expects
            values, mask = F.pad(values, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        # true steps to the front, in order: then padding comes after the last of them and cannot change its state
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        values = values.masked_fill(~mask[..., None], 0).gather(1, order[..., None].expand_as(values))
        states, _ = self.lstm(values)
        lengths = mask.sum(dim=1)
        final = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
        return self.projection(self.dropout(final)) * (lengths > 0)[:, None]


class TextGuideMixer(nn.Module):
    """
    Weighs audio and vision by what is said: g = Linear(mean of the text's embeddings), mixed = audio * g + vision * g.

    A missing modality is zero, so its term drops out. With both missing nothing is mixed; without any text token the
    mean is zero and g is the layer's bias (choice).
    """

    def __init__(self, hidden_size, mixer_dim):
        super().__init__()
        self.guide = nn.Linear(hidden_size, mixer_dim)

    def forward(self, text_embeddings, text_mask, audio, vision):
        """
        Args:
            text_embeddings (`torch.Tensor` [batch, length, hidden_size]), text_mask (bool [batch, length]): the real
                text tokens.
            audio, vision (`torch.Tensor` [batch, mixer_dim]).

        Returns:
            `torch.Tensor` [batch, mixer_dim]
        """
        total = text_embeddings.masked_fill(~text_mask[..., None], 0).sum(dim=1)
        guide = self.guide(total / text_mask.sum(dim=1, keepdim=True).clamp(min=1))
        return audio * guide + vision * guide


class MultiScaleFusion(nn.Module):
    """
    Three MLPs mixer_dim -> hidden_size / scale -> mixer_dim with GELU, side by side as three scales, joined by a 1x3
    convolution: a learned weighted sum over the scales with a bias, 4 parameters.

    An inner width is rounded down where the scale does not divide the hidden size (choice).

    Raises:
        ValueError: if a scale leaves no inner unit.
    """

    def __init__(self, hidden_size, mixer_dim, scales):
        super().__init__()
        if max(scales) > hidden_size:
            raise ValueError(f"scales is {scales}; expected none above the LLM's hidden size {hidden_size}")
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Linear(mixer_dim, hidden_size // s), nn.GELU(), nn.Linear(hidden_size // s, mixer_dim))
            for s in scales
        )
        self.join = nn.Conv2d(1, 1, kernel_size=(1, len(scales)))

    def forward(self, mixed):
        """[batch, mixer_dim] -> [batch, mixer_dim]"""
        stacked = torch.stack([scale(mixed) for scale in self.scales], dim=-1)
        return self.join(stacked[:, None])[:, 0, :, 0]


class PseudoTokenProjector(nn.Module):
    """Linear(mixer_dim, hidden_size), then Linear(1, P), which makes P tokens of the one vector."""

    def __init__(self, mixer_dim, hidden_size, num_pseudo_tokens):
        super().__init__()
        self.projection = nn.Linear(mixer_dim, hidden_size)
        self.expansion = nn.Linear(1, num_pseudo_tokens)

    def forward(self, fused):
        """[batch, mixer_dim] -> [batch, num_pseudo_tokens, hidden_size]"""
        return self.expansion(self.projection(fused)[..., None]).transpose(1, 2)


class MseAdapter(nn.Module):
    """
    All that is trained: two modality encoders, mixer, fusion, projector and, where the config wants it, a head.

    It computes in the dtype of its own weights (float32, whatever the LLM's dtype or the surrounding autocast): it is
    small, and steps of 5e-5 would be lost in bfloat16. Weights start as PyTorch's layers do (choice).

    Args:
        config (`MseAdapterConfig` or `MseConfig`).
        hidden_size (`int`): width of the LLM's embeddings.
    """

    def __init__(self, config, hidden_size):
        super().__init__()
        self.audio_dim, self.vision_dim = config.audio_dim, config.vision_dim
        self.num_pseudo_tokens = config.num_pseudo_tokens
        self.head_use, self.task = config.head, config.task
        dim = config.mixer_dim
        self.audio_encoder = ModalityEncoder(config.audio_dim, config.audio_hidden_size, dim, config.dropout)
        self.vision_encoder = ModalityEncoder(config.vision_dim, config.vision_hidden_size, dim, config.dropout)
        self.text_guide_mixer = TextGuideMixer(hidden_size, dim)
        self.multi_scale_fusion = MultiScaleFusion(hidden_size, dim, config.scales)
        self.projector = PseudoTokenProjector(dim, hidden_size, config.num_pseudo_tokens)
        if config.head != "none":
            self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(hidden_size, config.num_labels))

    @property
    def dtype(self):
        return self.projector.projection.weight.dtype

    def forward(
        self, text_embeddings, text_mask, audio_values, audio_attention_mask, vision_values, vision_attention_mask
    ):
        """
        Args:
            text_embeddings (`torch.Tensor` [batch, length, hidden_size], any float dtype).
            text_mask (`torch.Tensor` bool [batch, length]).
            audio_values, vision_values (`torch.Tensor` [batch, steps, features]).
            audio_attention_mask, vision_attention_mask (`torch.Tensor` bool [batch, steps]).

        Returns:
            `torch.Tensor` [batch, num_pseudo_tokens, hidden_size] in the adapter's dtype
        """
        with torch.autocast(text_embeddings.device.type, enabled=False):
            audio = self.audio_encoder(audio_values.to(self.dtype), audio_attention_mask)
            vision = self.vision_encoder(vision_values.to(self.dtype), vision_attention_mask)
            mixed = self.text_guide_mixer(text_embeddings.to(self.dtype), text_mask, audio, vision)
            return self.projector(self.multi_scale_fusion(mixed))

    def head_output(self, hidden_states):
        """Number [batch, 1] or class logits [batch, classes] from the LLM's last hidden state [batch, hidden_size]."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.head(hidden_states.to(self.dtype))

    def head_loss(self, output, label_values):
        """Mean absolute error, by which the field selects its models (choice), or cross entropy."""
        if self.task == "classification":
            return F.cross_entropy(output, label_values.long())
        return F.l1_loss(output[:, 0], label_values.to(output.dtype))


@dataclass
class MseOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` [], *optional*): with labels, or label_values for a head.
        logits (`torch.Tensor` [batch, positions, vocabulary]): of the LLM, only at `logit_positions`.
        logit_positions (`torch.Tensor` int64 [positions]):
            Where they are in the sequence: every position that predicts a label token in any row (logits at position
            t predict token t + 1); without labels, or with the head alone, each row's last prompt token.
        head_output (`torch.Tensor` [batch, 1 or classes], *optional*): the number, or the classes' logits.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    logit_positions: torch.Tensor | None = None
    head_output: torch.Tensor | None = None


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
        (counted by the mask, so that padding shifts nothing), and labels if given.

    Raises:
        ValueError: naming the argument, what came and what is expected.
    """
    if input_ids is None or input_ids.ndim != 2 or 0 in input_ids.shape:
        came = None if input_ids is None else list(input_ids.shape)
        raise ValueError(f"input_ids has the shape {came}; expected [batch, length] with at least one token")
    embeds = llm.get_input_embeddings()(input_ids)
    if embeds.shape[-1] != adapter.projector.projection.out_features:
        expected = adapter.projector.projection.out_features
        raise ValueError(
            f"the LLM's embeddings have width {embeds.shape[-1]}; expected {expected}, as the adapter has"
        )
    device = embeds.device
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
    pseudo_tokens = adapter(embeds, is_text, *audio, *vision).to(embeds.dtype)

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
    inputs = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    return inputs if labels is None else inputs | {"labels": labels.to(device)}


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


def forward_with_adapter(
    adapter, llm, label_values=None, num_items_in_batch=None, num_samples_in_batch=None, **inputs
):
    """
    Run the LLM behind the adapter; logits and loss only where a label is.

    Args:
        adapter (`MseAdapter`), llm (`PreTrainedModel`).
        label_values ([batch], *optional*): numbers or class indices for the head.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*):
            Label tokens in all batches that one optimiser step accumulates, as Trainer counts them. The loss is then
            this batch's share of the mean over them.
        num_samples_in_batch (`int`, *optional*):
            Samples in all these batches: a head's loss is then this batch's share of the mean over them. Where only
            the label tokens are counted (Trainer by itself counts nothing else), a head's batches weigh by those.
        inputs: arguments of `prepare_inputs`; others go to the LLM.

    Returns:
        `MseOutput`
    """
    llm_options = {name: inputs.pop(name) for name in list(inputs) if name not in (*BATCH_FIELDS, "labels")}
    if llm_options.pop("inputs_embeds", None) is not None:
        raise ValueError("inputs_embeds cannot be used with an MSE-Adapter, which embeds by itself; give input_ids")
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
    logits, hidden_states = _run_llm(llm, prepared, positions, adapter.head_use != "none", llm_options)

    token_share = None
    if labels is not None and num_items_in_batch is not None:
        token_share = (labels[:, 1:] != -100).sum() / torch.as_tensor(num_items_in_batch, device=labels.device)
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
            share = token_share if num_samples_in_batch is None else len(head_output) / num_samples_in_batch
            losses.append(_share_of(adapter.head_loss(head_output, label_values.to(head_output.device)), share))
    loss = sum(item.to(losses[0].device) for item in losses) if losses else None
    return MseOutput(loss=loss, logits=logits, logit_positions=positions, head_output=head_output)


def _share_of(loss, share):
    """A batch's mean loss as its share (a number or tensor []) of the mean over several batches; None: all of it."""
    return loss if share is None else loss * torch.as_tensor(share, device=loss.device)


def _run_llm(llm, prepared, positions, needs_hidden_states, options):
    """Logits [batch, positions, vocabulary] and, if needed, the last hidden states [batch, positions, hidden_size]."""
    parameters = signature(llm.forward).parameters
    options = {name: value for name, value in options.items() if value is not None} | {"use_cache": False}
    inputs = {name: value for name, value in prepared.items() if name != "position_ids" or name in parameters}
    can_choose = "logits_to_keep" in parameters
    if can_choose:
        inputs["logits_to_keep"] = positions

    seen = []
    output_embeddings = llm.get_output_embeddings() if needs_hidden_states else None
    if output_embeddings is not None:
        # what the output layer is given is the last hidden state; asking for all layers' would hold them in memory
        hook = output_embeddings.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    elif needs_hidden_states:
        options["output_hidden_states"] = True
    try:
        outputs = llm(**inputs, **options)
    finally:
        if output_embeddings is not None:
            hook.remove()
    logits = outputs.logits if can_choose else outputs.logits[:, positions.to(outputs.logits.device)]
    if not needs_hidden_states:
        return logits, None
    if seen:
        hidden_states, whole = seen[0], not can_choose
    else:
        hidden_states, whole = outputs.hidden_states[-1], True
    return logits, hidden_states[:, positions.to(hidden_states.device)] if whole else hidden_states


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
    batch = {name: kwargs.pop(name) for name in (*BATCH_FIELDS, "labels", "label_values") if name in kwargs}
    prepared = prepare_inputs(adapter, llm, **_prompts(batch))
    # `generate` counts positions by the mask itself
    del prepared["position_ids"]
    return llm.generate(**prepared, **kwargs)


def predict_with_adapter(model, adapter, batch, answers, method):
    """Answer a batch by `method` ("head", or one of `AnswerFormat.predict`); by default by a head that is alone."""
    if method is None and adapter.head_use == "alone":
        method = "head"
    if method != "head":
        return answers.predict(model, batch, method)
    if adapter.head_use == "none":
        raise ValueError("method is 'head', but the adapter was configured without one (head='none')")
    with torch.no_grad():
        output = forward_with_adapter(adapter, model.language_model, **_prompts(batch)).head_output
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
    return llm.get_input_embeddings().weight.shape[-1]


class MseForConditionalGeneration(PreTrainedModel):
    """
    A frozen causal LLM with an MSE-Adapter: one folder holds the adapter's weights and names the LLM.

    The adapter is `adapter`, the LLM `language_model`. The LLM's weights are frozen, never changed and never saved:
    neither `save_pretrained` nor `state_dict` contains them. Several models may share one LLM (`backbone=`).

    >>> model = MseForConditionalGeneration.from_backbone(llm, MseAdapterConfig(audio_dim=74, vision_dim=35))
    >>> model = MseForConditionalGeneration.from_pretrained(FOLDER_OR_ID, dtype=torch.bfloat16, device_map="auto")
    """

    config_class = MseConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True

    def __init__(self, config, backbone=None):
        super().__init__(config)
        if config.hidden_size is None:
            if backbone is None:
                raise ValueError("hidden_size is None; expected the width of the LLM's embeddings, or a backbone")
            config.hidden_size = embedding_width(backbone)
        self.adapter = MseAdapter(config, config.hidden_size)
        self.language_model = None
        self.register_state_dict_post_hook(_leave_out_language_model)
        self.register_load_state_dict_post_hook(_do_not_miss_language_model)
        self.post_init()
        # chosen by transformers for a model that has no attention of its own; the LLM must not inherit it
        config._attn_implementation = None
        if backbone is not None:
            self.set_language_model(backbone)

    @torch.no_grad()
    def _init_weights(self, module):
        # PyTorch's own initialisation, as without transformers
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @classmethod
    def from_backbone(cls, backbone, config):
        """
        A new adapter for an LLM in memory.

        Args:
            backbone (`PreTrainedModel`): a causal LM; it is frozen.
            config (`MseConfig` or `MseAdapterConfig`): copied. Where it names no LLM, `backbone`'s own name is taken.
        """
        if isinstance(config, MseAdapterConfig):
            config = MseConfig.from_adapter_config(config)
        config = copy.deepcopy(config)
        if config.backbone_name_or_path is None:
            config.backbone_name_or_path = backbone.config.name_or_path or None
        if config.backbone_revision is None and config.backbone_name_or_path == backbone.config.name_or_path:
            config.backbone_revision = getattr(backbone.config, "_commit_hash", None)
        config.hidden_size = embedding_width(backbone)
        return cls(config, backbone)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        backbone=None,
        config=None,
        dtype=None,
        device_map=None,
        quantization_config=None,
        attn_implementation=None,
        trust_remote_code=None,
        backbone_options=None,
        **kwargs,
    ):
        """
        Load an adapter, and fetch its LLM.

        Args:
            pretrained_model_name_or_path (`str`): folder or Hub id, of this class's or PEFT's layout.
            backbone (`PreTrainedModel`, *optional*):
                The LLM, already in memory; none is fetched. (Through `AutoModel.from_pretrained` it would be copied
                on the way: use this class.)
            config (`MseConfig`, *optional*)
            dtype, device_map, quantization_config, attn_implementation, trust_remote_code:
                For the LLM, as `AutoModelForCausalLM.from_pretrained` takes them. The adapter stays in float32 and
                goes where the LLM's embeddings are.
            backbone_options (`dict`, *optional*): further such arguments.
            kwargs: arguments of `PreTrainedModel.from_pretrained`; those about the Hub (token, cache_dir,
                local_files_only, force_download) count for the LLM too.

        Raises:
            ValueError: if neither the config names an LLM nor a backbone is given, or the LLM's width does not fit.
            OSError: for a folder or id that is not there.
        """
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        own_place = {name: kwargs[name] for name in ("revision", "subfolder") if kwargs.get(name)}
        folder = pretrained_model_name_or_path
        if isinstance(config, MseConfig) and config._attn_implementation is not None:
            # AutoModel writes the option into the config; it is the LLM that attends
            attn_implementation = attn_implementation or config._attn_implementation
            config = copy.deepcopy(config)
            config._attn_implementation = None
        loading_info = None
        if config is None and _is_peft_folder(folder, hub_options | own_place):
            model = cls._from_peft_folder(folder, hub_options | own_place)
        else:
            loaded = super().from_pretrained(folder, *model_args, config=config, dtype=torch.float32, **kwargs)
            model, loading_info = loaded if isinstance(loaded, tuple) else (loaded, None)
        if backbone is None:
            named = model.config.backbone_name_or_path
            if named is None:
                raise ValueError(f"backbone_name_or_path in the config of {folder} is None; give backbone=")
            options = hub_options | {
                "dtype": dtype,
                "device_map": device_map,
                "quantization_config": quantization_config,
                "attn_implementation": attn_implementation,
                "trust_remote_code": trust_remote_code,
                "revision": model.config.backbone_revision,
            }
            if named.startswith("./"):
                # the LLM lies in this model's own folder or repository
                options |= {"revision": None} | own_place
                options["subfolder"] = str(PurePosixPath(own_place.get("subfolder", ""), named))
                named = folder
            options |= backbone_options or {}
            options = {name: value for name, value in options.items() if value is not None}
            backbone = AutoModelForCausalLM.from_pretrained(named, **options)
        model.set_language_model(backbone)
        model.eval()
        return model if loading_info is None else (model, loading_info)

    @classmethod
    def _from_peft_folder(cls, folder, hub_options):
        with open(cached_file(folder, "adapter_config.json", **hub_options), encoding="utf-8") as file:
            fields = json.load(file)
        if fields.get("peft_type") != "MSE_ADAPTER":
            raise ValueError(f"peft_type in {folder} is {fields.get('peft_type')!r}; expected 'MSE_ADAPTER'")
        weights = load_file(cached_file(folder, "adapter_model.safetensors", **hub_options))
        weights = {name.split(f"{PEFT_CONTAINER}.", 1)[1]: value for name, value in weights.items()}
        known = {name: fields[name] for name in MseAdapterConfig.__dataclass_fields__ if name in fields}
        config = MseConfig.from_adapter_config(
            MseAdapterConfig(**known), hidden_size=weights["projector.projection.weight"].shape[0]
        )
        model = cls(config)
        model.adapter.load_state_dict(weights)
        return model

    def save_as_peft(self, folder):
        """Write the adapter as a plain PEFT folder: adapter_config.json and adapter_model.safetensors."""
        embedding = self._llm().get_input_embeddings()
        place = next(name for name, module in self.language_model.named_modules() if module is embedding)
        Path(folder).mkdir(parents=True, exist_ok=True)
        prefix = f"base_model.model.{place}.{PEFT_CONTAINER}"
        weights = {f"{prefix}.{name}": value.contiguous() for name, value in self.adapter.state_dict().items()}
        unfinished = Path(folder) / "adapter_model.safetensors.unfinished"
        save_file(weights, unfinished, metadata={"format": "pt"})
        unfinished.replace(Path(folder) / "adapter_model.safetensors")
        config = self.config.to_adapter_config()
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def set_language_model(self, backbone):
        """Take an LLM: freeze it, and put the adapter where its embeddings are.

        Raises:
            ValueError: if its embeddings have another width than the adapter was made for, or it takes none.
        """
        if "inputs_embeds" not in signature(backbone.forward).parameters:
            raise ValueError(f"backbone is a {type(backbone).__name__}; expected an LLM that runs by inputs_embeds")
        width = embedding_width(backbone)
        if width != self.config.hidden_size:
            raise ValueError(
                f"backbone has embeddings of width {width}; expected {self.config.hidden_size}, as hidden_size says"
            )
        self.language_model = backbone.requires_grad_(False)
        self.adapter.to(backbone.get_input_embeddings().weight.device)
        if getattr(backbone, "hf_device_map", None) is not None:
            # so that Trainer leaves the LLM where it is
            self.hf_device_map = {f"language_model.{name}": place for name, place in backbone.hf_device_map.items()}
        self.train(self.training)

    def prepare_inputs(self, **batch):
        """inputs_embeds, attention_mask and position_ids for the LLM, see [`prepare_inputs`]."""
        return prepare_inputs(self.adapter, self._llm(), **batch)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pseudo_token_mask=None,
        text_mask=None,
        audio_values=None,
        audio_attention_mask=None,
        vision_values=None,
        vision_attention_mask=None,
        labels=None,
        label_values=None,
        num_items_in_batch=None,
        num_samples_in_batch=None,
        **kwargs,
    ):
        """A batch as `MseProcessor` makes it, see `prepare_inputs` and `forward_with_adapter`; returns `MseOutput`."""
        kwargs.pop("return_dict", None)
        return forward_with_adapter(
            self.adapter,
            self._llm(),
            input_ids=input_ids,
            attention_mask=attention_mask,
            pseudo_token_mask=pseudo_token_mask,
            text_mask=text_mask,
            audio_values=audio_values,
            audio_attention_mask=audio_attention_mask,
            vision_values=vision_values,
            vision_attention_mask=vision_attention_mask,
            labels=labels,
            label_values=label_values,
            num_items_in_batch=num_items_in_batch,
            num_samples_in_batch=num_samples_in_batch,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, **kwargs):
        """The new tokens [batch, new tokens] after a batch's prompts, see `generate_with_adapter`."""
        return generate_with_adapter(self.adapter, self._llm(), **kwargs)

    def predict(self, batch, answers, method=None):
        """
        Answer a batch.

        Args:
            batch (`dict`): as `MseProcessor` makes it.
            answers (`AnswerFormat`): `processor.answers`.
            method (`str`, *optional*):
                "head", or one of `AnswerFormat.predict`, whose default counts unless there is only a head.

        Returns:
            `list[Prediction]`
        """
        return predict_with_adapter(self, self.adapter, batch, answers, method)

    def train(self, mode=True):
        """Only the adapter's dropout becomes active, see `train_only_adapter`."""
        super().train(mode)
        if self.language_model is not None:
            train_only_adapter(self.language_model, mode)
        return self

    def activation_checkpointing_enable(self, *args, **kwargs):
        """The LLM's blocks recompute their activations in the backward pass: less memory, more time."""
        self._llm().activation_checkpointing_enable(*args, **kwargs)
        self.train(self.training)

    def activation_checkpointing_disable(self):
        self._llm().activation_checkpointing_disable()
        self.train(self.training)

    def get_input_embeddings(self):
        return self._llm().get_input_embeddings()

    def get_output_embeddings(self):
        return None

    def _llm(self):
        if self.language_model is None:
            raise ValueError("this model has no LLM yet; use from_pretrained, from_backbone or set_language_model")
        return self.language_model


def _is_peft_folder(folder, hub_options):
    quietly = {"_raise_exceptions_for_missing_entries": False, **hub_options}
    if cached_file(folder, "config.json", **quietly) is not None:
        return False
    return cached_file(folder, "adapter_config.json", **quietly) is not None


def _leave_out_language_model(module, state_dict, prefix, local_metadata):
    for name in [name for name in state_dict if name.startswith(f"{prefix}language_model.")]:
        del state_dict[name]


def _do_not_miss_language_model(module, incompatible_keys):
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if ".language_model." not in f".{name}"]


AutoModel.register(MseConfig, MseForConditionalGeneration, exist_ok=True)
