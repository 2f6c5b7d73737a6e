"""Forecasts from data and from a ledger, prices, and what is shared of a ledger."""

from dataclasses import replace

import pytest

from tailor_ray.config.teacher import EndpointConfig, PriceConfig
from tailor_ray.errors import ConfigError, DataError
from tailor_ray.ops.ledger import export_rows, import_rows, totals
from tailor_ray.prompts.teacher import TeacherPrompt
from tailor_ray.records import AnswerKind
from tailor_ray.storage import Store
from tailor_ray.teacher.budget import PRICES, check_prices, cost_usd, price_of
from tailor_ray.teacher.client import make_request
from tailor_ray.teacher.ledger import Ledger
from tailor_ray.teacher.ledger_rows import LedgerFiles
from tailor_ray.teacher.outcomes import Usage
from tailor_ray.teacher.preflight import FEEDBACK_SHARE, Amount, Basis, forecast
from tests.teacher.helpers import QUESTION, config, row

BASIS = Basis(questions=1000, sample=(QUESTION,), kind=AnswerKind.NUMBER, rounds=3, attempts=4)
PRICE = PriceConfig(input=1.0, output=10.0, cached_input=0.5)


def test_from_data_alone_the_assumptions_are_said():
    seen = forecast(config(price=PRICE), BASIS)
    assert [amount.requests for amount in seen.rounds] == [1000, 2000, 2000]
    assert seen.rounds[1].input_tokens > 2 * seen.rounds[0].input_tokens > 0
    total = seen.total
    assert total.cost_usd == pytest.approx((total.input_tokens + 10 * total.output_tokens) / 1e6, rel=0.01)
    assert any("50%" in said for said in seen.assumptions)
    assert any("estimated" in said for said in seen.assumptions)
    assert seen.to_json()["total"]["requests"] == 5000


def test_requests_are_measured_as_they_will_be_asked():
    """With the prompts and the way of correcting that the settings name."""
    long = "Explain at length. " * 200
    prompts = {"rationale": f"{long}{{question}}{{form}}"}
    plain, own = forecast(config(), BASIS), forecast(config(prompts=prompts), BASIS)
    assert own.rounds[0].input_tokens > plain.rounds[0].input_tokens + 1000 * len(long) / 5
    assert own.rounds[1] == plain.rounds[1]
    assert forecast(config(correction="continue"), BASIS).rounds[1].input_tokens != plain.rounds[1].input_tokens


def test_a_ledger_takes_the_place_of_guesses():
    again = '{"messages":[{"content":"no","role":"assistant"}]}'
    seen = {"model": "mock-teacher", "cached_tokens": 100}
    rows = [
        row(1, **seen, input_tokens=200, output_tokens=80, seconds=2.0),
        row(2, **seen, input_tokens=400, output_tokens=40, seconds=4.0),
        row(3, **seen, input_tokens=600, output_tokens=60, seconds=3.0, request=again),  # half of them were asked again
        row(4, model="mock-teacher", round=2, input_tokens=900, output_tokens=90, seconds=2.0),
        row(5, model="mock-teacher", outcome="timeout"),
    ]
    forecasted = forecast(config(price=PRICE, max_in_flight=10), replace(BASIS, mistakes=1.0), rows)
    first, later = forecasted.rounds[:2]
    assert (first.requests, first.input_tokens, first.output_tokens) == (1500, 600_000, 90_000)
    assert first.cost_usd == pytest.approx(1500 * (300 * 1.0 + 100 * 0.5 + 60 * 10) / 1e6)
    assert first.seconds == pytest.approx(1500 / (10 / 3.0))
    assert (later.requests, later.input_tokens) == (1000, 900_000)
    assert not any("estimated" in said for said in forecasted.assumptions)


