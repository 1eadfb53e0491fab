import base64
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.convert_llm import convert, main

VOCABULARY, WIDTH, HEADS, HEAD_DIM, INNER = 300, 32, 4, 8, 48
CHATGLM = {
    "model_type": "chatglm",
    "padded_vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "ffn_hidden_size": INNER,
    "num_layers": 2,
    "num_attention_heads": HEADS,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": HEAD_DIM,
    "add_qkv_bias": True,
    "layernorm_epsilon": 1e-5,
    "seq_length": 64,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
QWEN = {
    "model_type": "qwen",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "layer_norm_epsilon": 1e-6,
    "seq_length": 64,
    "rotary_emb_base": 10000,
    "tie_word_embeddings": False,
}
# the weights of a layer, as the two repositories name them, and their shapes
LAYERS = {
    "chatglm": (
        "transformer.encoder.layers.{}.",
        {
            "input_layernorm.weight": (WIDTH,),
            "self_attention.query_key_value.weight": ((HEADS + 2 * 2) * HEAD_DIM, WIDTH),
            "self_attention.query_key_value.bias": ((HEADS + 2 * 2) * HEAD_DIM,),
            "self_attention.dense.weight": (WIDTH, HEADS * HEAD_DIM),
            "post_attention_layernorm.weight": (WIDTH,),
            "mlp.dense_h_to_4h.weight": (2 * INNER, WIDTH),
            "mlp.dense_4h_to_h.weight": (WIDTH, INNER),
        },
        {
            "transformer.embedding.word_embeddings.weight": (VOCABULARY, WIDTH),
            "transformer.encoder.final_layernorm.weight": (WIDTH,),
            "transformer.output_layer.weight": (VOCABULARY, WIDTH),
            "transformer.rotary_pos_emb.inv_freq": (2,),
        },
    ),
    "qwen": (
        "transformer.h.{}.",
        {
            "ln_1.weight": (WIDTH,),
            "attn.c_attn.weight": (3 * WIDTH, WIDTH),
            "attn.c_attn.bias": (3 * WIDTH,),
            "attn.c_proj.weight": (WIDTH, WIDTH),
            "ln_2.weight": (WIDTH,),
            "mlp.w1.weight": (INNER, WIDTH),
            "mlp.w2.weight": (INNER, WIDTH),
            "mlp.c_proj.weight": (WIDTH, INNER),
        },
        {
            "transformer.wte.weight": (VOCABULARY, WIDTH),
            "transformer.ln_f.weight": (WIDTH,),
            "lm_head.weight": (VOCABULARY, WIDTH),
        },
    ),
}


def write_checkpoint(folder, fields):
    prefix, layer, rest = LAYERS[fields["model_type"]]
    shapes = rest | {prefix.format(i) + name: shape for i in range(2) for name, shape in layer.items()}
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) * 0.3 + (len(shape) == 1) for name, shape in shapes.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(weights, folder / "model.safetensors")
    # bytes, and two merges
    tokens = [bytes([value]) for value in range(256)] + [b"it", b" it"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines))
    for file in ("tokenizer.model", "tokenizer_config.json", "tokenization_chatglm.py"):
        (folder / file).write_text("{}")
    return weights


def rms_norm(x, weight, epsilon):
    return weight * x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + epsilon)


