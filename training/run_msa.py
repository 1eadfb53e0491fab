"""Train an MSE-Adapter: a frozen causal LLM learns to read sentiment or emotion from words, voice and face.

    accelerate launch training/run_msa.py training/recipes/msa_mosei_llama2.yaml --data_path unaligned_50.pkl

A recipe names a data set, a backbone and whatever differs from the defaults below; flags win over the recipe. Every
seed leaves a Hub-ready folder `seed_N` (adapter, processor, pipeline and code; of the LLM only its name), its metrics
and its predictions as csv; all seeds together results.json, results.md with mean and deviation, and the curves as a
picture. Interrupted, the same command with `--resume_from_checkpoint` goes on exactly where it was; one whose result
would be another is refused.
"""

import copy
import csv
import json
import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import SaveStrategy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.adapted_language_model import load_language_model
from hf_mse_adapter.answers import methods_of
from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import PROMPT_TEMPLATES, MseProcessor
from hf_mse_adapter.publishing_mse_adapter import save_for_hub
from training.checkpoints import (
    FINISHED,
    EpochSampler,
    SetEpoch,
    describe_run,
    find_checkpoint,
    record_run,
    train_from,
)
from training.data.msa_augmentation import FeatureAugmentation
from training.data.msa_batches import MsaSamples
from training.data.msa_functionals import with_window_functionals
from training.data.msa_parquet import load_msa_parquet
from training.data.msa_pickles import load_mmsa_pickle, load_mse_adapter_pickle
from training.data.msa_samples import MODALITIES, SPLIT_NAMES, count_replaced
from training.data.ravdess import load_ravdess_features
from training.data.simulated_msa import load_simulated_msa
from training.data.tiny_language_model import build_tiny_language_model
from training.launch import honor_num_processes, runs_on_cpu
from training.recipe import parse_recipe
from training.reports import atomic_path, markdown_table, plot_training_curves, write_json

logger = logging.getLogger(__name__)

METRICS = Path(__file__).resolve().parent / "metrics"
TINY = "tiny"
DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class DataArguments:
    dataset: str = field(
        default="simulated", metadata={"help": "simulated, mmsa, mse_adapter, parquet or ravdess_features."}
    )
    data_path: str | None = field(
        default=None,
        metadata={
            "help": "mmsa, ravdess_features: the pickle. mse_adapter: one pickle per split, {split} standing for "
            "train, valid and test. parquet: the folder."
        },
    )
    num_samples: int = field(default=1200, metadata={"help": "simulated: how many clips."})
    task: str = field(default="regression", metadata={"help": "regression or classification."})
    metric: str = field(default="mosi", metadata={"help": "regression: mosi or sims."})
    label_range: list[float] = field(default_factory=lambda: [-3.0, 3.0])
    label_step: float = field(default=0.1, metadata={"help": "Distance of the numbers that the LLM may answer."})
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "classification: the classes in order; those of the training split by default."},
    )
    language: str = field(default="en", metadata={"help": "Of the prompt: en or zh."})
    num_context_utterances: int = field(
        default=0, metadata={"help": "Earlier utterances of the dialogue to show; 0 leaves out the speaker too."}
    )
    max_text_tokens: int | None = field(
        default=None, metadata={"help": "Tokens of an utterance; of a longer one the beginning is kept."}
    )
    max_audio_length: int | None = field(default=None, metadata={"help": "Steps of audio, likewise."})
    max_vision_length: int | None = field(default=None, metadata={"help": "Steps of vision, likewise."})
    withhold: list[str] = field(
        default_factory=list, metadata={"help": "Of text, audio and vision, what the model never sees."}
    )
    audio_window: int = field(
        default=0,
        metadata={"help": "Steps of the windows whose functionals stand for the audio; 0: no windows."},
    )
    audio_hop: int = field(default=0, metadata={"help": "Distance of the windows; half of audio_window by default."})
    swap_vision: float = field(
        default=0.0,
        metadata={
            "help": "classification: probability that a training sample shows the face of another with its label."
        },
    )

    def __post_init__(self):
        if self.dataset not in LOADERS:
            raise ValueError(f"dataset is {self.dataset!r}; expected one of {', '.join(LOADERS)}")
        if self.dataset != "simulated" and self.data_path is None:
            raise ValueError(f"data_path is missing; expected where the {self.dataset} data lies")
        if self.task not in ("regression", "classification"):
            raise ValueError(f"task is {self.task!r}; expected regression or classification")
        tasks = {"mmsa": "regression", "ravdess_features": "classification"}
        if self.task != tasks.get(self.dataset, self.task):
            raise ValueError(
                f"task is {self.task!r}; expected {tasks[self.dataset]}, as {self.dataset} has such labels"
            )
        if self.labels is not None and self.task == "regression":
            raise ValueError(f"labels is {self.labels}; expected none in a regression (or task classification)")
        if self.swap_vision and self.task != "classification":
            raise ValueError(f"swap_vision is {self.swap_vision}; expected 0 where labels are numbers")
        if self.metric not in ("mosi", "sims"):
            raise ValueError(f"metric is {self.metric!r}; expected mosi or sims")
        if self.num_context_utterances < 0:
            raise ValueError(f"num_context_utterances is {self.num_context_utterances}; expected 0 or more")
        if not 0 <= self.swap_vision <= 1:
            raise ValueError(f"swap_vision is {self.swap_vision}; expected a probability")


