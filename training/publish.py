"""Put a trained model on the Hub, so that all that a visitor of its page expects works.

    python -m training.publish FOLDER --repo_id USER/NAME [--private] [--space] [--dry_run]

FOLDER is what a training left (`save_for_hub`), of either model. Only files that belong to a published model go up;
checkpoints, predictions and whatever else lies there stay. Before anything is sent, the folder is checked: its
checksums, its card, and that a fresh process in which nothing of this repository can be imported loads just these
files and says of the example what the trained model said. Then one commit brings all files, and takes away those of an
earlier model that are no longer there; a tag names it, which the card's snippets pin. If the commit fails, the
repository is as it was, and one that this run made is gone again: the command can be run again.

`--space` puts a Space of the same name beside the model. `--dry_run` checks, and lists what would be sent.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from hf_ecgmamba.checksums import CHECKSUMS_FILE, changed_files, read_checksums
from training.fresh_process import run_fresh

ROOT = Path(__file__).resolve().parents[1]

# what a published model may consist of, and so what an earlier one may have left
MODEL_FILES = (
    *("README.md", "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("*.safetensors", "*.safetensors.index.json", "checksums.json", "*.NOTICE", "LICENSE*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*"),
    *("*.py", "requirements.txt", "Dockerfile", "example*.json", "example*.csv"),
    *(f"language_model/{name}" for name in ("*.json", "*.safetensors", "*.py", "*.jinja", "*.model", "*.txt")),
)
# weights in other formats, which a loader might take for the newest
OLD_WEIGHTS = ("pytorch_model*.bin*", "*.h5", "*.msgpack")
SPACE_FILES = ("README.md", "*.py", "requirements.txt", "*.html", "*.css", "*.js")
REPOSITORY, REVISION = "THIS_REPOSITORY", "THIS_REVISION"  # in cards and Spaces, until it is known

TRIES = 4
LONGEST_WAIT_SECONDS = 60.0
TRANSIENT = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Kind:
    """What differs between the two models: where their Space lies, how their pipeline is asked, how near is equal."""

    name: str
    space: Path
    task: str
    example: str
    tolerance: float  # of scores and probabilities; of values, in parts of their range


KINDS = {
    "ecgmamba": Kind("ECGMamba", ROOT / "model_cards/ecgmamba/space", "ecg-classification", "example.csv", 2e-3),
    "mse_adapter": Kind(
        "MSE-Adapter", ROOT / "model_cards/mse_adapter/space", "multimodal-sentiment", "example.json", 2e-2
    ),
}


class PublishError(Exception):
    """In one line: what is wrong, what became of the repository, what to do."""


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="what save_for_hub or a training left")
    parser.add_argument("--repo_id", required=True, help="USER/NAME")
    parser.add_argument("--private", action="store_true", help="if the repository is made now, nobody else sees it")
    parser.add_argument("--space", action="store_true", help="make or update a Space of the same name, too")
    parser.add_argument("--dry_run", action="store_true", help="check all, send nothing")
    options = parser.parse_args(arguments)
    try:
        publish(options.folder, options.repo_id, options.private, options.space, options.dry_run)
    except PublishError as error:
        raise SystemExit(f"publish: {error}") from None


def publish(folder, repo_id, private=False, space=False, dry_run=False, api=None):
    """
    Checks a folder and puts it on the Hub.

    Args:
        folder (`str` or `Path`), repo_id (`str`), private, space, dry_run (`bool`): as for the command.
        api (`huggingface_hub.HfApi`, *optional*): which Hub, and as whom.

    Returns:
        `str`: the address of the model's commit; None with `dry_run`.

    Raises:
        PublishError: in one line.
    """
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="publish-") as temporary:
        model = Path(temporary, "model")
        kind, revision = prepare(Path(folder), repo_id, model)
        try_in_fresh_process(kind, model)
        say(f"checked: a fresh process loads {folder}, and says of {kind.example} what it should")
        page = Path(temporary, "space")
        if space:
            prepare_space(kind, repo_id, revision, page)
        if dry_run:
            for staged, title in ((model, "model"), (page, "Space")):
                for name in names_in(staged):
                    say(f"{title}: {name}, {Path(staged, name).stat().st_size:,} bytes")
            say("nothing was sent (--dry_run)")
            return None
        api = api or HfApi()
        address = push(api, repo_id, model, private=private, message=f"Upload {kind.name}", tag=revision)
        say(f"published: {address}")
        if space:
            try:
                say(f"a Space: {push(api, repo_id, page, 'space', private, f'Upload the Space of {kind.name}')}")
            except PublishError as error:
                raise PublishError(f"the model is published, its Space is not: {error}") from None
        return address


def say(text):
    print(text, flush=True)


# -- before anything is sent ------------------------------------------------------------------------------------------


def check_repo_id(repo_id):
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"repo_id is {repo_id!r}: {' '.join(str(error).split())}") from None
    if repo_id.count("/") != 1:
        raise PublishError(f"repo_id is {repo_id!r}; expected USER/NAME")


def prepare(folder, repo_id, staging):
    """
    Puts what shall be sent into `staging`, checked as far as reading goes.

    Returns:
        `Kind`, `str`: which model it is, and the tag of just these files.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder; nothing was sent")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = KINDS[config["model_type"]]
        config["auto_map"].items(), config["custom_pipelines"][kind.task]["impl"]
    except FileNotFoundError:
        what = "a PEFT adapter" if (folder / "adapter_config.json").exists() else "no config.json"
        raise PublishError(f"{folder} holds {what}; expected what save_for_hub writes; nothing was sent") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PublishError(
            f"{folder}: config.json is not one that save_for_hub writes, of {' or '.join(KINDS)} "
            f"({type(error).__name__}: {error}); nothing was sent"
        ) from None
    names = publishable(folder, config, kind)
    staging.mkdir()
    for name in names:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            os.symlink((folder / name).resolve(), target)  # they are large
        else:
            shutil.copyfile(folder / name, target)
    digest = hashlib.sha256()
    for name in names:
        if name != "README.md":
            digest.update(f"{name} {hashlib.sha256((staging / name).read_bytes()).hexdigest()}\n".encode())
    revision = f"v{digest.hexdigest()[:8]}"
    fill_in(staging, repo_id, revision)
    check_card(staging / "README.md")
    return kind, revision


