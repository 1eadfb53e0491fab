"""Every causal LM of the installed transformers under an MSE-Adapter: right, or refused and why.

    python benchmarks/supported_llms.py [FAMILY ...]

Each is built small and random from its own default config (`small_llm`); an adapter is put on it, and a batch of texts
of several lengths has to give what each text gives alone: by likelihood, by the head, in the loss, and written by
`generate`. The table goes to benchmarks/supported_llms.md, or to the screen for single families.
"""

import sys
from pathlib import Path

import torch
import transformers
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter import MseAdapterConfig, MseProcessor, backbone_trial
from hf_mse_adapter.backbone_trial import reading_of, small_llm
from tests.hf_mse_adapter.tiny_backbones import build_tokenizer

# what some config classes leave out, and every real LLM's config says
FIELDS = {
    "bloom": {"hidden_size": 1024, "n_head": 16},
    "dots1": {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4},
    "deepseek_v2": {"num_experts_per_tok": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "xmod": {"default_language": "en_XX"},
}
# as many as the tokenizer has
backbone_trial.VOCABULARY = 300
TEXTS = ("no", "it is great fun and what a film, I really love it", "I love it", "what a long and sad day it was")
LABELS = (-2.0, 3.0, 1.0, -1.0)


def families():
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_of(family):
    """A family's small LLM, or None where its default config makes none."""
    config = CONFIG_MAPPING[family](**FIELDS.get(family, {}))
    for name, value in (("is_encoder_decoder", False), ("is_decoder", True)):
        if hasattr(config, name):
            setattr(config, name, value)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    if model_class.config_class is not type(config):
        config = config.get_text_config(decoder=True)
    return small_llm(model_class, config)


def outcome(llm):
    """("right", how it is run) or ("refused", why)."""
    processor = MseProcessor(build_tokenizer(vocab_size=300), audio_dim=5, vision_dim=4, label_step=0.5)
    torch.manual_seed(0)
    fields = {"audio_dim": 5, "vision_dim": 4, "label_step": 0.5, "dropout": 0.0, "scales": (2, 4, 4)}
    notes, methods = [], ["expected", "head"]
    try:
        model = get_peft_model(llm, MseAdapterConfig(**fields, head="beside")).eval()
    except ValueError as error:
        if str(error).startswith("the LLM is"):
            return "refused", str(error).split(", which ", 1)[-1]
        if not str(error).startswith("head is"):
            raise
        notes, methods = [f"a head is refused: {str(error).split(' with ', 1)[-1]}"], ["expected"]
        model = get_peft_model(llm, MseAdapterConfig(**fields)).eval()
    reading = reading_of(llm)
    # the head begins at zero
    for parameter in model.base_model.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    generator = torch.Generator().manual_seed(1)
    clips = [
        {"text": text, "label": label, "audio": torch.randn(steps, 5, generator=generator)}
        for text, label, steps in zip(TEXTS, LABELS, (3, 9, 1, 5), strict=True)
    ]
    together, alone = processor.collate(clips), [processor.collate([clip]) for clip in clips]
    methods += ["constrained"] * (reading.generates and not reading.failed_to_generate)
    for method in methods:
        batch = [answer.value for answer in model.predict(together, processor.answers, method)]
        single = [model.predict(one, processor.answers, method)[0].value for one in alone]
        if max(abs(a - b) for a, b in zip(batch, single, strict=True)) > 2e-3:
            return "WRONG", f"{method}: {single} alone, {batch} together"
    with torch.no_grad():
        count = sum(int((one["labels"][:, 1:] != -100).sum()) for one in alone)
        single = sum(
            float(model(**one, num_items_in_batch=count, num_samples_in_batch=len(alone)).loss) for one in alone
        )
        batch = float(model(**together, num_items_in_batch=count, num_samples_in_batch=len(alone)).loss)
    if abs(single - batch) > 2e-3 * abs(single):
        return "WRONG", f"loss: {single} alone, {batch} together"
    if not reading.reads_mask:
        notes.append("reads padding: batched without any before a text")
    if not reading.takes_positions:
        notes.append("counts positions by itself")
    if reading.failed_to_generate:
        notes.append("generate() fails from embeddings: answers by likelihood or head only")
    elif reading.generates and not reading.generates_padded:
        notes.append("writes texts of one length at a time")
    if not reading.generates:
        notes.append("generate() writes something else from embeddings: refused, answers by likelihood or head only")
    return "right", "; ".join(notes)


def row_of(family):
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    try:
        llm = small_of(family)
    except Exception as error:
        return family, name, "not tried", f"no config: {type(error).__name__}"
    if llm is None:
        return family, name, "not tried", "its default config makes no LLM that runs here"
    try:
        verdict, note = outcome(llm)
    except Exception as error:
        verdict, note = "WRONG", f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
    return family, name, verdict, note


def main():
    transformers.logging.set_verbosity_error()
    wanted = sys.argv[1:]
    rows = []
    for family in wanted or families():
        rows.append(row_of(family))
        print(*rows[-1], sep=" | ", flush=True)
    if wanted:
        return
    counts = {
        verdict: sum(row[2] == verdict for row in rows) for verdict in ("right", "refused", "not tried", "WRONG")
    }
    lines = [
        "# Causal LMs under an MSE-Adapter",
        "",
        f"Made by `python benchmarks/supported_llms.py` with transformers {transformers.__version__}: each family of "
        '`AutoModelForCausalLM` as a small random LLM of its default config. "Right": in a batch each text gets the '
        "answer that it gets alone, by likelihood, by the head, in the loss and, unless said otherwise, written by "
        "`generate`; and the LLM computes from embeddings what it computes from their tokens. What is refused is "
        "refused in one line, with this reason, when the adapter is put on.",
        "",
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) + f", of {len(rows)}.",
        "",
        "| model_type | class | outcome | how or why |",
        "|---|---|---|---|",
        *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows),
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
