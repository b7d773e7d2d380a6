"""The table of rewards, and building one by name."""

import importlib
import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from counterpoint.errors import RewardError, nearest

REWARDS: dict[str, str] = {
    # the final answer of a calculation: numbers exactly, anything else by math-verify
    "math": "counterpoint.rewards.math:MathReward",
    # passes the row's tests in the sandbox
    "code": "counterpoint.rewards.code:CodeReward",
    # multiple choice by letter or by text
    "choice": "counterpoint.rewards.choice:ChoiceReward",
    # IFEval and IFBench checks
    "instructions": "counterpoint.rewards.instructions:InstructionsReward",
    # exact match, containment or token F1 against references
    "text": "counterpoint.rewards.text:TextReward",
    # words or characters within a range
    "length": "counterpoint.rewards.shape:LengthReward",
    # think and answer tags in their places
    "format": "counterpoint.rewards.shape:FormatReward",
    # the four toy domains of counterpoint.pocket
    "pocket": "counterpoint.rewards.pocket:PocketReward",
    # the scorer that comes with each reasoning-gym task
    "reasoning_gym": "counterpoint.rewards.reasoning_gym:ReasoningGymReward",
}


def build_reward(name: str, **options: Any) -> Callable[..., list[float | None]]:
    """The reward ``name`` of ``REWARDS``, or the one at ``package.module:object``, built with ``options``.

    A class is constructed with the options; a function gets them as fixed keyword arguments. Raises ``RewardError`` for
    an unknown name or option, naming the nearest known one.
    """
    if name in REWARDS:
        return _construct(name, _load(name, REWARDS[name]), options)
    if ":" not in name:
        raise RewardError(f"Unknown reward {name!r}; {nearest(name, [*REWARDS, 'package.module:object'])}")
    target = _load(name, name)
    if isinstance(target, type):
        return _construct(name, target, options)
    if not callable(target):
        raise RewardError(f"Reward {name!r} is {type(target).__name__}, not a function or a class of functions.")
    return _bind(name, target, options) if options else target


def _load(name: str, path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RewardError(
            f"Reward {name!r}: {error}. Is the package installed, and is the name spelled right?"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RewardError(f"Reward {name!r}: {module_name!r} has no {attribute!r}; {nearest(part, vars(module))}")
        found = getattr(found, part)
    return found


def _construct(name: str, cls: Any, options: dict[str, Any]) -> Any:
    _check_options(name, list(inspect.signature(cls).parameters.values()), options)
    try:
        return cls(**options)
    except RewardError as error:
        raise RewardError(f"Reward {name!r}: {error}") from error
    except TypeError as error:
        raise RewardError(f"Reward {name!r} cannot be built with {options}: {error}.") from error


def _check_options(name: str, parameters: list[inspect.Parameter], options: dict[str, Any]) -> None:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "It takes none."
            raise RewardError(f"Reward {name!r} has no option {option!r}; {hint}")


def _bind(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    _check_options(name, list(inspect.signature(function).parameters.values()), options)

    def bound(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, **options})

    return update_wrapper(bound, function)
