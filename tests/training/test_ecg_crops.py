"""Crops and augmentation: nothing depends on process, worker or history, and pooling is per recording."""

import datasets
import numpy as np
import pytest
import torch

from hf_ecgmamba import EcgMambaFeatureExtractor
from training.checkpoints import EpochSampler
from training.data.ecg_augmentation import EcgAugmentation
from training.data.ecg_crops import EvaluationCrops, TrainingCrops, collate_crops
from training.data.ecg_records import EcgCollection, EcgRecord, load_splits

EVERYTHING = EcgAugmentation(0.2, 0.3, 0.2, 0.05, 0.1)
LEADS, RATE = 3, 100
LENGTHS = (300, 250, 120, 400)


@pytest.fixture
def records():
    rows = {
        "record": [f"r{index}" for index in range(len(LENGTHS))],
        # lead and sample can be read off the value
        "input_values": [
            (np.arange(LEADS)[:, None] * 1000.0 + np.arange(length)).astype(np.float32).reshape(-1)
            for length in LENGTHS
        ],
        "num_samples": LENGTHS,
        "lead_mask": [[True] * LEADS] * len(LENGTHS),
        "labels": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]],
    }
    return datasets.Dataset.from_dict(rows).with_format("numpy")


def extractor(**settings):
    return EcgMambaFeatureExtractor(
        leads=("I", "II", "III"), sampling_rate=RATE, **{"normalization": "none"} | settings
    )


def training(records, augmentation=EVERYTHING, crop_seconds=2.0):
    return TrainingCrops(records, extractor(), [crop_seconds], 1, augmentation, seed=5)


def test_a_crop_depends_on_record_and_epoch_alone(records):
    together = training(records).__getitems__([(0, 1), (3, 1), (0, 2)])
    alone = [training(records)[pair] for pair in [(0, 1), (3, 1), (0, 2)]]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one["input_values"], other["input_values"])
        assert np.array_equal(one["lead_mask"], other["lead_mask"])
    assert not np.array_equal(together[0]["input_values"], together[2]["input_values"])


def test_workers_see_what_the_main_process_sees(records):
    def batches(num_workers):
        sampler = EpochSampler(len(records), seed=1)
        sampler.set_epoch(3)
        loader = torch.utils.data.DataLoader(
            training(records), batch_size=2, sampler=sampler, collate_fn=collate_crops, num_workers=num_workers
        )
        return [batch["input_values"] for batch in loader]

    assert all(torch.equal(one, other) for one, other in zip(batches(0), batches(2), strict=True))


