"""Made-up facts as they stand in notes: a subject with a value, said in one of several ways.

It is asked in others. Names and some of the words come from the prose (`facts.words`), the rest
from vocabulary.py, so that nothing in them can be known by heart.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from training.facts import MONTHS, Words, name, phrase
from training.vocabulary import (
    CHORES,
    COLOURS,
    DEEDS,
    EVENTS,
    FOODS,
    FOREIGN,
    PLACES,
    REASONS,
    ROLES,
    SETTINGS,
    THINGS,
)


@dataclass(frozen=True)
class Fact:
    """A made-up fact: as a sentence, as a line of a list, and as questions.

    `asked` are pairs of a question and its answer, which stands in both forms.
    """

    sentence: str
    line: str
    asked: tuple[tuple[str, str], ...]


@dataclass
class Inventor:
    """Makes facts; the generator decides them all."""

    rng: random.Random
    source: Words
    kinds: tuple[Callable[[], Fact], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Every kind of fact is drawn as often as the others."""
        self.kinds = (
            self.price, self.phone, self.event, self.count, self.serial, self.whereabouts,
            self.role, self.deed, self.colour, self.password, self.hours, self.chore, self.reason,
            self.brand, self.temperature, self.ingredient, self.member, self.bill, self.limit,
        )  # fmt: skip

    # --- values

    def of(self, words: Sequence[str]) -> str:
        """One of them."""
        return self.rng.choice(words).replace("_", " ")

    def person(self) -> str:
        """A name of one or two words, sometimes with a title."""
        title = self.rng.choice(("", "", "", "", "Mr ", "Ms ", "Dr "))
        return title + (
            self.rng.choice(self.source.names) if title else name(self.rng, self.source)
        )

    def thing(self) -> str:
        """A thing, sometimes told apart by a word of its own."""
        kind = self.of(THINGS)
        extra = self.rng.choice(("", "", "", "old", "new", "small", "second", "spare", "big"))
        return f"{extra} {kind}".strip()

    def money(self) -> str:
        """An amount in some currency."""
        whole = self.rng.choice((self.rng.randint(2, 99), self.rng.randint(100, 4_000)))
        cents = self.rng.choice(("", "", "", f".{self.rng.randint(10, 99)}"))
        form = self.rng.choice(("{} euros", "€{}", "{} EUR", "${}", "{} pounds", "£{}", "{} kr"))
        return form.format(f"{whole:,}{cents}")

    def date(self) -> str:
        """A day, with or without its year."""
        day, month, year = self.rng.randint(1, 28), self.rng.choice(MONTHS), self.year()
        return self.rng.choice(
            (f"{day} {month}", f"{day} {month} {year}", f"{month} {day}, {year}",
             f"{year}-{MONTHS.index(month) + 1:02}-{day:02}", f"{day} {month[:3]} {year}")
        )  # fmt: skip

    def year(self) -> str:
        """A year of the last decades."""
        return str(self.rng.randint(1978, 2026))

    def time(self) -> str:
        """A time of day."""
        hour, minute = self.rng.randint(6, 22), self.rng.choice(("00", "15", "30", "45", "10"))
        return self.rng.choice((f"{hour}:{minute}", f"{hour % 12 or 12} {'ap'[hour > 11]}m"))

    def digits(self) -> str:
        """A telephone number."""
        number = self.rng.randint
        return self.rng.choice(
            (
                f"0{number(10, 999)} {number(100, 999)} {number(10, 99)}",
                f"555-{number(1000, 9999)}",
                f"+{number(30, 49)} {number(100, 999)} {number(10_000, 99_999)}",
            )
        )

    def code(self) -> str:
        """A serial number or the like."""
        letters = "".join(self.rng.choices("ABCDEFGHKLMNPRSTVWXZ", k=self.rng.randint(1, 3)))
        number = self.rng.randint(10, 99_999)
        return self.rng.choice(
            (f"{letters}-{number}", f"{letters}{number}", f"{number}-{letters}",
             f"{letters}-{number}-{self.rng.randint(1, 99):02}",
             f"{self.rng.randint(1000, 9999)}-{self.rng.randint(10, 99)}")
        )  # fmt: skip

    # --- facts

    def price(self) -> Fact:
        """What a thing costs."""
        thing, money = self.thing(), self.money()
        asked = (
            f"How much does the {thing} cost?", f"What is the price of the {thing}?",
            f"What did we pay for the {thing}?", f"How much was the {thing}?",
            f"what does a {thing} cost",
        )  # fmt: skip
        said = self.of((f"The {thing} costs {money}.", f"We paid {money} for the {thing}.",
                        f"A {thing} is {money}."))  # fmt: skip
        return Fact(said, f"{thing}: {money}", tuple((one, money) for one in asked))

    def phone(self) -> Fact:
        """Somebody's number."""
        who, number, role = self.person(), self.digits(), self.of(ROLES)
        asked = tuple(
            (one, number)
            for one in (f"What is {who}'s phone number?", f"How can I reach the {role}?",
                        f"What number do I call for the {role}?", f"{who} phone")
        )  # fmt: skip
        return Fact(
            f"The {role} is {who}, phone {number}.",
            f"{role}: {who}, {number}",
            (*asked, (f"Who is the {role}?", who), (f"What is {who}'s job?", role)),
        )

    def event(self) -> Fact:
        """When and where something takes place."""
        what, day, at, where = self.of(EVENTS), self.date(), self.time(), self.of(PLACES)
        asked = (
            (f"When is the {what}?", f"{day} at {at}"), (f"On what day is the {what}?", day),
            (f"What time does the {what} start?", at), (f"Where is the {what}?", f"the {where}"),
            (f"In which room does the {what} take place?", f"the {where}"),
            (f"date of the {what}", day),
        )  # fmt: skip
        return Fact(
            f"The {what} is on {day} at {at} in the {where}.",
            f"{what}: {day} at {at}, in the {where}",
            asked,
        )

    def count(self) -> Fact:
        """How many of something there are."""
        many, what, where = self.rng.randint(2, 480), self.of(THINGS) + "s", self.of(PLACES)
        asked = (f"How many {what} are there?", f"How many {what} are in the {where}?",
                 f"What is the number of {what} in the {where}?")  # fmt: skip
        return Fact(
            f"There are {many} {what} in the {where}.",
            f"{what} in the {where}: {many}",
            tuple((one, str(many)) for one in asked),
        )

    def serial(self) -> Fact:
        """A thing's number, size or version."""
        thing, code = self.thing(), self.code()
        what = self.of(("serial number", "model number", "part number", "order number",
                        "policy number", "size", "key code", "licence number"))  # fmt: skip
        asked = (f"What is the {what} of the {thing}?", f"Which {what} does the {thing} have?",
                 f"What's the {thing}'s {what}?", f"{thing} {what}?")  # fmt: skip
        said = self.of((f"The {thing} has the {what} {code}.", f"{thing}, {what} {code}.",
                        f"The {what} of the {thing} is {code}."))  # fmt: skip
        return Fact(
            said[0].upper() + said[1:], f"{thing}, {what}: {code}", tuple((a, code) for a in asked)
        )

    def whereabouts(self) -> Fact:
        """Where a thing is kept."""
        thing = self.thing()
        spot = self.of(
            ("in the {}", "behind the door of the {}", "on the top shelf in the {}",
             "under the stairs by the {}", "in a {} tin in the {}",
             "next to the window of the {}", "in the left drawer in the {}")
        )  # fmt: skip
        where = spot.format(*([self.of(COLOURS)] if "tin" in spot else []), self.of(PLACES))
        asked = (f"Where is the {thing}?", f"Where do we keep the {thing}?",
                 f"Where can I find the {thing}?")  # fmt: skip
        return Fact(
            f"The {thing} is {where}.", f"{thing}: {where}", tuple((one, where) for one in asked)
        )

    def role(self) -> Fact:
        """Who does what."""
        who, deputy, role = self.person(), self.person(), self.of(ROLES)
        asked = (
            (f"Who is the {role}?", who), (f"Who is our {role}?", who),
            (f"Who is the {role}'s deputy?", deputy), (f"What does {who} do?", role),
        )  # fmt: skip
        return Fact(
            f"Our {role} is {who}; the deputy is {deputy}.",
            f"{role}: {who} (deputy: {deputy})",
            asked,
        )

    def deed(self) -> Fact:
        """Who did what when."""
        who, thing, day = self.person(), self.thing(), self.date()
        did, do = self.rng.choice(DEEDS)
        asked = (
            (f"Who {did} the {thing}?", who), (f"When did {who} {do} the {thing}?", day),
            (f"What did {who} {do.removesuffix(' us')}?", f"the {thing}"),
            (f"On what date was that with the {thing}?", day),
        )  # fmt: skip
        return Fact(f"{who} {did} the {thing} on {day}.", f"{day}: {who} {did} the {thing}", asked)

    def colour(self) -> Fact:
        """What colour something has."""
        thing, colour = self.of((*THINGS, *PLACES)), self.of(COLOURS)
        asked = (f"What colour is the {thing}?", f"Which colour does the {thing} have?",
                 f"In what color is the {thing} painted?")  # fmt: skip
        return Fact(
            f"The {thing} is {colour}.", f"{thing}: {colour}", tuple((a, colour) for a in asked)
        )

    def password(self) -> Fact:
        """A network or an account with its password."""
        net = name(self.rng, self.source).replace(" ", "-")
        word = phrase(self.rng, self.source).replace(" ", "-")
        secret = f"{word}-{self.rng.randint(10, 9999)}"
        what = self.of(("wifi", "guest network", "alarm system", "printer account", "door lock"))
        asked = (
            (f"What is the password of the {what}?", secret),
            (f"{what} password", secret),
            (f"What is the {what} called?", net),
            (f"How do I log in to {net}?", secret),
        )
        return Fact(
            f'The {what} is called "{net}", password {secret}.',
            f"{what}: {net}, password {secret}",
            asked,
        )

    def hours(self) -> Fact:
        """When a place is open."""
        where = self.of(PLACES)
        day = self.of(("Mondays", "Tuesdays", "Thursdays", "weekdays", "Saturdays", "Sundays"))
        span = f"{self.time()} to {self.time()}"
        asked = (
            (f"At what times is the {where} open on {day}?", span),
            (f"On which days is the {where} open?", day),
        )
        return Fact(f"The {where} is open on {day} from {span}.", f"{where}: {day} {span}", asked)

    def chore(self) -> Fact:
        """Who has to do what by when."""
        who, do, day = self.person(), self.of(CHORES), self.date()
        asked = (
            (f"Who has to {do}?", who), (f"Who will {do}?", who),
            (f"By when does {who} have to {do}?", day), (f"What does {who} have to do?", do),
            (f"What is {who} supposed to do by {day}?", do),
        )  # fmt: skip
        return Fact(f"{who} has to {do} by {day}.", f"{who}: {do} by {day}", asked)

    def reason(self) -> Fact:
        """Why something is as it is."""
        what, why, question = self.rng.choice(REASONS)
        said = what[0].upper() + what[1:]
        return Fact(f"{said} because {why}.", f"{what}: {why}", ((question, why),))

    def brand(self) -> Fact:
        """What make a thing is, and of what year."""
        thing, make, year = self.thing(), name(self.rng, self.source), self.year()
        model = f"{make} {self.code()}"
        asked = ((f"What make is the {thing}?", model), (f"Which {thing} do we have?", model),
                 (f"From what year is the {thing}?", year), (f"How old is the {thing}?", year),
                 (f"When was the {thing} made?", year))  # fmt: skip
        return Fact(f"The {thing} is a {model} from {year}.", f"{thing}: {model}, {year}", asked)

    def temperature(self) -> Fact:
        """How hot or how long."""
        thing, many = self.of(THINGS), self.rng.randint(3, 240)
        unit = self.of(("°C", "minutes", "hours", "bar", "km", "kg", "litres", "metres", "percent"))
        what = {"°C": "temperature", "minutes": "run time", "hours": "charging time",
                "bar": "pressure", "km": "range", "kg": "weight", "litres": "capacity",
                "metres": "length", "percent": "discount"}[unit]  # fmt: skip
        value = f"{many} {unit}"
        asked = (f"What is the {what} of the {thing}?", f"Which {what} does the {thing} have?",
                 f"{what} {thing}")  # fmt: skip
        return Fact(
            f"The {what} of the {thing} is {value}.",
            f"{thing}, {what}: {value}",
            tuple((one, value) for one in asked),
        )

    def ingredient(self) -> Fact:
        """How much of something goes into a dish."""
        food, dish = self.of(FOODS), f"{self.of(FOODS)} {self.of(('soup', 'cake', 'pie', 'salad'))}"
        many = self.rng.choice((1, 2, 3, 5, 60, 150, 250, 400))
        amount = f"{many} {self.of(('g', 'cups', 'spoons'))}"
        asked = (f"How much {food} goes into the {dish}?", f"How much {food} do I need?")
        return Fact(
            f"The {dish} needs {amount} of {food}.",
            f"{dish}: {amount} of {food}",
            tuple((one, amount) for one in asked),
        )

    def member(self) -> Fact:
        """What it costs to belong to something."""
        who = self.of(("club", "union", "society", "team", "band"))
        money, day = self.money(), self.date()
        asked = (
            (f"How much is the {who} membership?", money),
            (f"What does the {who} cost a year?", money),
            (f"When is the {who} fee due?", day),
            (f"By when must the fee for the {who} be paid?", day),
        )
        return Fact(
            f"Membership of the {who} is {money} a year, due by {day}.",
            f"{who} membership: {money} a year, due by {day}",
            asked,
        )

    def bill(self) -> Fact:
        """What an event brought in or cost, and who came."""
        what, money, many = self.of(EVENTS), self.money(), self.rng.randint(7, 900)
        asked = (
            (f"How much money did the {what} bring in?", money),
            (f"How many people came to the {what}?", str(many)),
            (f"What did we earn with the {what}?", money),
        )
        return Fact(
            f"The {what} brought in {money}, with {many} visitors.",
            f"{what}: {many} visitors, {money} taken",
            asked,
        )

    def limit(self) -> Fact:
        """A setting of a program."""
        key = self.rng.choice(SETTINGS)
        value = str(self.rng.choice((self.rng.randint(1, 60), 512, 8080, 1500)))
        plain = key.replace("_", " ")
        asked = (f"What is {key} set to?", f"What is the value of {key}?",
                 f"Which {plain} is used?", f"default {plain}?")  # fmt: skip
        return Fact(
            f"# {key} is {value}: more was no better.",
            f"{key} = {value}",
            tuple((a, value) for a in asked),
        )

    def foreign(self, tongue: str) -> Fact:
        """A fact in another language."""
        sentence, line, question, answer = self.rng.choice(FOREIGN[tongue])
        filled = {
            "a": name(self.rng, self.source), "b": name(self.rng, self.source), "m": self.money(),
            "d": f"{self.rng.randint(1, 28)}.{self.rng.randint(1, 12)}.{self.year()}",
            "t": self.digits(), "n": str(self.rng.randint(2, 900)),
        }  # fmt: skip
        said, listed, asked = (one.format(**filled) for one in (sentence, line, question))
        return Fact(said, listed, ((asked, filled[answer]),))
