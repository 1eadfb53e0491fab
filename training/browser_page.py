"""A page on which a trained ECGMamba runs in the visitor's browser; the ECG never leaves the machine.

    python -m training.browser_page FOLDER OUTPUT [--int8] [--ort DIR]

OUTPUT becomes a folder that any host of files serves, such as a static Space
(`hf upload USER/NAME OUTPUT . --repo-type space`): the page from model_cards/ecgmamba/browser, the network as ONNX,
what the page must know of it, and an example. onnxruntime-web comes from a public CDN, in one version; with
`--ort DIR`, the `dist` folder of that npm package, a copy lies beside the page, which then connects to no other place
at all. To try it: `python -m http.server --directory OUTPUT`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from hf_ecgmamba import EcgMambaFeatureExtractor, EcgMambaForSequenceClassification
from hf_ecgmamba.onnx import export_onnx, metadata
from hf_ecgmamba.publishing import drawn_up_ecg, write_csv
from hf_ecgmamba.statements import in_words

PAGE = Path(__file__).resolve().parents[1] / "model_cards" / "ecgmamba" / "browser"
ORT_VERSION = "1.30.0"
ORT_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{ORT_VERSION}/dist/"
# where the Hub sends a browser that asks a Space for a large file; a policy holds for redirections, too
HUB_STORAGE = "https://huggingface.co https://*.huggingface.co https://*.hf.co"
EXAMPLE_RATE = 250  # of nobody's ECG; the page must change it
PROBLEM_TYPES = ("multi_label_classification", "single_label_classification")


def main(arguments=None):
    """Runs the command; returns its exit code: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.browser_page", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", help="a trained classifier, or a repository of the Hub")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="made where it is missing")
    parser.add_argument("--int8", action="store_true", help="weights in eight bits: a smaller file, other answers")
    parser.add_argument("--ort", metavar="DIR", type=Path, help="the folder dist of the npm package onnxruntime-web")
    options = parser.parse_args(arguments)
    try:
        build_page(options.folder, options.output, options.int8, options.ort)
    except (ValueError, OSError, ImportError) as error:
        print(f"browser_page: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 1e6:.1f} MB; python -m http.server --directory {options.output} shows it")
    return 0


def build_page(folder, output, int8=False, ort=None):
    """
    Writes the page of a trained classifier.

    Args:
        folder (`str` or `Path`): what `save_for_hub` or a training left, or a repository of the Hub.
        output (`str` or `Path`): the page's folder; files of an earlier page are replaced, each at once.
        int8 (`bool`, defaults to `False`): see [`~hf_ecgmamba.onnx.export_onnx`].
        ort (`str` or `Path`, *optional*): the `dist` folder of onnxruntime-web, to be served beside the page.

    Raises:
        ValueError: for a model that the page cannot run as Python does.
        OSError, ImportError: for missing files and libraries.
    """
    output = Path(output)
    missing = [name for name in ORT_FILES if ort is not None and not Path(ort, name).is_file()]
    if missing:
        raise FileNotFoundError(f"ort is {ort}, which holds no {missing[0]}; expected onnxruntime-web's folder dist")
    model = EcgMambaForSequenceClassification.from_pretrained(folder).eval()
    feature_extractor = EcgMambaFeatureExtractor.from_pretrained(folder)
    facts = page_facts(model.config, feature_extractor)

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".building-") as temporary:
        staging = Path(temporary)
        shutil.copytree(PAGE, staging, dirs_exist_ok=True)
        export_onnx(model, feature_extractor, staging / "model.onnx", int8)
        facts = {"name": "ECGMamba", **facts, "runtime": CDN if ort is None else "ort/"}
        (staging / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        leads = feature_extractor.leads
        write_csv(staging / "example.csv", drawn_up_ecg(leads, EXAMPLE_RATE), leads, EXAMPLE_RATE)
        page = (staging / "index.html").read_text(encoding="utf-8")
        page = page.replace(" THE_RUNTIME", f" {CDN}" if ort is None else "")
        page = page.replace(" THE_STORAGE", f" {CDN} {HUB_STORAGE}" if ort is None else "")
        (staging / "index.html").write_text(page, encoding="utf-8")
        if ort is not None:
            (staging / "ort").mkdir()
            for name in ORT_FILES:
                shutil.copyfile(Path(ort, name), staging / "ort" / name)
        for file in [file for file in staging.rglob("*") if file.is_file()]:
            target = output / file.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    if ort is None:
        shutil.rmtree(output / "ort", ignore_errors=True)


def page_facts(config, feature_extractor):
    """What the page must know of a model: the ONNX file's own metadata (which browsers do not show), and words.

    Raises:
        ValueError: for what the page does not do.
    """
    if config.problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type is {config.problem_type!r}; expected {' or '.join(PROBLEM_TYPES)}")
    for name in ("bandpass", "remove_baseline"):
        if getattr(feature_extractor, name):
            raise ValueError(f"{name} is {getattr(feature_extractor, name)!r}; the page has no such filter")
    facts = {name: json.loads(value) for name, value in metadata(config, feature_extractor).items()}
    facts["thresholds"] = facts["thresholds"] or [0.5] * len(facts["labels"])
    words = [in_words(label) for label in facts["labels"]]
    return {**facts, "max_gap_seconds": feature_extractor.max_gap_seconds, "words": words}


if __name__ == "__main__":
    sys.exit(main())
