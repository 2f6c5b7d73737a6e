"""How well a rationale fits a student: against what transformers itself says of each text alone."""

import pytest
import torch

from tailor_ray.training.forward import UNFIT, fit_scores
from tests.training.students import make_model, make_tokenizer

ROWS = [("two apples and", " so two"), ("two apples", " all nine more in two"), ("Question: 3", "")]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_are_those_of_each_text_by_itself(tmp_path, kind):
    tokenizer = make_tokenizer(tmp_path)
    model = make_model(kind, vocab_size=len(tokenizer)).eval()
    found = {by: fit_scores(model, tokenizer, ROWS, 64, True, by) for by in ("nll", "rank")}
    for place, (prompt, side) in enumerate(ROWS):
        start = tokenizer(prompt)["input_ids"]
        ids = [*tokenizer(prompt + side)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        nll, ranks = [], []
        for i in range(len(start), len(ids)):
            nll.append(-torch.log_softmax(logits[i - 1], -1)[ids[i]].item())
            ranks.append(1 + sum(one > logits[i - 1][ids[i]] for one in logits[i - 1]).item())
        assert found["nll"][place] == pytest.approx(sum(nll) / len(nll), abs=1e-5)
        assert found["rank"][place] == pytest.approx(sum(ranks) / len(ranks))


def test_what_the_student_would_write_fits_best(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    model = make_model("llama", vocab_size=len(tokenizer)).eval()
    start = tokenizer("two apples")["input_ids"]
    own = model.generate(torch.tensor([start]), max_new_tokens=6, do_sample=False)[0, len(start) :]
    rows = [("two apples", tokenizer.decode(own)), ("two apples", " so nine more in all left")]
    for by in ("nll", "rank"):
        greedy, other = fit_scores(model, tokenizer, rows, 64, True, by)
        assert greedy < other


def test_a_prompt_without_room_fits_nobody(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    model = make_model("llama", vocab_size=len(tokenizer)).eval()
    scores = fit_scores(model, tokenizer, [*ROWS[:1], ("two apples and more in all", " so")], 8, True, "nll")
    assert scores[0] < UNFIT
    assert scores[1] == UNFIT
