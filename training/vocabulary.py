"""What made-up notes are made of: words, an underscore for a space, and sentences.

inventions.py draws from them: another order, or a word more, gives other notes.
"""

THINGS = (
    "ladder lamp drill kettle tent kayak printer camera piano violin stove freezer mower canoe"
    " scooter helmet telescope projector trailer rucksack sewing_machine heat_pump fish_tank"
    " beehive parcel toolbox wheelbarrow extension_lead coffee_grinder bread_knife sleeping_bag"
    " microscope scanner router monitor keyboard hard_disk radio clock mirror wardrobe carpet"
    " curtain cupboard shelf desk armchair mattress generator water_filter air_pump chainsaw"
    " hammock paddle compass snow_chain rain_barrel hedge_trimmer smoke_alarm thermometer"
    " pressure_cooker soldering_iron label_printer"
).split()
PLACES = (
    "attic garage hall library workshop kitchen office barn shed loft basement gym canteen"
    " archive corridor porch cloakroom laundry studio greenroom boathouse reading_room"
    " meeting_room storeroom town_hall village_school station_square old_mill community_centre"
    " fire_station lecture_hall"
).split()
ROLES = (
    "chair secretary plumber electrician gardener landlord caretaker coach editor librarian"
    " cashier accountant translator architect inspector driver cook supervisor trainer vet"
    " optician tutor dentist's_assistant project_lead team_doctor sound_engineer youth_warden"
    " press_officer"
).split()
EVENTS = (
    "annual_meeting book_sale harvest_fair open_day fire_drill film_night chess_tournament"
    " inspection flea_market workshop lecture school_play regatta marathon wine_tasting"
    " staff_party audit recital blood_drive summer_camp quiz_night board_meeting bike_tour"
    " swimming_gala parents'_evening"
).split()
COLOURS = "dark_green navy_blue crimson ivory ochre grey turquoise violet maroon silver".split()
FOODS = (
    "flour sugar butter rice lentils spinach yeast cream oats walnuts raisins leeks carrots honey"
    " mushrooms olives cheese beans barley apples pears cocoa vinegar mustard"
).split()
CHORES = (
    "call_the_bank renew_the_passports order_new_filters sweep_the_chimney book_the_ferry"
    " return_the_keys write_the_minutes update_the_website collect_the_parcel pay_the_invoice"
    " change_the_locks print_the_posters empty_the_gutters check_the_tyres back_up_the_server"
    " send_out_the_invitations"
).split()
SETTINGS = (
    "timeout retries max_connections cache_size log_level batch_size port workers threshold"
    " interval queue_length page_size heartbeat buffer_kb backoff_ms ttl_hours min_replicas"
    " sample_rate"
).split()
# somebody ... a thing, and what somebody did with it
DEEDS = (
    ("repaired", "repair"),
    ("painted", "paint"),
    ("lent us", "lend us"),
    ("bought", "buy"),
    ("sold", "sell"),
    ("cleaned", "clean"),
    ("built", "build"),
    ("found", "find"),
    ("delivered", "deliver"),
    ("broke", "break"),
    ("tested", "test"),
    ("borrowed", "borrow"),
)
# what, because of what, and how that is asked
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
# sentence, line, question, and which of the values answers it
FOREIGN = {
    "es": (
        ("{a} cuesta {m}.", "{a}: {m}", "¿Cuánto cuesta {a}?", "m"),
        ("{a} vive en {b}.", "{a}, {b}", "¿Dónde vive {a}?", "b"),
        (
            "La reunión con {a} es el {d}.",
            "Reunión con {a}: {d}",
            "¿Cuándo es la reunión con {a}?",
            "d",
        ),
        ("El teléfono de {a} es {t}.", "{a}, tel. {t}", "¿Cuál es el teléfono de {a}?", "t"),
        ("El responsable de {a} es {b}.", "{a}: {b}", "¿Quién es el responsable de {a}?", "b"),
        (
            "Se necesitan {n} gramos de {a}.",
            "{n} gramos de {a}",
            "¿Cuántos gramos de {a} se necesitan?",
            "n",
        ),
    ),
    "de": (
        ("{a} kostet {m}.", "{a}: {m}", "Was kostet {a}?", "m"),
        ("{a} wohnt in {b}.", "{a}, {b}", "Wo wohnt {a}?", "b"),
        ("Der Termin bei {a} ist am {d}.", "{a}: {d}", "Wann ist der Termin bei {a}?", "d"),
        (
            "Die Telefonnummer von {a} ist {t}.",
            "{a}, Tel. {t}",
            "Welche Telefonnummer hat {a}?",
            "t",
        ),
        ("Um {a} kümmert sich {b}.", "{a}: {b}", "Wer kümmert sich um {a}?", "b"),
        ("Im Lager liegen {n} Stück {a}.", "{a}: {n} Stück", "Wie viele {a} liegen im Lager?", "n"),
    ),
    "fr": (
        ("{a} coûte {m}.", "{a} : {m}", "Combien coûte {a} ?", "m"),
        ("{a} habite à {b}.", "{a}, {b}", "Où habite {a} ?", "b"),
        (
            "Le rendez-vous avec {a} est le {d}.",
            "{a} : {d}",
            "Quand est le rendez-vous avec {a} ?",
            "d",
        ),
        ("Le numéro de {a} est le {t}.", "{a}, tél. {t}", "Quel est le numéro de {a} ?", "t"),
        ("{b} s'occupe de {a}.", "{a} : {b}", "Qui s'occupe de {a} ?", "b"),
        (
            "Il y a {n} {a} dans la cave.",
            "{a} : {n}",
            "Combien de {a} y a-t-il dans la cave ?",
            "n",
        ),
    ),
}
