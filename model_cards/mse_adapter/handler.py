"""For Hugging Face Inference Endpoints: JSON in, JSON out.

{"inputs": {"text": "I love it", "audio": [[...], ...], "vision": [[...], ...]}, "parameters": {"batch_size": 8}}
"inputs" may be a list of such clips. Features are nested lists [time, features]; leave out what is missing.
"""

from transformers import pipeline


class EndpointHandler:
    def __init__(self, path=""):
        self.pipe = pipeline("multimodal-sentiment", model=path, trust_remote_code=True)

    def __call__(self, data):
        inputs = data["inputs"]
        clips = inputs if isinstance(inputs, list) else [inputs]
        # the pipeline reads files by their name; a caller from outside must not name files of this machine
        if any(isinstance(clip.get(modality), str) for clip in clips for modality in ("audio", "vision")):
            raise ValueError("audio and vision must be nested lists [time, features], not file names")
        return self.pipe(inputs, **data.get("parameters", {}))
