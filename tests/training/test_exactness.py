"""Ours against the independent naive implementation: loss within 1e-5, every gradient within 1e-4 relative."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from jobs.benchmarks.families import scaled_up
from jobs.benchmarks.naive import naive_loss
from tailor_ray.training.forward import StudentLoss
from tailor_ray.training.packing import PackSettings, pack_separate, pack_tree, target_count
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import Lengths, Tree, TreeAttention
from tests.training.students import KINDS, make_model

FLOOR = 4.5  # nats per token, near the ln 96 of random models, so that some mistakes are above it and some below


def random_examples(seed: int, count: int = 5, demos: int = 24, pairs: str = "some") -> list[TokenExample]:
    """Ragged lengths; one-token rationales are among them."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 96) for _ in range(rng.randint(low, high)))

    start = ids(demos, demos) if demos else ()
    examples = []
    for index in range(count):
        paired = pairs == "all" or (pairs == "some" and index % 2 == 0)
        sides = (ids(1, 14), ids(1, 14)) if paired else ((), ())
        examples.append(TokenExample(f"q{index}", start + ids(1, 12), ids(1, 1) if index == 0 else ids(1, 14), *sides))
    return examples


def our_loss(
    model, attention, examples, settings, *, separate=False, share_root=True, margin=1.0, passes=1, reflection="triplet"
):
    """Summed over passes, each with its share of the examples."""
    targets, pairs = sum(target_count(e) for e in examples), max(1, sum(e.has_pair for e in examples))
    module, total = StudentLoss(model, attention, margin, reflection, FLOOR), 0.0
    for number in range(passes):
        share = examples[number::passes]
        pack = pack_separate(share, settings, pad=0) if separate else pack_tree(share, settings, share_root)
        sums = module(pack)
        total = total + sums.mle / targets + 0.5 * sums.reflection / pairs
    return total


def assert_same(model, ours, reference, expected):
    assert abs(ours.item() - expected.item()) < 1e-5
    ours.backward()
    expected.backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        scale = max(theirs.grad.abs().max().item(), 1e-6)  # a key's bias has no gradient but rounding
        assert (mine.grad - theirs.grad).abs().max().item() <= 1e-4 * scale, name


def twins(kind: str):
    model = make_model(kind).eval()  # GPT-2 has dropout
    reference = copy.deepcopy(model)
    attention = TreeAttention()
    attention.install(model)
    return model, attention, reference


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("demos", [0, 24])
def test_the_tree_gives_the_naive_loss_and_gradients(kind, demos):
    model, attention, reference = twins(kind)
    examples = random_examples(seed=len(kind) + demos, demos=demos)
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192))
    assert_same(model, ours, reference, naive_loss(reference, examples))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("representation", ["last", "mean"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_every_kind_with_every_representation_and_prompt_gradient(monkeypatch, kind, representation, detached, long):
    """`long`: spans go through the CPU's kernel one by one and in halves, as those of real length do."""
    if long:
        monkeypatch.setattr("tailor_ray.training.blocks.LONG", 1)
        monkeypatch.setattr("tailor_ray.training.blocks.WHOLE", 5)
    model, attention, reference = twins(kind)
    examples = random_examples(seed=29)
    ours = our_loss(model, attention, examples, PackSettings(0.1, representation, 192, detached))
    assert_same(
        model, ours, reference, naive_loss(reference, examples, representation=representation, detached=detached)
    )


@pytest.mark.parametrize("share_root", [True, False])
def test_sequences_of_real_length(share_root):
    """As long as a few-shot prompt and its rationales: no length is lowered for the test."""
    model = make_model("llama", max_position_embeddings=1024).eval()
    reference = copy.deepcopy(model)
    attention = TreeAttention()
    attention.install(model)
    rng = random.Random(31)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 96) for _ in range(length))

    demos = ids(230)
    examples = [
        TokenExample("a", demos + ids(90), ids(130), ids(201), ids(77)),
        TokenExample("b", demos + ids(41), ids(250)),
        TokenExample("c", demos + ids(111), ids(64), ids(192), ids(100)),
    ]
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192), share_root=share_root)
    assert_same(model, ours, reference, naive_loss(reference, examples))


