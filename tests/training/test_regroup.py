import pytest
import torch

from counterpoint.errors import UnsupportedError
from counterpoint.training.batches import DOMAIN_KEY, PROMPT_KEY, domain_of, regroup


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
    ("counts", "micro_batches", "steps"),
    [
        ((8, 8), 4, None),
        ((8, 8), 4, [[2, 2]]),
        ((8, 8), 4, [[1, 1], [1, 1]]),
        ((12, 4), 8, [[6, 2]]),
        ((6, 6, 6), 9, [[1, 1, 1], [1, 2, 0], [1, 0, 2]]),
        ((16,), 4, [[2], [2]]),
    ],
)
def test_every_micro_batch_holds_one_domain_and_every_row_survives(counts, micro_batches, steps):
    result = regroup(shuffled_buffer(counts, micro_batches), steps)

    assert len(result) == micro_batches
    assert all((part[DOMAIN_KEY] == domain_of(part)).all() for part in result)
    assert len({len(part["value"]) for part in result}) == 1
    assert sorted(torch.cat([part["value"] for part in result]).tolist()) == list(range(sum(counts)))
    for part in result:
        assert part["names"] == [f"row {v}" for v in part["value"].tolist()]
        assert torch.equal(part["matrix"][:, 0], part["value"])
        assert part["total"].item() == 7.0
        assert part["absent"] is None


@pytest.mark.parametrize("steps", [[[2, 2], [2, 2]], [[3, 1], [1, 3]], [[4, 0], [0, 4]]])
def test_every_step_gets_its_own_numbers(steps):
    result = regroup(shuffled_buffer((8, 8), 8), steps)
    domains = [domain_of(part) for part in result]
    assert [[domains[i : i + 4].count(d) for d in (0, 1)] for i in (0, 4)] == steps
    assert all(domains[i : i + 4] == sorted(domains[i : i + 4]) for i in (0, 4))


@pytest.mark.parametrize("steps", [[[3, 2]], [[2, 1]], [[2, 3], [0, 0]]])
def test_numbers_that_do_not_fit_the_rows_are_a_bug_of_ours(steps):
    with pytest.raises(AssertionError, match="left"):
        regroup(shuffled_buffer((8, 8), 4), steps)


def test_rows_keep_their_order_inside_a_domain():
    buffer = shuffled_buffer((8, 8), 4)
    before = {d: torch.cat([p["value"][p[DOMAIN_KEY] == d] for p in buffer]).tolist() for d in (0, 1)}
    result = regroup(buffer)
    after = {d: torch.cat([p["value"] for p in result if domain_of(p) == d]).tolist() for d in (0, 1)}
    assert before == after


def test_rows_that_do_not_fill_micro_batches_are_a_bug_of_ours():
    with pytest.raises(AssertionError, match="do not fill"):
        regroup(shuffled_buffer((5, 11), 4))


def prompts_of_halves(parts, domain_id):
    """The prompts in the micro-batches of one domain at even and at odd places."""
    own = [part for part in parts if domain_of(part) == domain_id]
    return [{int(p) for part in own[half::2] for p in part[PROMPT_KEY]} for half in (0, 1)]


@pytest.mark.parametrize(
    ("counts", "steps"), [((16, 16), None), ((16, 16), [[4, 4]]), ((24, 8), [[6, 2]]), ((16, 16), [[2, 2], [2, 2]])]
)
def test_halves_of_a_domain_share_no_prompt(counts, steps):
    buffer = shuffled_buffer(counts, 8)
    for part in buffer:
        part[PROMPT_KEY] = part["value"] // 4  # four completions of each prompt
    result = regroup(buffer, steps, halves=True)
    assert sorted(torch.cat([part["value"] for part in result]).tolist()) == list(range(sum(counts)))
    lengths = [sum(step) for step in steps] if steps else [len(result)]
    for start, length in zip([sum(lengths[:i]) for i in range(len(lengths))], lengths, strict=True):
        for domain_id in range(len(counts)):
            first, second = prompts_of_halves(result[start : start + length], domain_id)
            assert first
            assert second
            assert not first & second


def test_without_halves_shuffled_rows_mix_prompts_so_the_check_can_fail():
    buffer = shuffled_buffer((16, 16), 8)
    for part in buffer:
        part[PROMPT_KEY] = part["value"] // 4
    first, second = prompts_of_halves(regroup(buffer), 0)
    assert first & second


def test_one_prompt_lies_in_both_halves_where_a_half_is_no_whole_number_of_prompts():
    buffer = shuffled_buffer((12,), 3)
    for part in buffer:
        part[PROMPT_KEY] = part["value"] // 6  # two prompts over three micro-batches of four
    first, second = prompts_of_halves(regroup(buffer, halves=True), 0)
    assert len(first & second) == 1


def images(num_images, key="pixel_values"):
    """A buffer of one micro-batch of four rows: two patches for every image, which say whose they are."""
    rows = torch.arange(len(num_images))
    owner = rows.repeat_interleave(2 * torch.tensor(num_images)).float()
    return {
        DOMAIN_KEY: rows % 2,
        PROMPT_KEY: rows,
        "image_grid_thw": torch.tensor([[1, 1, 2]] * sum(num_images)),
        "num_images": num_images,
        key: owner.unsqueeze(1),
    }


def test_images_go_with_their_rows():
    whole = images([2, 1, 0, 1])
    halves = [
        {key: value[:2] for key, value in whole.items() if key in (DOMAIN_KEY, PROMPT_KEY, "num_images")},
        {key: value[2:] for key, value in whole.items() if key in (DOMAIN_KEY, PROMPT_KEY, "num_images")},
    ]
    halves[0] |= {"pixel_values": whole["pixel_values"][:6], "image_grid_thw": whole["image_grid_thw"][:3]}
    halves[1] |= {"pixel_values": whole["pixel_values"][6:], "image_grid_thw": whole["image_grid_thw"][3:]}
    first, second = regroup(halves)
    assert (first[PROMPT_KEY].tolist(), first["num_images"]) == ([0, 2], [2, 0])
    assert first["pixel_values"].squeeze(1).tolist() == [0, 0, 0, 0]
    assert (second[PROMPT_KEY].tolist(), second["num_images"]) == ([1, 3], [1, 1])
    assert second["pixel_values"].squeeze(1).tolist() == [1, 1, 3, 3]


def test_a_micro_batch_without_images_is_text_to_the_model():
    whole = images([1, 0, 1, 0])
    parts = [{key: value[i : i + 2] for key, value in whole.items() if key != "pixel_values"} for i in (0, 2)]
    for part, pixels in zip(parts, whole["pixel_values"].split(2), strict=True):
        part |= {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 1, 2]])}
    first, second = regroup(parts)
    assert first["pixel_values"].squeeze(1).tolist() == [0, 0, 2, 2]
    assert set(second) == {DOMAIN_KEY, PROMPT_KEY}


def test_what_cannot_be_cut_by_completion_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="'later_pixels' of this model's batches has 8 rows for 4 completions"):
        regroup([images([1, 1, 1, 1], "later_pixels") | {"image_grid_thw": torch.zeros(4, 3)}])
