"""What an MSE-Adapter is: `MseAdapterConfig` for PEFT, `MseConfig` for a model folder of its own. Same fields, checked
the same way."""

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig, PeftType, TaskType
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

TASKS = ("regression", "classification")
LANGUAGES = ("en", "zh")
HEADS = ("none", "alone", "beside")
FUSIONS = ("prompt", "head")
# the prompt_template that stands for the chat template of the LLM's tokenizer
CHAT = "chat"
ADAPTER_FIELDS = (
    "audio_dim",
    "vision_dim",
    "audio_hidden_size",
    "vision_hidden_size",
    "mixer_dim",
    "scales",
    "num_pseudo_tokens",
    "dropout",
    "task",
    "label_range",
    "label_step",
    "id2label",
    "language",
    "prompt_template",
    "head",
    "head_layers",
    "fusion",
)
_ADAPTER_ARGUMENTS = """
        audio_dim, vision_dim (`int`): features of one step of the audio and the vision sequence.
        audio_hidden_size, vision_hidden_size (`int`, default to 64 and 32):
            Width of the two LSTMs. The paper's: MOSEI and MELD 64 and 32, SIMS-v2 64 and 64, CHERMA 32 and 16.
        mixer_dim (`int`, defaults to 256): width in which modalities are mixed.
        scales (`tuple[int]`, defaults to (8, 32, 16)): the LLM's width over these is the inner width of each MLP.
        num_pseudo_tokens (`int`, defaults to 4): places that audio and vision take in the prompt.
        dropout (`float`, defaults to 0.1):
            Before the linear layer of each modality encoder, and of the head. Its value is not published.
        task (`"regression"` or `"classification"`, defaults to `"regression"`).
        label_range (`tuple[float, float]`, defaults to (-3.0, 3.0)): lowest and highest number of a regression.
        label_step (`float`, defaults to 0.1): distance between the numbers that can be answered.
        id2label (`dict[int, str]`, *optional*): names of the classes 0, 1, 2, ...; a classification needs it.
        language (`"en"` or `"zh"`, defaults to `"en"`): of the prompt.
        prompt_template (`str`, *optional*):
            With {pseudo_tokens} and {text} once each, or "chat" for the LLM's own chat template, see [`MseProcessor`].
        head (`"none"`, `"alone"` or `"beside"`, defaults to `"none"`):
            A linear layer on the LLM's last hidden state at the prompt's last token, that gives the number or the
            classes' logits. "alone": it is trained instead of the label's tokens. "beside": both, losses added.
            Whether it beats the LLM's own answers depends on the data (benchmarks/mse_answers.py), so "none", as in
            the paper, is the default; where there is one, it answers.
        head_layers (`tuple[int]`, *optional*):
            The layers of the LLM, counted from 1, whose states the head reads, mixed by learned weights. By default
            only the last, behind the LLM's final norm. The middle knows more of a feeling (benchmarks/mse_smollm2.md),
            and with a head alone the layers above need not run.
        fusion (`"prompt"` or `"head"`, defaults to `"prompt"`):
            Where audio and vision meet the words. "prompt": as pseudo tokens among the prompt's tokens, as in the
            paper. "head": the LLM reads the words alone, and the mean of the pseudo tokens is added to what the head
            reads. What the LLM makes of a text is a constant then: no gradient passes the LLM, and training keeps its
            states instead of running it again. It needs a head alone and head_layers, and a prompt without
            {pseudo_tokens}."""


def known_to_peft():
    """The member MSE_ADAPTER of PEFT's closed enum of adapter types, which is extended by it where it is missing."""
    name = "MSE_ADAPTER"
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_, member._sort_order_ = name, name, len(PeftType.__members__)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        # the enum's own __setattr__ refuses new members
        type.__setattr__(PeftType, name, member)
    return PeftType[name]


