"""Writes docs/recovery/json.md from the dataclasses: ``python tests/recovery_json_reference.py``."""

import re
import sys
from pathlib import Path

from counterpoint.diagnosis.results import VERSION
from counterpoint.recovery.recovering.results import Recover
from counterpoint.recovery.refreshing.results import Refresh
from counterpoint.recovery.rolling_back.results import Rollback
from json_reference import reachable, section

PAGE = Path(__file__).parent.parent / "docs" / "recovery" / "json.md"

SCHEMAS = {
    "rollback": (
        Rollback,
        "`counterpoint rollback`: `RUN/recovery/rollback.json`; `counterpoint recover`: "
        "`RUN/recovery/rollback-DOMAIN/rollback.json`",
    ),
    "refresh": (Refresh, "`counterpoint refresh`: `RUN/recovery/refresh.json`"),
    "recover": (Recover, "`counterpoint recover`: `RUN/recovery/recover.json`"),
}

HEAD = f"""# JSON of a recovery

Every file is one object that begins with

| field | meaning |
|---|---|
| `schema` | `counterpoint.recovery.KIND`, with the kinds below |
| `version` | {VERSION}; it rises when a field is renamed, removed or changes its meaning |

A number that could not be computed is `null`. An *estimate* has `value` and the bounds `low` and `high` of its 95 %
interval. This page is written from the code by `tests/recovery_json_reference.py`.
"""


def page():
    """The whole page."""
    seen, parts = set(), [HEAD]
    for kind, (root, where) in SCHEMAS.items():
        parts.append(f"## `{kind}`\n\n{where}\n")
        for found in reachable(root):
            parts.append(f"**{found.__name__}**: see above.\n" if found in seen else section(found))
            seen.add(found)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
