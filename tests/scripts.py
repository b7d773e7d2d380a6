"""Scripts that are no part of a package, as modules."""

import importlib.util


def load_script(path):
    """The module that the file ``path`` makes."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
