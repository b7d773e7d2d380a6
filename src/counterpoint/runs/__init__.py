"""The run directory: what a run leaves on disk, and how it is read back.

>>> from counterpoint.runs import RunDirectory
>>> RunDirectory.open("runs/pocket-mgs", write=False).lines("evals.jsonl")  # doctest: +SKIP
"""

from counterpoint.disk import append_line, write_bytes, write_json, write_text
from counterpoint.runs.directory import CONTINUED, Bystander, RunDirectory, check_place, environment
from counterpoint.runs.records import LINE_FILES
from counterpoint.runs.reporter import Reporter

__all__ = [
    "CONTINUED",
    "LINE_FILES",
    "Bystander",
    "Reporter",
    "RunDirectory",
    "append_line",
    "check_place",
    "environment",
    "write_bytes",
    "write_json",
    "write_text",
]
