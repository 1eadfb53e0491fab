"""`pipeline("multimodal-sentiment")`: what a person said, how it sounded and how they looked in, a feeling out."""

from collections.abc import Iterable, Mapping
from itertools import islice
from os import PathLike

import numpy as np
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .processing_mse_adapter import MODALITIES, with_known_fields

TASK = "multimodal-sentiment"


class MultimodalSentimentPipeline(Pipeline):
    """
    Reads sentiment intensity or emotion from a clip's words and feature sequences.

    >>> pipe = pipeline("multimodal-sentiment", model=FOLDER_OR_ID, trust_remote_code=True)
    >>> pipe({"text": "I love it", "audio": "clip_audio.npy", "vision": array})
    {'value': 1.7, 'spread': 0.6}

    Takes a dict, a list of dicts, or any other iterable of them, such as a `datasets.Dataset` (answers then come one
    by one, as they are ready):
        - text (`str`): the utterance;
        - audio, vision (or video, visual): arrays [time, features] or [features], nested lists, or paths of .npy
          files; None or left out where missing;
        - context: earlier utterances, oldest first, each a text or `(speaker, text)`;
        - speaker (`str`): who says `text`.

    Args of a call:
        method (`str`, *optional*): how to answer, see [`MseForConditionalGeneration.predict`].
        batch_size (`int`, defaults to 1)

    Returns:
        For each sample, in regression `{"value", "spread"}` (the spread is the standard deviation of the answer under
        the model's own distribution), in classification `{"label", "score", "probabilities"}`. A head knows no
        spread. With a generating `method` there is only a value or label; where the LLM wrote no answer it is None,
        and `problem` says why.

    Raises:
        ValueError: naming the field and sample, what came and what is expected.
        OSError: a file that cannot be opened.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor, **kwargs):
        super().__init__(model, processor=processor, **kwargs)
        self.model.eval()

    def _sanitize_parameters(self, method=None):
        return {}, {} if method is None else {"method": method}, {}

    def __call__(self, inputs, **kwargs):
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs
        if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | list | str):
            # transformers streams generators, and torch's data sets, but no other iterable
            inputs = (sample for sample in inputs)
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def preprocess(self, samples):
        """A batch of the processor's from a list of samples."""
        return self.processor.collate([_opened(sample, index) for index, sample in enumerate(samples)])

    def _forward(self, batch, method=None):
        return self.model.predict(batch, self.processor.answers, method)

    def postprocess(self, predictions):
        """The predictions as dicts of numbers and strings."""
        return [self._as_dict(prediction) for prediction in predictions]

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


def _opened(sample, index):
    """A sample with its .npy files read and without its label."""
    # a row of a data set may be passed as it is: its label is not read
    sample = {name: value for name, value in with_known_fields(sample, index).items() if name != "label"}
    for modality in MODALITIES:
        if isinstance(sample.get(modality), str | PathLike):
            path = sample[modality]
            try:
                sample[modality] = np.load(path, allow_pickle=False)
                if not isinstance(sample[modality], np.ndarray):
                    raise ValueError("it is an archive of several arrays")
            except (ValueError, EOFError) as error:
                raise ValueError(f"{modality} of sample {index}: {path} is no .npy file of numbers: {error}") from None
    return sample


if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, MultimodalSentimentPipeline, pt_model=AutoModel, type="multimodal")
