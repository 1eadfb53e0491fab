"""For Hugging Face Inference Endpoints: JSON in, JSON out.

{"inputs": {"text": "I love it", "audio": [[...], ...], "vision": [[...], ...]}, "parameters": {"batch_size": 8}}
"inputs" may be a list of such clips. Features are nested lists [time, features]; leave out what is missing.
A request that cannot be answered gets {"error": why}.
"""

from transformers import pipeline


class EndpointHandler:
    def __init__(self, path=""):
        self.pipe = pipeline("multimodal-sentiment", model=path, trust_remote_code=True)

    def __call__(self, data):
        try:
            return self._answer(data)
        except (TypeError, ValueError) as error:
            return {"error": str(error)}

    def _answer(self, data):
        if not isinstance(data, dict) or not isinstance(data.get("inputs"), (dict, list)):
            raise ValueError('a request must be {"inputs": a clip or a list of clips, "parameters": {...}}')
        clips = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
        for clip in clips:
            # the pipeline reads files by their name; a caller from outside must not name files of this machine
            if isinstance(clip, dict) and any(isinstance(clip.get(name), str) for name in ("audio", "vision")):
                raise ValueError("audio and vision must be nested lists [time, features], not file names")
        return self.pipe(data["inputs"], **(data.get("parameters") or {}))
