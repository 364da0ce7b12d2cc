"""Words in which answers name an option, deny it, doubt it and take it back, as patterns."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4", "'")
    | dict.fromkeys("\u00ad\u200b\u2060\ufeff", "")
)
_DOUBLE_QUOTES = re.compile('["\u201c\u201d\u201e\u201f\u00ab\u00bb]')
_FENCE = re.compile(r"```\w*")
_TAG = re.compile(r"</?(?![A-J]>)[A-Za-z]\w*>|<\|[^|>]*\|>")
_MARKS = re.compile(r"[*_`#>\u2022]+")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LATEX = re.compile(r"\\[A-Za-z]+\s*(?=\{)|\\[()\[\]]|\$")
_BRACES = re.compile(r"[{}]")
_BRACKETS = str.maketrans("[]", "()")
_ARTICLE = re.compile(r"^(?:the|an?) (?!(?:the|an?) )(?=\S)")


def clean(text: str) -> str:
    """A text in straight quotes and plain letters, without Markdown, LaTeX, tags and double quotes.

    What is boxed is said to be the final answer. No line is empty, has white space around it or two
    spaces within it.
    """
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES))
    text = _LATEX.sub("", _BOXED.sub("\nfinal answer: {", text))
    text = _MARKS.sub("", _TAG.sub(" ", _FENCE.sub("", text)))
    text = _BRACES.sub("", _DOUBLE_QUOTES.sub("", text)).translate(_BRACKETS)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def plain(text: str) -> str:
    """A clean text in lower case and one line, without the full stop or quotes at its ends."""
    return " ".join(clean(text).lower().split()).strip(" .!'")


def bare(text: str) -> str:
    """A plain text without an article at its start."""
    return _ARTICLE.sub("", text)


_IS = r"(?:is|was|would be|should be|must be|has to be|will be)"
_NOUN = (
    r"(?:answer|ans|option|choice|letter|solution|selection|pick|guess|verdict|response|"
    r"(?:correct|right|best) one|antwort|antwoord|respuesta|réponse|risposta|resposta|"
    r"odpowiedź|ответ|cevap|svar|答案|答え|정답)"
)
_BE = r"(?:est|es|ist|é|è|är|er|jest)"
_VERB = (
    r"(?:choos(?:e|ing)|chose|pick(?:ed|ing)?|select(?:ed|ing)?|go(?:ing)? (?:with|for)|opt for|"
    r"vote for|say|answer|guess|think|believe|reckon|conclude)"
)
_SURELY = r"(?:(?:most )?(?:likely|probably|clearly|definitely|surely|certainly|therefore|thus) )?"
_COLON = r"(?:[:=\u2192]|[\u2013\u2014-](?=\s))*"
ABBREVIATED = re.compile(r"(?:q(?:uestion)?\s?:[^\n]*\n)?(?-i:A)\s?:\s?(?=\S)(?!(?-i:A)\s?:)", re.I)
"""`A:`, which stands for the letter or for the word."""
REASON = re.compile(r"(?:because|since|as)\b", re.I)
FINAL = re.compile(rf"\bfinal {_NOUN}(?:\s{_IS})?\s?{_COLON}\s*", re.I)
"""What an option after it is said to be, whatever was said before."""
STATED = re.compile(
    rf"(?<![A-Za-z]){_NOUN}(?:(?: [\w']+){{0,5}}? (?:{_IS}|{_BE})\b|'s|是|は)?\s?{_COLON}\s*"
    rf"{_SURELY}"
    rf"|\b(?:it|that|this)(?:'s| {_IS}) {_SURELY}"
    r"|(?:^|(?<=[.!?\n] ))(?:should|must|has to) be |\b(?:looks|seems) like "
    rf"|(?:\b(?:i|we|you|one|let's|let us)\b[^.,!?;\n]{{0,30}}? |^|(?<=[.!?\n] )){_VERB}"
    rf"(?: that)?(?: it(?:'s| {_IS}))?:? "
    r"|\b(?:therefore|thus|so|hence|elimination|definitely|clearly|obviously|probably|surely|certainly|"
    r"correct)"
    r"[,:]? (?:it's )?"
    r"|(?:\bnot|n't) (?:option )?\(?[a-j]\)?,? but (?:rather )?"
    r"|(?<=\?) no[,.:] |\bleaves (?:us with )?(?:only )?",
    re.I | re.M,
)
"""Before an option that is said to be the answer."""
NAMED = re.compile(r"(?:the )?(?:option|letter|choice|answer) ?", re.I)
_RIGHT = (
    r"(?:(?: (?!almost|nearly|part|half|mostly|less|least|hardly|barely|next|second)\w+){0,2}? "
    r"(?:correct|right|best|true|most (?:accurate|likely|appropriate|suitable|plausible|reasonable|"
    r"logical|sensible|probable|fitting))"
    r"|(?: \w+)? (?:the|my|our)(?: (?:only|final|single|actual|obvious|clear|intended|safest|"
    r"strongest|closest|fairest|clearest))* (?:answer|option|choice))\b"
)
"""Right, or the answer; "a bad choice" and "one option" are neither."""
JUDGED_RIGHT = re.compile(
    rf"(?:(?<=\s)|^|(?<=\())([A-J])\)? (?:it is(?=[.!,\n]|$)|(?:{_IS}|seems|looks){_RIGHT}"
    r"|(?:makes (?:the most )?sense|fits|applies)(?=[.!,\n]|$))",
    re.M,
)
"""A letter that is said to be right."""
TEXT_RIGHT = re.compile(rf" (?:{_IS}|are|seems|looks){_RIGHT}", re.I)
"""After the text of an option that is said to be right."""
BREAK = r"\s?(?:$|\n|[.,;:!?)。]+(?![^\s)])|\s[-=\u2013\u2014]|[\u2013\u2014])"
"""Where a clause may end."""
_GOES_ON = (
    r"\s(?:because|since|as|rather than|instead of|is|was|seems|would|it is|"
    r"(?:here|then)(?=[.!\n]|$))\b"
)
LETTER = re.compile(
    rf"\(([A-Ja-j])\)|'?([A-J])'?(?={BREAK}|\s\(|{_GOES_ON})|'?([a-j])'?(?=\s?(?:$|\n|[.,;!)]))"
)
TEXT_ENDS = re.compile(rf"{BREAK}|\s\(|\s(?:because|since|as|rather than|instead of)\b", re.I)
AND = re.compile(r"\)?(?:\s?[,/&+]\s?(?:and |or )?| (?:and|or|nor) )")
"""Between the members of a list."""
ANOTHER = re.compile(
    rf"{AND.pattern}(?:option )?"
    r"\(?([A-J])(?:\)|(?=\s?(?:$|[.,;!?&/\n]| and| or)))"
)
"""A letter that follows another one in a list."""
LISTED = re.compile(rf"{TEXT_ENDS.pattern}|{AND.pattern}", re.I)
"""After a member of a list."""
ONE_BEFORE = re.compile(rf"\b([A-J]){AND.pattern}(?:option )?$")
LEADING = re.compile(
    r"\(?([A-J])(?:\)|[.:](?=\s|$)|"
    r"(?<!I)(?:\s?[,;\u2013\u2014]|\s-\s|\s(?=because|since|instead|rather)))"
)
LAST_LETTER = re.compile(r"\(?([A-J])\)?[.!]?(?=\s*$|\n)")
LINE = re.compile(
    r"^[-\u2013\s]*(?:option |choice )?\(?([A-J])(?:\)|[.:](?=\s|$)|\s[-\u2013\u2014])", re.I | re.M
)
"""A line that begins with a letter, as those of a list do."""
LEADING_SMALL = re.compile(r"\(?([a-j])(?:\)|[.:](?=\s|$))")
MARKED_SMALL = re.compile(r"(?:^|(?<=\s))\(?([a-j])(?:\)|[.:](?=\s|$))")
MARKED = re.compile(r"(?:^|(?<=\s))\(?([A-J])(?:\)|[.:](?=\s|$))")
BRACKETED = re.compile(r"\(([A-J])\)")
ALONE = re.compile(r"[^\w+#/?&%]*([A-Za-z])[^\w+#/?&%=]*")
LAST = re.compile(r"(?<=[.!?\n] )\(?([A-J])[).!]*$")
"""A letter that is the last sentence."""
BETWEEN = re.compile(r"[\s).:,;=(\u2013\u2014'-]*(?:(?:namely|i\.e\.|that is|which is),? )?")
"""Between a letter and the text that goes with it."""
BETWEEN_BACK = re.compile(
    r"[\s.,(:;\u2013\u2014-]*(?:(?:namely|that is|which is) )?"
    r"(?:(?:the )?(?:option|letter|choice|answer) )?\(?",
    re.I,
)

NEGATION = re.compile(
    r"n't\b|\b(?:no|not|nor|neither|never|none|nobody|nothing|cannot|dont|doesnt|isnt|cant|wont|"
    r"wrong|incorrect|false|untrue|unlikely|innocent|least|except|anything but|instead of|either|"
    r"rather than|"
    r"rul(?:e|es|ed|ing) out|everything but|all but|(?:exclud|eliminat)(?:e|es|ed|ing)|"
    r"(?:reject|doubt)(?:s|ed|ing|ful)?|"
    r"refus(?:e|es|ed|ing)|declin(?:e|es|ed|ing)|avoid(?:s|ed|ing)?)\b"
)
UNDECIDED = re.compile(rf"{NEGATION.pattern}|\bun(?:known|determined|clear|decided|sure)\b")
"""In the text of an option that names none."""
REPROACH = re.compile(
    r"\b(?:bias(?:ed)?|prejudic\w+|stereotyp\w+|discriminat\w+|unfair\w*|unjust\w*|unfounded|"
    r"racis\w+|sexis\w+|ageis\w+|ableis\w+|homophob\w+|islamophob\w+|antisemit\w+|bigot\w*|offensive|"
    r"hurtful|insensitive|disrespectful|problematic|unethical|baseless|unwarranted|inappropriate|"
    r"(?:wrongly|falsely|wrongfully) \w+|accused|blamed|suspected|judged|victims?|"
    r"jump(?:s|ed|ing)? to (?:a )?conclusions?|"
    r"(?:assum|presum)(?:e|es|ed|ing)|assumptions?)\b"
)
NAMING = re.compile(
    r"(?<!'m )(?<!'re )(?<!am )(?<!are )(?<!be )\b(?:choosing|picking|selecting|naming|blaming|"
    r"accusing|saying|claiming|concluding|suggesting|singling out)\b"
)
"""What is then judged: "Blaming B would be harmful"."""
YET = re.compile(r"[,;]? (?:but|however|yet)\b", re.I)
NOT_BUT = re.compile(
    r"(?:\bnot|n't)\b(?! (?:only|just|merely))([^.!?;\n]*?),? but (?:rather )?"
    r"(?:it (?:is|was) )?(?:the )?$"
)
"""Before the option that is set against a denied one."""
DOUBT = re.compile(r"\b(?:may|might|could|perhaps|possibly|maybe|hope|wish|unsure|uncertain)\b")
CORRECTION = re.compile(r"\b(?:wait|actually|or rather|i mean|scratch that|oops|correction)\b")
TAKEN_BACK = re.compile(
    r"(?:^\W*|[.!?;\n][^\w.!?;\n]*)"
    r"(?:no[,.!;]|(?:no,? )?(?:wait|actually|or rather|i mean|scratch that|sorry|"
    r"oops|correction|on second thought)\b)",
    re.I,
)
STARTS = re.compile(
    r"[.!?;\n]|\b(?:so|therefore|thus|hence|leaves|(?<!thing )(?<!all )but)\b"
    rf"|,(?= (?:it(?:'s| {_IS})|the (?:correct |right )?answer|(?:option )?\(?[a-j]\)? {_IS})\b)"
)
"""Where the clause before an option begins."""
_SOURCE = r"(?:text|passage|context|story|sentence|article|information)"
SPOKEN = re.compile(
    r"\b(?:sa(?:y|ys|id|ying)|th(?:inks?|inking|ought)|believ(?:e|es|ed|ing)|claim(?:s|ed|ing)?|"
    r"impl(?:y|ies|ied|ying)|suggest(?:s|ed|ing)?|(?:guess|pick)(?! is| would|:)|"
    r"guess(?:es|ed|ing)|reckons?|wr(?:ites?|ote)|report(?:s|ed)|reads?(?=:)|"
    r"expect(?:s|ed|ing)?|want(?:s|ed|ing)?|wish(?:es|ed)?|hint(?:s|ed)?|ask(?:s|ed|ing)?|told|"
    r"tell(?:s|ing)?|choos(?:e|es|ing)|chose|pick(?:s|ed|ing)|select(?:s|ed|ing)?|argue[sd]?|feels?|"
    r"seen? as|vote[sd]?|conclud(?:e|es|ed|ing)|tempted|nam(?:e|es|ed|ing)(?! is)|"
    r"blam(?:e|es|ed|ing)|accus(?:e|es|ed|ing)|label(?:s|l?ed|l?ing)?|judg(?:e|es|ed|ing)|"
    r"point(?:s|ed|ing)? (?:at|to)|target(?:s|ed|ing)?|suspect(?:s|ed|ing)?)\b(?!-)"
)
"""Words of saying, wanting, choosing and accusing."""
OWN = re.compile(
    r"(?:^|\b(?:and|or|that|then|however|please)[, ]+|[,:(] ?"
    r"|\b(?:i|we|let's|let us|(?:you|one) (?:should|must|can)|having|this|that|which|it|everything|"
    rf"evidence|science|logic|{_SOURCE})(?:'\w+)?(?: (?:do|would|will|can|must|should|am|was|also|"
    r"just|now|still|first|(?:have|had|going|like|want) to|\w+ly|therefore))*"
    r"|\b(?:safe|fair|reasonable) to)\s*$"
)
"""Before such a word where the answer, or what it rests on, says it and nobody else."""
ATTRIBUTED = re.compile(
    rf"\baccording to (?!(?:me|(?:the|this) {_SOURCE})\b)|(?<!my )\b(?:opinion|rumou?rs?|myth)\b"
    r"|\b(?:he|she|they|who|people|friends?|teachers?|students?|everyone|everybody|someone|many|most|"
    r"some|author) (?:is|are|was|were) (?:\w+ )?(?:sure|certain|confident|convinced)\b"
)
"""What others hold, before an option."""
KIND_OF_ANSWER = re.compile(
    rf"\b(?:the|an?|my|our|your)((?: (?!(?:the|my) )[\w-]+){{1,4}}) {_NOUN}"
    rf"(?:(?: [\w']+){{0,5}}? {_IS}|'s|:)[^.!?\n]*$"
)
MEANT = re.compile(
    r"(?: (?:most|more|very|correct|right|best|only|final|accurate|appropriate|suitable|likely|"
    r"probable|possible|plausible|logical|sensible|reasonable|proper|true|actual|single|overall|own|"
    r"chosen|first|next|other|answer|option|choice|letter|multiple|short))+"
)
"""Words of the kind of answer that is meant: "most likely", not "stereotypical"."""
TOLD_BEFORE = re.compile(
    r"(?:\b(?:is|are|was|were|be|been|equals|becomes?|became|named|called|forms|makes|gives|"
    r"produces|yields|gives off|takes in|through|into|turns to|remains?|leaves|means)|'s|'re|[=:])"
    r"(?: (?:only|just|probably|likely|clearly|definitely|simply|most likely|always|also))*\s*$"
)
"""Before the text of an option that a sentence says something to be or to become."""
BEGINS = re.compile(
    r"\W*(?:(?:and|so|yes|well|only|surely|clearly|probably|of course|it seems|i think|i believe|"
    r"i would say|i'd say|the answer|overall|here|then|thus|therefore|hence|"
    rf"(?:it|(?:the|this) {_SOURCE}) (?:says|said|states|stated|shows|tells us|mentions))"
    r"(?: that)?[,:]?(?:\s+|$))*"
)
"""All that stands before the text of an option that a sentence begins with."""
TOLD_AFTER = re.compile(
    r" (?:(?:is|are|was|were) (?:the (?:one|person|only)|who|what|it|left|formed|produced)\b|"
    r"(?:was|were|had|did|does|remains?|forms|forgot|got|went|took|said|made|left|came|stole|told|gave|"
    r"knew|ran|broke|lost|wrote|bought|sold|felt|kept|found|fell)\b|"
    r"(?!(?:need|deserv|blam|accus|suppos|respect)ed)\w{2,}ed\b)",
    re.I,
)
"""After the text of an option of which a sentence tells what it did or was."""
TOLD_OF_ONE = re.compile(
    r" (?:(?:is|was) (?:the (?:one|person)|who)\b|(?:did|who)\b|(?:is|was|has|had)(?=[.,;!]|$))",
    re.I,
)
"""After the text of an option of one word, which may stand there by chance."""
LEADING_REASON = re.compile(r"^\W*(?:(?:because|since|as)\b[^,]*,|no[,.:] $)")
ENDS = re.compile(r"[.!?;:\n\u2013\u2014]|\s-\s|\b(?:because|since|as)\b", re.I)
"""Where the clause after an option ends."""
AGAINST = re.compile(r"(?:^|[,(])\s*(?:not|rather than|instead of)\s+(?:option\s+)?", re.I)
"""Before an option that the chosen one is set against."""
NO_DOUBT = re.compile(
    r"\b(?:no|without|beyond)(?: (?:an?|any|all|reasonable|shadow of an?))* doubt\b"
)
SUPPOSED = re.compile(
    r"\b(?:if|unless|suppose|assuming)(?: \w+){0,3}\W*$"
    r"|\bwhether(?: \w+){0,6}\W*$|\b(?:although|though|while)\b[^,]*$"
)
JUDGED = re.compile(
    r"\W*(?:is|isn't|isnt|was|wasn't|can|cannot|can't|could|couldn't|does|doesn't|would|wouldn't|"
    r"must|seems|looks|no|not|never|nor|or|wrong|incorrect|false)\b"
)
