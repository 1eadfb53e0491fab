"""Train an MSE-Adapter: a frozen causal LLM learns to read sentiment or emotion from words, voice and face.

    accelerate launch training/run_msa.py training/recipes/msa_mosei_llama2.yaml --data_path unaligned_50.pkl

A recipe names a data set, a backbone and whatever differs from the defaults below; flags win over the recipe. Every
seed leaves a Hub-ready folder `seed_N` (adapter, processor, pipeline and code; of the LLM only its name), its metrics
and its predictions as csv; all seeds together results.json, results.md with mean and deviation, and the curves as a
picture. Interrupted, the same command with `--resume_from_checkpoint` goes on exactly where it was; one whose result
would be another is refused.
"""

import copy
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoTokenizer, BitsAndBytesConfig, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_mse_adapter.adapted_language_model import load_language_model
from hf_mse_adapter.answers import methods_of
from hf_mse_adapter.configuration_mse_adapter import MseConfig
from hf_mse_adapter.modeling_mse_adapter import MseForConditionalGeneration
from hf_mse_adapter.processing_mse_adapter import PROMPT_TEMPLATES, MseProcessor
from hf_mse_adapter.publishing_mse_adapter import save_for_hub
from training.checkpoints import FINISHED, describe_run, find_checkpoint, read_finished, record_run, train_from
from training.data.msa_augmentation import FeatureAugmentation
from training.data.msa_batches import MsaSamples
from training.data.msa_samples import MODALITIES
from training.data.msa_splits import LOADERS, has_one_case, load_splits, report_splits
from training.data.tiny_language_model import build_tiny_language_model
from training.extract_clips import FrontEndArguments
from training.head_fit import FittedHead
from training.launch import run
from training.llm_states import StatesCollator, llm_states_of_samples
from training.msa_trainer import MseTrainer, metrics_of
from training.recipe import parse_recipe
from training.reports import card_texts, finite_or_none, write_json, write_predictions, write_results
from training.trainer import RecipeArguments

