"""Crops of cached recordings: random and augmented for training, overlapping and pooled for evaluation."""

import math

import numpy as np
import torch


class TrainingCrops(torch.utils.data.Dataset):
    """
    One random crop of each record, augmented and then normalised, indexed by the pairs of [`EpochSampler`].

    Args:
        records (`datasets.Dataset`): as `load_splits` makes it.
        feature_extractor (`EcgMambaFeatureExtractor`).
        crop_seconds (`list[float]`): how long a crop is; several lengths share the epochs evenly, in this order, so
            that short crops can come first, which are cheap, and whole recordings last.
        num_epochs (`float`): of the training.
        augmentation ([`EcgAugmentation`]), seed (`int`).
    """

    def __init__(self, records, feature_extractor, crop_seconds, num_epochs, augmentation, seed):
        self.records, self.feature_extractor = records, feature_extractor
        self.crop_samples = [round(seconds * feature_extractor.sampling_rate) for seconds in crop_seconds]
        self.num_epochs, self.augmentation, self.seed = math.ceil(num_epochs), augmentation, seed

    def __len__(self):
        return len(self.records)

    def __getitem__(self, pair):
        return self.__getitems__([pair])[0]

    def __getitems__(self, pairs):
        rows = self.records.__getitems__([record for record, _ in pairs])
        return [self._crop(row, record, epoch) for row, (record, epoch) in zip(rows, pairs, strict=True)]

    def _crop(self, row, record, epoch):
        generator, rate = np.random.default_rng((self.seed, epoch, record)), self.feature_extractor.sampling_rate
        signal = signal_of(row)
        place = min(epoch, self.num_epochs - 1) * len(self.crop_samples) // self.num_epochs
        start, stop = self.augmentation.crop(signal.shape[1], self.crop_samples[place], rate, generator)
        crop, lead_mask = self.augmentation(
            signal[:, start:stop], row["lead_mask"], rate, generator, self.feature_extractor.leads
        )
        return as_input(crop, lead_mask, row["labels"], self.feature_extractor)


class EvaluationCrops(torch.utils.data.Dataset):
    """
    Every record as the overlapping windows in which the feature extractor cuts a recording: the same tensors.

    Args:
        records (`datasets.Dataset`): as `load_splits` makes it.
        feature_extractor (`EcgMambaFeatureExtractor`)

    Attributes:
        record_of_crop (int [crops]): the record that each crop comes from.
    """

    def __init__(self, records, feature_extractor):
        self.records, self.feature_extractor = records, feature_extractor
        starts = [feature_extractor.window_starts(int(length)) for length in records["num_samples"]]
        self.record_of_crop = np.repeat(np.arange(len(records)), [len(own) for own in starts])
        self.starts = np.concatenate(starts)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        wanted, place = np.unique(self.record_of_crop[indices], return_inverse=True)
        rows = self.records.__getitems__(wanted.tolist())
        crops = []
        for index, row in zip(indices, (rows[position] for position in place), strict=True):
            start = self.starts[index]
            crop = signal_of(row)[:, start : start + self.feature_extractor.window_samples]
            crops.append(as_input(crop, row["lead_mask"], row["labels"], self.feature_extractor))
        return crops

    def pool(self, probabilities, how):
        """Probabilities of the crops [crops, labels] -> of the records [records, labels], by "mean" or "max"."""
        first = np.searchsorted(self.record_of_crop, np.arange(len(self.records)))
        if how == "max":
            return np.maximum.reduceat(probabilities, first, axis=0)
        return np.add.reduceat(probabilities, first, axis=0) / np.bincount(self.record_of_crop)[:, None]

    def labels(self):
        """int [records, labels]"""
        return np.stack(list(self.records["labels"])).astype(np.int32)


def signal_of(row):
    """float32 [leads, time] in millivolts, of a row of the cache."""
    return row["input_values"].reshape(len(row["lead_mask"]), -1)


def as_input(crop, lead_mask, labels, feature_extractor):
    return {"input_values": feature_extractor.normalize(crop, lead_mask), "lead_mask": lead_mask, "labels": labels}


def collate_crops(crops):
    """
    Crops of one or several lengths -> a batch of tensors, padded to the right.

    attention_mask and lead_mask are there only where something is missing: the model is faster without.
    """
    lengths = [crop["input_values"].shape[1] for crop in crops]
    batch = np.zeros((len(crops), crops[0]["input_values"].shape[0], max(lengths)), dtype=np.float32)
    for row, crop, length in zip(batch, crops, lengths, strict=True):
        row[:, :length] = crop["input_values"]
    lead_mask = np.stack([crop["lead_mask"] for crop in crops])
    tensors = {"input_values": batch, "labels": np.stack([crop["labels"] for crop in crops])}
    if min(lengths) < max(lengths):
        tensors["attention_mask"] = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    if not lead_mask.all():
        tensors["lead_mask"] = lead_mask
    return {name: torch.from_numpy(array) for name, array in tensors.items()}
