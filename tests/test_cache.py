from dataclasses import replace

import pytest

from data.records import Decoding, Generation, Guard, IndexVersion, Model, Release
from serving.cache import AnswerCache, key

RELEASE = Release(
    "helpdesk",
    Model("a" * 64, "m.gguf", "openvino", "b"),
    IndexVersion("helpdesk", "uri", "t", 1, "sum", "emb", "chunk", 1, 1, "snap"),
)
GENERATION = Generation("9 a.m.", 10, 3, "stop", 0.1, 0.2)


def test_the_key_changes_with_everything_that_decides_the_text():
    model = Model("c" * 64, "m.gguf", "openvino", "b")
    keys = {
        key(RELEASE, "p", Decoding(), "v1"),
        key(replace(RELEASE, assistant="other"), "p", Decoding(), "v1"),
        key(replace(RELEASE, model=model), "p", Decoding(), "v1"),
        key(replace(RELEASE, guard=Guard(max_new_tokens=9)), "p", Decoding(), "v1"),
        key(RELEASE, "p ", Decoding(), "v1"),
        key(RELEASE, "p", Decoding(max_new_tokens=9), "v1"),
        key(RELEASE, "p", Decoding(), "v2"),
    }
    assert len(keys) == 7


def test_a_release_that_changes_only_its_index_shares_the_kept_answer():
    moved = replace(RELEASE, index=replace(RELEASE.index, checksum="other", version=2))
    assert key(moved, "p", Decoding(), "v1") == key(RELEASE, "p", Decoding(), "v1")


def test_a_sampled_text_is_refused():
    with pytest.raises(ValueError, match="only greedy"):
        key(RELEASE, "p", Decoding(temperature=0.1), "v1")


def test_what_is_written_is_read_by_another_process_and_the_first_value_stays(tmp_path):
    AnswerCache(tmp_path / "a.db").write({"k": GENERATION})
    AnswerCache(tmp_path / "a.db").write({"k": replace(GENERATION, text="other")})
    assert AnswerCache(tmp_path / "a.db").read(["k", "unknown"]) == {"k": GENERATION}


def test_more_keys_than_one_query_takes_are_read(tmp_path):
    cache = AnswerCache(tmp_path / "a.db")
    cache.write({f"k{n}": GENERATION for n in range(1200)})
    assert len(cache.read([f"k{n}" for n in range(1200)])) == 1200
