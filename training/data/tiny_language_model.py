"""A causal LM built on the spot: random weights, a tokenizer learnt from the training text, nothing downloaded.

It knows no language. What it offers is the machinery of an LLM: embeddings, attention, a vocabulary to answer in.
"""

import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


def build_tiny_language_model(texts, hidden_size=64, num_hidden_layers=2, vocab_size=1024, seed=0):
    """Build a frozen random Qwen2 and its tokenizer.

    Its matrices are drawn with a deviation of 1 / sqrt(hidden_size), not Qwen2's 0.02, which at this width would pass
    on next to nothing; its embeddings with 0.02. So the last position holds what attention has brought there, from the
    pseudo tokens among others, rather than its own token.

    Args:
        texts (Iterable[str]): what a byte-level BPE is learnt from; any other text still round-trips, byte by byte.
        hidden_size (int): a multiple of 4, the number of heads.
        num_hidden_layers, vocab_size (int): size of the LLM; at least 260 tokens.
        seed (int): of the weights. The global random state stays as it is.

    Returns:
        tuple: (Qwen2ForCausalLM in evaluation mode, PreTrainedTokenizerFast).
    """
    tokenizer = learn_tokenizer(texts, vocab_size)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=1 / math.sqrt(hidden_size),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
    return model.eval().requires_grad_(False), tokenizer


def learn_tokenizer(texts, vocab_size):
    """A byte-level BPE learnt from `texts`, with begin, end and padding tokens; digits are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
