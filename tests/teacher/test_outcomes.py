"""The error table and the checks of a reply: what counts as answered, what is retried, what ends the run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailor_ray.teacher.outcomes import (
    TABLE,
    Category,
    Usage,
    check_completion,
    check_reply,
    check_status,
    read_usage,
)


def completion(finish="stop", content="fine", **message):
    return {
        "choices": [{"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }


def test_a_good_reply_is_answered():
    checked = check_reply(json.dumps(completion()).encode())
    assert (checked.code, checked.text, checked.usage) == ("answered", "fine", Usage(10, 0, 5, 0))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({}, "no_choices"),
        ({"choices": None}, "no_choices"),
        ({"choices": []}, "no_choices"),
        ({"choices": [None]}, "no_choices"),
        ({"error": {"message": "overloaded"}}, "http_5xx"),
        ({"error": {"message": "what now?"}}, "error_reply"),
        ([], "not_an_object"),
        ("text", "not_an_object"),
        (None, "not_an_object"),
        (completion(finish="error"), "broken_off"),
        (completion(content=None), "no_content"),
        (completion(content="  "), "no_content"),
        (completion(content=[{"type": "thinking", "thinking": "hm"}]), "no_content"),
        (completion(finish="length"), "length"),
        (completion(finish="content_filter"), "content_filter"),
        (completion(finish="tool_calls"), "unexpected_finish"),
        (completion(refusal="I cannot", content=None), "refusal"),
        ({"choices": [{"finish_reason": "stop"}]}, "no_content"),
        ({"choices": [{"finish_reason": "stop", "message": "text"}]}, "no_content"),
    ],
)
def test_replies_that_are_none(value, code):
    checked = check_completion(value)
    assert checked.code == code
    assert checked.rule.category is not Category.ANSWERED


@pytest.mark.parametrize("body", [b"<html></html>", b"", b'{"choices": [', b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_json(body):
    assert check_reply(body).code == "malformed_json"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "finish_reason", "usage", "prompt_tokens"]), c
            )
        ),
    )
)
def test_no_json_at_all_breaks_the_check(value):
    checked = check_completion(value)
    assert checked.code in TABLE


@pytest.mark.parametrize(
    ("status", "category"),
    [
        (408, Category.RETRYABLE),
        (409, Category.RETRYABLE),
        (424, Category.RETRYABLE),
        (425, Category.RETRYABLE),
        (498, Category.RETRYABLE),
        (499, Category.RETRYABLE),
        (429, Category.RETRYABLE),
        (500, Category.RETRYABLE),
        (502, Category.RETRYABLE),
        (503, Category.RETRYABLE),
        (529, Category.RETRYABLE),
        (400, Category.BAD_REQUEST),
        (413, Category.BAD_REQUEST),
        (422, Category.BAD_REQUEST),
        (418, Category.BAD_REQUEST),
        (401, Category.ACCESS),
        (403, Category.ACCESS),
        (404, Category.ACCESS),
        (402, Category.QUOTA),
    ],
)
def test_statuses(status, category):
    assert check_status(status, b'{"error": {"message": "no"}}').rule.category is category


def test_quota_and_filter_are_told_from_their_status():
    quota = json.dumps({"error": {"code": "insufficient_quota", "message": "pay"}}).encode()
    assert check_status(429, quota).rule.category is Category.QUOTA
    filtered = json.dumps({"error": {"code": "content_filter", "message": "no"}}).encode()
    assert check_status(400, filtered).code == "content_filter"


def test_an_error_body_of_any_kind_is_read():
    for body in (b"", b"null", b"[1]", b'"x"', b'{"error": "text"}', b"<html>", b"\xff"):
        assert check_status(500, body).code == "http_5xx"


def test_usage():
    assert read_usage(
        {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 5},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    ) == Usage(7, 5, 3, 2)
    assert (
        read_usage({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}).cached
        == 7
    )
    for wrong in (
        None,
        3,
        {},
        {"prompt_tokens": "7", "completion_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
    ):
        assert read_usage(wrong) is None


def test_lone_surrogates_are_replaced():
    checked = check_reply(rb'{"choices":[{"finish_reason":"stop","message":{"content":"a\ud800b"}}]}')
    checked.text.encode()
    assert checked.text == "a?b"


def test_what_was_sent_and_not_answered_may_have_been_billed():
    assert all(TABLE[code].may_be_billed for code in ("timeout", "lost_connection"))
    assert not any(TABLE[code].may_be_billed for code in ("refused_connection", "http_429"))
