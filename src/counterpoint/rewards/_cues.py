# ruff: noqa: E501, RUF001 (patterns and tables, with the signs that people type)
"""How replies announce their answer, in the languages of the usual benchmarks."""

import re

WORDS = """
answer réponse reponse antwort lösung respuesta resposta risposta ответ відповідь odpowiedź odpověď svar vastaus
antwoord cevap yanıt jawaban jawapan jawabannya jawapannya jibu impendulo tontu odgovor válasz răspuns απάντηση sagot idahun ìdáhùn idáhùn àdáhùn
đáp·án câu·trả·lời 答案 答え 答复 正解 解答 回答 答 정답 답변 답 الإجابة الجواب إجابة جواب תשובה پاسخ उत्तर উত্তর คำตอบ பதில் సమాధానం
"""
"""Words for "answer"; a point stands for the space inside one."""

_ADJECTIVES = r"final|finale|finala|correcta|correct|correcte|correta|corretta|richtige|النهائية|النهائي|الصحيحة|الصحيح|đúng|corect|yang\s+benar|náà|ที่ถูกต้อง|הנכונה"
_JOINTS = r"is|ist|lautet|es|est|é|è|są|to|là|är|er|है|είναι|هي|هو|は|が|是|为|為|應該是|应该是|은|는|이|ঃ|হল|হলো|ni|la|ithi|bi\s+mooy|adalah|ialah|je|este|คือ|आहे|היא|הוא|[–—]|-(?=\s)"
_MARK = r"[*_]{0,3}"
ANSWER = "|".join(re.escape(word).replace("·", r"\s") for word in sorted(WORDS.split(), key=len, reverse=True))
"""A pattern of the words for "answer"."""

# The word, a verb or a colon or both, and Markdown's marks anywhere between.
CUE = (
    rf"(?:{ANSWER}){_MARK}(?:\s*(?:{_ADJECTIVES}))?\s*(?::|：|=|(?:(?:would|should|must|might|seems\s+to)\s+be|(?:{_JOINTS})(?:(?<=[^\x00-\u024f])|(?![A-Za-z]))))"
    rf"\s*{_MARK}\s*(?:[:：=]\s*)?{_MARK}\s*"
)
"""A pattern (to be compiled with ``re.IGNORECASE``) of what stands before an announced answer."""

_LINE = re.compile(rf"(?<!wrong )(?<!incorrect )(?<!false ){CUE}([^\n]+)", re.IGNORECASE)
_AGAIN = re.compile(rf"\s*(?:the\s+)?(?:final\s+|correct\s+)?{CUE}", re.IGNORECASE)


def announced(text: str) -> list[str]:
    """The rests of the lines after such announcements, in order; nothing where there is none."""
    return [_innermost(line) for line in _LINE.findall(text)]


def is_announced(text: str) -> bool:
    """Whether a text begins with such an announcement."""
    return _AGAIN.match(text) is not None


def _innermost(line: str) -> str:
    """``Final answer: the answer is 5`` announces twice."""
    while match := _AGAIN.match(line):
        line = line[match.end() :]
    return line
