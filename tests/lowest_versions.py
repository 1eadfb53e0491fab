"""`python tests/lowest_versions.py > constraints`: the lowest version of every package that setup.cfg allows.

pip takes it as a constraints file, so that `make test-lowest` shows whether the bounds are true.
"""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirements(*extras):
    """`{package: lowest version}` of setup.cfg's requirements and some of its extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].splitlines()
    lines += [line for extra in extras for line in setup["options.extras_require"][extra].splitlines()]
    return dict(bound for line in lines if (bound := lowest_of(line)))


def lowest_of(line):
    """(package, lowest version) of a requirement; None for comments and references to other extras."""
    found = re.match(r"([A-Za-z][\w.-]*)\s*(?:\[.*?\])?\s*(.*?)\s*(?:;|$)", line.strip())
    if not found:
        return None
    bound = re.search(r">=\s*([\w.]+)", found[2])
    if bound is None:
        raise ValueError(f"{found[1]} has no lowest version in {line.strip()!r}; expected one, as NAME>=VERSION")
    return found[1], bound[1]


if __name__ == "__main__":
    for package, version in requirements("demo", "test").items():
        print(f"{package}=={version}")
