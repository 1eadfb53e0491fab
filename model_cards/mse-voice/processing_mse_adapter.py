"""From what a person said, how it sounded and how they looked, to the tensors of an MSE-Adapter."""

import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .answers import AnswerFormat
from .clip_features import ClipReader, checked_front_ends, feature_width
from .configuration_mse_adapter import CHAT, MseConfig
from .face_features import NOTICE_FILE, WEIGHTS_FILE, own_weights
from .transcripts import in_sentence_case

logger = logging.getLogger(__name__)

MODALITIES = ("audio", "vision")
FIELDS = ("text", "audio", "vision", "context", "speaker", "label")
ALIASES = {"video": "vision", "visual": "vision", "acoustic": "audio", "labels": "label"}
# of a row of a data set: they say nothing to a model
UNREAD_FIELDS = ("id", "dialogue_id", "utterance_id")
UNREAD_FIELDS += tuple(f"{modality}_{name}" for modality in MODALITIES for name in ("steps", "replaced", "padding"))

# the paper's form: <tag> pseudo tokens, text </tag> task; the wording is ours, short because every sample pays for it
PROMPT_TEMPLATES = {
    ("en", "regression"): (
        "{context}<Multimodal>{pseudo_tokens}{speaker}{text}</Multimodal>Sentiment intensity from {low} to {high}:"
    ),
    ("en", "classification"): "{context}<Multimodal>{pseudo_tokens}{speaker}{text}</Multimodal>Emotion ({labels}):",
    ("zh", "regression"): "{context}<多模态>{pseudo_tokens}{speaker}{text}</多模态>情感强度（{low}到{high}）：",
    ("zh", "classification"): "{context}<多模态>{pseudo_tokens}{speaker}{text}</多模态>情绪（{labels}）：",
}
CONTEXT_HEADINGS = {"en": "Conversation so far:\n", "zh": "此前的对话：\n"}
SPEAKER_MARKS = {"en": ": ", "zh": "："}
PLACES = re.compile(r"(\{(?:context|pseudo_tokens|speaker|text)\})")
# what chat formats write their special tokens like; tags of our own prompts do not look so
SPECIAL_LOOK = re.compile(r"<[|｜][^<>{}\s]+[|｜]>|<(?:start|end)_of_turn>|<(?:bos|eos)>")
# half of a UTF-16 pair, as json gives it where a text was cut within an emoji
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


