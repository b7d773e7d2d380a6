# ruff: noqa: E501, RUF001 (patterns and tables, with the signs that people type)
"""Words by which replies join, choose and reject options, in the languages of the usual benchmarks."""

import re

# Words that may follow the label A or I and do not make it a word.
AFTER_LABEL = "or|and|because|since|as|is|was|for|which|with|due|given|by|it|we|from|seems|looks|would|must|should|but|over|beats|fits|fails|works|remains|matches"

_AND = r"(?:\b(?:or|and|oder|und|ou|et|o|y|e|veya|ve|hoặc|và)\b|и|или|和|或|と|または|か|또는|या)"
LISTED = re.compile(
    rf"[)\]*_]*(?:[^\S\n]*|\s*(?:[,/&、;；+|]\s*)?(?:[(\[]?and/or\s|[(\[]?{_AND})?\s*(?:or\s+)?(?:(?:maybe|perhaps|possibly)\s+)?(?:[Oo]ption\s+)?)[*_(\[]*"
)
"""All that stands between two labels of a list; space alone is enough in a line."""

LONGEST_LISTED = 40  # signs

CONCLUSION = (
    r"(?i:\b(?:therefore|thus|hence|so|consequently|choose|select|pick|chose|selected|say|guess|go\s+with|prefer|leaving|leaves|correct|"
    r"right|best|conclude|it\s+is|it's|must\s+be|seems\s+to\s+be|only|matches|also\s+ist|richtig\s+ist|chọn)\b"
    r"|选择|選擇|选|選|应选|正确|因此|所以|显然|[，,。]\s*(?:即|故)|只有|[→⇒]|=>|####)"
)
FILLER = r"(?:[\s,:*_(\[]|(?i:option|choice|answer|the|that|is|it|must|be|one|to|only|remaining|with|as)\b|的是|是|应该|选项|答案|为)*"

OPTION_IS = (
    r"(?i:option|choice|opci[óo]n|opzione|opção|alternativa|alternative|вариант|विकल्प|选项|選項|lựa\s+chọn)"
    r"(?i:\s+(?:correcta?|corretta|correta))?(?i:\s+(?:is|ist|est|es|è|é)(?:\s+la|\s+a)?|\s*[:：是为])*\s*[*_(\[]*"
)
"""Before a label; after it, what is no rejection."""

ANSWER_LAST = r"(?i:answer|choice|option)\b[^.\n]*?\b(?i:is)\s+[*_(\[]*"
"""Before a label that ends a line: the answer, after much between, is C."""

RIGHT = (
    r"[)\]*]*(?:\s+(?i:is|must\s+be)\s+(?:the\s+)?(?i:correct|right|true|best|only|answer|one)\b|\s+(?i:remains|fits|works|matches|holds|is\s+left)\b"
    r"|\s+(?i:richtig|ist\s+richtig|doğru)\b|\s*(?:[가이은는]|[がは])?\s*(?:정답|맞|正解|正しい)|\s*(?:项|選項|选项)?\s*(?:是|为|才是)?\s*(?:正确|正確|对的|正解))"
)

_NOT = r"(?:not|\w*n['’]t|never)\s+(?:choose|pick|select|go\s+with|say)|neither\s+is|(?:(?:can|could|must|may|wo|should|would)(?:n['’]t|['’]t|\s*not)|not)\s+be"
_REJECTS = (
    r"anything\s+but|not|never|neither|nor|except(?:\s+for)?|without|rul(?:e|es|ed|ing)\s+out|exclud\w+|eliminat\w+|reject\w*|discard\w*|dismiss\w*"
    r"|isn['’]?t|aren['’]?t|than|unlike|instead\s+of|(?:wrong|incorrect|false)\s+(?:answer|option|choice|one)\s+is"
    r"|nicht|kein\w*|no\s+es|n['’]est\s+pas|non\s+è|não\s+é|не|ikke|inte|niet"
)
BEFORE_REJECTED = re.compile(
    rf"(?i:\b(?:{_NOT}|{_REJECTS})\s+(?:the\s+)?(?:option\s+|choice\s+|answer\s+|letter\s+)?|\b[A-Z]\)?\s+(?:over|beats)\s+|prefer\s+\S+\s+to\s+"
    r"|(?:不是|并非|不选|不選|排除|ليس)\s*(?:选项)?)[\s(\[*]*$"
)

_WRONG = r"wrong|false|incorrect|tempting|out|not|eliminated|ruled|impossible|invalid"
AFTER_REJECTED = re.compile(
    rf"[)\]*]*(?:(?i:\s+(?:is|are|was|looks|seems)\s+(?:both\s+|all\s+|also\s+|clearly\s+|the\s+)?(?:{_WRONG})\b|\s+(?:fails?|cannot|can['’]t|isn['’]t|aren['’]t)\b"
    r"|\s*[.?]\s*No\b[.!]?\s*$|\s*[(:–—-]+\s*(?:incorrect|wrong|false|no)\b|\s+(?:ist|est|es|è|é)\s+(?:nicht|falsch|faux|fausse|fals[ao]|incorrect[ao]|pas|sbagliat\w|errad\w)\b"
    r"|\s+(?:неверн|неправ|не\s|нет\b)|\s+(?:değil|yanlış))|[.:]*\s*[❌✗✘]"
    r"|\s*(?:项|項|选项)?\s*(?:也|都|均|是|为)?\s*(?:不对|不對|不正确|不正確|不符|不成立|不可能|不合|错|錯|不是(?=\s*(?:答案|正确|对|$|[，。,.])))"
    r"|\s*(?:は|が|가|이|은|는)?\s*(?:정답|正解)?이?\s*(?:ではな|じゃな|違|間違|誤|不正解|아니|아닙|아님|틀|오답))"
)

CORRECTED = re.compile(
    r"(?i:(?:\.{3}|…|[.,;!?—–-])\s*(?:(?:oh|hmm|um)[,.]?\s*)?(?:wait|actually|no(?=\s*[,.:;!])|correction|scratch\s+that|on\s+second\s+thought)\b[\s,.:;!—–-]*)"
)
"""What stands between an answer and the one that takes its place."""

TEXT_BEFORE_REJECTED = re.compile(
    r"(?:\b(?:not|isnt|arent|(?:can ?not|cant|could ?not|must ?not) be|except(?: for)?|never|nor|anything but|ruled? out|rather than|instead of|nicht|keine?)|不是|不选|不選)\s*$"
)
TEXT_AFTER_REJECTED = re.compile(r"\s*(?:(?:is|are|was) (?:wrong|incorrect|false|not|out)\b|isnt\b|fails\b|no$)")
"""The same around an option's text, as `plain` leaves them."""

THEREFORE = re.compile(r"(?i)\b(?:therefore|thus|hence|conclude(?:\s+that)?)\b")
