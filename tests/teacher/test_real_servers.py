"""Servers as users meet them, over real sockets: errors inside a 200, odd usage, ignored caps, single refusals."""

import resource
import subprocess
import sys
import textwrap

import pytest

from tailor_ray.errors import Stopped, TeacherAccessError
from tests.teacher.servers import GOOD, ask, completion, error, serving

PRICE = {"input": 1.0, "output": 10.0}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))


def once(first, then=None):
    """The first call of each request is answered by `first`, later ones well."""
    seen = set()

    def answer(_, body, __):
        key = str(body["messages"])
        if key in seen:
            return then or (200, completion())
        seen.add(key)
        return first

    return answer


@pytest.mark.parametrize(
    "inside",
    [
        error("AdaptiveRate limit reached", 429),
        error("AdaptiveRate limit reached", "429"),
        error("slow down", "rate_limit_exceeded"),
        {"error": {"message": "Provider returned error", "code": 502}},
        {"error": "The server is overloaded"},
        {"code": 503, "message": "upstream unavailable"},
        {"object": "error", "message": "internal error", "type": "InternalServerError", "code": 500},
        {"errors": [{"code": 500, "message": "oops"}], "success": False},
        {"detail": "Too many requests, try again in 0.1 s"},
        [{"error": {"code": 503, "message": "The model is overloaded", "status": "UNAVAILABLE"}}],
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        {"error_code": 18, "error_msg": "Open api qps request limit reached"},
        {"code": 1302, "msg": "rate limit exceeded", "success": False},
        completion(text="", finish="error", usage=None) | {"error": {"code": 502, "message": "gone"}},
        {
            "choices": [
                {"error": {"code": 429, "message": "busy"}, "finish_reason": "error", "message": {"content": ""}}
            ]
        },
    ],
)
def test_an_error_inside_a_200_costs_nothing_and_is_asked_again(tmp_path, inside):
    with serving(once((200, inside))) as (url, bodies, _):
        asked = ask(tmp_path, url, 3, price=PRICE, budget_usd=1.0)
    assert asked.outcomes == ["answered"] * 3
    assert len(bodies) == 6
    assert asked.spent.tokens == 3 * 70
    assert asked.spent.usd == pytest.approx(3 * (50 + 200) / 1e6)


def test_a_429_inside_a_200_slows_the_sender_down(tmp_path):
    with serving(lambda n, *_: (200, error("busy", 429) if 4 <= n < 12 else completion())) as (url, bodies, _):
        asked = ask(tmp_path, url, 40, max_in_flight=4)
    assert asked.outcomes == ["answered"] * 40
    assert len(bodies) <= 52


@pytest.mark.parametrize(
    "finish", ["network_error", "insufficient_system_resource", "abort", "engine_error", "cancelled"]
)
def test_a_reply_that_the_server_broke_off_is_asked_again(tmp_path, finish):
    with serving(once((200, completion("Half of", finish, usage=(50, 2))))) as (url, _, __):
        asked = ask(tmp_path, url, 2)
    assert asked.outcomes == ["answered"] * 2
    assert asked.spent.tokens == 2 * (52 + 70)  # what it says that it used


@pytest.mark.parametrize("finish", ["stop", "eos", "end_turn", "stop_sequence", "STOP", "complete", None, ""])
def test_other_words_for_stop_are_answers(tmp_path, finish):
    with serving(lambda *_: (200, completion(finish=finish))) as (url, bodies, _):
        asked = ask(tmp_path, url, 2)
    assert asked.outcomes == ["answered"] * 2
    assert len(bodies) == 2


@pytest.mark.parametrize("finish", ["max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"])
def test_other_words_for_length_are_cuts(tmp_path, finish):
    with serving(lambda *_: (200, completion("<rationale>cut", finish))) as (url, _, __):
        assert ask(tmp_path, url, 1).outcomes == ["length"]


@pytest.mark.parametrize("finish", ["safety", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "sensitive", "refusal"])
def test_other_words_for_a_filter_are_refusals(tmp_path, finish):
    with serving(lambda *_: (200, completion("", finish))) as (url, bodies, _):
        assert ask(tmp_path, url, 1).outcomes == ["content_filter"]
        assert ask(tmp_path, url, 1).outcomes == ["content_filter"]
    assert len(bodies) == 1


