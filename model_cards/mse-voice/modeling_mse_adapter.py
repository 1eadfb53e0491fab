"""MSE-Adapter (AAAI-25, arXiv 2502.12478): the trainable modules, and a model of them and a frozen LLM.

Audio and vision become a few pseudo tokens, whose place is before the text; how an LLM takes them is written in
`adapted_language_model.py`. Where the paper is silent, docstrings say "choice".
"""

import copy
import json
import os
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, initialization
from transformers.utils import cached_file, logging

from .adapted_language_model import (
    device_of,
    embedding_width,
    forward_with_adapter,
    generate_with_adapter,
    llm_states_of,
    load_language_model,
    predict_with_adapter,
    prepare_inputs,
    require_embeddings_are_enough,
    require_head_fits,
    require_width,
    save_language_model,
    train_only_adapter,
)
from .backbone_likeness import require_likeness
from .backbone_source import as_plain_weights, differing_weight, differs_from_source
from .checksums import forget_checksums, require_saved_weights
from .configuration_mse_adapter import MseAdapterConfig, MseConfig
from .pipeline_code import save_pipeline_code
from .sharded_weights import (
    full_state_dict,
    is_writer,
    loads_on_one_process,
    with_whole_weights,
)

logger = logging.get_logger(__name__)

PEFT_CONTAINER = "mse_adapter_modules"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


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


class ConstantLinear(nn.Linear):
    """A linear layer whose weights start as one number, and its bias as zero."""

    def __init__(self, in_features, out_features, start):
        self.start = start
        super().__init__(in_features, out_features)

    def reset_parameters(self):
        # transformers' own functions leave alone what has been loaded
        initialization.constant_(self.weight, self.start)
        initialization.zeros_(self.bias)


class PseudoTokenProjector(nn.Module):
    """Linear(mixer_dim, hidden_size), then Linear(1, P), which makes P tokens of the one vector. With `starts_at_zero`
    the tokens are zero until they have learnt something."""

    def __init__(self, mixer_dim, hidden_size, num_pseudo_tokens, starts_at_zero=False):
        super().__init__()
        if starts_at_zero:
            self.projection = ConstantLinear(mixer_dim, hidden_size, 0.0)
            self.expansion = ConstantLinear(1, num_pseudo_tokens, 1.0)
        else:
            self.projection = nn.Linear(mixer_dim, hidden_size)
            self.expansion = nn.Linear(1, num_pseudo_tokens)

    def forward(self, fused):
        """[batch, mixer_dim] -> [batch, num_pseudo_tokens, hidden_size]"""
        return self.expansion(self.projection(fused)[..., None]).transpose(1, 2)


