"""The words of the demo: written ones by theme, and invented ones that look like them. No sentences, no SQL.

A theme is a domain. Which themes tuning, validation and test may use is decided here, once; so is what pre-training
never sees.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Theme:
    """A domain's words: table names, text columns, number columns, and values of text columns."""

    name: str
    tables: tuple[str, ...]
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    values: tuple[str, ...]

    def words(self) -> set[str]:
        """Every single word of the theme; `harvest_year` counts as two."""
        names = self.tables + self.texts + self.numbers + self.values
        return {word for name in names for word in name.split("_")}


def _themes(text: str) -> tuple[Theme, ...]:
    themes = []
    for block in text.strip().split("\n\n"):
        name, body = block.split(":")
        tables, texts, numbers, values = (tuple(part.split()) for part in body.split("|"))
        themes.append(Theme(name, tables, texts, numbers, values))
    return tuple(themes)


TUNING_THEMES = _themes("""
farm: farms crops tractors orchards barns | soil owner village seed fence
| yield acres harvest_year rainfall cows | clay sandy wheat barley maize clover

harbour: ships docks cargoes captains ferries | flag route pilot berth hull
| tonnage crew_size draft speed departures | coastal northern steel wooden express idle

library: books authors readers shelves branches | title genre publisher language binding
| pages copies shelf_number borrowers print_year | poetry drama history Latin Norwegian leather

hospital: patients nurses wards surgeons clinics | diagnosis blood_type allergy doctor treatment
| age pulse beds visits dose | asthma fever stable urgent pollen chronic

school: pupils teachers classes lessons exams | subject mentor classroom hobby textbook
| grade absences seats points homework_hours | algebra biology geometry chess drawing French

football: players teams matches coaches stadiums | position league club nickname sponsor
| goals wins capacity fouls shirt_number | defender striker keeper amateur veteran reserve

airline: flights airports stewards airlines gates | destination origin aircraft terminal cabin
| delay passengers altitude runway_length fare | Boeing delayed cancelled domestic charter boarding

bakery: cakes ovens bakers recipes loaves | flavour topping flour shape filling
| sugar calories baking_time slices price | vanilla lemon cherry almond round square

bank: accounts cards customers payments loans | currency account_type adviser segment purpose
| balance interest fee credit_limit deposits | savings dollar euro private frozen business

railway: trains stations tracks conductors wagons | line engine platform operator signal
| distance_km stops tickets minutes_late axles | diesel electric freight regional night steam

zoo: animals cages keepers parrots lions | species diet habitat temper enclosure
| weight legs lifespan cubs meals | desert savanna herbivore tame wild nocturnal

theatre: plays actors stages costumes operas | role director scene venue composer
| acts audience rehearsals premiere_year encores | comedy tragedy hero villain silk velvet

software: servers bugs releases developers projects | severity status component reporter protocol
| uptime commits memory version_number errors | critical minor open closed backend Linux

hotel: rooms hotels guests bookings suites | city outlook breakfast room_type chef
| nights floor rating stars pool_depth | double single seaside garden vegan balcony
""")

VALIDATION_THEMES = _themes("""
mining: mines miners shafts drills quarries | metal region foreman ore_grade rock
| depth output workers tunnels blasts | copper nickel granite marble sunken flooded

fashion: dresses shoes designers shops fabrics | colour size_label season material brand
| stock discount heel_height sales buttons | red linen cotton summer autumn striped
""")

KNOWN_TEST_THEMES = _themes("""
museum: paintings museums sculptures curators exhibits | artist style gallery frame donor
| painted_year visitors width insurance lamps | baroque bronze portrait landscape restored abstract

weather: storms sensors forecasts glaciers floods | county cloud wind_direction alert observer
| temperature humidity pressure snowfall gusts | cloudy foggy westerly severe mild tropical

police: cases detectives suspects prisons arrests | crime witness weapon judge district
| fine sentence_years clues bail fingerprints | theft fraud arson guilty innocent unsolved

music: songs albums bands concerts singers | instrument label producer key_signature mood
| duration tempo streams chart_rank awards | jazz folk violin acoustic cheerful major

building: bridges towers builders cranes contracts | architect site contractor foundation permit
| height budget storeys span bolts | concrete brick approved pending suspended arched
""")

