"""MSE-Adapter as a PEFT adapter type: `get_peft_model(llm, MseAdapterConfig(...))`.

Importing this file makes the type known to PEFT, once.
"""

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import nn

from .adapted_language_model import (
    BATCH_FIELDS,
    device_of,
    forward_with_adapter,
    generate_with_adapter,
    predict_with_adapter,
    prepare_inputs,
    require_embeddings_are_enough,
    require_head_layers,
    train_only_adapter,
)
from .configuration_mse_adapter import MseAdapterConfig, known_to_peft
from .modeling_mse_adapter import PEFT_CONTAINER, MseAdapter


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
        weight = self.base_layer.weight
        adapter = MseAdapter(config, hidden_size=weight.shape[-1])
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
        require_embeddings_are_enough(model)
        require_head_layers(peft_config, model)
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

    def prepare_inputs(self, **batch):
        """inputs_embeds, attention_mask and position_ids for the LLM, see [`prepare_inputs`]."""
        return prepare_inputs(self.adapter, self.model, **batch)

    def forward(self, *args, **kwargs):
        """See `forward_with_adapter`: a batch by names in, `MseOutput` out."""
        if self._layer().disable_adapters:
            return self.model(*args, **_for_bare_llm(kwargs))
        if args:
            raise ValueError(f"{len(args)} arguments came by position; expected all by name")
        return forward_with_adapter(self.adapter, self.model, **kwargs)

    @torch.no_grad()
    def generate(self, *args, **kwargs):
        """The new tokens only, see `generate_with_adapter`; with the adapter disabled, what the LLM returns."""
        if self._layer().disable_adapters:
            return self.model.generate(*args, **_for_bare_llm(kwargs))
        if args:
            raise ValueError(f"{len(args)} arguments came by position; expected all by name")
        return generate_with_adapter(self.adapter, self.model, **kwargs)

    def predict(self, batch, answers, method=None):
        """`list[Prediction]` for a batch, see `MseForConditionalGeneration.predict`."""
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

    def merge_and_unload(self, *args, **kwargs):
        """Raises ValueError, see `merge_adapter`."""
        self.merge_adapter()

    def add_weighted_adapter(self, *args, **kwargs):
        """Raises ValueError: no weighted sum of weights acts as the weighted sum of the adapters."""
        raise ValueError("MSE-Adapters cannot be added up: they are not linear in their weights. Use one at a time")


def _for_bare_llm(kwargs):
    mine = {*BATCH_FIELDS, "label_values", "num_samples_in_batch"} - {"input_ids", "attention_mask"}
    return {name: value for name, value in kwargs.items() if name not in mine}


def register():
    """Make the adapter type known to PEFT; more than once does no harm."""
    if known_to_peft() not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name="mse_adapter", config_cls=MseAdapterConfig, model_cls=MseAdapterModel)


register()