@pytest.mark.parametrize("pairs", ["all", "some", "none"])
@pytest.mark.parametrize("representation", ["last", "mean"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("cap", [192, 5])
def test_every_setting_of_the_triplet_term(pairs, representation, detached, cap):
    model, attention, reference = twins("llama")
    whole = random_examples(seed=3, pairs=pairs)
    examples = [TokenExample(e.question_id, e.prompt, e.rationale, e.positive[:cap], e.negative[:cap]) for e in whole]
    ours = our_loss(model, attention, examples, PackSettings(0.1, representation, cap, detached))
    expected = naive_loss(reference, whole, representation=representation, cap=cap, detached=detached)
    assert_same(model, ours, reference, expected)


def test_detaching_changes_the_gradient():
    """Or the test above would pass with both the same."""
    examples = random_examples(seed=3, pairs="all")
    gradients = []
    for detached in (False, True):
        reference = make_model("llama")
        naive_loss(reference, examples, detached=detached).backward()
        gradients.append(reference.model.layers[0].self_attn.v_proj.weight.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[0].abs().max()


@pytest.mark.parametrize("prompt_weight", [0.0, 0.1, 1.0])
def test_prompt_weights(prompt_weight):
    model, attention, reference = twins("llama")
    examples = random_examples(seed=5)
    ours = our_loss(model, attention, examples, PackSettings(prompt_weight, "last", 192))
    assert_same(model, ours, reference, naive_loss(reference, examples, prompt_weight=prompt_weight))


@pytest.mark.parametrize("share_root", [True, False])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_batch_sizes_with_and_without_a_shared_root(share_root, count):
    model, attention, reference = twins("qwen3")
    examples = random_examples(seed=count, count=count)
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192), share_root=share_root)
    assert_same(model, ours, reference, naive_loss(reference, examples))


def test_a_shared_root_is_computed_once():
    examples = random_examples(seed=1, count=8, demos=24)
    settings = PackSettings(0.1, "last", 192)
    apart, shared = pack_tree(examples, settings, share_root=False), pack_tree(examples, settings)
    assert apart.tokens == sum(e.tokens for e in examples)
    assert shared.tokens == apart.tokens - 7 * 24


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_separate_passes_give_the_naive_loss_and_gradients(kind):
    model = make_model(kind).eval()
    reference = copy.deepcopy(model)
    examples = random_examples(seed=7)
    ours = our_loss(model, None, examples, PackSettings(0.1, "mean", 4), separate=True)
    assert_same(model, ours, reference, naive_loss(reference, examples, representation="mean", cap=4))


def test_gradient_checkpointing_changes_nothing():
    model, attention, reference = twins("llama")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    examples = random_examples(seed=11)
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192))
    assert_same(model, ours, reference, naive_loss(reference, examples))


def test_logits_made_in_slices_change_nothing(monkeypatch):
    model, attention, reference = twins("llama")
    monkeypatch.setattr("tailor_ray.training.forward.LOGITS_AT_ONCE", 96 * 7)
    examples = random_examples(seed=13)
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192))
    assert_same(model, ours, reference, naive_loss(reference, examples))


def test_tied_embeddings():
    model = make_model("llama", tie_word_embeddings=True)
    reference = copy.deepcopy(model)
    attention = TreeAttention()
    attention.install(model)
    examples = random_examples(seed=17)
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192))
    assert_same(model, ours, reference, naive_loss(reference, examples))


def test_bfloat16_stays_near_float32():
    """Its tolerance: 8 bits of mantissa, two layers."""
    model, attention, reference = twins("llama")
    model.to(torch.bfloat16)
    examples = random_examples(seed=19)
    pack = pack_tree(examples, PackSettings(0.1, "last", 192))
    sums = StudentLoss(model, attention, 1.0)(pack)
    mle = sums.mle / sum(target_count(e) for e in examples)
    expected = naive_loss(reference, examples, triplet_weight=0.0)
    assert abs(mle.item() - expected.item()) < 2e-2 * expected.item()