def attend(query, key, value):
    """Causal attention over [length, heads, head_dim]; key and value heads serve equally many query heads."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value).flatten(1)


def angles(length, turned):
    return torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, turned, 2) / turned))[:, None]


def turn_pairs(x, turned):
    """ChatGLM's positions: of each head's first channels, neighbours are the coordinates that turn."""
    angle = angles(len(x), turned)
    pairs = torch.view_as_complex(x[..., :turned].unflatten(-1, (-1, 2)).contiguous())
    turned_pairs = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle))
    return torch.cat([turned_pairs.flatten(-2), x[..., turned:]], dim=-1)


def turn_halves(x):
    """Qwen's positions: channel i turns with channel i + half of them."""
    angle = angles(len(x), x.shape[-1])
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def chatglm_logits(w, ids):
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for i in range(2):
        at = f"transformer.encoder.layers.{i}."
        h = rms_norm(x, w[at + "input_layernorm.weight"], 1e-5)
        qkv = F.linear(h, *(w[at + f"self_attention.query_key_value.{kind}"] for kind in ("weight", "bias")))
        query, key, value = qkv.unflatten(-1, (-1, HEAD_DIM)).split([HEADS, 2, 2], dim=1)
        query, key = turn_pairs(query, HEAD_DIM // 2), turn_pairs(key, HEAD_DIM // 2)
        x = x + attend(query, key, value) @ w[at + "self_attention.dense.weight"].T
        h = rms_norm(x, w[at + "post_attention_layernorm.weight"], 1e-5)
        gate, up = (h @ w[at + "mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ w[at + "mlp.dense_4h_to_h.weight"].T
    return rms_norm(x, w["transformer.encoder.final_layernorm.weight"], 1e-5) @ w["transformer.output_layer.weight"].T


def qwen_logits(w, ids):
    x = w["transformer.wte.weight"][ids]
    for i in range(2):
        at = f"transformer.h.{i}."
        qkv = F.linear(
            rms_norm(x, w[at + "ln_1.weight"], 1e-6), w[at + "attn.c_attn.weight"], w[at + "attn.c_attn.bias"]
        )
        query, key, value = (part.unflatten(-1, (-1, HEAD_DIM)) for part in qkv.chunk(3, dim=-1))
        x = x + attend(turn_halves(query), turn_halves(key), value) @ w[at + "attn.c_proj.weight"].T
        h = rms_norm(x, w[at + "ln_2.weight"], 1e-6)
        inner = (h @ w[at + "mlp.w1.weight"].T) * F.silu(h @ w[at + "mlp.w2.weight"].T)
        x = x + inner @ w[at + "mlp.c_proj.weight"].T
    return rms_norm(x, w["transformer.ln_f.weight"], 1e-6) @ w["lm_head.weight"].T


@pytest.mark.parametrize(
    "fields, logits_of", [(CHATGLM, chatglm_logits), (QWEN, qwen_logits)], ids=["chatglm", "qwen"]
)
def test_a_converted_llm_computes_what_its_own_code_did(tmp_path, fields, logits_of):
    weights = write_checkpoint(tmp_path / "original", fields)
    convert(tmp_path / "original", tmp_path / "converted")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    ids = torch.arange(3, 200, 13)
    torch.testing.assert_close(llm(ids[None]).logits[0], logits_of(weights, ids), atol=2e-5, rtol=2e-5)


def test_qwens_tokens_stay_the_same(tmp_path):
    write_checkpoint(tmp_path / "original", QWEN)
    convert(tmp_path / "original", tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    assert tokenizer("it is it").input_ids == [256, 32, ord("i"), ord("s"), 257]
    assert tokenizer.eos_token_id == 258 == tokenizer.pad_token_id
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|extra_0|>"]) == [259, 261]
    said = tokenizer("<|endoftext|>", split_special_tokens=True).input_ids
    assert tokenizer.decode(said) == "<|endoftext|>" and 258 not in said


def test_what_cannot_be_converted_is_named(tmp_path, capsys):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert main([str(tmp_path / "llama"), str(tmp_path / "converted")]) == 2
    assert "model_type" in capsys.readouterr().err
    with pytest.raises(ValueError, match="exists"):
        convert(tmp_path / "llama", tmp_path / "llama")
    write_checkpoint(tmp_path / "other", CHATGLM | {"num_layers": 3})
    with pytest.raises(ValueError, match="not those of a GlmForCausalLM"):
        convert(tmp_path / "other", tmp_path / "converted")
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        convert(tmp_path / "other", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
