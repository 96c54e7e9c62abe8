"""Traces over real HTTP: a collector that reads the protobuf, and MLflow's server."""

import json
import random
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from data.records import Chunk, Prompt, Shot
from serving import traces as module
from serving.keys import Key, digest
from serving.traces import Traces, prune
from settings import settings
from tests.test_app import HITS, LIVE, TOKEN, Stack

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0{}"


class Collector:
    """Takes OTLP as an MLflow server does: experiments by name, then traces with an experiment's id."""

    def __init__(self):
        self.requests, self.experiments, self.refuses, self.waits = [], {}, 0, None
        self.deleted, self.shown = [], set()
        collector = self

        class Routes(BaseHTTPRequestHandler):
            def do_GET(self):
                collector.shown.add(("GET", self.headers.get("authorization")))
                name = self.path.split("=")[-1]
                known = collector.experiments.get(name)
                self.reply(200 if known else 404, {"experiment": {"experiment_id": known}})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.shown.add((self.path.split("/")[-1], self.headers.get("authorization")))
                if self.path.endswith("/experiments/create"):
                    name = json.loads(body)["name"]
                    collector.experiments[name] = str(len(collector.experiments) + 1)
                    return self.reply(200, {"experiment_id": collector.experiments[name]})
                if self.path.endswith("/traces/delete-traces"):
                    collector.deleted.append(json.loads(body))
                    return self.reply(200, {"traces_deleted": 1})
                if collector.waits:
                    collector.waits.wait(10)
                if collector.refuses:
                    collector.refuses -= 1
                    return self.reply(400, {})
                asked = ExportTraceServiceRequest.FromString(body)
                collector.requests.append((self.headers.get("x-mlflow-experiment-id"), asked))
                return self.reply(200, {})

            def reply(self, status, body):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *said):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Routes)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def spans(self):
        return [
            span
            for _, asked in self.requests
            for resource in asked.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BATCH_S", 0.02)
    monkeypatch.setattr(module, "EXPORT_S", 5.0)


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@contextmanager
def traced(folder, sent: Traces, **chosen):
    """The app with these traces; what waits has been sent when it ends."""
    stack = Stack(folder, traces=sent, **chosen)
    try:
        yield stack
    finally:
        sent.close()
        stack.log.close()


def attributes(span) -> dict:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def shown(span, key: str = "mlflow.spanOutputs"):
    return json.loads(attributes(span)[key])


def test_a_trace_goes_from_the_question_over_retrieval_and_prompt_to_the_generation(tmp_path, collector):
    before = time.time_ns()
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces")) as stack:
        answer = stack.chat().json()
    answered, retrieval, prompt, generation = collector.spans
    assert [span.name for span in collector.spans] == ["answer", "retrieval", "prompt", "generation"]
    assert {span.trace_id.hex() for span in collector.spans} == {answer["id"].removeprefix("chatcmpl-")}
    assert {span.parent_span_id for span in collector.spans[1:]} == {answered.span_id} and not answered.parent_span_id
    ends = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in collector.spans]
    assert before <= ends[0][0] <= ends[1][0] <= ends[1][1] <= ends[2][1] <= ends[3][0] <= ends[3][1] <= ends[0][1]
    assert shown(answered, "mlflow.spanInputs")["messages"][0]["content"] == "When does Lyon open?"
    assert shown(answered)["choices"][0]["message"]["content"] == "9 a.m. on weekdays"
    assert [found["id"] for found in shown(retrieval)] == ["c1", "c2"]
    assert shown(prompt) == stack.model.asked[0][1]
    said = attributes(generation)
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (50, 4)
    assert [event.name for event in generation.events] == ["first token"]
    assert collector.requests[0][0] is None, "another collector than MLflow has no experiments"


def test_each_assistants_traces_go_to_its_own_experiment_which_is_made_once(tmp_path, collector):
    with traced(tmp_path, Traces(1.0, mlflow=collector.url)) as stack:
        for _ in range(3):
            stack.chat()
            time.sleep(0.1)
    assert collector.experiments == {"helpdesk": "1"} and {name for name, _ in collector.requests} == {"1"}
    assert len(collector.spans) == 12


def test_an_experiment_that_was_deleted_is_asked_for_again(tmp_path, collector):
    collector.refuses = 1
    sent = Traces(1.0, mlflow=collector.url)
    with traced(tmp_path, sent) as stack:
        stack.chat()
        wait_until(lambda: sent.lost == 1)
        collector.experiments["helpdesk"] = "7"
        stack.chat()
    assert [name for name, _ in collector.requests] == ["7"]


