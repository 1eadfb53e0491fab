"""For Hugging Face Inference Endpoints: JSON in, JSON out.

{"inputs": {"text": "I love it", "audio": [[...], ...], "vision": [[...], ...]}, "parameters": {"batch_size": 8}}
"inputs" may be a list of such clips. Features are nested lists [time, features]; leave out what is missing. A video or
sound file goes in as {"clip": its bytes in base64}: words, voice and face are found in it.
A request that cannot be answered gets {"error": why}.
"""

import base64
import binascii

from transformers import pipeline

FILES = ("audio", "vision", "video", "visual", "acoustic")


class EndpointHandler:
    def __init__(self, path=""):
        self.pipe = pipeline("multimodal-sentiment", model=path, trust_remote_code=True)

    def __call__(self, data):
        try:
            return self._answer(data)
        except (OSError, TypeError, ValueError) as error:
            return {"error": str(error)}

    def _answer(self, data):
        if not isinstance(data, dict) or not isinstance(data.get("inputs"), (dict, list)):
            raise ValueError('a request must be {"inputs": a clip or a list of clips, "parameters": {...}}')
        inputs = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
        answers = self.pipe([_without_paths(clip) for clip in inputs], **(data.get("parameters") or {}))
        return answers if isinstance(data["inputs"], list) else answers[0]


def _without_paths(clip):
    """The clip with its bytes. The pipeline reads files by their name; a caller from outside must name none here."""
    if not isinstance(clip, dict):
        raise ValueError('a clip must be a dict such as {"text": ...} or {"clip": its bytes in base64}')
    if any(isinstance(clip.get(name), str) for name in FILES):
        raise ValueError("audio and vision must be nested lists [time, features], not file names")
    if clip.get("clip") is None:
        return clip
    try:
        return {**clip, "clip": base64.b64decode(clip["clip"], validate=True)}
    except (binascii.Error, TypeError, ValueError):
        raise ValueError("clip must be the bytes of a video or sound file in base64, not a file name") from None
