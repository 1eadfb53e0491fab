"""A recording in, findings out: the pipeline behind `pipeline("ecg-classification", ...)`."""

from collections import Counter
from itertools import islice, pairwise, takewhile
from pathlib import Path
from types import GeneratorType

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .attribution import Attribution, integrated_gradients, looked_at
from .configuration_ecgmamba import EcgMambaConfig, is_whole
from .feature_extraction_ecgmamba import EcgMambaFeatureExtractor
from .measurements import MOST_SECONDS, measure
from .modeling_ecgmamba import EcgMambaForSequenceClassification
from .plotting import PAGE_SECONDS, plot_recording
from .recording import Recordings
from .statements import in_words

TASK = "ecg-classification"
# how the windows' scores become the recording's: a finding is present if it is found anywhere, while one of many
# labels and a measured number are those of the recording on the whole
POOLING = {"multi_label_classification": "max", "single_label_classification": "mean", "regression": "mean"}
BATCH_SIZE = 16
MOST_WINDOW_NOTES = 8


class EcgClassificationPipeline(Pipeline):
    """
    Classifies ECG recordings of any length, in memory that does not grow with it.

    A recording is a path (every format of `open_recording`), an array, a dict (array, sampling_rate, leads, units), a
    `Recording`; a list, generator or dataset of them gives a list or an iterator of results. Of a file that holds many
    recordings, `record` chooses one, and what [`~EcgClassificationPipeline.recordings`] returns is a list of all.
    A result is

        {"findings": [{"label", "score", "present"}, ...],          highest score first
         "timeline": [{"start", "end", "label", "score"}, ...],     seconds; empty where one window holds it all
         "notes": [str, ...],                                       what was done to the recording to read it
         "refused": str or None}                                    why nothing is found in it

    A label that PTB-XL knows also has its `name` in words and its `group`. With `measurements=True`, the result holds
    `measurements`, as [`~measurements.measure`] returns them: heart rate, intervals, axis, quality of the leads.

    `present` is, by `config.problem_type`: multi_label_classification, the score reaches the label's threshold;
    single_label_classification, the label is the likeliest; regression, None, and the score is the number itself.

    A long recording is read in the overlapping windows of the feature extractor. Its score for a label is the highest
    of its windows' (several labels) or their mean (one of many; numbers), unless `config.window_pooling` says how the
    thresholds were tuned on records of several windows. In the timeline each window speaks for the time around its
    centre, up to half way to its neighbours' centres; a label's neighbouring stretches are joined under their highest
    score.

    A recording that is probably not what it is said to be (every lead flat, amplitudes that no heart makes, limb leads
    that contradict one another) has no findings, and `refused` says why; so have windows of a long one, and the notes
    count them. `on_doubt="note"` insists: findings, and the reason beside them.

    Args, at construction or call:
        batch_size (`int`, defaults to 16): windows that pass through the model at once, of one recording or several.
        thresholds (`float` or `list[float]`, *optional*): in place of the config's (0.5 where it has none).
        top_k (`int`, *optional*): how many findings to return; all by default.
        window_pooling (`"max"` or `"mean"`, *optional*): in place of the default above.
        sampling_rate, leads, units: of recordings that do not state them, as `open_recording` takes them.
        record (`str` or `int`, *optional*): which one, of a file that holds many.
        on_doubt (`"refuse"` or `"note"`, defaults to refuse): see above.
        trusted (`bool`, defaults to True): False for recordings that strangers send, as `open_recording` takes it.
        measurements (`bool`, defaults to False): whether to measure the recording's first minute (needs neurokit2).
        progress (`bool`, defaults to False): whether to show a bar.

    Raises:
        ValueError: for a recording that cannot be read as this model needs it, or arguments out of range.
        OSError: for a missing file.
    """

    _load_feature_extractor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._batch_size is None:
            self._batch_size = BATCH_SIZE  # transformers would take one window at a time
        if self.problem_type is None:
            expected = f"one of {', '.join(POOLING)} for {self.model.config.num_labels} labels"
            raise ValueError(f"config.problem_type is None; expected {expected}")
        if self.feature_extractor is None:
            raise ValueError("feature_extractor is None; expected an EcgMambaFeatureExtractor")
        self.model.eval()

    @property
    def problem_type(self):
        config = self.model.config
        return config.problem_type or ("regression" if config.num_labels == 1 else None)

    def _sanitize_parameters(self, **parameters):
        def taken(*names):
            return {name: parameters.pop(name) for name in names if parameters.get(name) is not None}

        reading = taken("sampling_rate", "leads", "units", "record", "on_doubt", "trusted", "measurements", "progress")
        judging = taken("thresholds", "top_k", "window_pooling")
        parameters = {name: value for name, value in parameters.items() if value is not None}
        if parameters:
            raise ValueError(f"{', '.join(parameters)}: no such argument of the {TASK} pipeline")
        if not is_whole(judging.get("top_k", 1)):
            raise ValueError(f"top_k is {judging['top_k']!r}; expected a whole number of at least 1")
        if judging.get("window_pooling", "max") not in ("max", "mean"):
            raise ValueError(f'window_pooling is {judging["window_pooling"]!r}; expected "max" or "mean"')
        if "thresholds" in judging:
            judging["thresholds"] = self._checked_thresholds(judging["thresholds"])
        return reading, {}, judging

    def _checked_thresholds(self, thresholds):
        num_labels = self.model.config.num_labels
        if self.problem_type != "multi_label_classification":
            raise ValueError(f"thresholds is {thresholds!r}; expected none for a {self.problem_type}")
        values = np.asarray(thresholds)
        if values.ndim > 1 or values.size not in (1, num_labels) or values.dtype.kind not in "fiu":
            raise ValueError(f"thresholds is {thresholds!r}; expected a number or {num_labels}, one for each label")
        if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
            raise ValueError(f"thresholds is {thresholds!r}; expected probabilities, in [0, 1]")
        return np.broadcast_to(values, (num_labels,))

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, (GeneratorType, torch.utils.data.Dataset)):
            return super().__call__(inputs, **kwargs)
        if getattr(inputs, "ndim", None) == 3 and kwargs.get("record") is None:
            given = {name: kwargs[name] for name in ("sampling_rate", "leads", "units", "trusted") if name in kwargs}
            inputs = self.recordings(inputs, **given)
        if isinstance(inputs, Recordings):
            return list(super().__call__((recording for recording in inputs), **kwargs))
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(inputs), **kwargs) if inputs else []
        (result,) = super().__call__([inputs], **kwargs)
        return result

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        if num_workers:
            raise ValueError(f"num_workers is {num_workers}; expected 0: run more processes to read with more")
        for outputs in self._scored(inputs, batch_size, preprocess_params, forward_params):
            yield self._result(outputs, **postprocess_params)

    def _scored(self, recordings, batch_size, preprocess_params, forward_params):
        """
        Scored windows and notes of each recording, in order. Batches are filled across recordings; no more than one
        batch of signal is held at once.
        """
        batch_size = self._batch_size if batch_size is None else batch_size
        if not is_whole(batch_size):
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        sized = hasattr(recordings, "__len__")  # a torch dataset has no other way to say where it ends
        sources = (recordings[index] for index in range(len(recordings))) if sized else recordings
        preprocess_params = dict(preprocess_params)
        measurements = preprocess_params.pop("measurements", False)
        waiting, batch = [], []
        for recording in sources:
            windows, show_progress = self.preprocess(recording, **preprocess_params)
            waiting.append(ScoredRecording(windows))
            if measurements:
                waiting[-1].measurements = measure_recording(windows.recording)
            bar = logging.tqdm(windows, total=len(windows), disable=not show_progress, desc=windows.recording.name)
            for window in bar:
                if waiting[-1].leaves_out(window):
                    continue
                batch.append((waiting[-1], window))
                if len(batch) == batch_size:
                    self._score(batch, forward_params)
                    batch = []
                    # windows come in order: every recording before this one is complete
                    yield from waiting[:-1]
                    waiting = waiting[-1:]
        if batch:
            self._score(batch, forward_params)
        yield from waiting

    def _score(self, batch, forward_params):
        """Fills the scores of (recording, window) pairs into their recordings."""
        scores = self.forward(collate([window for _, window in batch]), **forward_params)["scores"].numpy()
        for (recording, window), of_window in zip(batch, scores, strict=True):
            recording.add(window, of_window)

    def recordings(self, source, **reading):
        """All recordings of a source that holds many, such as CODE-15's HDF5: a list of `RecordingFile` with `names`,
        which a call takes and `open_recordings` describes; `reading` is its sampling_rate, leads, units, trusted."""
        names = ("sampling_rate", "leads", "units", "trusted")
        known = {name: value for name, value in self._preprocess_params.items() if name in names}
        return self.feature_extractor.recordings(source, **{**known, **reading})

    def preprocess(self, recording, progress=False, **reading):
        """Opens a recording: its windows, not yet read, and whether a bar shall follow them."""
        windows = self.feature_extractor.windows(recording, on_gap="skip", **reading)
        if len(windows) == 1:
            # in a long recording a stretch without signal costs its windows, in a short one it is an error
            windows.on_gap = "raise"
        return windows, progress

    def _forward(self, batch):
        """Scores [windows, num_labels] in float32: probabilities, or numbers for a regression."""
        logits = self.model(**batch).logits.float()
        if self.problem_type == "multi_label_classification":
            return {"scores": logits.sigmoid()}
        return {"scores": logits if self.problem_type == "regression" else logits.softmax(-1)}

    def _result(self, recording, **judging):
        result = self.postprocess(recording, **judging)
        return result if recording.measurements is None else {**result, "measurements": recording.measurements}

    def postprocess(self, recording, thresholds=None, top_k=None, window_pooling=None):
        """A scored recording -> its findings, timeline and notes."""
        if recording.refused is not None and recording.on_doubt == "refuse":
            return {"findings": [], "timeline": [], "notes": recording.notes(), "refused": recording.refused}
        scores = recording.scores
        window_pooling = window_pooling or self.model.config.window_pooling or POOLING[self.problem_type]
        pooled = getattr(scores, window_pooling)(axis=0)
        order = [int(index) for index in np.argsort(-pooled, kind="stable")[:top_k]]
        present = self._present(pooled[None], thresholds)[0]
        labels = self.model.config.id2label
        findings = [
            {
                "label": labels[index],
                **described(labels[index]),
                "score": float(pooled[index]),
                "present": present[index],
            }
            for index in order
        ]
        timeline = []
        if recording.num_windows > 1:
            found = self._present(scores, thresholds)
            for index in order:
                for stretch in joined(recording.stretches(), scores[:, index].tolist(), found[:, index]):
                    timeline.append({"label": labels[index], **stretch})
            timeline.sort(key=lambda stretch: stretch["start"])
        return {"findings": findings, "timeline": timeline, "notes": recording.notes(), "refused": recording.refused}

    def _present(self, scores, thresholds):
        """Which of the scores [windows, num_labels] are findings: bool, or None for numbers."""
        if self.problem_type == "regression":
            return np.full(scores.shape, None)
        if self.problem_type == "single_label_classification":
            return (np.arange(scores.shape[1]) == scores.argmax(axis=1, keepdims=True)).astype(object)
        if thresholds is None:
            thresholds = self._checked_thresholds(self.model.config.thresholds or 0.5)
        return (scores >= thresholds).astype(object)

    def explain(self, recording, label=None, **reading):
        """
        What the model looked at for one label: integrated gradients over a page of 10 s around the window that scores
        highest for it, the mean over windows where they overlap.

        Args:
            recording, reading: as in a call.
            label (`str`, *optional*): by default the finding that is present with the highest score, or, where none
                is, the label with the highest.

        Returns:
            `Attribution`, as [`plot_recording`] takes it.

        Raises:
            ValueError: for a recording in which nothing is found, for the reason that `refused` gives.
        """
        reading, _, _ = self._sanitize_parameters(**reading)
        windows, scored = self._read_and_score(recording, reading)
        if scored.refused is not None and scored.on_doubt == "refuse":
            raise ValueError(f'{windows.recording.name}: no findings: {scored.refused} (on_doubt="note" insists)')
        return self._explain(windows, scored, label or most_notable(self.postprocess(scored)["findings"]))

    def plot(self, recording, path=None, label=None, batch_size=None, **arguments):
        """
        Classifies a recording and draws it on ECG paper, with what the model looked at for one label.

        Args:
            path (`str` or `Path`, *optional*): where to save the picture (.png, .pdf, .svg).
            label (`str`, *optional*): as in [`~EcgClassificationPipeline.explain`].
            batch_size, arguments: as in a call.

        Returns:
            `dict`, `matplotlib.figure.Figure`: the result of a call, and the picture.
        """
        reading, _, judging = self._sanitize_parameters(**arguments)
        judging = {**self._postprocess_params, **judging}
        windows, scored = self._read_and_score(recording, reading, batch_size)
        result = self._result(scored, **judging)
        attribution = None
        if result["findings"]:
            attribution = self._explain(windows, scored, label or most_notable(result["findings"]))
        figure = plot_recording(
            windows.recording,
            result["findings"],
            attribution,
            path,
            timeline=result["timeline"],
            notes=result["notes"],
            refused=result["refused"],
            measurements=result.get("measurements"),
        )
        return result, figure

    def _read_and_score(self, recording, reading, batch_size=None):
        reading = {**self._preprocess_params, **reading}
        measurements = reading.pop("measurements", False)
        windows, progress = self.preprocess(recording, **reading)
        reading = {"progress": progress, "on_doubt": windows.on_doubt, "measurements": measurements}
        (scored,) = self._scored([windows.recording], batch_size, reading, {})
        return windows, scored

    def _explain(self, windows, scored, label):
        labels = self.model.config.label2id
        if label not in labels:
            raise ValueError(f"label is {label!r}; expected one of {', '.join(labels)}")
        rate = self.feature_extractor.sampling_rate
        start, end = scored.page_around(int(scored.scores[:, labels[label]].argmax()))
        contributions = torch.zeros(len(self.feature_extractor.leads), round((end - start) * rate))
        counts = torch.zeros(contributions.shape[1])
        for window in takewhile(lambda window: window.start < end, windows):
            if window.doubt is not None and windows.on_doubt == "refuse":
                continue
            first = round((window.start - start) * rate)
            real = slice(max(0, -first), min(int(window.attention_mask.sum()), len(counts) - first))
            if real.start >= real.stop:
                continue
            with self.device_placement():
                inputs = self.ensure_tensor_on_device(**collate([window]))
                of_window = integrated_gradients(self.model, label_index=labels[label], **inputs).cpu()
            contributions[:, first + real.start : first + real.stop] += of_window[:, real]
            counts[first + real.start : first + real.stop] += 1
        weights = looked_at(contributions / counts.clamp(min=1), rate)
        return Attribution(label, self.feature_extractor.leads, weights, start, rate)