def publishable(folder, config, kind):
    """Names of the files that make up the model; PublishError for what is missing, changed or in part there."""
    try:
        sums, changed = read_checksums(folder), changed_files(folder)
    except ValueError as error:
        raise PublishError(f"{error}; nothing was sent") from None
    if changed:
        raise PublishError(
            f"{', '.join(changed)} in {folder}: missing, or not as save_for_hub left it; save the model again, or "
            f"delete {CHECKSUMS_FILE} if the change is yours; nothing was sent"
        )
    found = [name for name in names_in(folder) if any(matches(name, pattern) for pattern in MODEL_FILES)]
    if sums is not None:
        known = {*sums, CHECKSUMS_FILE, "README.md"}
    else:
        known = {name for name in found if not name.endswith(".py") or name.startswith("language_model/")}
        known |= code_of(folder, config, kind)
    needed = {"README.md", "handler.py", "requirements.txt", kind.example, "example_output.json"}
    missing = sorted(needed - {*found})
    if missing:
        raise PublishError(
            f"{folder} lacks {', '.join(missing)}; expected what save_for_hub writes: load the model and save it so; "
            "nothing was sent"
        )
    if not any(name.endswith(".safetensors") for name in found):
        raise PublishError(f"{folder} holds no weights (*.safetensors); nothing was sent")
    return [name for name in found if name in known]


def code_of(folder, config, kind):
    """Names of the code files that the config's classes, the pipeline and the handler need."""
    classes = [*config["auto_map"].values(), config["custom_pipelines"][kind.task]["impl"]]
    entries = {f"{one.rpartition('.')[0]}.py" for one in classes} | {"handler.py"}
    try:
        needed = {Path(file).name for entry in entries for file in get_relative_import_files(folder / entry)}
    except FileNotFoundError as error:
        raise PublishError(f"{folder} lacks {Path(error.filename).name}, a code file; nothing was sent") from None
    return entries | needed


def fill_in(folder, repo_id, revision):
    """Writes the repository's name and revision wherever they are asked for."""
    for name in names_in(folder):
        if name.endswith((".md", ".html")) or name == "app.py":
            path = folder / name
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(REPOSITORY, repo_id).replace(REVISION, revision), encoding="utf-8")


