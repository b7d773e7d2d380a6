"""What a tested program may use."""

from dataclasses import asdict, dataclass

from counterpoint.errors import RewardError


@dataclass(frozen=True)
class Limits:
    """Limits of one tested program.

    Attributes:
        cpu_seconds: Processor time of each of its processes, in whole seconds.
        wall_seconds: Time from its start until everything it started is killed.
        memory_megabytes: Address space of each of its processes.
        processes: Processes and threads at any moment.
        file_megabytes: Size of any file it writes, its captured output included, and of its temporary directory.
    """

    cpu_seconds: int = 4
    wall_seconds: float = 8.0
    memory_megabytes: int = 512
    processes: int = 16
    file_megabytes: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = name != "wall_seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value <= 0:
                kind = "a whole number" if whole else "a number"
                raise RewardError(f"{name} must be {kind} above 0, found {value!r}.")