@dataclass
class MseAdapterConfig(PeftConfig):
    __doc__ = f"""
    Configuration of an MSE-Adapter (AAAI-25, arXiv 2502.12478) as a PEFT adapter: what `get_peft_model(llm, config)`
    needs to know. The hidden size comes from the LLM.

    Args:{_ADAPTER_ARGUMENTS}

    Raises:
        ValueError: for a field out of its range; the message names it, what came and what is expected.
    """

    # PEFT reads it from every tuner's config. The tuner finds the embedding by itself, and naming it here would make
    # PEFT save the LLM's own embedding.
    target_modules: ClassVar[None] = None

    audio_dim: int | None = field(default=None)
    vision_dim: int | None = field(default=None)
    audio_hidden_size: int = field(default=64)
    vision_hidden_size: int = field(default=32)
    mixer_dim: int = field(default=256)
    scales: tuple = field(default=(8, 32, 16))
    num_pseudo_tokens: int = field(default=4)
    dropout: float = field(default=0.1)
    task: str = field(default="regression")
    label_range: tuple = field(default=(-3.0, 3.0))
    label_step: float = field(default=0.1)
    id2label: dict | None = field(default=None)
    language: str = field(default="en")
    prompt_template: str | None = field(default=None)
    head: str = field(default="none")
    head_layers: tuple | None = field(default=None)
    fusion: str = field(default="prompt")

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = known_to_peft()
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        _require(self, "task_type", self.task_type == TaskType.CAUSAL_LM, "CAUSAL_LM")
        _check_adapter_fields(self)

    @property
    def num_labels(self):
        """Outputs of the head: one number, or one logit for each class."""
        return len(self.id2label) if self.task == "classification" else 1


class MseConfig(PreTrainedConfig):
    __doc__ = f"""
    Configuration of [`MseForConditionalGeneration`]: an MSE-Adapter and the LLM it was trained for.

    Args:{_ADAPTER_ARGUMENTS}
        hidden_size (`int`, *optional*): width of the LLM's embeddings; taken from the LLM once there is one.
        backbone_name_or_path (`str`, *optional*):
            Hub id or folder of the LLM. One that begins with "./" is a folder inside the model's own folder or Hub
            repository, so that a small LLM can travel with its adapter.
        backbone_revision (`str`, *optional*): branch, tag or commit of it.
        backbone_likeness (`dict`, *optional*): what tells it from other LLMs, see [`likeness_of`].

    Raises:
        ValueError: for a field out of its range; the message names it, what came and what is expected.
    """

    model_type = "mse_adapter"

    audio_dim: int | None = None
    vision_dim: int | None = None
    audio_hidden_size: int = 64
    vision_hidden_size: int = 32
    mixer_dim: int = 256
    scales: tuple | list = (8, 32, 16)
    num_pseudo_tokens: int = 4
    dropout: float = 0.1
    task: str = "regression"
    label_range: tuple | list = (-3.0, 3.0)
    label_step: float = 0.1
    language: str = "en"
    prompt_template: str | None = None
    head: str = "none"
    head_layers: tuple | list | None = None
    fusion: str = "prompt"
    hidden_size: int | None = None
    backbone_name_or_path: str | None = None
    backbone_revision: str | None = None
    backbone_likeness: dict | None = None

    def __post_init__(self, **kwargs):
        if self.task == "regression" and self.id2label is None:
            kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)
        _check_adapter_fields(self)
        if self.id2label:
            self.label2id = {label: index for index, label in self.id2label.items()}
        fits = self.hidden_size is None or _is_whole(self.hidden_size)
        _require(self, "hidden_size", fits, "a whole number of at least 1, or None")

    @classmethod
    def from_adapter_config(cls, config, **kwargs):
        """The same adapter, from an `MseAdapterConfig`; `kwargs` are the fields that one lacks."""
        fields = {name: getattr(config, name) for name in ADAPTER_FIELDS}
        backbone = {
            "backbone_name_or_path": config.base_model_name_or_path or None,
            "backbone_revision": config.revision,
        }
        return cls(**(fields | backbone | kwargs))

    def to_adapter_config(self):
        """The same adapter, as an `MseAdapterConfig`."""
        fields = {name: getattr(self, name) for name in ADAPTER_FIELDS}
        if self.task == "regression":
            fields["id2label"] = None
        return MseAdapterConfig(
            base_model_name_or_path=self.backbone_name_or_path, revision=self.backbone_revision, **fields
        )


