"""The code of a pipeline goes wherever its model is saved. Both model packages have this same file.

transformers saves the code of a model of remote code with it, but not that of the pipeline which the config names: a
folder that was loaded, and saved again, would then say what it cannot do.
"""

import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import cached_file

HERE = Path(__file__).resolve().parent


def save_pipeline_code(config, folder):
    """
    Copies the file that `config.custom_pipelines` names, and all that it imports beside itself, into a folder.

    Args:
        config (`PreTrainedConfig`): of the model that was saved there. What does not lie beside this file is fetched
            from where the model came from.
        folder (`str` or `Path`)

    Raises:
        OSError: for a file that is to be found in neither place.
    """
    pipelines = (getattr(config, "custom_pipelines", None) or {}).values()
    wanted = [f"{pipeline['impl'].split('.')[0]}.py" for pipeline in pipelines]
    seen = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        source, target = HERE / name, Path(folder, name)
        if not source.is_file():
            source = Path(cached_file(config.name_or_path, name, revision=getattr(config, "_commit_hash", None)))
        if not target.exists() or not target.samefile(source):
            unfinished = target.with_name(f".{name}.unfinished")
            shutil.copyfile(source, unfinished)
            os.replace(unfinished, target)
        wanted += [f"{module}.py" for module in get_relative_imports(source)]
