"""The delivered folders hold this repository's code, and what their checksums say."""

import shutil

import pytest

from training.refresh_folders import delivered_folders, refresh, sources_of, stale_files


@pytest.mark.parametrize("folder", delivered_folders(), ids=lambda folder: folder.name)
def test_a_delivered_folder_is_up_to_date(folder):
    assert stale_files(folder) == [], "run training/refresh_folders.py"


def test_what_differs_is_found_and_refreshed(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(delivered_folders()[0], folder)
    refresh(folder)
    code = [source.name for source in sources_of(folder) if source.suffix == ".py"]
    (folder / code[0]).write_text("changed")
    (folder / code[1]).unlink()
    (folder / "left_over.py").touch()
    assert stale_files(folder) == sorted([code[0], code[1], "left_over.py"])
    refresh(folder)
    assert stale_files(folder) == []
