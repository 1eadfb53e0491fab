"""What the packages need is said once, with a lowest version of each, and published folders ask for the same."""

import configparser
import re

import pytest

from tests.lowest_versions import ROOT, lowest_of, requirements

# of what publishing writes from now on; a folder that was published keeps its own
REQUIREMENTS = sorted(ROOT.glob("model_cards/ecgmamba/**/requirements.txt"))
REQUIREMENTS += sorted(ROOT.glob("model_cards/mse_adapter/**/requirements.txt"))


def test_every_requirement_has_a_lowest_version():
    lowest = requirements("demo", "test")
    assert {"torch", "transformers", "peft", "pytest", "neurokit2"} <= set(lowest)
    assert lowest["transformers"] == "5.23" and lowest["av"] == "18"


def test_a_requirement_without_lowest_version_is_named():
    assert lowest_of("    # a comment") is None and lowest_of("%(test)s") is None
    assert lowest_of('triton>=3.5; sys_platform == "linux"') == ("triton", "3.5")
    assert lowest_of("peft>=0.21,<0.22") == ("peft", "0.21")
    with pytest.raises(ValueError, match="numpy has no lowest version in 'numpy<3'"):
        lowest_of("numpy<3")


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: str(path.relative_to(ROOT / "model_cards")))
def test_published_folders_ask_for_the_versions_of_setup_cfg(path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    known = {line.strip() for line in setup["options"]["install_requires"].splitlines()}
    names = {re.split(r"[><=]", line)[0] for line in known}
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.split(r"[><=]", line)[0] in names:
            assert line in known
    assert len(REQUIREMENTS) >= 4
