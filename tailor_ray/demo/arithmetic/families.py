"""The word problems of the built-in task: families of one to three steps, as data.

Each question wording is used both to write and to read (see `language.py`). So no wording may be read by two families.
"""

from __future__ import annotations

from tailor_ray.demo.arithmetic.language import Family, Way
from tailor_ray.demo.arithmetic.lookalikes import LOOKALIKES

FAMILIES: tuple[Family, ...] = (
    Family(
        name="take_away",
        numbers={"a": (11, 30), "b": (2, 9)},
        steps=("x = a - b",),
        questions=(
            "{name} has {a} {item} and gives {b} of them to {friend}. How many {item} does {name} have left?",
            "There are {a} {item} in a basket. {name} takes {b} of them. How many {item} stay in the basket?",
            "{name} had {a} {item} but lost {b} of them. How many {item} are left?",
        ),
        rationales=(
            "{name} starts with {a} {item} and {b} are gone, so {a} - {b} = {x} {item} are left.",
            "Take {b} away from {a}: {a} - {b} = {x} {item} are left.",
            "Of the {a} {item}, {b} go away. That leaves {a} - {b} = {x}.",
        ),
        others=(
            Way(
                ("x = a - b",),
                (
                    "{b} of the {a} are gone: {a} - {b} = {x}.",
                    "What stays of {a} without {b} is {a} - {b} = {x}.",
                ),
            ),
        ),
    ),
    Family(
        name="rows",
        numbers={"a": (2, 9), "b": (2, 9)},
        steps=("x = a * b",),
        questions=(
            "{name} puts {item} in {a} rows with {b} {item} in each row. How many {item} are there in all?",
            "There are {a} boxes on a shelf. Each box holds {b} {item}. How many {item} does the shelf hold?",
            "{name} plants {a} rows of {b} flowers. How many flowers does {name} plant?",
        ),
        rationales=(
            "There are {a} groups of {b}, so {a} * {b} = {x} in all.",
            "Each of the {a} groups has {b}. That makes {a} * {b} = {x}.",
            "Multiply the groups by their size: {a} * {b} = {x}.",
        ),
        others=(
            Way(
                ("x = b * a",),
                (
                    "There are {b} in each, and that {a} times: {b} * {a} = {x}.",
                    "Count {b} for each of the {a}: {b} * {a} = {x}.",
                ),
            ),
        ),
    ),
    Family(
        name="gain_and_loss",
        numbers={"a": (5, 20), "b": (2, 9), "c": (2, 9)},
        steps=("x = a + b", "y = x - c"),
        questions=(
            "{name} has {a} {item}. {friend} gives {name} {b} more, and then {he} loses {c}. "
            "How many {item} does {name} have now?",
            "{name} finds {a} {item} on Monday and {b} {item} on Tuesday. On Sunday {he} sells {c} of them. "
            "How many {item} are left?",
            "A shop has {a} {item}. It gets {b} more and sells {c}. How many {item} does the shop have now?",
        ),
        rationales=(
            "First there are {a} + {b} = {x} {item}. Then {c} go away, so {x} - {c} = {y} are left.",
            "Add what comes: {a} + {b} = {x}. Take away what goes: {x} - {c} = {y}.",
            "With the new ones it is {a} + {b} = {x} {item}. Without the {c} it is {x} - {c} = {y}.",
        ),
        others=(
            Way(
                ("x = a - c", "y = x + b"),
                (
                    "Take the {c} away first: {a} - {c} = {x}. Then add the {b}: {x} + {b} = {y}.",
                    "Without {c} there are {a} - {c} = {x}. With {b} more it is {x} + {b} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="packs_and_more",
        numbers={"a": (2, 6), "b": (2, 9), "c": (2, 9)},
        steps=("x = a * b", "y = x + c"),
        questions=(
            "{name} buys {a} packs of {b} {item}. {He} already had {c} {item} at home. "
            "How many {item} does {name} have now?",
            "There are {a} bags with {b} {item} each, and {c} more {item} on the table. How many {item} are there?",
            "{name} has {a} full jars of {b} {item} and {c} {item} in {his} hand. How many {item} is that?",
        ),
        rationales=(
            "{a} packs of {b} make {a} * {b} = {x} {item}. With {c} more it is {x} + {c} = {y}.",
            "Multiply first: {a} * {b} = {x}. Then add the others: {x} + {c} = {y}.",
            "In the packs are {a} * {b} = {x} {item}. Together with {c} that is {x} + {c} = {y}.",
        ),
        others=(
            Way(
                ("x = a * b", "y = c + x"),
                (
                    "Begin with the {c}. The packs add {a} * {b} = {x}, so it is {c} + {x} = {y}.",
                    "All packs hold {a} * {b} = {x}. Put to the {c} they make {c} + {x} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="share",
        numbers={"a": (4, 20), "b": (2, 9), "c": (2, 5)},
        steps=("x = a + b", "y = x / c"),
        questions=(
            "{name} has {a} red and {b} blue {item}. {He} shares them equally among {c} friends. "
            "How many {item} does each friend get?",
            "{name} and {friend} put {a} and {b} {item} together and fill {c} bags equally. "
            "How many {item} are in each bag?",
            "{a} girls and {b} boys form {c} teams of the same size. How many children are in each team?",
        ),
        rationales=(
            "Together there are {a} + {b} = {x}. Shared in {c} parts, each has {x} / {c} = {y}.",
            "Add both: {a} + {b} = {x}. Divide by {c}: {x} / {c} = {y}.",
            "All in all it is {a} + {b} = {x}. One of {c} equal parts is {x} / {c} = {y}.",
        ),
        others=(
            Way(
                ("x = b + a", "y = x / c"),
                (
                    "{b} and {a} are {b} + {a} = {x}. In each of {c} parts are {x} / {c} = {y}.",
                    "There are {b} + {a} = {x} to share. Each part gets {x} / {c} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="change",
        numbers={"a": (2, 6), "b": (2, 6), "c": (14, 30)},
        steps=("x = a + b", "y = c - x"),
        questions=(
            "A book costs {a} dollars and a bag costs {b} dollars. {name} has {c} dollars and buys both. "
            "How many dollars does {he} have left?",
            "{name} has {c} dollars. {He} spends {a} dollars on food and {b} dollars on a game. "
            "How many dollars does {name} still have?",
            "Of {c} {item}, {name} eats {a} and {friend} eats {b}. How many {item} are not eaten?",
        ),
        rationales=(
            "Both together are {a} + {b} = {x}. From {c} there stay {c} - {x} = {y}.",
            "Add what goes: {a} + {b} = {x}. Take it from {c}: {c} - {x} = {y}.",
            "In all {a} + {b} = {x} are gone, so {c} - {x} = {y} are left.",
        ),
        others=(
            Way(
                ("x = c - a", "y = x - b"),
                (
                    "After the first there are {c} - {a} = {x}. After the second {x} - {b} = {y} are left.",
                    "Take {a} from {c}: {c} - {a} = {x}. Take {b} more: {x} - {b} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="fewer_together",
        numbers={"a": (8, 15), "b": (2, 6)},
        steps=("x = a - b", "y = a + x"),
        questions=(
            "{name} has {a} {item}. {friend} has {b} fewer {item}. How many {item} do they have together?",
            "{name} scores {a} points and {friend} scores {b} points less. How many points do both score together?",
            "A box holds {a} {item} and a bag holds {b} {item} less than the box. How many {item} do both hold?",
        ),
        rationales=(
            "The other has {a} - {b} = {x}. Together that is {a} + {x} = {y}.",
            "Find the smaller part: {a} - {b} = {x}. Add both parts: {a} + {x} = {y}.",
            "{b} fewer than {a} is {a} - {b} = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a + a", "y = x - b"),
                (
                    "Twice {a} is {a} + {a} = {x}. One part is {b} less, so it is {x} - {b} = {y}.",
                    "If both had {a} it would be {a} + {a} = {x}. It is {b} less: {x} - {b} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="times_as_many",
        numbers={"a": (2, 9), "b": (2, 4)},
        steps=("x = a * b", "y = a + x"),
        questions=(
            "{name} picks {a} {item}. {friend} picks {b} times as many. How many {item} do they pick in all?",
            "{name} has a cat of {a} pounds and a dog that weighs {b} times as much. How many pounds do both weigh?",
            "{name} walks {a} miles in May and {b} times as far in June. How many miles is that in both months?",
        ),
        rationales=(
            "{b} times {a} is {a} * {b} = {x}. Together that is {a} + {x} = {y}.",
            "The larger part is {a} * {b} = {x}. Add both parts: {a} + {x} = {y}.",
            "Multiply first: {a} * {b} = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = b + 1", "y = a * x"),
                (
                    "Both are {b} + 1 = {x} parts of {a}. That makes {a} * {x} = {y}.",
                    "One part and {b} parts are {b} + 1 = {x}. Each is {a}, so {a} * {x} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="wages",
        numbers={"a": (2, 9), "b": (2, 5), "c": (2, 5)},
        steps=("x = b + c", "y = a * x"),
        questions=(
            "{name} earns {a} dollars an hour. {He} works {b} hours on Monday and {c} hours on Friday. "
            "How many dollars does {name} earn?",
            "One ticket costs {a} dollars. {name} buys {b} tickets and {friend} buys {c}. "
            "How many dollars do they pay in all?",
            "{name} reads {a} pages a day for {b} days and then for {c} more days. How many pages does {he} read?",
        ),
        rationales=(
            "In all there are {b} + {c} = {x}. Each counts {a}, so {a} * {x} = {y}.",
            "Add first: {b} + {c} = {x}. Then multiply by {a}: {a} * {x} = {y}.",
            "{b} and {c} make {b} + {c} = {x}. That times {a} is {a} * {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a * b", "y = a * c", "z = x + y"),
                (
                    "The first are {a} * {b} = {x}, the others {a} * {c} = {y}. Together it is {x} + {y} = {z}.",
                    "{b} times {a} is {a} * {b} = {x}. {c} times is {a} * {c} = {y}. The sum is {x} + {y} = {z}.",
                ),
            ),
        ),
    ),
    Family(
        name="ages",
        numbers={"a": (5, 20), "b": (2, 9), "c": (2, 9)},
        steps=("x = a + b", "y = x + c"),
        questions=(
            "{name} is {a} years old. {friend} is {b} years older. How old will {friend} be in {c} years?",
            "{name} has {a} {item}. {friend} has {b} more, and then finds {c}. How many {item} does {friend} have now?",
            "A tree is {a} feet tall. It grows {b} feet, and later {c} feet more. How tall is the tree now?",
        ),
        rationales=(
            "First it is {a} + {b} = {x}. Then it is {x} + {c} = {y}.",
            "Add {b} to {a}: {a} + {b} = {x}. Add {c} more: {x} + {c} = {y}.",
            "{b} more than {a} is {a} + {b} = {x}. {c} more is {x} + {c} = {y}.",
        ),
        others=(
            Way(
                ("x = b + c", "y = a + x"),
                (
                    "In all {b} + {c} = {x} are added. From {a} that leads to {a} + {x} = {y}.",
                    "Both gains make {b} + {c} = {x}. Put to {a} it is {a} + {x} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="half_as_many",
        numbers={"a": (4, 30)},
        steps=("x = a / 2", "y = a + x"),
        questions=(
            "{name} reads {a} pages on Monday and half as many on Tuesday. How many pages does {he} read in all?",
            "{name} sells {a} {item} in May and half as many in June. How many {item} does {name} sell in both months?",
            "{name} has {a} {item}, and {friend} has half as many. How many {item} do they have together?",
        ),
        rationales=(
            "Half of {a} is {a} / 2 = {x}. Together that is {a} + {x} = {y}.",
            "Divide first: {a} / 2 = {x}. Add both parts: {a} + {x} = {y}.",
            "The smaller part is {a} / 2 = {x}. Both make {a} + {x} = {y}.",
        ),
        others=(
            Way(
                ("x = a / 2", "y = x + a"),
                (
                    "One half of {a} is {a} / 2 = {x}. With the whole it is {x} + {a} = {y}.",
                    "Halve {a}: {a} / 2 = {x}. Put {a} to it: {x} + {a} = {y}.",
                ),
            ),
        ),
    ),
    Family(
        name="bus",
        numbers={"a": (5, 20), "b": (2, 9), "c": (2, 9), "d": (2, 9)},
        steps=("x = a + b", "y = x - c", "z = y + d"),
        questions=(
            "A bus has {a} people on it. At the first stop {b} get on and {c} get off. At the next stop {d} get on. "
            "How many people are on the bus now?",
            "{name} has {a} {item}. {He} buys {b}, gives away {c}, and then finds {d}. "
            "How many {item} does {name} have in the end?",
        ),
        rationales=(
            "First it is {a} + {b} = {x}. Then it is {x} - {c} = {y}. At last it is {y} + {d} = {z}.",
            "Add {b}: {a} + {b} = {x}. Take away {c}: {x} - {c} = {y}. Add {d}: {y} + {d} = {z}.",
            "{b} come, {a} + {b} = {x}. {c} go, {x} - {c} = {y}. {d} come, {y} + {d} = {z}.",
        ),
        others=(
            Way(
                ("x = a + b", "y = x + d", "z = y - c"),
                (
                    "Add all that come: {a} + {b} = {x} and {x} + {d} = {y}. Take away {c}: {y} - {c} = {z}.",
                    "With {b} it is {a} + {b} = {x}, with {d} {x} + {d} = {y}, without {c} {y} - {c} = {z}.",
                ),
            ),
        ),
    ),
    Family(
        name="bakery",
        numbers={"a": (2, 6), "b": (3, 9), "c": (2, 9), "d": (2, 5)},
        steps=("x = a * b", "y = x - c", "z = y / d"),
        questions=(
            "{name} bakes {a} trays of {b} cookies. {He} eats {c} of them and packs the rest in bags of {d}. "
            "How many bags does {name} fill?",
            "A farmer has {a} boxes of {b} eggs. {c} eggs break. The farmer sells the rest in packs of {d}. "
            "How many packs are sold?",
        ),
        rationales=(
            "First there are {a} * {b} = {x}. Then {x} - {c} = {y} are left. They fill {y} / {d} = {z}.",
            "Multiply first: {a} * {b} = {x}. Take away {c}: {x} - {c} = {y}. Divide by {d}: {y} / {d} = {z}.",
            "In all it is {a} * {b} = {x}. Without {c} it is {x} - {c} = {y}. In parts of {d} it is {y} / {d} = {z}.",
        ),
        others=(
            Way(
                ("x = b * a", "y = x - c", "z = y / d"),
                (
                    "{a} times {b} is {b} * {a} = {x}. {c} go: {x} - {c} = {y}. Each takes {d}: {y} / {d} = {z}.",
                    "There are {b} * {a} = {x}. Less {c} it is {x} - {c} = {y}, and {d} go together: {y} / {d} = {z}.",
                ),
            ),
        ),
    ),
    Family(
        name="savings",
        numbers={"a": (2, 6), "b": (3, 9), "c": (2, 9), "d": (2, 9)},
        steps=("x = a * b", "y = x - c", "z = y + d"),
        questions=(
            "{name} saves {a} dollars a week for {b} weeks. Then {he} spends {c} dollars and gets {d} dollars from "
            "{friend}. How many dollars does {name} have?",
            "A school has {a} classes of {b} children. {c} children leave and {d} new ones come. "
            "How many children are there now?",
        ),
        rationales=(
            "First there are {a} * {b} = {x}. Then {x} - {c} = {y} are left. At last it is {y} + {d} = {z}.",
            "Multiply first: {a} * {b} = {x}. Take away {c}: {x} - {c} = {y}. Add {d}: {y} + {d} = {z}.",
            "In all it is {a} * {b} = {x}. Without {c} it is {x} - {c} = {y}. With {d} it is {y} + {d} = {z}.",
        ),
        others=(
            Way(
                ("x = a * b", "y = x + d", "z = y - c"),
                (
                    "At first it is {a} * {b} = {x}. Add {d}: {x} + {d} = {y}. Take away {c}: {y} - {c} = {z}.",
                    "{a} times {b} is {a} * {b} = {x}. With {d} it is {x} + {d} = {y}, without {c} {y} - {c} = {z}.",
                ),
            ),
        ),
    ),
    *LOOKALIKES,
)