NEW_TEST_THEMES = _themes("""
astronomy: comets telescopes planets galaxies moons | constellation astronomer orbit_class spectrum hemisphere
| brightness diameter rings mass craters | elliptical spiral icy rocky dwarf eclipsing

brewing: beers breweries barrels taverns hops | yeast malt aroma brewmaster glassware
| bitterness alcohol litres vintage bottles | amber smoky lager stout hazy unfiltered

beekeeping: hives beekeepers queens swarms apiaries | nectar breed meadow wax parasite
| honey drones stings combs larvae | lavender acacia docile Carniolan blossom heather

cycling: cyclists races bicycles sprints climbs | jersey manufacturer tyre_kind country mechanic
| gears laps gradient wattage podiums | carbon titanium aluminium junior rookie gravel

gaming: games gamers quests guilds dungeons | console faction difficulty avatar studio
| level lives coins bosses achievements | multiplayer puzzle legendary cooperative arcade retro
""")

PRETRAINING_THEMES = TUNING_THEMES + VALIDATION_THEMES + KNOWN_TEST_THEMES
TEST_THEMES = KNOWN_TEST_THEMES + NEW_TEST_THEMES

# SQL would read these as keywords, and a reader as part of the sentence.
_KEYWORDS = """
abort about above action added after along also alter alternatively always analyze anything anywhere arranged attach
attached autoincrement average before begin below besides between beyond biggest bottom broken cascade case cast check
collate column combined commit complete compute conflict connected constraint could count create cross current
database default deferrable deferred delete desc descending detach detail different differing distinct down drop each
else equal escape exactly except excess exclude exclusive exist exists explain fail failing falling fewer filter first
following foreign from full generated get give glob greatest group groups having high higher highest ignore immediate
index indexed individual inferior initially inner insert instead integer intersect into isnull join joined just larger
largest last least left less like limit list look lower lowest many match materialized maximum mean minimum more most
natural need nothing notnull null nulls number offset only order other others outer over overall partition plan please
plus pragma preceding primary print query raise range records recursive references regexp reindex related release
rename replace restrict return returned returning right rising rollback rows same savepoint say select separate short
show slightest smaller smallest split starting summed table take tell temp temporary text than that then they through
tied ties time top total transaction trigger typical unbounded under unequal union unique update using vacuum values
view virtual want what when where which whole whose window with within without
"""
_NEVER_INVENTED = frozenset(_KEYWORDS.split())
_ONSETS = ["b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "qu"]
_ONSETS += ["r", "s", "sh", "st", "t", "tr", "v", "w", "z"]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ou", "oo"]
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "x"]


@lru_cache(maxsize=1)
def _pretraining_words() -> tuple[str, ...]:
    return tuple(sorted({word.lower() for theme in PRETRAINING_THEMES for word in theme.words()}))


@lru_cache(maxsize=1)
def _whole_words() -> tuple[str, ...]:
    """Also the words of questions: the head of `different` comes in `difficulty` as well."""
    return tuple(sorted({*_pretraining_words(), *(word for word in _NEVER_INVENTED if len(word) > 3)}))


@lru_cache(maxsize=1)
def _chain() -> dict[str, str]:
    """Two letters → the letters seen after them in the words of pre-training, as often as seen; `.` ends a word."""
    followers: dict[str, list[str]] = defaultdict(list)
    for word in _pretraining_words():
        padded = "^^" + word + "."
        for index in range(2, len(padded)):
            followers[padded[index - 2 : index]].append(padded[index])
    return {pair: "".join(letters) for pair, letters in followers.items()}


@lru_cache(maxsize=1)
def written_words() -> frozenset[str]:
    """All words of all themes in lower case: none of them is ever invented by chance."""
    themes = PRETRAINING_THEMES + NEW_TEST_THEMES
    return frozenset(word.lower() for theme in themes for word in theme.words())


def invent(rng: random.Random) -> str:
    """A lower-case word of 4 to 10 letters that is in no theme.

    40 % English-looking by pairs of letters, 35 % the head of one word and the tail of another, 25 % random syllables.
    """
    while True:
        (make,) = rng.choices((_from_chain, _from_halves, _from_syllables), (40, 35, 25))
        word = make(rng)
        if 4 <= len(word) <= 10 and word not in written_words() and word not in _NEVER_INVENTED:
            return word


def _from_chain(rng: random.Random) -> str:
    letters, chain = "^^", _chain()
    while len(letters) < 14:
        letter = rng.choice(chain[letters[-2:]])
        if letter == ".":
            break
        letters += letter
    return letters[2:]


def _from_halves(rng: random.Random) -> str:
    """Without these, the piece `geons` would come in `surgeons` only, and could not be copied in `dungeons`."""
    head, tail = rng.choice(_whole_words()), rng.choice(_whole_words())
    return head[: rng.randint(2, max(2, len(head) - 1))] + tail[-rng.randint(2, max(2, len(tail) - 1)) :]


def _from_syllables(rng: random.Random) -> str:
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((2, 2, 3))))
