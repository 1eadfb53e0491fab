"""Data sets, metrics and recipes, and the scripts that people launch. The model packages know nothing of it."""

import logging

# where it is installed, it warns at import of a kernel that nothing here uses
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
