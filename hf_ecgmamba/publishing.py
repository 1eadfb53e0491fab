"""From a trained model to a folder that the Hub, an Inference Endpoint and anyone without this package can run."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_relative_import_files

from .checksums import write_checksums
from .modeling_ecgmamba import EcgMambaForSequenceClassification
from .pipeline_ecg_classification import TASK, EcgClassificationPipeline
from .statements import in_words

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
    weights_dtype=None,
    example=None,
    hub_datasets=None,
    metrics_by_class=None,
    metrics_by_group=None,
    limits="",
):
    """
    Writes a folder that loads anywhere with `trust_remote_code=True`: weights, config, feature extractor, all code,
    the pipeline, a model card, and the handler and requirements of an Inference Endpoint; of a classifier also
    `example.csv`, a drawn-up ECG, with what this model says of it, `example_output.json`; and `checksums.json`.

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
        weights_dtype (`torch.dtype`, *optional*): of the numbers in the file, such as `torch.float16` for one of half
            the size; decay rates and step sizes stay float32. The model is rounded to it, and loads as what it is.
        example (float [leads, time], *optional*): a recording in millivolts at the model's rate, in place of the
            drawn-up one.
        hub_datasets (`list[str]`, *optional*): ids on the Hub of what it was trained on, which its page then links.
        metrics_by_class, metrics_by_group (`dict[str, dict[str, float]]`, *optional*): the same metrics for each
            label, and for each group of people ("women", "70 and older"), for the card's tables.
        limits (`str`, markdown): what it should not be used for, beside what the card says anyway.

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: if the feature extractor does not fit the model, a metric is no number, or metrics come without a
            data set.
    """
    folder = Path(folder)
    for field in ("leads", "sampling_rate"):
        expected, came = getattr(model.config, field), getattr(feature_extractor, field)
        if came != expected:
            raise ValueError(
                f"feature_extractor.{field} is {came!r}; expected {expected!r}, as the model's config has it"
            )
    metrics = {metric: as_number(metric, value) for metric, value in (metrics or {}).items()}
    if metrics and dataset is None:
        raise ValueError("dataset is None; expected the name of what the metrics were measured on")

    if weights_dtype is not None:
        round_weights(model, weights_dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        staging = Path(temporary)
        save_with_code(model, feature_extractor, staging, max_shard_size)
        if weights_dtype is not None:
            store_weights_as(weights_dtype, staging)
        for file in ENDPOINT_FILES:
            shutil.copyfile(CARD_FOLDER / file, staging / file)
        says_something = model.config.problem_type is not None or model.config.num_labels == 1
        if isinstance(model, EcgMambaForSequenceClassification) and says_something:
            save_example(model, feature_extractor, staging, example)
        further = {
            "hub_datasets": hub_datasets,
            "tables": {"label": as_table(metrics_by_class), "group": as_table(metrics_by_group)},
            "limits": limits,
            "example": staging / "example_output.json",
        }
        model_card(model.config, name, description, dataset, metrics, license, **further).save(staging / "README.md")
        write_checksums(staging)
        for stale in folder.glob("model*.safetensors*"):  # shards of an earlier save would be loaded instead
            if not (staging / stale.name).exists():
                stale.unlink()
        for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
    return folder


def code_files():
    """The files of this package that a published folder needs (`list[Path]`)."""
    entries = [HERE / f"{entry}.py" for entry in ENTRY_FILES]
    return sorted({*entries, *(Path(file) for entry in entries for file in get_relative_import_files(entry))})


def save_with_code(model, feature_extractor, folder, max_shard_size="5GB"):
    """Weights, config.json, preprocessor_config.json and flat code; the objects themselves stay as they are."""
    for file in code_files():
        shutil.copyfile(file, folder / file.name)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.auto_map, config.custom_pipelines = MODEL_AUTO_MAP, CUSTOM_PIPELINES
    config.save_pretrained(folder)
    feature_extractor = copy.deepcopy(feature_extractor)
    feature_extractor.auto_map = FEATURE_EXTRACTOR_AUTO_MAP
    feature_extractor.save_pretrained(folder)


def is_rounded(name):
    """Whether a weight of this name is rounded with the others: the scan exponentiates those that are not."""
    return name.rpartition(".")[2] not in EcgMambaForSequenceClassification._keep_in_fp32_modules_strict


@torch.no_grad()
def round_weights(model, dtype):
    """The values of a model become those that `dtype` can hold; ValueError where one is beyond its range."""
    for name, weight in model.named_parameters():
        if is_rounded(name):
            rounded = weight.to(dtype).to(weight.dtype)
            if not rounded.isfinite().all():
                raise ValueError(f"weights_dtype is {dtype}, which cannot hold the values of {name}")
            weight.copy_(rounded)


def store_weights_as(dtype, folder):
    """The weights of a saved folder in another dtype; config.json keeps the one that they are loaded as."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        weights = {name: weight.to(dtype) if is_rounded(name) else weight for name, weight in load_file(file).items()}
        save_file(weights, file, about)


