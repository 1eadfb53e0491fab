"""`python -m hf_ecgmamba FILE --model DIR_OR_ID`: what is in this ECG? Of many files, `--table scores.csv`."""

import argparse
import csv
import glob
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from .default_network import NAME, default_network
from .measurements import as_line
from .plotting import clock, spelled_out

PICTURES = (".png", ".pdf", ".svg")


def main(arguments=None):
    """Runs the command; returns its exit code: 0; 2 with one line on stderr, or where one of many recordings fails; 3
    where, for a doubt, nothing is found in it or in one of many."""
    options = parser().parse_args(arguments)
    try:
        options.files = find_files(options.file)
        options.file = options.files[0]
        check_outputs(options)
        answers = classify(options) if len(options.files) == 1 else classify_files(options)
        if options.table is not None:
            write_table(answers if isinstance(answers, list) else [answers], options)
    except (ValueError, OSError, ImportError) as error:
        message = re.sub(
            r"\b(sampling_rate|leads|units|record)=", lambda name: f"--{name[1].replace('_', '-')}", str(error)
        )
        print(f"hf_ecgmamba: {' '.join(message.split())}", file=sys.stderr)
        return 2
    about = {"file": options.file, "model": options.model or NAME}
    if not isinstance(answers, list):
        print(in_json({**about, **answers}) if options.json else as_text(answers, options))
        return 3 if answers["refused"] is not None and not answers["findings"] else 0
    if options.json:
        if len(options.files) == 1:
            print(in_json({**about, "recordings": answers}))
        else:
            print(in_json([{**about, **answer} for answer in answers]))
    else:
        print(as_table(answers, options))
    failed = [answer for answer in answers if "error" in answer]
    without = [answer for answer in answers if "error" not in answer and not answer["findings"]]
    return 2 if failed else 3 if without else 0


def parser():
    parser = argparse.ArgumentParser(
        prog="python -m hf_ecgmamba",
        description="Classify an ECG recording. Research software, not a medical device.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="+",
        help="WFDB (.hea), .csv, .txt, .npy, .npz, .mat, .h5, .edf ...; several, a pattern such as 'ecgs/*.hea', or - "
        "for what comes from another command",
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help=f"a folder, or a repository of the Hub (default: {NAME}, which this package brings)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of that repository")
    parser.add_argument(
        "--record", help="which recording of a file that holds many, by exam_id or number (default: all)"
    )
    parser.add_argument("--plot", metavar="PNG", help="draw the ECG with its findings (.png, .pdf or .svg)")
    parser.add_argument("--label", help="shade in the plot what the model looked at for this label")
    parser.add_argument("--table", metavar="CSV", help="write a line of scores for each recording")
    parser.add_argument("--json", action="store_true", help="print the result for a machine")
    parser.add_argument("--measure", action="store_true", help="heart rate, intervals, axis, too (needs neurokit2)")
    parser.add_argument("--top-k", type=int, metavar="K", help="print the K highest scores only")
    parser.add_argument("--sampling-rate", type=float, metavar="HZ", help="of a file that does not state it")
    parser.add_argument("--leads", type=lambda text: text.split(","), help="of a file that does not, as I,II,V1")
    parser.add_argument("--units", help="of a file that does not: mV, uV, V, nV or mV per unit")
    parser.add_argument(
        "--on-doubt",
        "--on_doubt",
        choices=("refuse", "note"),
        help="note: findings also in a recording that is probably not what it is said to be (default: refuse)",
    )
    parser.add_argument("--batch-size", type=int, help="windows at once (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)")
    return parser


def find_files(given):
    """Files by their names and patterns, each once, in order; "-" is what comes on stdin."""
    files = []
    for name in given:
        if name == "-" or os.path.exists(name) or not glob.has_magic(name):
            files.append(name)
        else:
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise FileNotFoundError(f"no file fits {name}")
            # of a record with a header, the header
            headers = [one for one in found if one.endswith(".hea")]
            stems = {one.removesuffix(".hea") for one in headers}
            files += [one for one in found if one in headers or os.path.splitext(one)[0] not in stems]
    return list(dict.fromkeys(files))


