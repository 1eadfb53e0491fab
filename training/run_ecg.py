"""Train an ECGMamba classifier.

    accelerate launch training/run_ecg.py training/recipes/ecg_simulated.yaml [--learning_rate 3e-3 ...]

A recipe names a data set and whatever differs from the defaults below; flags win over the recipe. The run leaves a
Hub-ready folder: model, feature extractor, pipeline and code, with metrics.json, training_curve.png and checkpoints
beside them. Interrupted, the same command with `--resume_from_checkpoint` goes on exactly where it was; one whose
result would be another is refused.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.special import expit
from transformers import set_seed
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_ecgmamba import (
    EcgMambaConfig,
    EcgMambaFeatureExtractor,
    EcgMambaForSequenceClassification,
    save_for_hub,
)
from hf_ecgmamba.feature_extraction_ecgmamba import SHORTEST_SECONDS
from training.checkpoints import FINISHED, describe_run, find_checkpoint, record_run, train_from
from training.data.cpsc2018 import load_cpsc2018
from training.data.ecg_augmentation import EcgAugmentation
from training.data.ecg_crops import EvaluationCrops, TrainingCrops, collate_crops
from training.data.ecg_records import load_splits
from training.data.ptbxl import load_ptbxl
from training.data.record_folder import load_record_folder
from training.data.simulated_ecg import load_simulated_ecg
from training.ecg_trainer import EcgTrainer
from training.launch import run
from training.metrics import load_metric
from training.metrics.multilabel_ecg.multilabel_ecg import tune_thresholds
from training.recipe import parse_recipe
from training.reports import plot_training_curves, write_json
from training.trainer import RecipeArguments

logger = logging.get_logger(__name__)

# what belongs to one data set alone, with its default there
ARGUMENTS_OF = {
    "ptbxl": {"label_set": "superdiagnostic", "source_sampling_rate": 100},
    "folder": {
        "labels_table": "labels.csv",
        "record_sampling_rate": None,
        "record_units": None,
        "record_leads": None,
    },
    "simulated": {"num_records": 600},
}


@dataclass
class DataArguments:
    dataset: str = field(default="simulated", metadata={"help": "simulated, ptbxl, cpsc2018 or folder."})
    data_dir: str | None = field(default=None, metadata={"help": "Where the data set lies (not for simulated)."})
    label_set: str | None = field(
        default=None,
        metadata={"help": "PTB-XL: all, diagnostic, subdiagnostic, superdiagnostic (the default), form or rhythm."},
    )
    source_sampling_rate: int | None = field(
        default=None, metadata={"help": "PTB-XL: which copy to read, 100 (the default) or 500 Hz."}
    )
    labels_table: str | None = field(
        default=None,
        metadata={"help": "folder: CSV with record, labels and optionally split, patient; labels.csv by default."},
    )
    record_sampling_rate: float | None = field(
        default=None, metadata={"help": "folder: Hz, of recordings that do not state theirs, nor does the table."}
    )
    record_units: str | None = field(default=None, metadata={"help": "folder: mV, uV ... of such recordings."})
    record_leads: list[str] | None = field(
        default=None, metadata={"help": "folder: leads of such recordings, in order, or by channel: ECG=II."}
    )
    on_error: str = field(
        default="list",
        metadata={
            "help": "Recordings that cannot be read: list (they are left out, if less than 1 % of all) or raise."
        },
    )
    num_records: int | None = field(default=None, metadata={"help": "simulated: how many recordings (600)."})
    cache_dir: str | None = field(default=None, metadata={"help": "Of the tensors; datasets' own cache by default."})
    preprocessing_workers: int = field(default=1, metadata={"help": "Processes that read recordings."})
    crop_seconds: list[float] | None = field(
        default=None,
        metadata={
            "help": "Length of the random training crops; the model's window by default. Several share the epochs "
            "evenly, in this order."
        },
    )
    crop_pooling: str = field(
        default="mean", metadata={"help": "How probabilities of a recording's windows become one: mean or max."}
    )

    def __post_init__(self):
        if self.dataset not in ("simulated", "ptbxl", "cpsc2018", "folder"):
            raise ValueError(f"dataset is {self.dataset!r}; expected simulated, ptbxl, cpsc2018 or folder")
        if self.dataset != "simulated" and self.data_dir is None:
            raise ValueError(f"data_dir is missing; expected the folder that holds {self.dataset}")
        for dataset, defaults in ARGUMENTS_OF.items():
            for name, value in defaults.items():
                if self.dataset == dataset and getattr(self, name) is None:
                    setattr(self, name, value)
                elif self.dataset != dataset and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}, which is for {dataset}; expected none for {self.dataset}"
                    )
        if self.dataset == "simulated" and self.data_dir is not None:
            raise ValueError(f"data_dir is {self.data_dir!r}; expected none for simulated, which reads no files")
        if self.on_error not in ("list", "raise"):
            raise ValueError(f"on_error is {self.on_error!r}; expected list or raise")
        if self.crop_pooling not in ("mean", "max"):
            raise ValueError(f"crop_pooling is {self.crop_pooling!r}; expected mean or max")
        if isinstance(self.crop_seconds, (int, float)):  # as a recipe may write it
            self.crop_seconds = [self.crop_seconds]
        for seconds in self.crop_seconds or ():
            if not SHORTEST_SECONDS <= seconds < math.inf:
                raise ValueError(f"crop_seconds is {seconds}; expected at least {SHORTEST_SECONDS} s")
        for name in ("num_records", "preprocessing_workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass
class ModelArguments:
    """What is not given keeps the default of EcgMambaConfig and EcgMambaFeatureExtractor, or the pre-trained value."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model to start from, for classification or masked modelling."}
    )
    leads: list[str] | None = None
    optional_leads: list[str] | None = None
    sampling_rate: float | None = None
    window_seconds: float | None = None
    window_overlap: float | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    d_state: int | None = None
    d_conv: int | None = None
    expand: int | None = None
    encoder_kernel_sizes: list[int] | None = None
    encoder_strides: list[int] | None = None
    intermediate_size: int | None = None
    feed_forward_kernel_size: int | None = None
    hidden_dropout: float | None = None
    pooling: str | None = None
    bandpass: list[float] | None = field(default=None, metadata={"help": "Pass band in Hz: low high."})
    remove_baseline: bool | None = None
    normalization: str | None = None