TINY = "tiny"
DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class DataArguments(FrontEndArguments):
    dataset: str = field(default="simulated", metadata={"help": f"{', '.join(LOADERS)}."})
    data_path: str | None = field(
        default=None,
        metadata={
            "help": "mmsa, conversations, ravdess_features: the pickle. mse_adapter: one pickle per split, {split} "
            "standing for train, valid and test. parquet: the folder. clips: the folder, with labels.csv."
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

    clip_cache: str | None = field(
        default=None, metadata={"help": "clips: folder that keeps the features; `features` beside them by default."}
    )
    clip_processes: int = field(default=1, metadata={"help": "clips: processes that make features."})
    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "Probability that a training sample lacks its audio, and that it lacks its vision."},
    )
    sentence_case: bool | None = field(
        default=None,
        metadata={
            "help": "Bring utterances to sentence case, in training and ever after; by default where all of the "
            "training split's are upper or lower case."
        },
    )

    def clip_front_ends(self):
        """How the processor makes features of clips; None where nothing says how this data set's were made."""
        shown = [name for name in ("text", "audio", "vision") if name not in self.withhold]
        front_ends = self.front_ends(shown, with_defaults=self.dataset == "clips")
        if front_ends and "audio" in front_ends and self.audio_window:
            front_ends["audio"] |= {"window": self.audio_window, "hop": self.audio_hop or self.audio_window // 2 or 1}
        return front_ends

    def __post_init__(self):
        if self.dataset not in LOADERS:
            raise ValueError(f"dataset is {self.dataset!r}; expected one of {', '.join(LOADERS)}")
        if self.dataset != "simulated" and self.data_path is None:
            raise ValueError(f"data_path is missing; expected where the {self.dataset} data lies")
        if self.task not in ("regression", "classification"):
            raise ValueError(f"task is {self.task!r}; expected regression or classification")
        tasks = {"mmsa": "regression", "ravdess_features": "classification", "conversations": "classification"}
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
        for name in ("swap_vision", "modality_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability")


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
    head_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers of the LLM, from 1, whose states the head reads; by default the last."}
    )
    fusion: str | None = field(
        default=None, metadata={"help": "prompt, or head: audio and vision join the words where the head reads."}
    )
    prompt_template: str | None = None
    fit_head: bool = field(
        default=False,
        metadata={"help": "fusion head: the head starts as a linear probe of the words, see training/head_fit.py."},
    )
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
class MsaTrainingArguments(RecipeArguments):
    """RecipeArguments with the paper's procedure as defaults."""

    output_dir: str | None = "runs/msa"
    seeds: list[int] = field(
        default_factory=lambda: [1111, 2222, 3333, 4444, 5555], metadata={"help": "One training each."}
    )
    early_stopping_patience: int | None = 8
    head_label_smoothing: float = field(
        default=0.0, metadata={"help": "For a classifying head that is alone, in training."}
    )
    group_by_length: bool = field(
        default=True, metadata={"help": "Batches of clips of like cost, see MsaSamples.costs."}
    )
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    num_train_epochs: float = 30.0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 32
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 1
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "Go on with what lies in output_dir: finished seeds are kept."}
    )
    report_to: str = "none"
    publish_to: str | None = field(
        default=None, metadata={"help": "Folder for the model of the seed that is best on the validation split."}
    )
    card_license: str = field(default="apache-2.0", metadata={"help": "Of the adapter's weights, as the Hub has it."})
    card_notice: str | None = field(
        default=None, metadata={"help": "What the model card shall say first, such as the data's terms of use."}
    )
    card: str | None = field(
        default=None,
        metadata={
            "help": "A yaml file with words for the model card, by the names in the braces of its template, and its "
            "license: they win over what training writes."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; expected one or more different numbers")
        self.card_words()
        if self.seed != type(self).__dataclass_fields__["seed"].default:
            raise ValueError(f"seed is {self.seed}; expected seeds instead, one training each")

    def card_words(self):
        """What the file `card` says (dict[str, str])."""
        if self.card is None:
            return {}
        try:
            words = yaml.safe_load(Path(self.card).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"card is {self.card}, which is no yaml: {error}") from None
        if not isinstance(words, dict) or not all(isinstance(text, str) for text in words.values()):
            raise ValueError(f"card is {self.card}; expected a mapping of names to texts")
        return words


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
    data.sentence_case = has_one_case(splits["train"]) if data.sentence_case is None else data.sentence_case
    if training.process_index == 0:
        report_splits(splits)
        if data.sentence_case:
            print('utterances are brought to sentence case ("I DIDNT LIKE IT": "I didn\'t like it.")')
    backbone, tokenizer = load_backbone(network, splits["train"]["text"][:])
    processor, config = build_processor(data, network, splits["train"], tokenizer)

    def new_model():
        model = MseForConditionalGeneration.from_backbone(backbone, config)
        if network.memory_steps is not None:
            prolong_memory(model.adapter.audio_encoder.lstm, network.memory_steps)
        return model

    if network.fit_head and config.fusion != "head":
        raise ValueError(f"fit_head is True, but fusion is {config.fusion!r}; expected 'head', whose states are known")
    samples = {split: samples_of(split, splits[split], data, augmentation, processor) for split in splits}
    if config.fusion == "head":
        add_llm_states(samples, new_model(), processor)

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
    fitted_head = FittedHead(samples, processor.answers) if network.fit_head else None
    runs = {}
    for seed, folder in folders.items():
        if training.resume_from_checkpoint and (folder / FINISHED).is_file():
            runs[seed] = read_finished(folder)
            continue
        record_run(folder, made_with | {"seed": seed})
        runs[seed] = train_seed(
            seed,
            folder,
            checkpoints[seed],
            data,
            network,
            training,
            splits,
            samples,
            new_model,
            processor,
            fitted_head,
        )
    if training.process_index == 0:
        write_results(runs, Path(training.output_dir), data)
        if training.publish_to:
            deliver(runs, folders, Path(training.publish_to), data)
    return {seed: metrics for seed, (metrics, _) in runs.items()}


def deliver(runs, folders, target, data):
    """Copy the model of the seed that is best on the validation split, without what training left beside it."""
    score = (lambda valid: -valid["mae_of_all"]) if data.task == "regression" else (lambda valid: valid["weighted_f1"])
    best = max(runs, key=lambda seed: score(runs[seed][0]["valid"]))
    left = ("checkpoint-*", "predictions_*", "history.json", FINISHED, "made_with.json", ".*")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        staging = Path(temporary) / target.name
        shutil.copytree(folders[best], staging, ignore=shutil.ignore_patterns(*left))
        card = staging / "README.md"
        card.write_text(
            card.read_text(encoding="utf-8")
            .replace(f"{folders[best].parent.name}, {folders[best].name}", target.name)
            .replace("; its arguments are in `made_with.json`", ""),
            encoding="utf-8",
        )
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(staging, target)
    print(f"{target}: the model of seed {best}, which is best on the validation split")


def check_answer_method(method, head, task):
    """Raise ValueError for a method that could not answer at the first validation, hours from now."""
    methods = (*methods_of(task), *(["head"] if head != "none" else []))
    if method is not None and method not in methods:
        raise ValueError(
            f"answer_method is {method!r}; expected one of {', '.join(methods)} for task {task!r} with head {head!r}"
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
    names += ("head_layers", "fusion", "prompt_template")
    given = {name: getattr(network, name) for name in names if getattr(network, name) is not None}
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
        backbone_name_or_path=None if network.backbone == TINY else public_name(network.backbone),
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
        front_ends=with_what_was_made(data.clip_front_ends(), train),
        sentence_case=data.sentence_case,
        modalities=[name for name in ("text", *MODALITIES) if name not in data.withhold] if data.withhold else None,
    )
    samples = MsaSamples(train, withhold=data.withhold)
    chunks = (range(start, min(start + 256, len(samples))) for start in range(0, len(samples), 256))
    processor.fit(sample for chunk in chunks for sample in samples.__getitems__(chunk))
    return processor, config


def with_what_was_made(front_ends, train):
    """The front ends without those of a modality that no training sample has: the model has learnt nothing of it."""
    if front_ends is None:
        return None
    has = {modality: bool(np.any(train[f"{modality}_steps"][:])) for modality in MODALITIES}
    return {modality: front_end for modality, front_end in front_ends.items() if has.get(modality, True)}


def public_name(backbone):
    """What others call an LLM: for a folder that training/get_llm.py made, the repository on the Hub."""
    record = Path(backbone) / "made_from.json"
    if not record.is_file():
        return backbone
    return json.loads(record.read_text(encoding="utf-8")).get("repository", backbone)


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


def samples_of(split, dataset, data, augmentation, processor):
    """What the model sees of a split."""
    changed = {
        "augmentation": augmentation,
        "feature_statistics": processor.feature_statistics,
        "swap_vision": data.swap_vision,
        "modality_dropout": data.modality_dropout,
    }
    return MsaSamples(
        dataset,
        num_context_utterances=data.num_context_utterances,
        withhold=data.withhold,
        **(changed if split == "train" else {}),
    )


def add_llm_states(samples, model, processor):
    """Let the frozen LLM read every split once, for all epochs and seeds."""
    for split, those in samples.items():
        started = time.perf_counter()
        those.llm_states = llm_states_of_samples(model, processor, those)
        print(f"{split}: the LLM's states of {len(those)} samples after {time.perf_counter() - started:.0f} s")


def build_trainer(model, processor, samples, data, network, training):
    # a data set may be shown several times, with another seed
    train = copy.copy(samples["train"])
    train.seed = training.seed
    grouped = training.group_by_length and model.config.fusion != "head"
    return MseTrainer(
        model=model,
        args=training,
        data_collator=processor.collate if train.llm_states is None else StatesCollator(processor),
        train_dataset=train,
        held_out={split: those for split, those in samples.items() if split != "train"},
        processing_class=processor,
        compute_metrics=metrics_of(data),
        answer_method=network.answer_method,
        costs=train.costs(processor, model) if grouped else None,
    )


def train_seed(
    seed, folder, checkpoint, data, network, training, splits, samples, new_model, processor, fitted_head=None
):
    """Train once, from `checkpoint` if there is one, into `folder`. Returns metrics by split and the trainer's log."""
    training = copy.copy(training)
    training.output_dir, training.seed = str(folder), seed
    training.metric_for_best_model = "mae_of_all" if data.task == "regression" else "weighted_f1"
    training.greater_is_better = data.task == "classification"
    set_seed(seed)
    model = new_model()
    if fitted_head is not None:
        fitted_head.put_into(model)
    trainer = build_trainer(model, processor, samples, data, network, training)
    train_from(trainer, checkpoint)

    metrics = {}
    for split, held_out in trainer.held_out.items():
        output = trainer.predict(held_out, metric_key_prefix=split)
        metrics[split] = {
            name.removeprefix(f"{split}_"): finite_or_none(value)
            for name, value in output.metrics.items()
            if not name.endswith(("_runtime", "_per_second"))
        }
        if trainer.is_world_process_zero():
            write_predictions(folder / f"predictions_{split}.csv", splits[split], output.predictions, data)
    history = [{name: finite_or_none(value) for name, value in entry.items()} for entry in trainer.state.log_history]
    if trainer.is_world_process_zero():
        card = card_texts(folder, data, splits, trainer.state.epoch, metrics)
        card |= {"notice": training.card_notice} if training.card_notice else {}
        card |= training.card_words()
        save_for_hub(model, processor, folder, license=card.pop("license", training.card_license), card=card)
        write_json(folder / "history.json", history)
        # last, because it says that all the rest is there
        write_json(folder / FINISHED, metrics)
    trainer.accelerator.wait_for_everyone()
    return metrics, history


if __name__ == "__main__":
    run(main)
