"""Reads the tray weights that a KD-7 sends over its serial port, and says when the seed is dry.

Written by Yuki Sarandon for the trials at Oskelund. Since firmware 4.1.0 the dryer sends one line
every 20 seconds:

    TRAY,2,1873.5,38.1

that is the tray (1 is the top one, 6 the lowest), its weight in grams and the temperature in
degrees Celsius.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BAUD = 19_200  # fixed in the firmware; another rate gives rubbish, not silence
TRAYS = 6
EMPTY_TRAY_GRAMS = 912.0  # the steel tray; Sunniva's birch tray weighs 740
WINDOW = 45  # lines looked back at: a quarter of an hour
DRY_GRAMS_PER_HOUR = 1.5  # a tray that loses less than this counts as dry
TOO_HOT_CELSIUS = 43.0  # above this the run is stopped, whatever the program says


@dataclass(frozen=True)
class Reading:
    """One line from the dryer."""

    tray: int
    grams: float
    celsius: float


class BadLine(ValueError):
    """The line is not one that the dryer sends; usually the first one after plugging in."""


def parse(line: str) -> Reading:
    """Turns "TRAY,2,1873.5,38.1" into a Reading."""
    kind, *fields = line.strip().split(",")
    if kind != "TRAY" or len(fields) != 3:
        raise BadLine(line)
    tray, grams, celsius = int(fields[0]), float(fields[1]), float(fields[2])
    if not 1 <= tray <= TRAYS:
        raise BadLine(f"there is no tray {tray}")
    return Reading(tray, grams - EMPTY_TRAY_GRAMS, celsius)


def loss_per_hour(grams: list[float], seconds: float = 20.0) -> float:
    """The loss over the window, in grams an hour.

    A loss below zero means that somebody leans on the tray.
    """
    return (grams[0] - grams[-1]) / (seconds * (len(grams) - 1)) * 3600


def dry_trays(lines: Iterable[str]) -> Iterator[int]:
    """Yields each tray once, at the moment when it is dry.

    Stops with an error when the dryer gets too hot.
    """
    seen: dict[int, list[float]] = {}
    done: set[int] = set()
    for line in lines:
        reading = parse(line)
        if reading.celsius > TOO_HOT_CELSIUS:
            raise RuntimeError(
                f"{reading.celsius} degrees at tray {reading.tray}: switch the dryer off"
            )
        weights = seen.setdefault(reading.tray, [])
        weights.append(reading.grams)
        if len(weights) > WINDOW:
            weights.pop(0)
        if (
            reading.tray not in done
            and len(weights) == WINDOW
            and loss_per_hour(weights) < DRY_GRAMS_PER_HOUR
        ):
            done.add(reading.tray)
            yield reading.tray