class MseProcessor(ProcessorMixin):
    r"""
    Turns utterances with audio and vision feature sequences into the inputs of an MSE-Adapter, and labels into the
    tokens that the LLM learns to write.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The LLM's tokenizer. It needs an end token; beginning and padding tokens are used where it has them.
        audio_dim, vision_dim (`int`): features of one step.
        task (`str`), label_range, label_step, id2label: the answers, see [`AnswerFormat`].
        label_words (`bool`): the LLM writes a class's name instead of its index.
        language (`"en"` or `"zh"`): language of the default prompt, of the conversation's heading and marks.
        prompt_template (`str`, *optional*):
            The prompt with the places {pseudo_tokens} and {text} (each once), {speaker} and {context} (both empty
            where a sample names none), and {low}, {high}, {labels}. Default: the one of language and task in
            `PROMPT_TEMPLATES`. "chat": this default as a user's turn in the tokenizer's chat template, which the
            assistant's turn begins to answer. A model with the fusion "head" has no {pseudo_tokens} in it. The names
            of special tokens in a template are these tokens; in what people say they are not.
        num_pseudo_tokens (`int`): places kept for the pseudo tokens.
        num_context_utterances (`int`, *optional*): how many of the earlier utterances are shown; None shows all given.
        max_text_tokens, max_audio_length, max_vision_length (`int`, *optional*):
            What an utterance may hold: tokens of its text, steps of audio and of vision. Of a longer one the beginning
            is kept, as the paper's procedure does with text (its feature files are cut already; that their beginning
            is kept too is a choice). Nothing else of the prompt is ever cut: neither tags and task nor speaker and
            earlier utterances. None: no limit. The paper's: MOSEI 50, 500, 375; SIMS-v2 50, 925, 232; MELD 65, 157,
            32; CHERMA 78, 543, 16.
        padding_side (`"left"` or `"right"`): where prompts are padded; features are padded on the right.
        feature_statistics (`dict`, *optional*): what `fit` has found: {"audio": {"mean": [...], "std": [...]}, ...}.
        front_ends (`dict`, *optional*):
            How words, audio and vision features are made of a clip, see clip_features.py; what it does not name, no
            clip gives.
        modalities (`list[str]`, *optional*):
            Of text, audio and vision, those that the model was trained on; None: all.
        sentence_case (`bool`):
            Utterances, earlier ones too, are brought to sentence case, see [`in_sentence_case`].

    Attributes:
        answers (`AnswerFormat`)
        replaced_values (`dict[str, int]`):
            How many NaN and infinite feature values this processor has replaced so far, by modality. They become the
            feature's mean (zero without statistics): the logarithm of silence says nothing.

    Raises:
        ValueError: for a field out of its range; the message names it, what came and what is expected.
    """

    def __init__(
        self,
        tokenizer,
        audio_dim=None,
        vision_dim=None,
        task="regression",
        label_range=(-3.0, 3.0),
        label_step=0.1,
        id2label=None,
        label_words=False,
        language="en",
        prompt_template=None,
        num_pseudo_tokens=4,
        num_context_utterances=None,
        max_text_tokens=None,
        max_audio_length=None,
        max_vision_length=None,
        padding_side="left",
        feature_statistics=None,
        front_ends=None,
        modalities=None,
        sentence_case=False,
        chat_template=None,
    ):
        super().__init__(tokenizer, chat_template=chat_template)
        for name, value in (("audio_dim", audio_dim), ("vision_dim", vision_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be the number of features of one step, but is {value!r}")
        if language not in CONTEXT_HEADINGS:
            raise ValueError(f"language must be one of {sorted(CONTEXT_HEADINGS)}, but is {language!r}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', but is {padding_side!r}")
        if num_context_utterances is not None and num_context_utterances < 0:
            raise ValueError(f"num_context_utterances must not be negative, but is {num_context_utterances}")
        limits = {
            "max_text_tokens": max_text_tokens,
            "max_audio_length": max_audio_length,
            "max_vision_length": max_vision_length,
        }
        for name, value in limits.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, or None, but is {value!r}")
        self.audio_dim, self.vision_dim = audio_dim, vision_dim
        self.task = task
        self.label_range, self.label_step = tuple(label_range), label_step
        self.id2label = None if id2label is None else {int(index): label for index, label in id2label.items()}
        self.label_words = label_words
        self.language = language
        self.prompt_template = prompt_template
        self.num_pseudo_tokens = num_pseudo_tokens
        self.num_context_utterances = num_context_utterances
        self.max_text_tokens = max_text_tokens
        self.max_audio_length, self.max_vision_length = max_audio_length, max_vision_length
        self.padding_side = padding_side
        if not isinstance(sentence_case, bool):
            raise ValueError(f"sentence_case must be True or False, but is {sentence_case!r}")
        self.sentence_case = sentence_case
        self.feature_statistics = self._checked(feature_statistics)
        self.front_ends = checked_front_ends(front_ends)
        for modality in MODALITIES:
            width = feature_width((self.front_ends or {}).get(modality, {"type": None}))
            if width not in (None, getattr(self, f"{modality}_dim")):
                raise ValueError(
                    f"front_ends makes {width} features of {modality}, but {modality}_dim is "
                    f"{getattr(self, f'{modality}_dim')}"
                )
        if modalities is not None and (not modalities or not set(modalities) <= {"text", *MODALITIES}):
            raise ValueError(f"modalities must be some of text, audio and vision, or None, but is {modalities!r}")
        self.modalities = (
            None if modalities is None else [name for name in ("text", *MODALITIES) if name in modalities]
        )
        self._face_weights = None
        self.answers = AnswerFormat(tokenizer, task, self.label_range, label_step, self.id2label, label_words)
        self.replaced_values = dict.fromkeys(MODALITIES, 0)
        template = prompt_template or PROMPT_TEMPLATES[language, task]
        self._beginning = _tokens_before_text(tokenizer)
        if template == CHAT:
            # it writes the beginning itself
            self._beginning, template = [], _as_chat(tokenizer, PROMPT_TEMPLATES[language, task])
        self._places = self._split(template)
        # where the LLM reads words alone, a turn reads as it will among the earlier ones, so that one pass reads a
        # whole dialogue; adapters with pseudo tokens were trained on the space as a token of its own
        followed = itertools.pairwise(self._places)
        self._reads_turns = "{pseudo_tokens}" not in template and ("{speaker}", "{text}") in followed
        # a padded position is masked, so any token can stand there
        self._padding_id = self.answers.end_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @classmethod
    def from_config(cls, config, tokenizer, **kwargs):
        """The processor of an `MseAdapterConfig` or `MseConfig`; `kwargs` are the arguments that a config lacks."""
        names = ("audio_dim", "vision_dim", "task", "label_range", "label_step", "id2label", "language")
        names += ("prompt_template", "num_pseudo_tokens")
        fields = {name: getattr(config, name) for name in names}
        if config.task == "regression":
            # a PreTrainedConfig names even the one output of a regression
            fields["id2label"] = None
        return cls(tokenizer, **(fields | kwargs))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As `ProcessorMixin.from_pretrained`; the face networks' weights are found in the same place."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if isinstance(processor, cls) and "vision" in (processor.front_ends or {}):
            names = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
            options = {name: kwargs[name] for name in names if kwargs.get(name)}
            found = cached_file(
                pretrained_model_name_or_path, WEIGHTS_FILE, _raise_exceptions_for_missing_entries=False, **options
            )
            processor._face_weights = found
        return processor

    def save_pretrained(self, save_directory, **kwargs):
        """As `ProcessorMixin.save_pretrained`; where faces are read, with the face networks' weights and notice.

        Raises:
            ValueError: for a tokenizer of mistral-common, whose file (tekken.json) says no type to load it by.
        """
        if _is_mistral_common(self.tokenizer):
            raise ValueError(
                f"tokenizer is a {type(self.tokenizer).__name__}, which no processor finds again in a folder; "
                "expected one of transformers' own, as AutoTokenizer loads it from a folder that "
                "tokenizer.save_pretrained(FOLDER, save_format='hf') wrote"
            )
        saved = super().save_pretrained(save_directory, **kwargs)
        if "vision" in (self.front_ends or {}):
            weights = Path(self._face_weights or own_weights())
            for source in (weights, weights.with_name(NOTICE_FILE)):
                target = Path(save_directory) / source.name
                if source.is_file() and source.resolve() != target.resolve():
                    unfinished = target.with_name(f".{target.name}.unfinished")
                    shutil.copyfile(source, unfinished)
                    os.replace(unfinished, target)
        return saved

    def clip_reader(self, speech_recognizer=None):
        """A [`ClipReader`] of this processor's `front_ends`; `speech_recognizer` is another id or folder of it."""
        return ClipReader(self.front_ends, self._face_weights, speech_recognizer, self.language)

    @property
    def model_input_names(self):
        names = ["input_ids", "attention_mask", "pseudo_token_mask", "text_mask"]
        for modality in MODALITIES:
            names += [f"{modality}_values", f"{modality}_attention_mask"]
        return names

    def fit(self, samples):
        """
        Find mean and standard deviation of every feature over the true frames of the training samples, as far as the
        limits keep them, in one pass.

        From then on (and after saving and loading) features are standardised by them. Values that are no finite
        numbers do not count; a feature that never varies keeps its scale.

        Args:
            samples (`Iterable[dict]`):
                With the fields of `collate`, of which only audio and vision count; read once, one by one.

        Returns:
            `MseProcessor`: itself.
        """
        moments = {modality: np.zeros((3, getattr(self, f"{modality}_dim"))) for modality in MODALITIES}
        for index, sample in enumerate(samples):
            sample = with_known_fields(sample, index)
            for modality in MODALITIES:
                frames = self._frames(sample.get(modality), modality, index).astype(np.float64)
                _add_moments(moments[modality], frames)
        statistics = {}
        for modality, (count, mean, squares) in moments.items():
            if count.any():
                std = np.sqrt(squares / np.maximum(count, 1))
                std[std <= 1e-6 * np.abs(mean)] = 1.0
                statistics[modality] = {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}
        self.feature_statistics = statistics or None
        return self

    def __call__(
        self,
        text=None,
        audio=None,
        vision=None,
        context=None,
        speaker=None,
        labels=None,
        return_tensors="pt",
        **kwargs,
    ):
        """
        Make a batch. Every argument but `return_tensors` is one sample's value or, with `text` a list, a list of them.

        Args:
            text (`str` or `list[str]`): the utterance; it may be empty.
            audio, vision (array [time, features], [features], or None):
                Feature sequences as NumPy arrays, tensors or nested lists. None or no steps: the modality is missing.
            context: earlier utterances, oldest first, each `(speaker, text)`, a dict of these two, or a text.
            speaker (`str`, *optional*): who says `text`.
            labels: numbers, class indices or class names; None makes a batch of prompts to be answered.
            return_tensors (`str`): "pt".

        Returns:
            `BatchFeature`: with tensors
            - input_ids, attention_mask int64 [batch, length]: beginning token, prompt and, with labels, answer and end
              token. The parts are tokenised apart, so that a tag never melts into a word; but without pseudo tokens
              "{speaker}{text}" is one text, as in the context;
            - pseudo_token_mask bool [batch, length]: the places kept for pseudo tokens;
            - text_mask bool [batch, length]: the tokens of the utterance itself;
            - audio_values float32 [batch, audio steps, audio_dim], audio_attention_mask int64 [batch, audio steps],
              the same for vision, padded to the batch's longest; a row of zeros in the mask means missing;
            - labels int64 [batch, length]: answer and end token, -100 elsewhere; label_values [batch]: float32
              numbers or int64 class indices. Both only with labels.

        Raises:
            ValueError: naming the argument and sample, what came and what is expected.
        """
        if kwargs:
            raise ValueError(f"MseProcessor takes no argument {', '.join(map(repr, kwargs))}")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', but is {return_tensors!r}")
        if isinstance(text, str):
            text, audio, vision, context, speaker = [text], [audio], [vision], [context], [speaker]
            labels = None if labels is None else [labels]
        if not isinstance(text, list | tuple) or not text:
            raise ValueError(f"text must be a string or a list of at least one, but is {text!r}")
        columns = {"audio": audio, "vision": vision, "context": context, "speaker": speaker, "labels": labels}
        for name, column in columns.items():
            try:
                came = len(text) if column is None else len(column)
            except TypeError:
                came = f"is {column!r}"
            if came != len(text):
                came = f"has {came}" if isinstance(came, int) else came
                raise ValueError(f"{name} must have one entry for each of the {len(text)} texts, but {came}")
        rows = [
            self._row(text[i], *(None if column is None else column[i] for column in (context, speaker, labels)), i)
            for i in range(len(text))
        ]
        batch = self._pad_rows(rows)
        if labels is None:
            del batch["labels"]
        else:
            values = [self.answers.candidates[self.answers.index_of(label)] for label in labels]
            values = labels if self.task == "regression" else values
            dtype = torch.float32 if self.task == "regression" else torch.int64
            batch["label_values"] = torch.tensor([float(value) for value in values]).to(dtype)
        for modality in MODALITIES:
            sequences = [None] * len(text) if columns[modality] is None else columns[modality]
            batch |= self._pad_features([self._features(x, modality, i) for i, x in enumerate(sequences)], modality)
        return BatchFeature(batch)

    def collate(self, samples):
        """
        A batch from samples as dicts of text and, as far as there, audio, vision (or video, visual), context, speaker
        and label; see [`with_known_fields`] for what else they may hold.
        """
        samples = [with_known_fields(sample, index) for index, sample in enumerate(samples)]
        columns = {
            name: [sample.get(name) for sample in samples] for name in ("audio", "vision", "context", "speaker")
        }
        has_labels = [sample.get("label") is not None for sample in samples]
        if any(has_labels) != all(has_labels):
            raise ValueError(
                f"either all samples of a batch have a label or none, but {has_labels.count(False)} lack it"
            )
        labels = [sample["label"] for sample in samples] if all(has_labels) else None
        return self([sample.get("text") for sample in samples], **columns, labels=labels)

    def num_tokens(self, text, context=None, speaker=None):
        """How many tokens `__call__` makes of an unlabelled sample, places of pseudo tokens included (`int`)."""
        return len(self._row(text, context, speaker, None, 0))

    def _row(self, text, context, speaker, label, index):
        """One sample's token ids and, for each, whether it is a pseudo token's place, of the text, of the label."""
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, but sample {index} has {text!r}")
        written = {
            "{context}": self._conversation(context, index),
            "{speaker}": f"{speaker}{SPEAKER_MARKS[self.language]}" if speaker else "",
            "{text}": in_sentence_case(text) if self.sentence_case else text,
        }
        for place, words in written.items():
            if lone := LONE_SURROGATE.search(words):
                raise ValueError(
                    f"{place[1:-1]} must be Unicode, but sample {index} has the lone surrogate {lone.group()!r}"
                )
        tokens = {place: self._tokens(words) for place, words in written.items()}
        if self._reads_turns:
            tokens |= self._turn(written["{speaker}"], written["{text}"])
        parts = [(self._beginning, None)]
        for place in self._places:
            if place == "{pseudo_tokens}":
                parts.append(([self._padding_id] * self.num_pseudo_tokens, place))
            elif place in written:
                limit = self.max_text_tokens if place == "{text}" else None
                parts.append((tokens[place][:limit], place))
            else:
                parts.append((place, None))
        if label is not None:
            answer = self.answers.token_ids[self.answers.index_of(label)]
            parts.append(([*answer, self.answers.end_token_id], "label"))
        return [(token, place) for tokens, place in parts for token in tokens]

    def _conversation(self, context, index):
        turns = [context] if isinstance(context, str | dict) else [] if context is None else context
        if not isinstance(turns, Iterable):
            raise ValueError(f"context must hold texts or (speaker, text), but sample {index} has {context!r}")
        turns = list(turns)
        if self.num_context_utterances is not None:
            turns = turns[max(0, len(turns) - self.num_context_utterances) :]
        lines = []
        for turn in turns:
            if isinstance(turn, list | tuple) and len(turn) == 2:
                turn = {"speaker": turn[0], "text": turn[1]}
            turn = {"text": turn} if isinstance(turn, str) else turn
            if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
                raise ValueError(f"context must hold texts or (speaker, text), but sample {index} has {turn!r}")
            mark = f"{turn['speaker']}{SPEAKER_MARKS[self.language]}" if turn.get("speaker") else ""
            words = in_sentence_case(turn["text"]) if self.sentence_case else turn["text"]
            lines.append(f"{mark}{words}\n")
        return CONTEXT_HEADINGS[self.language] + "".join(lines) if lines else ""

    def _turn(self, mark, text):
        """Tokens of a speaker's mark and of what they say, as of one text; apart where they melt into one another."""
        whole, begin = self._tokens(mark + text), self._tokens(mark.rstrip())
        if not text or whole[: len(begin)] != begin:
            return {}
        return {"{speaker}": begin, "{text}": whole[len(begin) :]}

    def _tokens(self, text):
        # what people say is never a special token, even if it looks like one (and to this tokenizer no text is)
        plain = {} if _is_mistral_common(self.tokenizer) else {"split_special_tokens": True}
        return self.tokenizer(text, add_special_tokens=False, **plain).input_ids if text else []

    def _pad_rows(self, rows):
        shape = (len(rows), max(map(len, rows)))
        batch = {
            "input_ids": torch.full(shape, self._padding_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "pseudo_token_mask": torch.zeros(shape, dtype=torch.bool),
            "text_mask": torch.zeros(shape, dtype=torch.bool),
            "labels": torch.full(shape, -100),
        }
        for index, row in enumerate(rows):
            here = slice(shape[1] - len(row), None) if self.padding_side == "left" else slice(len(row))
            tokens = torch.tensor([token for token, _ in row])
            is_label = torch.tensor([place == "label" for _, place in row])
            batch["input_ids"][index, here] = tokens
            batch["attention_mask"][index, here] = 1
            batch["pseudo_token_mask"][index, here] = torch.tensor([place == "{pseudo_tokens}" for _, place in row])
            batch["text_mask"][index, here] = torch.tensor([place == "{text}" for _, place in row])
            batch["labels"][index, here] = tokens.where(is_label, -100)
        return batch

    def _pad_features(self, sequences, modality):
        # at least one step, so that a batch without the modality has a shape too
        shape = (len(sequences), max(1, *map(len, sequences)), getattr(self, f"{modality}_dim"))
        values, mask = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.long)
        for index, sequence in enumerate(sequences):
            values[index, : len(sequence)] = torch.from_numpy(sequence)
            mask[index, : len(sequence)] = 1
        return {f"{modality}_values": values, f"{modality}_attention_mask": mask}

    def _frames(self, sequence, modality, index):
        """One sample's features as an array [time, features] of at most the allowed length; time 0 where missing."""
        dim = getattr(self, f"{modality}_dim")
        if sequence is None:
            return np.zeros((0, dim), dtype=np.float32)
        try:
            if isinstance(sequence, bytes | bytearray | memoryview):
                # NumPy takes the bytes of a file for numbers from 0 to 255
                raise TypeError(f"it is {type(sequence).__name__}")
            if isinstance(sequence, torch.Tensor):
                # NumPy knows no bfloat16
                sequence = (sequence.float() if sequence.is_floating_point() else sequence).detach().cpu().numpy()
            if isinstance(sequence, np.ndarray) and sequence.dtype.kind == "O" and sequence.ndim == 1:
                # parquet gives an array of rows
                sequence = list(sequence)
            frames = np.asarray(sequence)
            # None among numbers makes them objects, and becomes NaN
            if frames.dtype.kind not in "biufO":
                raise TypeError(f"it holds {frames.dtype}")
            with np.errstate(over="ignore"):
                frames = frames.astype(np.float32)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{modality} must hold numbers [time, {dim}], but sample {index} does not: {error}"
            ) from None
        if frames.size == 0:
            return np.zeros((0, dim), dtype=np.float32)
        frames = frames[None] if frames.ndim == 1 else frames
        if frames.ndim != 2 or frames.shape[1] != dim:
            raise ValueError(
                f"{modality} must be [time, {dim}], but sample {index} has the shape {list(frames.shape)}"
            )
        return frames[: getattr(self, f"max_{modality}_length")]

    def _features(self, sequence, modality, index):
        """`_frames`, standardised and finite."""
        frames = self._frames(sequence, modality, index)
        if self.feature_statistics and modality in self.feature_statistics:
            statistics = self.feature_statistics[modality]
            frames = (frames - np.asarray(statistics["mean"])) / np.asarray(statistics["std"])
        frames = frames.astype(np.float32)
        finite = np.isfinite(frames)
        if not finite.all():
            if not self.replaced_values[modality]:
                logger.warning(f"{modality} of sample {index} has NaN or infinite values; such values are replaced")
            self.replaced_values[modality] += int(finite.size - finite.sum())
            frames = np.where(finite, frames, np.float32(0))
        return frames

    def _checked(self, statistics):
        for modality, fields in (statistics or {}).items():
            if modality not in MODALITIES or set(fields) != {"mean", "std"}:
                raise ValueError(
                    f"feature_statistics must hold mean and std of audio and vision, but has {statistics}"
                )
            dim = getattr(self, f"{modality}_dim")
            for name, values in fields.items():
                if len(values) != dim or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
                    raise ValueError(
                        f"feature_statistics: {name} of {modality} must be {dim} numbers (std above zero)"
                    )
        return statistics

    def _split(self, template):
        """The template as places to fill and, between them, the tokens of the fixed text."""
        counts = {name: template.count(name) for name in ("{pseudo_tokens}", "{text}")}
        if counts["{text}"] != 1 or counts["{pseudo_tokens}"] > 1:
            raise ValueError(
                f"prompt_template must have {{text}} once, and {{pseudo_tokens}} once (not at all for the fusion "
                f"'head'), but is {template!r}"
            )
        texts = self.answers.texts
        fixed = {"{low}": texts[0], "{high}": texts[-1]}
        if self.task == "classification":
            names = self.answers.labels
            fixed["{labels}"] = ", ".join(
                names if self.label_words else (f"{name}: {text}" for name, text in zip(names, texts, strict=True))
            )
        for name, text in fixed.items():
            template = template.replace(name, text)
        parts = [part for part in PLACES.split(template) if part]
        return [part if PLACES.fullmatch(part) else tuple(self._template_tokens(part)) for part in parts]

    def _template_tokens(self, text):
        # names of special tokens are these tokens: a chat format consists of them
        special = {token: self.tokenizer.convert_tokens_to_ids(token) for token in self.tokenizer.all_special_tokens}
        known = {**special, **self.tokenizer.get_vocab()}
        if unknown := [token for token in SPECIAL_LOOK.findall(text) if token not in known]:
            raise ValueError(
                f"prompt_template has {unknown[0]!r}, which is no token of this tokenizer; expected its special "
                f"tokens {list(special)}, or other words"
            )
        if not _is_mistral_common(self.tokenizer):
            return self.tokenizer(text, add_special_tokens=False).input_ids
        names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        parts = re.split(f"({names})", text) if names else [text]
        return [token for part in parts for token in ([special[part]] if part in special else self._tokens(part))]


def with_known_fields(sample, index):
    """
    A sample with its fields called as `FIELDS` are: "video" and "visual" become "vision", "acoustic" becomes "audio",
    "labels" becomes "label". What tells rows of a data set apart (`UNREAD_FIELDS`) is left out.

    Raises:
        ValueError: the sample is no dict, has a field of another name, or two that mean the same; `index` says which
            sample it is.
    """
    if not isinstance(sample, Mapping):
        raise ValueError(
            f"a sample must be a dict with the fields {', '.join(FIELDS)}, but number {index} is {sample!r}"
        )
    known = {}
    for name, value in sample.items():
        field = ALIASES.get(name, name)
        if field not in (*FIELDS, *UNREAD_FIELDS):
            raise ValueError(f"a sample may have the fields {', '.join(FIELDS)}, but number {index} has {[name]}")
        if known.get(field) is not None and value is not None:
            raise ValueError(f"sample {index} has {field!r} twice, once as another name of it; expected one")
        if field in FIELDS and known.get(field) is None:
            known[field] = value
    return known


def _is_mistral_common(tokenizer):
    return type(tokenizer).__name__ == "MistralCommonBackend"


def _as_chat(tokenizer, template):
    """A prompt template as a user's turn in the tokenizer's chat template, up to where the assistant answers."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"prompt_template is {CHAT!r}, but the tokenizer has no chat template; expected one")
    turns = [{"role": "user", "content": template}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _tokens_before_text(tokenizer):
    """The tokens that this tokenizer puts before a text (a beginning token; ChatGLM has two; Qwen none)."""
    with_special, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    for start in range(len(with_special) - len(bare) + 1):
        if with_special[start : start + len(bare)] == bare:
            return with_special[:start]
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _add_moments(moments, frames):
    """Add frames [time, features] to count, mean and sum of squared deviations [3, features] (Chan et al., 1979)."""
    finite = np.isfinite(frames)
    added = finite.sum(axis=0)
    mean = np.where(finite, frames, 0).sum(axis=0) / np.maximum(added, 1)
    squares = (np.where(finite, frames - mean, 0) ** 2).sum(axis=0)
    total = np.maximum(moments[0] + added, 1)
    difference = mean - moments[1]
    moments[2] += squares + difference**2 * moments[0] * added / total
    moments[1] += difference * added / total
    moments[0] += added


MseProcessor.register_for_auto_class()
AutoProcessor.register(MseConfig, MseProcessor, exist_ok=True)
