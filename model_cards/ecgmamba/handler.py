"""Inference Endpoint: POST {"inputs": ..., "parameters": {...}} and get the pipeline's findings back.

`inputs` is a dict (array, sampling_rate, leads, units), a nested list [leads][time] in mV with
`parameters.sampling_rate`, or a list of such dicts. Parameters are those of the pipeline: top_k, thresholds,
sampling_rate, leads, units.
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
            `dict` of findings, timeline and notes, a list of them for a list of recordings, or {"error": reason}.
        """
        recording = data.get("inputs")
        parameters = data.get("parameters") or {}
        try:
            if not recording or isinstance(recording, str):
                # a path would name a file of the server
                raise ValueError(f"inputs is {recording!r}; expected a recording as a dict or a nested list")
            if isinstance(recording, list) and not isinstance(recording[0], dict):
                recording = {"array": recording}
            return self.pipeline(recording, **parameters)
        except (ValueError, OSError) as error:
            return {"error": str(error)}
