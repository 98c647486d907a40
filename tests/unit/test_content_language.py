"""The template language: what it can say, and that it can do nothing else."""

from __future__ import annotations

import pickle
import time
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.content.environment import Budget
from manta.content.language import (
    OUTPUT_CHARACTERS_MAX,
    SOURCE_CHARACTERS_MAX,
    Part,
    TemplateError,
    names_used,
    parse,
)
from manta.content.templates import clean_values

ROW: dict[str, Any] = {
    "first_name": "Zoë <b>",
    "points": 1234.0,
    "rate": 0.5,
    "vip": True,
    "joined": datetime(2025, 4, 1),
    "interests": ["lamps", "tea"],
    "orders": [{"item": "pot", "price": 12.5}, {"item": "cup", "price": None}],
    "big": list(range(1_000)),
    "long": "x" * 60_000,
}


def render(source: str, html: bool = False, row: dict[str, Any] | None = None) -> str:
    parse(source, "text", html)
    values = clean_values(ROW if row is None else row, ROW)
    values["_budget"] = Budget()
    return Part(source, "text", html).render(values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Hi {{ first_name }}", "Hi Zoë <b>"),
        ("{{ points }} {{ points|number }} {{ points|number(2) }}", "1234 1,234 1,234.00"),
        ("{{ rate * 2 + 1 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ -rate }}", "2 3 3 -0.5"),
        ("{{ vip }} {{ joined }} {{ joined|date('%-d %b %Y') }}", "true 2025-04-01 1 Apr 2025"),
        ("{{ interests|join(' and ') }} {{ interests|length }}", "lamps and tea 2"),
        ("{{ interests[0] }} {{ interests[-1] }} {{ interests[9] }}", "lamps tea "),
        ("{{ interests|first }}{{ interests|last }}", "lampstea"),
        ("{% for o in orders %}{{ loop.index }}:{{ o.item }};{% endfor %}", "1:pot;2:cup;"),
        ("{% for o in orders if o.price > 1 %}{{ o.item }}{% else %}none{% endfor %}", "pot"),
        (
            "{% for i in interests %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}",
            "lamps, tea",
        ),
        ("{% for o in nothing %}x{% else %}none{% endfor %}", "none"),
        ("{% if 'tea' in interests %}yes{% endif %}", "yes"),
        ("{% if first_name in ['Ann', 'Bob'] %}yes{% else %}no{% endif %}", "no"),
        ("{% set n = first_name ~ '!' %}{{ n|upper }}", "ZOË <B>!"),
        ("{{ 'a' if vip else 'b' }}{{ 'a' if nothing else 'b' }}", "ab"),
        ("{{ long|truncate(5) }} {{ 'one two three'|truncate(9) }}", "xxxx… one two…"),
        ("{{ 'a b/c'|urlencode }} {{ 'aXb'|replace('X', '-') }}", "a%20b%2Fc a-b"),
        ("{{ ' Ann lee '|trim|title }} {{ 2.567|round(1) }} {{ '7'|int + 1 }}", "Ann Lee 2.6 8"),
        ("{% raw %}{{ x }}{% endraw %}{# no #}", "{{ x }}"),
        ("{{ first_name[:3] }}", "Zoë"),
    ],
)
def test_what_it_can_say(source: str, expected: str) -> None:
    assert render(source) == expected


def test_html_is_escaped_and_text_is_not() -> None:
    source = "{{ first_name }}{{ '<i>' ~ first_name }}{{ interests|join('<br>') }}"
    assert render(source, html=True) == ("Zoë &lt;b&gt;&lt;i&gt;Zoë &lt;b&gt;lamps&lt;br&gt;tea")
    assert render(source) == "Zoë <b><i>Zoë <b>lamps<br>tea"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[{{ nothing }}{{ nothing.deep.er }}{{ nothing[3] }}{{ orders[1].price }}]", "[]"),
        ("{{ nothing|default('friend') }} {{ orders[1].price|default(0) }}", "friend 0"),
        ("{% if nothing or nothing > 3 or nothing < 3 %}a{% else %}b{% endif %}", "b"),
        ("{% if nothing == '' and not nothing != '' %}empty{% endif %}", "empty"),
        ("{% if nothing is defined %}a{% else %}b{% endif %}", "b"),
        ("[{{ nothing + 1 }}{{ -nothing }}{{ nothing ~ 'x' }}{{ nothing|upper }}]", "[x]"),
        ("[{{ nothing|date }}{{ nothing|number }}{{ nothing|join }}{{ nothing|first }}]", "[]"),
        ("{{ nothing|length }}", "0"),
    ],
)
def test_a_person_who_lacks_an_attribute(source: str, expected: str) -> None:
    assert render(source) == expected
    assert render("{{ first_name|default('x') }}", row={"first_name": "  "}) == "x"
    assert render("{{ first_name }}", row={"first_name": None}) == ""


