"""`pipeline("multimodal-sentiment")`: what a person said, how it sounded and how they looked in, a feeling out."""

from collections.abc import Iterable, Mapping
from itertools import islice
from os import PathLike

import numpy as np
import transformers
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling_mse_adapter import HUB_OPTIONS, MseForConditionalGeneration, is_peft_folder
from .processing_mse_adapter import MODALITIES, MseProcessor, with_known_fields

TASK = "multimodal-sentiment"
# of a sample that is, or holds, a clip: how it may come, and which of its seconds count
RAW_FIELDS = ("clip", "waveform", "sampling_rate", "frames", "frame_rate", "start", "end")


class MultimodalSentimentPipeline(Pipeline):
    """
    Reads sentiment intensity or emotion from a clip's words and feature sequences.

    >>> pipe = pipeline("multimodal-sentiment", model=FOLDER_OR_ID, trust_remote_code=True)
    >>> pipe({"text": "I love it", "audio": "clip_audio.npy", "vision": array})
    {'value': 1.7, 'spread': 0.6}

    >>> pipe("clip.mp4")
    {'value': 1.2, 'spread': 0.8, 'made_from': {'seconds': 3.1, 'transcript': 'I love it', ...}}

    Takes a clip (a path, bytes or a binary file object: mp4, mkv, webm, mov, avi, wav, mp3, flac, m4a, ogg, opus), a
    dict, a list of these, or any other iterable of them, such as a `datasets.Dataset` (answers then come one by one,
    as they are ready). A dict may hold
        - text (`str`): the utterance;
        - audio, vision (or video, visual): features as arrays [time, features] or [features], nested lists, or paths
          of .npy files; None or left out where missing;
        - clip: a clip as above, or, raw, waveform (array [n] or [channels, n]) with sampling_rate, and frames (uint8
          array [time, height, width, 3]) with frame_rate. What is not given of text, audio and vision is made of it,
          as the processor's `front_ends` say; start and end (seconds) choose a part;
        - context: earlier utterances, oldest first, each a text or `(speaker, text)`;
        - speaker (`str`): who says `text`.

    Args:
        speech_recognizer (`str`, *optional*): id or folder of a recognizer instead of the one that `front_ends` names,
            such as a copy of it on this machine.

    Args of a call:
        method (`str`, *optional*): how to answer, see [`MseForConditionalGeneration.predict`].
        batch_size (`int`, defaults to 1)
        explain (`bool`, defaults to False): answer without each of words, voice and face as well, in the same batch.

    Returns:
        For each sample, in regression `{"value", "spread"}` (the spread is the standard deviation of the answer under
        the model's own distribution), in classification `{"label", "score", "probabilities"}`. A head knows no
        spread. With a generating `method` there is only a value or label; where the LLM wrote no answer it is None,
        and `problem` says why. Of a clip also `made_from`: seconds, speech_seconds, frames, frames_with_face,
        transcript, which modalities were given, which are missing and went unread, and why. With `explain` also
        `without`: for each modality that there is, the answer without it, and `difference`: what the modality adds to
        the value, or to the probability of the label that was answered.

    Raises:
        ValueError: naming the field and sample, what came and what is expected.
        OSError: a file that cannot be opened.
    """

    # of a plain PEFT folder transformers looks for the processor where the LLM is: then it is found here
    _load_processor = None
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor=None, speech_recognizer=None, **kwargs):
        if processor is None:
            processor = MseProcessor.from_pretrained(
                model.name_or_path, revision=getattr(model.config, "_commit_hash", None) or "main"
            )
        super().__init__(model, processor=processor, **kwargs)
        self.model.eval()
        self.reader = processor.clip_reader(speech_recognizer)

    def _sanitize_parameters(self, method=None, explain=False):
        return {"explain": True} if explain else {}, {} if method is None else {"method": method}, {}

    def __call__(self, inputs, **kwargs):
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs
        if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | list) and not _is_clip(inputs):
            # transformers streams generators, and torch's data sets, but no other iterable
            inputs = (sample for sample in inputs)
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def preprocess(self, samples, explain=False):
        """A batch of the processor's from a list of samples; what each was made from, and what each row shows."""
        samples, made_from = zip(
            *(self.read_sample(sample, index) for index, sample in enumerate(samples)), strict=True
        )
        rows = [(sample, None) for sample in samples]
        if explain:
            rows = [(shown, left_out) for sample in samples for shown, left_out in _variants(sample)]
        batch = self.processor.collate([sample for sample, _ in rows])
        return {"batch": batch, "left_out": [left_out for _, left_out in rows], "made_from": list(made_from)}

    def _forward(self, inputs, method=None):
        return {**inputs, "predictions": self.model.predict(inputs["batch"], self.processor.answers, method)}

    def postprocess(self, outputs):
        """The predictions as dicts of numbers and strings."""
        answers, made_from = [], iter(outputs["made_from"])
        for prediction, left_out in zip(outputs["predictions"], outputs["left_out"], strict=True):
            answer = self._as_dict(prediction)
            if left_out is None:
                source = next(made_from)
                answers.append(answer if source is None else answer | {"made_from": source})
            else:
                answers[-1].setdefault("without", {})[left_out] = answer | _difference(answers[-1], answer)
        return answers

    def run_single(self, inputs, *params):
        return super().run_single([inputs], *params)[0]

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        # transformers pads samples that were prepared one by one; ours are padded where they are prepared, as a batch
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        samples, done = iter(inputs), 0
        while chunk := list(islice(samples, batch_size)):
            try:
                answers = super().run_single(chunk, preprocess_params, forward_params, postprocess_params)
            except ValueError as error:
                if not done:
                    raise
                raise ValueError(f"{error} (counted from number {done} of all)") from error
            yield from answers
            done += len(chunk)

    def save_pretrained(self, save_directory, **kwargs):
        """Model, processor, pipeline and their code as a folder that `pipeline(model=folder)` loads anywhere."""
        type(self.model.config).register_for_auto_class()
        type(self.model).register_for_auto_class("AutoModel")
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def read_conversation(self, clip, turns, **options):
        """
        A video or recording of people who take turns: each turn with the earlier ones as its context.

        Args:
            clip: a path, bytes or a binary file object.
            turns (`Iterable[dict]`): start, end (seconds) and speaker, in order; text where it is known.
            options: of a call, such as `method`.

        Returns:
            `list[dict]`: for each turn start, end, speaker and text (given or heard), and its answer.
        """
        clip = clip.read() if hasattr(clip, "read") else clip
        spoken, answers = [], []
        for number, turn in enumerate(turns):
            if unknown := set(turn) - {"start", "end", "speaker", "text"}:
                raise ValueError(f"a turn has start, end, speaker and text, but number {number} has {sorted(unknown)}")
            if lacks := [name for name in ("start", "end") if turn.get(name) is None]:
                raise ValueError(f"turn {number} has no {' and no '.join(lacks)}; expected seconds")
            sample = {name: value for name, value in turn.items() if value is not None}
            answer = self({"clip": clip, **sample, "context": list(spoken)}, **options)
            text = turn.get("text")
            text = answer["made_from"].get("transcript", "") if text is None else text
            speaker = turn.get("speaker")
            spoken.append((speaker, text) if speaker else text)
            answers.append({"start": turn["start"], "end": turn["end"], "speaker": speaker, "text": text, **answer})
        return answers

    def _as_dict(self, prediction):
        answers = self.processor.answers
        if answers.task == "regression":
            answer = {"value": prediction.value, "spread": prediction.spread}
        else:
            answer = {"label": None if prediction.value is None else answers.labels[prediction.value]}
            if prediction.probabilities is not None:
                answer["score"] = prediction.probabilities[prediction.value]
                answer["probabilities"] = dict(zip(answers.labels, prediction.probabilities, strict=True))
        answer["problem"] = prediction.problem
        return {name: value for name, value in answer.items() if value is not None or name in ("value", "label")}

    def read_sample(self, sample, index=0):
        """A sample with its files and its clip read, as the processor takes it; what it was made from, or None."""
        sample = {"clip": sample} if _is_clip(sample) else sample
        raw = {}
        if isinstance(sample, Mapping):
            raw = {name: sample[name] for name in RAW_FIELDS if sample.get(name) is not None}
            sample = {name: value for name, value in sample.items() if name not in RAW_FIELDS}
        # a row of a data set may be passed as it is: its label is not read
        sample = {name: value for name, value in with_known_fields(sample, index).items() if name != "label"}
        sample = _with_files_read(sample, index)
        trained_on = self.processor.modalities or ("text", *MODALITIES)
        given = [name for name in ("text", *MODALITIES) if sample.get(name) is not None]
        unread = {name: "the model was not trained on it" for name in given if name not in trained_on}
        for name in unread:
            sample[name] = None
        if "text" not in trained_on:
            sample |= {"text": "", "context": None, "speaker": None}
        if not raw:
            return sample, ({"given": given, "unread": unread} if unread else None)
        front_ends = self.processor.front_ends or {}
        wanted = []
        for name in ("text", *MODALITIES):
            if name not in trained_on:
                unread.setdefault(name, "the model was not trained on it")
            elif name not in given:
                if name == "text" or name in front_ends:
                    wanted.append(name)
                else:
                    unread[name] = "the model's features of it are not made of clips (its front_ends name none)"
        features = self.reader.read(wanted=wanted, **_checked_raw(raw, index))
        if "text" in trained_on and sample.get("text") is None:
            sample["text"] = features.text
        for name in MODALITIES:
            if name in wanted:
                sample[name] = getattr(features, name).values
        made_from = features.made_from | ({"given": given} if given else {}) | ({"unread": unread} if unread else {})
        return sample, made_from