class LayerMix(nn.Module):
    """
    Several layers' states to one: each brought to mean 0 and variance 1 over its width, then every feature by `mean`
    and `std` (what training found; 0 and 1 until then), then summed by weights that are learned and add up to one
    (ELMo's scalar mix, arXiv 1802.05365, with normalisation: an LLM's few large features would drown the others).

    Args:
        num_layers, hidden_size (`int`).
    """

    def __init__(self, num_layers, hidden_size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers))
        self.register_buffer("mean", torch.zeros(num_layers, hidden_size))
        self.register_buffer("std", torch.ones(num_layers, hidden_size))

    def forward(self, states):
        """[batch, layers, hidden_size] -> [batch, hidden_size]"""
        weights = self.weight.softmax(dim=0)
        return ((self.normalised(states) - self.mean) / self.std * weights[:, None]).sum(dim=1)

    @staticmethod
    def normalised(states):
        return F.layer_norm(states, states.shape[-1:])

    @torch.no_grad()
    def fit(self, states):
        """Take mean and standard deviation over the samples of states [samples, layers, hidden_size]."""
        std, mean = torch.std_mean(self.normalised(states), dim=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))

    @torch.no_grad()
    def reset_parameters(self):
        # transformers' own functions leave alone what has been loaded
        initialization.zeros_(self.weight)
        initialization.zeros_(self.mean)
        initialization.ones_(self.std)


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
        self.head_use, self.head_layers, self.task = config.head, config.head_layers, config.task
        self.fusion = config.fusion
        dim = config.mixer_dim
        self.audio_encoder = ModalityEncoder(config.audio_dim, config.audio_hidden_size, dim, config.dropout)
        self.vision_encoder = ModalityEncoder(config.vision_dim, config.vision_hidden_size, dim, config.dropout)
        self.text_guide_mixer = TextGuideMixer(hidden_size, dim)
        self.multi_scale_fusion = MultiScaleFusion(hidden_size, dim, config.scales)
        self.projector = PseudoTokenProjector(
            # a head that reads words as they are begins with the words alone
            dim,
            hidden_size,
            config.num_pseudo_tokens,
            starts_at_zero=config.fusion == "head",
        )
        if config.head != "none":
            self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(hidden_size, config.num_labels))
        if config.head_layers is not None:
            self.layer_mix = LayerMix(len(config.head_layers), hidden_size)

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

    def head_output(self, hidden_states, pseudo_tokens=None):
        """Number [batch, 1] or class logits [batch, classes] from the LLM's last hidden state [batch, hidden_size], or
        with `head_layers` from the states of these [batch, layers, hidden_size]; with the fusion "head" also from the
        pseudo tokens [batch, num_pseudo_tokens, hidden_size]."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.to(self.dtype)
            hidden_states = hidden_states if self.head_layers is None else self.layer_mix(hidden_states)
            return self.head(hidden_states if pseudo_tokens is None else hidden_states + pseudo_tokens.mean(dim=1))

    def head_loss(self, output, label_values):
        """Mean absolute error, by which the field selects its models (choice), or cross entropy."""
        if self.task == "classification":
            return F.cross_entropy(output, label_values.long())
        return F.l1_loss(output[:, 0], label_values.to(output.dtype))


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
        # transformers would turn it on now, before there is an LLM
        self._wants_checkpointing = bool(getattr(config, "gradient_checkpointing", False))
        if self._wants_checkpointing:
            del config.gradient_checkpointing
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
            config (`MseConfig` or `MseAdapterConfig`): copied. Where it names no LLM, `backbone`'s own name is taken,
                unless the LLM is no longer what that name gives (a merged LoRA, a PEFT model, other rows): then it
                stays without a name, `save_for_hub` puts it into the folder, and otherwise it is asked for.
        """
        if isinstance(config, MseAdapterConfig):
            config = MseConfig.from_adapter_config(config)
        config = copy.deepcopy(config)
        name = backbone.config.name_or_path or None
        if config.backbone_name_or_path in (None, name):
            # a folder by its full path: elsewhere it would be another one, and "./" means the model's own
            config.backbone_name_or_path = os.path.abspath(name) if name and os.path.isdir(name) else name
            config.backbone_revision = config.backbone_revision or getattr(backbone.config, "_commit_hash", None)
            if name and (difference := differs_from_source(backbone, name, config.backbone_revision)):
                logger.warning(f"the LLM is not what {name} gives ({difference}): it is saved without a name")
                config.backbone_name_or_path = config.backbone_revision = None
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
        ignore_mismatched_backbone=False,
        **kwargs,
    ):
        """
        Load an adapter, and fetch its LLM.

        Args:
            pretrained_model_name_or_path (`str`): folder or Hub id, of this class's or PEFT's layout.
            backbone (`PreTrainedModel` or `str`, *optional*):
                The LLM, already in memory, or its folder, instead of the one that the config names. (A model would be
                copied on the way through `AutoModel.from_pretrained`: use this class.)
            config (`MseConfig`, *optional*)
            dtype, device_map, quantization_config, attn_implementation, trust_remote_code:
                For the LLM, as `AutoModelForCausalLM.from_pretrained` takes them. The adapter stays in float32 and
                goes where the LLM's embeddings are.
            backbone_options (`dict`, *optional*): further such arguments.
            ignore_mismatched_backbone (`bool`, *optional*):
                Only warn where the LLM is another than the adapter was trained for, see [`require_likeness`].
            kwargs: arguments of `PreTrainedModel.from_pretrained`; those about the Hub (token, cache_dir,
                local_files_only, force_download) count for the LLM too.

        Raises:
            ValueError: if the folder holds something else, or weights are missing in it, damaged or of other sizes; if
                neither the config names an LLM nor a backbone is given; if the LLM does not fit or does not run.
            OSError: for a folder or id that is not there.
        """
        # transformers takes the old name too, and a large LLM must not come in float32 by oversight
        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        own_place = {name: kwargs[name] for name in ("revision", "subfolder") if kwargs.get(name)}
        folder = pretrained_model_name_or_path
        # pipelines say where they call from, and give a PEFT folder the config of its LLM
        kwargs.pop("_from_pipeline", None)
        if getattr(config, "model_type", MseConfig.model_type) != MseConfig.model_type:
            config = None
        if isinstance(config, MseConfig) and config._attn_implementation is not None:
            # AutoModel writes the option into the config; it is the LLM that attends
            attn_implementation = attn_implementation or config._attn_implementation
            config = copy.deepcopy(config)
            config._attn_implementation = None
        wants_loading_info = kwargs.pop("output_loading_info", False)
        own_options = {name: value for name, value in hub_options.items() if name != "force_download"} | own_place
        if os.path.isdir(folder):
            require_saved_weights(folder, **own_options)
        loading_info, foreign = {}, {}
        try:
            if config is None and is_peft_folder(folder, hub_options | own_place):
                model, foreign = cls._from_peft_folder(folder, hub_options | own_place)
                model.config.name_or_path = model.name_or_path = str(folder)
            else:
                _require_own_type(folder, config, hub_options | own_place)
                model, loading_info = super().from_pretrained(
                    folder, *model_args, config=config, dtype=torch.float32, output_loading_info=True, **kwargs
                )
        except torch.OutOfMemoryError:
            raise
        except (IndexError, KeyError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_about_weights(error):
                raise
            raise ValueError(f"the weights in {folder} are damaged, or not those of its config: {error}") from error
        if not os.path.isdir(folder):  # in the cache only now
            require_saved_weights(folder, **own_options)
        # a new head may be put on, to be trained
        head = ("adapter.head.", "adapter.layer_mix.")
        missing = sorted(name for name in loading_info.get("missing_keys", ()) if not name.startswith(head))
        if missing:
            raise ValueError(f"the weights in {folder} lack {', '.join(missing)}")
        tokenizer_place = None
        if backbone is None or isinstance(backbone, (str, os.PathLike)):
            options = {
                "dtype": dtype,
                "device_map": device_map,
                "quantization_config": quantization_config,
                "attn_implementation": attn_implementation,
                "trust_remote_code": trust_remote_code,
            } | (backbone_options or {})
            if backbone is None:
                backbone = model._fetched_language_model(folder, hub_options, own_place, options)
            else:
                tokenizer_place = os.fspath(backbone)
                given = {name: value for name, value in (hub_options | options).items() if value is not None}
                backbone = load_language_model(tokenizer_place, **given)
        if model.config.backbone_likeness is not None:
            tokenizers = None if tokenizer_place is None else _tokenizers_of(folder, own_place, tokenizer_place)
            require_likeness(backbone, model.config.backbone_likeness, tokenizers, ignore_mismatched_backbone)
        model.set_language_model(backbone)
        model._require_equal(foreign, folder)
        model.eval()
        return (model, loading_info) if wants_loading_info else model

    def _fetched_language_model(self, folder, hub_options, own_place, options):
        """The LLM that the config names; `own_place` is where in the folder or repository this model itself lies."""
        named = self.config.backbone_name_or_path
        if named is None:
            raise ValueError(f"backbone_name_or_path in the config of {folder} is None; give backbone=")
        where = {"revision": self.config.backbone_revision}
        if named.startswith("./"):
            # inside this model's own folder or repository
            where = own_place | {"subfolder": str(PurePosixPath(own_place.get("subfolder", ""), named))}
            named = folder
        options = {name: value for name, value in (hub_options | where | options).items() if value is not None}
        try:
            return load_language_model(named, **options)
        except OSError as error:
            raise OSError(
                f"the LLM {named} of {folder} cannot be had ({' '.join(str(error).split())}); a copy of your own can "
                "be given as backbone=FOLDER, or --backbone FOLDER"
            ) from error

    @classmethod
    def _from_peft_folder(cls, folder, hub_options):
        with open(cached_file(folder, "adapter_config.json", **hub_options), encoding="utf-8") as file:
            fields = json.load(file)
        if fields.get("peft_type") != "MSE_ADAPTER":
            raise ValueError(f"peft_type in {folder} is {fields.get('peft_type')!r}; expected 'MSE_ADAPTER'")
        weights = load_file(cached_file(folder, "adapter_model.safetensors", **hub_options))
        # PEFT adds the embeddings of an LLM that was resized
        foreign = {name: weights.pop(name) for name in list(weights) if f"{PEFT_CONTAINER}." not in name}
        weights = {name.split(f"{PEFT_CONTAINER}.", 1)[1]: value for name, value in weights.items()}
        known = {name: fields[name] for name in MseAdapterConfig.__dataclass_fields__ if name in fields}
        config = MseConfig.from_adapter_config(
            MseAdapterConfig(**known), hidden_size=weights["projector.projection.weight"].shape[0]
        )
        named = config.backbone_name_or_path
        if named and os.path.isdir(named):
            # to PEFT, "./" is the working directory
            config.backbone_name_or_path = os.path.abspath(named)
        model = cls(config)
        model.adapter.load_state_dict(weights)
        return model, foreign

    def _require_equal(self, foreign, folder):
        """Refuse weights of an LLM in an adapter's file, unless they are the LLM's own."""
        if not foreign:
            return
        # in PEFT our layer stands around the input embedding
        given = {
            name.removeprefix("base_model.model.").replace(".base_layer.", "."): value
            for name, value in foreign.items()
        }
        if name := differing_weight(self.language_model.state_dict(keep_vars=True), given):
            raise ValueError(
                f"{folder} holds {name}, a weight of an LLM that was changed or resized after it was loaded from "
                f"{self.config.backbone_name_or_path}; expected the adapter's weights alone, or that LLM as backbone="
            )

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs):
        """As `PreTrainedModel.save_pretrained`: the adapter alone, and config.json. An LLM that lies within the
        model's own folder (backbone_name_or_path begins with "./") is saved in the new one, too, and where the config
        names a pipeline, its code. Where several processes share the weights out (FSDP2, ZeRO-3), all have to call
        it, and the first writes."""
        if state_dict is None and (state_dict := full_state_dict(self)) is not None:
            is_main_process = is_main_process and is_writer()
        if state_dict is not None:
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith("language_model.")}
        forget_checksums(save_directory)
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        named = self.config.backbone_name_or_path or ""
        if named.startswith("./") and self.language_model is not None and is_main_process:
            save_language_model(self.language_model, Path(save_directory, named))
        save_pipeline_code(self.config, save_directory)

    def save_as_peft(self, folder):
        """Write the adapter as a plain PEFT folder: adapter_config.json and adapter_model.safetensors."""
        embedding = self._llm().get_input_embeddings()
        place = next(name for name, module in self.language_model.named_modules() if module is embedding)
        weights = full_state_dict(self.adapter)
        if weights is not None and not is_writer():
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        prefix = f"base_model.model.{place}.{PEFT_CONTAINER}"
        weights = self.adapter.state_dict() if weights is None else weights
        weights = {f"{prefix}.{name}": value.contiguous() for name, value in weights.items()}
        unfinished = Path(folder) / "adapter_model.safetensors.unfinished"
        save_file(weights, unfinished, metadata={"format": "pt"})
        unfinished.replace(Path(folder) / "adapter_model.safetensors")
        config = self.config.to_adapter_config()
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def set_language_model(self, backbone):
        """Take an LLM: freeze it, and put the adapter where its embeddings are.

        Raises:
            ValueError: if its embeddings have another width than the adapter was made for, or it does not run by them.
        """
        require_embeddings_are_enough(as_plain_weights(backbone))
        width = embedding_width(backbone)
        if width != self.config.hidden_size:
            raise ValueError(
                f"backbone has embeddings of width {width}; expected {self.config.hidden_size}, as hidden_size says"
            )
        require_head_fits(self.config, backbone)
        self.language_model = backbone.requires_grad_(False)
        # where accelerate may divide it
        self._no_split_modules = set(getattr(backbone, "_no_split_modules", None) or ())
        self.adapter.to(device_of(backbone.get_input_embeddings()))
        if getattr(backbone, "hf_device_map", None) is not None:
            # so that Trainer leaves the LLM where it is
            self.hf_device_map = {f"language_model.{name}": place for name, place in backbone.hf_device_map.items()}
        if self._wants_checkpointing:
            self.activation_checkpointing_enable()
        self.train(self.training)

    def _run_whole(self, function):
        return function()

    def tie_weights(self, *args, **kwargs):
        """As the LLM does it: the adapter ties nothing."""
        if getattr(self, "language_model", None) is not None:
            self.language_model.tie_weights()

    @with_whole_weights
    def llm_states(self, ends=None, **batch):
        """What the LLM makes of a batch's words, for a model with the fusion "head", see [`llm_states_of`]."""
        return llm_states_of(self.adapter, self._llm(), batch, ends=ends)

    @with_whole_weights
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
        output_hidden_states=None,
        output_attentions=None,
        return_dict=None,
        **kwargs,
    ):
        """A batch as `MseProcessor` makes it, see `prepare_inputs` and `forward_with_adapter`; returns `MseOutput`."""
        return forward_with_adapter(
            self.adapter,
            self._llm(),
            self.config,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=return_dict,
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

    @with_whole_weights
    @torch.no_grad()
    def generate(self, **kwargs):
        """The new tokens [batch, new tokens] after a batch's prompts, see `generate_with_adapter`."""
        return generate_with_adapter(self.adapter, self._llm(), **kwargs)

    @with_whole_weights
    def predict(self, batch, answers, method=None):
        """
        Answer a batch.

        Args:
            batch (`dict`): as `MseProcessor` makes it.
            answers (`AnswerFormat`): `processor.answers`.
            method (`str`, *optional*):
                "head", which is the default where there is one, or one of `AnswerFormat.predict`, whose default counts
                otherwise. (Beside the LLM's own answers a head is far better in two of the four tasks of
                benchmarks/mse_answers.py, and about as good in the others.)

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

    def set_input_embeddings(self, value):
        """As the LLM does it; what is put in is frozen, too."""
        require_width(value, self.config.hidden_size)
        self._llm().set_input_embeddings(value.requires_grad_(False))

    def get_output_embeddings(self):
        return None if self.language_model is None else self.language_model.get_output_embeddings()

    def set_attn_implementation(self, *args, **kwargs):
        """As the LLM does it: it is the LLM that attends."""
        self._llm().set_attn_implementation(*args, **kwargs)

    def set_experts_implementation(self, *args, **kwargs):
        """As the LLM does it."""
        self._llm().set_experts_implementation(*args, **kwargs)

    def resize_token_embeddings(self, *args, **kwargs):
        """As the LLM does it; its new rows stay as frozen as the others."""
        embedding = self._llm().resize_token_embeddings(*args, **kwargs)
        self.language_model.requires_grad_(False)
        return embedding

    def _llm(self):
        if self.language_model is None:
            raise ValueError("this model has no LLM yet; use from_pretrained, from_backbone or set_language_model")
        return self.language_model


def _is_about_weights(error):
    """Whether a RuntimeError of loading tells of sizes or files, rather than of a device or of foreign code."""
    signs = ("size mismatch", "ignore_mismatched_sizes", "Error(s) in loading", "safetensors")
    return any(sign in str(error) for sign in signs)


def _tokenizers_of(folder, own_place, llm_folder):
    """The tokenizers of an adapter's folder and of an LLM's, or None where one of them has none."""
    try:
        return AutoTokenizer.from_pretrained(folder, **own_place), AutoTokenizer.from_pretrained(llm_folder)
    except (OSError, ValueError):
        return None


def is_peft_folder(folder, hub_options):
    """Whether a folder or repository is of PEFT's layout (adapter_config.json, and no config.json)."""
    quietly = {"_raise_exceptions_for_missing_entries": False, **hub_options}
    if cached_file(folder, "config.json", **quietly) is not None:
        return False
    return cached_file(folder, "adapter_config.json", **quietly) is not None


def _require_own_type(folder, config, hub_options):
    fields = MseConfig.get_config_dict(folder, **hub_options)[0] if config is None else config.to_dict()
    if fields.get("model_type") != MseConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {fields.get('model_type')!r}; expected an MSE-Adapter")


def _leave_out_language_model(module, state_dict, prefix, local_metadata):
    if loads_on_one_process():
        # accelerate hands the weights of the first process out by it; `save_pretrained` leaves them out
        return
    for name in [name for name in state_dict if name.startswith(f"{prefix}language_model.")]:
        del state_dict[name]


def _do_not_miss_language_model(module, incompatible_keys):
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if ".language_model." not in f".{name}"]


AutoModel.register(MseConfig, MseForConditionalGeneration, exist_ok=True)
