import json
from dataclasses import replace

import pytest

from data.records import Constrained, Decoding, Filter, Guard, IndexVersion, Model, Release
from serving import guard
from serving.refused import Refused


def body(**changed) -> bytes:
    return json.dumps({"model": "helpdesk", "messages": [{"role": "user", "content": "When?"}]} | changed).encode()


def release(**changed) -> Release:
    index = IndexVersion("helpdesk", "uri", "t", 1, "sum", "emb", "chunk", 1, 1, "snap")
    return Release("helpdesk", Model("a" * 64, "m.gguf", "openvino", "b"), index, **changed)


def refused(*arguments) -> Refused:
    with pytest.raises(Refused) as raised:
        arguments[0](*arguments[1:])
    return raised.value


def test_the_last_user_message_is_the_question_and_earlier_turns_are_history():
    said = [("system", "Be kind."), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    messages = [{"role": role, "content": text} for role, text in said]
    chat = guard.read_chat(body(messages=messages))
    assert chat.question == "two"
    assert [(turn["role"], turn["content"]) for turn in chat.history] == [
        ("user", "Be kind."),
        ("user", "one"),
        ("assistant", "1"),
    ]


def test_a_system_message_stays_in_a_long_history_but_as_the_users_words():
    turns = [{"role": "user", "content": f"turn {n}"} for n in range(20)]
    chat = guard.read_chat(body(messages=[{"role": "developer", "content": "Be kind."}, *turns]))
    assert chat.history[0] == {"role": "user", "content": "Be kind."} and len(chat.history) == 4


def test_content_may_come_in_text_parts_but_not_as_an_image():
    parts = [{"type": "text", "text": "When"}, {"type": "text", "text": "exactly?"}]
    assert guard.read_chat(body(messages=[{"role": "user", "content": parts}])).question == "When\nexactly?"
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    assert refused(guard.read_chat, body(messages=[{"role": "user", "content": image}])).status == 400


@pytest.mark.parametrize(
    "changed",
    [
        {"n": 2},
        {"n": True},
        {"functions": [{"name": "weather"}]},
        {"logprobs": True},
        {"frequency_penalty": 0.5},
    ],
)
def test_what_is_not_offered_is_refused_by_name(changed):
    error = refused(guard.read_chat, body(**changed))
    assert error.status == 400 and error.code == "unsupported_parameter" and error.param in changed


def test_the_same_parameters_at_their_neutral_values_and_harmless_ones_are_accepted():
    neutral = {"n": 1, "tools": [], "logprobs": False, "frequency_penalty": 0, "response_format": {"type": "text"}}
    assert guard.read_chat(body(**neutral, metadata={"a": "b"}, store=False, tool_choice="auto")).question == "When?"


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"\xff\xfe", None),
        (b"[1, 2]", None),
        (body(metadata=float("nan")), None),
        (b"[" * 200_000, None),
        (b'{"a":' * 200_000, None),
        (b"1" * 6000, None),
        (body(model=None), "model"),
        (body(messages=[]), "messages"),
        (body(messages="hello"), "messages"),
        (body(messages=[{"role": "tool", "content": "x"}]), "messages"),
        (body(messages=[{"role": "critic", "content": "x"}]), "messages.0.role"),
        (body(tools=[{"type": "function"}]), "tools.0.function"),
        (body(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools.0.function.name"),
        (body(tool_choice="always"), "tool_choice"),
        (body(messages=[{"role": "assistant", "content": "x"}]), "messages"),
        (body(messages=[{"role": "user", "content": "  "}]), "messages"),
        (body(messages=[{"role": "user", "content": 7}]), None),
        (body(temperature=3), "temperature"),
        (body(temperature="0.1"), "temperature"),
        (body(top_p=0), "top_p"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(seed=10**400), "seed"),
        (body(stream="yes"), "stream"),
        (body(user="u" * 300), "user"),
        (body(**{"évil": 1}), "?vil"),
        (body(messages=[{"role": "user", "content": "\ud800"}]), None),
    ],
)
def test_malformed_requests_get_a_400_that_names_the_parameter(raw, param):
    error = refused(guard.read_chat, raw)
    assert error.status == 400 and error.message
    assert param is None or error.param == param
    json.dumps(error.body()).encode()


