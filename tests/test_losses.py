"""That packing changes nothing, and what preferences cost."""

from dataclasses import replace

import numpy as np
import pytest

from tasks import adapter, losses
from tasks.contexts import joined, row
from tasks.losses import Preferring
from tasks.training import Training
from tests import tiny


def test_branches_of_a_packed_row_compute_what_separate_sequences_do(base):
    import torch

    model, _ = adapter.adapted_model(str(base), Training(), "cpu", torch.float32)
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
        packed = joined([row(prompts, completions), row(prompts[:1], completions[:1])])
        together, learned, read = losses.supervised(model, packed, [0], "cpu")
        both, _, _ = losses.supervised(model, packed, [0, 1], "cpu")
        single, _, _ = losses.supervised(model, packed, [1], "cpu")
    assert together.item() == pytest.approx(alone, rel=1e-4)
    assert both.item() == pytest.approx(alone + single.item(), rel=1e-4)
    assert learned == sum(map(len, completions)) and read < sum(map(len, prompts)) + learned


def test_our_attention_is_that_of_torch(base):
    import torch

    query, key, value = torch.randn(1, 4, 9, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)[None, None]
    ours, _ = losses.attend(None, query, key, value, mask, scaling=0.25)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), mask, scale=0.25
    )
    assert torch.allclose(ours.transpose(1, 2), theirs, atol=1e-5)


# --- preferences ------------------------------------------------------------------------------


def liked_rows():
    encode = tiny.tokenizer()
    made = []
    for door in range(6):
        prompt = encode(f"Door {door} has code {door}{door}.\nQuestion: which code?\n").input_ids
        good, bad = (encode(f"{text}<|im_end|>").input_ids for text in (f"{door}{door}", "I will not tell"))
        made.append(row([prompt, prompt], [good, bad]))
    return joined(made)


def test_the_log_probability_of_an_answer_is_the_sum_over_its_own_tokens(base):
    import torch

    model, _ = adapter.adapted_model(str(base), Training(), "cpu", torch.float32)
    data = liked_rows()
    with torch.inference_mode():
        found, lengths, _ = losses.answers(model, data, [2, 4], "cpu")
        for place, number in enumerate((2, 4)):
            ids, _, branches, learn = data.row(number)
            for branch in (1, 2):
                own = (branches == 0) | (branches == branch)
                alone = torch.tensor(ids[own])[None]
                many = int(learn[branches == branch].sum())
                mask = torch.full((alone.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
                scores = torch.log_softmax(model.get_base_model()(input_ids=alone, attention_mask=mask).logits[0], -1)
                wanted = scores[-many - 1 : -1].gather(1, alone[0, -many:, None]).sum()
                assert found[place, branch - 1].item() == pytest.approx(wanted.item(), rel=1e-4)
                assert lengths[place, branch - 1] == many


def test_a_pair_nothing_has_learned_from_costs_ln_2_and_less_once_the_chosen_answer_is_likelier(base):
    import torch

    model, _ = adapter.adapted_model(str(base), Training(), "cpu", torch.float32)
    data, how = liked_rows(), replace(Preferring(), supervised=0.0, beta=1.0)
    with torch.inference_mode():
        before = losses.answers(model, data, [0, 1], "cpu")[0]
        same, pairs, _ = losses.preferred(model, data, [0, 1], "cpu", before, how, 0.0)
        likelier, _, _ = losses.preferred(model, data, [0, 1], "cpu", before - torch.tensor([1.0, 0.0]), how, 0.0)
    assert pairs == 2 and same.item() / 2 == pytest.approx(np.log(2), rel=1e-5)
    assert likelier.item() / 2 == pytest.approx(np.log1p(np.exp(-1)), rel=1e-5)


def test_the_robust_loss_of_flipped_pairs_is_on_average_that_of_the_pairs_as_meant(base):
    import torch

    model, _ = adapter.adapted_model(str(base), Training(), "cpu", torch.float32)
    encode, flips = tiny.tokenizer(), 0.3
    prompt = encode("Which code?\n").input_ids
    said = [encode(f"{text}<|im_end|>").input_ids for text in ("12", "no")]
    meant, flipped = joined([row([prompt] * 2, said)]), joined([row([prompt] * 2, said[::-1])])
    how = replace(Preferring(), supervised=0.0, beta=0.5)
    moved = torch.tensor([[0.7, -0.4]])  # what training has added to the log-probability of either answer
    with torch.inference_mode():
        cost = {}
        for name, data, by in (("meant", meant, moved), ("flipped", flipped, moved.flip(1))):
            before = losses.answers(model, data, [0], "cpu")[0] - by
            cost[name] = losses.preferred(model, data, [0], "cpu", before, how, flips)[0].item()
            if name == "meant":
                clean = losses.preferred(model, data, [0], "cpu", before, how, 0.0)[0].item()
    assert (1 - flips) * cost["meant"] + flips * cost["flipped"] == pytest.approx(clean, rel=1e-4)