@pytest.mark.parametrize(
    "message",
    [
        {"text": [{"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}]},
        {"text": [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": GOOD}]},
        {"text": None, "reasoning_content": f"I think.</think>{GOOD}"},
        {"text": "", "reasoning": GOOD},
    ],
)
def test_text_in_parts_or_among_the_reasoning_is_found(tmp_path, message):
    with serving(lambda *_: (200, completion(**message))) as (url, bodies, _):
        asked = ask(tmp_path, url, 1)
    assert asked.outcomes == ["answered"]
    assert GOOD in asked.settled[0].row.reply
    assert len(bodies) == 1


def test_an_empty_reply_that_was_billed_is_asked_for_twice_and_not_eight_times(tmp_path):
    empty = completion(None, usage=(50, 400), reasoning_content="I only think.")
    with serving(lambda *_: (200, empty)) as (url, bodies, _):
        asked = ask(tmp_path, url, 3)
    assert asked.outcomes == ["no_content"] * 3
    assert len(bodies) == 6
    assert not any(row.is_final for row in asked.rows)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 50, "completion_tokens": 0},
        {"prompt_tokens": "50", "completion_tokens": "300"},
        {"prompt_tokens": 50.5, "completion_tokens": 300.1},
        {"prompt_tokens": -1, "completion_tokens": 300},
        {"prompt_tokens": True, "completion_tokens": 300},
        {"prompt_tokens": 50, "completion_tokens": 1e30},
        {"input_tokens": 50},
        {},
        [],
    ],
)
def test_an_answer_without_usage_costs_its_worst_and_that_is_said_once(tmp_path, usage, caplog):
    with serving(lambda *_: (200, completion(usage=usage))) as (url, bodies, _):
        asked = ask(tmp_path, url, 60, price=PRICE, budget_usd=0.1)
    worst = asked.settled[0].request
    each = (worst.prompt_tokens + 10 * worst.max_tokens) / 1e6
    assert isinstance(asked.error, Stopped)
    assert len(bodies) * each <= 0.1
    assert asked.spent.usd == pytest.approx(len(bodies) * each, rel=0.01)
    assert caplog.text.count("do not say what they used") == 1


@pytest.mark.parametrize(
    ("usage", "output"),
    [
        ({"prompt_tokens": 50.0, "completion_tokens": 30.0}, 30),
        ({"prompt_tokens": 50, "completion_tokens": 30, "total_tokens": 480}, 430),
        ({"prompt_tokens": 50, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 400}}, 430),
        ({"prompt_tokens": 50, "completion_tokens": 430, "completion_tokens_details": {"reasoning_tokens": 400}}, 430),
    ],
)
def test_reasoning_counts_wherever_it_stands(tmp_path, usage, output):
    with serving(lambda *_: (200, completion(usage=usage))) as (url, _, __):
        asked = ask(tmp_path, url, 1, price=PRICE)
    assert asked.rows[0].output_tokens == output
    assert asked.spent.usd == pytest.approx((50 + 10 * output) / 1e6)


def test_an_error_object_that_says_nothing_is_none(tmp_path):
    with serving(lambda *_: (200, completion() | {"error": {"message": "", "code": None}})) as (url, _, __):
        assert ask(tmp_path, url, 2).outcomes == ["answered"] * 2


@pytest.mark.parametrize("cost", [0.003, {"input_tokens_cost": 0.001, "request_cost": 0.002, "total_cost": 0.003}])
def test_what_a_reply_says_it_cost_goes_before_the_price(tmp_path, cost):
    usage = {"prompt_tokens": 50, "completion_tokens": 20, "cost": cost}
    with serving(lambda *_: (200, completion(usage=usage))) as (url, _, __):
        asked = ask(tmp_path, url, 50, price=PRICE, budget_usd=0.05)
    assert isinstance(asked.error, Stopped)
    assert 0.03 <= asked.spent.usd <= 0.053


def test_a_server_that_ignores_the_cap_is_believed_from_its_first_reply_on(tmp_path, caplog):
    """Each reply is ten times its cap: the budget is exceeded by no more than one of them."""
    with serving(lambda *_: (200, completion("word " * 5000, usage=(50, 5120)))) as (url, bodies, _):
        asked = ask(tmp_path, url, 100, price=PRICE, budget_usd=0.2)
    each = (50 + 51200) / 1e6
    assert len(bodies) * each <= 0.2 + each
    assert asked.spent.usd == pytest.approx(len(bodies) * each)
    assert "wrote 5120 tokens where at most 512 were asked for" in caplog.text
    bodies.clear()


REFUSED = [
    (400, error("Your credit balance is too low to access the API.", type="invalid_request_error")),
    (400, error("Budget has been exceeded! Current cost: 10.1, Max budget: 10.0", type="budget_exceeded")),
    (402, error("Insufficient Balance")),
    (403, error("Your team has used all available credits or reached its monthly spending limit.")),
    (429, error("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota")),
    (429, error("The account is not active: billing hard limit has been reached")),
    (401, error("Incorrect API key provided", "invalid_api_key")),
    (400, error("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT")),
    (200, error("Insufficient credits", 402)),
]


@pytest.mark.parametrize(("status", "value"), REFUSED)
def test_quota_and_keys_that_end_are_read_from_what_is_said_and_lose_nothing(tmp_path, status, value):
    with serving(lambda n, *_: (200, completion()) if n < 20 else (status, value)) as (url, _, __):
        asked = ask(tmp_path, url, 60)
    assert isinstance(asked.error, Stopped)
    assert value["error"]["message"][:20] in str(asked.error)
    assert set(asked.outcomes) == {"answered"}
    with serving(lambda *_: (200, completion())) as (url, bodies, _):
        assert ask(tmp_path, url, 60).outcomes == ["answered"] * 60
    assert len(bodies) == 60 - len(asked.settled)


def test_a_quota_that_is_used_up_is_read_inside_a_200_too(tmp_path):
    used_up = {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}
    with serving(lambda *_: (200, used_up)) as (url, _, __):
        asked = ask(tmp_path, url, 3)
    assert "quota" in str(asked.error)
    assert asked.spent.tokens == 0


PASSING = [
    (400, error("This model's maximum context length is 2048 tokens", "context_length_exceeded")),
    (413, error("Request too large")),
    (422, {"detail": [{"msg": "field required"}]}),
    (418, b"I am a teapot"),
]


@pytest.mark.parametrize(("status", "value"), PASSING)
def test_a_refusal_that_may_pass_is_final_for_one_driver_only(tmp_path, status, value):
    with serving(lambda *_: (status, value)) as (url, bodies, _):
        assert len(ask(tmp_path, url, 2).settled) == 2
    assert len(bodies) == 2  # and not tried again by this driver
    with serving(lambda *_: (200, completion())) as (url, _, __):
        assert ask(tmp_path, url, 2).outcomes == ["answered"] * 2


@pytest.mark.parametrize(
    "value",
    [
        error("Your input was flagged", 403, metadata={"flagged_input": "…", "reasons": ["violence"]}),
        error("The response was filtered by Azure's content management policy", "content_filter"),
        error("Input data may contain inappropriate content.", "data_inspection_failed"),
    ],
)
@pytest.mark.parametrize("status", [400, 403])
def test_a_flagged_question_is_refused_for_good_and_ends_nothing(tmp_path, status, value):
    def flags(_, body, __):
        return (status, value) if "What is 0 plus" in str(body) else (200, completion())

    with serving(flags) as (url, bodies, _):
        asked = ask(tmp_path, url, 20)
        assert asked.outcomes == ["answered"] * 19 + ["content_filter"]
        assert ask(tmp_path, url, 20).outcomes == asked.outcomes
    assert len(bodies) == 20


def test_a_wrong_address_ends_the_run(tmp_path):
    with serving(lambda *_: (405, b"Method Not Allowed")) as (url, _, __):
        assert isinstance(ask(tmp_path, url, 5).error, TeacherAccessError)


def test_google_says_quota_where_it_means_a_minutes_limit(tmp_path):
    said = error("You exceeded your current quota, please check your plan.", 429, status="RESOURCE_EXHAUSTED",
                 details=[{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.2s"}])  # fmt: skip
    with serving(once((429, said))) as (url, _, __):
        assert ask(tmp_path, url, 3).outcomes == ["answered"] * 3


def test_a_limit_of_files_is_no_refused_connection_and_loses_nothing(tmp_path):
    """In a process of its own, whose limit stays below what its calls would take."""
    script = textwrap.dedent(f"""
        import asyncio, resource, sys
        sys.path.insert(0, {sys.path[0]!r})
        from pathlib import Path
        from tests.teacher.servers import ask
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        asked = ask(Path({str(tmp_path)!r}), sys.argv[1], 120, max_in_flight=100)
        print(set(asked.outcomes), len(asked.settled), asked.error)
    """)
    import asyncio

    async def slow(*_):
        await asyncio.sleep(0.3)
        return 200, completion()

    with serving(lambda *_: slow()) as (url, _, __):
        done = subprocess.run(
            [sys.executable, "-c", script, url], capture_output=True, text=True, timeout=100, check=False
        )
    assert done.stdout.strip() == "{'answered'} 120 None", done.stderr[-2000:]
    assert "ulimit -n" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 60