@dataclass
class EcgTrainingArguments(RecipeArguments):
    """RecipeArguments with defaults for this task: the best checkpoint by validation macro ROC-AUC is kept."""

    output_dir: str | None = "runs/ecg"
    save_total_limit: int | None = 2
    metric_for_best_model: str | None = "macro_auc"
    greater_is_better: bool | None = True
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"nargs": "?", "const": "last", "help": "A checkpoint, or no value: the last one in output_dir."},
    )
    average_decay: float = field(
        default=0.0,
        metadata={"help": "Of the moving average of the weights, which is then evaluated and kept; 0: no average."},
    )
    teachers: list[str] | None = field(
        default=None, metadata={"help": "Trained models of the same labels that the network also learns from."}
    )
    distillation_weight: float = field(default=0.5, metadata={"help": "Share of the loss that teachers have."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; expected a number in [0, 1)")
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"distillation_weight is {self.distillation_weight}; expected a number in [0, 1]")
        words = {"none": False, "false": False, "no": False, "last": True, "true": True, "yes": True}
        resume = self.resume_from_checkpoint
        self.resume_from_checkpoint = words.get(str(resume).lower(), resume)


ARGUMENTS = (DataArguments, EcgAugmentation, ModelArguments, EcgTrainingArguments)


def main(arguments=None):
    data, augmentation, network, training = parse_recipe(ARGUMENTS, arguments)
    set_seed(training.seed)
    collection = load_collection(data)
    model, feature_extractor = build_model(network, collection.label_names)
    with training.main_process_first(desc="reading the recordings"):
        splits = load_splits(collection, feature_extractor, data.cache_dir, data.preprocessing_workers, data.on_error)
    for split in ("train", "validation"):
        if split not in splits:
            raise ValueError(f"the data set has no recording in {split}; expected some in train and in validation")

    deciding = {split: splits[split] for split in ("train", "validation")}
    made_with = describe_run((data, augmentation, network, training), model.config, deciding, training.world_size)
    checkpoint = find_checkpoint(training.output_dir, made_with, training.resume_from_checkpoint)
    record_run(training.output_dir, made_with)
    trainer = build_trainer(model, feature_extractor, splits, data, augmentation, training)
    train_from(trainer, checkpoint)

    report = final_evaluation(trainer, feature_extractor, splits, data.crop_pooling)
    if trainer.is_world_process_zero():
        split = "test" if "test" in report else "validation"
        measured_on = "test" if split == "test" else "validation, on which the thresholds were tuned"
        save_for_hub(
            model,
            feature_extractor,
            training.output_dir,
            dataset=f"{data.dataset} ({measured_on})",
            metrics={name: report[split][name] for name in ("macro_auc", "macro_auprc", "macro_f1")},
        )
        plot_training_curves(
            {data.dataset: trainer.state.log_history},
            Path(training.output_dir) / "training_curve.png",
            metric="macro_auc",
        )
        write_json(Path(training.output_dir) / FINISHED, report)
        for split, metrics in report.items():
            print(
                f"{split}, {metrics['records']} recordings: macro AUC {metrics['macro_auc']:.4f}, "
                f"AUPRC {metrics['macro_auprc']:.4f}, F1 {metrics['macro_f1']:.4f}, accuracy {metrics['accuracy']:.4f}"
            )
            if metrics["left_out"]:
                print(f"{split}: left out, without positive or without negative: {', '.join(metrics['left_out'])}")
    return report


def load_collection(data):
    if data.dataset == "ptbxl":
        return load_ptbxl(data.data_dir, data.label_set, data.source_sampling_rate)
    if data.dataset == "cpsc2018":
        return load_cpsc2018(data.data_dir)
    if data.dataset == "folder":
        stated = {"sampling_rate": data.record_sampling_rate, "units": data.record_units, "leads": data.record_leads}
        return load_record_folder(data.data_dir, data.labels_table, **stated)
    return load_simulated_ecg(data.num_records)


def build_model(network, label_names):
    """A classifier for these labels and the feature extractor that reads for it."""
    given = {name: value for name, value in vars(network).items() if value is not None}
    pretrained = given.pop("model_name_or_path", None)
    reading = {name: given.pop(name) for name in ("bandpass", "remove_baseline", "normalization") if name in given}
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "problem_type": "multi_label_classification",
        "thresholds": None,
    }
    if pretrained is None:
        config = EcgMambaConfig(**given, **labels)
        return EcgMambaForSequenceClassification(config), EcgMambaFeatureExtractor.from_model_config(config, **reading)
    # made anew rather than altered, so that every field is checked
    config = EcgMambaConfig(**{**EcgMambaConfig.from_pretrained(pretrained).to_dict(), **given, **labels})
    model = load_pretrained(pretrained, config)
    return model, EcgMambaFeatureExtractor.from_pretrained(pretrained, **given, **reading)


