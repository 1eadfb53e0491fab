"""The limb leads watch one another: what is wrong with them is found and named, what is right is left alone."""

import numpy as np
import pytest

from hf_ecgmamba.recording import read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from hf_ecgmamba.recording_limb_leads import (
    MOST_MISFIT,
    arm_reversal_note,
    limb_lead_doubt,
    limb_lead_misfit,
)
from tests.hf_ecgmamba.signals import heart

LIMBS = STANDARD_LEADS[:6]


def test_leads_that_fit_are_left_alone_whichever_are_there():
    signal = heart(1000)
    for leads in (LIMBS, ("II", "III", "aVF"), ("aVF", "I", "aVR"), ("aVL", "aVR", "aVF"), ("I", "II"), ("V1", "II")):
        rows = [STANDARD_LEADS.index(lead) for lead in leads]
        assert limb_lead_misfit(signal[rows], leads)[0] < 1e-5
        assert limb_lead_doubt(signal[rows], leads) is None


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda limbs: limbs[[0, 1, 2, 3, 5, 4]], "aVL and aVF are swapped"),
        (lambda limbs: limbs[[1, 0, 2, 3, 4, 5]], "I and II are swapped"),
        (lambda limbs: limbs * [[1], [1], [1], [-1], [1], [1]], "aVR is inverted"),
        (lambda limbs: limbs * [[-1], [1], [1], [1], [1], [1]], "I is inverted"),
        (lambda limbs: limbs * [[1], [1], [1000], [1], [1], [1]], r"III is in another unit \(a factor of 1000\)"),
        (lambda limbs: limbs * [[1], [1e-3], [1], [1], [1], [1]], r"II is in another unit \(a factor of 0\.001\)"),
        (lambda limbs: limbs[[4, 0, 3, 1, 5, 2]] * [[1], [1], [-1], [1], [1], [1]], "Cabrera's order"),
    ],
)
def test_what_is_wrong_is_named(change, cause):
    doubt = limb_lead_doubt(change(heart(1000)[:6]), LIMBS)
    assert doubt.startswith("the limb leads contradict one another: ")
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(doubt)


def test_chance_is_a_contradiction_without_a_cause():
    doubt = limb_lead_doubt(np.random.default_rng(0).normal(size=(6, 1000)), LIMBS)
    assert doubt.endswith("no single exchange explains it")


def test_flat_leads_are_not_asked():
    signal = heart(1000)[:6]
    signal[3] = 0.0
    assert limb_lead_doubt(signal, LIMBS) is None
    assert limb_lead_doubt(np.zeros((6, 100)), LIMBS) is None


def test_exchanged_arms_fit_and_are_suspected():
    signal = heart(1000)
    assert arm_reversal_note(signal, STANDARD_LEADS, 100) is None
    exchanged = signal.copy()
    exchanged[0] *= -1
    exchanged[[1, 2]], exchanged[[3, 4]] = signal[[2, 1]], signal[[4, 3]]
    assert limb_lead_doubt(exchanged, STANDARD_LEADS) is None
    assert "arm electrodes exchanged?" in arm_reversal_note(exchanged, STANDARD_LEADS, 100)
    assert arm_reversal_note(exchanged[:6], LIMBS, 100) is None  # nothing to tell it by


def test_real_recordings_fit(shared_data):
    """benchmarks/ecg_limb_leads.py does so for all of them."""
    headers = sorted((shared_data / "ecg" / "ptbxl500_pairs").rglob("*.hea"))[:20]
    assert headers
    for header in headers:
        recording = read_recording(header)
        assert limb_lead_misfit(recording.signal, recording.leads)[0] < MOST_MISFIT


def test_missing_samples_are_no_contradiction():
    page = np.full((6, 1000), np.nan)
    for lead in range(6):  # a printed page: each lead for a while
        shown = slice(250 * (lead // 3), 250 * (lead // 3 + 1))
        page[lead, shown] = heart(1000)[lead, shown]
    assert limb_lead_doubt(page, LIMBS) is None
    gap = heart(1000)[:6]
    gap[2, 300:500], gap[4] = np.nan, np.nan
    assert limb_lead_doubt(gap, LIMBS) is None
    gap[3] *= -1
    assert "aVR is inverted" in limb_lead_doubt(gap, LIMBS)
