"""What a tested program may use."""

from dataclasses import asdict, dataclass

from counterpoint.errors import RewardError

_MOST = 1 << 30
_LEAST_MEGABYTES = 64


@dataclass(frozen=True)
class Limits:
    """Limits of one tested program; its tests have the same, in a process of their own.

    Attributes:
        cpu_seconds: Processor time, in whole seconds.
        wall_seconds: Time from its start until everything is killed.
        memory_megabytes: Address space.
        threads: Threads at any moment. A program is one process: it cannot start others.
        file_megabytes: Size of any file it writes, its captured output included, and of its temporary directory.
    """

    cpu_seconds: int = 4
    wall_seconds: float = 8.0
    memory_megabytes: int = 512
    threads: int = 16
    file_megabytes: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = name != "wall_seconds"
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not 0 < value <= _MOST
            ):
                kind = "a whole number" if whole else "a number"
                raise RewardError(f"{name} must be {kind} above 0 and up to {_MOST}, found {value!r}.")
        if self.memory_megabytes < _LEAST_MEGABYTES:
            raise RewardError(
                f"memory_megabytes must be at least {_LEAST_MEGABYTES}, which Python itself needs, found "
                f"{self.memory_megabytes}."
            )