def _is_clip(sample):
    return isinstance(sample, str | PathLike | bytes | bytearray) or hasattr(sample, "read")


def _checked_raw(raw, index):
    """The raw fields by the names that `ClipReader.read` takes."""
    ways = [name for name in ("clip", "waveform", "frames") if name in raw]
    if not ways or ("clip" in ways and len(ways) > 1):
        raise ValueError(
            f"sample {index} has {sorted(raw)}; expected a clip, or waveform with sampling_rate and frames with "
            "frame_rate"
        )
    for name in ("start", "end"):
        value = raw.get(name, 0.0)
        if "clip" not in ways and name in raw:
            raise ValueError(f"sample {index} has {name}, which chooses a part of a clip, but no clip")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
            raise ValueError(f"{name} of sample {index} is {value!r}; expected seconds")
    fields = dict(raw)
    return ({"source": fields.pop("clip")} if "clip" in ways else {}) | fields


def _with_files_read(sample, index):
    for modality in MODALITIES:
        if isinstance(sample.get(modality), str | PathLike):
            path = sample[modality]
            try:
                sample[modality] = np.load(path, allow_pickle=False)
                if not isinstance(sample[modality], np.ndarray):
                    raise ValueError("it is an archive of several arrays")
            except (ValueError, EOFError) as error:
                raise ValueError(
                    f"{modality} of sample {index}: {path} is no .npy file of numbers: {error} (a video or sound file "
                    "is given as 'clip')"
                ) from None
    return sample


def _variants(sample):
    """The sample, and it without each of the modalities that it has: (sample, name of what is left out)."""
    yield sample, None
    for name in ("text", *MODALITIES):
        value = sample.get(name)
        if value is not None and len(value):
            yield sample | {name: "" if name == "text" else None}, name


def _difference(answer, without):
    """What a modality added to the value, or to the probability of the label that was answered."""
    if "probabilities" in answer and "probabilities" in without:
        return {"difference": answer["score"] - without["probabilities"][answer["label"]]}
    if answer.get("value") is not None and without.get("value") is not None:
        return {"difference": answer["value"] - without["value"]}
    return {}


class AutoModel(transformers.AutoModel):
    """transformers' AutoModel, which also loads a plain PEFT folder of an MSE-Adapter. (Its name is what a saved
    pipeline says of its model, and that is transformers' own there.)"""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        options = {name: kwargs[name] for name in (*HUB_OPTIONS, "revision", "subfolder") if kwargs.get(name)}
        if not is_peft_folder(pretrained_model_name_or_path, options):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("code_revision", None)
        return MseForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, MultimodalSentimentPipeline, pt_model=AutoModel, type="multimodal")
