"""From rows of a data set to what the processor collates: conversation, withheld modalities, augmentation, order."""

from collections import defaultdict

import numpy as np
import torch

from training.data.msa_samples import MODALITIES


def earlier_utterances(dataset, num_utterances):
    """What was said before each sample in its dialogue.

    Args:
        dataset (Dataset): with dialogue_id, utterance_id, speaker and text; in any order.
        num_utterances (int): at most this many, the nearest.

    Returns:
        list[list[tuple[str, str]]]: for each row (speaker, text), oldest first; the speaker is "" where unknown.
    """
    columns = {name: list(dataset[name][:]) for name in ("dialogue_id", "utterance_id", "speaker", "text")}
    if len(set(columns["dialogue_id"])) == len(dataset) > 1:
        raise ValueError(
            f"num_context_utterances is {num_utterances}, but no two samples share a dialogue_id; "
            "expected 0 or a data set of dialogues"
        )
    dialogues = defaultdict(list)
    for row, dialogue_id in enumerate(columns["dialogue_id"]):
        dialogues[dialogue_id].append(row)
    earlier = [[] for _ in range(len(dataset))]
    for rows in dialogues.values():
        rows.sort(key=lambda row: columns["utterance_id"][row])
        for place, row in enumerate(rows):
            before = rows[max(0, place - num_utterances) : place]
            earlier[row] = [(str(columns["speaker"][other]), str(columns["text"][other])) for other in before]
    return earlier


class MsaSamples(torch.utils.data.Dataset):
    """
    Samples as `MseProcessor.collate` takes them: text, audio, vision, label, in a conversation speaker and context.

    Indexed by a row, or by the pairs (row, epoch) of [`EpochSampler`], which are augmented. The id never goes in: some
    data sets spell the label out in it.

    Args:
        dataset (Dataset): as the loaders give it, in numpy format.
        num_context_utterances (int): 0 leaves out the conversation and the speaker.
        withhold (Sequence[str]): of text, audio and vision, what no sample shows.
        augmentation (FeatureAugmentation, optional): for pairs.
        feature_statistics (dict, optional): `MseProcessor.feature_statistics`, by which it augments.
        swap_vision (float): probability that a pair shows the face of another sample with the same label, so that
            the voice of one speaker meets the face of another.
        seed (int): of all that is random, together with epoch and row.
        modality_dropout (float): probability that a pair lacks its audio, and that it lacks its vision.

    Attributes:
        llm_states (torch.Tensor, optional): [samples, layers, hidden_size], handed out with the samples once set, see
            training/llm_states.py.
    """

    def __init__(
        self,
        dataset,
        num_context_utterances=0,
        withhold=(),
        augmentation=None,
        feature_statistics=None,
        swap_vision=0.0,
        seed=0,
        modality_dropout=0.0,
    ):
        unknown = set(withhold) - {"text", *MODALITIES}
        if unknown:
            raise ValueError(f"withhold takes text, audio and vision, not {', '.join(sorted(unknown))}")
        self.columns = dataset.select_columns(["text", *MODALITIES, "label", "speaker"])
        self.steps = dataset.select_columns([f"{modality}_steps" for modality in MODALITIES])
        self.withhold = withhold
        self.augmentation, self.feature_statistics = augmentation, feature_statistics
        self.swap_vision, self.modality_dropout, self.seed = swap_vision, modality_dropout, seed
        self.llm_states = None
        self.labels, self.rows_of_label = [str(label) for label in dataset["label"]], defaultdict(list)
        for row, label in enumerate(self.labels):
            self.rows_of_label[label].append(row)
        self.context = earlier_utterances(dataset, num_context_utterances) if num_context_utterances else None

    def __len__(self):
        return len(self.columns)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        pairs = [index if isinstance(index, tuple) else (index, None) for index in indices]
        rows = self.columns.__getitems__([row for row, _ in pairs])
        generators = [
            None if epoch is None else np.random.default_rng((self.seed, epoch, row)) for row, epoch in pairs
        ]
        swapped = {
            place: int(generators[place].choice(self.rows_of_label[self.labels[row]]))
            for place, (row, epoch) in enumerate(pairs)
            if epoch is not None and generators[place].random() < self.swap_vision
        }
        if swapped:
            others = self.columns.__getitems__(list(swapped.values()))
            for place, other in zip(swapped, others, strict=True):
                rows[place]["vision"] = other["vision"]
        return [
            self._sample(row, pair[0], generator) for row, pair, generator in zip(rows, pairs, generators, strict=True)
        ]

    def _sample(self, row, index, generator):
        label = row["label"]
        sample = {"label": str(label) if isinstance(label, str) else float(label)}
        for modality in MODALITIES:
            values = row[modality]
            if generator is not None and self.augmentation is not None:
                values = self.augmentation(values, modality, self.feature_statistics, generator)
            sample[modality] = values if len(values) and modality not in self.withhold else None
            if generator is not None and self.modality_dropout and generator.random() < self.modality_dropout:
                sample[modality] = None
        if self.llm_states is not None:
            sample["llm_states"] = self.llm_states[index]
        return sample | self._words(index, row["text"], row["speaker"])

    def words(self):
        """What every sample says: list[dict] with text and, in a conversation, context and speaker."""
        pairs = zip(self.columns["text"][:], self.columns["speaker"][:], strict=True)
        return [self._words(index, *pair) for index, pair in enumerate(pairs)]

    def _words(self, index, text, speaker):
        """Text and, in a conversation, context and speaker; earlier utterances are withheld with the text."""
        shown = "text" not in self.withhold
        words = {"text": str(text) if shown else ""}
        if self.context is not None:
            words |= {"context": self.context[index] if shown else [], "speaker": str(speaker)}
        return words

    def costs(self, processor, model):
        """What each sample costs in a forward pass, about: multiply-adds of the LLM for every token of the prompt and
        of the encoders' LSTMs for every step of audio and vision. (Attention, which is small at such lengths, is left
        out.)

        Args:
            processor (MseProcessor), model (MseForConditionalGeneration).

        Returns:
            np.ndarray float64 [samples].
        """
        costs = np.array([processor.num_tokens(**sample) for sample in self.words()], dtype=float)
        costs *= model.language_model.num_parameters(exclude_embeddings=True)
        for modality in set(MODALITIES) - set(self.withhold):
            steps = np.asarray(self.steps[f"{modality}_steps"][:])
            longest = getattr(processor, f"max_{modality}_length")
            encoder = getattr(model.adapter, f"{modality}_encoder")
            per_step = sum(weight.numel() for weight in encoder.lstm.parameters())
            costs += per_step * np.minimum(steps, np.inf if longest is None else longest)
        return costs
