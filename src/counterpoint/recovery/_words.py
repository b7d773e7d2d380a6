"""How results of recovery are worded and kept: one phrase for one verdict, wherever it stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from counterpoint.errors import RunError
from counterpoint.results import Result, of_plain
from counterpoint.runs.records import AnyObject, read_as, write_checked
from counterpoint.stats import Estimate, Harm, Standing, harm
from counterpoint.tables import shown

T = TypeVar("T", bound=Result)


class TakenError(RunError):
    """A folder holds the result of something else, which is not overwritten."""


STANDINGS: Mapping[str, str] = {
    "back": "is back",
    "improved": "improved and is not back",
    "not proven": "did not change beyond noise",
    "fell": "fell further",
}
"""Verdict of ``stats.standing`` -> how it is said of a domain."""


def score(value: Estimate) -> str:
    """``0.812 [0.780, 0.843]``."""
    return shown(value, ".3f")


def change(value: Estimate) -> str:
    """``+0.050 [+0.021, +0.079]``."""
    return shown(value, "+.3f")


def gained(domain: str, found: Standing, margin: float) -> str:
    """``math is back: +0.210 [+0.120, +0.300], 0.012 below its former score (0.03 counts as the same)``."""
    verdict = STANDINGS[found.verdict]
    if found.verdict == "not proven" and found.gain.value > 0:
        verdict = "improved, but not proven"
    place = f"{abs(found.missing):.3f} {'below' if found.missing > 0 else 'above'} its former score"
    return f"{domain} {verdict}: {change(found.gain)}, {place} (up to {margin:g} below counts as the same)"


def harms(changes: Mapping[str, Estimate], domain: str, margin: float) -> dict[str, Harm]:
    """What happened to every domain but ``domain``, by its paired change."""
    return {name: harm(value, margin) for name, value in changes.items() if name != domain}


def others(changes: Mapping[str, Estimate], found: Mapping[str, Harm], margin: float) -> str:
    """What happened to the other domains; the number stands wherever a fall is not excluded."""
    if not found:
        return ""
    parts = []
    for verdict, said in (("harmed", "Harmed"), ("unclear", "Not known whether harmed")):
        names = [f"{name} {change(changes[name])}" for name, one in found.items() if one == verdict]
        parts += [f"{said}: {', '.join(names)}."] if names else []
    spared = [name for name, one in found.items() if one == "spared"]
    if len(spared) == len(found):
        return f"No other domain fell by more than {margin:g} ({', '.join(spared)})."
    return " ".join([*parts, *([f"Spared: {', '.join(spared)}."] if spared else [])])


def place(path: str | Path) -> str:
    """A checkpoint as it is kept in a result: absolute where it is a folder, else a name as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def write(path: Path, result: Result) -> None:
    """Writes a result with its sentences, and with a hash that tells if it is changed afterwards."""
    write_checked(path, {**result.to_dict(), "sentences": list(result.sentences())})


def read(kind: type[T], path: Path) -> T:
    """The result that ``write`` wrote; RunError where it cannot be read, or was changed since."""
    remedy = f"Move {path.parent} away and repeat the command."
    return read_as(path, AnyObject, remedy, lambda row: of_plain(kind, row))
