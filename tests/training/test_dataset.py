import pytest
from datasets import Dataset

from counterpoint.errors import DomainError
from counterpoint.training.batches import combine_domains


def test_domains_with_columns_of_different_types_live_together():
    data = combine_domains({"math": [{"prompt": "1+1", "answer": 2}], "qa": [{"prompt": "who", "answer": ["a", "b"]}]})
    assert data.domains == ("math", "qa")
    rows = data.expand([data.place(data.index[i]) for i in (1, 0)])
    assert rows[0] == {"prompt": "who", "answer": ["a", "b"], "domain": "qa"}
    assert rows[1]["answer"] == 2


def test_columns_that_a_domain_lacks_are_none():
    data = combine_domains({"math": [{"prompt": "1+1", "answer": "2"}], "code": [{"prompt": "f", "tests": ["t"]}]})
    math, code = data.expand([("math", 0), ("code", 0)])
    assert math["tests"] is None
    assert code["answer"] is None


def test_a_domain_column_gives_the_same_as_a_mapping():
    rows = [{"prompt": f"p{i}", "domain": "b" if i % 3 else "a", "answer": i} for i in range(7)]
    data = combine_domains(Dataset.from_list(rows))
    assert data.domains == ("a", "b")
    places = [data.place(example) for example in data.index]
    assert places == [("a", i) for i in range(3)] + [("b", i) for i in range(4)]
    assert [row["answer"] for row in data.expand(places)] == [0, 3, 6, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"math": []}, r"\['math'\]: the domain has no rows"),
        ({"math": [{"question": "1+1"}]}, "row 0 has no 'prompt' column; it has"),
        ({}, "no domains"),
        (Dataset.from_list([{"prompt": "x"}]), "no 'domain' column"),
        (iter(()), "Streams cannot be used"),
        (
            {"math": [{"prompt": "x"}], "chat": [{"prompt": [{"role": "user", "content": "x"}]}]},
            "'math' are plain text and those of 'chat' are chat messages",
        ),
    ],
)
def test_unusable_data_is_refused(data, message):
    with pytest.raises(DomainError, match=message):
        combine_domains(data)