@dataclass
class ModelArguments:
    """What is not given keeps the default of MseConfig."""

    backbone: str = field(
        default=TINY, metadata={"help": "Id or folder of a causal LLM, or `tiny`: a random one built on the spot."}
    )
    backbone_revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = field(default="float32", metadata={"help": "Of the LLM; the adapter is trained in float32."})
    quantization: str | None = field(default=None, metadata={"help": "4bit or 8bit (bitsandbytes)."})
    tiny_hidden_size: int = 64
    tiny_num_hidden_layers: int = 2
    audio_hidden_size: int | None = None
    vision_hidden_size: int | None = None
    mixer_dim: int | None = None
    scales: list[int] | None = None
    memory_steps: int | None = field(
        default=None, metadata={"help": "Audio steps that the untrained encoder can remember, see prolong_memory."}
    )
    num_pseudo_tokens: int | None = None
    dropout: float | None = None
    head: str | None = field(default=None, metadata={"help": "none, alone or beside."})
    prompt_template: str | None = None
    answer_method: str | None = field(
        default=None, metadata={"help": "How answers are made, see AnswerFormat.predict and the model's head."}
    )

    def __post_init__(self):
        if self.memory_steps is not None and self.memory_steps < 3:
            raise ValueError(f"memory_steps is {self.memory_steps}; expected at least 3")
        if self.quantization not in (None, "4bit", "8bit"):
            raise ValueError(f"quantization is {self.quantization!r}; expected 4bit or 8bit")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if self.backbone == TINY and self.quantization:
            raise ValueError(f"quantization is {self.quantization!r}; expected none for the backbone {TINY!r}")


@dataclass
class MsaTrainingArguments(TrainingArguments):
    """TrainingArguments with the paper's procedure as defaults."""

    output_dir: str | None = "runs/msa"
    seeds: list[int] = field(
        default_factory=lambda: [1111, 2222, 3333, 4444, 5555], metadata={"help": "One training each."}
    )
    early_stopping_patience: int | None = field(
        default=8, metadata={"help": "Evaluations without a better score before training ends; 0 or null: never."}
    )
    head_label_smoothing: float = field(
        default=0.0, metadata={"help": "For a classifying head that is alone, in training."}
    )
    group_by_length: bool = field(
        default=True, metadata={"help": "Batches of clips of like cost, see MsaSamples.costs."}
    )
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    num_train_epochs: float = 30.0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 32
    eval_strategy: str = "epoch"
    save_strategy: SaveStrategy | str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "Go on with what lies in output_dir: finished seeds are kept."}
    )
    restore_callback_states_from_checkpoint: bool = True
    remove_unused_columns: bool | None = False
    report_to: str = "none"
    dataloader_pin_memory: bool = torch.cuda.is_available()

    def __post_init__(self):
        # without it, the processes of a machine without accelerator would not find each other
        self.use_cpu = self.use_cpu or runs_on_cpu()
        super().__post_init__()
        if self.fp16 and self.use_cpu:
            raise ValueError("fp16 is True, but there is no GPU; expected bf16 or neither")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 0:
            raise ValueError(f"early_stopping_patience is {self.early_stopping_patience}; expected 0 or more")
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience}, but eval_strategy is no; expected 0, or "
                "evaluations"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; expected one or more different numbers")
        if self.seed != type(self).__dataclass_fields__["seed"].default:
            raise ValueError(f"seed is {self.seed}; expected seeds instead, one training each")


