"""From a trained model to a folder that the Hub, an Inference Endpoint and anyone without this package can run."""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from transformers.dynamic_module_utils import get_relative_import_files

from .adapted_language_model import is_remote_code, save_language_model
from .audio_features import Egemaps
from .backbone_likeness import likeness_of
from .checksums import write_checksums
from .configuration_mse_adapter import MseConfig
from .pipeline_multimodal_sentiment import MultimodalSentimentPipeline
from .processing_mse_adapter import MODALITIES

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
# the card's template, the endpoint's handler and its requirements: an installed package has them within itself, a
# clone of the repository beside the package
CARD_FOLDER = HERE / "model_card" if (HERE / "model_card").is_dir() else HERE.parent / "model_cards" / "mse_adapter"

ENTRY_FILES = (
    "configuration_mse_adapter",
    "modeling_mse_adapter",
    "processing_mse_adapter",
    "pipeline_multimodal_sentiment",
)
AUTO_MAP = {
    "AutoConfig": "configuration_mse_adapter.MseConfig",
    "AutoModel": "modeling_mse_adapter.MseForConditionalGeneration",
    "AutoProcessor": "processing_mse_adapter.MseProcessor",
}
TASK = "multimodal-sentiment"
CUSTOM_PIPELINES = {
    TASK: {
        "impl": "pipeline_multimodal_sentiment.MultimodalSentimentPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
BACKBONE_FOLDER = "language_model"
EXAMPLE_TEXT = "I really love this film"
EXAMPLE_FRAMES = 8


def save_for_hub(
    model, processor, folder, *, include_backbone=None, card=None, card_folder=CARD_FOLDER, license="apache-2.0"
):
    """
    Write a folder that loads anywhere with `trust_remote_code=True`: adapter weights, config, processor, all code, the
    pipeline, `example.json`, a made-up clip, with what this model says of it, `example_output.json`, `checksums.json`,
    and, from `card_folder` where it is there, a model card and the files of an Inference Endpoint.

    Each file is written whole and moved into place, config.json last; other files that lie in the folder, such as a
    trainer's checkpoints, stay.

    Args:
        model (`MseForConditionalGeneration`), processor (`MseProcessor`).
        folder (`str` or `Path`): made where it is missing.
        include_backbone (`bool`, *optional*):
            Put the LLM into the folder too, as "language_model". By default only one that nobody could fetch: without
            a name, or with one that begins with "./".
        card (`dict`, *optional*): texts for the card, by the names in the braces of its template; and `hub_datasets`,
            ids on the Hub of what it was trained on, which its page then links.
        card_folder (`str` or `Path`): README.md (template), handler.py, requirements.txt.
        license (`str`): of the adapter's weights, as the Hub writes it.

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: if the model is of another class, or the processor does not fit it.
    """
    # one of AutoModel is of the class that its folder brought, which is another one to Python
    if getattr(model.config, "model_type", None) != MseConfig.model_type or not hasattr(model, "adapter"):
        raise ValueError(f"model is a {type(model).__name__}; expected an MseForConditionalGeneration")
    fields = ["audio_dim", "vision_dim", "num_pseudo_tokens", "task", "language", "prompt_template"]
    fields += ["label_range", "label_step"] if model.config.task == "regression" else ["id2label"]
    for field in fields:
        expected, came = getattr(model.config, field), getattr(processor, field)
        if came != expected:
            raise ValueError(f"processor.{field} is {came!r}; expected {expected!r}, as the model's config has it")
    folder, card_folder = Path(folder), Path(card_folder)
    named = model.config.backbone_name_or_path
    if include_backbone is None:
        include_backbone = named is None or named.startswith("./")
    if not include_backbone and os.path.isdir(named or ""):
        logger.warning(f"the LLM is named by a folder of this machine, {named}: elsewhere the model will not find it")

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        staging = Path(temporary)
        for file in code_files():
            shutil.copyfile(file, staging / file.name)
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        _add_to_json(staging / "processor_config.json", {"auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]}})
        additions = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
        if not include_backbone:
            additions |= {"backbone_likeness": likeness_of(model.language_model)}
        elif not (named or "").startswith("./"):  # such a one the model has saved itself
            save_language_model(model.language_model, staging / BACKBONE_FOLDER)
            additions |= {"backbone_name_or_path": f"./{BACKBONE_FOLDER}", "backbone_revision": None}
        _add_to_json(staging / "config.json", additions)
        for file in ("handler.py", "requirements.txt"):
            if (card_folder / file).is_file():
                shutil.copyfile(card_folder / file, staging / file)
        save_example(model, processor, staging)
        if (card_folder / "README.md").is_file():
            texts = {"backbone_inside": BACKBONE_FOLDER if include_backbone else None} | (card or {})
            _model_card(model, processor, folder.resolve().name, texts, card_folder, license).save(
                staging / "README.md"
            )
        write_checksums(staging)
        for item in sorted(staging.iterdir(), key=lambda item: item.name == "config.json"):
            if item.is_dir() and (folder / item.name).is_dir():
                shutil.rmtree(folder / item.name)
            os.replace(item, folder / item.name)
    return folder


def code_files():
    """The files of this package that a published folder needs (`list[Path]`)."""
    entries = [HERE / f"{entry}.py" for entry in ENTRY_FILES]
    return sorted({*entries, *(Path(file) for entry in entries for file in get_relative_import_files(entry))})


def _add_to_json(path, additions):
    content = json.loads(path.read_text(encoding="utf-8")) | additions
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def save_example(model, processor, folder):
    """example.json, and example_output.json: what the pipeline says of it. The model's own mode stays."""
    clip, random = {"text": EXAMPLE_TEXT}, np.random.default_rng(0)
    for modality in MODALITIES:
        if modality in (processor.modalities or MODALITIES):
            width = getattr(processor, f"{modality}_dim")
            usual = (processor.feature_statistics or {}).get(modality, {"mean": 0.0, "std": 1.0})
            frames = np.array(usual["mean"]) + np.array(usual["std"]) * random.normal(size=(EXAMPLE_FRAMES, width))
            clip[modality] = np.round(frames, 6).tolist()
    was_training = model.training
    try:
        read = MultimodalSentimentPipeline(model, processor=processor, device=model.device)
        answer = read(clip)
    finally:
        model.train(was_training)
    for name, content in (("example.json", clip), ("example_output.json", answer)):
        (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _model_card(model, processor, name, texts, card_folder, license):
    """The README.md of the folder, from the template in `card_folder`."""
    config, backbone = model.config, model.config.backbone_name_or_path
    # a folder cannot be linked
    on_hub = bool(backbone) and backbone[0] not in "./" and not os.path.isdir(backbone)
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="other",
        language=config.language,
        tags=["mse-adapter", "multimodal-sentiment-analysis", "emotion-recognition", "peft", TASK],
        datasets=texts.get("hub_datasets"),
        base_model=backbone if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
    )
    audio_front_end = (processor.front_ends or {}).get("audio", {})
    known = {
        "model_name": name,
        "task": config.task,
        "head": config.head,
        "fusion": config.fusion,
        "head_layers": ", ".join(map(str, config.head_layers or ())),
        "backbone": f"[{backbone}](https://huggingface.co/{backbone})"
        if on_hub
        else type(model.language_model).__name__,
        "llm_has_own_code": is_remote_code(model.language_model),
        "parameters": f"{sum(parameter.numel() for parameter in model.adapter.parameters()):,}",
        "num_pseudo_tokens": config.num_pseudo_tokens,
        "audio_dim": config.audio_dim,
        "vision_dim": config.vision_dim,
        "num_context_utterances": processor.num_context_utterances,
        "reads_clips": _reads_clips(processor),
        "audio_licence": Egemaps.licence if audio_front_end.get("type") == "egemaps" else None,
    }
    return ModelCard.from_template(data, template_path=str(card_folder / "README.md"), **(known | texts))


def _reads_clips(processor):
    """What is found in a clip for this model, in words; empty where nothing is."""
    called = {"text": "words", "audio": "voice", "vision": "face"}
    trained_on = processor.modalities or called
    found = [word for name, word in called.items() if name in (processor.front_ends or {}) and name in trained_on]
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
