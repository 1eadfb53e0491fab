"""From a trained seed's folder to one for others: the LLM by its name on the Hub, the card's words, today's code.

    python training/deliver.py runs/msa_ravdess_voice/seed_1111 model_cards/mse-voice \\
        --llm llms/SmolLM2-135M-Instruct --llm_name HuggingFaceTB/SmolLM2-135M-Instruct \\
        --card training/recipes/mse_voice_card.yaml

--front_ends (JSON) and --modalities say how features are made of clips, where the training did not record it.
"""

import argparse
import json
import sys
from inspect import signature
from pathlib import Path

import yaml
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import MseProcessor
from hf_mse_adapter.publishing_mse_adapter import save_for_hub


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trained", type=Path, help="folder of a seed")
    parser.add_argument("output", type=Path)
    parser.add_argument("--llm", required=True, help="folder of the LLM")
    parser.add_argument("--llm_name", required=True, help="its id on the Hub")
    parser.add_argument("--card", type=Path, required=True, help="yaml with the card's words")
    parser.add_argument("--front_ends", type=json.loads, help="how features are made of clips, as JSON")
    parser.add_argument("--modalities", nargs="+", help="of text, audio and vision, what the model was trained on")
    options = parser.parse_args(arguments)
    card = yaml.safe_load(options.card.read_text(encoding="utf-8"))
    backbone = AutoModelForCausalLM.from_pretrained(options.llm)
    model = MseForConditionalGeneration.from_pretrained(options.trained, backbone=backbone)
    model.config.backbone_name_or_path, model.config.backbone_revision = options.llm_name, None
    processor = MseProcessor.from_pretrained(options.trained)
    changed = {"front_ends": options.front_ends, "modalities": options.modalities}
    changed = {name: value for name, value in changed.items() if value is not None}
    if changed:
        fields = {
            name: getattr(processor, name)
            for name in signature(MseProcessor.__init__).parameters
            if name in vars(processor)
        }
        fields.pop("tokenizer", None)
        processor = MseProcessor(processor.tokenizer, **(fields | changed))
    license = card.pop("license", "apache-2.0")
    save_for_hub(model, processor, options.output, include_backbone=False, card=card, license=license)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