ARGUMENTS = (DataArguments, FeatureAugmentation, ModelArguments, MsaTrainingArguments)


def main(arguments=None):
    data, augmentation, network, training = parse_recipe(ARGUMENTS, arguments)
    if training.head_label_smoothing and (network.head, data.task) != ("alone", "classification"):
        raise ValueError(
            f"head_label_smoothing is {training.head_label_smoothing}, head {network.head!r}, task {data.task!r}; "
            "expected a classifying head that is alone"
        )
    check_answer_method(network.answer_method, network.head or "none", data.task)
    with training.main_process_first(desc="reading the data"):
        splits = load_splits(data)
    if training.process_index == 0:
        report_splits(splits)
    backbone, tokenizer = load_backbone(network, splits["train"]["text"][:])
    processor, config = build_processor(data, network, splits["train"], tokenizer)

    def new_model():
        model = MseForConditionalGeneration.from_backbone(backbone, config)
        if network.memory_steps is not None:
            prolong_memory(model.adapter.audio_encoder.lstm, network.memory_steps)
        return model

    deciding = {split: splits[split] for split in ("train", "valid")}
    made_with = describe_run(
        (data, augmentation, network, training), new_model().config, deciding, training.world_size
    )
    folders = {seed: Path(training.output_dir) / f"seed_{seed}" for seed in training.seeds}
    # of all seeds, before hours go into the first
    checkpoints = {
        seed: find_checkpoint(folder, made_with | {"seed": seed}, training.resume_from_checkpoint)
        for seed, folder in folders.items()
    }
    runs = {}
    for seed, folder in folders.items():
        if training.resume_from_checkpoint and (folder / FINISHED).is_file():
            runs[seed] = read_finished(folder)
            continue
        record_run(folder, made_with | {"seed": seed})
        runs[seed] = train_seed(
            seed, folder, checkpoints[seed], data, augmentation, network, training, splits, new_model, processor
        )
    if training.process_index == 0:
        write_results(runs, Path(training.output_dir), data)
    return {seed: metrics for seed, (metrics, _) in runs.items()}


def check_answer_method(method, head, task):
    """Raise ValueError for a method that could not answer at the first validation, hours from now."""
    methods = (*methods_of(task), *(["head"] if head != "none" else []))
    if method is not None and method not in methods:
        raise ValueError(
            f"answer_method is {method!r}; expected one of {', '.join(methods)} for task {task!r} with head {head!r}"
        )


