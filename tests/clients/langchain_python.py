"""LangChain's ChatOpenAI."""

import openai
from claims import ANSWER, KEY, LIMITED, MODEL, QUESTION, SCHEMA, URL, WEATHER, raised, run
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI


def asking(model=MODEL, key=KEY, **more):
    return ChatOpenAI(model=model, base_url=URL, api_key=key, max_retries=0, **more)


def claim_plain():
    reply = asking(temperature=0).invoke(QUESTION)
    assert reply.content == ANSWER and reply.usage_metadata["total_tokens"] == 45
    assert reply.response_metadata["finish_reason"] == "stop"


def claim_streamed_with_usage():
    whole = None
    for chunk in asking(stream_usage=True).stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == ANSWER and whole.usage_metadata["output_tokens"] == 3


def claim_wrong_model():
    assert raised(openai.NotFoundError, lambda: asking("nobody").invoke(QUESTION)).code == "model_not_found"


def claim_rate_limit():
    limited = asking(key=LIMITED)
    limited.invoke(QUESTION)
    error = raised(openai.RateLimitError, lambda: limited.invoke(QUESTION))
    assert 0 < int(error.response.headers["retry-after"]) <= 60


def claim_schema():
    for method in ("json_schema", "json_mode"):
        assert asking().with_structured_output(SCHEMA, method=method).invoke(QUESTION) == {"opens": "9 a.m."}, method


def claim_many_turns():
    said = [SystemMessage("Be short."), HumanMessage("One?"), AIMessage("1"), HumanMessage("How many turns?")]
    assert asking().invoke(said).content == "3 turns"


def claim_tools():
    bound, said = asking().bind_tools([WEATHER]), [HumanMessage("Does it rain in Lyon?")]
    call = bound.invoke(said)
    assert call.tool_calls[0]["args"] == {"city": "Lyon"}
    said += [call, ToolMessage("rain", tool_call_id=call.tool_calls[0]["id"])]
    assert bound.invoke(said).content == "It does: rain"


def claim_streamed_tools():
    whole = None
    for chunk in asking().bind_tools([WEATHER]).stream("Rain?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["name"] == "weather" and whole.tool_calls[0]["args"] == {"city": "Lyon"}


def claim_batch():
    assert [reply.content for reply in asking().batch([QUESTION] * 3)] == [ANSWER] * 3


def claim_abort():
    stream = asking().stream("Slowly")
    next(stream)
    stream.close()


run(globals())
