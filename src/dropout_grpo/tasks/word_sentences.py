"""The sentences of the word problems: a closed vocabulary, in which punctuation marks are words.

Fields: {p} is the person, {t} the things, and {n} a number of at least 2, so that things are always plural. Each event
starts with its day, in order; monday follows sunday. No sentence after the first states how many of the things in
question there are.
"""

NAMES = ("ann", "ben", "eve", "finn", "jack", "mia", "olga", "tom")
THINGS = ("apples", "balls", "books", "cards", "coins", "pens", "shells", "stamps")

START = (
    "{p} has {n} {t} .",
    "{p} owns {n} {t} .",
)
ADD = (
    "{p} buys {n} {t} .",
    "{p} finds {n} {t} .",
    "{p} makes {n} {t} .",
    "{p} wins {n} {t} .",
    "{p} borrows {n} {t} .",
)
SUBTRACT = (
    "{p} loses {n} {t} .",
    "{p} breaks {n} {t} .",
    "{p} sells {n} {t} .",
    "{p} drops {n} {t} .",
    "{p} returns {n} {t} .",
)
MULTIPLY = {
    2: ("{p} doubles the {t} .",),
    3: ("{p} triples the {t} .",),
    4: ("{p} quadruples the {t} .",),
}
"""Sentences by factor."""

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
QUESTIONS = (
    "how many {t} does {p} have now ?",
    "how many {t} are left ?",
)


def words() -> list[str]:
    """Every word that a sentence can contain except numbers, sorted."""
    multiply = [template for templates in MULTIPLY.values() for template in templates]
    templates = [*START, *ADD, *SUBTRACT, *multiply, *QUESTIONS, "on"]
    fixed = {word for template in templates for word in template.split() if not word.startswith("{")}
    return sorted(fixed | set(NAMES) | set(THINGS) | set(DAYS))
