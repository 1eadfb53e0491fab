"""The field's metrics as modules of evaluate, one folder each."""

from pathlib import Path

import evaluate


def load_metric(name, config_name=None):
    """The module in the folder `name`; `config_name` chooses among its configurations, where it has several."""
    # kept in memory: the processes of one training would lock each other's cache files
    return evaluate.load(str(Path(__file__).resolve().parent / name), config_name, keep_in_memory=True)