@pytest.mark.parametrize("share_root", [True, False])
@pytest.mark.parametrize("detached", [False, True])
def test_masks_for_other_devices_give_the_same(monkeypatch, share_root, detached):
    """What GPUs run: the tree as masks over copied keys."""
    monkeypatch.setattr("tailor_ray.training.tree.Tree.attend", Tree.attend_masked)
    model, attention, reference = twins("qwen3")
    examples = random_examples(seed=23)
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192, detached), share_root=share_root)
    assert_same(model, ours, reference, naive_loss(reference, examples, detached=detached))


def plain_forward(q, k, v, queries, keys, causal, scale):
    """What the GPU's kernel for rows of varying length computes."""
    groups = q.shape[1] // k.shape[1]
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for a, b, c, d in zip(queries.ends, queries.ends[1:], keys.ends, keys.ends[1:], strict=False):
        scores = torch.einsum("qhe,khe->hqk", q[a:b], k[c:d].repeat_interleave(groups, 1)) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(b - a, d - c).triu(1).bool(), float("-inf"))
        lse[:, a:b] = scores.logsumexp(-1)
        out[a:b] = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v[c:d].repeat_interleave(groups, 1))
    return out, lse, None


def plain_backward(grad, q, k, v, out, lse, queries, keys, causal, scale, state):
    groups = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for a, b, c, d in zip(queries.ends, queries.ends[1:], keys.ends, keys.ends[1:], strict=False):
        key, value = (x[c:d].repeat_interleave(groups, 1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q[a:b], key) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(b - a, d - c).triu(1).bool(), float("-inf"))
        p = (scores - lse[:, a:b, None]).exp()
        inner = (grad[a:b] * out[a:b]).sum(-1).T[..., None]
        ds = p * (torch.einsum("qhe,khe->hqk", grad[a:b], value) - inner) * scale
        dq[a:b] += torch.einsum("hqk,khe->qhe", ds, key)
        dk[c:d] += torch.einsum("hqk,qhe->khe", ds, q[a:b]).unflatten(1, (-1, groups)).sum(2)
        dv[c:d] += torch.einsum("hqk,qhe->khe", p, grad[a:b]).unflatten(1, (-1, groups)).sum(2)
    return dq, dk, dv


@pytest.mark.parametrize("kind", ["qwen3", "gptj"])
@pytest.mark.parametrize("demos", [0, 24])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("pairs", ["some", "none"])
def test_the_gpus_rows_of_varying_length_give_the_same(monkeypatch, kind, demos, detached, pairs):
    """The kernels themselves are tried in tests/gpu; what is made of their results is tried here."""
    monkeypatch.setattr("tailor_ray.training.tree.kernel_forward", plain_forward)
    monkeypatch.setattr("tailor_ray.training.tree.kernel_backward", plain_backward)
    monkeypatch.setattr("tailor_ray.training.tree.takes", lambda _: True)
    model, attention, reference = (scaled_up(one) if i != 1 else one for i, one in enumerate(twins(kind)))
    examples = random_examples(seed=37, demos=demos, pairs=pairs)
    pack = pack_tree(examples, PackSettings(0.1, "last", 192, detached))
    pack = replace(pack, tree=replace(pack.tree, lengths=Lengths.of(pack.tree, "cpu")))
    sums = StudentLoss(model, attention, 1.0)(pack)
    ours = sums.mle / sum(map(target_count, examples))
    ours = ours + 0.5 * sums.reflection / max(1, sum(e.has_pair for e in examples))
    assert_same(model, ours, reference, naive_loss(reference, examples, detached=detached))


def without_positives(examples):
    return [replace(e, positive=()) for e in examples]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("reflection", ["orpo", "redi"])