def load_pretrained(name_or_path, config):
    """The pre-trained weights under a head for the labels of `config`: rows of labels that the pre-trained model has
    by the same name are its own, whatever their order; the others are new, which is said.

    Raises:
        ValueError: where the network that `config` describes has other weights than these.
    """
    model, loading = EcgMambaForSequenceClassification.from_pretrained(
        name_or_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    heads = ("classifier.", "decoder.", "mask_embedding")  # of this class and of masked modelling
    names = {*loading["missing_keys"], *loading["unexpected_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    foreign = sorted(name for name in names if not name.startswith(heads))
    if foreign:
        listed = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise ValueError(
            f"model_name_or_path is {name_or_path}, whose weights do not fit this network ({listed}); expected a "
            "network of the same shape and leads (optional_leads may name those that recordings lack)"
        )
    if "classifier.weight" not in loading["missing_keys"]:
        keep_rows_by_label(model, name_or_path)
    return model


def keep_rows_by_label(model, name_or_path):
    """Rows of the classifier by the names of their labels, in place of their position."""
    pretrained = EcgMambaForSequenceClassification.from_pretrained(name_or_path)
    trained, before = pretrained.classifier, {name: row for row, name in pretrained.config.id2label.items()}
    names = [model.config.id2label[row] for row in range(model.config.num_labels)]
    head = torch.nn.Linear(model.classifier.in_features, len(names)).to(model.dtype)
    pretrained._init_weights(head)
    kept = [name for name in names if name in before and trained.in_features == head.in_features]
    with torch.no_grad():
        for name in kept:
            head.weight[names.index(name)] = trained.weight[before[name]]
            head.bias[names.index(name)] = trained.bias[before[name]]
    model.classifier = head
    new, gone = [name for name in names if name not in kept], [name for name in before if name not in names]
    for what, labels in (("new, untrained", new), ("left out", gone)):
        if labels:
            logger.warning(f"labels of {name_or_path}, {what} in the classifier: {', '.join(labels)}")


def build_trainer(model, feature_extractor, splits, data, augmentation, training):
    config = model.config
    crop_seconds = data.crop_seconds or [config.window_seconds]
    validation = EvaluationCrops(splits["validation"], feature_extractor)
    metric = load_metric("multilabel_ecg")
    label_names = [config.id2label[index] for index in range(config.num_labels)]

    def compute_metrics(prediction):
        probabilities = validation.pool(expit(prediction.predictions), data.crop_pooling)
        metrics = metric.compute(predictions=probabilities, references=validation.labels(), labels=label_names)
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    crops = TrainingCrops(
        splits["train"], feature_extractor, crop_seconds, training.num_train_epochs, augmentation, training.seed
    )
    return EcgTrainer(
        model=model,
        args=training,
        teachers=[load_teacher(name, config) for name in training.teachers or ()],
        data_collator=collate_crops,
        train_dataset=crops,
        eval_dataset=validation,
        processing_class=feature_extractor,
        compute_metrics=compute_metrics,
    )


def load_teacher(name_or_path, config):
    """A trained classifier; ValueError where its labels or leads are not those of `config`."""
    teacher = EcgMambaForSequenceClassification.from_pretrained(name_or_path)
    for name in ("id2label", "leads", "sampling_rate"):
        came, expected = getattr(teacher.config, name), getattr(config, name)
        if came != expected:
            raise ValueError(f"teachers: {name} of {name_or_path} is {came}; expected {expected}, as the network's")
    return teacher


def final_evaluation(trainer, feature_extractor, splits, crop_pooling):
    """Tunes the thresholds on validation, stores them in the model's config, and measures every split held out."""
    config = trainer.model.config
    label_names = [config.id2label[index] for index in range(config.num_labels)]
    metric = load_metric("multilabel_ecg")
    trainer.compute_metrics = None
    report = {}
    for split in ("validation", "test"):
        if split not in splits:
            continue
        crops = EvaluationCrops(splits[split], feature_extractor)
        probabilities = crops.pool(expit(trainer.predict(crops).predictions), crop_pooling)
        if split == "validation":
            config.thresholds = tune_thresholds(probabilities, crops.labels())
            config.window_pooling = crop_pooling  # the pipeline shall pool windows as for these thresholds
        metrics = metric.compute(
            predictions=probabilities, references=crops.labels(), labels=label_names, thresholds=config.thresholds
        )
        report[split] = {
            "records": len(crops.records),
            **metrics,
            "thresholds": dict(zip(label_names, config.thresholds, strict=True)),
        }
    return report


if __name__ == "__main__":
    run(main)
