"""Penn Treebank tokens as the COCO caption metrics use them, without Java.

pycocoevalcap tokenises with `edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase` of CoreNLP 3.4.1 and then
drops punctuation. The rules below were found by giving that program many short texts and looking at what it makes of
them; `benchmarks/tokenizer.py` counts how often the two agree. Like it, `tokenize` takes at each place the rule that
reads furthest, the first of those that read equally far, and skips what no rule knows (emoji, for one).
"""

from __future__ import annotations

import re
from collections.abc import Callable

NAME = "alignlab PTB tokenizer 1 (Python; after Stanford CoreNLP 3.4.1)"

# What pycocoevalcap leaves out. Its list has -LRB- and the like too, but the text is lower-cased by then: brackets stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Letters and digits: Python's, without numbers that are no digits (½, ², ①), with marks that combine and dashes that join.
_A = r"(?:[^\W_²³¹¼-¾⁰-₎⅐-⅞①-⓿❶-➓㈀-㋿ªº]|[ªº˂-˅˒-˟\u0300-\u036f\u0900-\u0dff\u200c\u200d‐‑\u00ad])"
_L = rf"(?:(?![\d\u200c\u200d‐‑\u00ad]){_A})"
_Q = "['’\x92]"  # an apostrophe
_END = rf"(?!{_A})"
_SUFFIX = rf"{_Q}(?i:s|m|d|re|ve|ll){_END}"

# What can begin a sentence.
_OPENERS = (
    "(?:A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|"
    "One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You)"
)

