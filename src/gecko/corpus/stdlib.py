"""The embedded default corpus: the documentation strings of the running Python's standard library.

It is real text, it is on every machine, and it is useful to search. Every public module, class, function and
method with a documentation string of its own becomes one passage; the title is the qualified name with its
signature, the id is the qualified name.

The walk imports nearly two hundred modules, so it runs in a child process: ``python -m gecko.corpus.stdlib``
prints one JSON object a line, and :func:`read_stdlib` reads it. Nothing it imports stays in the caller.
"""

import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

from gecko.core.errors import CorpusError
from gecko.core.records import Passage

MIN_CHARS = 60
SOURCE = "python-stdlib"

# os.path is one of these two, by platform; its names are shown as people write them.
PATH_MODULE = os.path.__name__

# Importing these acts (a browser opens, a poem is printed, a window is made, setuptools puts itself in the place of
# distutils) or brings in test code; posix, nt and the path modules are documented as os and os.path.
SKIPPED = frozenset(
    {"antigravity", "this", "idlelib", "turtledemo", "test", "lib2to3", "pydoc_data", "ensurepip", "distutils"}
    | {"posix", "nt", "genericpath", *({"posixpath", "ntpath"} - {PATH_MODULE})}
)
SKIPPED_PARTS = frozenset({"tests", "test", "__main__", "idle_test"})


def _module_names() -> list[str]:
    names = []
    for top in sorted(sys.stdlib_module_names):
        if top.startswith("_") or top in SKIPPED:
            continue
        names.append(top)
        module = _import(top)
        for path in getattr(module, "__path__", ()):
            for info in pkgutil.walk_packages([path], prefix=f"{top}.", onerror=lambda _: None):
                parts = info.name.split(".")
                if not any(part.startswith("_") or part in SKIPPED_PARTS for part in parts):
                    names.append(info.name)
    return names


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # a module of another platform, or without its shared library
        return None


def _doc(owner_vars: dict[str, object]) -> str:
    """The object's own documentation: ``vars()`` sees no inherited string, ``inspect.getdoc`` would."""
    doc = owner_vars.get("__doc__")
    return inspect.cleandoc(doc).strip() if isinstance(doc, str) else ""


class _Name(str):
    """A default value that is shown by its name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _private_by_name(parameter: inspect.Parameter) -> inspect.Parameter:
    """Show a default that is this machine's own by its name: ``cgi`` has all of ``os.environ``, secrets included."""
    for name, value in (("os.environ", os.environ), ("sys.executable", sys.executable)):
        if parameter.default is value:
            return parameter.replace(default=_Name(name))
    return parameter


def _signature(obj: object) -> str:
    try:
        signature = inspect.signature(obj)  # type: ignore[arg-type]
        shown = [_private_by_name(parameter) for parameter in signature.parameters.values()]
        text = str(signature.replace(parameters=shown))
    except Exception:  # builtins may carry a signature text that does not evaluate (curses); then there is none
        return ""
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # a default value's address is another one in each process


def _members(prefix: str, cls: type) -> Iterator[tuple[str, str, str]]:
    for name, raw in sorted(vars(cls).items()):
        if name.startswith("_"):
            continue
        member = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if isinstance(member, type):
            if member.__qualname__ == f"{cls.__qualname__}.{name}":
                yield from _class(f"{prefix}.{name}", member)
        elif callable(member) or isinstance(member, property) or inspect.isdatadescriptor(member):
            doc = getattr(member, "__doc__", None)
            if isinstance(doc, str):
                signature = _signature(member) if callable(member) else ""
                yield f"{prefix}.{name}", signature, inspect.cleandoc(doc).strip()


def _class(name: str, cls: type) -> Iterator[tuple[str, str, str]]:
    yield name, _signature(cls), _doc(dict(vars(cls)))
    yield from _members(name, cls)


def _walk() -> Iterator[tuple[str, str, str]]:
    """Yield (qualified name, signature, documentation), in the order of names, repeats included."""
    modules = _module_names()
    public = set(modules)
    for module_name in modules:
        module = _import(module_name)
        if module is None:
            continue
        shown = "os.path" if module_name == PATH_MODULE else module_name
        yield shown, "", _doc(vars(module))
        for name, obj in sorted(vars(module).items()):
            if name.startswith("_") or not (inspect.isclass(obj) or inspect.isroutine(obj)):
                continue
            home = getattr(obj, "__module__", None)
            # Imported from another public module: it is documented there. From a private one (_io, _json), or
            # from this package's own submodule (asyncio.runners): here, under the name people write.
            if home in public and home != module_name and not home.startswith(f"{module_name}."):
                continue
            if inspect.isclass(obj):
                yield from _class(f"{shown}.{name}", obj)
            else:
                doc = obj.__doc__
                yield f"{shown}.{name}", _signature(obj), inspect.cleandoc(doc).strip() if doc else ""


def _records() -> Iterator[dict[str, str]]:
    seen_ids: set[str] = set()
    seen_texts: set[str] = set()
    for name, signature, text in _walk():
        if len(text) < MIN_CHARS or name in seen_ids or text in seen_texts:
            continue
        seen_ids.add(name)
        seen_texts.add(text)
        yield {"id": name, "title": name + signature, "text": text}


def read_stdlib() -> Iterator[Passage]:
    """Yield the standard library's documentation as passages, in a fixed order for one Python version.

    Raises CorpusError: the child process failed; its last line of error output is in the message.
    """
    # -P: a queue.py in the working folder must not be taken for the standard library's.
    command = [sys.executable, "-P", "-W", "ignore", "-m", "gecko.corpus.stdlib"]
    # A fixed hash seed: the repr of a set or frozenset default in a signature depends on it.
    env = dict(os.environ, PYTHONHASHSEED="0", PYTHONIOENCODING="utf-8")
    done = subprocess.run(command, capture_output=True, env=env, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
        raise CorpusError(f"reading the standard library's documentation failed: {last[0]}")
    for line in done.stdout.decode("utf-8").splitlines():
        yield Passage(source=SOURCE, **json.loads(line))


def main() -> None:
    """Print the passages as JSON lines; whatever an import prints goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    for record in _records():
        out.write(json.dumps(record) + "\n")
    out.flush()
    os._exit(0)  # some modules leave threads or exit handlers behind


if __name__ == "__main__":
    main()
