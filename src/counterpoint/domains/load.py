"""All domains of a configuration; what is wrong with any of them is said at once."""

from typing import Any

from counterpoint.config import Config
from counterpoint.domains.build import Domain, build_domain
from counterpoint.errors import CounterpointError, DomainError


def load_domains(config: Config, tokenizer: Any) -> list[Domain]:
    """Every domain with its training rows, held-out rows and rewards, in the order of the configuration.

    The result depends on the configuration, the data and the tokenizer alone.

    Args:
        config: a checked configuration.
        tokenizer: the model's tokenizer; prompts are measured with it.

    Raises:
        DomainError: one line per domain that cannot be used, each with what was found and what to do.
    """
    domains: list[Domain] = []
    problems: list[str] = []
    for name in config.domains:
        try:
            domains.append(build_domain(name, config, tokenizer))
        except CounterpointError as error:
            problems.append(f"domains.{name}: {error}")
    if problems:
        raise DomainError("\n".join(problems))
    return domains
