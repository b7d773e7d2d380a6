"""The table of rewards, and building one by name."""

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any

from counterpoint.errors import RewardError, nearest
from counterpoint.rewards.values import Blame

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
    # how little a completion repeats itself
    "repetition": "counterpoint.rewards.guards:RepetitionReward",
    # how little of a completion stands in its prompt
    "copying": "counterpoint.rewards.guards:CopyingReward",
    # how little completions to different prompts are alike
    "same_answer": "counterpoint.rewards.guards:SameAnswerReward",
    # the four toy domains of counterpoint.pocket
    "pocket": "counterpoint.rewards.pocket:PocketReward",
    # a language model behind an OpenAI-compatible endpoint, by a rubric
    "judge": "counterpoint.rewards.judge:JudgeReward",
    # a sequence classifier of transformers with one label
    "reward_model": "counterpoint.rewards.reward_model:RewardModelReward",
    # the scorer that comes with each reasoning-gym task
    "reasoning_gym": "counterpoint.rewards.reasoning_gym:ReasoningGymReward",
}


def build_reward(name: str, **options: Any) -> Callable[..., list[float | None]]:
    """The reward ``name`` of ``REWARDS``, or the one at ``package.module:object``, built with ``options``.

    A class is constructed with the options; a function gets them as fixed keyword arguments. The module is looked for
    among the installed packages, in ``PYTHONPATH``, and then in the current folder. Importing it runs it.

    Raises:
        RewardError: an unknown name or option, naming the nearest known one, or whatever the module or the class
            raises.
    """
    if name in REWARDS:
        return _construct(name, load_object(f"Reward {name!r}", REWARDS[name]), options)
    if ":" not in name:
        raise RewardError(f"Unknown reward {name!r}; {nearest(name, [*REWARDS, 'package.module:object'])}")
    target = load_object(f"Reward {name!r}", name)
    if isinstance(target, type):
        return _construct(name, target, options)
    if not callable(target):
        raise RewardError(f"Reward {name!r} is {type(target).__name__}, not a function or a class of functions.")
    return _bind(name, target, options) if options else target


def load_object(what: str, path: str) -> Any:
    """The user's own object at ``package.module:object``; ``what`` says what it is, in messages.

    Raises:
        RewardError: there is none, or its module cannot be imported.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise RewardError(f"{what} is not of the form package.module:object. Write it so.")
    with Blame(f"{what}: importing {module_name}", ". Mend the module."):
        module = _import(what, module_name)
        found: Any = module
        for part in attribute.split("."):
            if not hasattr(found, part):
                hint = nearest(part, vars(module))
                raise RewardError(f"{what}: {module_name!r} has no {attribute!r}; {hint}")
            found = getattr(found, part)
    return found


def make_importable(folder: str) -> None:
    """Looks for modules in ``folder`` too: last, so that no file lying there can stand for an installed module."""
    if folder not in sys.path:
        sys.path.append(folder)


def _import(what: str, module_name: str) -> Any:
    folder = str(Path.cwd())
    make_importable(folder)
    importlib.invalidate_caches()  # the module may have been written just now
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # found, and something that it imports is missing
        raise RewardError(
            f"{what}: there is no module {error.name!r} among the installed packages, in PYTHONPATH or in "
            f"the current folder, {folder}. Put it beside the configuration, name its folder (folder: beside its "
            "name), or set PYTHONPATH."
        ) from error


def _construct(name: str, cls: Any, options: dict[str, Any]) -> Any:
    with Blame(f"Reward {name!r}: building it", f", with {_names(options)}. Mend the options or the class."):
        _check_options(name, cls, options)
        try:
            return cls(**options)
        except RewardError as error:
            raise RewardError(f"Reward {name!r}: {error}") from error


def _names(options: dict[str, Any]) -> str:
    return f"the options {', '.join(options)}" if options else "no options"


def _check_options(name: str, called: Any, options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(called).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "It takes none."
            raise RewardError(f"Reward {name!r} has no option {option!r}; {hint}")


def _bind(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    with Blame(f"Reward {name!r}: reading its options", ""):
        _check_options(name, function, options)

    def bound(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{**kwargs, **options})

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **{**kwargs, **options})

    return update_wrapper(awaited if inspect.iscoroutinefunction(function) else bound, function)