def test_texts_are_redacted_as_in_the_log_and_what_only_some_may_read_is_not_shown(tmp_path, collector):
    secret = replace(HITS[0], chunk=replace(HITS[0].chunk, id="c9", access="hr", text="Lyon pays 9000 euros."))
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces")) as stack:
        stack.hits = (*HITS, secret)
        said = [{"role": "user", "content": "I am bob@example.com"}, {"role": "assistant", "content": "Hello."}]
        asked = {"role": "user", "content": "And ann@example.com?"}
        stack.chat(messages=[*said, asked], user="ann")
    sent = str([asked for _, asked in collector.requests])
    assert "[email]" in sent and "@example.com" not in sent
    assert "c9" in sent and "9000" not in sent and "9000" in stack.model.asked[0][1]
    assert not any("ann" in str(value) for span in collector.spans for value in attributes(span).values())


SECRET = Chunk("c9", "pay.md", "Pay", "Lyon", "h", "Lyon pays 9000 euros.", access="hr")


def test_an_answer_from_a_passage_that_only_some_may_read_is_not_shown_anywhere(tmp_path, collector):
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces")) as stack:
        stack.model.words = ("Lyon pays", " 9000 euros.")
        for told in ({"access": "hr"}, {"access": "", "tenant": "acme"}):
            stack.hits = (replace(HITS[0], chunk=replace(SECRET, **told)),)
            before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It was 8000 euros before."}]
            answer = stack.chat(messages=[*before, {"role": "user", "content": "And now?"}]).json()
            assert "9000" in answer["choices"][0]["message"]["content"]
        stack.model.fails_at = 2
        stack.chat()
    sent = str([asked for _, asked in collector.requests])
    assert len(collector.spans) == 12 and "000 euros" not in sent and "Lyon pays" not in sent
    assert "8000 euros" in stack.model.asked[0][1] and "And now?" in sent


def test_earlier_answers_to_a_reader_with_rights_of_their_own_are_not_shown(tmp_path, collector):
    known = {digest("bob"): Key("key-bob", "bob", labels=("hr",)), digest("dan"): Key("key-dan", "dan")}
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces"), api_key="admin") as stack:
        stack.router.keys, stack.model.words = known, ("As I said,", " 9000 euros.")
        before = [{"role": "user", "content": "Pay?"}, {"role": "assistant", "content": "Lyon pays 9000 euros."}]
        for who, shown in (("bob", 0), ("dan", 3)):  # the answer, the prompt and the generation
            collector.requests.clear()
            asked = [*before, {"role": "user", "content": "And when does Lyon open?"}]
            stack.chat(headers={"authorization": f"Bearer {who}"}, messages=asked)
            wait_until(lambda: collector.spans)
            assert sum("9000" in str(attributes(span)) for span in collector.spans) == shown, who


def test_a_worked_example_that_was_deleted_is_not_in_the_prompt_that_is_shown(tmp_path, collector):
    shots = tuple(Shot("Where?", f"In {town}.", Chunk(id, "a.md", "A", "A", "h", f"In {town}."), 1)
                  for town, id in (("Lyon", "c1"), ("Atlantis", "dead")))  # fmt: skip
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces")) as stack:
        stack.router.live = replace(LIVE, prompt=Prompt(shots=shots))
        stack.chat()
    assert shown(collector.spans[2]) == stack.model.asked[0][1]
    sent = str([asked for _, asked in collector.requests])
    assert "In Lyon." in sent and "Atlantis" not in sent


def test_a_share_is_traced_and_every_request_that_failed(tmp_path, collector):
    sent = Traces(1e-9, f"{collector.url}/v1/traces")
    with traced(tmp_path, sent) as stack:
        for _ in range(5):
            stack.chat()
        stack.model.fails_at = 1
        stack.chat()
        stack.chat(n=2)
    answered, *rest = collector.spans
    assert answered.status.code == 2 and answered.status.message == "The model does not answer now"
    assert [span.name for span in rest] == ["retrieval", "prompt", "generation"]


def test_about_the_share_of_response_ids_is_taken():
    draw, sent = random.Random(0), Traces(0.25)
    ids = [uuid.UUID(int=draw.getrandbits(128), version=4).hex for _ in range(2000)]
    asked = [SimpleNamespace(row=SimpleNamespace(status=200, response=f"chatcmpl-{one}")) for one in ids]
    assert 450 < sum(sent.takes(one, None) for one in asked) < 550


def test_a_share_of_nothing_traces_nothing_not_even_failures(tmp_path, collector):
    sent = Traces(0.0, f"{collector.url}/v1/traces")
    with traced(tmp_path, sent) as stack:
        stack.model.fails_at = 1
        stack.chat()
        stack.chat(headers={"traceparent": CALLER.format(1)})
    assert collector.spans == [] and sent._sender is None


def test_a_callers_trace_goes_on_and_its_flag_decides(tmp_path, collector):
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces")) as stack:
        stack.chat(headers={"traceparent": CALLER.format(1)})
        stack.chat(headers={"traceparent": CALLER.format(0)})
        stack.chat(headers={"traceparent": "nonsense"})
    first, other = collector.spans[:4], collector.spans[4:]
    assert {span.trace_id.hex() for span in first} == {"0af7651916cd43dd8448eb211c80319c"}
    assert first[0].parent_span_id.hex() == "b7ad6b7169203331"
    assert len(other) == 4 and not other[0].parent_span_id, "what can not be read is as if it was not there"


