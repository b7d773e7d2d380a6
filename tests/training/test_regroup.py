import pytest
import torch

from counterpoint.training.regroup import DOMAIN_KEY, domain_of, regroup


def shuffled_buffer(counts, micro_batches, seed=0):
    """Micro-batches with ``counts[d]`` rows of domain d, shuffled; ``value`` identifies the row."""
    generator = torch.Generator().manual_seed(seed)
    domains = torch.cat([torch.full((n,), d) for d, n in enumerate(counts)])
    order = torch.randperm(len(domains), generator=generator)
    values = torch.arange(len(domains))[order]
    domains = domains[order]
    size = len(domains) // micro_batches
    return [
        {
            DOMAIN_KEY: domains[i * size : (i + 1) * size],
            "value": values[i * size : (i + 1) * size],
            "matrix": values[i * size : (i + 1) * size].unsqueeze(1).expand(size, 3),
            "names": [f"row {v}" for v in values[i * size : (i + 1) * size].tolist()],
            "total": torch.tensor(7.0),
            "absent": None,
        }
        for i in range(micro_batches)
    ]


@pytest.mark.parametrize(
    ("counts", "micro_batches", "per_step"),
    [((8, 8), 4, 4), ((8, 8), 4, 2), ((12, 4), 8, 8), ((6, 6, 6), 9, 9), ((6, 6, 6), 9, 3), ((16,), 4, 2)],
)
def test_every_micro_batch_holds_one_domain_and_every_row_survives(counts, micro_batches, per_step):
    buffer = shuffled_buffer(counts, micro_batches)
    result = regroup(buffer, per_step)

    assert len(result) == micro_batches
    assert all((part[DOMAIN_KEY] == domain_of(part)).all() for part in result)
    assert len({len(part["value"]) for part in result}) == 1
    assert sorted(torch.cat([part["value"] for part in result]).tolist()) == list(range(sum(counts)))
    for part in result:
        assert part["names"] == [f"row {v}" for v in part["value"].tolist()]
        assert torch.equal(part["matrix"][:, 0], part["value"])
        assert part["total"].item() == 7.0
        assert part["absent"] is None


@pytest.mark.parametrize(
    ("counts", "micro_batches", "per_step"), [((8, 8), 8, 4), ((24, 8), 16, 4), ((6, 6, 12), 12, 4)]
)
def test_every_step_gets_the_same_number_of_micro_batches_of_each_domain(counts, micro_batches, per_step):
    result = regroup(shuffled_buffer(counts, micro_batches), per_step)
    windows = [result[i : i + per_step] for i in range(0, micro_batches, per_step)]
    expected = [sorted(domain_of(part) for part in windows[0])] * len(windows)
    assert [[domain_of(part) for part in window] for window in windows] == expected


def test_rows_keep_their_order_inside_a_domain():
    buffer = shuffled_buffer((8, 8), 4)
    before = {d: torch.cat([p["value"][p[DOMAIN_KEY] == d] for p in buffer]).tolist() for d in (0, 1)}
    result = regroup(buffer, 4)
    after = {d: torch.cat([p["value"] for p in result if domain_of(p) == d]).tolist() for d in (0, 1)}
    assert before == after


def test_rows_that_do_not_fill_micro_batches_are_a_bug_of_ours():
    with pytest.raises(AssertionError, match="do not fill"):
        regroup(shuffled_buffer((5, 11), 4), 4)
