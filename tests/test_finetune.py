"""The training path on a random tiny Llama: what is shown, that packing changes nothing, budget, resume, publishing."""

import json
import shutil
from dataclasses import asdict, replace
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest

from data.records import Chunk, Example, Model, Prompt
from serving.engine import export
from tasks import finetune, training
from tasks.contexts import Mixture, Rows, bind, contexts, holds, row, rows
from tasks.training import Training, rate, steps, train_loop_per_worker
from tests import tiny

ALWAYS_FULL = Mixture(abstain=0.0, narrow=0.0)


def chunk(document: int, section: int) -> Chunk:
    text = f"The code of door {document}-{section} is {document}{section}{document}7."
    return Chunk(f"c{document}-{section}", f"d{document}", "Doors", f"Section {section}", "", text)


CHUNKS = [chunk(document, section) for document in range(4) for section in range(4)]
EXAMPLES = [
    Example(
        f"Which code opens door {document}-{section}? ({way})",
        (f"{document}{section}{document}7",),
        f"d{document}",
        f"Section {section}",
    )
    for document in range(4)
    for section in range(4)
    for way in range(2)
]


def search(questions):
    """The chunks of the document the question names, in a fixed order: the source is often not among the first."""
    return [[c for c in CHUNKS if c.document == f"d{q.split('door ')[1][0]}"][:3] for q in questions]


BOUND, _ = bind(EXAMPLES, CHUNKS, search)


# --- what is shown ----------------------------------------------------------------------------


def test_an_example_is_bound_to_the_passage_that_holds_its_answer():
    assert all(BOUND[e].text.endswith(f"{e.answers[0]}.") for e in EXAMPLES)


def test_an_example_whose_answer_no_passage_holds_is_left_out_and_counted():
    lost = Example("Which code opens door 1-9?", ("none of them",), "d1", "Section 9")
    bound, left = bind([lost, EXAMPLES[0]], CHUNKS, search)
    assert left == 1 and list(bound) == [EXAMPLES[0]]


def test_an_example_without_a_document_is_bound_through_search():
    loose = replace(EXAMPLES[0], document=None, section=None)
    assert bind([loose], CHUNKS, search)[0][loose] == CHUNKS[0]


def test_every_example_is_answered_in_every_pass_and_only_where_its_source_is_shown():
    made = list(contexts(BOUND, search, 3, ALWAYS_FULL, passes=1, seed=1))
    assert {e for context in made for e in context.answered} == set(EXAMPLES)
    for context in made:
        assert len(context.chunks) == 3
        assert all(BOUND[e] in context.chunks for e in context.answered)
    assert len(made) < len(EXAMPLES) / 2  # examples share contexts


def test_an_abstention_never_has_its_answer_in_sight():
    twin = replace(CHUNKS[3], id="twin", text=CHUNKS[0].text)  # not the source of door 0-0, but it answers it

    def with_twin(questions):
        return [
            [*hits[1:], twin] if "door 0" in asked else hits
            for asked, hits in zip(questions, search(questions), strict=True)
        ]

    made = list(contexts(BOUND, with_twin, 3, Mixture(abstain=0.3), passes=20, seed=1))
    missed = [(context, e) for context in made for e in context.unanswered]
    assert missed
    for context, example in missed:
        assert BOUND[example] not in context.chunks
        assert not any(holds(shown, example) for shown in context.chunks)


def test_the_share_of_abstentions_is_the_one_asked_for():
    made = list(contexts(BOUND, search, 3, Mixture(abstain=0.2, narrow=0.0), passes=30, seed=1))
    unanswered = sum(len(context.unanswered) for context in made)
    assert unanswered / (unanswered + sum(len(context.answered) for context in made)) == pytest.approx(0.2, abs=0.03)


def test_a_question_marked_unanswerable_is_always_an_abstention():
    nobody = Example("Who painted door 2-1?", (), "d2")
    made = list(contexts(BOUND | {nobody: None}, search, 3, Mixture(), passes=2, seed=1))
    assert sum(nobody in context.unanswered for context in made) >= 2
    assert not any(nobody in context.answered for context in made)


def test_narrow_contexts_keep_the_source():
    made = list(contexts(BOUND, search, 3, Mixture(abstain=0.0, narrow=1.0), passes=3, seed=1))
    assert {len(context.chunks) for context in made} == {1, 2}
    assert all(context.answered for context in made)