def load(options):
    """The pipeline, and what its calls are given."""
    from transformers.utils import logging

    from .pipeline_ecg_classification import load_pipeline

    logging.disable_progress_bar()  # of the weights, which load in no time
    model, revision = options.model or default_network(), options.revision or "main"
    ecg = load_pipeline(model, revision, options.device, batch_size=options.batch_size)
    logging.enable_progress_bar()
    arguments = {name: getattr(options, name) for name in ("top_k", "sampling_rate", "leads", "units", "on_doubt")}
    return ecg, arguments | {"progress": sys.stderr.isatty(), "measurements": options.measure}


def content_of(name):
    """What the pipeline reads: the file's name, or the bytes that come on stdin."""
    if name != "-":
        return name
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError("nothing came on stdin; expected a recording's file")
    return content


def classify_files(options):
    """A `dict` for each recording of several files: `file`, perhaps `record`, and the result or an `error`."""
    ecg, arguments = load(options)
    arguments["progress"] = False
    answers = []
    for name in options.files:
        try:
            content = content_of(name)
            many = recordings_of(ecg, content, options, arguments)
            found = answers_to(ecg, many, arguments) if many else [ecg(content, record=options.record, **arguments)]
        except (ValueError, OSError, ImportError) as error:
            found = [{"error": " ".join(str(error).split())}]
        answers += [{"file": name, **answer} for answer in found]
    return answers


def classify(options):
    """
    Reads, scores and, where asked, draws; progress of long work goes to stderr if that is a terminal.

    Returns:
        `dict`, a result of the pipeline; of a file of many recordings and no choice, a list of them, each with its
        `record` and perhaps an `error` in place of all else.
    """
    ecg, arguments = load(options)
    content = content_of(options.file)
    if many := recordings_of(ecg, content, options, arguments):
        if options.plot is not None:
            raise ValueError(f"--plot draws one recording of the {len(many)} in {options.file}; expected --record too")
        return answers_to(ecg, many, {**arguments, "progress": False})
    arguments["record"] = options.record
    if options.plot is None:
        return ecg(content, **arguments)
    result, _ = ecg.plot(content, options.plot, options.label, **arguments)
    return result


def recordings_of(ecg, content, options, arguments):
    """The recordings of a file that holds many and of which none is chosen, else None."""
    if options.record is not None:
        return None
    given = {name: arguments[name] for name in ("sampling_rate", "leads", "units") if arguments[name] is not None}
    many = ecg.recordings(content, **given)
    return many if len(many) > 1 else None


def answers_to(ecg, many, arguments):
    return [answer_of(ecg, many, place, arguments) for place in range(len(many))]


def answer_of(ecg, many, place, arguments):
    """The result for one recording of many, which one that cannot be read does not stop."""
    try:
        return {"record": many.names[place], **ecg(many[place], **arguments)}
    except (ValueError, OSError) as error:
        return {"record": many.names[place], "error": " ".join(str(error).split())}


def check_outputs(options):
    """What would otherwise fail after the work is done."""
    if options.plot is not None and len(options.files) > 1:
        raise ValueError(f"--plot draws one recording, but there are {len(options.files)} files; expected one")
    if "-" in options.files and len(options.files) > 1:
        raise ValueError("- is one of several files; expected it alone")
    if options.table is not None:
        path = Path(options.table)
        if path.suffix.lower() != ".csv":
            raise ValueError(f"--table {path}: expected a name ending in .csv")
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"--table {path}: its folder does not exist")
    if options.label is not None and options.plot is None:
        raise ValueError("--label chooses what --plot shades; expected --plot too")
    if options.plot is not None:
        path = Path(options.plot)
        if path.suffix not in PICTURES:
            raise ValueError(f"--plot {path}: expected a name ending in {', '.join(PICTURES)}")
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"--plot {path}: its folder does not exist")


