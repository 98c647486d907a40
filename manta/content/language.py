"""The template language: a small, closed part of Jinja2.

A template sees values, never objects. Names are the person's attributes (``first_name``) and the
links of ``GLOBALS``; ``a.b`` and ``a["b"]`` look a key up in a mapping and do nothing else, so
there is no way to Python's own attributes. Nothing can be called; filters are those of
``manta.content.filters``. A known attribute that a person lacks prints nothing, is false, and
equals the empty text; an unknown name is the lint's business before launch.

Limits, so that a hostile template fails its own message and nothing else:

- before parsing: source size, count of symbols, depth of blocks and brackets;
- before compiling: only the node types of ``_ALLOWED`` pass, loops run over lists and nest three
  deep, ``**``, calls, macros, imports, includes and block ``set`` do not exist;
- while rendering: a budget of steps (a loop costs its rounds times the size of its body, a filter
  its length), arithmetic on numbers up to 10^15 only, texts up to 65,536 characters, output up to
  1,000,000 characters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.visitor import NodeTransformer

from manta.content.environment import HTML, NAMES, TEXT
from manta.content.filters import FILTERS, NUMBER_MAX, TESTS, FilterError
from manta.errors import InvalidRequest
from manta.schema import ATTRIBUTE_NAME

SOURCE_CHARACTERS_MAX = 512_000
SYMBOLS_MAX = 20_000
SYMBOLS_PER_TAG_MAX = 150
BLOCK_DEPTH_MAX = 20
BRACKET_DEPTH_MAX = 8
LOOP_DEPTH_MAX = 3
NODES_MAX = 20_000
ASSIGNMENTS_MAX = 50
OUTPUT_CHARACTERS_MAX = 1_000_000
GLOBALS = ("unsubscribe_url", "view_url", "preferences_url", "confirm_url")
RESERVED_NAMES = frozenset({"loop", "self", "super", "caller", "varargs", "kwargs", "_"})

_OUTPUT_PIECES = 128
_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.For,
    nodes.If,
    nodes.Assign,
    nodes.Name,
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Concat,
    nodes.Compare,
    nodes.Operand,
    nodes.Keyword,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Pos,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
)
_REFUSED = {
    nodes.Call: "nothing can be called: use a filter",
    nodes.Macro: "macros are not part of the language",
    nodes.CallBlock: "call blocks are not part of the language",
    nodes.FilterBlock: "filter blocks are not part of the language: use {{ value|filter }}",
    nodes.AssignBlock: "block set is not part of the language: use {% set name = value %}",
    nodes.Include: "templates cannot include others",
    nodes.Import: "templates cannot import others",
    nodes.FromImport: "templates cannot import others",
    nodes.Extends: "templates cannot extend others",
    nodes.Block: "blocks are not part of the language",
    nodes.Pow: "** is not part of the language",
    nodes.Dict: "groups of values cannot be written in a template",
    nodes.With: "with is not part of the language: use set",
}


class TemplateError(InvalidRequest):
    """A template is wrong or broke a limit; ``line`` is 1-based in the part named by ``path``."""

    code = "template"

    def __init__(
        self, message: str, *, path: str = "", line: int = 0, expected: str = "", **details: Any
    ) -> None:
        super().__init__(message, path=path, expected=expected, line=line, **details)
        self.line = line


# -- before parsing --------------------------------------------------------------------------------


def symbols(source: str, path: str) -> list[tuple[int, str, str]]:
    """The template's symbols as (line, kind, text); joined, the texts are the source.

    Raises ``TemplateError`` where the source is over a limit that protects the parser.
    """
    if len(source) > SOURCE_CHARACTERS_MAX:
        raise TemplateError(
            f"the template has {len(source):,} characters",
            path=path,
            expected=f"at most {SOURCE_CHARACTERS_MAX:,}",
        )
    found: list[tuple[int, str, str]] = []
    try:
        for symbol in TEXT.lexer.tokeniter(source, None):
            found.append(symbol)
            if len(found) > SYMBOLS_MAX:
                raise TemplateError(
                    f"the template has over {SYMBOLS_MAX:,} symbols", path=path, line=symbol[0]
                )
    except TemplateSyntaxError as error:
        raise TemplateError(str(error.message), path=path, line=error.lineno) from None
    _check_depth(found, path)
    return found


def _check_depth(found: Iterable[tuple[int, str, str]], path: str) -> None:
    blocks = brackets = in_tag = 0
    opens = False
    for line, kind, text in found:
        if kind in ("variable_begin", "block_begin"):
            in_tag = brackets = 0
            opens = kind == "block_begin"
        elif kind not in ("data", "whitespace", "variable_end", "block_end"):
            in_tag += 1
        if kind == "name" and opens and in_tag == 1:
            blocks += text in ("if", "for")
            blocks -= text in ("endif", "endfor")
        if kind == "operator":
            brackets += text in "([{"
            brackets -= text in ")]}"
        if blocks > BLOCK_DEPTH_MAX or brackets > BRACKET_DEPTH_MAX:
            raise TemplateError(
                "the template is nested too deep",
                path=path,
                line=line,
                expected=f"{BLOCK_DEPTH_MAX} blocks and {BRACKET_DEPTH_MAX} brackets at most",
            )
        if in_tag > SYMBOLS_PER_TAG_MAX:
            raise TemplateError(
                f"a tag has over {SYMBOLS_PER_TAG_MAX} symbols", path=path, line=line
            )


# -- before compiling ------------------------------------------------------------------------------


def parse(source: str, path: str, html: bool) -> nodes.Template:
    """The tree of a part as its author wrote it, checked. Raises ``TemplateError``."""
    symbols(source, path)
    tree = parse_unchecked(source, path, html)
    for line, problem in problems(tree):
        raise TemplateError(problem, path=path, line=line)
    return tree


def parse_unchecked(source: str, path: str, html: bool) -> nodes.Template:
    """The tree of a source that passed ``symbols``, whatever is in it."""
    try:
        return (HTML if html else TEXT).parse(source)
    except TemplateSyntaxError as error:
        raise TemplateError(str(error.message), path=path, line=error.lineno) from None
    except (RecursionError, ValueError, OverflowError) as error:
        reason = str(error)[:120]
        raise TemplateError(f"the template cannot be parsed: {reason}", path=path) from None


def problems(tree: nodes.Template) -> list[tuple[int, str]]:
    """What in the tree is not part of the language, as (line, sentence)."""
    found: list[tuple[int, str]] = []
    count = assignments = 0
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while stack:
        node, loops = stack.pop()
        count += 1
        if count > NODES_MAX:
            found.append((node.lineno, f"the template has over {NODES_MAX:,} parts"))
            break
        loops += isinstance(node, nodes.For)
        assignments += isinstance(node, nodes.Assign)
        reason = _problem(node, loops, assignments)
        if reason:
            found.append((node.lineno or 0, reason))
        if not isinstance(node, nodes.Assign | nodes.For):
            stack.extend((child, loops) for child in node.iter_child_nodes())
        elif isinstance(node, nodes.Assign):
            stack.append((node.node, loops))
        else:
            stack.extend((child, loops) for child in node.iter_child_nodes(exclude=("target",)))
    return sorted(found)


def _problem(node: nodes.Node, loops: int, assignments: int) -> str:
    if not isinstance(node, _ALLOWED):
        return _REFUSED.get(type(node), f"{type(node).__name__} is not part of the language")
    if isinstance(node, nodes.For):
        if loops > LOOP_DEPTH_MAX:
            return f"loops nest at most {LOOP_DEPTH_MAX} deep"
        if node.recursive:
            return "recursive loops are not part of the language"
        return _name_problem(node.target)
    if isinstance(node, nodes.Assign):
        if assignments > ASSIGNMENTS_MAX:
            return f"at most {ASSIGNMENTS_MAX} values can be set"
        return _name_problem(node.target)
    if isinstance(node, nodes.Name) and node.name != "loop":
        return _name_problem(node)
    if isinstance(node, nodes.List | nodes.Tuple):
        if not all(isinstance(item, nodes.Const) for item in node.items):
            return "a list in a template holds plain texts and numbers only"
    elif isinstance(node, nodes.Filter):
        return _filter_problem(node)
    elif isinstance(node, nodes.Test):
        if node.name not in HTML.tests:
            return _unknown("test", node.name, TESTS)
    elif isinstance(node, nodes.Getattr):
        if node.attr.startswith("_"):
            return "names that begin with _ cannot be reached"
    elif isinstance(node, nodes.Const):
        value = node.value
        if isinstance(value, int | float) and not abs(value) <= NUMBER_MAX:
            return f"numbers go up to {NUMBER_MAX:,}"
    return ""


def _name_problem(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        return "one plain name is needed here"
    if target.name in RESERVED_NAMES or not ATTRIBUTE_NAME.fullmatch(target.name):
        return f"{target.name[:40]!r} cannot be a name: small letters, digits and _ are used"
    return ""


def _filter_problem(node: nodes.Filter) -> str:
    if node.name not in FILTERS:
        return _unknown("filter", node.name, FILTERS)
    if node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
        return "a filter takes plain arguments"
    return ""


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:60], list(known), 1)
    hint = f": did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
    return f"there is no {kind} {name[:60]!r}{hint}"


def names_used(tree: nodes.Template) -> dict[str, int]:
    """The names that a part needs from outside, with the line of the first use."""
    used: dict[str, int] = {}
    bound: set[str] = set()
    # In document order: a name that is set binds only what follows, not its own expression.
    stack: list[tuple[nodes.Node | str, frozenset[str]]] = [(tree, frozenset())]
    while stack:
        node, inner = stack.pop()
        if isinstance(node, str):
            bound.add(node)
        elif isinstance(node, nodes.Name):
            if node.name not in inner and node.name not in bound:
                used.setdefault(node.name, node.lineno)
        elif isinstance(node, nodes.Assign):
            stack.append((_target(node), inner))
            stack.append((node.node, inner))
        elif isinstance(node, nodes.For):
            body = inner | {_target(node), "loop"}
            stack.extend((child, inner) for child in reversed(node.else_))
            stack.extend((child, body) for child in reversed(node.body))
            if node.test is not None:
                stack.append((node.test, body))
            stack.append((node.iter, inner))
        else:
            stack.extend((child, inner) for child in reversed(list(node.iter_child_nodes())))
    return used


def _target(node: nodes.Assign | nodes.For) -> str:
    return node.target.name if isinstance(node.target, nodes.Name) else ""


# -- compiling and rendering -----------------------------------------------------------------------


class _Guard(NodeTransformer):
    """Puts the run-time limits into the tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = (
            sum(1 for part in node.body for _ in part.find_all(nodes.Node)) + len(node.body) + 1
        )
        self.generic_visit(node)
        node.iter = _call_filter("_each", node.iter, [nodes.Const(weight)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call_filter("_concat", nodes.Tuple(node.nodes, "load"), [])


def _call_filter(name: str, node: nodes.Node, args: list[nodes.Expr]) -> nodes.Filter:
    filtered = nodes.Filter(node, name, args, [], None, None)
    filtered.set_lineno(node.lineno or 1, override=True)
    filtered.set_environment(node.environment or TEXT)
    return filtered


class Part:
    """One compiled part of a mail. ``line_of`` maps a compiled line to the author's."""

    def __init__(
        self, source: str, path: str, html: bool, line_of: Callable[[int], int] = lambda line: line
    ) -> None:
        """Compile a source whose author's form has passed ``parse``."""
        self.path = path
        self._line_of = line_of
        environment = HTML if html else TEXT
        tree = _Guard().visit(parse_unchecked(source, path, html))
        try:
            code = environment.compile(tree, path, f"<{path}>")
        except (TemplateSyntaxError, RecursionError, ValueError, SyntaxError) as error:
            raise TemplateError(
                f"the template cannot be compiled: {str(error)[:120]}", path=path
            ) from None
        self._template = environment.template_class.from_code(environment, code, {}, None)
        self._template.root_render_func.__globals__.update(NAMES)
        self._fixed: str | None = None
        if "{" not in source:
            self._fixed = self.render({})

    def render(self, variables: dict[str, Any]) -> str:
        """The part's text. ``variables`` holds ``_budget`` and cleaned plain values.

        Raises ``TemplateError`` where the template breaks a limit or misuses a value.
        """
        if self._fixed is not None:
            return self._fixed
        pieces: list[str] = []
        size = 0
        try:
            stream = self._template.root_render_func(self._template.new_context(variables, True))
            while chunk := list(islice(stream, _OUTPUT_PIECES)):
                text = "".join(chunk)
                size += len(text)
                if size > OUTPUT_CHARACTERS_MAX:
                    raise FilterError(f"the output is over {OUTPUT_CHARACTERS_MAX:,} characters")
                pieces.append(text)
        except Exception as error:  # whatever a template does fails its own message only
            raise self._failed(error) from None
        return pieces[0] if len(pieces) == 1 else "".join(pieces)

    def _failed(self, error: Exception) -> TemplateError:
        line = 0
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == f"<{self.path}>":
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        if isinstance(error, InvalidRequest):
            reason = error.message
        elif isinstance(error, FilterError):
            reason = str(error)
        else:
            reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]
        return TemplateError(reason, path=self.path, line=self._line_of(line) if line else 0)
