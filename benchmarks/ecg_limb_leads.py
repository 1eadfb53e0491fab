"""How often the limb leads of real recordings are found wrong, and how much of what can be wrong is found.

    python benchmarks/ecg_limb_leads.py [--folds 1 2 3]

Over PTB-XL's records in ../shared (100 Hz, all folds given there) and every other real 12-lead recording there: the
misfit of the limb leads as they are, the share of records above the threshold, and the same after each exchange that
happens in practice, made on a tenth of the records. Then the share of records whose arms the note suspects, as they
are and with the arm electrodes exchanged. Thresholds may be chosen here; they are `MOST_MISFIT` and
`LEAST_CORRELATION` in hf_ecgmamba/recording_limb_leads.py.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hf_ecgmamba import read_recording
from hf_ecgmamba.recording_channels import STANDARD_LEADS
from hf_ecgmamba.recording_limb_leads import LEAST_CORRELATION, MOST_MISFIT, correlation, limb_lead_misfit

SHARED = Path(__file__).resolve().parents[2] / "shared"
THRESHOLDS = sorted({0.5, 0.6, 0.7, 0.8, 0.9, MOST_MISFIT})


def ptbxl_records(folds):
    sys.path.insert(0, str(SHARED / "tools"))
    import ptbxl

    for fold in folds:
        for counts in ptbxl.load(fold)[1]:
            yield counts.T / np.float32(1000), 100.0


def other_records():
    """The first 10 s of every other file in ../shared that names all twelve leads."""
    for path in sorted((SHARED / "data" / "ecg").rglob("*.hea")):
        try:
            recording = read_recording(path)
        except (ValueError, OSError):
            continue
        if set(STANDARD_LEADS) <= set(recording.leads):
            rows = [recording.leads.index(lead) for lead in STANDARD_LEADS]
            signal = recording.signal[rows, : round(10 * recording.sampling_rate)]
            if np.isfinite(signal).all():
                yield signal, recording.sampling_rate


def exchanges():
    """Name and function of each thing that happens to the limb leads of recordings."""

    def reordered(order, signs=(1,) * 6):
        return lambda limbs: limbs[list(order)] * np.array(signs, np.float32)[:, None]

    def scaled(row, factor):
        return lambda limbs: limbs * np.where(np.arange(6) == row, factor, 1).astype(np.float32)[:, None]

    yield "aVL and aVF swapped", reordered((0, 1, 2, 3, 5, 4))
    yield "I and II swapped", reordered((1, 0, 2, 3, 4, 5))
    yield "II and III swapped", reordered((0, 2, 1, 3, 4, 5))
    yield "aVR and aVL swapped", reordered((0, 1, 2, 4, 3, 5))
    yield "III and aVF swapped", reordered((0, 1, 5, 3, 4, 2))
    yield "I and aVL swapped", reordered((4, 1, 2, 3, 0, 5))
    yield "Cabrera's order", reordered((4, 0, 3, 1, 5, 2), (1, 1, -1, 1, 1, 1))
    for row, lead in enumerate(STANDARD_LEADS[:6]):
        yield f"{lead} inverted", scaled(row, -1)
    for row, lead in ((0, "I"), (2, "III"), (3, "aVR")):
        yield f"{lead} a thousand times too large", scaled(row, 1000)
        yield f"{lead} a thousand times too small", scaled(row, 1e-3)
    yield "aVR twice too large", scaled(3, 2)


def misfit(signal):
    return limb_lead_misfit(signal[:6], STANDARD_LEADS[:6])[0]


def shares(values):
    return "  ".join(f"{(values > threshold).mean():8.3%}" for threshold in THRESHOLDS)


def report(name, records):
    as_they_are = np.array([misfit(signal) for signal, _ in records])
    few = records[:: max(1, min(10, len(records) // 200))]
    quantiles = ", ".join(f"{np.quantile(as_they_are, q):.3f}" for q in (0.5, 0.99, 0.999, 1))
    print(f"\n{name}: {len(records)} records; misfit: median, 99 %, 99.9 %, largest: {quantiles}")
    print(f"  {'above a misfit of':<34}" + "  ".join(f"{threshold:8g}" for threshold in THRESHOLDS))
    print(f"  {'as they are (false alarms)':<34}{shares(as_they_are)}")
    for cause, change in exchanges():
        changed = np.array([misfit(change(signal[:6])) for signal, _ in few])
        print(f"  {cause:<34}{shares(changed)}")
    arms = np.array([correlation(signal[0], signal[11], rate) for signal, rate in records])
    print(f"  arms, I against V6 below {LEAST_CORRELATION:g}: {(arms < LEAST_CORRELATION).mean():.2%} as they are,")
    print(f"        {(-arms < LEAST_CORRELATION).mean():.1%} with the arm electrodes exchanged")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, 10)))
    options = parser.parse_args()
    report("PTB-XL, 100 Hz", list(ptbxl_records(options.folds)))
    report("other real recordings", list(other_records()))


if __name__ == "__main__":
    main()
