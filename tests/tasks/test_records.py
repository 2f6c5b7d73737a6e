"""Records cross Arrow unchanged: a word of a known list comes back as that list's member."""

import pytest

from tailor_ray.records import (
    ATTEMPT_SCHEMA,
    LESSON_SCHEMA,
    QUESTION_SCHEMA,
    TRAIN_EXAMPLE_SCHEMA,
    Attempt,
    Lesson,
    LessonKind,
    Question,
    TrainExample,
    Verdict,
    from_table,
    to_table,
)

ATTEMPT = Attempt("q", 1, "It is 4.\nAnswer: 4", "stop", "4", Verdict.WRONG, 7, 40, 20, None)
LESSON = Lesson("q", LessonKind.FEEDBACK, 2, "1 + 1 = 2.", "2", "You slipped.", "so 3", 1, "m", "00", 10, 20, 0.5)
RECORDS = [
    (Question("q", "How many?", "2", None, "1 + 1 = 2."), QUESTION_SCHEMA),
    (ATTEMPT, ATTEMPT_SCHEMA),
    (LESSON, LESSON_SCHEMA),
    (TrainExample("q", "How many?", "1 + 1 = 2.", None, "so 3"), TRAIN_EXAMPLE_SCHEMA),
]


@pytest.mark.parametrize(("record", "schema"), RECORDS, ids=lambda value: type(value).__name__)
def test_a_record_comes_back_from_arrow_as_it_was(record, schema):
    (back,) = from_table(to_table([record], schema), type(record))
    assert back == record
    assert [type(value) for value in back.to_row().values()] == [type(value) for value in record.to_row().values()]


def test_a_schema_has_the_records_fields_with_their_width_and_whether_they_may_be_missing():
    columns = {field.name: (str(field.type), field.nullable) for field in LESSON_SCHEMA}
    assert list(columns) == list(LESSON.to_row())
    assert (columns["kind"], columns["feedback"]) == (("string", False), ("string", True))
    assert (columns["round"], columns["mistake_sample"]) == (("int32", False), ("int32", True))
    assert (columns["input_tokens"], columns["cost_usd"]) == (("int64", False), ("double", False))


def test_words_of_a_list_are_its_members():
    (attempt,) = from_table(to_table([ATTEMPT], ATTEMPT_SCHEMA), Attempt)
    (lesson,) = from_table(to_table([LESSON], LESSON_SCHEMA), Lesson)
    assert attempt.verdict is Verdict.WRONG
    assert lesson.kind is LessonKind.FEEDBACK


def test_an_unknown_word_and_a_missing_column_are_refused():
    row = ATTEMPT.to_row()
    with pytest.raises(ValueError, match="'perhaps' is not a valid Verdict"):
        Attempt.from_row({**row, "verdict": "perhaps"})
    with pytest.raises(KeyError, match="seed"):
        Attempt.from_row({name: value for name, value in row.items() if name != "seed"})
    assert Attempt.from_row({**row, "further": 1}) == ATTEMPT