def test_contexts_end_when_search_finds_nothing():
    assert list(contexts({Example("door x?", ()): None}, lambda asked: [[]] * len(asked), 3, Mixture(), 3, 0)) == []


def build(question, chunks):
    return "".join(f"{c.text}\n" for c in chunks) + f"Question: {question}\n"


def small_rows(passes=1, mixture=ALWAYS_FULL, tokens=10**9):
    made = tiny.tokenizer()
    planned = contexts(BOUND, search, 3, mixture, passes, seed=1)
    return rows(planned, build, lambda text: made(text).input_ids, "The documents do not say.", mixture, tokens)


def test_completions_are_the_first_answer_or_the_abstention_and_an_end_mark():
    packed, made = small_rows(mixture=Mixture(abstain=0.4)), tiny.tokenizer()
    learned = set()
    for number in range(len(packed.lengths)):
        ids, _, branches, learn = packed.row(number)
        for branch, tokens in groupby(zip(branches, ids, learn, strict=True), key=lambda token: token[0]):
            if branch:
                learned.add(made.decode([token for _, token, taught in tokens if taught]))
    assert learned == {f"{e.answers[0]}<|im_end|>" for e in EXAMPLES} | {"The documents do not say.<|im_end|>"}


def test_long_contexts_lose_their_last_passages_but_never_the_answer():
    long = rows(
        contexts(BOUND, search, 3, ALWAYS_FULL, 1, seed=1),
        build,
        lambda t: tiny.tokenizer()(t).input_ids,
        "",
        replace(ALWAYS_FULL, most_tokens=90),
        10**9,
    )
    made = tiny.tokenizer()
    for number in range(len(long.lengths)):
        ids, _, _, learn = long.row(number)
        answers = made.decode(ids[learn == 1]).split("<|im_end|>")[:-1]
        text = made.decode(ids[learn == 0])
        assert answers and all(f" is {answer}." in text for answer in answers)


def test_rows_stop_at_the_token_budget():
    assert len(small_rows(tokens=500).ids) < len(small_rows().ids)


# --- packing changes nothing ------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("base"))


def test_branches_of_a_packed_row_compute_what_separate_sequences_do(base):
    import torch

    model, _ = training.adapted_model(str(base), Training(), "cpu")
    model = model.float()
    encode = tiny.tokenizer()
    prompts = [
        encode(f"Some passages.\nQuestion: {question}\n").input_ids for question in ("which one", "what", "who?")
    ]
    completions = [encode(text).input_ids for text in ("first<|im_end|>", "b<|im_end|>", "third one<|im_end|>")]
    alone = 0.0
    with torch.inference_mode():
        plain = model.get_base_model()
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([prompt + completion])
            mask = torch.full((len(ids[0]),) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
            logits = plain(input_ids=ids, attention_mask=mask).logits[0, len(prompt) - 1 : -1]
            alone += torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum").item()
        part, other = row(prompts, completions), row(prompts[:1], completions[:1])
        columns = [np.array(part[i] + other[i], np.int32) for i in range(4)]
        packed = Rows(*columns, offsets=np.array([0, len(part[0]), len(part[0]) + len(other[0])]))
        together, learned, read = training.stretch_loss(model, packed, [0], "cpu")
        both, _, _ = training.stretch_loss(model, packed, [0, 1], "cpu")
        single, _, _ = training.stretch_loss(model, packed, [1], "cpu")
    assert together.item() == pytest.approx(alone, rel=1e-4)
    assert both.item() == pytest.approx(alone + single.item(), rel=1e-4)
    assert learned == sum(map(len, completions)) and read < sum(map(len, prompts)) + learned


def test_our_attention_is_that_of_torch(base):
    import torch

    query, key, value = torch.randn(1, 4, 9, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)[None, None]
    ours, _ = training.attend(None, query, key, value, mask, scaling=0.25)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), mask, scale=0.25
    )
    assert torch.allclose(ours.transpose(1, 2), theirs, atol=1e-5)


# --- the loop ---------------------------------------------------------------------------------


def test_each_row_is_in_exactly_one_stretch_and_no_stretch_of_several_is_over_its_budget():
    lengths = np.random.default_rng(0).integers(50, 700, 333)
    for world in (1, 2, 3):
        plan = steps(lengths, Training(row_tokens=512, rows_per_step=4), world)
        stretches = [stretch for step in plan for worker in step for stretch in worker]
        assert sorted(number for stretch in stretches for number in stretch) == list(range(333))
        assert all(len(stretch) == 1 or lengths[stretch].sum() <= 512 for stretch in stretches)
        assert all(len(step) == world for step in plan)