def load_splits(data):
    """The data set by split; train and valid must be there, and every label known."""
    splits = LOADERS[data.dataset](data)
    for split in ("train", "valid"):
        if split not in splits:
            raise ValueError(f"{data.data_path} has no {split} split; training needs train and valid")
    if data.audio_window:
        hop = data.audio_hop or max(1, data.audio_window // 2)
        splits = {
            split: with_window_functionals(dataset, "audio", data.audio_window, hop)
            for split, dataset in splits.items()
        }
    if data.task == "classification":
        splits = with_named_classes(splits, data.labels)
        data.labels = data.labels or sorted({str(label) for label in splits["train"]["label"]})
    require_known_labels(splits, data)
    require_equal_widths(splits)
    return splits


def require_known_labels(splits, data):
    """Raise ValueError for a class without name, or a number outside the range."""
    for split, dataset in splits.items():
        if data.task == "classification":
            unknown = {str(label) for label in dataset["label"]} - set(data.labels)
            if unknown:
                raise ValueError(f"the {split} split has the labels {sorted(unknown)}; expected {data.labels}")
            continue
        labels, (low, high) = np.asarray(dataset["label"][:]), data.label_range
        # float32 labels may stand a rounding error outside
        outside = np.flatnonzero((labels < low - 1e-6) | (labels > high + 1e-6))
        if len(outside):
            raise ValueError(
                f"label_range is {data.label_range}, but {len(outside)} labels of the {split} split are outside, as "
                f"{labels[outside[0]]:g} of sample {dataset[int(outside[0])]['id']}; expected all within"
            )


def require_equal_widths(splits):
    """Raise ValueError where a modality has more features in one split than in another."""
    for modality in MODALITIES:
        widths = {
            split: dataset.features[modality].shape[1]
            for split, dataset in splits.items()
            if np.any(dataset[f"{modality}_steps"][:])
        }
        if len(set(widths.values())) > 1:
            raise ValueError(f"{modality} has {widths} features by split; expected equally many")


def with_named_classes(splits, labels):
    """The splits with class names for labels where their data set numbers its classes, as CHERMA's files do."""
    numbers = set(map(str, range(len(labels or ()))))
    found = {str(label) for dataset in splits.values() for label in dataset["label"]}
    if not found <= numbers or found <= set(labels):
        return splits
    return {
        split: dataset.remove_columns("label")
        .add_column("label", [labels[int(label)] for label in dataset["label"]])
        .with_format("numpy")
        for split, dataset in splits.items()
    }


def load_mse_adapter_splits(data):
    if "{split}" not in data.data_path:
        raise ValueError(f"data_path is {data.data_path!r}; expected one with {{split}} for train, valid and test")
    splits = {}
    for split, names in SPLIT_NAMES.items():
        paths = [Path(data.data_path.replace("{split}", name)) for name in names]
        present = [path for path in paths if path.is_file()]
        if present:
            splits[split] = load_mse_adapter_pickle(present[0], data.task)
        else:
            logger.warning("there is no %s split: no file %s", split, " or ".join(map(str, paths)))
    return splits


LOADERS = {
    "simulated": lambda data: load_simulated_msa(data.num_samples, data.task),
    "mmsa": lambda data: load_mmsa_pickle(data.data_path),
    "mse_adapter": load_mse_adapter_splits,
    "parquet": lambda data: load_msa_parquet(data.data_path, data.task),
    "ravdess_features": lambda data: load_ravdess_features(data.data_path),
}


def report_splits(splits):
    """Print what was found: samples and the shapes of their features, what is missing, what had to be replaced."""
    for split, dataset in splits.items():
        found = [f"{len(dataset)} samples"]
        for modality in MODALITIES:
            steps = np.asarray(dataset[f"{modality}_steps"][:])
            present = steps[steps > 0]
            dim = dataset.features[modality].shape[1]
            if not len(present):
                found.append(f"no {modality}")
                continue
            lengths = f"{present.min()} to {present.max()}" if np.ptp(present) else present[0]
            missing = f" (missing in {len(dataset) - len(present)})" if len(present) < len(dataset) else ""
            found.append(f"{modality} [{lengths}, {dim}]{missing}")
        print(f"{split}: {', '.join(found)}")
        for modality, count in count_replaced(dataset).items():
            if count["values"]:
                print(
                    f"{split}: replaced {count['values']} NaN or infinite values of {modality} "
                    f"in {count['samples']} samples"
                )


def load_backbone(network, texts):
    """The frozen LLM and its tokenizer; a tiny one learns its vocabulary from `texts` and the prompts."""
    if network.backbone == TINY:
        texts = [*texts, *PROMPT_TEMPLATES.values(), network.prompt_template or ""]
        backbone, tokenizer = build_tiny_language_model(
            texts, network.tiny_hidden_size, network.tiny_num_hidden_layers
        )
        return backbone.to(backbone.dtype if network.dtype == "auto" else getattr(torch, network.dtype)), tokenizer
    where = {"revision": network.backbone_revision, "trust_remote_code": network.trust_remote_code}
    quantization = network.quantization and BitsAndBytesConfig(
        load_in_4bit=network.quantization == "4bit",
        load_in_8bit=network.quantization == "8bit",
        bnb_4bit_compute_dtype=None if network.dtype == "auto" else network.dtype,
    )
    try:
        backbone = load_language_model(
            network.backbone, dtype=network.dtype, quantization_config=quantization, **where
        )
        tokenizer = AutoTokenizer.from_pretrained(network.backbone, **where)
    except OSError as error:
        raise OSError(
            f"backbone is {network.backbone!r}; expected {TINY}, or a folder or Hub id of a causal LLM: {error}"
        ) from None
    return backbone, with_end_token(tokenizer, backbone)


def with_end_token(tokenizer, backbone):
    """The tokenizer, with the end token that the LLM's configs name where it has none itself (Qwen's first)."""
    configs = (backbone.generation_config, backbone.config)
    for end in (getattr(config, "eos_token_id", None) for config in configs):
        if tokenizer.eos_token_id is None and end is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: eos_token_id is None in tokenizer, generation_config and config; "
            "expected an end token in one of them"
        )
    return tokenizer


