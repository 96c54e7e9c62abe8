"""LiteLLM, which many gateways and agents ask through. With tools it imports `mcp`, which it does not install."""

import json

import litellm
from claims import ANSWER, KEY, LIMITED, MODEL, QUESTION, SCHEMA, URL, WEATHER, raised, run, user

litellm.telemetry = False


def ask(said, model=MODEL, key=KEY, **more):
    return litellm.completion(
        model=f"openai/{model}", api_base=URL, api_key=key, messages=said, max_retries=0, num_retries=0, **more
    )


def claim_plain():
    reply = ask(user(QUESTION), temperature=0)
    assert reply.choices[0].message.content == ANSWER and reply.usage.total_tokens == 45


def claim_streamed_with_usage():
    chunks = list(ask(user(QUESTION), stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == 3


def claim_wrong_model():
    assert raised(litellm.NotFoundError, lambda: ask(user(QUESTION), model="nobody")).status_code == 404


def claim_rate_limit():
    ask(user(QUESTION), key=LIMITED)
    error = raised(litellm.RateLimitError, lambda: ask(user(QUESTION), key=LIMITED))
    headers = getattr(error, "litellm_response_headers", None) or error.response.headers
    assert 0 < int(headers["retry-after"]) <= 60


def claim_schema():
    wanted = {"type": "json_schema", "json_schema": {"name": "opening", "schema": SCHEMA, "strict": True}}
    content = ask(user(QUESTION), response_format=wanted).choices[0].message.content
    assert json.loads(content) == {"opens": "9 a.m."}


def claim_many_turns():
    said = [*user("One?"), {"role": "assistant", "content": "1"}, *user("How many turns?")]
    assert ask(said).choices[0].message.content == "3 turns"


def claim_tools():
    said = user("Does it rain in Lyon?")
    call = ask(said, tools=[WEATHER], tool_choice="auto").choices[0].message
    assert json.loads(call.tool_calls[0].function.arguments) == {"city": "Lyon"}
    said += [call.model_dump(), {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "rain"}]
    assert ask(said, tools=[WEATHER]).choices[0].message.content == "It does: rain"


def claim_streamed_tools():
    chunks = list(ask(user("Rain?"), tools=[WEATHER], stream=True))
    whole = litellm.stream_chunk_builder(chunks, messages=user("Rain?"))
    assert whole.choices[0].message.tool_calls[0].function.name == "weather"


def claim_abort():
    stream = ask(user("Slowly"), stream=True)
    next(stream)
    stream.completion_stream.close()


run(globals())
