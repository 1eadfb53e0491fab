"""For Hugging Face Inference Endpoints, and for the container in model_cards/container: a request in, findings out.

`inputs` is one recording or a list of up to 64:
- a dict of array (nested list [leads][time]), sampling_rate, leads and units; or the nested list alone;
- a file: its bytes (a binary body), or their base64 as a string or as {"file": base64, "name": "ecg.edf"}. WFDB comes
  as a zip archive of its header and signal files; EDF, CSV, NumPy, MATLAB, HDF5, DICOM, HL7 aECG, ... as they are.

`parameters` are those of the pipeline: top_k, thresholds, window_pooling, sampling_rate, leads, units, record,
on_doubt. What cannot be answered raises a ValueError of one line, which an endpoint sends with a status of 400.
"""

import base64
import binascii
import re

from transformers import pipeline

MOST_RECORDINGS = 64
PARAMETERS = ("top_k", "thresholds", "window_pooling", "sampling_rate", "leads", "units", "record", "on_doubt")
EXPECTED = "expected a recording: a dict with array, a nested list [leads][time], or a file's bytes in base64"


class EndpointHandler:
    def __init__(self, path="", **arguments):
        self.pipeline = pipeline("ecg-classification", model=path, trust_remote_code=True, **arguments)

    def __call__(self, data):
        """
        Args:
            data (`dict`): `inputs`, and `parameters` where needed.

        Returns:
            `dict` of findings, timeline, notes and refused (why there are none); for a list, a list of them.

        Raises:
            ValueError: in one line, for what cannot be answered.
        """
        try:
            return self._answer(data)
        except (ValueError, OSError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            # the server's folders are nobody's business
            text = re.sub(r"(?:/[\w.~+-]+)+/", "", " ".join(str(error).split()))
            raise ValueError(text[:500] or f"a recording that cannot be read ({type(error).__name__})") from None

    def _answer(self, data):
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise ValueError('a request must be {"inputs": a recording or a list of them, "parameters": {...}}')
        parameters = data.get("parameters")
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters is a {type(parameters).__name__}; expected an object")
        unknown = [str(name)[:40] for name in parameters if name not in PARAMETERS]
        if unknown:
            raise ValueError(f"parameters has {', '.join(unknown)}; expected {', '.join(PARAMETERS)}")
        inputs = data["inputs"]
        if isinstance(inputs, list) and inputs and not any(isinstance(item, dict | str) for item in inputs):
            inputs = {"array": inputs}
        recordings = inputs if isinstance(inputs, list) else [inputs]
        if not 1 <= len(recordings) <= MOST_RECORDINGS:
            raise ValueError(f"inputs holds {len(recordings)} recordings; expected 1 to {MOST_RECORDINGS}")
        recordings = [as_recording(item) for item in recordings]
        answers = self.pipeline(recordings, **parameters, trusted=False)
        return answers if isinstance(inputs, list) else answers[0]


def as_recording(item):
    """A dict of an array, or the bytes of a file: never a name, which would be one of the server's."""
    if isinstance(item, bytes | bytearray):
        return bytes(item)
    if isinstance(item, str):
        return from_base64(item)
    if isinstance(item, dict) and "file" in item:
        return from_base64(item["file"])
    if not isinstance(item, dict) or not isinstance(item.get("array"), list):
        raise ValueError(f"inputs holds a {type(item).__name__} that is no recording; {EXPECTED}")
    return item


def from_base64(text):
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"inputs holds text that is not base64; {EXPECTED}") from None