def load_pipeline(model, revision="main", device=None, **arguments):
    """
    The pipeline of a published folder or repository, run by this package's code rather than by what the folder brings.

    Args:
        model (`str`), revision (`str`): folder or Hub id; branch, tag or commit of the latter.
        device (`str`, `torch.device` or `int`, *optional*): the accelerator by default, where there is one.
        arguments: of [`EcgClassificationPipeline`].

    Raises:
        ValueError: for a model of another kind, or a device that is not there.
        OSError: where there is no such model.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no config.json; expected the folder of an ECGMamba")
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) > 2):
        raise FileNotFoundError(f"{model}: no such folder, and no repository of the Hub is called so")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {device!r}: {error}") from error
    config, expected = EcgMambaConfig.get_config_dict(model, revision=revision)[0], "EcgMambaForSequenceClassification"
    held = config.get("architectures") or [f"a model of type {config.get('model_type')}"]
    if held != [expected]:  # masked modelling's weights would load too, beside a head that knows nothing
        raise ValueError(f"{model} holds {held[0]}; expected {expected}, an ECGMamba that was trained to classify")
    network = EcgMambaForSequenceClassification.from_pretrained(model, revision=revision)
    extractor = EcgMambaFeatureExtractor.from_pretrained(model, revision=revision)
    return EcgClassificationPipeline(model=network, feature_extractor=extractor, device=device, **arguments)


class ScoredRecording:
    """What a recording's windows said so far."""

    measurements = None  # as `measure` returns them, where they were asked for

    def __init__(self, windows):
        self.num_windows, self.duration = len(windows), windows.recording.duration
        self.spans, self._scores = [], None  # seconds (start, end) and scores [num_labels] of each window
        self._name, self._notes, self._of_windows = windows.recording.name, windows.notes, {}
        self.on_doubt, self._doubts = windows.on_doubt, []  # (doubt, start) of windows in doubt

    def leaves_out(self, window):
        """Whether a window is not to be scored, for a doubt; each is to be asked for once, in order."""
        if window.doubt is not None:
            self._doubts.append((window.doubt, window.start))
        if window.doubt is None or self.on_doubt == "note":
            return False
        self._add_notes(window)
        return True

    @property
    def refused(self):
        """Why nothing should be found in the recording: doubts in every window, or of the recording as a whole in half
        of them; else None."""
        num_looked_at = len(self.spans) + (len(self._doubts) if self.on_doubt == "refuse" else 0)
        of_all = [doubt for doubt, _ in self._doubts if doubt.of_all]
        if not self._doubts or (2 * len(of_all) < num_looked_at and len(self._doubts) < num_looked_at):
            return None
        return (of_all or [doubt for doubt, _ in self._doubts])[0].reason

    def add(self, window, scores):
        if self._scores is None:
            # room for all: small arrays that stay, strewn among the batches' large ones, would split up the heap
            self._scores = np.empty((self.num_windows, len(scores)), np.float32)
        self._scores[len(self.spans)] = scores
        self.spans.append((window.start, window.end))
        self._add_notes(window)

    def _add_notes(self, window):
        for note in window.notes:
            if note not in self._notes:
                self._of_windows.setdefault(note, []).append(window.start)

    @property
    def scores(self):
        """float32 [windows, num_labels]"""
        if not self.spans:
            raise ValueError(f"{self._name}: each of its {self.num_windows} windows has a gap too long to fill")
        return self._scores[: len(self.spans)]

    def stretches(self):
        """
        The time (start, end) that each window speaks for: around its centre, up to half way to the centres of its
        neighbours, but not beyond the window (where a gap lies between two of them).
        """
        centres = [(start + end) / 2 for start, end in self.spans]
        between = [(left + right) / 2 for left, right in pairwise(centres)]
        starts = [self.spans[0][0], *map(max, between, (start for start, _ in self.spans[1:]))]
        ends = [*map(min, between, (end for _, end in self.spans)), self.spans[-1][1]]
        return list(zip(starts, ends, strict=True))

    def page_around(self, index):
        """The time (start, end) of at most a page that shows a window in its middle."""
        start, end = self.spans[index]
        start = max(0.0, min((start + end - PAGE_SECONDS) / 2, self.duration - PAGE_SECONDS))
        return start, min(start + PAGE_SECONDS, self.duration)

    def notes(self):
        """Each note once; those of single windows of a long recording with how many there were and the first."""
        doubts = [reason for reason, _ in Counter(doubt.reason for doubt, _ in self._doubts).most_common()]
        if self.num_windows == 1:
            return [*self._notes, *self._of_windows, *doubts]
        notes = list(self._notes)
        left_out = len(self._doubts) if self.on_doubt == "refuse" else 0
        if len(self.spans) + left_out < self.num_windows:
            notes.append(
                f"left out: {self.num_windows - len(self.spans) - left_out} of {self.num_windows} windows, for their "
                "gaps"
            )
        if doubts:
            done, start = "left out" if left_out else "in doubt", self._doubts[0][1]
            notes.append(
                f"{done}: {len(self._doubts)} of {self.num_windows} windows, the first at {start:.0f} s: {doubts[0]}"
                + (f"; and {len(doubts) - 1} other reasons" if len(doubts) > 1 else "")
            )
        for note, starts in islice(self._of_windows.items(), MOST_WINDOW_NOTES):
            notes.append(f"{note} ({len(starts)} of {self.num_windows} windows, the first at {starts[0]:.0f} s)")
        if len(self._of_windows) > MOST_WINDOW_NOTES:
            notes.append(f"and {len(self._of_windows) - MOST_WINDOW_NOTES} more notes on single windows")
        return notes


