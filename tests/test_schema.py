import json

import pytest

from serving.refused import Refused
from serving.schema import checked


def object_of(**properties) -> dict:
    return {"type": "object", "properties": properties}


def test_notes_are_left_out_references_written_out_and_objects_closed():
    part = object_of(name={"type": "string", "description": "Who", "title": "Name"})
    schema = object_of(who={"$ref": "#/$defs/Person"}, kind={"enum": ["a", 1, None]}) | {"$defs": {"Person": part}}
    held = json.loads(checked(schema))
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": [],
        "additionalProperties": False,
    }
    assert held["properties"] == {"who": person, "kind": {"enum": ["a", 1, None]}} and "$defs" not in held


def test_what_a_pydantic_model_asks_for_passes():
    schema = object_of(
        tags={"type": "array", "items": {"type": "string"}},
        note={"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        age={"type": ["integer", "null"]},
        sure={"const": True},
    )
    held = json.loads(checked(schema | {"required": ["tags"]}))
    assert held["required"] == ["tags"] and held["properties"]["age"]["anyOf"][1] == {"type": "null"}


DEEP: dict = {"type": "string"}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    "schema",
    [
        None,
        True,
        [],
        {},
        {"type": "nonsense"},
        {"type": ["string", "nonsense"]},
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "items": {"type": "string"}, "maxItems": 10**9},
        {"type": "array"},
        {"$ref": "#"},
        {"$ref": "https://elsewhere.example/schema.json"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/gone", "$defs": {}},
        {"enum": []},
        {"enum": ["x" * 1000]},
        {"enum": [{"a": 1}]},
        {"enum": [float("inf")]},
        {"enum": ['say "no"']},
        {"enum": ["v" * 60 + str(n) for n in range(100)]},
        object_of(**{'quote"': {"type": "null"}}),
        object_of(**{"back\\slash": {"type": "null"}}),
        {"enum": list(range(1000))},
        {"anyOf": []},
        {"not": {"type": "string"}},
        {"type": "object", "properties": [], "required": []},
        {"type": "object", "required": ["gone"]},
        {"type": "object", "additionalProperties": {"type": "string"}},
        *(object_of(a={"type": "null"}) | {"additionalProperties": number} for number in (0, 1, 1.0)),
        object_of(**{"x" * 300: {"type": "null"}}),
        object_of(**{f"p{n}": {"type": "string"} for n in range(1000)}),
        DEEP,
    ],
)
def test_a_schema_that_could_harm_the_engine_or_mean_nothing_is_refused_with_its_place(schema):
    with pytest.raises(Refused, match="schema") as raised:
        checked(schema)
    assert (raised.value.status, raised.value.param) == (400, "response_format")


def test_references_that_double_at_each_step_are_refused_before_they_grow():
    names = {f"a{n}": object_of(l={"$ref": f"#/$defs/a{n + 1}"}, r={"$ref": f"#/$defs/a{n + 1}"}) for n in range(40)}
    with pytest.raises(Refused):
        checked({"$ref": "#/$defs/a0", "$defs": names})
