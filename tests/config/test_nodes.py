"""Nodes: targets, arguments, and errors of constructors."""

from __future__ import annotations

from typing import Any

import pytest

from mom.config import NodeConfig
from mom.errors import UsageError


class Thing:
    """Stand-in for a callback."""

    def __init__(self, count: int, name: str | None = None) -> None:
        if count < 0:
            raise ValueError("count must not be\nnegative")
        self.count = count
        self.name = name


class Anything:
    """Accepts any keyword."""

    def __init__(self, **options: Any) -> None:
        self.options = options


def node(given: object, target: str = "Thing") -> NodeConfig:
    content = {"_target_": f"{__name__}.{target}", **given} if isinstance(given, dict) else given
    return NodeConfig.from_mapping("callbacks.thing", content)


def error_message(action: Any) -> str:
    with pytest.raises(UsageError) as raised:
        action()
    return str(raised.value)


def test_extra_keywords_are_added_and_win() -> None:
    made = node({"count": 1, "name": "a"}).instantiate(name="b")

    assert (made.count, made.name) == (1, "b")


@pytest.mark.parametrize("given", [3, None, ["a"]])
def test_an_invalid_node_is_rejected(given: object) -> None:
    assert error_message(lambda: node(given)).startswith(
        "callbacks.thing must be null or a group of options "
    )


@pytest.mark.parametrize("target", [None, 3, "Thing", ""])
def test_a_target_is_a_dotted_path(target: object) -> None:
    message = error_message(lambda: NodeConfig.from_mapping("callbacks.thing", {"_target_": target}))

    assert message.startswith("callbacks.thing._target_ must be the dotted path of a class, got ")


@pytest.mark.parametrize("target", ["nowhere.Thing", "mom.errors.Nothing", "math.pi"])
def test_a_target_has_to_exist(target: str) -> None:
    found = NodeConfig.from_mapping("callbacks.thing", {"_target_": target})

    message = error_message(lambda: found.check(object))
    assert "callbacks.thing._target_" in message
    assert target in message


def test_keywords_are_compared_with_the_signature() -> None:
    node({"count": 1}).check(Thing)
    node({"whatever": 1}, "Anything").check(Anything)

    message = error_message(lambda: node({"cuont": 1}).check(Thing))
    assert message == "unknown option callbacks.thing.cuont; did you mean callbacks.thing.count?"


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", f"{__name__}.Anything"])
def test_a_target_is_of_the_kind_that_is_built(target: str) -> None:
    found = NodeConfig.from_mapping("callbacks.thing", {"_target_": target})
    message = error_message(lambda: found.check(Thing))
    assert message.startswith("callbacks.thing._target_ must be a class derived from ")
    assert message.endswith(f".Thing, got {target}")


def test_types_are_compared_with_the_signature() -> None:
    assert (
        error_message(lambda: node({"count": "x"}).check(Thing))
        == "callbacks.thing.count must be an integer, got x"
    )
    assert (
        error_message(lambda: node({"count": 1, "name": 2}).check(Thing))
        == "callbacks.thing.name must be a string or null, got 2"
    )


def test_a_constructors_error_becomes_one_line() -> None:
    message = error_message(node({"count": -1}).check_builds)

    assert message == "callbacks.thing.count must not be negative"


def test_a_keyword_that_the_task_adds_may_be_missing() -> None:
    node({}).check_builds()


def test_accepts_tells_which_keywords_may_be_added() -> None:
    assert node({}).accepts("count")
    assert not node({}).accepts("directory")
    assert node({}, "Anything").accepts("directory")
