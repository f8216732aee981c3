"""`version.bind` in class CH, for operators who want their servers to say what they are."""

from typing import Final

from protocol.constants import AA, Class, Ede, Rcode, Type
from protocol.message import Question
from protocol.name import fold, from_text
from server.reply import Reply
from server.request import Refusal

_NAMES: Final = (from_text("version.bind."), from_text("version.server."))


def answer_version(question: Question, version: str | None, reply: Reply) -> bytes:
    """TXT with `version` at `version.bind` and `version.server`; REFUSED for others of the class, or without one."""
    if version is None or fold(question.name) not in _NAMES:
        raise Refusal(Rcode.REFUSED, "only class IN is served", ede=Ede.NOT_SUPPORTED)
    text = version.encode()[:255]
    builder = reply.builder((), flags=AA)
    if question.rtype in (Type.TXT, Type.ANY):
        builder.answer(question.name, Type.TXT, 0, bytes((len(text),)) + text, Class.CH)
    return reply.finish(builder, Rcode.NOERROR, ())
