"""What a `response_format` may ask for: the part of JSON Schema that decoding can be held to without risk.

OpenVINO GenAI (xgrammar) compiles a schema inside the step that serves everybody, and a schema that it cannot read ends
the engine: an unknown type or a quote in a property's name do, and 200 long values held everybody up for a minute. So
only what is of known cost passes; the keywords are those of OpenAI's structured outputs (API guide).
"""

from __future__ import annotations

import json
import math
import re

from serving.refused import Refused

ANYTHING = {"type": "object"}
"""What `{"type": "json_object"}` asks for."""
NOTES = frozenset(("title", "description", "default", "examples", "$schema", "$comment", "$defs", "definitions"))
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
NAME = re.compile(r"[\w.-]{1,64}\Z")
VALUE = re.compile(r"[^\"\\\x00-\x1f\x7f]{0,64}\Z")
"""Quotes and backslashes can break the grammar made of them; ten values of 190 characters took seconds to compile."""
DEEPEST, MOST_NODES, MOST_VALUES, MOST_CHARACTERS = 8, 100, 200, 2000


def checked(schema: object) -> str:
    """`schema` as JSON text without notes and references. Raises Refused 400 that names what is not offered."""
    nodes = characters = 0

    def refuse(place: str, why: str) -> Refused:
        return Refused(400, f"Invalid schema at '{place[:200]}': {why}", param="response_format")

    def spell(text: str, place: str) -> None:
        nonlocal characters
        characters += len(text)
        if characters > MOST_CHARACTERS:
            raise refuse(place, f"names and values have more than {MOST_CHARACTERS} characters together")

    def node(given: object, place: str, depth: int) -> dict:
        nonlocal nodes
        nodes += 1
        if not isinstance(given, dict):
            raise refuse(place, "a schema is a JSON object")
        if depth > DEEPEST or nodes > MOST_NODES:
            raise refuse(place, f"at most {DEEPEST} levels and {MOST_NODES} schemas, references written out")
        kept = {word: value for word, value in given.items() if word not in NOTES}
        if "$ref" in kept:
            return node(resolved(kept, place), place, depth + 1)
        if "anyOf" in kept:
            several = kept.pop("anyOf")
            if kept or not isinstance(several, list) or not several:
                raise refuse(place, "'anyOf' is a list of schemas and stands alone")
            return {"anyOf": [node(one, f"{place}.anyOf", depth + 1) for one in several]}
        if {"enum", "const"} & kept.keys():
            return {"enum": values(kept, place)}
        kind = kept.pop("type", None)
        if (
            isinstance(kind, list)
            and kind
            and all(one in ("string", "number", "integer", "boolean") for one in kind[:1])
        ):
            if kept or kind[1:] != ["null"]:
                raise refuse(place, "a list of types is one plain type and 'null'")
            return {"anyOf": [{"type": kind[0]}, {"type": "null"}]}
        if kind not in TYPES:
            raise refuse(place, f"'type' is one of {', '.join(TYPES)}")
        if kind == "array":
            made = {"type": kind, "items": node(kept.pop("items", None), f"{place}.items", depth + 1)}
        elif kind == "object":
            made = {"type": kind} | fields(kept, place, depth)
        else:
            made = {"type": kind}
        if kept:
            raise refuse(place, f"'{str(next(iter(kept)))[:60]}' is not supported; leave it out")
        return made

    def fields(kept: dict, place: str, depth: int) -> dict:
        properties, required = kept.pop("properties", {}), kept.pop("required", [])
        if not isinstance(more := kept.pop("additionalProperties", not properties), bool):  # 1 == True, but no boolean
            raise refuse(place, "'additionalProperties' is true or false")
        if not isinstance(properties, dict) or not all(map(NAME.match, properties)):
            raise refuse(place, "'properties' are schemas by name; a name is 1 to 64 letters, digits, '_', '-' or '.'")
        if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
            raise refuse(place, "'required' lists names of properties")
        for name in properties:
            spell(name, place)
        made = {name: node(one, f"{place}.{name}", depth + 1) for name, one in properties.items()}
        return {"properties": made, "required": required, "additionalProperties": more} if made else {}

    def values(kept: dict, place: str) -> list:
        listed = [kept["const"]] if "const" in kept else kept["enum"]
        if not isinstance(listed, list) or not 0 < len(listed) <= MOST_VALUES or not all(map(_plain, listed)):
            raise refuse(place, f"1 to {MOST_VALUES} numbers or texts of at most 64 characters, without quotes")
        for one in listed:
            spell(str(one), place)
        return listed

    def resolved(kept: dict, place: str) -> object:
        name = kept["$ref"]
        parts = name.split("/") if isinstance(name, str) else []
        if len(parts) != 3 or parts[0] != "#" or parts[1] not in ("$defs", "definitions"):
            raise refuse(place, "'$ref' leads to '#/$defs/NAME'")
        held = schema.get(parts[1]) if isinstance(schema, dict) else None
        if not isinstance(held, dict) or parts[2] not in held:
            raise refuse(place, f"there is no {name[:80]!r}")
        return held[parts[2]]

    return json.dumps(node(schema, "schema", 1), ensure_ascii=False)


def _plain(value: object) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and (value is None or isinstance(value, str | int | float)) and bool(VALUE.match(str(value)))
