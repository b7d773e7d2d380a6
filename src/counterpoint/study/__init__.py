"""Several runs compared: strategies by seeds, one base model, the same prompts and budget for all.

Nothing heavy is imported until a study is made.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.study.folder import StudyFolder
    from counterpoint.study.load import Study, load_study
    from counterpoint.study.schedule import run_jobs
    from counterpoint.study.summary import summarize

__all__ = ["Study", "StudyFolder", "load_study", "run_jobs", "summarize"]

_HOMES = {
    "Study": "load",
    "load_study": "load",
    "StudyFolder": "folder",
    "run_jobs": "schedule",
    "summarize": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
