"""Word problems that read like another family's and are solved in another way, or hold a number that nobody needs.

A student that goes by the first words of a problem gets them wrong. What decides is a single word, or the question at
the end. They are data like `families.py`.
"""

from __future__ import annotations

from tailor_ray.tasks.arithmetic.language import Family, Way

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
    Family(  # "fewer" that is to be added
        name="fewer_than_other",
        numbers={"a": (5, 20), "b": (2, 9)},
        steps=("x = a + b", "y = a + x"),
        questions=(
            "{name} has {a} {item}. That is {b} fewer than {friend} has. How many {item} do they have together?",
            "{name} scores {a} points, {b} points less than {friend}. How many points do both score together?",
            "A box holds {a} {item}. It holds {b} {item} less than a bag. How many {item} do both hold?",
        ),
        rationales=(
            "The other has {b} more: {a} + {b} = {x}. Together that is {a} + {x} = {y}.",
            "Find the larger part: {a} + {b} = {x}. Add both parts: {a} + {x} = {y}.",
            "{a} is {b} less than the other, which is {a} + {b} = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a + a", "y = x + b"),
                (
                    "Twice {a} is {a} + {a} = {x}. The other is {b} more, so it is {x} + {b} = {y}.",
                    "If both had {a} it would be {a} + {a} = {x}. The other has {b} besides: {x} + {b} = {y}.",
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
    Family(  # times_as_many, a part of it
        name="times_as_many_less",
        numbers={"a": (2, 9), "b": (3, 6)},
        steps=("x = a * b", "y = x - a"),
        questions=(
            "{name} picks {a} {item}. {friend} picks {b} times as many. How many more {item} does {friend} pick?",
            "{name} has a cat of {a} pounds and a dog that weighs {b} times as much. "
            "How many pounds more does the dog weigh?",
            "{name} walks {a} miles in May and {b} times as far in June. How many miles more is that in June?",
        ),
        rationales=(
            "{b} times {a} is {a} * {b} = {x}. That is {x} - {a} = {y} more.",
            "The larger part is {a} * {b} = {x}. Take the smaller away: {x} - {a} = {y}.",
            "Multiply first: {a} * {b} = {x}. The difference is {x} - {a} = {y}.",
        ),
        others=(
            Way(
                ("x = b - 1", "y = a * x"),
                (
                    "It is {b} - 1 = {x} parts more, of {a} each: {a} * {x} = {y}.",
                    "Of {b} parts one is even, so {b} - 1 = {x} are more. That makes {a} * {x} = {y}.",
                ),
            ),
        ),
    ),
    Family(  # half_as_many, doubled
        name="twice_as_many",
        numbers={"a": (4, 30)},
        steps=("x = a * 2", "y = a + x"),
        questions=(
            "{name} reads {a} pages on Monday and twice as many on Tuesday. How many pages does {he} read in all?",
            "{name} sells {a} {item} in May and twice as many in June. "
            "How many {item} does {name} sell in both months?",
            "{name} has {a} {item}, and {friend} has twice as many. How many {item} do they have together?",
        ),
        rationales=(
            "Twice {a} is {a} * 2 = {x}. Together that is {a} + {x} = {y}.",
            "Double first: {a} * 2 = {x}. Add both parts: {a} + {x} = {y}.",
            "The larger part is {a} * 2 = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a + a", "y = x + a"),
                (
                    "The larger part is {a} + {a} = {x}. With the other it is {x} + {a} = {y}.",
                    "Double {a} by {a} + {a} = {x}. Put {a} to it: {x} + {a} = {y}.",
                ),
            ),
        ),
    ),
    Family(  # change, of several things at one price
        name="change_of_many",
        numbers={"a": (2, 6), "b": (2, 5), "c": (14, 40)},
        steps=("x = a * b", "y = c - x"),
        questions=(
            "A book costs {a} dollars. {name} has {c} dollars and buys {b} books. "
            "How many dollars does {he} have left?",
            "{name} has {c} dollars. {He} spends {a} dollars on each of {b} games. "
            "How many dollars does {name} still have?",
            "Of {c} {item}, {name} and {his} friends eat {a} each. They are {b} in all. How many {item} are not eaten?",
        ),
        rationales=(
            "{b} times {a} are {a} * {b} = {x}. From {c} there stay {c} - {x} = {y}.",
            "Find what goes: {a} * {b} = {x}. Take it from {c}: {c} - {x} = {y}.",
            "In all {a} * {b} = {x} are gone, so {c} - {x} = {y} are left.",
        ),
        others=(
            Way(
                ("x = b * a", "y = c - x"),
                (
                    "Each takes {a}, and that {b} times: {b} * {a} = {x}. {c} - {x} = {y} are left.",
                    "What goes is {b} * {a} = {x}. Of {c} there are {c} - {x} = {y} left.",
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
    Family(  # wages, with fewer hours on the second day
        name="fewer_hours",
        numbers={"a": (2, 6), "b": (4, 9), "c": (2, 3)},
        steps=("x = b - c", "y = b + x", "z = a * y"),
        questions=(
            "{name} earns {a} dollars an hour. {He} works {b} hours on Monday and {c} hours less on Friday. "
            "How many dollars does {name} earn?",
            "One ticket costs {a} dollars. {name} buys {b} tickets and {friend} buys {c} fewer. "
            "How many dollars do they pay in all?",
        ),
        rationales=(
            "The second is {b} - {c} = {x}. In all there are {b} + {x} = {y}. Each counts {a}, so {a} * {y} = {z}.",
            "{c} less than {b} is {b} - {c} = {x}. Add both: {b} + {x} = {y}. Multiply by {a}: {a} * {y} = {z}.",
            "Find the smaller part: {b} - {c} = {x}. Both make {b} + {x} = {y}. That times {a} is {a} * {y} = {z}.",
        ),
        others=(
            Way(
                ("x = b + b", "y = x - c", "z = a * y"),
                (
                    "Twice {b} is {b} + {b} = {x}. It is {c} less: {x} - {c} = {y}. Each is {a}: {a} * {y} = {z}.",
                    "With {b} both times it is {b} + {b} = {x}. Less {c} is {x} - {c} = {y}, and {a} * {y} = {z}.",
                ),
            ),
        ),
    ),
    Family(  # gain_and_loss, where the second is lost too
        name="two_losses",
        numbers={"a": (20, 40), "b": (2, 9), "c": (2, 9)},
        steps=("x = a - b", "y = x - c"),
        questions=(
            "{name} has {a} {item}. {He} gives {friend} {b}, and then {he} loses {c}. "
            "How many {item} does {name} have now?",
            "A shop has {a} {item}. It sells {b} and then sells {c} more. How many {item} does the shop have now?",
            "A bus has {a} people on it. At the first stop {b} get off and at the next stop {c} more get off. "
            "How many people are on the bus now?",
        ),
        rationales=(
            "First there are {a} - {b} = {x}. Then {c} more go away, so {x} - {c} = {y} are left.",
            "Both times some go: {a} - {b} = {x} and {x} - {c} = {y}.",
            "Without the {b} it is {a} - {b} = {x}. Without the {c} it is {x} - {c} = {y}.",
        ),
        others=(
            Way(
                ("x = b + c", "y = a - x"),
                (
                    "In all {b} + {c} = {x} go. That leaves {a} - {x} = {y}.",
                    "Add what goes away: {b} + {c} = {x}. Take it from {a}: {a} - {x} = {y}.",
                ),
            ),
        ),
    ),
)
