"""Whether a folder still holds what was saved: `python checksums.py FOLDER`. Both model packages have this same file.

`save_for_hub` leaves `checksums.json`, the SHA-256 of each file that it wrote. The card is not among them: it is meant
to be edited. Where there is no such file, as with a model that others saved, nothing is checked.
"""

import hashlib
import json
import sys
from pathlib import Path

from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

CHECKSUMS_FILE = "checksums.json"
NOT_COUNTED = (CHECKSUMS_FILE, "README.md")


def write_checksums(folder):
    """Writes `checksums.json` for all files of a folder, those of its folders included."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    sums = {name: sha256(Path(folder, name)) for name in names if name not in NOT_COUNTED}
    Path(folder, CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def read_checksums(folder):
    """`dict[str, str]` of names and SHA-256, or None where the folder has no `checksums.json`; ValueError for a
    damaged one."""
    path = Path(folder, CHECKSUMS_FILE)
    if not path.is_file():
        return None
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    are_strings = isinstance(sums, dict) and all(isinstance(value, str) for value in sums.values())
    if not are_strings or any(name.startswith("/") or ".." in name.split("/") for name in sums):
        raise ValueError(f"{path} is damaged: expected names of files in its folder, each with its SHA-256")
    return sums


def changed_files(folder, suffixes=("",)):
    """
    What is no longer as it was saved.

    Args:
        folder (`str` or `Path`), suffixes (`tuple[str]`): which files to look at, by how their names end.

    Returns:
        `list[str]`: names of changed and missing files, or None where there is no `checksums.json`.
    """
    sums = read_checksums(folder)
    if sums is None:
        return None

    def has_changed(name):
        path = Path(folder, name)
        return not path.is_file() or sha256(path) != sums[name]

    return [name for name in sums if name.endswith(suffixes) and has_changed(name)]


def require_saved_weights(name_or_path, **hub_options):
    """
    Refuses weights that are not those that `save_for_hub` wrote, and warns of settings that are not.

    Args:
        name_or_path (`str` or `Path`): folder or Hub id; of the latter, what of it lies in the cache is checked.
        hub_options: revision, subfolder, cache_dir, token, local_files_only ..., as for `from_pretrained`.

    Raises:
        ValueError: naming the files.
    """
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    try:
        found = cached_file(str(name_or_path), CHECKSUMS_FILE, **quiet, **hub_options)
    except OSError:  # no such folder or id: whoever loads it says so better
        return
    if found is None:
        return
    folder = Path(found).parent
    changed = changed_files(folder, (".safetensors", ".json"))
    weights = [name for name in changed if name.endswith(".safetensors") and Path(folder, name).exists()]
    if weights:
        raise ValueError(
            f"{', '.join(weights)} in {name_or_path}: not the weights that were saved there (the SHA-256 is not that "
            f"in {CHECKSUMS_FILE}); fetch them again, or delete {CHECKSUMS_FILE} if you put other weights there"
        )
    settings = [name for name in changed if name.endswith(".json") and Path(folder, name).exists()]
    if settings:
        logger.warning(f"{', '.join(settings)} in {name_or_path}: changed since it was saved")


def forget_checksums(folder):
    """Removes those of what is saved over: others' files carry none."""
    Path(folder, CHECKSUMS_FILE).unlink(missing_ok=True)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments):
    if len(arguments) != 1:
        raise SystemExit("usage: checksums FOLDER")
    (folder,) = arguments
    if not Path(folder).is_dir():
        raise SystemExit(f"{folder}: no such folder")
    try:
        changed = changed_files(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if changed is None:
        raise SystemExit(f"{folder} holds no {CHECKSUMS_FILE}: nothing to check it by")
    if changed:
        raise SystemExit(f"changed since {folder} was saved, or missing: {', '.join(changed)}")
    print(f"{folder}: {len(read_checksums(folder))} files as they were saved")


if __name__ == "__main__":
    main(sys.argv[1:])