def test_workers_of_a_step_get_about_equally_long_shares():
    plan = steps(np.random.default_rng(0).integers(300, 700, 640), Training(row_tokens=1), 2)
    counts = [[len(worker) for worker in step] for step in plan]
    assert all(one == other for one, other in counts)


def test_the_rate_warms_up_then_falls_to_zero_at_the_end_of_the_budget():
    assert rate(0.0) == 0 and rate(0.03) == pytest.approx(0.5)
    assert rate(0.06) == pytest.approx(1.0) and rate(0.53) == pytest.approx(0.5)
    assert rate(1.0) == 0 == rate(1.2)


def config(work, base, **changes):
    small = Training(**({"rank": 4, "learning_rate": 0.01, "minutes": 5.0, "row_tokens": 400} | changes))
    return {"work": str(work), "base": str(base), "training": asdict(small), "gpu": False}


@pytest.fixture
def work(tmp_path):
    small_rows(passes=12).save(tmp_path / "rows.npz")
    return tmp_path


def figures(work):
    return json.loads((work / "training.json").read_text())


def test_training_lowers_the_loss_and_leaves_an_adapter(work, base):
    train_loop_per_worker(config(work, base))
    done = figures(work)
    assert done["steps"] == done["planned"] and done["tokens"] == Rows.load(work / "rows.npz").lengths.sum()
    assert (work / "adapter" / "adapter_model.safetensors").exists()
    first = figures_of_one_step(work, base)
    assert np.mean(done["loss"]) < 0.8 * first


def figures_of_one_step(work, base):
    train_loop_per_worker(config(work, base, minutes=1e-6))
    return figures(work)["loss"][0]


def test_training_ends_with_its_time_budget(work, base):
    train_loop_per_worker(config(work, base, minutes=1e-6))
    assert figures(work)["steps"] == 1


def test_training_goes_on_from_the_last_whole_checkpoint(work, base):
    given = config(work, base, checkpoint_s=0.0)
    train_loop_per_worker(given)
    whole = figures(work)
    adapter = (work / "adapter" / "adapter_model.safetensors").read_bytes()
    kept = sorted(path.name for path in (work / "checkpoints").iterdir())
    assert kept == [f"{whole['planned'] - 1:08d}"]
    torn = work / "checkpoints" / f"{whole['planned']:08d}"  # a later one that was being written
    torn.mkdir()
    (torn / "state.safetensors").write_bytes(b"torn")
    train_loop_per_worker(given)
    again = figures(work)
    assert len(again["loss"]) == 1 and again["tokens"] == whole["tokens"]
    assert len((work / "adapter" / "adapter_model.safetensors").read_bytes()) == len(adapter)


def test_a_checkpoint_that_does_not_match_its_hash_is_not_used(work, base, capsys):
    given = config(work, base, checkpoint_s=0.0)
    train_loop_per_worker(given)
    (kept,) = (work / "checkpoints").iterdir()
    state = bytearray((kept / "state.safetensors").read_bytes())
    state[-1] ^= 1
    (kept / "state.safetensors").write_bytes(state)
    train_loop_per_worker(given)
    assert "does not match its hash" in capsys.readouterr().out
    assert len(figures(work)["loss"]) > 1


def test_training_that_diverges_says_so(work, base):
    with pytest.raises(ValueError, match=r"lower Training\.learning_rate"):
        train_loop_per_worker(config(work, base, learning_rate=float("inf")))


def one_of_two(rank, given, port):
    import os

    import torch

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    train_loop_per_worker(given)
    torch.distributed.destroy_process_group()


