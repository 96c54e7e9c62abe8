"""OpenAI's own client for Python."""

import json

import openai
from claims import ANSWER, KEY, LIMITED, MODEL, QUESTION, SCHEMA, URL, WEATHER, raised, run, user

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
create = client.chat.completions.create


def claim_plain():
    reply = create(model=MODEL, messages=user(QUESTION), temperature=0)
    assert reply.choices[0].message.content == ANSWER and reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == 45 and reply.citations[0]["document"] == "a.md"
    assert reply._request_id and reply.system_fingerprint.startswith("rel-")


def claim_streamed_with_usage():
    usage = {"include_usage": True}
    chunks = list(create(model=MODEL, messages=user(QUESTION), stream=True, stream_options=usage))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == 3 and chunks[-2].choices[0].finish_reason == "stop"


def claim_stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=user(QUESTION)) as stream:
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def claim_models():
    assert [model.id for model in client.models.list()] == [MODEL] and client.models.retrieve(MODEL).id == MODEL


def claim_wrong_model():
    error = raised(openai.NotFoundError, lambda: create(model="nobody", messages=user(QUESTION)))
    assert error.code == "model_not_found" and error.param == "model" and error.request_id


def claim_wrong_key():
    other = openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0)
    assert raised(openai.AuthenticationError, other.models.list).code == "invalid_api_key"


def claim_refused_parameter():
    error = raised(openai.BadRequestError, lambda: create(model=MODEL, messages=user(QUESTION), n=2))
    assert error.param == "n" and error.code == "unsupported_parameter"
    error = raised(openai.BadRequestError, lambda: create(model=MODEL, messages=user(QUESTION), logprobs=True))
    assert error.param == "logprobs"


def claim_rate_limit():
    limited = openai.OpenAI(base_url=URL, api_key=LIMITED, max_retries=0).chat.completions
    first = limited.with_raw_response.create(model=MODEL, messages=user(QUESTION))
    assert first.headers["x-ratelimit-limit-requests"] == "1" and first.headers["x-request-id"]
    error = raised(openai.RateLimitError, lambda: limited.create(model=MODEL, messages=user(QUESTION)))
    assert 0 < int(error.response.headers["retry-after"]) <= 60 and error.code == "rate_limit_exceeded"


def claim_schema():
    wanted = {"type": "json_schema", "json_schema": {"name": "opening", "schema": SCHEMA, "strict": True}}
    reply = create(model=MODEL, messages=user(QUESTION), response_format=wanted)
    assert json.loads(reply.choices[0].message.content) == {"opens": "9 a.m."}


def claim_parse_into_a_model():
    from pydantic import BaseModel

    class Opening(BaseModel):
        opens: str

    reply = client.chat.completions.parse(model=MODEL, messages=user(QUESTION), response_format=Opening)
    assert reply.choices[0].message.parsed == Opening(opens="9 a.m.")


def claim_many_turns():
    said = [*user("One?"), {"role": "assistant", "content": "1"}, *user("How many turns?")]
    assert create(model=MODEL, messages=said).choices[0].message.content == "3 turns"


def claim_tools():
    said = user("Does it rain in Lyon?")
    call = create(model=MODEL, messages=said, tools=[WEATHER]).choices[0].message
    assert json.loads(call.tool_calls[0].function.arguments) == {"city": "Lyon"} and call.content is None
    said += [call.model_dump(), {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "rain"}]
    assert create(model=MODEL, messages=said, tools=[WEATHER]).choices[0].message.content == "It does: rain"


def claim_streamed_tools():
    with client.chat.completions.stream(model=MODEL, messages=user("Rain?"), tools=[WEATHER]) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.message.tool_calls[0].function.name == "weather" and choice.finish_reason == "tool_calls"


def claim_abort():
    stream = create(model=MODEL, messages=user("Slowly"), stream=True)
    next(iter(stream))
    stream.close()


run(globals())