def test_a_request_beyond_the_guards_limits_is_refused():
    long = guard.read_chat(body(messages=[{"role": "user", "content": "x" * 11}]))
    assert refused(guard.check, long, Guard(max_question_characters=10)).code == "context_length_exceeded"
    many = guard.read_chat(body(messages=[{"role": "user", "content": "x"}] * 3))
    assert refused(guard.check, many, Guard(max_messages=2)).param == "messages"
    guard.check(many, Guard(max_messages=3))


def test_decoding_is_the_releases_with_the_requests_overrides():
    chosen = release(decoding=Decoding(max_new_tokens=40, stop=("END",)))
    assert guard.decoding(guard.read_chat(body()), chosen) == Constrained(max_new_tokens=40, stop=("END",))
    asked = guard.read_chat(body(temperature=0.5, top_p=0.9, max_tokens=7, stop=["a", "b"], seed=-1))
    assert guard.decoding(asked, chosen) == Constrained(7, 0.5, 0.9, 2**32 - 1, ("a", "b"))
    assert guard.decoding(guard.read_chat(body(max_completion_tokens=9)), chosen).max_new_tokens == 9


def test_sampling_without_a_seed_gets_a_fresh_one():
    asked = guard.read_chat(body(temperature=0.5))
    assert len({guard.decoding(asked, release()).seed for _ in range(5)}) > 1
    assert guard.decoding(guard.read_chat(body()), release()).seed == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_guard_allows_are_refused_not_cut(name):
    error = refused(guard.decoding, guard.read_chat(body(**{name: 10**9})), release(guard=Guard(max_new_tokens=512)))
    assert error.status == 400 and error.param == name and "512" in error.message


def test_an_answer_may_be_asked_for_as_json_where_the_engine_can_be_held_to_it():
    schema = {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "opening", "schema": schema, "strict": True}}
    asked = guard.read_chat(body(response_format=wanted))
    held = json.loads(guard.decoding(asked, release()).json_schema)
    assert held["properties"] == {"hour": {"type": "integer"}} and held["additionalProperties"] is False
    free = guard.read_chat(body(response_format={"type": "json_object"}))
    assert guard.decoding(free, release()).json_schema == '{"type": "object"}'
    assert guard.decoding(guard.read_chat(body(response_format={"type": "text"})), release()).json_schema == ""
    other = replace(release(), model=Model("a" * 64, "folder", "transformers", "b"))
    error = refused(guard.decoding, asked, other)
    assert (error.status, error.param) == (400, "response_format") and "transformers" in error.message
    nothing = guard.read_chat(body(response_format={"type": "json_schema", "json_schema": {"name": "x"}}))
    assert refused(guard.decoding, nothing, release()).param == "response_format"


def test_a_request_narrows_what_its_key_sees_and_never_widens_it():
    filters = {"languages": ["en"], "modified_after": "2026-01-01"}
    asked = guard.read_chat(body(documents=["a.md"], filters=filters))
    seen = asked.narrows(Filter("acme", ("hr",)))
    assert seen == Filter("acme", ("hr",), ("a.md",), ("en",), "2026-01-01") and asked.searches
    assert not guard.read_chat(body(retrieval="off")).searches


@pytest.mark.parametrize(
    "changed",
    [
        {"filters": {"tenant": "other"}},
        {"filters": {"labels": ["hr"]}},
        {"filters": {"languages": ["en' OR '1'='1"]}},
        {"filters": {"modified_after": "2026-01-01' OR 1=1"}},
        {"documents": []},
        {"documents": ["a"] * 101},
        {"retrieval": "sometimes"},
    ],
)
def test_a_filter_that_could_widen_or_break_a_search_is_refused(changed):
    assert refused(guard.read_chat, body(**changed)).status == 400