def build_processor(data, network, train, tokenizer):
    """The processor, which knows the answers and the training features' statistics, and the config of its model."""
    names = ("audio_hidden_size", "vision_hidden_size", "mixer_dim", "scales", "num_pseudo_tokens", "dropout", "head")
    given = {
        name: getattr(network, name) for name in (*names, "prompt_template") if getattr(network, name) is not None
    }
    if data.task == "regression":
        given |= {"label_range": tuple(data.label_range), "label_step": data.label_step}
    else:
        given |= {"id2label": dict(enumerate(data.labels))}
    config = MseConfig(
        audio_dim=train.features["audio"].shape[1],
        vision_dim=train.features["vision"].shape[1],
        task=data.task,
        language=data.language,
        # without a name, a tiny LLM travels in the model's own folder
        backbone_name_or_path=None if network.backbone == TINY else network.backbone,
        backbone_revision=network.backbone_revision,
        **given,
    )
    processor = MseProcessor.from_config(
        config,
        tokenizer,
        # a published model shall show its LLM no longer conversation than it was trained on
        num_context_utterances=data.num_context_utterances,
        max_text_tokens=data.max_text_tokens,
        max_audio_length=data.max_audio_length,
        max_vision_length=data.max_vision_length,
    )
    samples = MsaSamples(train, withhold=data.withhold)
    chunks = (range(start, min(start + 256, len(samples))) for start in range(0, len(samples), 256))
    processor.fit(sample for chunk in chunks for sample in samples.__getitems__(chunk))
    return processor, config


@torch.no_grad()
def prolong_memory(lstm, num_steps):
    """Start an LSTM with memories of 1 to `num_steps` - 1 steps (chrono initialisation, arXiv 1804.11188).

    PyTorch's own start forgets half of what it holds at every step.
    """
    size = lstm.hidden_size
    memory = torch.log(torch.rand(size) * (num_steps - 2) + 1)
    for bias in (lstm.bias_ih_l0, lstm.bias_hh_l0):
        bias.zero_()
    # the gates stand in the order input, forget, cell, output
    lstm.bias_ih_l0[:size], lstm.bias_ih_l0[size : 2 * size] = -memory, memory


