"""Dataclasses from JSON: what is taken, and what is refused with its place."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from scangolf.records import from_plain


@dataclass(frozen=True)
class Inner:
    size: int = 1
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    steps: int | None = None
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    parts: dict[Literal["x", "y"], list[Inner]] = field(default_factory=dict)


def test_there_and_back() -> None:
    value = Outer("n", "b", 3, False, Inner(2, 0.25), {"x": [Inner(), Inner(7)], "y": []})
    assert from_plain(asdict(value), Outer) == value


def test_defaults_and_whole_numbers_for_floats() -> None:
    value = from_plain({"name": "n", "steps": None, "inner": {"share": 2}}, Outer)
    assert value == Outer("n", inner=Inner(share=2.0))
    assert type(value.inner.share) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": 1}, "nmae is not known"),
        ({"name": 3}, "name is 3, wanted str"),
        ({"kind": "c"}, "kind is 'c', wanted one of 'a', 'b'"),
        ({"kind": []}, "kind is [], wanted one of"),
        ({"steps": "3"}, "steps is '3', wanted int"),
        ({"steps": True}, "steps is True, wanted int"),
        ({"on": 1}, "on is 1, wanted bool"),
        ({"inner": 5}, "inner is 5, wanted an object"),
        ({"inner": {"size": 1.0}}, "inner.size is 1.0, wanted int"),
        ({"inner": {"share": None}}, "inner.share is None, wanted float"),
        ({"parts": {"z": []}}, "parts is 'z', wanted one of 'x', 'y'"),
        ({"parts": {"x": {}}}, "parts.x is {}, wanted list"),
        ({"parts": {"x": [{}, {"size": ""}]}}, "parts.x[1].size is '', wanted int"),
    ],
)
def test_nothing_is_guessed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        from_plain({"name": "n"} | change, Outer)
    assert message in str(error.value)


def test_what_is_missing_and_what_is_no_object() -> None:
    with pytest.raises(ValueError, match="name is missing"):
        from_plain({}, Outer)
    with pytest.raises(ValueError, match=r"the whole is \[\], wanted an object"):
        from_plain([], Outer)
