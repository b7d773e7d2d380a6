import pytest

from counterpoint.config import parse_config
from counterpoint.engine.stages import plan_stages
from counterpoint.errors import ConfigError

DOMAINS = {name: {"source": "pocket"} for name in ("math", "code", "qa")}


def stages(strategy, max_steps):
    return plan_stages(parse_config({"strategy": strategy, "domains": DOMAINS}), max_steps)


def test_one_stage_with_all_domains_unless_sequential():
    (stage,) = stages("mgs", 40)
    assert (stage.domains, stage.first_step, stage.last_step) == (("math", "code", "qa"), 0, 40)


def test_sequential_divides_the_same_budget_over_its_stages():
    result = stages("sequential", 11)
    assert [(s.domains, s.num_steps) for s in result] == [(("math",), 4), (("code",), 4), (("qa",), 3)]
    assert [s.first_step for s in result] == [0, 4, 8]
    assert result[-1].last_step == 11


def test_a_domain_may_return_and_stages_may_have_their_own_length():
    result = stages({"name": "sequential", "order": ["code", "math", "code"], "steps": 5}, 999)
    assert [s.domains[0] for s in result] == ["code", "math", "code"]
    assert [s.num_steps for s in result] == [5, 5, 5]


def test_fewer_steps_than_stages_is_refused():
    with pytest.raises(ConfigError, match=r"max_steps: 2 steps cannot be divided over 3 stages. Use at least 3"):
        stages("sequential", 2)
