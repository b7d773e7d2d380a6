"""The order of prompts, simulated as TRL and accelerate read it, for random batches and numbers of ranks."""

import random
import re
from collections import Counter

import pytest

from counterpoint.domains.sampler import DomainStream, QuotaSampler
from counterpoint.domains.shares import Geometry, normalise
from counterpoint.errors import DomainError


def fetches(sampler):
    """What each rank gets: rank r the r-th chunk of every W chunks, one chunk per micro-step."""
    geometry = sampler.geometry
    size = geometry.steps_per_generation * geometry.rows_per_device
    rows = list(sampler)
    assert len(rows) == len(sampler)
    assert len(rows) % (size * geometry.world) == 0
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [chunks[rank :: geometry.world] for rank in range(geometry.world)]


def micro_batches(chunks, geometry):
    """The micro-batch of every micro-step: a slice of the generation that its first fetch made."""
    every = geometry.steps_per_generation * geometry.iterations
    for step in range(len(chunks)):
        generation = chunks[step // every * every]
        assert chunks[step] == generation
        at = step % geometry.steps_per_generation * geometry.rows_per_device
        yield generation[at : at + geometry.rows_per_device]


def domain_of(sizes, row):
    for name, size in sizes.items():
        if row < size:
            return name
        row -= size
    raise AssertionError(row)


def random_case(seed):
    """A random batch, and shares that it can hold unless the rule is ``carry``."""
    rng = random.Random(seed)
    while True:
        accumulation = rng.randint(1, 12)
        divisors = [k for k in range(1, accumulation + 1) if accumulation % k == 0]
        case = {
            "num_generations": rng.choice([2, 3, 4, 8]),
            "rows_per_device": rng.choice([1, 2, 3, 4, 6, 8]),
            "accumulation": accumulation,
            "steps_per_generation": rng.choice([None, accumulation * 2, accumulation * 3, *divisors]),
            "iterations": rng.choice([1, 1, 2, 3]),
            "world": rng.choice([1, 2, 3]),
            "rule": rng.choice(["exact", "carry"]),
            "seed": seed,
        }
        sizes = {f"d{i}": rng.randint(1, 40) for i in range(rng.randint(1, 4))}
        shares = {name: rng.choice([1, 1, 2, 3]) for name in sizes}
        try:
            return QuotaSampler(sizes, shares=shares, **case), sizes, shares
        except DomainError:
            continue


@pytest.mark.parametrize("seed", range(150))
def test_every_step_holds_every_share_on_every_rank_in_whole_groups(seed):
    sampler, sizes, shares = random_case(seed)
    geometry, fractions = sampler.geometry, normalise(shares)
    unit = geometry.unit_micro_batches * geometry.accumulation // geometry.quota_micro_batches
    for epoch in range(2):
        sampler.set_epoch(epoch)
        ranks = fetches(sampler)
        layouts = []
        for chunks in ranks:
            assert len(chunks) == sampler.steps_per_epoch * geometry.accumulation
            for chunk in chunks:
                for start in range(0, len(chunk), geometry.num_generations):
                    assert len(set(chunk[start : start + geometry.num_generations])) == 1
            domains = [{domain_of(sizes, row) for row in batch} for batch in micro_batches(chunks, geometry)]
            assert all(len(found) == 1 for found in domains)
            layout = [found.pop() for found in domains]
            layouts.append(layout)
            for step in range(sampler.steps_per_epoch):
                counts = Counter(layout[step * geometry.accumulation : (step + 1) * geometry.accumulation])
                for name, share in fractions.items():
                    if geometry.quota_units * share == int(geometry.quota_units * share):
                        assert counts[name] == geometry.accumulation * share
                    else:
                        assert abs(counts[name] - geometry.accumulation * share) < 2 * unit
        assert all(layout == layouts[0] for layout in layouts), "ranks work on the same domain at the same time"


@pytest.mark.parametrize("seed", range(40))
def test_every_pass_of_a_domain_visits_every_row_once(seed):
    sampler, sizes, _ = random_case(seed)
    geometry = sampler.geometry
    drawn = {name: [] for name in sizes}
    for epoch in range(4):
        sampler.set_epoch(epoch)
        ranks = fetches(sampler)
        every = geometry.steps_per_generation * geometry.iterations
        for generation in range(0, len(ranks[0]), every):
            for chunks in ranks:
                for row in chunks[generation][:: geometry.num_generations]:
                    drawn[domain_of(sizes, row)].append(row)
    for name, rows in drawn.items():
        counts = Counter(rows)
        assert max(counts.values()) - min((counts[r] for r in counts), default=0) <= 1
        if len(rows) >= sizes[name]:
            assert len(counts) == sizes[name]


@pytest.mark.parametrize("seed", range(30))
def test_groups_of_different_sizes_are_whole_and_shares_are_of_completions(seed):
    rng = random.Random(seed)
    sizes = {f"d{i}": rng.randint(3, 20) for i in range(rng.randint(2, 3))}
    groups = {name: rng.choice([2, 3, 4, 6]) for name in sizes}
    batch = {"rows_per_device": rng.choice([2, 4]), "accumulation": 12 * len(sizes), "world": rng.choice([1, 2])}
    sampler = QuotaSampler(sizes, shares=dict.fromkeys(sizes, 1), num_generations=groups, seed=seed, **batch)
    prompts = {name: [] for name in sizes}
    for chunks in fetches(sampler):
        for chunk in chunks[:: sampler.geometry.steps_per_generation]:
            rows, counts = list(chunk), Counter(domain_of(sizes, row) for row in chunk)
            assert set(counts.values()) == {len(chunk) // len(sizes)}
            while rows:
                name = domain_of(sizes, rows[0])
                group, rows = rows[: groups[name]], rows[groups[name] :]
                assert group == [group[0]] * groups[name]
                prompts[name].append(group[0])
    for drawn in prompts.values():
        counts = Counter(drawn)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(map(len, prompts.values())) >= sum(sizes.values())  # an epoch draws as many prompts as there are rows


@pytest.mark.parametrize("seed", range(20))
def test_the_order_is_a_function_of_the_step_alone(seed):
    sampler, sizes, shares = random_case(seed)
    geometry = sampler.geometry
    other = QuotaSampler(
        sizes,
        shares=dict(reversed(shares.items())),
        num_generations=geometry.num_generations,
        rows_per_device=geometry.rows_per_device,
        accumulation=geometry.accumulation,
        steps_per_generation=geometry.steps_per_generation,
        iterations=geometry.iterations,
        world=geometry.world,
        rule="carry",
        seed=seed,
    )
    sampler.set_epoch(3)
    other.set_epoch(3)
    assert list(other) == list(sampler)
    assert list(sampler) == list(sampler)


def make(sizes, **changes):
    settings = {"num_generations": 4, "rows_per_device": 4, "accumulation": 4} | changes
    return QuotaSampler(sizes, shares=settings.pop("shares", dict.fromkeys(sizes, 1.0)), **settings)


def test_epochs_follow_each_other_as_one_long_epoch():
    sizes = {"a": 5, "b": 3}
    sampler = make(sizes)
    prompts = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        prompts += [fetch[start] for fetch in fetches(sampler)[0][::4] for start in (0, 4, 8, 12)]
    for name, first, after in (("a", 0, 5), ("b", 5, 8)):
        stream = DomainStream(sizes[name], 0, name)
        drawn = [row - first for row in prompts if first <= row < after]
        assert drawn == [stream[i] for i in range(12)]


def test_an_epoch_is_rounded_up_to_whole_generations():
    assert make({"a": 25}).steps_per_epoch == 7
    assert make({"a": 25}, steps_per_generation=8).steps_per_epoch == 8
    assert make({"a": 25}, iterations=3).steps_per_epoch == 21


def test_without_shuffling_every_pass_keeps_the_order_of_the_rows_inside_each_domain():
    sampler = make({"a": 3, "b": 2}, shuffle=False)
    sampler.set_epoch(1)
    prompts = [fetch[start] for fetch in fetches(sampler)[0][::4] for start in (0, 4, 8, 12)]
    assert [row for row in prompts if row < 3] == [1, 2, 0, 1]  # the second epoch goes on after four rows
    assert [row for row in prompts if row >= 3] == [3, 4, 3, 4]


def test_an_epoch_draws_as_many_prompts_as_there_are_rows():
    sampler = make({"a": 10, "b": 6})
    assert sampler.steps_per_epoch == 4
    prompts = [fetch[start] for fetch in fetches(sampler)[0][::4] for start in (0, 4, 8, 12)]
    assert len(prompts) == 16
    assert Counter(row < 10 for row in prompts) == {True: 8, False: 8}


def test_another_seed_gives_another_order():
    assert list(make({"a": 20}, seed=1)) != list(make({"a": 20}, seed=2))


def test_one_domain_on_one_rank_is_its_stream():
    stream = DomainStream(7, 0, "a")
    assert list(make({"a": 7}))[:: 4 * 4][:1] == [stream[0]]
    assert [stream[i] for i in range(14)] != [stream[i % 7] for i in range(14)], "each pass is shuffled anew"


def test_streams_of_two_domains_differ():
    assert [DomainStream(50, 0, "a")[i] for i in range(50)] != [DomainStream(50, 0, "b")[i] for i in range(50)]


def test_the_loader_of_torch_and_accelerate_reads_it_as_simulated():
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    sampler = make({"a": 9, "b": 4}, world=2, steps_per_generation=8, iterations=2)
    data = list(range(13))
    expected = fetches(sampler)
    for rank in range(2):
        loader = DataLoader(data, batch_size=8 * 4, sampler=sampler, collate_fn=list)
        shard = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        assert list(shard) == expected[rank]
        assert len(shard) == len(expected[rank])
        shard.set_epoch(1)
        assert sampler.epoch == 1
        assert list(shard) != expected[rank]
        sampler.set_epoch(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rows_per_device": 6, "accumulation": 3},
            "per_device_train_batch_size=6 and num_generations=4: whole micro-batches of whole groups come in 12 rows "
            "on each device, but gradient_accumulation_steps=3 gives 18. Use gradient_accumulation_steps=2 or 4",
        ),
        (
            {"num_generations": 8, "rows_per_device": 4, "accumulation": 8, "steps_per_generation": 1},
            "but steps_per_generation=1 gives 4. Use steps_per_generation=2,",
        ),
        (
            {"num_generations": 8, "accumulation": 16},
            "Shares 1:1:1 of the domains a, b, c cannot be met in a step of 8 units of 8 rows on each device (whole "
            "micro-batches of 4, whole groups of 8; gradient_accumulation_steps=16): gradient_accumulation_steps=12 or "
            "18 would do. Or change the shares, or set share_rule: carry.",
        ),
        (
            {"accumulation": 2, "steps_per_generation": 4},
            "gradient_accumulation_steps=3 would do (and a steps_per_generation to match; it is 4).",
        ),
        (
            {"accumulation": 6, "steps_per_generation": 4},
            "steps_per_generation=4 and gradient_accumulation_steps=6: one must divide the other, so that no step ends "
            "inside a generation. Use steps_per_generation=3 or 6.",
        ),
        (
            {"accumulation": 12, "steps_per_generation": 2, "iterations": 4},
            "num_iterations=4 with 6 generations per step (gradient_accumulation_steps=12, steps_per_generation=2): "
            "one must divide the other. Use num_iterations=3 or 6, or steps_per_generation=12.",
        ),
        ({"accumulation": 0}, "accumulation must be at least 1, found 0."),
        ({"shares": {"a": 1.0}}, "Shares are given for ['a'], but the domains are ['a', 'b', 'c']."),
    ],
)
def test_numbers_that_do_not_fit_name_those_that_do(changes, message):
    with pytest.raises(DomainError) as caught:
        make({"a": 3, "b": 3, "c": 4}, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", range(30))
def test_the_advice_is_good(seed):
    """Whatever gradient_accumulation_steps a message names is accepted."""
    rng = random.Random(seed)
    generations, rows = rng.choice([2, 3, 4, 8]), rng.choice([1, 2, 3, 4, 6])
    shares = {f"d{i}": float(rng.randint(1, 4)) for i in range(rng.randint(2, 4))}

    def attempt(accumulation):
        sizes = dict.fromkeys(shares, 5)
        return make(sizes, shares=shares, num_generations=generations, rows_per_device=rows, accumulation=accumulation)

    accumulation = rng.randint(1, 20)
    for _ in range(2):  # first the groups, then the shares
        try:
            assert attempt(accumulation)
            return
        except DomainError as error:
            advice = str(error).rsplit("gradient_accumulation_steps=", 1)[1]
            accumulation = int(re.findall(r"\d+", advice.split(",")[0].split(" would")[0])[-1])
    assert attempt(accumulation)


def test_an_empty_domain_is_named():
    with pytest.raises(DomainError, match="The domain 'b' has no rows"):
        make({"a": 3, "b": 0})


def test_units():
    geometry = Geometry(num_generations=8, rows_per_device=4, accumulation=12, steps_per_generation=4, world=2)
    assert (geometry.unit_rows, geometry.unit_prompts, geometry.unit_micro_batches) == (8, 1, 2)
    assert (geometry.quota_units, geometry.generation_units, geometry.period_generations) == (6, 2, 3)
