"""What a `response_format` may ask for: the part of JSON Schema that decoding can be held to without risk.

OpenVINO GenAI (xgrammar) compiles a schema inside the step that serves everybody, and a schema that it cannot read ends
the engine. So only keywords of known cost pass, and they are those of OpenAI's structured outputs (API guide).
"""

from __future__ import annotations

import json

from serving.refused import Refused

ANYTHING = {"type": "object"}
"""What `{"type": "json_object"}` asks for."""
NOTES = frozenset(("title", "description", "default", "examples", "$schema", "$comment", "$defs", "definitions"))
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
DEEPEST, MOST_NODES, MOST_VALUES, LONGEST = 8, 100, 200, 200


def checked(schema: object) -> str:
    """`schema` as JSON text without notes and references. Raises Refused 400 that names what is not offered."""
    nodes = 0

    def refuse(place: str, why: str) -> Refused:
        return Refused(400, f"Invalid schema at '{place[:200]}': {why}", param="response_format")

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
        if (more := kept.pop("additionalProperties", not properties)) not in (True, False):
            raise refuse(place, "'additionalProperties' is true or false")
        if not isinstance(properties, dict) or any(len(name) > LONGEST for name in properties):
            raise refuse(place, f"'properties' are schemas by name, a name has at most {LONGEST} characters")
        if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
            raise refuse(place, "'required' lists names of properties")
        made = {name: node(one, f"{place}.{name}", depth + 1) for name, one in properties.items()}
        return {"properties": made, "required": required, "additionalProperties": more} if made else {}

    def values(kept: dict, place: str) -> list:
        listed = [kept["const"]] if "const" in kept else kept["enum"]
        plain = isinstance(listed, list) and all(one is None or isinstance(one, (str, int, float)) for one in listed)
        if not plain or not 0 < len(listed) <= MOST_VALUES or any(len(str(one)) > LONGEST for one in listed):
            raise refuse(place, f"1 to {MOST_VALUES} texts or numbers of at most {LONGEST} characters")
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