class MseTrainer(Trainer):
    """Trainer that answers where others compute logits, and whose training samples carry their epoch."""

    def __init__(self, *args, held_out, answer_method, lengths, **kwargs):
        super().__init__(*args, eval_dataset=held_out["valid"], **kwargs)
        self.held_out, self.answer_method, self.lengths = held_out, answer_method, lengths
        # label tokens are averaged over all processes and accumulated batches; a head that is alone counts samples,
        # of which every batch has equally many
        self.model_accepts_loss_kwargs = self.model.config.head != "alone"

    def _get_train_sampler(self, train_dataset=None):
        step_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochSampler(len(self.train_dataset), seed, step_size, self.lengths)
        self.add_callback(SetEpoch(sampler))
        return sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        smoothing = self.args.head_label_smoothing
        if not smoothing:
            if self.model.config.head == "beside":
                # the head's loss is a mean over samples, whatever number of label tokens each of them has; all
                # batches of a step, on every process, have equally many
                batches = self.current_gradient_accumulation_steps
                batches *= self.args.world_size if self.args.average_tokens_across_devices else 1
                inputs = {**inputs, "num_samples_in_batch": len(inputs["input_ids"]) * batches}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs["head_output"], inputs["label_values"], label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, answers [batch, 2 or 1 + classes] and labels [batch].

        An answer is value and spread, or class index and probabilities; a value that could not be read is NaN, an
        index -1.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss = model(**inputs)["loss"]
            model = self.accelerator.unwrap_model(model)
            predictions = model.predict(inputs, self.processing_class.answers, method=self.answer_method)
        rows = [self._as_row(prediction) for prediction in predictions]
        return loss, torch.tensor(rows, device=loss.device), inputs["label_values"]

    def _as_row(self, prediction):
        answers = self.processing_class.answers
        if answers.task == "regression":
            return [math.nan if prediction.value is None else prediction.value, prediction.spread or 0.0]
        index = -1 if prediction.value is None else prediction.value
        return [float(index), *(prediction.probabilities or [0.0] * len(answers.labels))]


def build_trainer(model, processor, splits, data, augmentation, network, training):
    seen = {"num_context_utterances": data.num_context_utterances, "withhold": data.withhold}
    train = MsaSamples(
        splits["train"],
        **seen,
        augmentation=augmentation,
        feature_statistics=processor.feature_statistics,
        swap_vision=data.swap_vision,
        seed=training.seed,
    )
    callbacks = []
    if training.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    return MseTrainer(
        model=model,
        args=training,
        data_collator=processor.collate,
        train_dataset=train,
        held_out={split: MsaSamples(splits[split], **seen) for split in splits if split != "train"},
        processing_class=processor,
        compute_metrics=metrics_of(data),
        callbacks=callbacks,
        answer_method=network.answer_method,
        lengths=train.costs(processor, model) if training.group_by_length else None,
    )


def load_metric(data):
    # kept in memory: the processes of one training would lock each other's cache files
    if data.task == "classification":
        return evaluate.load(str(METRICS / "erc_classification"), keep_in_memory=True)
    return evaluate.load(str(METRICS / "msa_regression"), data.metric, keep_in_memory=True)


def metrics_of(data):
    """The function that turns the trainer's answers and labels into the field's metrics."""
    metric = load_metric(data)

    def compute_metrics(prediction):
        answers, labels = prediction.predictions, prediction.label_ids
        if data.task == "classification":
            metrics = metric.compute(predictions=answers[:, 0].astype(int), references=labels, labels=data.labels)
        else:
            answered = ~np.isnan(answers[:, 0])
            metrics = {}
            if answered.any():
                metrics = metric.compute(predictions=answers[answered, 0], references=labels[answered])
            # what is not answered counts as the worst there is, or silence would win the selection
            worst = data.label_range[1] - data.label_range[0]
            errors = np.where(answered, np.abs(answers[:, 0] - labels), worst)
            metrics["mae_of_all"] = float(errors.mean())
            metrics["unparsable"] = int((~answered).sum())
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    return compute_metrics


