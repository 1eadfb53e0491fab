"""Tiny random LLMs of many architectures and a tokenizer learnt on the spot: what this folder's tests build on."""

from functools import cache

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_mse_adapter import MseProcessor

TEXTS = (
    "<Multimodal>I really love this film, it is great!</Multimodal> Sentiment intensity: 1.7",
    "How does the speaker feel, from -3.0 (very negative) to 3.0 (very positive)?",
    "Which emotion does the speaker show, out of neutral, surprise, fear, sadness, joy, disgust, anger? Emotion: 3",
    "<多模态>我真的很喜欢这部电影</多模态>说话人的情感如何？情感强度：-0.4",
    "说话人表现出哪种情绪？愤怒 厌恶 恐惧 高兴 平静 悲伤 惊奇",
)
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    # random LLMs with the usual 0.02 hardly look at their input at this size
    "initializer_range": 0.1,
}
# what a class needs besides the common fields, or instead of them
ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Glm": {"attention_bias": True},
    "Mistral": {"sliding_window": None},
    "Gemma": {},
    "Gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 16},
    "GPTNeoX": {"head_dim": None},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.1},
}


def build_backbone(architecture="Llama", vocab_size=400, seed=0, **fields):
    """A random causal LM in evaluation mode, the same for the same arguments."""
    config_class = getattr(transformers, f"{architecture}Config")
    fields = COMMON | ARCHITECTURES[architecture] | {"vocab_size": vocab_size} | fields
    fields = {name: value for name, value in fields.items() if value is not None or name == "sliding_window"}
    config = config_class(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def build_tokenizer(texts=TEXTS, vocab_size=400):
    """A byte-level BPE with beginning, end and padding token; digits are tokens of their own. Never more than
    `vocab_size` tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_learnt(tuple(texts), vocab_size)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )


@cache
def _learnt(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def build_batch(texts=("I love it", "no", "it is great fun"), labels=(1.0, -2.5, 0.3), padding_side="left", **fields):
    """A processor's batch of three clips with audio of 7, 2, 5 and vision of 3, 6, 1 steps, 5 and 4 features wide."""
    processor = MseProcessor(build_tokenizer(), audio_dim=5, vision_dim=4, padding_side=padding_side, **fields)
    generator = torch.Generator().manual_seed(1)
    audio = [torch.randn(steps, 5, generator=generator) for steps in (7, 2, 5)][: len(texts)]
    vision = [torch.randn(steps, 4, generator=generator) for steps in (3, 6, 1)][: len(texts)]
    return processor(list(texts), audio=audio, vision=vision, labels=list(labels) if labels else None)
