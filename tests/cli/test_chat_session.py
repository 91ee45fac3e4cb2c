"""A conversation as data: turns, parameters, files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sgl.cli.chat_session import PARAMETERS, ChatError, Message, Session, parse_parameter


def talk(turns: int) -> Session:
    session = Session("be brief", [], {"temperature": 0.5, "stop": "END"})
    for number in range(turns):
        session.ask(f"q{number}")
        session.answer(f"a{number} \u2603\n")
    return session


def test_what_is_sent_is_openais_form() -> None:
    assert talk(1).to_send() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "a0 \u2603\n"},
    ]
    assert Session().to_send() == []


def test_a_saved_conversation_comes_back() -> None:
    session = talk(2)
    assert Session.from_json(session.to_json("m"), "f") == session
    assert json.loads(session.to_json("m"))["version"] == 1
    assert "\u2603" in session.to_json("m")


def test_the_oldest_turns_are_left_out_one_by_one_but_kept() -> None:
    session = talk(2)
    session.ask("q2")
    assert [session.skip_oldest() for _ in range(3)] == [True, True, False]
    assert session.to_send()[1:] == [{"role": "user", "content": "q2"}]
    assert len(session.messages) == 5


def test_taking_back_removes_the_last_question_with_its_answer() -> None:
    session = talk(2)
    assert session.take_back() == "q1"
    assert session.messages[-1] == Message("assistant", "a0 \u2603\n")
    session.skipped = 2
    assert session.take_back() == "q0"
    assert session.skipped == 0
    assert session.take_back() == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "x"}, 'is not a saved chat: it has no "format": "sgl-chat".'),
        ({"version": 2}, "has version 2; this sgl reads version 1."),
        ({"messages": {}}, "messages a list."),
        ({"messages": [{"role": "root", "content": "x"}]}, "message 0 must have the role user or assistant"),
        ({"messages": [{"role": "user", "content": 1}]}, "message 0 must have"),
        ({"params": {"temperature": -1}}, "temperature must be a number between 0 and 10, got -1."),
        ({"params": {"temprature": 1}}, "There is no parameter 'temprature'. Did you mean 'temperature'?"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(change: dict[str, Any], sentence: str) -> None:
    content = {**json.loads(talk(1).to_json("m")), **change}
    with pytest.raises(ChatError) as caught:
        Session.from_json(json.dumps(content), "f.json")
    assert sentence in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_session_at_all(text: str) -> None:
    with pytest.raises(ChatError, match=r"^f\.json is not"):
        Session.from_json(text, "f.json")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("temperature", "0.2", 0.2), ("max_tokens", "5", 5), ("top_k", "-1", -1), ("stop", "x y", "x y")],
)
def test_parameters_parse(name: str, text: str, value: object) -> None:
    assert parse_parameter(name, text) == value


@pytest.mark.parametrize("name", [name for name, known in PARAMETERS.items() if known.kind is not str])
@pytest.mark.parametrize("value", ["x", "nan", "inf", "-99", "1e99", True, None, []])
def test_nonsense_is_refused(name: str, value: object) -> None:
    with pytest.raises(ChatError, match=f"^{name} must be"):
        parse_parameter(name, value)