@pytest.mark.parametrize("demos", [0, 24])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_likelihoods_of_mistakes(kind, reflection, demos, passes, separate):
    model, attention, reference = (scaled_up(one) if i != 1 else one for i, one in enumerate(twins(kind)))
    if separate:
        model, attention = copy.deepcopy(reference), None
    examples = without_positives(random_examples(seed=41, count=7, demos=demos))
    settings = PackSettings(0.1, "last", 192, likelihood=True)
    ours = our_loss(model, attention, examples, settings, separate=separate, passes=passes, reflection=reflection)
    assert_same(model, ours, reference, naive_loss(reference, examples, reflection=reflection, floor=FLOOR))


@pytest.mark.parametrize("pairs", ["all", "none"])
@pytest.mark.parametrize("reflection", ["orpo", "redi"])
def test_likelihoods_made_in_slices_change_nothing(monkeypatch, pairs, reflection):
    monkeypatch.setattr("tailor_ray.training.forward.LOGITS_AT_ONCE", 96 * 7)
    model, attention, reference = twins("llama")
    examples = without_positives(random_examples(seed=43, pairs=pairs))
    ours = our_loss(model, attention, examples, PackSettings(0.1, "last", 192, likelihood=True), reflection=reflection)
    assert_same(model, ours, reference, naive_loss(reference, examples, reflection=reflection, floor=FLOOR))


def test_the_reflections_differ():
    """Or the tests above would pass with all the same."""
    examples = random_examples(seed=41, pairs="all")
    model = scaled_up(make_model("llama"))
    found = {kind: naive_loss(model, examples, reflection=kind, floor=FLOOR).item() for kind in ("orpo", "redi")}
    found |= {f"triplet {weight}": naive_loss(model, examples, triplet_weight=weight).item() for weight in (0.0, 0.5)}
    assert len({round(value, 4) for value in found.values()}) == 4


@pytest.mark.parametrize("reflection", ["triplet", "orpo", "redi"])
@pytest.mark.parametrize("separate", [False, True])
def test_weights_of_examples(reflection, separate):
    model, attention, reference = twins("llama")
    if separate:
        model, attention = copy.deepcopy(reference), None
    examples = random_examples(seed=47, pairs="some")
    examples = [replace(e, weight=weight) for e, weight in zip(examples, (1.0, 0.25, 0.5, 2.0, 1.0), strict=True)]
    examples = examples if reflection == "triplet" else without_positives(examples)
    settings = PackSettings(0.1, "last", 192, likelihood=reflection != "triplet")
    ours = our_loss(model, attention, examples, settings, separate=separate, passes=2, reflection=reflection)
    assert_same(model, ours, reference, naive_loss(reference, examples, reflection=reflection, floor=FLOOR))


@pytest.mark.parametrize("reflection", ["triplet", "orpo", "redi"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("representation", ["last", "mean"])
def test_of_a_mistake_only_what_follows_the_branch_counts(reflection, separate, representation):
    model, attention, reference = twins("llama")
    if separate:
        model, attention = copy.deepcopy(reference), None
    whole = [
        TokenExample("a", (3, 4, 5), (6, 7, 8, 9), (10, 11), (6, 7, 12), shared=2),
        TokenExample("b", (3, 4, 9, 9), (6, 7), (10,), (8, 9), shared=0),
        TokenExample("c", (3, 4, 7), (6, 7, 5), (13, 11, 1), (6, 7), shared=1),
    ]
    examples = whole if reflection == "triplet" else without_positives(whole)
    settings = PackSettings(0.1, representation, 192, likelihood=reflection != "triplet")
    ours = our_loss(model, attention, examples, settings, separate=separate, reflection=reflection)
    found = {"reflection": reflection, "floor": FLOOR, "representation": representation}
    assert_same(model, ours, reference, naive_loss(reference, examples, **found))
    if reflection != "triplet" or representation == "mean":
        unbranched = naive_loss(reference, [replace(e, shared=0) for e in examples], **found)
        assert abs(unbranched.item() - ours.item()) > 1e-4, "or the branch changes nothing"