def test_sampler_shuffles_by_epoch():
    sampler = EpochSampler(50, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert sorted(orders[0]) == [(index, 0) for index in range(50)]
    assert [record for record, _ in orders[0]] != [record for record, _ in orders[1]]
    assert orders[0] == orders[2]


def test_random_crops_cover_the_recording(records):
    starts = [training(records, EcgAugmentation())[(0, epoch)]["input_values"] for epoch in range(300)]
    assert {crop.shape for crop in starts} == {(LEADS, 200)}
    first = {int(crop[0, 0]) for crop in starts}
    assert min(first) == 0 and max(first) == 100 and len(first) > 80
    assert all((np.diff(crop) == 1).all() for crop in starts)


def test_crops_grow_over_the_training(records):
    crops = TrainingCrops(records, extractor(), [0.5, 1.0, 2.0], 7, EcgAugmentation(), seed=5)
    lengths = [crops[(0, epoch)]["input_values"].shape[1] for epoch in range(8)]
    assert lengths == [50, 50, 50, 100, 100, 200, 200, 200]


def test_time_shift_reaches_over_both_ends(records):
    shifted = training(records, EcgAugmentation(time_shift_seconds=0.5), crop_seconds=2.5)
    crops = [shifted[(1, epoch)]["input_values"] for epoch in range(1500)]
    assert {int(crop[0, 0]) for crop in crops} == set(range(51))
    assert {int(crop[0, -1]) for crop in crops} == set(range(199, 250))
    lengths = {crop.shape[1] for crop in crops}
    assert min(lengths) == 200 and max(lengths) == 250


def test_each_augmentation_does_what_it_says():
    signal, present = np.ones((12, 500), dtype=np.float32), np.array([True] * 11 + [False])
    signal[11] = 0

    def augmented(**settings):
        drawn = [EcgAugmentation(**settings)(signal, present, RATE, np.random.default_rng(s)) for s in range(200)]
        return np.stack([x for x, _ in drawn]), np.stack([m for _, m in drawn])

    reader = EcgMambaFeatureExtractor()
    few = EcgAugmentation(few_leads=0.5)
    kept = [few(signal, np.ones(12, bool), RATE, np.random.default_rng(s), reader.leads)[1] for s in range(400)]
    numbers = np.bincount([mask.sum() for mask in kept], minlength=13)
    assert numbers[12] == pytest.approx(200, abs=40) and set(np.flatnonzero(numbers)) == {1, 6, 7, 12}
    assert {reader.leads[mask.argmax()] for mask in kept if mask.sum() == 1} == {"I", "II"}

    values, masks = augmented(lead_dropout=0.25)
    assert masks[:, :11].mean() == pytest.approx(0.75, abs=0.03) and not masks[:, 11].any()
    assert ((values != 0) == masks[:, :, None]).all()
    assert augmented(lead_dropout=0.999)[1].any(axis=1).all()

    values, _ = augmented(amplitude_scaling=0.3)
    factors = values[:, 0, 0]
    assert np.ptp(values[:, :11], axis=(1, 2)).max() == 0  # one factor for all leads
    assert factors.min() == pytest.approx(0.7, abs=0.02) and factors.max() == pytest.approx(1.3, abs=0.02)

    values, _ = augmented(noise=0.1)
    assert (values[:, :11] - 1).std() == pytest.approx(0.1, rel=0.02) and not values[:, 11].any()

    values, _ = augmented(baseline_wander=0.2)
    assert 0.15 < np.abs(values[:, :11] - 1).max() <= 0.2
    assert values.dtype == np.float32


def test_bad_augmentation_is_named():
    with pytest.raises(ValueError, match="lead_dropout is 1"):
        EcgAugmentation(lead_dropout=1)
    with pytest.raises(ValueError, match="noise is -1"):
        EcgAugmentation(noise=-1)


def test_evaluation_crops_pool_to_recordings(records):
    crops = EvaluationCrops(records, extractor(window_seconds=2.0, window_overlap=0))
    assert crops.record_of_crop.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert crops.__getitems__([6, 0, 4])[0]["input_values"][2, 0] == 2200  # lead 2, sample 400 - 200
    assert crops[4]["input_values"].shape == (LEADS, 120)
    probabilities = np.array([[0.1], [0.5], [0.2], [0.4], [0.9], [0.0], [1.0]])
    assert crops.pool(probabilities, "mean")[:, 0] == pytest.approx([0.3, 0.3, 0.9, 0.5])
    assert crops.pool(probabilities, "max")[:, 0] == pytest.approx([0.5, 0.4, 0.9, 1.0])
    assert crops.labels().tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("normalization", ["mean", "per_record", "per_lead"])
def test_evaluation_sees_what_inference_sees(tmp_path, normalization):
    """The cached, cropped and collated tensors are those of the feature extractor's own windows."""
    reader = EcgMambaFeatureExtractor(
        window_seconds=2.5, bandpass=(0.5, 40), normalization=normalization, optional_leads=("V6",)
    )
    generator = np.random.default_rng(0)
    long = {"array": generator.normal(size=(12, 4200)), "sampling_rate": 500, "units": "mV"}
    short = {"array": generator.normal(size=(11, 200)), "sampling_rate": 100, "units": "mV"}
    leads = list(reader.leads)
    sources = [{**long, "leads": leads}, {**short, "leads": leads[:-1]}]
    collection = EcgCollection(("AF",), tuple(EcgRecord(f"r{i}", x, (), "test") for i, x in enumerate(sources)))
    crops = EvaluationCrops(load_splits(collection, reader, cache_dir=str(tmp_path))["test"], reader)
    batch = collate_crops(crops.__getitems__(list(range(len(crops)))))
    windows = [window for source in sources for window in reader.windows(source)]
    assert len(windows) == len(crops) == 7
    for name in ("input_values", "attention_mask", "lead_mask"):
        expected = torch.tensor(np.stack([getattr(window, name) for window in windows]))
        assert torch.allclose(batch[name].to(expected.dtype), expected, atol=1e-5), name


def test_collating_masks_only_what_is_missing(records):
    row = records[0]
    whole = {"input_values": np.ones((LEADS, 8)), "lead_mask": np.ones(LEADS, bool), "labels": row["labels"]}
    batch = collate_crops([whole, whole])
    assert set(batch) == {"input_values", "labels"}
    short = {**whole, "input_values": np.ones((LEADS, 5)), "lead_mask": np.array([True, False, True])}
    batch = collate_crops([whole, short])
    assert batch["attention_mask"].sum(1).tolist() == [8, 5]
    assert batch["lead_mask"].tolist() == [[True] * 3, [True, False, True]]
    assert batch["input_values"].shape == (2, LEADS, 8) and not batch["input_values"][1, :, 5:].any()
