"""Real clients, each in its own environment, against the real app over HTTP. `make test-clients` sets up and runs it.

Not collected by `make test`: the clients are no dependencies of ours. Behind the app stands the engine `upstream` with
an upstream made for tests, so every stretch of the way is HTTP and what is answered is known.
"""

import json
import os
import subprocess
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import uvicorn

from serving.keys import Key, digest
from tests.elsewhere import Elsewhere
from tests.fake_upstream import Reply, serve

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("PERENNIAL_CLIENTS", HERE.parent.parent / ".clients"))
COMMANDS = {
    "openai": (CLIENTS / "openai" / "bin" / "python", "openai_python.py"),
    "langchain": (CLIENTS / "langchain-openai" / "bin" / "python", "langchain_python.py"),
    "litellm": (CLIENTS / "litellm" / "bin" / "python", "litellm_python.py"),
    "node": ("node", "openai_node.mjs"),
}
CLAIMS = ("plain", "streamed_with_usage", "wrong_model", "rate_limit", "schema", "many_turns", "tools", "abort")
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lyon"}'}}


def reply(body: dict) -> Reply:
    """What the upstream says, by what it is asked."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return Reply(("It does: ", last["content"]))
    if body.get("tools"):
        return Reply((), "tool_calls", calls=(CALL,))
    if "response_format" in body:
        return Reply(('{"opens": ', '"9 a.m."}'))
    if "Slowly" in last["content"]:
        return Reply(("word ",) * 6000, pause_s=0.01)
    if "How many turns" in last["content"]:
        return Reply((f"{len(body['messages']) - 1} turns",))
    return Reply(("Lyon opens", " at 9 a.m.", " on weekdays."))


@contextmanager
def listening(app):
    """The address of `app` on a port of this machine, up to /v1."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a client found: claim -> 'ok' or what went wrong, and whether the upstream was hung up on."""

    @cache
    def run(name: str) -> dict:
        with serve(reply) as upstream:
            app = Elsewhere(tmp_path_factory.mktemp(name), upstream, api_key="sk-admin")
            limited = Key("limited", "ann", requests_per_minute=1)
            app.router.keys = {digest("sk-client"): Key("client", "ann"), digest("sk-limited"): limited}
            with listening(app.app) as url:
                given = {"URL": url, "KEY": "sk-client", "LIMITED": "sk-limited", "CLIENTS": str(CLIENTS)}
                command, script = COMMANDS[name]
                asked = [str(command), str(HERE / script)]
                done = subprocess.run(asked, env=os.environ | given, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, done.stderr[-4000:]
                told = json.loads(done.stdout.splitlines()[-1])
                told["hung_up"] = "ok" if upstream.hung_up.wait(5) else "the upstream went on writing"
            app.close()
        return told

    return run


@pytest.mark.parametrize("client", COMMANDS)
@pytest.mark.parametrize("claim", [*CLAIMS, "hung_up"])
def test_a_real_client_works_unchanged(found, client, claim):
    assert found(client)[claim] == "ok", found(client)[claim]


@pytest.mark.parametrize("client", COMMANDS)
def test_what_a_client_has_beyond_that_works_too(found, client):
    assert {claim: said for claim, said in found(client).items() if said != "ok"} == {}
