"""What the processes of a launch do together."""

import pytest

from counterpoint.errors import RunError
from counterpoint.launch import Launch
from ranks_helper import run_ranks


def together():
    launch = Launch.join()
    calls = []
    shared = launch.share(lambda: calls.append(1) or {"from": launch.rank})
    launch.wait()
    return {
        "shared": shared,
        "calls": len(calls),
        "gathered": launch.gather(f"rank {launch.rank}"),
        "any": launch.any(launch.rank == 1),
        "none": launch.any(False),
        "first": launch.first,
    }


def test_the_first_rank_acts_and_all_know():
    results = run_ranks(together, 2)
    for result in results:
        assert result["shared"] == {"from": 0}
        assert result["gathered"] == ["rank 0", "rank 1"]
        assert result["any"]
        assert not result["none"]
    assert [result["calls"] for result in results] == [1, 0]
    assert [result["first"] for result in results] == [True, False]


def refused():
    launch = Launch.join()

    def occupied():
        raise RunError("occupied")

    with pytest.raises(RunError, match="occupied"):
        launch.share(occupied)
    return "went on"


def test_an_error_of_the_first_rank_is_raised_on_all():
    assert run_ranks(refused, 2) == ["went on", "went on"]


def test_alone_everything_is_a_plain_call():
    launch = Launch(0, 1)
    assert launch.first
    assert launch.share(lambda: 7) == 7
    assert launch.gather(7) == [7]
    assert launch.any(True)
    assert not launch.any(False)
    launch.wait()
