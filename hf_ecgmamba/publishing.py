"""From a trained model to a folder that the Hub, an Inference Endpoint and anyone without this package can run."""

import copy
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers.dynamic_module_utils import get_relative_import_files

from .pipeline_ecg_classification import TASK, EcgClassificationPipeline

HERE = Path(__file__).resolve().parent
# an installed package has it within itself, a clone of the repository beside the package
CARD_FOLDER = HERE / "model_card" if (HERE / "model_card").is_dir() else HERE.parent / "model_cards" / "ecgmamba"
ENDPOINT_FILES = ("handler.py", "requirements.txt")
ENTRY_FILES = (
    "configuration_ecgmamba",
    "modeling_ecgmamba",
    "feature_extraction_ecgmamba",
    "pipeline_ecg_classification",
)
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_ecgmamba.EcgMambaConfig",
    "AutoModel": "modeling_ecgmamba.EcgMambaModel",
    "AutoModelForSequenceClassification": "modeling_ecgmamba.EcgMambaForSequenceClassification",
    "AutoModelForPreTraining": "modeling_ecgmamba.EcgMambaForMaskedModeling",
}
FEATURE_EXTRACTOR_AUTO_MAP = {"AutoFeatureExtractor": "feature_extraction_ecgmamba.EcgMambaFeatureExtractor"}
CUSTOM_PIPELINES = {
    TASK: {
        "impl": f"pipeline_ecg_classification.{EcgClassificationPipeline.__name__}",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "multimodal",
    }
}


def save_for_hub(
    model,
    feature_extractor,
    folder,
    *,
    name="ECGMamba",
    description="",
    dataset=None,
    metrics=None,
    license="apache-2.0",
    max_shard_size="5GB",
):
    """
    Writes a folder that loads anywhere with `trust_remote_code=True`: weights, config, feature extractor, all code,
    the pipeline, a model card, and the handler and requirements of an Inference Endpoint.

    Each file is written whole and moved into place, config.json last; other files that lie in the folder, such as a
    trainer's checkpoints, stay.

    Args:
        model (`EcgMambaForSequenceClassification`, or another ECGMamba), feature_extractor
            (`EcgMambaFeatureExtractor`).
        folder (`str` or `Path`): made where it is missing.
        name (`str`), description (`str`, markdown): for the card.
        dataset (`str`, *optional*): what it was trained and measured on, for the card.
        metrics (`dict[str, float]`, *optional*): what was measured there, for the card.
        license (`str`): of the weights, as the Hub writes it.
        max_shard_size (`str`): weights beyond it go into several files.

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: if the feature extractor does not fit the model, or metrics come without a data set.
    """
    folder = Path(folder)
    for field in ("leads", "sampling_rate"):
        expected, came = getattr(model.config, field), getattr(feature_extractor, field)
        if came != expected:
            raise ValueError(
                f"feature_extractor.{field} is {came!r}; expected {expected!r}, as the model's config has it"
            )
    if metrics and dataset is None:
        raise ValueError("dataset is None; expected the name of what the metrics were measured on")

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        staging = Path(temporary)
        save_with_code(model, feature_extractor, staging, max_shard_size)
        for file in ENDPOINT_FILES:
            shutil.copyfile(CARD_FOLDER / file, staging / file)
        model_card(model.config, name, description, dataset, metrics, license).save(staging / "README.md")
        for stale in folder.glob("model*.safetensors*"):  # shards of an earlier save would be loaded instead
            if not (staging / stale.name).exists():
                stale.unlink()
        for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
    return folder


def save_with_code(model, feature_extractor, folder, max_shard_size="5GB"):
    """Weights, config.json, preprocessor_config.json and flat code; the objects themselves stay as they are."""
    for entry in ENTRY_FILES:
        file = HERE / f"{entry}.py"
        for needed in (file, *map(Path, get_relative_import_files(file))):
            shutil.copyfile(needed, folder / needed.name)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.auto_map, config.custom_pipelines = MODEL_AUTO_MAP, CUSTOM_PIPELINES
    config.save_pretrained(folder)
    feature_extractor = copy.deepcopy(feature_extractor)
    feature_extractor.auto_map = FEATURE_EXTRACTOR_AUTO_MAP
    feature_extractor.save_pretrained(folder)


def model_card(config, name, description, dataset, metrics, license):
    """The README.md of the folder."""
    results = [
        EvalResult(task_type=TASK, dataset_type=dataset, dataset_name=dataset, metric_type=metric, metric_value=value)
        for metric, value in (metrics or {}).items()
    ]
    labels = [config.id2label[index] for index in range(config.num_labels)]
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="other",
        tags=["ecg", "ecgmamba", "mamba", "medical", TASK],
        model_name=name,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(CARD_FOLDER / "README.md"),
        name=name,
        description=description,
        dataset=dataset,
        metrics=metrics or {},
        config=config,
        thresholds=dict(zip(labels, config.thresholds or [0.5] * len(labels), strict=True)),
    )


def publish(folder, repo_id, *, private=False, revision=None, commit_message="Upload ECGMamba"):
    """
    Uploads a folder of [`save_for_hub`] to the Hub, without trainer checkpoints.

    Returns:
        `str`: the address of the commit.
    """
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message,
        ignore_patterns=["checkpoint-*/**", ".saving-*/**", "__pycache__/**"],
    )
    return commit.commit_url