def test_feedback_is_estimated_from_the_rationales_of_the_same_teacher():
    asked = make_request(
        config().teachers[0], TeacherPrompt(AnswerKind.NUMBER).rationale(QUESTION), None,
        sample=0, question_id="q1", round_=1, priority=(0.0, 0, ""),
    ).body  # fmt: skip
    dense = row(1, model="mock-teacher", request=asked, input_tokens=len(asked) // 2, output_tokens=60, seconds=1.0)
    guessed, learned = (forecast(config(price=PRICE), replace(BASIS, mistakes=2.0), rows) for rows in ((), (dense,)))
    assert learned.rounds[1].input_tokens == pytest.approx(2 * guessed.rounds[1].input_tokens, rel=0.01)  # 2, not 4
    assert learned.rounds[1].output_tokens == 2000 * 60 * FEEDBACK_SHARE
    assert any("from its rationales" in said for said in learned.assumptions)
    longer = forecast(config(), replace(BASIS, mistakes=2.0, mistake_characters=3000.0), (dense,))
    assert longer.rounds[1].input_tokens > 2 * learned.rounds[1].input_tokens


def test_a_cascade_asks_the_next_for_the_share_that_went_on():
    rows = [row(n, model="cheap", input_tokens=100, output_tokens=10) for n in range(10)]
    rows += [row(n + 10, model="dear", input_tokens=100, output_tokens=10) for n in range(3)]
    settings = config(model="cheap", also=({"model": "dear"},))
    assert forecast(settings, BASIS, rows).rounds[0].requests == 1300
    scored = config(model="cheap", also=({"model": "dear"},), arrangement="committee", peer_scores=True)
    assert forecast(scored, BASIS, rows).rounds[0].requests == 4000  # each writes, and scores the other's


def test_rounds_that_are_done_count_as_what_they_took():
    took = Amount(7, 70, 7, 0.5, 3.0)
    seen = forecast(config(price=PRICE), replace(BASIS, done={1: took}))
    assert seen.rounds[0] == took
    assert seen.total.cost_usd == pytest.approx(0.5 + sum(amount.cost_usd for amount in seen.rounds[1:]))
    assert any("round 1 counts as what it took" in said for said in seen.assumptions)


def test_limits_committees_and_batches():
    limited = forecast(config(requests_per_minute=60), BASIS)
    assert limited.rounds[0].seconds == pytest.approx(1000)
    by_tokens = forecast(config(tokens_per_minute=600), BASIS).rounds[0]
    assert by_tokens.seconds == pytest.approx((by_tokens.input_tokens + by_tokens.output_tokens) / 10, rel=0.01)
    two = forecast(config(price=PRICE, also=({"model": "b"},), arrangement="committee"), BASIS)
    assert two.rounds[0].requests == 2000
    assert any("b: its price is not known" in said for said in two.assumptions)
    online, batch = forecast(config(price=PRICE), BASIS), forecast(config(price=PRICE, mode="batch"), BASIS)
    assert batch.total.cost_usd == pytest.approx(online.total.cost_usd / 2)


def test_prices():
    assert cost_usd(PRICE, Usage(1000, 400, 100)) == pytest.approx((600 * 1 + 400 * 0.5 + 100 * 10) / 1e6)
    assert cost_usd(PRICE, Usage(1000, 0, 0), batch=True) == pytest.approx(500 / 1e6)
    assert cost_usd(PriceConfig(input=2, output=1), Usage(10, 10, 0)) == pytest.approx(20 / 1e6)
    assert cost_usd(None, Usage(1000, 0, 1000)) == 0.0
    assert price_of(EndpointConfig(model="gpt-4o-mini")) == PRICES["gpt-4o-mini"]
    assert price_of(EndpointConfig(model="gpt-4o-mini", price=PRICE)) == PRICE


def test_a_dollar_budget_needs_a_price():
    check_prices(config(model="nobody"))
    for setting in ("budget_usd", "round_budget_usd"):
        with pytest.raises(ConfigError, match=r"'nobody'.*teacher\.price\.input"):
            check_prices(config(model="nobody", **{setting: 1.0}))
        check_prices(config(model="nobody", price=PRICE, **{setting: 1.0}))


def test_a_ledger_is_totalled_exported_and_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    ours, theirs = Store.open(str(tmp_path / "ours")), Store.open(str(tmp_path / "theirs"))
    ledger = Ledger(ours)
    ledger.stage([row(1, cost_usd=0.5, input_tokens=3), row(2, cost_usd=0.25), row(3, outcome="timeout", lost_usd=1.0)])
    ledger.commit()
    ledger.close()
    first, second = totals(LedgerFiles(ours).read())
    assert (first["outcome"], first["requests"], first["cost_usd"], first["input_tokens"]) == ("answered", 2, 0.75, 3)
    assert (second["outcome"], second["lost_usd"]) == ("timeout", 1.0)
    file = tmp_path / "shared" / "rows.parquet"
    assert export_rows(ours, file) == 3
    assert import_rows(theirs, file) == 2  # what timed out is no reply
    assert import_rows(theirs, file) == 0
    assert [one.key for one in LedgerFiles(theirs).read()] == [row(1).key, row(2).key]
    (tmp_path / "no.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        import_rows(theirs, tmp_path / "no.parquet")
