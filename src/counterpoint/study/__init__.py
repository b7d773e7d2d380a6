"""Several runs compared: strategies by seeds, one base model, the same prompts and budget for all.

>>> from counterpoint.study import StudyFolder, load_study, summarize
>>> study = load_study("examples/pocket-study.yaml")  # doctest: +SKIP
>>> result = summarize(study, StudyFolder(Path("studies/pocket")))  # doctest: +SKIP
>>> print(result), result.to_frame()  # doctest: +SKIP
"""

from counterpoint.study.jobs import Job, JobRecord, StudyFolder, check_unchanged, plan_jobs
from counterpoint.study.load import Study, load_study
from counterpoint.study.results import Planned, RowResult, StudyResult
from counterpoint.study.run import run_jobs
from counterpoint.study.summary import expected_power, summarize

__all__ = [
    "Job",
    "JobRecord",
    "Planned",
    "RowResult",
    "Study",
    "StudyFolder",
    "StudyResult",
    "check_unchanged",
    "expected_power",
    "load_study",
    "plan_jobs",
    "run_jobs",
    "summarize",
]
