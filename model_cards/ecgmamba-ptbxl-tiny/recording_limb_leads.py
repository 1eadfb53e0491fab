"""The six limb leads watch one another: they are made of two voltages, so that any two of them tell the other four.

`limb_lead_doubt` says which lead does not fit and what would explain it. What no such sum can show, the exchange of
the two arm electrodes, `arm_reversal_note` suspects from lead V6. benchmarks/ecg_limb_leads.py measures, over real
recordings, how often both are wrong and how much they find.
"""

from itertools import combinations

import numpy as np

# each as (share of I, share of II): Einthoven 1913, Goldberger 1942
_SHARES = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}
# Cabrera's order, which some devices print, under the names of the usual one: name -> what it holds, and its sign
_CABRERA = {
    "I": ("aVL", 1),
    "II": ("I", 1),
    "III": ("aVR", -1),
    "aVR": ("II", 1),
    "aVL": ("aVF", 1),
    "aVF": ("III", 1),
}

# what a lead differs by from what the others make it, as a share of itself: above this no findings
MOST_MISFIT = 0.7
_EXPLAINED = 0.2  # a cause is named when without it the leads fit as well as this
_FLAT = 1e-6
_FACTORS = (1000.0, 1e-3, 100.0, 1e-2, 10.0, 0.1, 2.0, 0.5)
# correlation of I with V6 below which the arms are suspected
LEAST_CORRELATION = -0.6


def limb_lead_misfit(signal, leads):
    """
    How badly the limb leads fit one another: the rms of what a lead differs by from what two others make it (I and II
    where they are there), as a share of the lead's own rms, of the lead that fits worst. Flat leads are not asked.

    Args:
        signal (`np.ndarray`): `[leads, time]`, without NaN; any unit.
        leads (`tuple[str]`): what each row is.

    Returns:
        `float`, `str`: 0.0 and None where fewer than three limb leads are there.
    """
    rows = [row for row, lead in enumerate(leads) if lead in _SHARES and np.ptp(signal[row]) > _FLAT]
    if len(rows) < 3:
        return 0.0, None
    rows.sort(key=lambda row: list(_SHARES).index(leads[row]))
    values = np.asarray(signal[rows], dtype=np.float64)
    return _worst(values - values.mean(axis=-1, keepdims=True), [leads[row] for row in rows])


def _worst(values, names):
    """The misfit of mean-free limb leads, in the order of `_SHARES`, and the name of the worst."""
    shares = np.array([_SHARES[name] for name in names])
    expected = shares[2:] @ np.linalg.inv(shares[:2]) @ values[:2]
    size = np.sqrt(np.square(values[2:]).mean(axis=-1))
    # a lead that hardly shows anything, across the heart's axis, is measured by the others
    size = np.maximum(size, 0.05 * np.sqrt(np.square(values).mean()))
    misfit = np.sqrt(np.square(values[2:] - expected).mean(axis=-1)) / np.maximum(size, _FLAT)
    worst = int(misfit.argmax())
    return float(misfit[worst]), names[2 + worst]


def limb_lead_doubt(signal, leads):
    """One line on limb leads that contradict one another, with what would explain it; None for those that fit. Samples
    may be missing (NaN): those count that all leads have, without leads that have less than half of theirs."""
    rows = [row for row, lead in enumerate(leads) if lead in _SHARES]
    if np.isnan(signal[rows]).any():
        rows = [row for row in rows if np.isfinite(signal[row]).mean() >= 0.5]
        signal, leads = signal[rows], tuple(leads[row] for row in rows)
        signal = signal[:, np.isfinite(signal).all(axis=0)]
        if signal.size == 0:
            return None
    misfit, worst = limb_lead_misfit(signal, leads)
    if misfit <= MOST_MISFIT:
        return None
    names = [lead for lead in _SHARES if lead in leads and np.ptp(signal[leads.index(lead)]) > _FLAT]
    values = np.asarray([signal[leads.index(name)] for name in names], dtype=np.float64)
    values -= values.mean(axis=-1, keepdims=True)
    causes = [(misfit_without, cause) for misfit_without, cause in _causes(values, names)]
    least = min((misfit_without for misfit_without, _ in causes), default=np.inf)
    likely = [cause for misfit_without, cause in causes if misfit_without <= min(_EXPLAINED, least + 0.02)]
    explanation = f"; explained if {' or '.join(likely[:3])}" if likely else ", and no single exchange explains it"
    return (
        f"the limb leads contradict one another: {worst} is {misfit:.1f} times its own size away from what "
        f"{' and '.join(names[:2])} make it{explanation}"
    )


def _causes(values, names):
    """(misfit without it, words) for each single thing that may have happened to these leads."""
    for one, other in combinations(range(len(names)), 2):
        order = list(range(len(names)))
        order[one], order[other] = other, one
        yield _worst(values[order], names)[0], f"{names[one]} and {names[other]} are swapped"
    for row, name in enumerate(names):
        changed = values.copy()
        changed[row] *= -1
        yield _worst(changed, names)[0], f"{name} is inverted"
        for factor in _FACTORS:
            changed = values.copy()
            changed[row] *= factor
            yield _worst(changed, names)[0], f"{name} is in another unit (a factor of {1 / factor:g})"
    if {"aVR", "aVL", "aVF"} <= set(names):
        places = [names.index(lead) for lead in ("aVR", "aVL", "aVF")]
        for order in ((1, 2, 0), (2, 0, 1)):
            changed = values.copy()
            changed[[places[place] for place in order]] = values[places]
            held = ", ".join(("aVR", "aVL", "aVF")[place] for place in order)
            yield _worst(changed, names)[0], f"the leads called aVR, aVL, aVF are {held}"
    if len(names) == len(_SHARES):
        changed = np.empty_like(values)
        for row, name in enumerate(names):
            lead, sign = _CABRERA[name]
            changed[names.index(lead)] = sign * values[row]
        yield _worst(changed, names)[0], "they are in Cabrera's order (aVL, I, -aVR, II, aVF, III)"


def arm_reversal_note(signal, leads, sampling_rate):
    """A note where lead I runs against V6, as it does when the arm electrodes are exchanged; else None."""
    if "I" not in leads or "V6" not in leads:
        return None
    if correlation(signal[leads.index("I")], signal[leads.index("V6")], sampling_rate) < LEAST_CORRELATION:
        return "lead I runs against V6: are the left and right arm electrodes exchanged?"
    return None


def correlation(one, other, sampling_rate):
    """Of two leads' steps over 10 ms, which beats dominate and a wandering baseline does not; 0.0 for a flat lead."""
    lag = max(1, round(sampling_rate / 100))
    one, other = one[lag:] - one[:-lag], other[lag:] - other[:-lag]
    size = np.sqrt(np.square(one).sum() * np.square(other).sum())
    return float((one * other).sum() / size) if size > _FLAT else 0.0
