"""Which language a text is in, told by its script and by small words that only one language has.

Lives here: a guess good enough to notice that a file mixes languages. Does not live here: a classifier. Libraries know
100 languages and more, but call every short text something; here a text that cannot be told is left out of the count.
"""

from __future__ import annotations

import re

LOOKED_AT = 600
"""Characters of a text that are looked at."""
_FEWEST_HAN = 10  # fewer Chinese characters alone may as well be a Japanese word
_ASIAN_WEIGHT = 3  # such a letter says about as much as three Latin ones

_LETTERS = re.compile(r"[^\W\d_]")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_SCRIPTS = {
    "Korean": re.compile("[\uac00-\ud7a3\u3131-\u318e]"),
    "kana": re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]"),
    "Chinese": re.compile("[\u4e00-\u9fff\u3400-\u4dbf]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Hebrew": re.compile("[\u05d0-\u05ea]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Hindi": re.compile("[\u0900-\u097f]"),
    "Bengali": re.compile("[\u0980-\u09ff]"),
    "Tamil": re.compile("[\u0b80-\u0bff]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
}
"""Name → its letters. Where several languages share a script (Cyrillic, Arabic) the script stands for them."""
_SMALL_WORDS = {
    "English": "the of and is that it for was with as are this you not what how my can to from does which when where"
    " who have has been there their would will should could do did your an by at or if its they he she we",
    "German": "der die das und ist in nicht ein eine einen dem den des mit auf für ich zu sich auch wie wird wurde"
    " welche welcher wo wer bei nach aus sind vom zum zur war im",
    "French": "de en la le les des et est une dans que qui pour pas sur avec vous je ce cette il elle nous sont au"
    " aux où quel quelle du été être",
    "Spanish": "de en la el los las es una que por con para se del lo al qué cuál cuándo dónde quién como más fue su"
    " está son cómo muy en sus",
    "Italian": "la il gli di è che un una per con non sono della del dei nel alla come più si ho lo questo quale"
    " quando dove chi stato",
    "Portuguese": "de os as é um uma que não com para do da dos das no na por se mais em você foi qual quando onde quem"
    " são ao",
    "Dutch": "de het een en van is dat der niet op te voor met zijn ik aan er ook in wat hoe welke wie bij maar"
    " werd naar om",
    "Polish": "nie na się do jest to że jak co po czy dla od tym są ale przez był",
    "Turkish": "ve bir bu için ile da de ne çok mi olarak daha gibi ben nasıl nedir kim hangi",
    "Swedish": "och att det som en är på av för var med den till inte om ett jag hur vad han",
    "Indonesian": "yang dan di ini itu dengan untuk tidak dari dalam adalah apa saya pada ke akan siapa bagaimana",
    "Vietnamese": "và của là có không được một những cho người trong này với các để như tôi gì",
}
_OF_WORD: dict[str, tuple[str, ...]] = {}
for _name, _words in _SMALL_WORDS.items():
    for _word in _words.split():
        _OF_WORD[_word] = (*_OF_WORD.get(_word, ()), _name)


def language(text: str) -> str | None:
    """The language of `text` by its English name (or its script's); None where it cannot be told.

    >>> [language(text) for text in ("Where is the card?", "카드가 아직 안 왔어요", "カードがまだ届きません")]
    ['English', 'Korean', 'Japanese']
    >>> language("CCO"), language("42")
    (None, None)
    """
    text = text[:LOOKED_AT]
    if text.isascii():
        return _by_words(text)
    counts = {name: len(letters.findall(text)) for name, letters in _SCRIPTS.items()}
    japanese = counts.pop("kana")
    han = counts["Chinese"]
    asian = {"Chinese": han + japanese, "Korean": counts["Korean"]}
    other = {name: count for name, count in counts.items() if name not in asian}
    rest = len(_LETTERS.findall(text)) - sum(asian.values()) - sum(other.values())
    weights = {name: _ASIAN_WEIGHT * count for name, count in asian.items()} | other
    name = max(weights, key=lambda each: weights[each])
    if weights[name] <= rest:
        return _by_words(text)
    if name == "Chinese":
        return "Japanese" if japanese else "Chinese" if han >= _FEWEST_HAN else None
    return name


def _by_words(text: str) -> str | None:
    """The Latin-script language whose small words occur most; None without two of them, or if two languages tie."""
    scores: dict[str, int] = {}
    for word in _WORDS.findall(text.casefold()):
        for name in _OF_WORD.get(word, ()):
            scores[name] = scores.get(name, 0) + 1
    if not scores:
        return None
    (best, most), *others = sorted(scores.items(), key=lambda item: -item[1])
    alone = not others or others[0][1] < most
    return best if alone and most >= 2 else None
