"""From a study file to a checked ``Study``: every problem of the file and of every row's run is told at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from counterpoint.config import Config
from counterpoint.config.document import Document, Problem, dump_yaml
from counterpoint.config.load import TrainingCheck, plain_problems, read_document, validated
from counterpoint.config.variables import Filled, Key, put_back
from counterpoint.errors import ConfigError, nearest
from counterpoint.inputs import expanded, kind_of
from counterpoint.study.relations import row_findings
from counterpoint.study.row_configs import RowConfigs, build_configs, domains_of, of_row
from counterpoint.study.rows import expanded_rows, too_many
from counterpoint.study.schema import KINDS, Row, StudyConfig, expand_row


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        config: the file.
        rows: name -> row, orders expanded.
        configs: the configuration of every run but for its seed, by row and, for experts, domain (``""`` elsewhere).
        base: the configuration that all rows start from.
        filled: what its file took from the environment.
    """

    config: StudyConfig
    rows: dict[str, Row]
    configs: RowConfigs
    base: Config
    filled: tuple[Filled, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the base configuration, in the order of every table."""
        return tuple(self.base.domains)

    def seeds(self, row: str) -> tuple[int, ...]:
        """The seeds of one row."""
        own = self.rows[row].seeds
        return self.config.seeds if own is None else own

    def to_yaml(self) -> str:
        """The study with its rows and its base configuration in full, ``${VAR}`` for what came from the environment."""
        rows = {name: row.model_dump(mode="json") for name, row in self.rows.items()}
        data = self.config.model_dump(mode="json") | {"config": self.base.written(), "rows": rows}
        return dump_yaml(put_back(data, [one for name in rows for one in of_row(self.filled, name)]))


def load_study(path: str | Path, check_training: TrainingCheck | None = None) -> Study:
    """The study in the YAML file ``path``.

    Raises:
        ConfigError: one line per problem of the file, of its base configuration and of every row's run, each with
            where it stands, what was found and what to do.
    """
    path = Path(path)
    document = _read(path, "study")
    config, problems = validated(StudyConfig, document, ())
    _raise(problems)
    assert isinstance(config, StudyConfig)
    rows, row_problems = _rows(document, config)
    base_document, base_path = _base(document, config, path)
    domains = domains_of(base_document.data)
    if reason := too_many(rows, domains):
        _raise([*row_problems, document.problem(("rows",), reason)])
    rows = expanded_rows(rows, domains)
    configs, base, problems = build_configs(rows, base_document, base_path, document, check_training)
    if not row_problems:
        problems += _findings(document, config, rows, configs, base)
    _raise([*row_problems, *problems])
    assert base is not None
    return Study(config, rows, configs, base, tuple(document.filled))


def _findings(
    document: Document, config: StudyConfig, rows: dict[str, Row], configs: RowConfigs, base: Config | None
) -> Iterator[Problem]:
    for path, message in row_findings(config, rows, configs, base):
        yield document.problem(path, message)


def _read(path: Path, what: str) -> Document:
    document = read_document(path, f"{what} file")
    _raise([*document.problems, *plain_problems(document)])
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        _raise([Problem(str(path), (), f"a {what} is a mapping, found {found}.")])
    return document


def _rows(document: Document, config: StudyConfig) -> tuple[dict[str, Row], list[Problem]]:
    rows: dict[str, Row] = {}
    problems: list[Problem] = []
    for name, written in config.rows.items():
        data = {} if written is None else expand_row(written)
        at: Key = ("rows", name)
        kind = data.get("kind", "train") if isinstance(data, dict) else "train"
        if not isinstance(data, dict):
            message = f"expected a strategy's name or a mapping, found {data!r}."
            problems.append(document.problem(at, message))
        elif not isinstance(kind, str) or kind not in KINDS:
            message = f"unknown kind {kind!r}: {nearest(str(kind), KINDS)}"
            problems.append(document.problem((*at, "kind"), message))
        else:
            row, found = validated(KINDS[kind], document, at, data)
            problems += found
            if isinstance(row, Row):
                rows[name] = row
    return rows, problems


def _base(document: Document, config: StudyConfig, path: Path) -> tuple[Document, Path]:
    """The base configuration as data with its places, and the file that its relative paths lie beside."""
    if isinstance(config.config, dict):
        places = {key[1:]: place for key, place in document.places.items() if key[:1] == ("config",)}
        filled = [replace(one, path=one.path[1:]) for one in document.filled if one.path[0] == "config"]
        return Document(config.config, document.name, places, filled=filled), path
    wanted = expanded(config.config)
    beside = path.parent / wanted
    base = beside if kind_of(beside) else wanted
    return _read(base, "configuration"), base


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        lines = list(dict.fromkeys(str(problem) for problem in problems))
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ConfigError("\n".join([f"The study has {count}:", *(f"  {line}" for line in lines)]))