def check_card(path):
    """What the Hub would refuse or show as a blank; it looks once more when it is asked."""
    try:
        card = ModelCard.load(path, ignore_metadata_errors=False)
        data = card.data.to_dict()
    except (ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        raise PublishError(f"README.md: its front matter is broken: {' '.join(str(error).split())}") from None
    for name, is_right, expected in (
        ("license", lambda value: isinstance(value, str), "such as apache-2.0"),
        ("library_name", lambda value: value == "transformers", "transformers"),
        ("tags", lambda value: isinstance(value, list) and all(isinstance(tag, str) for tag in value), "a list"),
    ):
        if not is_right(data.get(name)):
            raise PublishError(f"README.md: {name} is {data.get(name)!r} in the front matter; expected {expected}")
    if left := re.search(r"\{\{ |\{%[ -]|\[More Information Needed\]", card.text):
        raise PublishError(f"README.md: {left[0]!r} stands where a text should be")


def try_in_fresh_process(kind, folder):
    """The staged files alone, as a stranger runs them, against what the trained model said."""
    code = f"""
import json
from transformers import pipeline
example = "example.csv"
if {kind.example!r} != example:
    example = json.load(open({kind.example!r}, encoding="utf-8"))
read = pipeline({kind.task!r}, model=".", trust_remote_code=True, device="cpu")
print("\\nSAID " + json.dumps(read(example)))
"""
    online = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"), "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    try:
        printed = run_fresh(code, folder, **online)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(lines) if re.match(r"\w*(Error|Exception|Interrupt)\b", line)), lines[-1]
        )
        raise PublishError(f"a fresh process cannot run the folder ({reason[:300]}); nothing was sent") from None
    finally:
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    came = json.loads(printed.rsplit("SAID ", 1)[1])
    stored = json.loads((folder / "example_output.json").read_text(encoding="utf-8"))
    difference = first_difference(came, stored, kind.tolerance)
    if difference:
        raise PublishError(
            f"of {kind.example} the folder's model says {difference} stored in example_output.json: these are not the "
            "weights or settings that were saved; save the model again; nothing was sent"
        )


def first_difference(came, stored, tolerance, at="answer"):
    """Where two answers differ by more than rounding: "answer.value is 1, not 2 as", or None."""
    if isinstance(stored, dict) and isinstance(came, dict) and came.keys() == stored.keys():
        pairs = [(came[key], stored[key], f"{at}.{key}") for key in stored if key not in ("present", "notes")]
    elif isinstance(stored, list) and isinstance(came, list) and len(came) == len(stored):
        if all(
            isinstance(one, dict) and "label" in one for one in (*came, *stored)
        ):  # two of one score may change places
            came, stored = (
                sorted(some, key=lambda one: (one["label"], one.get("start", 0))) for some in (came, stored)
            )
        pairs = [(one, other, f"{at}[{index}]") for index, (one, other) in enumerate(zip(came, stored, strict=True))]
    else:
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (came, stored))
        is_near = abs(came - stored) <= tolerance * max(1.0, abs(stored)) if numbers else came == stored
        return None if is_near else f"{at} {came!r}, not {stored!r} as"
    return next((found for pair in pairs if (found := first_difference(*pair[:2], tolerance, pair[2]))), None)


def prepare_space(kind, repo_id, revision, staging):
    staging.mkdir()
    for name in names_in(kind.space):
        if any(matches(name, pattern) for pattern in SPACE_FILES):
            shutil.copyfile(kind.space / name, staging / name)
    fill_in(staging, repo_id, revision)


def names_in(folder):
    """Names of the files in a folder and the folders in it, hidden ones left out."""
    files = sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return [path.as_posix() for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]