# -- no way to Python ------------------------------------------------------------------------------

INJECTIONS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ first_name.__class__ }}",
    "{{ first_name['__class__'] }}",
    "{{ first_name|attr('__class__') }}",
    "{{ orders[0]['__class__'] }}",
    "{{ orders[0].__init__ }}",
    "{{ interests.append('x') }}",
    "{{ orders[0].update({'a': 1}) }}",
    "{{ self }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ config }}",
    "{{ request.application.__globals__.__builtins__.__import__('os').popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner }}{{ namespace }}{{ dict }}{{ range }}",
    "{{ url_for.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{% for x in interests %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in interests %}{{ loop._iterator }}{{ loop['_iterator'] }}{% endfor %}",
    "{% for x in interests %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in interests %}{{ loop }}{% endfor %}",
    "{{ '%s'|format(first_name) }}",
    "{{ '{0.__class__}'.format(first_name) }}",
    "{{ '%c' % 65 }}",
    "{{ first_name|map(attribute='__class__')|list }}",
    "{{ [first_name]|map('upper') }}",
    "{{ orders|groupby('item') }}",
    "{{ first_name|safe }}",
    "{{ first_name|tojson }}{{ first_name|pprint }}{{ first_name|xmlattr }}",
    "{{ _budget }}",
    "{{ _sign(1, 'x') }}",
    "{{ _budget.steps }}",
    "{{ x._budget }}",
    "{{ first_name|_link(1) }}",
    "{{ interests|_each(0) }}",
    "{% filter upper %}x{% endfilter %}",
    "{% filter _link(1) %}javascript:x{% endfilter %}",
    "{% set _budget = 1 %}",
    "{% set self = 1 %}",
    "{% set a.b = 1 %}",
    "{% set a, b = 1, 2 %}",
    "{% for _budget in interests %}{% endfor %}",
    "{% for a, b in orders %}{% endfor %}",
    "{% import 'os' as os %}",
    "{% from 'os' import path %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% block a %}{% endblock %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% call first_name() %}{% endcall %}",
    "{% with a = 1 %}{{ a }}{% endwith %}",
    "{% do interests.append(1) %}",
    "{% autoescape false %}{{ first_name }}{% endautoescape %}",
    "{% set x %}{{ first_name }}{% endset %}",
    "{{ {'a': 1} }}",
    "{{ [first_name, [1]] }}",
    "{{ caller() }}{{ varargs }}{{ kwargs }}{{ super() }}",
    "{{ ｆirst_name }}",
    "{{ first_name.ｕpper() }}",
    "{{ 𝒻irst_name }}",
    "{{ ''.\u200b__class__ }}",
]


@pytest.mark.parametrize("source", INJECTIONS)
def test_injections_reach_nothing(source: str) -> None:
    for html in (False, True):
        try:
            text = render(source, html)
        except TemplateError as error:
            assert error.path == "text" and len(error.message) < 400
            continue
        assert text == ""  # a name or key that is not there


# -- limits ----------------------------------------------------------------------------------------

