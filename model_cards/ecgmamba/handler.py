"""Inference Endpoint: POST {"inputs": ..., "parameters": {...}} and get the pipeline's findings back.

`inputs` is a dict (array, sampling_rate, leads, units), a nested list [leads][time] in mV with
`parameters.sampling_rate`, or a list of such dicts. Parameters are those of the pipeline: top_k, thresholds,
sampling_rate, leads, units, on_doubt.
"""

from transformers import pipeline


class EndpointHandler:
    def __init__(self, path=""):
        self.pipeline = pipeline("ecg-classification", model=path, trust_remote_code=True)

    def __call__(self, data):
        """
        Args:
            data (`dict`): `inputs`, and `parameters` where needed.

        Returns:
            `dict` of findings, timeline, notes and refused (why there are none), a list of them for a list of
            recordings, or {"error": reason}.
        """
        recording = data.get("inputs")
        parameters = data.get("parameters") or {}
        try:
            if isinstance(recording, list) and recording and not any(isinstance(item, dict) for item in recording):
                recording = {"array": recording}
            recordings = recording if isinstance(recording, list) else [recording]
            # a string would name a file of the server
            if not recordings or not all(isinstance(item, dict) for item in recordings):
                raise ValueError("inputs holds no recording; expected a dict, a list of dicts, or a nested list")
            return self.pipeline(recording, **parameters)
        except (ValueError, OSError) as error:
            return {"error": str(error)}
