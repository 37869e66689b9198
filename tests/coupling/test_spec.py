"""Couplings as text: what repr writes is read, nothing else is, and nothing is run."""

import string

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from immiscible_policy.coupling import (
    KNN,
    Coupling,
    Independent,
    LinearAssignment,
    Mixture,
    SeedCache,
    Sinkhorn,
    TargetRate,
    Warmup,
)
from immiscible_policy.coupling.spec import available, parse_coupling

plain = st.one_of(
    st.just(Independent()),
    st.builds(KNN, st.integers(1, 10**6), st.sampled_from(["l2", "inner", "cosine", "l1"])),
    st.builds(KNN, st.floats(1, 1e6), st.just("inner")),
    st.builds(
        KNN,
        st.just(3),
        features=st.dictionaries(st.integers(1, 3), st.lists(st.integers(0, 9), min_size=1, unique=True), min_size=1),
    ),
    st.builds(LinearAssignment, st.sampled_from(["l2", "sqeuclidean", "l1"]), st.sampled_from(["fp32", "bf16"])),
    st.builds(LinearAssignment, condition_weight=st.floats(0, 1e7)),
    st.builds(LinearAssignment, condition_weight=st.builds(TargetRate)),
    st.builds(Sinkhorn, st.floats(1e-3, 1e3)),
    st.builds(SeedCache, st.none() | st.integers(1, 10**6), st.integers(1, 9)),
)
probabilities = st.floats(0, 1) | st.tuples(st.floats(0, 1), st.floats(0, 1))
couplings = st.recursive(
    plain,
    lambda inner: st.builds(Mixture, inner, probabilities) | st.builds(Warmup, inner, st.integers(0, 10**6)),
    max_leaves=3,
)


@settings(max_examples=150, deadline=None)
@given(couplings)
@example(Warmup(KNN(k=8), start=10, anneal_to={"k": 1}, anneal_over=100))
def test_what_repr_writes_is_read(coupling):
    found = parse_coupling(repr(coupling))
    assert type(found) is type(coupling)
    assert found == coupling
    assert repr(found) == repr(coupling)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "KNN",
                "Mixture",
                "(",
                ")",
                ",",
                "=",
                "k",
                "p",
                "2",
                "-1",
                "0.5",
                "'inner'",
                "None",
                "*",
                "[",
                "]",
                "{",
                "}",
                ":",
                "Coupling",
                "diagnose",
                ".",
                "True",
                " ",
                "lambda",
                "import",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text_is_a_coupling_or_a_value_error(text):
    try:
        found = parse_coupling(text)
    except ValueError:
        return
    assert isinstance(found, Coupling)


@settings(max_examples=60, deadline=None)
@given(st.text(string.ascii_letters + "_", min_size=1, max_size=12).filter(lambda name: name not in available()))
def test_no_other_name_can_be_called(name):
    with pytest.raises(ValueError, match="coupling "):
        parse_coupling(f"{name}()")


def test_names_alone_spaces_and_positions():
    assert parse_coupling("KNN") == KNN()
    assert parse_coupling("  KNN( 4 , 'inner' )\n") == KNN(4, "inner")
    assert parse_coupling("Mixture(KNN(8), p=[0, 1.0])") == Mixture(KNN(8), (0.0, 1.0))
    assert parse_coupling("LinearAssignment(condition_weight=+2)") == LinearAssignment(condition_weight=2)
    assert {"KNN", "Independent", "LinearAssignment", "Mixture", "Warmup"} <= set(available())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not an expression such as KNN\(k=2\)"),
        ("KNN(", r"'KNN\(' is not an expression"),
        ("Knn(2)", r"'Knn' is none of the couplings: KNN, .*LinearAssignment"),
        ("KNN(n=2)", r"KNN: got an unexpected keyword argument 'n'; its arguments are: k, metric"),
        ("KNN(1, k=2)", r"KNN: multiple values for argument 'k'"),
        ("Mixture()", r"Mixture: missing a required argument: 'coupling'; its arguments are: coupling, p"),
        ("KNN(k=0)", r"coupling 'KNN\(k=0\)': k must be an integer >= 1, got 0"),
        ("KNN(k='2')", r"k must be an integer >= 1, got '2' of type str"),
        ("KNN(k=1+1)", r"'1 \+ 1' is not allowed; arguments are numbers"),
        ("KNN(k=-True)", r"'-True' is not allowed"),
        ("KNN(metric=b'l2')", r"\"b'l2'\" is not allowed"),
        ("KNN(metric=print)", r"'print' is not allowed"),
        ("KNN(*[2])", r"write the arguments out"),
        ("KNN(**{'k': 2})", r"write the arguments out"),
        ("KNN(features={**{}})", r"is not allowed"),
        ("KNN(features={[1]: 2})", r"unhashable"),
        ("Mixture(Coupling())", r"'Coupling' is none of the couplings"),
        ("coupling.KNN(2)", r"'coupling.KNN' is none of the couplings"),
        ("TargetRate()", r"expected one of KNN"),
        ("3", r"expected one of KNN, .*, got 3"),
        ("__import__('os').system('true')", r"is none of the couplings"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_allowed(text, message):
    with pytest.raises(ValueError, match=message):
        parse_coupling(text)


@pytest.mark.parametrize(
    "coupling", [KNN(k=np.int64(2)), KNN(k=np.float64(1.5), metric="inner"), Sinkhorn(reg=np.float32(0.5))], ids=repr
)
def test_settings_that_are_numbers_of_numpy_are_written_as_numbers(coupling):
    assert "np." not in repr(coupling)
    assert parse_coupling(repr(coupling)) == coupling
