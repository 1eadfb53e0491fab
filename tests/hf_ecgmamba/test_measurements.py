"""Rate, intervals and axis of hearts whose numbers are known; failures said, not printed as nonsense."""

import json

import numpy as np
import pytest

from hf_ecgmamba.measurements import FIELDS, as_line, measure

pytest.importorskip("neurokit2", reason="neurokit2 is not installed (pip install neurokit2)")
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def heart(bpm=75, seconds=10, rate=250, pr=0.16, qrs=0.09, qt=0.38, axis=60, seed=0):
    """[12, time] mV: Gaussian waves at known times; the limb leads are projections of one vector."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    p_wave, complexes, t_wave = np.zeros((3, len(t)))
    for onset in np.arange(0.4, seconds, 60 / bpm):  # onset of QRS
        p_wave += 0.12 * np.exp(-((t - (onset - pr + 0.05)) ** 2) / (2 * 0.02**2))
        for share, height in ((0.25, -0.12), (0.5, 1.0), (0.75, -0.2)):
            complexes += height * np.exp(-((t - onset - share * qrs) ** 2) / (2 * (qrs / 11) ** 2))
        t_wave += 0.3 * np.exp(-((t - (onset + qt - 0.09)) ** 2) / (2 * 0.04**2))
    wave = p_wave + complexes + t_wave
    directions = {"I": 0, "II": 60, "III": 120, "aVR": -150, "aVL": -30, "aVF": 90}
    rows = [np.cos(np.radians(directions.get(lead, axis) - axis)) * wave for lead in LEADS]
    return np.stack(rows) + 0.005 * random.standard_normal((12, len(t)))


@pytest.mark.parametrize("rate", [100, 250, 360, 500])
@pytest.mark.parametrize("bpm", [60, 75, 120])
def test_a_regular_heart_is_measured(rate, bpm):
    measured = measure(heart(bpm, rate=rate, qt=0.38 if bpm < 100 else 0.3, axis=45), rate, LEADS)
    assert measured["heart_rate_bpm"] == pytest.approx(bpm, abs=1.5)
    assert measured["sdnn_ms"] < 8 and measured["rmssd_ms"] < 10
    assert measured["qrs_ms"] == pytest.approx(90, abs=30)
    assert measured["axis_degrees"] == pytest.approx(45, abs=12)
    assert all(value > 0.9 for value in measured["lead_quality"].values())
    assert set(FIELDS) <= set(measured) and measured["seconds"] == pytest.approx(10, abs=0.1)
    json.dumps(measured)  # plain numbers


def test_intervals_follow_the_heart():
    short, long = (measure(heart(60, pr=pr, qt=qt), 250, LEADS) for pr, qt in ((0.14, 0.36), (0.24, 0.46)))
    assert long["pr_ms"] - short["pr_ms"] == pytest.approx(100, abs=30)
    assert long["qt_ms"] - short["qt_ms"] == pytest.approx(100, abs=30)
    narrow, wide = (measure(heart(60, qrs=qrs), 250, LEADS) for qrs in (0.08, 0.15))
    assert wide["qrs_ms"] - narrow["qrs_ms"] == pytest.approx(70, abs=35)
    seconds = 60 / short["heart_rate_bpm"]
    assert short["qtc_ms"] == pytest.approx(short["qt_ms"] / seconds**0.5, abs=1)
    assert short["qtc_fridericia_ms"] == pytest.approx(short["qt_ms"] / seconds ** (1 / 3), abs=1)


@pytest.mark.parametrize("axis", [-60, 0, 45, 90, 150])
def test_the_axis_is_that_of_the_vector(axis):
    measured = measure(heart(axis=axis), 250, LEADS)
    assert (measured["axis_degrees"] - axis + 180) % 360 - 180 == pytest.approx(0, abs=12)


def test_two_leads_of_a_monitor_have_no_axis():
    signal = heart()[[1, 6]]
    measured = measure(signal, 250, ("MLII", "V1"))
    assert measured["lead"] == "MLII" and measured["axis_degrees"] is None
    assert "needs the leads I and aVF" in measured["failed"]["axis_degrees"]
    assert measure(heart()[:2], 250, LEADS[:2])["axis_degrees"] == pytest.approx(60, abs=12)


@pytest.mark.parametrize("what", ["flat", "noise", "nan", "short"])
def test_what_is_no_heartbeat_is_not_measured(what):
    random = np.random.default_rng(0)
    signal = {
        "flat": np.zeros((12, 2500)),
        "noise": random.standard_normal((12, 2500)),
        "nan": np.full((12, 2500), np.nan),
        "short": heart(seconds=1),
    }[what]
    measured = measure(signal, 250, LEADS)
    assert all(measured[field] is None for field in FIELDS)
    assert set(measured["failed"]) == set(FIELDS)
    assert "rate –" in as_line(measured)


def test_a_bad_lead_and_a_gap_cost_no_more_than_themselves():
    random = np.random.default_rng(0)
    signal = heart()
    signal[11] = random.standard_normal(signal.shape[1])
    signal[10, 100:400] = np.nan
    measured = measure(signal, 250, LEADS)
    assert measured["lead_quality"]["V6"] < 0.6 < 0.8 < measured["lead_quality"]["II"]
    assert measured["heart_rate_bpm"] == pytest.approx(75, abs=1)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"signal is \(12, 2500\); expected \(2 leads, time\)"):
        measure(heart(), 250, ("I", "II"))