def _check_adapter_fields(config):
    for name in ("scales", "label_range"):
        _require(config, name, isinstance(getattr(config, name), (list, tuple)), "a list of numbers")
        setattr(config, name, tuple(getattr(config, name)))
    sizes = ("audio_dim", "vision_dim", "audio_hidden_size", "vision_hidden_size", "mixer_dim", "num_pseudo_tokens")
    for name in sizes:
        _require(config, name, _is_whole(getattr(config, name)), "a whole number of at least 1")
    fits = config.scales and all(map(_is_whole, config.scales))
    _require(config, "scales", fits, "one or more whole numbers of at least 1")
    _require(config, "dropout", _is_number(config.dropout) and 0 <= config.dropout < 1, "a number in [0, 1)")
    _require(config, "task", config.task in TASKS, f"one of {TASKS}")
    fits = len(config.label_range) == 2 and all(map(_is_number, config.label_range))
    _require(config, "label_range", fits and config.label_range[0] < config.label_range[1], "(lowest, highest)")
    width = config.label_range[1] - config.label_range[0]
    fits = _is_number(config.label_step) and 0 < config.label_step <= width
    _require(config, "label_step", fits, f"a number above 0, at most the range's width {width}")
    _require(config, "language", config.language in LANGUAGES, f"one of {LANGUAGES}")
    _require(config, "head", config.head in HEADS, f"one of {HEADS}")
    if config.head_layers is not None:
        layers = config.head_layers
        fits = isinstance(layers, (list, tuple)) and layers and all(map(_is_whole, layers))
        fits = fits and all(lower < higher for lower, higher in itertools.pairwise(layers))
        _require(config, "head_layers", fits, "rising whole numbers of at least 1, or None")
        _require(config, "head_layers", config.head != "none", "None, as head is 'none'")
        config.head_layers = tuple(layers)
    _require(config, "fusion", config.fusion in FUSIONS, f"one of {FUSIONS}")
    if config.fusion == "head":
        fits = config.head == "alone" and config.head_layers is not None
        _require(config, "fusion", fits, "'prompt', as it is not a head alone with head_layers")
        config.prompt_template = config.prompt_template or "{context}{speaker}{text}"
    if config.prompt_template is not None and (config.prompt_template, config.fusion) != (CHAT, "prompt"):
        places = ("{pseudo_tokens}", "{text}")
        counts = [config.prompt_template.count(name) for name in places] if _is_text(config.prompt_template) else []
        wanted, expected = [1, 1], "{pseudo_tokens} and {text} once each"
        if config.fusion == "head":
            wanted, expected = [0, 1], "{text} once and no {pseudo_tokens}, as fusion is 'head'"
        _require(config, "prompt_template", counts == wanted, f"a text with {expected}, or {CHAT!r}, or None")
    if config.task == "classification":
        labels = config.id2label if isinstance(config.id2label, dict) else {}
        # keys come back from JSON as strings
        numbered = sorted(map(str, labels)) == sorted(map(str, range(len(labels))))
        named = all(isinstance(label, str) for label in labels.values()) and len(set(labels.values())) == len(labels)
        fits = len(labels) >= 2 and numbered and named
        _require(config, "id2label", fits, "a different name for each of the classes 0, 1, ...")
        config.id2label = {int(index): labels[index] for index in sorted(labels, key=int)}


def _require(config, name, condition, expected):
    if not condition:
        raise ValueError(f"{name} is {getattr(config, name)!r}; expected {expected}")


def _is_text(value):
    return isinstance(value, str)


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# a copy of this file that came with a model does not take the place of the installed package's class
if not (__name__.startswith("transformers_modules.") and "mse_adapter" in CONFIG_MAPPING):
    AutoConfig.register("mse_adapter", MseConfig, exist_ok=True)
