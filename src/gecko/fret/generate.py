"""Step 1 of FRet: ``LLM(P_QG, p_seed) -> (task, query)``, both in one call.

What does not parse is dropped and counted by reason, and so is what the teacher refuses; nothing is mended. A query that
carries markup, repeats one of the prompt's examples, is only the passage's title or speaks of the passage teaches nothing
and is dropped, too.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gecko.config.stages import GenerateConfig
from gecko.core.counts import Counts
from gecko.core.files import digest
from gecko.core.records import Passage, Query
from gecko.fret.quality import OF_ITSELF, speaks_of_itself
from gecko.fret.seeds import Seed
from gecko.fret.variables import draw, worded
from gecko.llm.base import LanguageModel, Refusal, Sampling
from gecko.prompts import Prompt, shielded

MAX_QUERY_WORDS = 40
MAX_TASK_CHARS = 200
TITLE_ALONE, REPEATED = "title alone", "repeated"
# Why a text is dropped that does parse: for what its passage, or an earlier query, is.
OF_NO_USE = (TITLE_ALONE, REPEATED, OF_ITSELF)
_MARKUP = re.compile(r"[`<>{}|\\]|\*\*|__\w|https?://|^\s*[#*\-•]\s|\[[^\]]*\]\(")


@dataclass(frozen=True)
class Parsed:
    """A task and a query, or the reason why there is none."""

    task: str = ""
    query: str = ""
    reason: str = ""


def parse(text: str, passage: Passage, prompt: Prompt) -> Parsed:
    """Read one generated text: ``Task: …`` and ``Query: …`` on two lines; a prompt that ends in ``Task:`` gets the rest."""
    task, found, query = text.strip().removeprefix("Task:").partition("\nQuery:")
    task, query = task.strip(), query.strip()
    if not found:
        return Parsed(reason="no query line")
    if len(query) >= 2 and query[0] == query[-1] and query[0] in "\"'":
        query = query[1:-1].strip()  # quotation marks around the whole are the form of a quotation, not its content
    if not query or not task:
        return Parsed(reason="empty")
    if "\n" in query or "\n" in task:
        return Parsed(reason="more than one line")
    if any(re.search(rf"\b{re.escape(field)}:", query, re.IGNORECASE) for field in prompt.fields):
        return Parsed(reason="runs on")  # into the next example, on the same line
    if _MARKUP.search(query) or _MARKUP.search(task):
        return Parsed(reason="markup")
    if len(query.split()) > MAX_QUERY_WORDS or len(task) > MAX_TASK_CHARS:
        return Parsed(reason="too long")
    plain = _plain(query)
    if len(plain) < 4 or not re.search(r"[^\W\d_]{2}", query):
        return Parsed(reason="too short")
    if any(
        plain in (_plain(example.get("query", "")), _plain(example.get("passage", ""))) for example in prompt.examples
    ):
        return Parsed(reason="copied example")
    if plain in (_plain(passage.title), _plain(passage.title.partition("(")[0])):
        return Parsed(reason=TITLE_ALONE)
    if speaks_of_itself(query):
        return Parsed(reason=OF_ITSELF)
    return Parsed(task, query)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def query_id(passage_id: str, prompt: Prompt, seed: int, repeat: int = 0) -> str:
    """A query's id: the same seed passage, prompt, random seed and round always make the same one."""
    again = [str(repeat)] if repeat else []
    return f"q-{digest(passage_id, prompt.hash, str(seed), *again)[:12]}"


def generate(
    seeds: Sequence[Seed],
    passages: dict[str, Passage],
    teacher: LanguageModel,
    prompt: Prompt,
    config: GenerateConfig,
    seed: int,
    counts: Counts,
    written: Sequence[Query] = (),
) -> Iterator[Query]:
    """Write a query for each seed of one shard, in batches of ``config.batch`` if it is set.

    ``prompt`` is P_QG with the weights of its variables. Each text is drawn from its own generator, by the run's
    ``seed``. ``counts`` gets drops by reason and tokens. What is ``written`` already of this shard and of these seeds is
    not repeated.
    """
    before = teacher.usage.tokens
    seen = {_plain(query.text) for query in written}
    size = config.batch or max(len(seeds), 1)
    for start in range(0, len(seeds), size):
        batch = seeds[start : start + size]
        chosen = [passages[item.passage_id] for item in batch]
        ids = [query_id(item.passage_id, prompt, seed, item.round) for item in batch]
        drawn = [draw(prompt, identifier) for identifier in ids]
        asked = [worded(prompt, values, passage) for values, passage in zip(drawn, chosen, strict=True)]
        kinds = [prompt.of(values) for values in drawn]
        texts = _ask(teacher, kinds, chosen, asked, ids, config)
        for item, passage, identifier, kind, text in zip(batch, chosen, ids, kinds, texts, strict=True):
            if isinstance(text, Refusal):
                counts.drop(text.reason, f"passage {passage.id}: {text.said}")
                continue
            parsed = parse(text, passage, kind)
            if not parsed.reason and _plain(parsed.query) in seen:
                parsed = Parsed(reason=REPEATED)
            if parsed.reason:
                counts.drop(parsed.reason, text.strip() or "(nothing)")
                continue
            seen.add(_plain(parsed.query))
            yield Query(identifier, parsed.task, parsed.query, passage.id, teacher.name, item.split)
    counts.tokens += teacher.usage.tokens - before


def _ask(
    teacher: LanguageModel,
    prompts: Sequence[Prompt],
    passages: Sequence[Passage],
    asked: Sequence[str],
    ids: Sequence[str],
    config: GenerateConfig,
) -> list[str | Refusal]:
    """What the teacher writes for each passage; those that have the same prompt are decoded together."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt.hash, []).append(place)
    found: dict[int, str | Refusal] = {}
    for same in places.values():
        prompt = prompts[same[0]]
        sampling = Sampling(
            config.temperature,
            config.top_p,
            config.max_new_tokens,
            tuple(int(digest(ids[place])[:12], 16) for place in same),
        )
        shown = [shielded(prompt, passages[place].content) for place in same]
        wanted = [asked[place] for place in same]
        told = len(teacher.usage.refusals)
        texts = teacher.generate(prompt, shown, sampling, *([wanted] if any(wanted) else []))
        found |= dict(zip(same, texts, strict=True))
        found |= {same[refusal.place]: refusal for refusal in teacher.usage.refusals[told:]}
    return [found[place] for place in range(len(prompts))]