# With their full stop, whatever follows: any case, not all in small letters, not all in capitals, before a number.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co
    col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs
    hon inc ind insp intl jan jos jr jul jun kan ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs
    ms msgr mt natl neb nev nov oct okla penn pfc ph.d ph plc pres prof profs pvt rd rep reps rev rt sen sens sep sept
    seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wm wyo"""
_CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
_SMALL_ABBREVIATIONS = "mfg mtg pte pty"
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"


def _any_case(words: str) -> str:
    return "(?i:" + "|".join(map(re.escape, words.split())) + ")"


def _capitalised(words: str) -> str:
    return "(?:" + "|".join(f"{word.title()}|{word.upper()}" for word in words.split()) + ")"


def _small(words: str) -> str:
    return "(?:" + "|".join(f"{word}|{word.title()}" for word in words.split()) + ")"


_PART = rf"(?:[dDoOlL]{_Q}(?={_A}{_A}))?{_A}+"  # of a hyphenated word: o'clock in mid-o'clock
_HYPHENATED = rf"(?:[dDoOlL]{_Q}(?={_A}{_A}))?{_A}(?:{_A}|[.,](?=[\w.,]*-))*(?:-|_(?!_))"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z][A-Za-z0-9]*){0,2}"

Rule = tuple[re.Pattern[str], Callable[[str], list[str]] | None]


def _keep(pattern: str) -> Rule:
    return re.compile(pattern), None


def _map(pattern: str, change: Callable[[str], list[str]]) -> Rule:
    return re.compile(pattern), change


def _cut(places: dict[str, int]) -> Callable[[str], list[str]]:
    return lambda token: [token[: places[token.lower()]], token[places[token.lower()] :]]


_SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_MONEY = {"¢": "cents", "£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">"}


def _escape(token: str) -> list[str]:
    """A token of several characters: no plain spaces, no bare round brackets in it."""
    return [token.replace(" ", "\u00a0").replace("(", "-lrb-").replace(")", "-rrb-")]


def _entity(token: str) -> list[str]:
    return [_ENTITIES[token[1:-1].lower()]] if token[1:-1].lower() in _ENTITIES else []


# Shorter than what other rules read, and right all the same.
_FIRST: list[Rule] = [
    _keep(rf"{_L}+?(?=[nN][`'’‘\x92][tT])"),  # do | n't
    _map(rf"[nN][`'’‘\x92][tT]{_END}", lambda token: [re.sub("[’\x92]", "'", token)]),
    _map(rf"{_SUFFIX}", lambda token: ["'" + token[1:]]),
    _keep("'[tT](?=(?i:is|was))"),
    _keep(rf"[A-Za-z](?=\. +{_OPENERS} )"),  # "plan B. The ..." ends a sentence, "B. Smith" does not
]
_RULES: list[Rule] = [
    _map(rf"(?i:cannot|gonna|gotta|lemme|gimme|wanna)(?!{_SUFFIX}){_END}", _cut(_SPLIT)),
    _keep(rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"),
    _keep(rf"\d{_A}*"),
    _keep(r"[+-]?(?:\d+(?:[.:,]\d+)*|(?:[.:,]\d+)+)"),
    _map(r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/⁄]\d{1,4}(?!\d)", _escape),
    _keep(rf"{_HYPHENATED}{_PART}(?:(?:-|_(?!_)){_PART})*"),
    _keep(rf"{_HYPHENATED}(?:{_A}+-)*(?:[A-Za-z]\.){{2,}}(?:-{_PART})*"),
    _keep(rf"{_SLASHED}(?:/{_SLASHED}){{1,2}}"),
    _keep(r"(?:[A-Za-z]\.)+"),
    _keep(rf"{_any_case(_ABBREVIATIONS)}\.|{_capitalised(_CAPITAL_ABBREVIATIONS)}\.|{_small(_SMALL_ABBREVIATIONS)}\."),
    _keep(rf"{_any_case(_BEFORE_NUMBERS)}\.(?=\s*\d)"),
    _keep(rf"(?!\d+\.){_A}(?:{_A}|[._-](?={_A}))*\.(?=[,;:])"),  # any word before these
    _keep(r"\d+\.(?=;)"),
    _keep(r"\d+(?:\.\d+)*\.[xX](?:\.[xX])?(?=[ ,.]|$)"),
    # apostrophes inside words
    _keep(rf"[dlnoA-HJ-XZ]{_Q}{_L}{_L}+"),
    _keep(rf"{_L}+[aeiouyAEIOUY]{_Q}[aeiouAEIOU]{_L}*"),
    _keep(
        rf"(?i:{_L}*e{_Q}er|{_L}*qu{_Q}{_L}+|ev{_Q}ry|li{_Q}l|cap{_Q}n|nat{_Q}l|c{_Q}mon|c{_Q}est|ol{_Q}){_END}|s{_Q}mores"
    ),
    _keep(rf"[djlDJL](?!{_SUFFIX}){_Q}|[yY]{_Q}(?={_L})"),
    _keep(rf"{_Q}(?i:n{_Q}|(?:n(?![.-])|em|till?|cause){_END})"),
    _keep(rf"{_Q}(?:[2-9]0s{_END}|\d\d(?= |$))"),
    # names of things on the net
    _keep(r"(?i:https?)://[^\s\"<>|()]+[^\s\"<>|().!?,]"),
    _keep(r"(?:[a-z0-9]+\.)+(?:com|org|net|edu)(?:/[^\s\"<>|()]+[^\s\"<>|().!?,])"),
    _keep(r"[A-Za-z0-9][^\s\"<>|()]*@[^\s\"<>|().]+(?:\.[^\s\"<|().]+)*"),
    _keep(r"<[A-Za-z0-9][^\s\"<>|()]*@[^\s\"<>|()]+>"),
    _keep(rf"#{_L}+|@[A-Za-z_][A-Za-z0-9_]*"),
    _map(r"<!--.*?-->|<[/!?]?[A-Za-z][\w.:-]*(?: +[A-Za-z][\w:-]*(?:=(?:\"[^\"<>]*\"|'[^'<>]*'))?)* *[/?]?>", _escape),
    _map(r"&(?i:amp|lt|gt|quot|apos|nbsp|ndash|mdash|md);", _entity),
    _keep(r"&(?:[aeiouAEIOU](?:acute|grave|uml)|#\d+);"),
    _map(r"[A-Z]+(?:(?:&(?:amp;)?|\+)[A-Z]+)+", lambda token: [token.replace("&amp;", "&")]),
    _keep(r"[cC]\+\+|[cCfF]#"),
    # numbers of telephones, money, fractions
    _map(
        r"(?:\(\d{2,3}\)[ \u00a0-]?|(?:\+\d{1,2}[ \u00a0-])?\d{2,4}[ \u00a0-](?:\d{2,4}[ \u00a0-])?)"
        r"\d{3,4}[ \u00a0-]\d{3,5}(?!\d)",
        _escape,
    ),
    _keep(r"[A-Z]+\$"),
    _map(r"[$¢£¤₠€\x80]", lambda token: [_MONEY.get(token, token)]),
    _map(r"[¼½¾⅓⅔]", lambda token: [_FRACTIONS[token]]),
    # faces
    _map(rf"[<>]?[:;=][-o*']?[()@DOP\[\]\\dp{{|]{_END}", _escape),
    _map(r"[\^>~=<'-]_[\^>~=<'-]|\([\^x>~=<'-][_.]?[\^x>~=<'-]\)", _escape),
    # signs
    _map(r"[()\[\]{}]", lambda token: [_BRACKETS[token]]),
    _keep(r"[!?]+|\*+|#+|@+|_+|-{5,}|<<|>>"),
    _keep(
        r"[%&+=<>|~^\\/¡¥-©¬®-´¶-¹¿×÷;·‖‗‚„-‣‰-‸※‾-⁂⁄⁰⁴-⁾₀-₎₤℀℁℃-℆℈℉℔№-℘℞-℣℥℧℩℮℺℻⅀-⅄⅊-⅍⅏⅕-⅞←-⯿、。〒・"
        r"！-／：-＠［-｀｛-･￠￡￥￦־׀׃׆׳״؀-؃؆-،؛؞؟٪٭۔।॥฿๏]"
    ),
]
# Most of a caption: a small-letter word between spaces that no rule takes apart or joins to its neighbour.
_PLAIN = re.compile(r"(?!cannot|gonna|gotta|lemme|gimme|wanna)[a-z]+(?= |$)")


def tokenize(caption: str) -> str:
    """One caption -> its tokens in small letters with a space between, punctuation left out.

    Line breaks count as spaces. A token may hold a no-break space ("1 1/2" is one). Anything can be given; an empty
    string comes back for a caption without words.

    >>> tokenize("The dog's bowl isn't on a well-known 3.5-inch (red) mat.")
    "the dog 's bowl is n't on a well-known 3.5-inch -lrb- red -rrb- mat"
    """
    text = re.sub(
        r"[\x00-\x20\x7f\x85\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff\U00010000-\U0010ffff]", " ", caption
    )
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == " ":
            at += 1
        elif plain := _PLAIN.match(text, at):
            tokens.append(plain[0])
            at = plain.end()
        else:
            at = _read(text, at, tokens)
    words = (token.replace("\u00ad", "").lower() for token in tokens)
    return " ".join(word for word in words if word and word not in PUNCTUATION)


def _read(text: str, at: int, tokens: list[str]) -> int:
    """Add the tokens that begin at `at`, if any; where to go on."""
    best, change = None, None
    for rules in (_FIRST, _RULES):
        for pattern, what in rules:
            match = pattern.match(text, at)
            if match and (best is None or match.end() > best.end()):
                best, change = match, what
        if best is not None:
            break
    if best is None:
        return at + 1
    tokens.extend(change(best[0]) if change else [best[0]])
    return best.end()
