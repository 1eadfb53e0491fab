"""`python -m hf_mse_adapter --model M --text T [--audio x.npy] [--vision y.npy]`: one clip in, a feeling out."""

import argparse
import json
import sys

from transformers import pipeline

from .answers import METHODS
from .pipeline_multimodal_sentiment import TASK, MultimodalSentimentPipeline


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m hf_mse_adapter", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--model", required=True, help="folder or Hub id of a model with an MSE-Adapter")
    parser.add_argument("--text", required=True, help="what was said")
    parser.add_argument("--audio", metavar="FILE.npy", help="audio features [time, features]")
    parser.add_argument("--vision", metavar="FILE.npy", help="vision features [time, features]")
    parser.add_argument("--speaker", help="who said it")
    parser.add_argument(
        "--context",
        metavar="TURN",
        action="append",
        default=[],
        help="an earlier utterance, as TEXT or SPEAKER:TEXT; repeat it, oldest first",
    )
    parser.add_argument("--method", choices=(*METHODS, "head"), help="how to answer; by default as the task does best")
    parser.add_argument("--device", help="where to run: cpu, cuda:1, ...")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the LLM's repository brings")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)

    sample = {
        "text": options.text,
        "audio": options.audio,
        "vision": options.vision,
        "speaker": options.speaker,
        "context": [tuple(turn.split(":", 1)) if ":" in turn else turn for turn in options.context],
    }
    try:
        pipe = pipeline(
            TASK,
            model=options.model,
            pipeline_class=MultimodalSentimentPipeline,
            trust_remote_code=options.trust_remote_code,
            device=options.device,
        )
        answer = pipe(sample, method=options.method)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(answer, ensure_ascii=False) if options.json else _readable(answer))


def _readable(answer):
    if "problem" in answer:
        return f"no answer: {answer['problem']}"
    if "value" in answer:
        spread = f" ± {answer['spread']:.2f}" if "spread" in answer else ""
        return f"sentiment intensity {answer['value']:+.2f}{spread}"
    probabilities = answer.get("probabilities", {answer["label"]: None})
    ranked = sorted(probabilities.items(), key=lambda item: -(item[1] or 0))
    return "\n".join(label if score is None else f"{score:6.1%}  {label}" for label, score in ranked)


if __name__ == "__main__":
    main()
