"""The examples in docstrings are true."""

import doctest

import pytest

from counterpoint.domains import prompts, sampler


@pytest.mark.parametrize("module", [prompts, sampler])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