def test_a_collector_that_hangs_costs_no_request_anything_and_what_is_lost_is_counted(tmp_path, collector, monkeypatch):
    monkeypatch.setattr(module, "WAITING", 3)
    monkeypatch.setattr(module, "BATCH", 1)
    collector.waits = threading.Event()
    sent = Traces(1.0, f"{collector.url}/v1/traces")
    with traced(tmp_path, sent) as stack:
        for _ in range(10):
            assert stack.chat().status_code == 200
        assert 5 <= sent.lost <= 7, "one or two are being sent, three wait"
        assert f"perennial_traces_lost {float(sent.lost)}" in stack.get("/metrics").text
        collector.waits.set()


def test_nobody_at_the_other_end_is_a_lost_trace_and_no_more(tmp_path):
    sent = Traces(1.0, mlflow="http://127.0.0.1:9")
    with traced(tmp_path, sent) as stack:
        assert stack.chat().status_code == 200
    assert sent.lost == 1


def test_a_trace_that_can_not_be_made_is_lost_and_the_next_one_is_sent(tmp_path, collector, monkeypatch):
    made, sent = module.spans, Traces(1.0, f"{collector.url}/v1/traces")
    monkeypatch.setattr(module, "spans", lambda trace: 1 / 0)
    with traced(tmp_path, sent) as stack:
        stack.chat()
        wait_until(lambda: sent.lost == 1)
        monkeypatch.setattr(module, "spans", made)
        stack.chat()
    assert sent.lost == 1 and len(collector.spans) == 4


def test_a_request_without_retrieval_has_no_span_of_one(tmp_path, collector):
    with traced(tmp_path, Traces(1.0, f"{collector.url}/v1/traces")) as stack:
        stack.chat(retrieval="off")
        stack.chat(headers={"x-perennial-source": "canary", "x-perennial-token": TOKEN})
    assert [span.name for span in collector.spans][:3] == ["answer", "prompt", "generation"]
    sources = [attributes(span).get("mlflow.traceTag.source") for span in collector.spans if span.name == "answer"]
    assert sources == ["direct", "canary"]


def test_traces_past_the_retention_are_deleted_of_assistants_that_have_any(collector):
    collector.experiments = {"helpdesk": "4"}
    before = time.time()
    prune(collector.url, ["other", "helpdesk"], days=30)
    (asked,) = collector.deleted
    assert asked["experiment_id"] == "4" and set(collector.experiments) == {"helpdesk"}
    assert abs(asked["max_timestamp_millis"] / 1000 - (before - 30 * 86_400)) < 60
    prune("http://127.0.0.1:9", ["helpdesk"], days=30)


BASIC = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "pass word"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "t0k"}, "Bearer t0k"),
        (BASIC | {"MLFLOW_TRACKING_TOKEN": "t0k"}, "Basic YW5uOnBhc3Mgd29yZA=="),
    ],
)
def test_mlflow_is_shown_its_credentials_and_another_collector_is_not(tmp_path, collector, monkeypatch, given, shown):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with traced(tmp_path, Traces(1.0, mlflow=collector.url)) as stack:
        stack.chat()
    prune(collector.url, ["helpdesk"], days=30)
    assert collector.shown == {(what, shown) for what in ("GET", "create", "traces", "delete-traces")}
    collector.shown.clear()
    with traced(tmp_path, Traces(1.0, f"{collector.url}/elsewhere")) as stack:
        stack.chat()
    assert collector.shown == {("elsewhere", None)}


@pytest.mark.stack
def test_mlflow_shows_a_trace_beside_the_assistants_runs_with_its_release_texts_and_tokens(stack, tmp_path):
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow)
    experiment = mlflow.set_experiment("helpdesk").experiment_id
    with traced(tmp_path, Traces(1.0, mlflow=settings().mlflow)) as app:
        answer = app.chat().json()
    wanted = f"tag.release = '{answer['system_fingerprint']}'"
    (found,) = mlflow.MlflowClient().search_traces(locations=[experiment], filter_string=wanted)
    about = found.info
    assert about.trace_id == f"tr-{answer['id'].removeprefix('chatcmpl-')}" and about.state.value == "OK"
    assert (about.request_preview, about.response_preview) == ("When does Lyon open?", "9 a.m. on weekdays")
    kinds = [(span.name, span.span_type) for span in found.data.spans]
    assert kinds[:2] == [("answer", "CHAIN"), ("retrieval", "RETRIEVER")] and kinds[3] == ("generation", "CHAT_MODEL")
    assert about.token_usage == {"input_tokens": 50, "output_tokens": 4, "total_tokens": 54}
    assert found.data.spans[1].outputs[0]["page_content"] == HITS[0].chunk.text


def wait_until(check) -> None:
    deadline = time.monotonic() + 10
    while not check() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert check()
