"""The examples in docstrings are true."""

import doctest

import pytest

from counterpoint.domains import prompts, shares


@pytest.mark.parametrize("module", [prompts, shares])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
