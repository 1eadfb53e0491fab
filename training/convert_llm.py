"""Bring two LLMs of the paper, ChatGLM3 and the first Qwen, into classes that transformers has: Glm and Qwen2.

    python training/convert_llm.py THUDM/chatglm3-6b llms/chatglm3-6b
    python training/convert_llm.py Qwen/Qwen-1_8B llms/qwen-1_8b

Their repositories bring their own code, which was written for transformers 4. Under transformers 5 ChatGLM3's cannot
be built (its config has no `max_length`), and Qwen's has no `get_head_mask` and has its loaded weights overwritten by
its own initialisation. The weights are those of the two classes under other names: converting changes no number.

Prompts must be shorter than Qwen's `seq_length` (8192 tokens), where its own code begins to stretch positions.
"""

import argparse
import base64
import json
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GlmConfig, Qwen2Config, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

FILES = ("*.json", "*.safetensors", "tokenizer.model", "tokenization_*.py", "*.tiktoken")
GLM_NAMES = {
    "transformer.embedding.word_embeddings.": "model.embed_tokens.",
    "transformer.encoder.layers.": "model.layers.",
    "transformer.encoder.final_layernorm.": "model.norm.",
    "transformer.output_layer.": "lm_head.",
    ".self_attention.query_key_value.": ".self_attn.qkv.",
    ".self_attention.dense.": ".self_attn.o_proj.",
    ".mlp.dense_h_to_4h.": ".mlp.gate_up_proj.",
    ".mlp.dense_4h_to_h.": ".mlp.down_proj.",
}
QWEN_NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    "transformer.ln_f.": "model.norm.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_attn.": ".self_attn.qkv.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    # its MLP is w1(x) * silu(w2(x))
    ".mlp.w2.": ".mlp.gate_proj.",
    ".mlp.w1.": ".mlp.up_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}
QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205)))


def convert(source, folder, revision=None):
    """
    Write a ChatGLM3 or Qwen checkpoint as one of `GlmForCausalLM` or `Qwen2ForCausalLM`, with its tokenizer.

    Args:
        source (`str` or `Path`): Hub id, or a folder with config.json, *.safetensors and the tokenizer's files.
        folder (`str` or `Path`): a new one.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Raises:
        ValueError: if the checkpoint is of another kind, its weights are not those of that kind, or `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists; expected a new folder")
    if not Path(source).is_dir():
        source = snapshot_download(str(source), revision=revision, allow_patterns=FILES)
    source = Path(source)
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kinds = {"chatglm": (glm_config, GLM_NAMES), "qwen": (qwen_config, QWEN_NAMES)}
    if fields.get("model_type") not in kinds:
        raise ValueError(f"model_type in {source} is {fields.get('model_type')!r}; expected one of {sorted(kinds)}")
    config_of, names = kinds[fields["model_type"]]
    try:
        config = config_of(fields)
    except KeyError as error:
        raise ValueError(f"config.json in {source} has no {error}: an LLM of another generation") from None
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{source} holds no .safetensors file; expected the weights in such files")
    weights = {}
    for file in files:
        for name, value in load_file(file).items():
            weights |= renamed(name, value, names, config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=next(iter(weights.values())).dtype)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {source} are not those of a {type(model).__name__}: {error}") from None
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if fields["model_type"] == "qwen":
        tokenizer = qwen_tokenizer(source / "qwen.tiktoken")
        tokenizer.save_pretrained(unfinished)
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    else:
        # this one's own code does run
        for file in ("tokenizer.model", "tokenizer_config.json", "tokenization_chatglm.py"):
            shutil.copyfile(source / file, unfinished / file)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


def glm_config(fields):
    """`GlmConfig` of a ChatGLM3's config.json. Half of each head's channels turn, in neighbouring pairs, in both."""
    groups = fields["multi_query_group_num"] if fields.get("multi_query_attention") else fields["num_attention_heads"]
    return GlmConfig(
        vocab_size=fields["padded_vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["ffn_hidden_size"],
        num_hidden_layers=fields["num_layers"],
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=groups,
        head_dim=fields["kv_channels"],
        attention_bias=fields["add_qkv_bias"],
        rms_norm_eps=fields["layernorm_epsilon"],
        max_position_embeddings=fields["seq_length"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * fields.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
        bos_token_id=None,
        eos_token_id=fields["eos_token_id"],
        pad_token_id=fields["pad_token_id"],
    )


def qwen_config(fields):
    """`Qwen2Config` of a Qwen's config.json; its `intermediate_size` counts gate and up projection together."""
    return Qwen2Config(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"] // 2,
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields["num_attention_heads"],
        rms_norm_eps=fields["layer_norm_epsilon"],
        max_position_embeddings=fields["seq_length"],
        rope_parameters={"rope_type": "default", "rope_theta": float(fields["rotary_emb_base"])},
        tie_word_embeddings=fields["tie_word_embeddings"],
        bos_token_id=None,
    )


def renamed(name, value, names, config):
    """A weight by its new name; three of them where query, key and value were one."""
    if name.endswith("rotary_pos_emb.inv_freq"):
        return {}
    for old, new in names.items():
        name = name.replace(old, new)
    if ".qkv." not in name:
        return {name: value}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = [head_dim * heads for heads in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
    if sum(sizes) != len(value):
        raise ValueError(f"{name} has {len(value)} rows; expected {sum(sizes)}")
    parts = zip("qkv", value.split(sizes), strict=True)
    return {name.replace(".qkv.", f".{part}_proj."): rows.contiguous() for part, rows in parts}


class QwenVocabulary(TikTokenConverter):
    """Reads a .tiktoken file without the package of that name: a token in base64 and its rank in each line."""

    @staticmethod
    def load_tiktoken_bpe(file):
        lines = (line.split() for line in Path(file).read_bytes().splitlines() if line)
        return {base64.b64decode(token): int(rank) for token, rank in lines}


def qwen_tokenizer(file):
    """`Qwen2Tokenizer` of a qwen.tiktoken: the same tokens, and what looks special in a text is only text to it."""
    vocabulary, merges = QwenVocabulary().extract_vocab_merges_from_model(file)
    vocabulary |= {token: len(vocabulary) + index for index, token in enumerate(QWEN_SPECIAL_TOKENS)}
    return Qwen2Tokenizer(vocabulary, merges, additional_special_tokens=list(QWEN_SPECIAL_TOKENS[1:]))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Convert ChatGLM3 to Glm, or the first Qwen to Qwen2.")
    parser.add_argument("source", help="Hub id or folder of the checkpoint")
    parser.add_argument("folder", help="where the converted one goes")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub id")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.folder, options.revision)
    except (OSError, ValueError) as error:
        print(f"convert_llm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
