"""MSE-Adapter as a PEFT adapter type: `get_peft_model(llm, MseAdapterConfig(...))`.

Importing this file makes the type known to PEFT, once.
"""

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from .adapted_language_model import (
    BATCH_FIELDS,
    bare_inputs,
    device_of,
    forward_with_adapter,
    generate_with_adapter,
    predict_with_adapter,
    prepare_inputs,
    require_embeddings_are_enough,
    require_head_fits,
    require_width,
    train_only_adapter,
)
from .backbone_source import as_plain_weights, differing_weight, differs_from_source
from .configuration_mse_adapter import MseAdapterConfig, known_to_peft
from .modeling_mse_adapter import PEFT_CONTAINER, MseAdapter
from .sharded_weights import full_shape, with_whole_weights

logger = logging.get_logger(__name__)


class MseAdapterLayer(nn.Module, BaseTunerLayer):
    """
    Stands around the LLM's input embedding, which it leaves as it is, and keeps the adapters by name.

    It is where PEFT looks for adapters to save, load, activate and delete; `MseAdapterModel` is what runs them.
    """

    adapter_layer_names = (PEFT_CONTAINER,)

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.mse_adapter_modules = nn.ModuleDict()
        self.merged_adapters = []

    @property
    def num_embeddings(self):
        return self.base_layer.num_embeddings

    def add_adapter(self, adapter_name, config):
        adapter = MseAdapter(config, hidden_size=full_shape(self.base_layer.weight)[-1])
        # float32 whatever the LLM's dtype; on meta, the weights still have to be loaded
        if not any(parameter.is_meta for parameter in adapter.parameters()):
            adapter.to(device_of(self.base_layer))
        self.mse_adapter_modules[adapter_name] = adapter

    def forward(self, *args, **kwargs):
        return self.base_layer(*args, **kwargs)


