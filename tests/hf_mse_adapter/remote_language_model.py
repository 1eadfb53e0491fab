"""A causal LM as a repository of the Hub may bring it: `write` makes the folder, code and all."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

CONFIG = """
from transformers import PreTrainedConfig

class LittleConfig(PreTrainedConfig):
    model_type = "little"

    def __init__(self, vocab=400, width=64, flaw=None, **kwargs):
        super().__init__(**kwargs)
        self.vocab, self.width, self.flaw = vocab, width, flaw
        self.num_hidden_layers = 1
"""
# names of its own; distances instead of position ids; no logits_to_keep, no cache, no output embeddings
MODEL = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_little import LittleConfig

class LittleForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = LittleConfig

    def __init__(self, config):
        super().__init__(config)
        self.longest = config.max_length if config.flaw == "building" else None
        self.words = nn.Embedding(config.vocab, config.width)
        self.mix = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.vocab)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, attention_mask=None, **kwargs):
        if self.config.flaw == "cache":
            return {"past_length": kwargs["past_key_values"][0][0].shape[-2]}
        if inputs_embeds is not None:
            inputs_embeds = torch.cat([inputs_embeds, self.words(input_ids)], dim=1)
            return {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        if self.config.flaw == "code":
            self.get_head_mask(None, 1)
        x = inputs_embeds
        if x is None:
            x = self.words(input_ids) * (2 if self.config.flaw == "scale" else 1)
        elif self.config.flaw == "layout":
            # it wants embeddings as [length, batch, width]
            x = x.transpose(0, 1)
        if attention_mask is None:
            attention_mask = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        query, key, value = self.mix(x).chunk(3, dim=-1)
        steps = attention_mask.cumsum(dim=1)
        distance = steps[:, :, None] - steps[:, None, :]
        unseen = (distance < 0) | ~attention_mask[:, None].bool() | torch.ones_like(distance).triu(1).bool()
        scores = query @ key.transpose(1, 2) / 8 - 0.1 * distance
        x = x + scores.masked_fill(unseen, -1e9).softmax(dim=-1) @ value
        return CausalLMOutput(logits=self.out(x), hidden_states=None if self.config.flaw == "cache" else (x,))
"""


def write(folder, flaw=None):
    """The folder of a random one. `flaw` says what is wrong with its code, as "code", "cache", "scale", "layout"."""
    folder.mkdir(parents=True)
    (folder / "configuration_little.py").write_text(CONFIG)
    (folder / "modeling_little.py").write_text(MODEL)
    auto_map = {
        "AutoConfig": "configuration_little.LittleConfig",
        "AutoModelForCausalLM": "modeling_little.LittleForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "little", "auto_map": auto_map, "flaw": flaw}))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        for parameter in llm.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    llm.save_pretrained(folder)
    return folder
