"""EDF and BDF."""

import numpy as np
import pytest

from hf_ecgmamba.recording import open_recording
from tests.hf_ecgmamba.signals import waves


def test_edf(tmp_path):
    import pyedflib

    path, signal = tmp_path / "a.edf", waves(3, 1000).astype(np.float64)
    with pyedflib.EdfWriter(str(path), 3) as file:
        for k, (label, unit, rate, reach) in enumerate(
            [("EKG II", "uV", 100, 2000), ("EEG Fz", "uV", 100, 2000), ("ECG V1", "mV", 200, 2)]
        ):
            file.setSignalHeader(
                k,
                {"label": label, "dimension": unit, "sample_frequency": rate, "transducer": "", "prefilter": ""}
                | {"physical_max": reach, "physical_min": -reach, "digital_max": 32767, "digital_min": -32768},
            )
        file.writeSamples([signal[0] * 1000, signal[1], np.repeat(signal[2], 2)])
    opened = open_recording(path)
    assert opened.leads == ("II", "V1") and opened.sampling_rate == 100
    assert "channels left out: EEG Fz (EEG)" in opened.notes
    np.testing.assert_allclose(opened.read(300, 500).signal, signal[[0, 2], 300:500], atol=1e-4)
    (tmp_path / "b.edf").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"b\.edf: not an EDF or BDF file"):
        open_recording(tmp_path / "b.edf")