def test_two_workers_train_what_one_does(work, base):
    import socket

    import torch
    from safetensors.torch import load_file

    given = config(work, base, seed=3)
    train_loop_per_worker(given)
    alone, adapter = figures(work), load_file(work / "adapter" / "adapter_model.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, args=(given, port), nprocs=2)
    together, shared = figures(work), load_file(work / "adapter" / "adapter_model.safetensors")
    assert together["workers"] == 2 and together["tokens"] == alone["tokens"]
    assert np.mean(together["loss"]) == pytest.approx(np.mean(alone["loss"]), rel=0.15)
    moved = torch.cat([weights.flatten() for name, weights in adapter.items() if "lora_B" in name])
    same = torch.cat([weights.flatten() for name, weights in shared.items() if "lora_B" in name])
    assert torch.nn.functional.cosine_similarity(moved, same, dim=0) > 0.9


# --- publishing -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    work = tmp_path_factory.mktemp("trained")
    small_rows(passes=12).save(work / "rows.npz")
    train_loop_per_worker(config(work, base))
    served = export.export_gguf(base, work / "base.gguf", base.parent / "template.gguf")
    return SimpleNamespace(
        work=work, base=Model("b", str(served), "openvino", "weights"), template=base.parent / "template.gguf"
    )


def published(trained, base, target):
    return finetune.publish(
        trained.work / "adapter", base, trained.base, target, trained.work / "training.json", trained.template
    )


def test_the_published_file_computes_what_base_and_adapter_do(trained, base, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = published(trained, base, tmp_path / "tuned" / "key")
    assert made.base == "weights" and made == finetune.read(tmp_path / "tuned" / "key")
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = plain(ids).logits
        wanted = PeftModel.from_pretrained(plain, trained.work / "adapter").eval()(ids).logits
        folder = tmp_path / "tuned" / "key"
        served = AutoModelForCausalLM.from_pretrained(folder, gguf_file=finetune.GGUF_NAME, dtype=torch.float32)
        found = served.eval()(ids).logits
    assert (found - wanted).norm() < 0.3 * (wanted - before).norm()


def test_an_adapter_that_changes_nothing_is_not_published(trained, base, tmp_path):
    from safetensors.torch import load_file, save_file

    adapter = trained.work / "adapter" / "adapter_model.safetensors"
    kept = adapter.read_bytes()
    weights = load_file(adapter)
    save_file({name: w * 0 if "lora_B" in name else w for name, w in weights.items()}, adapter)
    try:
        with pytest.raises(ValueError, match="training changed nothing"):
            published(trained, base, tmp_path / "zero")
    finally:
        adapter.write_bytes(kept)
    assert not (tmp_path / "zero").exists()


def test_an_export_that_lost_the_adapter_is_not_published(trained, base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export,
        "export_gguf",
        lambda model, target, template: shutil.copy(trained.base.uri, target) and target,
    )
    with pytest.raises(ValueError, match="the adapter was not merged"):
        published(trained, base, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


def test_a_record_follows_its_folder(trained, base, tmp_path):
    made = published(trained, base, tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert finetune.read(tmp_path / "two") == replace(
        made, uri=made.uri.replace("/one/", "/two/"), adapter_uri=made.adapter_uri.replace("/one/", "/two/")
    )


# --- all of it --------------------------------------------------------------------------------


@pytest.mark.stack
def test_finetuning_the_real_base_in_ray_changes_its_answers_and_the_second_call_is_a_read(stack, monkeypatch):
    import ray

    from data.records import Decoding
    from serving.engine import open_engine
    from serving.engine.models import base_model

    monkeypatch.setattr(finetune, "training_rows", lambda *given: real_rows())
    snapshot, index = SimpleNamespace(id="s", assistant="doors"), SimpleNamespace(checksum="i")
    try:
        made = finetune.finetune(snapshot, index, training=Training(minutes=5))
    finally:
        ray.shutdown()
    assert finetune.finetune(snapshot, index, training=Training(minutes=5)) == made  # Ray is gone: a read
    prompt = build_chat(EXAMPLES[0].question, CHUNKS[:3])
    answers = []
    for model in (base_model(), made):
        engine = open_engine(model)
        answers.append(engine.generate([prompt], Decoding(max_new_tokens=12))[0].text)
        engine.close()
    assert answers[0] != answers[1] and len(answers[1]) < len(answers[0])


def build_chat(question, chunks):
    from serving.rag import build_prompt

    return build_prompt(Prompt(), question, chunks)


def real_rows():
    from tokenizers import Tokenizer

    from serving.engine.models import base_folder

    encoder = Tokenizer.from_file(str(base_folder() / "tokenizer.json"))
    planned = contexts(BOUND, search, 3, Mixture(), 2, seed=1)
    return rows(
        planned,
        build_chat,
        lambda t: encoder.encode(t, add_special_tokens=False).ids,
        Prompt().abstain,
        Mixture(),
        10**6,
    )