def as_text(result, options):
    """The result for a person: findings as a table, then timeline, notes, and where the picture is."""
    lines = ["stdin" if options.file == "-" else Path(options.file).name, ""]
    if not result["findings"]:
        lines += [f"  no findings: {result['refused']}", "  (--on-doubt note gives them all the same)"]
    elif result["refused"] is not None:
        lines += [f"  in doubt: {result['refused']}", ""]
    width = max((len(spelled_out(finding["label"])) for finding in result["findings"]), default=0)
    is_number = any(finding["present"] is None for finding in result["findings"])
    for finding in result["findings"]:
        score = f"{finding['score']:.4g}" if is_number else f"{finding['score']:6.1%}  {bar(finding['score'])}"
        lines.append(f"  {spelled_out(finding['label']):<{width}}  {score}{'  found' if finding['present'] else ''}")
    if result["timeline"]:
        lines += ["", f"  {'from':<8}  {'to':<8}  found there"]
    for entry in result["timeline"]:
        score = f"{entry['score']:.4g}" if is_number else f"{entry['score']:6.1%}"
        when = f"{clock(entry['start']):<8}  {clock(entry['end']):<8}"
        lines.append(f"  {when}  {spelled_out(entry['label']):<{width}}  {score}")
    if "measurements" in result:
        measured = result["measurements"]
        lines += ["", f"  {as_line(measured)}"]
        lines += [f"  not measured: {field}, {why}" for field, why in measured["failed"].items()]
    notes = [note for note in result["notes"] if note != result["refused"]]
    lines += ["", *(f"  note: {note}" for note in notes)] if notes else []
    lines += ["", f"  picture: {options.plot}"] if options.plot else []
    lines += [] if options.model else ["", f"  answered by {NAME}, the network that this package brings"]
    return "\n".join(lines)


def as_table(answers, options):
    """A line for each recording of a file of many, or of many files: what is found in it, or why nothing is."""
    is_one_file = len(options.files) == 1
    of = Path(options.file).name if is_one_file else f"{len(options.files)} files"
    lines = [f"{of}, {len(answers)} recordings", ""]
    names = [":".join(answer[part] for part in ("file", "record") if part in answer) for answer in answers]
    width = max(map(len, names))
    for name, answer in zip(names, answers, strict=True):
        if "error" in answer:
            words = f"failed: {answer['error']}"
        elif not answer["findings"]:
            words = f"no findings: {answer['refused']}"
        elif any(finding["present"] is None for finding in answer["findings"]):
            words = ", ".join(f"{finding['label']} {finding['score']:.4g}" for finding in answer["findings"])
        else:
            found = [f"{one['label']} {one['score']:.1%}" for one in answer["findings"] if one["present"]]
            words = ", ".join(found) or "nothing found"
        lines.append(f"  {name:<{width}}  {words}")
    hint = "--record NAME" if is_one_file else "its name alone"
    return "\n".join([*lines, "", f"  {hint} shows one with its scores and notes, --json all of them"])


def write_table(answers, options):
    """A csv, whole or not at all: file, record, error or refusal, findings with their scores' columns, notes."""
    labels = list(dict.fromkeys(one["label"] for answer in answers for one in answer.get("findings", ())))
    handle, temporary = tempfile.mkstemp(dir=Path(options.table).resolve().parent, suffix=".csv")
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            scores = [f"score_{label}" for label in labels]
            writer.writerow(["file", "record", "findings", *scores, "no_findings", "error", "notes"])
            for answer in answers:
                found = {one["label"]: one for one in answer.get("findings", ())}
                writer.writerow([
                    answer.get("file", options.file),
                    answer.get("record", ""),
                    ";".join(label for label, one in found.items() if one["present"]),
                    *(found[label]["score"] if label in found else "" for label in labels),
                    "" if found else answer.get("refused", ""),
                    answer.get("error", ""),
                    ";".join(answer.get("notes", ())),
                ])  # fmt: skip
        os.chmod(temporary, 0o644)
        os.replace(temporary, options.table)
    finally:
        Path(temporary).unlink(missing_ok=True)


def in_json(answer):
    return json.dumps(answer, ensure_ascii=False, indent=2)


def bar(score):
    return f"{'█' * round(20 * score):<20}"


if __name__ == "__main__":
    sys.exit(main())
