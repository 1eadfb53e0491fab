"""For Hugging Face Inference Endpoints, and for the container in model_cards/container: a clip in, a feeling out.

{"inputs": {"text": "I love it", "audio": [[...], ...], "vision": [[...], ...]}, "parameters": {"explain": true}}
"inputs" is such a clip or a list of up to 64. Features are nested lists [time, features]; leave out what is missing. A
video or sound file goes in as {"clip": its bytes in base64}, or alone, as a binary body or base64: words, voice and
face are found in it. What cannot be answered raises a ValueError of one line, which an endpoint sends as a 400.
"""

import base64
import binascii
import re

from transformers import pipeline

FILES = ("audio", "vision", "video", "visual", "acoustic")
MOST_CLIPS = 64
PARAMETERS = ("explain", "method")


class EndpointHandler:
    def __init__(self, path="", **arguments):
        self.pipe = pipeline("multimodal-sentiment", model=path, trust_remote_code=True, **arguments)

    def __call__(self, data):
        try:
            return self._answer(data)
        except (ValueError, OSError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            # the server's folders are nobody's business
            text = re.sub(r"(?:/[\w.~+-]+)+/", "", " ".join(str(error).split()))
            raise ValueError(text[:500] or f"a clip that cannot be read ({type(error).__name__})") from None

    def _answer(self, data):
        if not isinstance(data, dict) or not isinstance(data.get("inputs"), dict | list | str | bytes | bytearray):
            raise ValueError('a request must be {"inputs": a clip or a list of clips, "parameters": {...}}')
        parameters = data.get("parameters")
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters is a {type(parameters).__name__}; expected an object")
        unknown = [str(name)[:40] for name in parameters if name not in PARAMETERS]
        if unknown:
            raise ValueError(f"parameters has {', '.join(unknown)}; expected {', '.join(PARAMETERS)}")
        if not isinstance(parameters.get("method"), str | None) or not isinstance(
            parameters.get("explain", False), bool
        ):
            raise ValueError("parameters: expected a text as method, true or false as explain")
        inputs = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
        if not 1 <= len(inputs) <= MOST_CLIPS:
            raise ValueError(f"inputs holds {len(inputs)} clips; expected 1 to {MOST_CLIPS}")
        answers = self.pipe([without_paths(clip) for clip in inputs], **parameters)
        return answers if isinstance(data["inputs"], list) else answers[0]


def without_paths(clip):
    """The clip with its bytes. The pipeline reads files by their name; a caller from outside must name none here."""
    if isinstance(clip, str | bytes | bytearray):
        clip = {"clip": clip}
    if not isinstance(clip, dict):
        raise ValueError('a clip must be a dict such as {"text": ...} or {"clip": its bytes in base64}')
    if any(isinstance(clip.get(name), str) for name in FILES):
        raise ValueError("audio and vision must be nested lists [time, features], not file names")
    content = clip.get("clip")
    if content is None or isinstance(content, bytes | bytearray):
        return clip
    try:
        return {**clip, "clip": base64.b64decode(content, validate=True)}
    except (binascii.Error, TypeError, ValueError):
        raise ValueError("clip must be the bytes of a video or sound file in base64, not a file name") from None
