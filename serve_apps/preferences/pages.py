"""The pages as HTML: everything from outside is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from serve_apps.landing import page, text
from serve_apps.preferences.texts import texts


class Offer(NamedTuple):
    """One box: a topic on a channel. ``waits`` for the confirmation of a sign-up."""

    channel: str
    topic: str
    title: str
    description: str
    ticked: bool
    waits: bool = False

    @property
    def value(self) -> str:
        return f"{self.channel}:{self.topic}"


class Shown(NamedTuple):
    """What the preference page shows. ``said`` is the name of a text: what was done just now."""

    language: str
    email: str  # masked
    offers: Sequence[Offer]
    said: str = ""
    blocked: bool = False  # a complaint or a bounce stops mail to the address


def preferences(shown: Shown) -> bytes:
    words = texts()[shown.language]
    parts = []
    if shown.said:
        parts.append(f'<p class="said" role="status">{escape(words[shown.said])}</p>')
    if shown.blocked:
        parts.append(f'<p class="said">{escape(words["blocked"])}</p>')
    parts.append(text(_filled(words["intro"], email=shown.email)))
    # The first button is what the Enter key presses.
    parts.append('<form method="post">')
    channels = list(dict.fromkeys(offer.channel for offer in shown.offers))
    for channel in channels:
        mine = [offer for offer in shown.offers if offer.channel == channel]
        parts.append(f"<fieldset><legend>{escape(words[channel])}</legend>")
        parts += [_choice(offer, f"{channel}-{n}", words) for n, offer in enumerate(mine)]
        parts.append("</fieldset>")
    if not channels:
        parts.append(text(words["none"]))
    parts.append(_languages(shown.language, words))
    parts.append(_button("save", words["save"]))
    parts.append(
        '<div class="away">'
        + _button("leave", words["leave_all"], "quiet", "leave-hint")
        + f'<p class="hint" id="leave-hint">{escape(words["leave_hint"])}</p></div></form>'
    )
    title = words["title"]
    return page(title, *parts, language=shown.language)


def confirmation(language: str, email: str, topics: Sequence[tuple[str, str]]) -> bytes:
    """What would be confirmed, as (name, title), and the button that does it."""
    words = texts()[language]
    listed = "".join(f"<li>{escape(title)}</li>" for _, title in topics)
    hidden = "".join(
        f'<input type="hidden" name="topic" value="{escape(name)}">' for name, _ in topics
    )
    return page(
        words["confirm_title"],
        text(_filled(words["confirm_text"], email=email)),
        f"<ul>{listed}</ul>",
        f'<form method="post">{hidden}{_button("confirm", words["confirm_button"])}</form>',
        language=language,
    )


def confirmed(language: str, titles: Sequence[str]) -> bytes:
    words = texts()[language]
    listed = "".join(f"<li>{escape(title)}</li>" for title in titles)
    return page(
        words["confirmed_title"], text(words["confirmed_text"]), f"<ul>{listed}</ul>",
        language=language,
    )  # fmt: skip


def plain(language: str, title: str) -> bytes:
    """A page of two texts: ``title`` and the one named after it."""
    words = texts()[language]
    return page(words[title], text(words[_SECOND[title]]), language=language)


_SECOND = {
    "not_valid": "not_valid_text",
    "try_again": "try_again_text",
    "gone": "gone_text",
    "expired_title": "expired_text",
}


def masked(email: str | None) -> str:
    """An address that its owner knows again, and a stranger with the link does not learn."""
    local, at, domain = (email or "").rpartition("@")
    return f"{local[:1]}…{at}{domain}" if at else "…"


def _choice(offer: Offer, place: str, words: dict[str, str]) -> str:
    value = escape(offer.value)
    notes = [note for note in (offer.description, words["waiting"] if offer.waits else "") if note]
    said = f'<p id="{place}-note">{escape(" · ".join(notes))}</p>' if notes else ""
    about = f' aria-describedby="{place}-note"' if notes else ""
    ticked = " checked" if offer.ticked else ""
    return (
        f'<div class="choice"><input type="hidden" name="shown" value="{value}">'
        f'<input type="checkbox" id="{place}" name="topic" value="{value}"{ticked}{about}>'
        f'<label for="{place}">{escape(offer.title)}</label>{said}</div>'
    )


def _languages(chosen: str, words: dict[str, str]) -> str:
    options = "".join(
        f'<option value="{code}" lang="{code}"{" selected" if code == chosen else ""}>'
        f"{escape(each['language'])}</option>"
        for code, each in texts().items()
    )
    return (
        f'<div class="field"><label for="language">{escape(words["language_label"])}</label>'
        f'<select id="language" name="language">{options}</select></div>'
    )


def _button(action: str, label: str, kind: str = "", about: str = "") -> str:
    extra = (f' class="{kind}"' if kind else "") + (f' aria-describedby="{about}"' if about else "")
    return f'<button type="submit" name="action" value="{action}"{extra}>{escape(label)}</button>'


def _filled(words: str, **values: str) -> str:
    for name, value in values.items():
        words = words.replace(f"{{{name}}}", value)
    return words
