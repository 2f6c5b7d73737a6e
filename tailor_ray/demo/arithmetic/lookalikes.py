"""Word problems that read like another family's and are solved in another way, or hold a number that nobody needs.

A student that goes by the first words of a problem gets them wrong. What decides is a single word, or the question at
the end. They are data like `families.py`.
"""

from __future__ import annotations

from tailor_ray.demo.arithmetic.language import Family, Way

LOOKALIKES: tuple[Family, ...] = (
    Family(  # fewer_together, with more
        name="more_together",
        numbers={"a": (5, 20), "b": (2, 9)},
        steps=("x = a + b", "y = a + x"),
        questions=(
            "{name} has {a} {item}. {friend} has {b} more {item}. How many {item} do they have together?",
            "{name} scores {a} points and {friend} scores {b} points more. How many points do both score together?",
            "A box holds {a} {item} and a bag holds {b} {item} more than the box. How many {item} do both hold?",
        ),
        rationales=(
            "The other has {a} + {b} = {x}. Together that is {a} + {x} = {y}.",
            "Find the larger part: {a} + {b} = {x}. Add both parts: {a} + {x} = {y}.",
            "{b} more than {a} is {a} + {b} = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a + a", "y = x + b"),
                (
                    "Twice {a} is {a} + {a} = {x}. One part is {b} more, so it is {x} + {b} = {y}.",
                    "If both had {a} it would be {a} + {a} = {x}. It is {b} more: {x} + {b} = {y}.",
                ),
            ),
        ),
    ),
    Family(  # asks for one part of fewer_together
        name="fewer_alone",
        numbers={"a": (8, 20), "b": (2, 6)},
        steps=("x = a - b",),
        questions=(
            "{name} has {a} {item}. {friend} has {b} fewer {item}. How many {item} does {friend} have?",
            "{name} scores {a} points and {friend} scores {b} points less. How many points does {friend} score?",
            "A box holds {a} {item} and a bag holds {b} {item} less than the box. How many {item} does the bag hold?",
        ),
        rationales=(
            "{b} fewer than {a} is {a} - {b} = {x}.",
            "Only the smaller part is asked for: {a} - {b} = {x}.",
            "The other has {b} less, so {a} - {b} = {x}.",
        ),
        others=(
            Way(
                ("x = a - b",),
                (
                    "The second is {b} below {a}: {a} - {b} = {x}.",
                    "Take {b} from {a} to find the other: {a} - {b} = {x}.",
                ),
            ),
        ),
    ),
    Family(  # "more" that is to be taken away
        name="more_than_other",
        numbers={"a": (8, 20), "b": (2, 6)},
        steps=("x = a - b", "y = a + x"),
        questions=(
            "{name} has {a} {item}. That is {b} more than {friend} has. How many {item} do they have together?",
            "{name} scores {a} points, {b} points more than {friend}. How many points do both score together?",
            "A box holds {a} {item}. It holds {b} {item} more than a bag. How many {item} do both hold?",
        ),
        rationales=(
            "The other has {b} less: {a} - {b} = {x}. Together that is {a} + {x} = {y}.",
            "Find the smaller part: {a} - {b} = {x}. Add both parts: {a} + {x} = {y}.",
            "{a} is {b} more than the other, which is {a} - {b} = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a + a", "y = x - b"),
                (
                    "Twice {a} is {a} + {a} = {x}. The other is {b} less, so it is {x} - {b} = {y}.",
                    "If both had {a} it would be {a} + {a} = {x}. The other lacks {b}: {x} - {b} = {y}.",
                ),
            ),
        ),
    ),
    Family(  # rows, the other way round
        name="each_row",
        numbers={"a": (6, 60), "b": (2, 9)},
        steps=("x = a / b",),
        questions=(
            "{name} puts {a} {item} in {b} rows of the same length. How many {item} are there in each row?",
            "There are {b} boxes on a shelf. The shelf holds {a} {item}. How many {item} does each box hold?",
            "{name} plants {a} flowers in {b} rows. How many flowers does {name} plant in each row?",
        ),
        rationales=(
            "{a} in {b} equal groups is {a} / {b} = {x} in each.",
            "Divide all by the groups: {a} / {b} = {x}.",
            "Each of the {b} groups has its share, {a} / {b} = {x}.",
        ),
        others=(
            Way(
                ("x = a / b",),
                (
                    "One of {b} equal parts of {a} is {a} / {b} = {x}.",
                    "Deal {a} out to {b}: {a} / {b} = {x}.",
                ),
            ),
        ),
    ),
    Family(  # take_away, with things that stay out of it
        name="spare_things",
        numbers={"a": (11, 30), "b": (2, 9), "c": (2, 20)},
        steps=("x = a - b",),
        questions=(
            "{name} has {a} {item} and {c} {other}. {He} gives {b} {item} to {friend}. "
            "How many {item} does {name} have left?",
            "There are {a} {item} and {c} {other} in a basket. {name} takes {b} {item}. "
            "How many {item} stay in the basket?",
            "{name}, who is {c} years old, had {a} {item} but lost {b} of them. How many {item} are left?",
        ),
        rationales=(
            "Only the {item} count. Of {a} {item} {b} are gone, so {a} - {b} = {x} are left.",
            "The {c} is not needed. Take {b} away from {a}: {a} - {b} = {x}.",
            "{a} {item} without {b} of them are {a} - {b} = {x}. The {c} does not matter.",
        ),
        others=(
            Way(
                ("x = a - b",),
                (
                    "Leave the {c} out of it: {a} - {b} = {x} {item} stay.",
                    "It asks for the {item} alone, and of those there are {a} - {b} = {x}.",
                ),
            ),
        ),
    ),
    Family(  # spare_things, where all of them count
        name="all_things",
        numbers={"a": (11, 30), "b": (2, 9), "c": (2, 20)},
        steps=("x = a + c", "y = x - b"),
        questions=(
            "{name} has {a} {item} and {c} {other}. {He} gives {b} {item} to {friend}. "
            "How many things does {name} have left?",
            "There are {a} {item} and {c} {other} in a basket. {name} takes {b} {item}. "
            "How many things stay in the basket?",
        ),
        rationales=(
            "At first there are {a} + {c} = {x} things. {b} are gone, so {x} - {b} = {y} are left.",
            "Add all things: {a} + {c} = {x}. Take {b} away: {x} - {b} = {y}.",
            "All things count, {a} + {c} = {x}. Without {b} of them it is {x} - {b} = {y}.",
        ),
        others=(
            Way(
                ("x = a - b", "y = x + c"),
                (
                    "Of the {item} there stay {a} - {b} = {x}. With the {other} it is {x} + {c} = {y}.",
                    "Without {b} there are {a} - {b} = {x} {item}. Put {c} {other} to them: {x} + {c} = {y}.",
                ),
            ),
        ),
    ),
)
