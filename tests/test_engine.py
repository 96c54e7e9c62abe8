"""Engines: refusing what should not be loaded, streaming, stopping, cancelling."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.records import Constrained, Decoding, Model, file_sha256
from serving.engine import artifact_sha256, open_engine, settled, verify
from serving.schema import checked
from tests import tiny

ASK = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
OPTIONAL = {f"p{n}": {"type": "string"} for n in range(99)}
LARGEST = (
    {"type": "object", "properties": OPTIONAL},
    {"enum": [f"value {n}" for n in range(200)]},
    {"type": "object", "properties": {"é.b-1": {"enum": ["it's", "{x}", "日本", -1e300, None, ""]}}},
)
SCHEMA = checked({"enum": ["weekdays", "weekends"]})


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no engine 'vllm'; .* openvino, transformers"):
        open_engine(Model("", "x.gguf", "vllm", ""))


def test_an_altered_file_is_not_opened(tmp_path):
    weights = tmp_path / "model.safetensors"
    save_file({"w": np.zeros(2, np.float32)}, weights)
    sha = file_sha256(weights)
    verify(str(weights), sha)
    save_file({"w": np.ones(2, np.float32)}, weights)
    with pytest.raises(ValueError, match=f"(?s){file_sha256(weights)}.*{sha}"):
        open_engine(Model(sha, str(weights), "transformers", ""))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "model.pt", "modeling_custom.py"])
def test_formats_that_can_run_code_are_refused(tmp_path, name):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="can run code"):
        open_engine(Model(artifact_sha256(tmp_path), str(tmp_path), "transformers", ""))


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no weights"):
        open_engine(Model(artifact_sha256(tmp_path), str(tmp_path), "transformers", ""))


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"serving\.engine\.models"):
        open_engine(Model("", str(tmp_path / "gone.gguf"), "openvino", ""))


def test_a_folder_hash_changes_with_any_file_in_it(tmp_path):
    (tmp_path / "a").write_text("1")
    before = artifact_sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert artifact_sha256(tmp_path) != before


def test_text_that_may_begin_a_stop_string_is_held_until_it_is_decided():
    assert settled("3 days\nQu", ["\nQuestion"], ended=False) == ("3 days", False)
    assert settled("3 days\nQuick", ["\nQuestion"], ended=False) == ("3 days\nQuick", False)
    assert settled("3 days\nQuestion: x", ["\nQuestion"], ended=False) == ("3 days", True)
    assert settled("3 days\nQu", ["\nQuestion"], ended=True) == ("3 days\nQu", False)


def test_an_unfinished_character_is_held():
    assert settled("caf\ufffd", [], ended=False) == ("caf", False)


# --- the reference engine on a random model ---------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tiny.folder(tmp_path_factory.mktemp("engine"))
    engine = open_engine(Model(artifact_sha256(folder), str(folder), "transformers", ""))
    yield engine
    engine.close()


def test_streamed_pieces_add_up_to_the_generated_text(reference):
    decoding = Decoding(max_new_tokens=12)
    (whole,) = reference.generate([ASK.format("a")], decoding)
    pieces = list(reference.stream(ASK.format("a"), decoding))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason and pieces[-1].tokens == whole.completion_tokens
    assert [piece.finish_reason for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert whole.prompt_tokens == reference.count(ASK.format("a")) == pieces[-1].prompt_tokens


def test_batched_answers_are_those_of_single_prompts_in_their_order(reference):
    prompts = [ASK.format(text) for text in ("a", "a longer question than that", "b")]
    decoding = Decoding(max_new_tokens=8)
    together = [answer.text for answer in reference.generate(prompts, decoding)]
    assert together == [reference.generate([prompt], decoding)[0].text for prompt in prompts]


def test_a_closed_stream_stops_the_generation(reference):
    stream = reference.stream(ASK.format("a"), Decoding(max_new_tokens=400))
    next(stream)
    started = time.perf_counter()
    stream.close()
    reference.generate(["b"], Decoding(max_new_tokens=1))  # waits for whatever still runs
    assert time.perf_counter() - started < 2


def test_a_prompt_that_leaves_no_room_is_refused_with_the_figures(reference):
    with pytest.raises(ValueError, match="600 tokens"):
        reference.generate(["x" * 600], Decoding())
    with pytest.raises(RuntimeError, match="600 tokens"):
        list(reference.stream("x" * 600, Decoding()))


# --- the production engine on the real base ---------------------------------------------------


@pytest.fixture(scope="module")
def served(models):
    from serving.engine.models import base_model

    engine = open_engine(base_model())
    yield engine
    engine.close()


@pytest.mark.model
def test_openvino_streams_what_it_generates(served):
    decoding, prompt = Decoding(max_new_tokens=24), ASK.format("What do bees make?")
    (whole,) = served.generate([prompt], decoding)
    pieces = list(served.stream(prompt, decoding))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason in ("stop", "length")
    assert whole.prompt_tokens == served.count(prompt) == pieces[-1].prompt_tokens


@pytest.mark.model
def test_openvino_keeps_concurrent_streams_apart(served):
    topics = ["bees", "ice", "Paris", "gold", "the moon", "bread", "chess", "rain"]
    decoding = Decoding(max_new_tokens=8)
    prompts = {topic: ASK.format(f"Tell me about {topic}.") for topic in topics}
    alone = {topic: served.generate([prompt], decoding)[0].text for topic, prompt in prompts.items()}
    told = {}

    def read(topic):
        told[topic] = "".join(piece.text for piece in served.stream(prompts[topic], decoding))

    threads = [threading.Thread(target=read, args=(topic,)) for topic in topics]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert len(set(alone.values())) >= 6
    assert sum(told[topic] == alone[topic] for topic in topics) >= 6  # a batch may flip a near tie


@pytest.mark.model
def test_openvino_frees_a_request_whose_stream_is_closed(served):
    stream = served.stream(ASK.format("Count to one thousand."), Decoding(max_new_tokens=500))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 10
    while served._live and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not served._live


@pytest.mark.model
def test_openvino_ends_before_a_stop_string(served):
    prompt = ASK.format("What do bees make?")
    (whole,) = served.generate([prompt], Decoding(max_new_tokens=24))
    stop = whole.text.split()[2]
    decoding = Decoding(max_new_tokens=24, stop=(stop,))
    (cut,) = served.generate([prompt], decoding)
    assert stop not in cut.text and whole.text.startswith(cut.text) and cut.finish_reason == "stop"
    assert "".join(piece.text for piece in served.stream(prompt, decoding)).rstrip() == cut.text.rstrip()


@pytest.mark.model
def test_openvino_sampling_repeats_with_its_seed(served):
    def sample(seed):
        return served.generate([ASK.format("Tell a story.")], Decoding(20, temperature=1.0, seed=seed))[0].text

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.model
def test_openvino_writes_json_by_a_schema_while_others_write_freely(served):
    free = served.generate([ASK.format("Name a city.")], Decoding(max_new_tokens=12))[0]
    constrained = Constrained(max_new_tokens=12, json_schema=SCHEMA)
    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(served.generate, [ASK.format("Name a city.")], constrained)
        beside = threads.submit(served.generate, [ASK.format("Name a city.")], Decoding(max_new_tokens=12))
    assert json.loads(held.result()[0].text) in ("weekdays", "weekends")
    assert beside.result()[0].text == free.text


@pytest.mark.model
@pytest.mark.parametrize("schema", LARGEST)
def test_openvino_goes_on_after_the_largest_schemas_that_are_let_in(served, schema):
    served.generate([ASK.format("Name a city.")], Constrained(max_new_tokens=4, json_schema=checked(schema)))
    assert served.generate([ASK.format("Name a city.")], Decoding(max_new_tokens=2))[0].completion_tokens


def test_the_reference_refuses_a_schema_that_it_would_not_follow(reference):
    with pytest.raises(ValueError, match="response_format"):
        reference.generate(["a"], Constrained(json_schema=SCHEMA))


@pytest.mark.model
def test_openvino_refuses_a_prompt_over_the_context(served):
    with pytest.raises(ValueError, match="reads at most 8192"):
        served.generate(["word " * 9000], Decoding())


@pytest.mark.model
def test_closing_openvino_fails_what_runs_and_what_comes_after(models):
    from serving.engine.models import base_model

    engine = open_engine(base_model())
    stream = engine.stream(ASK.format("Count to one thousand."), Decoding(max_new_tokens=500))
    next(stream)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(["x"], Decoding())
