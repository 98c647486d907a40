"""The run-time half of the template language: what a render can touch, and what it costs.

``HTML`` and ``TEXT`` are Jinja2 sandboxes cut down further: an attribute is a key of a mapping and
never one of Python's, nothing can be called, arithmetic works on bounded numbers, and loops,
filters and joined texts draw on the render's ``Budget``. ``manta.content.language`` decides which
templates get this far.
"""

from __future__ import annotations

import html as entities
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import Undefined, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from manta.content.filters import (
    FILTERS,
    NUMBER_MAX,
    TESTS,
    TEXT_CHARACTERS_MAX,
    FilterError,
    show,
)

STEPS_MAX = 100_000

_SIZED = (str, list, tuple)
_LOOP_ATTRIBUTES = frozenset(
    {"index", "index0", "revindex", "revindex0", "first", "last", "length"}
)


class Missing(Undefined):
    """A value that the person lacks: prints nothing, is false, equals nothing but the empty."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other is None or other == "" or isinstance(other, Missing)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = Undefined.__hash__

    def __lt__(self, other: object) -> bool:  # type: ignore[override]
        return False

    __le__ = __gt__ = __ge__ = __lt__  # type: ignore[assignment]


class Budget:
    """Steps left for one render."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = STEPS_MAX

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise FilterError(
                f"the template takes more than {STEPS_MAX:,} steps: shorten its loops"
            )


class Loop:
    """A template's ``loop``, and what it runs over: a list, or what passed its condition."""

    __slots__ = ("_items", "index0")

    def __init__(self, items: Iterable[Any], undefined: Any) -> None:
        self._items = items if isinstance(items, list | tuple) else list(items)
        self.index0 = -1

    def __iter__(self) -> Iterator[tuple[Any, Loop]]:
        for item in self._items:
            self.index0 += 1
            yield item, self

    @property
    def index(self) -> int:
        return self.index0 + 1

    @property
    def revindex(self) -> int:
        return len(self._items) - self.index0

    @property
    def revindex0(self) -> int:
        return len(self._items) - self.index0 - 1

    @property
    def first(self) -> bool:
        return self.index0 == 0

    @property
    def last(self) -> bool:
        return self.index0 == len(self._items) - 1

    @property
    def length(self) -> int:
        return len(self._items)


# -- the environment -------------------------------------------------------------------------------


class _Generator(CodeGenerator):
    """Prints each value by one call, where Jinja2 takes three; see ``NAMES``."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        assert not frame.eval_ctx.volatile, "the language has no autoescape blocks"
        self.write("print_html(" if frame.eval_ctx.autoescape else "print_text(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"+", "-"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        value = None
        if isinstance(obj, Loop):
            if attribute in _LOOP_ATTRIBUTES:
                value = getattr(obj, attribute)
        elif isinstance(obj, Mapping):
            value = obj.get(attribute)
        return self.undefined(name=attribute) if value is None else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = None
        if isinstance(obj, Mapping):
            value = obj.get(argument) if isinstance(argument, str) else None
        elif isinstance(obj, list | tuple | str):
            if isinstance(argument, slice):
                return obj[argument]
            if isinstance(argument, int) and -len(obj) <= argument < len(obj):
                value = obj[argument]
        return self.undefined(name=str(argument)[:40]) if value is None else value

    def call(*_: Any, **__: Any) -> NoReturn:
        raise FilterError("nothing can be called")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _is_missing(left) or _is_missing(right):
            return self.undefined(name=operator)
        for value in (left, right):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FilterError(f"{operator} works on numbers; texts are joined by ~")
        if operator == "**" or abs(left) > NUMBER_MAX or abs(right) > NUMBER_MAX:
            raise FilterError(f"{operator} works on numbers up to {NUMBER_MAX:,}")
        if operator in ("/", "//", "%") and right == 0:
            raise FilterError("division by zero")
        result = self.binop_table[operator](left, right)
        if abs(result) > NUMBER_MAX:
            raise FilterError(f"{operator} gives a number over {NUMBER_MAX:,}")
        return result

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        if _is_missing(arg):
            return self.undefined(name=operator)
        if isinstance(arg, bool) or not isinstance(arg, int | float):
            raise FilterError(f"{operator} works on numbers")
        return self.unop_table[operator](arg)


def _print_html(value: Any) -> str:
    """A value as it stands in a page."""
    if type(value) is Markup:
        return value
    text = value if type(value) is str else show(value)
    if "&" in text or "<" in text or ">" in text or '"' in text or "'" in text:
        return escape(text)
    return text


def _print_text(value: Any) -> str:
    return value if type(value) is str or type(value) is Markup else show(value)


#: What a compiled template finds under these names, besides Jinja2's own.
NAMES = {"LoopContext": Loop, "print_html": _print_html, "print_text": _print_text}


def _is_missing(value: Any) -> bool:
    return value is None or isinstance(value, Undefined)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        size = len(value) if isinstance(value, _SIZED) else 0
        context.parent["_budget"].spend(1 + size // 64)
        try:
            return function(value, *args, **kwargs)
        except TypeError:
            raise FilterError(f"the filter {name} was given the wrong arguments") from None

    return guarded


@pass_context
def _each(context: Context, value: Any, weight: int) -> Any:
    """The list a loop runs over, paid for in advance."""
    if _is_missing(value):
        return ()
    if not isinstance(value, list | tuple):
        raise FilterError("a loop runs over a list")
    context.parent["_budget"].spend(len(value) * weight)
    return value


@pass_context
def _concat(context: Context, values: tuple[Any, ...]) -> str:
    texts = [show(value) for value in values]
    size = sum(map(len, texts))
    if size > TEXT_CHARACTERS_MAX:
        raise FilterError(f"~ would make a text of over {TEXT_CHARACTERS_MAX} characters")
    context.parent["_budget"].spend(1 + size // 64)
    return "".join(texts)


@pass_context
def _link(context: Context, value: Any, position: int) -> Markup:
    """An address that was known only after rendering: signed, kept, or made harmless."""
    url = entities.unescape(str(value)).strip()
    return escape(context.parent["_sign"](position, url))


def _finalize(value: Any) -> Any:
    return value if type(value) is str or type(value) is Markup else show(value)


def _environment(html: bool) -> _Environment:
    environment = _Environment(
        autoescape=html,
        undefined=Missing,
        finalize=_finalize,
        keep_trailing_newline=True,
        cache_size=0,
    )
    environment.globals.clear()
    environment.tests = {
        name: test
        for name, test in environment.tests.items()
        if name in TESTS or name in ("eq", "ne", "lt", "le", "gt", "ge", "in")
    }
    environment.filters = {name: _guarded(name, function) for name, function in FILTERS.items()}
    environment.filters["_each"] = _each
    environment.filters["_concat"] = _concat
    environment.filters["_link"] = _link
    return environment


HTML = _environment(html=True)
TEXT = _environment(html=False)