def matches(name, pattern):
    """As fnmatch, but * stays within a folder."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


# -- sending ----------------------------------------------------------------------------------------------------------


def push(api, repo_id, folder, repo_type="model", private=False, message="Upload", tag=None):
    """
    Makes the repository hold what `folder` holds, in one commit.

    Files of a repository that are neither there nor could be an earlier model's (or Space's) stay.

    Returns:
        `str`: the address of the commit.

    Raises:
        PublishError: the repository is then as it was, or gone again if it was made here.
    """
    state = "nothing was sent"
    is_new = False
    try:
        head = find_head(api, repo_id, repo_type, private)
        if head is None:
            create(api, repo_id, repo_type, private)
            is_new = True
            head = patiently(lambda: api.repo_info(repo_id, repo_type=repo_type)).sha
        commit = commit_patiently(api, repo_id, folder, repo_type, head, message)
    except BaseException as error:
        state = "the repository is as it was"
        if is_new:
            state = undo(api, repo_id, repo_type)
        if isinstance(error, (httpx2.HTTPError, OSError, RuntimeError, ValueError)):
            raise PublishError(f"{reason_of(error, repo_id)}; {state}; run the command again") from None
        raise
    if tag is not None:
        try:
            patiently(
                lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type=repo_type, exist_ok=True)
            )
        except httpx2.HTTPError as error:
            raise PublishError(
                f"{commit.commit_url} is published, but the tag {tag} that its card names is missing: "
                f"{reason_of(error, repo_id)}; run the command again"
            ) from None
    return commit.commit_url


def find_head(api, repo_id, repo_type, private):
    """The commit that the repository is at, or None where there is none."""
    try:
        info = patiently(lambda: api.repo_info(repo_id, repo_type=repo_type))
    except RepositoryNotFoundError:
        return None
    if private and not info.private:
        raise ValueError(f"{repo_id} is there already, and public: --private cannot change that")
    return info.sha


def create(api, repo_id, repo_type, private):
    """Makes a repository that was not there a moment ago."""
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    for attempt in range(TRIES):
        try:
            return api.create_repo(repo_id, repo_type=repo_type, private=private or None, **sdk)
        except httpx2.HTTPError as error:
            if not is_transient(error) or attempt == TRIES - 1:
                raise
            time.sleep(waiting_time(error, attempt))
            if patiently(lambda: api.repo_exists(repo_id, repo_type=repo_type)):  # only the answer was lost
                return None


def commit_patiently(api, repo_id, folder, repo_type, head, message):
    """One commit on top of `head`, tried again where the connection or the Hub failed and it did not arrive."""
    for attempt in range(TRIES):
        try:
            operations = operations_for(api, repo_id, folder, repo_type, head)
            return api.create_commit(
                repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=head
            )
        except httpx2.HTTPError as error:
            if not is_transient(error) or attempt == TRIES - 1:
                raise
            time.sleep(waiting_time(error, attempt))
            now = patiently(lambda: api.repo_info(repo_id, repo_type=repo_type)).sha
            if now != head:
                if not holds(api, repo_id, folder, repo_type):
                    raise ValueError(f"somebody else pushed to {repo_id} meanwhile") from None
                head = now  # it did arrive, only its answer was lost: nothing is left to commit


def operations_for(api, repo_id, folder, repo_type, head):
    names = names_in(folder)
    listed = patiently(lambda: api.list_repo_files(repo_id, repo_type=repo_type, revision=head))
    patterns = SPACE_FILES if repo_type == "space" else (*MODEL_FILES, *OLD_WEIGHTS)
    stale = [name for name in listed if name not in names and any(matches(name, pattern) for pattern in patterns)]
    added = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(Path(folder, name).resolve())) for name in names
    ]
    return [*added, *(CommitOperationDelete(path_in_repo=name) for name in stale)]


def holds(api, repo_id, folder, repo_type):
    """Whether the repository's files are the folder's: by git's hash, or SHA-256 where they are large."""
    remote = {entry.path: entry for entry in api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type)}
    for name in names_in(folder):
        data = Path(folder, name).read_bytes()
        if name not in remote:
            return False
        if remote[name].lfs is not None:
            is_same = remote[name].lfs.sha256 == hashlib.sha256(data).hexdigest()
        else:
            is_same = remote[name].blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if not is_same:
            return False
    return True


def undo(api, repo_id, repo_type):
    """Takes away the repository that this run made; says what became of it."""
    try:
        patiently(lambda: api.delete_repo(repo_id, repo_type=repo_type, missing_ok=True))
    except httpx2.HTTPError:
        return f"{repo_id}, made for this, could not be deleted again and is empty"
    return "the repository that was made for this is gone again"


def patiently(call):
    """The result of a call to the Hub, which is tried again where the connection or the Hub failed."""
    for attempt in range(TRIES):  # HfHubHTTPError is an httpx2.HTTPError
        try:
            return call()
        except httpx2.HTTPError as error:
            if not is_transient(error) or attempt == TRIES - 1:
                raise
            time.sleep(waiting_time(error, attempt))


def is_transient(error):
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in TRANSIENT
    return isinstance(error, httpx2.TransportError)


def waiting_time(error, attempt):
    """What the Hub asks for, else 1, 2, 4 s."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked) if asked.isdigit() else 2.0**attempt, LONGEST_WAIT_SECONDS)


def reason_of(error, repo_id):
    while not isinstance(error, httpx2.HTTPError) and error.__cause__ is not None:  # an upload's is wrapped up
        error = error.__cause__
    if isinstance(error, httpx2.HTTPError) and not isinstance(error, HfHubHTTPError):
        return f"no connection to the Hub, or it broke ({type(error).__name__})"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    reasons = {
        401: "the Hub does not know you (401): log in with `hf auth login`, or set HF_TOKEN",
        403: f"you may not write to {repo_id} (403): it takes a token with write permission there",
        404: f"the Hub finds no {repo_id} (404): is it yours, and your token allowed to see it?",
        409: f"another push to {repo_id} is under way (409)",
        412: f"somebody else pushed to {repo_id} meanwhile (412)",
        429: "the Hub asks for patience: too many requests (429)",
    }
    if status in reasons:
        return reasons[status]
    if status is not None and status >= 500:
        return f"the Hub has failed ({status})"
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    sys.exit(main())