def described(label):
    """What a finding says of its label: with its name and group, where PTB-XL knows it."""
    name, group = in_words(label)
    return {"label": label} if group is None else {"label": label, "name": name, "group": group}


def measure_recording(recording):
    """The measurements of a recording's first minute."""
    page = recording.read(0, min(recording.num_samples, round(MOST_SECONDS * recording.sampling_rate)))
    return measure(page.signal, recording.sampling_rate, page.leads)


def collate(windows):
    """Windows -> a batch of tensors; masks only where something is masked: the model is faster without."""
    batch = {"input_values": torch.from_numpy(np.stack([window.input_values for window in windows]))}
    for name in ("attention_mask", "lead_mask"):
        mask = np.stack([getattr(window, name) for window in windows])
        if not mask.all():
            batch[name] = torch.from_numpy(mask)
    return batch


def most_notable(findings):
    """The label of the first finding that is present, or of the first."""
    return next((found["label"] for found in findings if found["present"]), findings[0]["label"])


def joined(stretches, scores, found):
    """
    The stretches of one label, as dicts of start, end (seconds) and score: those with the finding that touch are one,
    under the highest score. Where found is None, each keeps its own number.
    """
    entries = []
    for (start, end), score, is_found in zip(stretches, scores, found, strict=True):
        if is_found and entries and entries[-1]["end"] == start:
            entries[-1].update(end=end, score=max(entries[-1]["score"], score))
        elif is_found or is_found is None:
            entries.append({"start": start, "end": end, "score": score})
    return entries


IMPLEMENTATION = {
    "impl": EcgClassificationPipeline, "pt": (AutoModelForSequenceClassification,), "type": "multimodal"
}  # fmt: skip
# Not by register_pipeline, which would let the copy of this file that came last, such as remote code, take the task
# over from the first. Pipeline.save_pretrained reads _registered_impl.
PIPELINE_REGISTRY.supported_tasks.setdefault(TASK, IMPLEMENTATION)
EcgClassificationPipeline._registered_impl = {TASK: IMPLEMENTATION}