def save_example(model, feature_extractor, folder, signal=None):
    """example.csv, and example_output.json: what the pipeline says of it. The model's own mode stays."""
    leads, rate = model.config.leads, model.config.sampling_rate
    signal = drawn_up_ecg(leads, rate) if signal is None else np.asarray(signal)
    if signal.ndim != 2 or len(signal) != len(leads) or not np.isfinite(signal).all():
        raise ValueError(f"example is {signal.shape}; expected [{len(leads)} leads, time] in millivolts, all finite")
    write_csv(folder / "example.csv", signal, leads, rate)
    was_training = model.training
    try:
        ecg = EcgClassificationPipeline(model=model, feature_extractor=feature_extractor, device=model.device)
        result = ecg(folder / "example.csv")
    finally:
        model.train(was_training)
    (folder / "example_output.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def write_csv(path, signal, leads, sampling_rate):
    """A recording [leads, time] in millivolts as columns, which say their leads, unit and rate."""
    header = f"# Sampling Rate (Hz):= {sampling_rate:g}\n" + ",".join(f"{lead} (mV)" for lead in leads)
    np.savetxt(path, signal.T, fmt="%.3f", delimiter=",", header=header, comments="")


def drawn_up_ecg(leads, sampling_rate, seconds=10.0):
    """Float64 [leads, time] in mV: regular beats at 72 a minute, P, Q, R, S and T as bells, nobody's heart. The limb
    leads are those of one heart: III = II - I, and so on."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    phase = (time + 0.4) % (60 / 72) - 0.4  # seconds from the R wave
    waves = ((-0.16, 0.025, 0.12), (-0.03, 0.010, -0.1), (0.0, 0.011, 1.0), (0.03, 0.012, -0.22), (0.24, 0.045, 0.28))
    beat = sum(height * np.exp(-(((phase - at) / width) ** 2) / 2) for at, width, height in waves)
    sizes = {"I": 0.6, "II": 1.0, "III": 0.4, "aVR": -0.8, "aVL": 0.1, "aVF": 0.7}
    return np.stack([sizes.get(lead, 0.5 + 0.1 * index) * beat for index, lead in enumerate(leads)])


def as_number(metric, value):
    """A metric as the card's YAML writes it: numpy's and torch's numbers are Python's."""
    number = value
    if hasattr(value, "item") and np.asarray(value).size == 1:
        number = value.item()
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise ValueError(f"metrics: {metric} is {value!r}; expected a number")
    return number


def as_table(metrics):
    """{row: {metric: number}} -> (names of the metrics, {row: numbers}); ValueError where rows differ in them."""
    if not metrics:
        return None
    names = list(next(iter(metrics.values())))
    for row, values in metrics.items():
        if list(values) != names:
            raise ValueError(
                f"metrics of {row} are {', '.join(values)}; expected {', '.join(names)}, as of the others"
            )
    return names, {row: [as_number(name, value) for name, value in values.items()] for row, values in metrics.items()}


def widget_of(path):
    """The example as the Hub's page shows it without running anything: what the model says of it, highest first."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))["findings"]
    output = [{"label": one["label"], "score": round(one["score"], 4)} for one in found if one["present"] is not None]
    return [{"src": "example.csv", "example_title": "example.csv", "output": output[:5]}] if output else None


def model_card(
    config, name, description, dataset, metrics, license, hub_datasets=None, tables=None, limits="", example=None
):
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
        tags=["ecg", "time-series", "biosignal", "healthcare", "ecgmamba", "mamba", TASK],
        datasets=hub_datasets,
        widget=None if example is None else widget_of(example),
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
        tables=tables or {},
        limits=limits,
        config=config,
        words={label: in_words(label)[0] for label in labels},
        thresholds=dict(zip(labels, config.thresholds or [0.5] * len(labels), strict=True)),
    )
