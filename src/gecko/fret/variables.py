"""What else is asked of a query than that it fits its passage: persona, length, difficulty, language, kind of task.

The prompt's file names the variables and words them (``prompts/generate_varied.toml``), ``generate.variables`` says which
values are drawn, and how often. A draw depends on the query's id alone, and so on seed passage, round, prompt, settings and
the run's seed: a run that was stopped, shared out or grown draws the same, and nothing has to be kept.

The kind of a query is a variable, too: a prompt of several kinds (``prompts/generate_kinds.toml``) has one of its prompts
read for each, and the weights of its file where the settings give none.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from gecko.core.errors import ConfigError
from gecko.core.files import digest, hash_fraction
from gecko.core.records import Passage
from gecko.corpus.language import likeliest_of
from gecko.prompts import KIND, VALUE, Prompt, Variable, shares, shielded

LANGUAGE, SAME = "language", "same"
SETTING = f"generate.variables.{LANGUAGE} with {SAME}"
VARIED, BY_KIND = "generate_varied", "generate_kinds"


def varied(prompt: Prompt, settings: Mapping[str, Mapping[str, float]], languages: Sequence[str] = ()) -> Prompt:
    """P_QG with the weights of ``generate.variables``, which become a part of its hash; without any, as it is.

    ``languages`` are those of the corpus, where they are known: a passage's own is then named for the value ``same``.
    Raises ConfigError: the prompt has no such variable, or no such kind.
    """
    if not settings:
        return prompt
    known = {variable.name for variable in prompt.variables}
    if unknown := sorted(settings.keys() - known):
        raise ConfigError(
            f"generate.variables.{unknown[0]}: the prompt {prompt.name!r} has "
            f"{'only ' + ', '.join(sorted(known)) if known else 'no variables'}; set prompts.generate = "
            f"{BY_KIND if unknown[0] == KIND else VARIED!r}, or add "
            f"[variables.{unknown[0]}] to a prompt file of your own"
        )
    if strange := sorted(settings.get(KIND, {}).keys() - dict(prompt.kinds).keys()) if prompt.kinds else []:
        raise ConfigError(
            f"generate.variables.{KIND}: the prompt {prompt.name!r} has no kind {strange[0]!r}; "
            f"its kinds are {', '.join(dict(prompt.kinds))}"
        )
    weights = {name: shares(drawn) for name, drawn in sorted(settings.items())}
    among = tuple(sorted(languages)) if settings.get(LANGUAGE, {}).get(SAME) else ()
    return replace(
        prompt,
        variables=tuple(replace(one, weights=weights.get(one.name, one.weights)) for one in prompt.variables),
        languages=among,
        hash=digest(prompt.hash, json.dumps(weights), *among),
    )


def draw(prompt: Prompt, query_id: str) -> dict[str, str]:
    """The value of each variable for one query; empty where none is drawn."""
    return {one.name: _value(one, query_id) for one in prompt.variables if one.weights}


def _value(variable: Variable, query_id: str) -> str:
    spot = hash_fraction(query_id, variable.name)
    *ends, _ = accumulate(weight for _, weight in variable.weights)  # the last is 1 but for rounding
    return variable.weights[bisect_right(ends, spot)][0]


def worded(prompt: Prompt, drawn: Mapping[str, str], passage: Passage) -> str:
    """What the prompt says of the drawn values: the text for its slot.

    Raises CorpusError: the passage's own language is to be named, and the package that tells it is missing.
    """
    said = []
    for variable in prompt.variables:
        if variable.name in drawn:
            value = drawn[variable.name]
            if (variable.name, value) == (LANGUAGE, SAME) and prompt.languages:
                value = likeliest_of(prompt.languages, passage.text, SETTING) or SAME
            said.append(variable.text.replace(VALUE, variable.phrases.get(value, value)))
    return shielded(prompt, "".join(said))
