"""The delivered folders carry the package's code: is it today's?

    python training/refresh_folders.py [--check]

Every folder in model_cards/ that holds a model gets the code, the endpoint's handler and its requirements as they are
in this repository, and new checksums. With --check nothing is written, and what differs is listed (exit code 1).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import hf_ecgmamba.publishing
import hf_mse_adapter.publishing_mse_adapter
from hf_ecgmamba.checksums import changed_files, write_checksums

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"ecgmamba": hf_ecgmamba.publishing, "mse_adapter": hf_mse_adapter.publishing_mse_adapter}
ENDPOINT_FILES = ("handler.py", "requirements.txt")


def delivered_folders():
    """`list[Path]` of the folders in model_cards/ that hold a model."""
    return sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))


def sources_of(folder):
    """The files of this repository that a folder carries (`list[Path]`), by the type of its model."""
    package = PACKAGES[json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]]
    return package.code_files() + [package.CARD_FOLDER / name for name in ENDPOINT_FILES]


def stale_files(folder):
    """Names of what is missing in a folder, is not as in this repository, or belongs to it no more; and of what
    differs from its checksums."""
    sources = {source.name: source for source in sources_of(folder)}
    names = {*sources, *(path.name for path in folder.glob("*.py"))}

    def is_stale(name):
        path = folder / name
        return name not in sources or not path.is_file() or path.read_bytes() != sources[name].read_bytes()

    changed = changed_files(folder)
    return sorted({name for name in names if is_stale(name)} | set(["checksums.json"] if changed is None else changed))


def refresh(folder):
    """Bring a folder's code up to date."""
    sources = sources_of(folder)
    for path in folder.glob("*.py"):
        if path.name not in {source.name for source in sources}:
            path.unlink()
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    write_checksums(folder)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, list what differs")
    options = parser.parse_args(arguments)
    stale = {folder.name: names for folder in delivered_folders() if (names := stale_files(folder))}
    for name, names in stale.items():
        if not options.check:
            refresh(ROOT / "model_cards" / name)
        print(f"{name}: {', '.join(names)}{'' if options.check else ' (refreshed)'}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
