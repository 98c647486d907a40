"""Composing one mail: ours against the usual libraries, in the same run on the same inputs.

Ours: ``manta.content.composer`` (sandboxed template with limits, signed links, own MIME and DKIM).
The baseline renders the same page with plain Jinja2, builds it with ``email.message`` and signs it
with ``dkimpy``; it rewrites no links, has no limits and makes no text part, so it does less. Steps
alternate in rounds, and the median round counts.

    python -m benchmarks.compose [--rounds 11] [--mails 25]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP

import dkim as dkimpy
import jinja2

from manta.content import dkim
from manta.content.composer import Composer, MailSettings
from manta.content.dkim import DkimSigner, generate_private_key, load_private_key
from manta.content.templates import MailTemplate
from manta.content.tokens import Keyring, SigningKey
from manta.ids import MessageRef

AIM_RATIO = 8.0
AIM_US = 600.0
_NOW = datetime(2026, 5, 6, 7, 8, 9)
_ROW = {"email": "bob@example.org", "first_name": "Zoe", "city": "Bath", "last_product": "Tea pot"}
_ITEM = (
    '<tr><td style="padding:16px 0;border-top:1px solid #e3dfd6;font-family:Georgia,serif;'
    'font-size:17px;line-height:26px;color:#2a2a28"><h2 style="margin:0 0 6px 0;font-size:19px">'
    '<a href="https://shop.example.com/item/{n}?l=1" style="color:#1f6b4c">Item {n}</a></h2>'
    '<p style="margin:0 0 16px 0">{words}</p></td></tr>\n'
)
_WORDS = "A warm light that bends to the page, made of reused brass by people nearby. " * 14


def page() -> str:
    """About 6 kB with five links, of which one leads to the unsubscribe page."""
    items = "".join(_ITEM.format(n=n, words=_WORDS) for n in range(4))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Finds</title></head>\n'
        '<body style="margin:0;background-color:#f3f1ec"><h1>Good morning{% if first_name %}, '
        "{{ first_name }}{% endif %}.</h1>\n{% if last_product %}<p>We hope the {{ last_product }} "
        "has found its place.</p>{% else %}<p>Three small things.</p>{% endif %}\n"
        f'<table role="presentation" width="100%">\n{items}</table>\n'
        '<p>By {{ city|default("us") }}.</p><p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>'
        "</body></html>\n"
    )


def ours(pem: bytes) -> dict[str, Callable[[], object]]:
    template = MailTemplate(
        subject="{{ first_name|default('Hello') }}, this week's finds",
        html=page(),
        from_email="hello@shop.example.com",
        from_name="Harbour & Moor",
    )
    keyring = Keyring([SigningKey(1, "default", b"k" * 32)], 1)
    settings = MailSettings(7, "https://t.shop.example.com", "bounces.shop.example.com")
    signer = DkimSigner("shop.example.com", "s1", load_private_key(pem))
    composer = Composer(template, settings, keyring, [signer])
    bare = Composer(
        template,
        MailSettings(7, settings.base_url, "b.example.com", track_opens=False, track_clicks=False),
        keyring,
    )
    ref = MessageRef(5 << 47 | 1_234_567, 987_654_321)
    rendered = composer.render(_ROW, ref)
    fields, body = composer.assemble(rendered, _ROW["email"], ref, _NOW)
    return {
        "compose": lambda: composer.compose(_ROW, ref, _NOW),
        "render": lambda: bare.render(_ROW, ref),
        "render+links": lambda: composer.render(_ROW, ref),
        "mime": lambda: composer.assemble(rendered, _ROW["email"], ref, _NOW),
        "dkim": lambda: dkim.sign(fields, body, [signer], 1_778_051_289),
    }


def usual(pem: bytes) -> dict[str, Callable[[], object]]:
    environment = jinja2.Environment(autoescape=True)
    html = environment.from_string(page())
    subject = environment.from_string("{{ first_name|default('Hello') }}, this week's finds")
    values = {**_ROW, "unsubscribe_url": "https://t.shop.example.com/u/1234567"}

    def render() -> tuple[str, str]:
        return subject.render(values), html.render(values)

    def build(texts: tuple[str, str]) -> bytes:
        message = EmailMessage(policy=SMTP)
        message["From"] = "Harbour & Moor <hello@shop.example.com>"
        message["To"] = _ROW["email"]
        message["Subject"] = texts[0]
        message["Date"] = "Wed, 06 May 2026 07:08:09 +0000"
        message["Message-ID"] = "<1234567@shop.example.com>"
        message["List-Unsubscribe"] = f"<{values['unsubscribe_url']}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        message.set_content("Good morning.\n" + _WORDS * 4)
        message.add_alternative(texts[1], subtype="html")
        return message.as_bytes()

    def sign(message: bytes) -> bytes:
        return bytes(dkimpy.sign(message, b"s1", b"shop.example.com", pem)) + message

    rendered = render()
    built = build(rendered)
    return {
        "compose": lambda: sign(build(render())),
        "render": render,
        "mime": lambda: build(rendered),
        "dkim": lambda: sign(built),
    }


def measure(steps: dict[str, Callable[[], object]], rounds: int, mails: int) -> dict[str, float]:
    """Microseconds of processor time for one call of each step, median over rounds."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.process_time()
            for _ in range(mails):
                step()
            seen[name].append((time.process_time() - begin) / mails * 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--mails", type=int, default=25)
    options = parser.parse_args()
    pem = generate_private_key()
    our_steps, usual_steps = ours(pem), usual(pem)
    both = {f"ours {name}": step for name, step in our_steps.items()}
    both |= {f"usual {name}": step for name, step in usual_steps.items()}
    took = measure(both, options.rounds, options.mails)
    size = len(page())
    print(f"page of {size:,} characters, 5 links, RSA-2048; µs of processor time for one mail")
    for name in our_steps:
        other = took.get(f"usual {name}")
        print(f"  {name:13} {took[f'ours {name}']:8.1f}", f"{other:10.1f}" if other else "")
    our_us, usual_us = took["ours compose"], took["usual compose"]
    print(
        json.dumps(
            {
                "name": "compose",
                "ratio": round(usual_us / our_us, 1),
                "unit": "times faster than jinja2 + email.message + dkimpy",
                "aim": AIM_RATIO,
                "pass": usual_us / our_us >= AIM_RATIO and our_us <= AIM_US,
                "figure_us": round(our_us, 1),
                "aim_us": AIM_US,
                "baseline": {"compose_us": round(usual_us, 1)},
            }
        )
    )


if __name__ == "__main__":
    main()