class MseAdapterModel(BaseTuner):
    """
    What PEFT puts around an LLM for an MSE-Adapter. Its `forward`, `generate` and `predict` take a batch as
    `MseProcessor` makes it. With `disable_adapter()` the LLM gets the tokens and options alone, as without PEFT.

    The LLM in it stays without dropout in training, see `train_only_adapter`.
    """

    prefix = "mse_adapter_"
    tuner_layer_cls = MseAdapterLayer
    target_module_mapping = {}
    # weights alone cannot run in an LLM that knows no audio: `inject_adapter_in_model`, and so transformers' own
    # `load_adapter`, then refuses with an error instead of answering by text only
    uses_shared_state = True

    def _prepare_adapter_config(self, peft_config, model_config):
        return peft_config

    def _prepare_model(self, peft_config, model):
        require_embeddings_are_enough(as_plain_weights(model))
        name = peft_config.base_model_name_or_path
        if name and not peft_config.inference_mode and (difference := differs_from_source(model, name)):
            # PEFT writes the name all the same
            logger.warning(
                f"the LLM is not what {name} gives ({difference}): save it, too, and load the adapter into it by "
                "PeftModel.from_pretrained; by that name alone it would find another LLM"
            )
        require_head_fits(peft_config, model)
        embedding = model.get_input_embeddings()
        self._embedding_name = next(name for name, module in model.named_modules() if module is embedding)

    def _check_target_module_exists(self, peft_config, key):
        return key == self._embedding_name

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key):
        if not isinstance(target, MseAdapterLayer):
            layer = MseAdapterLayer(target)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        target.add_adapter(adapter_name, peft_config)

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        state_dict = _with_own_weights_only(model, config, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    @classmethod
    def _remove_adapter_name_from_key(cls, key, adapter_name):
        return key.replace(f"{PEFT_CONTAINER}.{adapter_name}.", f"{PEFT_CONTAINER}.", 1)

    @property
    def language_model(self):
        """The LLM (`PreTrainedModel`)."""
        return self.model

    @property
    def adapter(self):
        """The active adapter (`MseAdapter`).

        Raises:
            ValueError: if none or several are active.
        """
        if len(self.active_adapters) != 1:
            raise ValueError(f"the active adapters are {self.active_adapters}; expected exactly one")
        return self._layer().mse_adapter_modules[self.active_adapters[0]]

    def _layer(self):
        return self.model.get_input_embeddings()

    def _is_bare(self):
        """Whether the LLM answers alone: the adapters are disabled, or none is left."""
        layer = self._layer()
        return layer.disable_adapters or not layer.mse_adapter_modules

    def get_input_embeddings(self):
        """The LLM's own (`nn.Embedding`), without the adapters that are kept beside it."""
        return self._layer().base_layer

    def set_input_embeddings(self, value):
        """As `PreTrainedModel.set_input_embeddings`: the LLM gets another embedding, the adapters stay."""
        layer = self._layer()
        if value not in (layer, layer.base_layer):
            require_width(value, full_shape(layer.base_layer.weight)[-1])
            layer.base_layer = value.requires_grad_(False)

    def delete_adapter(self, adapter_name):
        """As `BaseTuner.delete_adapter`; without any adapter, `base_model` is the LLM alone."""
        super().delete_adapter(adapter_name)
        # PEFT goes on to ask for the deleted adapter's config
        self.peft_config = _AdaptersLeft(self.peft_config)

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        # an adapter is made in float32; without PEFT's cast to that, it has the LLM's dtype, as LoRA's weights do
        if not autocast_adapter_dtype:
            layer = self._layer()
            layer.mse_adapter_modules[adapter_name].to(layer.base_layer.weight.dtype)

    def resize_token_embeddings(self, *args, **kwargs):
        """As `PreTrainedModel.resize_token_embeddings`: the LLM's embedding gets other rows, the adapters stay."""
        layer = self._layer()
        self.model.set_input_embeddings(layer.base_layer)
        try:
            self.model.resize_token_embeddings(*args, **kwargs)
            layer.base_layer = self.model.get_input_embeddings().requires_grad_(False)
        finally:
            self.model.set_input_embeddings(layer)
        return layer.base_layer

    @with_whole_weights
    def prepare_inputs(self, **batch):
        """inputs_embeds, attention_mask and position_ids for the LLM, see [`prepare_inputs`]."""
        return prepare_inputs(self.adapter, self.model, **batch)

    def forward(self, *args, **kwargs):
        """See `forward_with_adapter`: a batch by names in, `MseOutput` out."""
        if self._is_bare():
            return self.model(*args, **_for_bare_llm(kwargs))
        if args:
            raise ValueError(f"{len(args)} arguments came by position; expected all by name")
        return forward_with_adapter(self.adapter, self.model, self.model.config, **kwargs)

    @with_whole_weights
    @torch.no_grad()
    def generate(self, *args, **kwargs):
        """The new tokens only, see `generate_with_adapter`; with the adapter disabled, what the LLM returns."""
        if self._is_bare():
            return self.model.generate(*args, **_for_bare_llm(kwargs))
        if args:
            raise ValueError(f"{len(args)} arguments came by position; expected all by name")
        return generate_with_adapter(self.adapter, self.model, **kwargs)

    def _run_whole(self, function):
        return function()

    @with_whole_weights
    def predict(self, batch, answers, method=None):
        """`list[Prediction]` for a batch, see `MseForConditionalGeneration.predict`. With the adapter disabled, what
        the LLM itself answers to the same tokens; no head answers then."""
        if self._is_bare():
            if method == "head":
                raise ValueError("method is 'head', but the adapter, whose head it is, is disabled or deleted")
            return answers.predict(_BareLanguageModel(self.model), batch, method)
        return predict_with_adapter(self, self.adapter, batch, answers, method)

    def train(self, mode=True):
        """Only the adapters' dropout becomes active, see `train_only_adapter`."""
        super().train(mode)
        train_only_adapter(self.model, mode)
        self._layer().train(mode)
        return self

    def activation_checkpointing_enable(self, *args, **kwargs):
        self.model.activation_checkpointing_enable(*args, **kwargs)
        self.train(self.training)

    def activation_checkpointing_disable(self):
        self.model.activation_checkpointing_disable()
        self.train(self.training)

    # the names that are deprecated in transformers, but not yet in PEFT's documentation
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    def merge_adapter(self, *args, **kwargs):
        """Raises ValueError: pseudo tokens depend on the sample, so no weight of the LLM could hold them."""
        raise ValueError(
            "an MSE-Adapter cannot be merged: its pseudo tokens depend on each sample's audio and vision. "
            "save_pretrained keeps the adapter, unload gives back the LLM"
        )

    def unmerge_adapter(self, *args, **kwargs):
        """Raises ValueError: nothing is ever merged, see `merge_adapter`."""
        raise ValueError("an MSE-Adapter is never merged into the LLM, so there is nothing to take out of it")

    def merge_and_unload(self, *args, **kwargs):
        """Raises ValueError, see `merge_adapter`."""
        self.merge_adapter()

    def add_weighted_adapter(self, *args, **kwargs):
        """Raises ValueError: no weighted sum of weights acts as the weighted sum of the adapters."""
        raise ValueError("MSE-Adapters cannot be added up: they are not linear in their weights. Use one at a time")


class _AdaptersLeft(dict):
    """Adapters' configs by name, of which some were deleted."""

    def __missing__(self, name):
        left = ", ".join(self) or "none"
        raise ValueError(
            f"the adapter {name!r} was deleted; expected one of those left ({left}): set_adapter chooses it, "
            "add_adapter and load_adapter make one, unload gives back the LLM"
        )


class _BareLanguageModel:
    """An LLM as `AnswerFormat.predict` takes a model, without any adapter."""

    def __init__(self, language_model):
        self.language_model = language_model

    def prepare_inputs(self, **batch):
        return bare_inputs(self.language_model, batch)

    def generate(self, **kwargs):
        inputs = bare_inputs(self.language_model, {name: kwargs.pop(name, None) for name in BATCH_FIELDS})
        del inputs["position_ids"]
        return self.language_model.generate(**inputs, **kwargs)


def _with_own_weights_only(model, config, state_dict):
    """
    Refuse an adapter file that would change the LLM: PEFT loads whatever weights it holds over the LLM's own.

    What PEFT itself may have put there beside the adapter are the embeddings of an LLM that was resized, or with
    `save_embedding_layers`. They are taken as far as they equal the LLM's own rows; rows that were added to it may
    differ.
    """
    ours = {name: value for name, value in state_dict.items() if f"{PEFT_CONTAINER}." in name}
    if len(ours) == len(state_dict):
        return state_dict
    own = model.state_dict(keep_vars=True)
    # our layer stands around the input embedding
    foreign = {
        name if name in own else name.replace(".weight", ".base_layer.weight"): value
        for name, value in state_dict.items()
        if name not in ours
    }
    num_embeddings = model.get_input_embeddings().num_embeddings
    resized = {name: value for name, value in foreign.items() if value.ndim == 2 and len(value) == num_embeddings}
    others = {name: value for name, value in foreign.items() if name not in resized}
    if name := differing_weight(own, others) or differing_weight(own, resized, _original_rows(config)):
        raise ValueError(
            f"the adapter's file holds {name}, a weight of the LLM that differs from the LLM's own; expected the "
            "adapter's weights alone (an LLM that was changed is saved by itself, and named as the base model)"
        )
    return ours | foreign


def _original_rows(config):
    """Rows of the LLM's embedding that came with it: all, unless the config that it was loaded from says fewer."""
    try:
        original = AutoConfig.from_pretrained(config.base_model_name_or_path, revision=config.revision)
        return original.get_text_config().vocab_size
    except (AttributeError, OSError, TypeError, ValueError):
        return None


def _for_bare_llm(kwargs):
    mine = {*BATCH_FIELDS, "label_values", "num_samples_in_batch", "llm_states"} - {"input_ids", "attention_mask"}
    return {name: value for name, value in kwargs.items() if name not in mine}


def register():
    """Make the adapter type known to PEFT; more than once does no harm."""
    if known_to_peft() not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name="mse_adapter", config_cls=MseAdapterConfig, model_cls=MseAdapterModel)


register()
