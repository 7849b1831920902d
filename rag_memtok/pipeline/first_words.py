"""What people say first, and no passage can answer: a greeting, no word, what it is all about.

Each is told what is true of it, and what to ask instead.
"""

import re

from rag_memtok.documents.names import distinct_names
from rag_memtok.errors import NoUsableMemory
from rag_memtok.store.store import Store

NAMED = 5  # documents named before "and N more"
GREETING = re.compile(
    r"(hello|hi|hey|howdy|greetings|hola|hallo|moin|servus|bonjour|bonsoir|salut|ciao|ol[aá]|hej|"
    r"привет|здравствуйте|你好|您好|こんにちは|안녕하세요|thanks|thank you|gracias|danke|merci|"
    r"good (morning|afternoon|evening|day)|guten (morgen|tag|abend)|buen[oa]s (d[ií]as|tardes))"
    r"( there| everyone| all| again| how are you| qu[eé] tal)*"
)
MINE = r"(all )?(of )?(my|the|these|those|our|your|this)( stored| own| whole| entire)?"
THINGS = r"(notes|documents|docs|files|texts|papers|pdfs|store|collection|folder)"
ALL_ABOUT = re.compile(
    rf"what (is|are|s) {MINE} {THINGS}( all)? about|"
    rf"(what (is|are|s|stands)( there)?|tell me what is) (in|inside) {MINE} {THINGS}|"
    rf"what (do|does) {MINE} {THINGS} (say|contain|cover|tell me|have|talk about|deal with)|"
    rf"(please )?(summari[sz]e|describe|list) {MINE} {THINGS}|"
    rf"((give me )?an? )?(summary|overview) of {MINE} {THINGS}|"
    rf"(what|which) {THINGS} (are there|do you have|do i have|have i)|"
    r"what (do you know|do you have|is (all )?this( all)? about)|"
    r"de qu[eé] (tratan|hablan) (mis|los|las|estos|estas) (notas|apuntes|documentos|archivos)|"
    r"(worum geht es|was steht) in (meinen|den|diesen) (notizen|dokumenten|dateien|texten)|"
    r"de quoi parlent (mes|les|ces) (notes|documents|fichiers|textes)"
)
WHAT_FOR = re.compile(
    r"(please )?help( me)?|(who|what) are you|how (does this|do you) work|"
    r"what (can|do) you do|what can i (ask|do)( you)?( here)?|"
    r"(qu[eé]|que) puedes hacer|was kannst du|que peux tu faire"
)


def require_answerable(store: Store, question: str) -> None:
    """Refuses a question that no passage can answer.

    Raises:
        NoUsableMemory: it has no word, greets, or asks for what stands in no single passage.
    """
    require_words(question)
    words = " ".join(re.findall(r"[^\W_]+", question.casefold()))
    if GREETING.fullmatch(words):
        count, _ = _documents(store)
        raise NoUsableMemory(
            f"{question.strip()!r} asks for nothing; answers come from {count} in the store",
            remedy="ask what one of them says; rag-memtok list names them",
        )
    if ALL_ABOUT.fullmatch(words):
        count, names = _documents(store)
        raise NoUsableMemory(
            "answers are read from a few passages, and cannot say what all documents are about; "
            f"there are {count}: {names}",
            remedy="ask what one of them says; rag-memtok list names them all",
        )
    if WHAT_FOR.fullmatch(words):
        count, _ = _documents(store)
        raise NoUsableMemory(
            f"questions are answered from {count} in the store, with the place of the answer",
            remedy='rag-memtok ask "When does the warranty end?"; rag-memtok --help has the rest',
        )


def require_words(question: str) -> None:
    """Refuses a question without a letter or a digit.

    Raises:
        NoUsableMemory: it has none.
    """
    if not re.search(r"[^\W_]", question):
        raise NoUsableMemory(
            f"there is no word in {question.strip()!r}",
            remedy="ask in words, those of the documents if you know them",
        )


def nothing_found_error(store: Store) -> NoUsableMemory:
    """The error for a question that finds nothing."""
    try:
        _documents(store)
    except NoUsableMemory as empty:
        return empty
    return NoUsableMemory(
        "nothing in the store has to do with this question",
        remedy="ask in the words of the documents, or ingest what holds the answer",
    )


def _documents(store: Store) -> tuple[str, str]:
    """The number of documents in words, and the names of some.

    Raises:
        NoUsableMemory: there is none, or none that can be read.
    """
    documents = [(document.root, document.path) for document in store.documents(skip_damaged=True)]
    if not documents and store.damaged_documents():
        raise NoUsableMemory(
            "no document in the store can be read", remedy="rag-memtok verify names what is damaged"
        )
    if not documents:
        raise NoUsableMemory(
            "there is no document in the store", remedy="rag-memtok ingest FOLDER, then ask"
        )
    names = sorted(distinct_names(documents).values())
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    count = f"{len(names)} document{'s' * (len(names) != 1)}"
    return count, ", ".join([*names[:NAMED], *more])
