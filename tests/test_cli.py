"""What the scripts share: values that Hydra's grammar would refuse."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from immiscible_policy.cli import quote_values


@pytest.mark.parametrize(
    "argument",
    [
        "checkpoint=outputs/run/checkpoints/step=0012000",
        "resume=outputs/Jos\u00e9/run (1)",
        "selection=KNN(k=2)",
        "selection=KNN(k=2, metric='inner')",
        'folder=outputs/{x}/it\'s "here"',
    ],
)
def test_text_that_the_grammar_refuses_is_quoted(argument: str) -> None:
    (quoted,) = quote_values(["script", argument])[1:]
    name, _, value = argument.partition("=")
    parsed = OverridesParser.create().parse_override(quoted)
    assert (parsed.key_or_group, parsed.value()) == (name, value)


@pytest.mark.parametrize(
    "argument",
    ["k=2", "seed=0,1,2", "join=[docs/a.parquet]", "~dataset", "-m", "--help", "a=[0,1", "x={k:1}", "y='a(b'", "name="],
)
def test_all_else_is_left_as_it_is(argument: str) -> None:
    assert quote_values(["script", argument]) == ["script", argument]


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).map(lambda text: f"/{text}"))
def test_any_path_is_itself_or_left_alone(value: str) -> None:
    (argument,) = quote_values(["script", f"folder={value}"])[1:]
    if argument != f"folder={value}":
        assert OverridesParser.create().parse_override(argument).value() == value
