"""`python -m hf_mse_adapter --model M --text T [--audio x.npy] [--vision y.npy]`: how does this clip feel?"""

import argparse
import json
import sys


def main(arguments=None):
    """Runs the command; returns its exit code: 0, or 2 with one line on stderr."""
    options = parser().parse_args(arguments)
    try:
        answer = read(options)
    except (OSError, ValueError) as error:
        print(f"hf_mse_adapter: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(answer, ensure_ascii=False) if options.json else as_text(answer))
    return 0


def parser():
    parser = argparse.ArgumentParser(
        prog="python -m hf_mse_adapter", description="Read sentiment or emotion from a clip's words, voice and face."
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a folder, or a repository of the Hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of that repository")
    parser.add_argument("--text", required=True, help="what was said")
    parser.add_argument("--audio", metavar="NPY", help="audio features [time, features]; missing if left out")
    parser.add_argument("--vision", metavar="NPY", help="vision features [time, features]; missing if left out")
    parser.add_argument("--speaker", metavar="NAME", help="who said it")
    parser.add_argument(
        "--context",
        metavar="TURN",
        action="append",
        default=[],
        help="an earlier utterance, as TEXT or SPEAKER:TEXT; repeat it, oldest first",
    )
    parser.add_argument(
        "--method",
        choices=("expected", "median", "likeliest", "constrained", "greedy", "head"),
        help="how to answer (default: as the task does best)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the first accelerator, else the CPU)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the LLM's repository brings")
    parser.add_argument("--json", action="store_true", help="print the result for a machine")
    return parser


def read(options):
    """The pipeline's answer for one clip."""
    import torch
    from transformers.utils import logging

    from .configuration_mse_adapter import MseConfig
    from .modeling_mse_adapter import MseForConditionalGeneration
    from .pipeline_multimodal_sentiment import MultimodalSentimentPipeline
    from .processing_mse_adapter import MseProcessor

    model_type = MseConfig.get_config_dict(options.model, revision=options.revision)[0].get("model_type")
    if model_type != MseConfig.model_type:
        raise ValueError(f"--model {options.model} holds a model of type {model_type!r}; expected an MSE-Adapter")
    try:
        torch.empty(0, device=options.device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {options.device} cannot be used: {error}") from None
    logging.disable_progress_bar()
    try:
        processor = MseProcessor.from_pretrained(options.model, revision=options.revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {options.model} has no processor that can be read: {error}") from None
    model = MseForConditionalGeneration.from_pretrained(
        options.model, revision=options.revision, trust_remote_code=options.trust_remote_code, dtype="auto"
    )
    pipe = MultimodalSentimentPipeline(model, processor=processor, device=options.device)
    sample = {name: getattr(options, name) for name in ("text", "audio", "vision", "speaker")}
    turns = [turn.split(":", 1) for turn in options.context]
    sample["context"] = [tuple(map(str.strip, turn)) if len(turn) == 2 else turn[0] for turn in turns]
    return pipe(sample, method=options.method)


def as_text(answer):
    """The answer in words; classes by falling probability."""
    if "problem" in answer:
        return f"no answer: {answer['problem']}"
    if "value" in answer:
        spread = f" ± {answer['spread']:.2f}" if "spread" in answer else ""
        return f"sentiment intensity {answer['value']:+.2f}{spread}"
    if "probabilities" not in answer:
        return answer["label"]
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    return "\n".join(f"{probability:6.1%}  {label}" for label, probability in ranked)


if __name__ == "__main__":
    sys.exit(main())
