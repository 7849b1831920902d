"""Made-up notes as people keep them, and questions about them that the notes answer.

No set of questions has notes, tables, lists of things, settings or comments in code. These are made
by rule: a fact is a subject with a value, said in one of several ways and asked in others; a note
is some facts under headings, in a list, a table, a log or running text. Names and some of the words
come from the prose (`facts.words`), so that nothing in them can be known by heart.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from training.facts import MONTHS, Words, name, phrase

THINGS = (
    "ladder lamp drill kettle tent kayak printer camera piano violin stove freezer mower canoe scooter"
    " helmet telescope projector trailer rucksack sewing_machine heat_pump fish_tank beehive parcel"
    " toolbox wheelbarrow extension_lead coffee_grinder bread_knife sleeping_bag microscope scanner"
    " router monitor keyboard hard_disk radio clock mirror wardrobe carpet curtain cupboard shelf desk"
    " armchair mattress generator water_filter air_pump chainsaw hammock paddle compass snow_chain"
    " rain_barrel hedge_trimmer smoke_alarm thermometer pressure_cooker soldering_iron label_printer"
).split()
PLACES = (
    "attic garage hall library workshop kitchen office barn shed loft basement gym canteen archive"
    " corridor porch cloakroom laundry studio greenroom boathouse reading_room meeting_room storeroom"
    " town_hall village_school station_square old_mill community_centre fire_station lecture_hall"
).split()
ROLES = (
    "chair secretary plumber electrician gardener landlord caretaker coach editor librarian cashier"
    " accountant translator architect inspector driver cook supervisor trainer vet optician tutor"
    " dentist's_assistant project_lead team_doctor sound_engineer youth_warden press_officer"
).split()
EVENTS = (
    "annual_meeting book_sale harvest_fair open_day fire_drill film_night chess_tournament inspection"
    " flea_market workshop lecture school_play regatta marathon wine_tasting staff_party audit recital"
    " blood_drive summer_camp quiz_night board_meeting bike_tour swimming_gala parents'_evening"
).split()
COLOURS = "dark_green navy_blue crimson ivory ochre grey turquoise violet maroon silver".split()
DEEDS = (
    ("repaired", "repair"), ("painted", "paint"), ("lent us", "lend us"), ("bought", "buy"),
    ("sold", "sell"), ("cleaned", "clean"), ("built", "build"), ("found", "find"),
    ("delivered", "deliver"), ("broke", "break"), ("tested", "test"), ("borrowed", "borrow"),
)  # fmt: skip
FOODS = (
    "flour sugar butter rice lentils spinach yeast cream oats walnuts raisins leeks carrots honey"
    " mushrooms olives cheese beans barley apples pears cocoa vinegar mustard".split()
)
CHORES = (
    "call_the_bank", "renew_the_passports", "order_new_filters", "sweep_the_chimney",
    "book_the_ferry", "return_the_keys", "write_the_minutes", "update_the_website",
    "collect_the_parcel", "pay_the_invoice", "change_the_locks", "print_the_posters",
    "empty_the_gutters", "check_the_tyres", "back_up_the_server", "send_out_the_invitations",
)  # fmt: skip
REASONS = (
    ("the lift is locked at night", "the motor overheats", "Why is the lift locked at night?"),
    ("nobody may use the side door", "the hinge is loose", "Why may nobody use the side door?"),
    ("the trip was put off", "the bridge was closed", "Why was the trip put off?"),
    ("we changed the supplier", "the last boxes came late", "Why did we change the supplier?"),
    ("the pool stays empty", "a pipe is leaking", "Why does the pool stay empty?"),
    ("the meeting moved to noon", "the trains were on strike", "Why did the meeting move to noon?"),
    ("the piano was sold", "the room is too damp", "Why was the piano sold?"),
    ("the old printer is kept", "it can print on card", "Why is the old printer kept?"),
)
SETTINGS = (
    "timeout retries max_connections cache_size log_level batch_size port workers threshold interval"
    " queue_length page_size heartbeat buffer_kb backoff_ms ttl_hours min_replicas sample_rate".split()
)
# sentence, line, question; the answer is the value named last in the sentence
FOREIGN = {
    "es": (
        ("{a} cuesta {m}.", "{a}: {m}", "¿Cuánto cuesta {a}?", "m"),
        ("{a} vive en {b}.", "{a}, {b}", "¿Dónde vive {a}?", "b"),
        ("La reunión con {a} es el {d}.", "Reunión con {a}: {d}", "¿Cuándo es la reunión con {a}?", "d"),
        ("El teléfono de {a} es {t}.", "{a}, tel. {t}", "¿Cuál es el teléfono de {a}?", "t"),
        ("El responsable de {a} es {b}.", "{a}: {b}", "¿Quién es el responsable de {a}?", "b"),
        ("Se necesitan {n} gramos de {a}.", "{n} gramos de {a}", "¿Cuántos gramos de {a} se necesitan?", "n"),
    ),
    "de": (
        ("{a} kostet {m}.", "{a}: {m}", "Was kostet {a}?", "m"),
        ("{a} wohnt in {b}.", "{a}, {b}", "Wo wohnt {a}?", "b"),
        ("Der Termin bei {a} ist am {d}.", "{a}: {d}", "Wann ist der Termin bei {a}?", "d"),
        ("Die Telefonnummer von {a} ist {t}.", "{a}, Tel. {t}", "Welche Telefonnummer hat {a}?", "t"),
        ("Um {a} kümmert sich {b}.", "{a}: {b}", "Wer kümmert sich um {a}?", "b"),
        ("Im Lager liegen {n} Stück {a}.", "{a}: {n} Stück", "Wie viele {a} liegen im Lager?", "n"),
    ),
    "fr": (
        ("{a} coûte {m}.", "{a} : {m}", "Combien coûte {a} ?", "m"),
        ("{a} habite à {b}.", "{a}, {b}", "Où habite {a} ?", "b"),
        ("Le rendez-vous avec {a} est le {d}.", "{a} : {d}", "Quand est le rendez-vous avec {a} ?", "d"),
        ("Le numéro de {a} est le {t}.", "{a}, tél. {t}", "Quel est le numéro de {a} ?", "t"),
        ("{b} s'occupe de {a}.", "{a} : {b}", "Qui s'occupe de {a} ?", "b"),
        ("Il y a {n} {a} dans la cave.", "{a} : {n}", "Combien de {a} y a-t-il dans la cave ?", "n"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """What stands in a note: as a sentence, as a line of a list, and how it is asked.

    `asked` are pairs of a question and its answer, which stands in both forms.
    """

    sentence: str
    line: str
    asked: tuple[tuple[str, str], ...]


@dataclass
class Writer:
    """Makes facts and notes; the generator decides them all."""

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
        return self.rng.choice(
            (f"0{self.rng.randint(10, 999)} {self.rng.randint(100, 999)} {self.rng.randint(10, 99)}",
             f"555-{self.rng.randint(1000, 9999)}",
             f"+{self.rng.randint(30, 49)} {self.rng.randint(100, 999)} "
             f"{self.rng.randint(10_000, 99_999)}")
        )  # fmt: skip

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
        spot = self.of(("in the {}", "behind the door of the {}", "on the top shelf in the {}",
                        "under the stairs by the {}", "in a {} tin in the {}",
                        "next to the window of the {}", "in the left drawer in the {}"))  # fmt: skip
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
        net, secret = name(self.rng, self.source).replace(" ", "-"), "-".join(
            [phrase(self.rng, self.source).replace(" ", "-"), str(self.rng.randint(10, 9999))]
        )  # fmt: skip
        what = self.of(("wifi", "guest network", "alarm system", "printer account", "door lock"))
        asked = ((f"What is the password of the {what}?", secret), (f"{what} password", secret),
                 (f"What is the {what} called?", net), (f"How do I log in to {net}?", secret))  # fmt: skip
        return Fact(
            f'The {what} is called "{net}", password {secret}.',
            f"{what}: {net}, password {secret}",
            asked,
        )

    def hours(self) -> Fact:
        """When a place is open."""
        where, day = self.of(PLACES), self.of(
            ("Mondays", "Tuesdays", "Thursdays", "weekdays", "Saturdays", "Sundays")
        )  # fmt: skip
        span = f"{self.time()} to {self.time()}"
        asked = (f"When is the {where} open?", f"What are the opening hours of the {where}?",
                 f"At what times is the {where} open on {day}?")  # fmt: skip
        return Fact(
            f"The {where} is open on {day} from {span}.",
            f"{where}: {day} {span}",
            ((asked[2], span), *((one, day) for one in (f"On which days is the {where} open?",))),
        )

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
        amount = (
            f"{self.rng.choice((1, 2, 3, 5, 60, 150, 250, 400))} {self.of(('g', 'cups', 'spoons'))}"
        )
        asked = (f"How much {food} goes into the {dish}?", f"How much {food} do I need?")
        return Fact(
            f"The {dish} needs {amount} of {food}.",
            f"{dish}: {amount} of {food}",
            tuple((one, amount) for one in asked),
        )

    def member(self) -> Fact:
        """What it costs to belong to something."""
        who, money, day = (
            self.of(("club", "union", "society", "team", "band")),
            self.money(),
            self.date(),
        )
        asked = ((f"How much is the {who} membership?", money), (f"What does the {who} cost a year?", money),
                 (f"When is the {who} fee due?", day), (f"By when must the fee for the {who} be paid?", day))  # fmt: skip
        return Fact(
            f"Membership of the {who} is {money} a year, due by {day}.",
            f"{who} membership: {money} a year, due by {day}",
            asked,
        )

    def bill(self) -> Fact:
        """What an event brought in or cost, and who came."""
        what, money, many = self.of(EVENTS), self.money(), self.rng.randint(7, 900)
        asked = ((f"How much money did the {what} bring in?", money), (f"How many people came to the {what}?", str(many)),
                 (f"What did we earn with the {what}?", money))  # fmt: skip
        return Fact(
            f"The {what} brought in {money}, with {many} visitors.",
            f"{what}: {many} visitors, {money} taken",
            asked,
        )

    def limit(self) -> Fact:
        """A setting of a program."""
        key, value = (
            self.rng.choice(SETTINGS),
            str(self.rng.choice((self.rng.randint(1, 60), 512, 8080, 1500))),
        )
        asked = (f"What is {key} set to?", f"What is the value of {key}?", f"Which {key.replace('_', ' ')} is used?",
                 f"default {key.replace('_', ' ')}?")  # fmt: skip
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

    # --- notes

    def note(self, count: int) -> tuple[str, list[tuple[str, str]]]:
        """A note of about `count` facts, and questions that it answers."""
        draw = self.rng.random()
        if draw < 0.25:
            return self.table(count)
        tongue = self.rng.choice(tuple(FOREIGN)) if draw < 0.33 else ""
        some = [
            self.foreign(tongue) if tongue else self.rng.choice(self.kinds)() for _ in range(count)
        ]
        kept = [one for place, one in enumerate(some) if not self._repeats(one, some[:place])]
        made = self.rng.choice((self.prose, self.listed, self.sections, self.numbered, self.mixed))
        return made(kept), [self.owned(*self.rng.choice(one.asked)) for one in kept]

    def owned(self, question: str, answer: str) -> tuple[str, str]:
        """The question, sometimes of what is ours or mine instead of the thing."""
        if self.rng.random() < 0.2:
            question = question.replace(" the ", self.rng.choice((" my ", " our ")), 1)
        return question, answer

    def _repeats(self, fact: Fact, before: Sequence[Fact]) -> bool:
        """Whether one of its questions is asked of an earlier fact too."""
        known = {question for one in before for question, _ in one.asked}
        return any(question in known for question, _ in fact.asked)

    def heading(self) -> str:
        """A few words that stand above."""
        words = self.of(
            (self.of(PLACES), self.of(THINGS), self.of(EVENTS), phrase(self.rng, self.source))
        )
        return words[0].upper() + words[1:]

    def prose(self, some: Sequence[Fact]) -> str:
        """Sentence after sentence."""
        return " ".join(one.sentence for one in some)

    def listed(self, some: Sequence[Fact]) -> str:
        """A heading and a list."""
        mark = self.rng.choice(("- ", "* ", "", "• "))
        return f"{self.topped()}\n" + "\n".join(mark + one.line for one in some)

    def numbered(self, some: Sequence[Fact]) -> str:
        """A heading and a numbered list of sentences."""
        return f"{self.topped()}\n\n" + "\n".join(
            f"{number}. {one.sentence}" for number, one in enumerate(some, 1)
        )

    def sections(self, some: Sequence[Fact]) -> str:
        """Some sentences under each of several headings."""
        parts, at = [], 0
        while at < len(some):
            size = self.rng.randint(1, 3)
            parts.append(
                f"## {self.heading()}\n\n" + " ".join(one.sentence for one in some[at : at + size])
            )
            at += size
        return "\n\n".join(parts)

    def mixed(self, some: Sequence[Fact]) -> str:
        """A paragraph, then a list."""
        half = len(some) // 2
        return f"{self.prose(some[:half])}\n\n{self.listed(some[half:])}".strip()

    def topped(self) -> str:
        """A heading as people write them."""
        title = self.heading()
        return self.rng.choice((f"# {title}", title.upper(), f"{title}:", f"**{title}**", title))

    def table(self, count: int) -> tuple[str, list[tuple[str, str]]]:
        """Rows of things with two or three columns, and questions about cells."""
        first, kind = self.rng.choice(
            (("Item", self.thing), ("Name", self.person), ("Room", lambda: self.of(PLACES)),
             ("Event", lambda: self.of(EVENTS)), ("Ingredient", lambda: self.of(FOODS)))
        )  # fmt: skip
        columns = self.rng.sample(
            (("Price", self.money, "How much is {a} {x}?"), ("Amount", lambda: str(self.rng.randint(1, 900)), "What is the amount for {x}?"),
             ("Date", self.date, "What is the date for {x}?"), ("Code", self.code, "What is the code of {a} {x}?"),
             ("Contact", self.person, "Who is the contact for {x}?"), ("Minutes", lambda: str(self.rng.randint(3, 180)), "How long is {a} {x}?"),
             ("Place", lambda: self.of(PLACES), "Where is {a} {x}?"), ("Colour", lambda: self.of(COLOURS), "What colour is {a} {x}?")),
            self.rng.randint(1, 3),
        )  # fmt: skip
        rows = {kind(): [value() for _, value, _ in columns] for _ in range(count)}
        heads = [first, *(head for head, _, _ in columns)]
        asked = []
        for row, values in rows.items():
            (head, _, form), value = self.rng.choice(list(zip(columns, values, strict=True)))
            article = "" if first in ("Name", "Ingredient") else "the"
            plain = f"What is the {head.lower()} of {article} {row}?"
            question = self.rng.choice(
                (form.format(a=article, x=row), plain, f"{row} {head.lower()}?")
            )
            asked.append((" ".join(question.split()), value))
        return self.drawn(heads, rows), asked

    def drawn(self, heads: Sequence[str], rows: dict[str, list[str]]) -> str:
        """A table in Markdown, with tabs, with commas, or as `column: value` lines."""
        lines = [[row, *values] for row, values in rows.items()]
        form = self.rng.choice(("markdown", "markdown", "tabs", "commas", "pairs", "json"))
        if form == "markdown":
            ruled = [heads, ["---"] * len(heads), *lines]
            return f"{self.topped()}\n\n" + "\n".join(f"| {' | '.join(one)} |" for one in ruled)
        if form == "pairs":
            return "\n".join(
                "; ".join(f"{head}: {cell}" for head, cell in zip(heads, one, strict=True))
                for one in lines
            )
        if form == "json":
            named = [dict(zip(map(str.lower, heads), one, strict=True)) for one in lines]
            return "\n".join(json.dumps(one, ensure_ascii=False) for one in named)
        joint = "\t" if form == "tabs" else ","
        return "\n".join(joint.join(one) for one in ([*heads], *lines))