BOMBS = [
    "{% for x in range(10**9) %}x{% endfor %}",
    "{% for a in big %}{% for b in big %}{{ b }}{% endfor %}{% endfor %}",
    "{% for a in big %}{% for b in big %}{% for c in big %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in interests recursive %}{{ loop(interests) }}{% endfor %}",
    "{% for a in first_name %}x{% endfor %}",
    "{% for a in 'x' * 1000000 %}x{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ interests * 1000000000 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ 999999999999 * 999999999999 }}",
    "{{ 1e308 * 10 }}",
    "{{ 1e400 }}",
    "{{ 1 / 0 }}",
    "{{ 1 // 0 }}{{ 1 % 0 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%' ~ '1000000000d' % 1 }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ 'x'|indent(1000000000) }}",
    "{{ 'x'|ljust(1000000000) }}",
    "{{ 1|round(1000000000) }}",
    "{{ 1|number(1000000000) }}",
    "{{ joined|date('%1000000000d') }}",
    "{{ joined|date('%Y' * 1000) }}",
    "{{ long|replace('x', long) }}",
    "{{ long|replace('', 'y') }}",
    "{{ long ~ long }}",
    "{{ long|urlencode }}",
    "{{ big|join(long) }}",
    "{{ 'x' + 'y' }}",
    "{% set a = long|truncate(40000) %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "{% set x = 1 %}" * 60,
    "{% for a in big %}{{ long }}{% endfor %}",
    "{{ long|upper }}" * 2_000,
    "{% for a in big %}{{ long|upper|lower }}{% endfor %}",
    "{{ big }}",
    "{{ orders[0] }}",
    "{{ " + "9" * 10_000 + " }}",
    "{{ " + "(" * 10_000 + ")" * 10_000 + " }}",
    "{{ " + "[" * 500 + "]" * 500 + " }}",
    "{{ " + "not " * 10_000 + "x }}",
    "{{ " + "-" * 10_000 + "1 }}",
    "{{ " + "1 if x else " * 5_000 + "2 }}",
    "{{ x" + ".a" * 10_000 + " }}",
    "{{ x" + "|upper" * 10_000 + " }}",
    "{{ 1" + "+1" * 10_000 + " }}",
    "{{ 'a'" + "~'a'" * 10_000 + " }}",
    "{% if x %}" * 10_000 + "{% endif %}" * 10_000,
    "{% if x %}" * 21 + "{% endif %}" * 21,
    "{% for a in big %}" * 4 + "{% endfor %}" * 4,
    "{% if x %}a" + "{% elif x %}b" * 30_000 + "{% endif %}",
    "{{ x }}" * 30_000,
    "x" * (SOURCE_CHARACTERS_MAX + 1),
    "{{ x[1:2:0] }}{{ first_name[::0] }}",
    "{{ first_name|truncate(-1) }}",
    "{{ first_name|truncate(10000000000) }}",
    "{{ first_name|int }}",
    "{{ 'nan'|int }}{{ 'inf'|int }}",
    "{{ first_name < 3 }}",
    "{{ 3 in 4 }}",
    "{{ first_name|upper(1, 2, 3) }}",
    "{{ first_name|default(*interests) }}",
    "{{ first_name|default(**orders[0]) }}",
]


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_bombs_fail_their_own_message_and_soon(number: int) -> None:
    begin = time.process_time()
    with pytest.raises(TemplateError) as caught:
        for html in (False, True):
            render(BOMBS[number], html)
    assert time.process_time() - begin < 2.0
    assert 0 < len(caught.value.message) < 400


def test_output_is_limited() -> None:
    with pytest.raises(TemplateError, match="output"):
        render("{{ long }}" * (OUTPUT_CHARACTERS_MAX // 60_000 + 1))


@pytest.mark.parametrize(
    "source",
    ["{{ a", "{% if %}", "{% endif %}", "{% for %}", "{{ a b }}", "{% x %}", "{{ 'a }}", "{# a"],
)
def test_syntax_errors_say_where(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse("one\ntwo\n" + source, "html", html=True)
    assert caught.value.line == 3 and caught.value.path == "html"


def test_failures_say_where_and_survive_pickling() -> None:
    with pytest.raises(TemplateError) as caught:
        render("one\ntwo {{ first_name }}\n{{ points / 0 }}")
    error = caught.value
    assert (error.line, error.path, error.message) == (3, "text", "division by zero")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, TemplateError) and (again.line, again.path) == (3, "text")


def test_near_misses_are_named() -> None:
    with pytest.raises(TemplateError, match="did you mean upper"):
        parse("{{ a|uper }}", "html", html=True)
    with pytest.raises(TemplateError, match="did you mean defined"):
        parse("{% if a is defind %}{% endif %}", "html", html=True)


def test_names_used_are_those_from_outside() -> None:
    source = (
        "{{ a }}\n{% set b = b|default(c) %}{{ b }}{% for d in e if d.x > f %}{{ d.y }}"
        "{{ loop.index }}{% else %}{{ d }}{% endfor %}\n{% set g = 1 %}{{ g }}{{ h[i] }}"
    )
    assert names_used(parse(source, "html", html=True)) == {
        "a": 1,
        "b": 2,
        "c": 2,
        "e": 2,
        "f": 2,
        "d": 2,
        "h": 3,
        "i": 3,
    }


# -- fuzz: whatever is written, it renders or fails with a TemplateError ---------------------------

WORDS = """first_name points interests orders nothing loop x y . .. | ~ + - * / // % ** ( ) [ ] , :
if else for in endfor endif elif set not and or is defined none 'a' 1 2.5 upper join default
truncate replace {{ }} {% %} {# #} {%- -%} raw endraw <a> </a> _budget __class__ true = == < >"""
words = st.sampled_from([*WORDS.split(), "\n"])


@given(st.lists(words, max_size=25))
@settings(max_examples=400, deadline=None)
def test_fuzz(tokens: list[str]) -> None:
    source = " ".join(tokens)
    for wrapped in (
        source,
        "{{ " + source + " }}",
        "{% for x in interests %}" + source + "{% endfor %}",
    ):
        try:
            assert isinstance(render(wrapped), str)
        except TemplateError:
            pass
