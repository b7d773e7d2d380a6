"""Names of the standard library that solutions in LeetCode's form use without importing them, as its judges allow."""

import builtins
import functools
import importlib
from collections.abc import Set

# Those of LiveCodeBench; a name of two modules is the earlier one's.
_MODULES = [
    *("builtins", "collections", "heapq", "bisect", "itertools", "functools", "math", "typing", "string", "copy"),
    *("random", "statistics", "datetime", "operator", "re", "json"),
]
_MODULES_ALONE = ["io", "os", "sys", "time"]  # their own names are often those of variables
_NODES = {
    "ListNode": "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val, self.next = val, next",
    "TreeNode": "class TreeNode:\n    def __init__(self, val=0, left=None, right=None):\n"
    "        self.val, self.left, self.right = val, left, right",
}


def statements_for(names: Set[str]) -> str:
    """Lines that define those of ``names`` that are the library's; a name that is a module's stands for the module."""
    return "".join(f"{_statements()[name]}\n" for name in sorted(names & _statements().keys()))


@functools.cache
def _statements() -> dict[str, str]:
    found = dict(_NODES)
    for module in reversed(_MODULES):
        held = importlib.import_module(module)
        public = getattr(held, "__all__", [name for name in dir(held) if not name.startswith("_")])
        found |= {name: f"from {module} import {name}" for name in public}
    found |= {module: f"import {module}" for module in [*_MODULES, *_MODULES_ALONE]}
    return {name: statement for name, statement in found.items() if name not in dir(builtins)}