def train_seed(seed, folder, checkpoint, data, augmentation, network, training, splits, new_model, processor):
    """Train once, from `checkpoint` if there is one, into `folder`. Returns metrics by split and the trainer's log."""
    training = copy.copy(training)
    training.output_dir, training.seed = str(folder), seed
    training.metric_for_best_model = "mae_of_all" if data.task == "regression" else "weighted_f1"
    training.greater_is_better = data.task == "classification"
    set_seed(seed)
    model = new_model()
    trainer = build_trainer(model, processor, splits, data, augmentation, network, training)
    train_from(trainer, checkpoint)

    metrics = {}
    for split, samples in trainer.held_out.items():
        output = trainer.predict(samples, metric_key_prefix=split)
        metrics[split] = {
            name.removeprefix(f"{split}_"): finite_or_none(value)
            for name, value in output.metrics.items()
            if not name.endswith(("_runtime", "_per_second"))
        }
        if trainer.is_world_process_zero():
            write_predictions(folder / f"predictions_{split}.csv", splits[split], output.predictions, data)
    history = [{name: finite_or_none(value) for name, value in entry.items()} for entry in trainer.state.log_history]
    if trainer.is_world_process_zero():
        save_for_hub(model, processor, folder, card=card_texts(folder, data, splits, trainer.state.epoch, metrics))
        write_json(folder / "history.json", history)
        # last, because it says that all the rest is there
        write_json(folder / FINISHED, metrics)
    trainer.accelerator.wait_for_everyone()
    return metrics, history


def card_texts(folder, data, splits, epochs, metrics):
    """What the model card says of this training."""
    names = [name for name in next(iter(metrics.values())) if all(name in measured for measured in metrics.values())]
    rows = [[split, *(measured[name] for name in names)] for split, measured in metrics.items()]
    return {
        "model_name": f"{folder.parent.name}, {folder.name}",
        "training_description": f"On {len(splits['train'])} samples (data set: {data.dataset}), for {epochs:g} "
        "epochs, by `training/run_msa.py`; its arguments are in `made_with.json`.",
        "evaluation_description": markdown_table(["split", *names], rows),
    }


def finite_or_none(value):
    """A diverged loss is no number that JSON knows."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_finished(folder):
    return tuple(json.loads((folder / name).read_text(encoding="utf-8")) for name in (FINISHED, "history.json"))


def write_predictions(path, dataset, answers, data):
    """One row per sample: id, text, label, prediction, and its spread or the classes' probabilities."""
    if data.task == "regression":
        header = ["prediction", "spread"]
        rows = [["" if math.isnan(value) else value, spread] for value, spread in answers.tolist()]
    else:
        header = ["prediction", *(f"probability {label}" for label in data.labels)]
        rows = [
            ["" if index < 0 else data.labels[int(index)], *probabilities]
            for index, *probabilities in answers.tolist()
        ]
    columns = [dataset[name][:] for name in ("id", "text", "label")]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label", *header])
        writer.writerows([*sample, *row] for *sample, row in zip(*columns, rows, strict=True))


def write_results(runs, output_dir, data):
    """results.json, results.md with mean and deviation over the seeds, and the training curves."""
    tables = []
    for split in next(iter(runs.values()))[0]:
        measured = {seed: metrics[split] for seed, (metrics, _) in runs.items()}
        # a metric that one seed leaves undefined has no mean
        names = [name for name in next(iter(measured.values())) if all(name in run for run in measured.values())]
        rows = [[seed, *(run[name] for name in names)] for seed, run in measured.items()]
        values = np.array([row[1:] for row in rows], dtype=float)
        rows.append(["mean", *values.mean(axis=0).tolist()])
        if len(rows) > 2:
            rows.append(["deviation", *values.std(axis=0, ddof=1).tolist()])
        tables.append(f"{split}\n\n{markdown_table(['seed', *names], rows)}")
    report = "\n\n".join(tables)
    models = [f"seed_{seed}" for seed in runs]
    print(report)
    with atomic_path(output_dir / "results.md") as temporary:
        temporary.write_text(report + "\n", encoding="utf-8")
    write_json(output_dir / "results.json", {seed: metrics for seed, (metrics, _) in runs.items()})
    plot_training_curves(
        {f"seed {seed}": history for seed, (_, history) in runs.items()},
        output_dir / "training_curves.png",
        metric="mae_of_all" if data.task == "regression" else "weighted_f1",
    )
    print(f"\nin {output_dir}: results.md, results.json, training_curves.png; a model by seed: {', '.join(models)}")


if __name__ == "__main__":
    honor_num_processes()
    main()
