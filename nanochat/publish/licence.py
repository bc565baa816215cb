"""This file holds the licence of a publication: the one that files and user name, and how a card says it.

The Hub has names for some licences, and their texts; any other needs a file with its text in the repository.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.errors import InputError
from nanochat.files import exists

__all__ = ["LICENCE_FILES", "choose_licence", "find_licence_file", "hub_name", "licence_fields"]

# Names of the file that holds the text.
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
# The SPDX identifiers among the Hub's own names of licences, huggingface.co/docs/hub/repositories-licenses.
_OF_THE_HUB = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gpl-2.0 gpl-3.0 isc
    lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql unlicense wtfpl zlib
    """.split()  # noqa: SIM905 (a list would have a line for each)
)
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+() -]{0,99}")
_NO_LICENCES = ("unknown", "other", "none", "noassertion")


def choose_licence(own: str, given: str, *, has_text: bool) -> str:
    """The one licence that files and user name; either may be empty, and `has_text` is whether its text is there."""
    own = "" if own.lower() == "unknown" else own
    if own and given and own.lower() != given.lower():
        raise InputError(
            f"licence={given!r:.80}, but the files say {own}: leave it out, or write the model again with the right one"
        )
    licence = own or given
    if not licence:
        raise InputError(
            "nothing says which licence the weights have, and without one nobody may use them: pass licence (--licence "
            "for commands), an SPDX identifier such as MIT or Apache-2.0"
        )
    if licence.lower() in _NO_LICENCES or not _LICENCE.fullmatch(licence):
        raise InputError(
            f"licence={licence!r:.80} is no licence: pass an SPDX identifier such as MIT or Apache-2.0"
        )
    if hub_name(licence) is None and not has_text:
        raise InputError(
            f"licence={licence!r:.80} is none that the Hub knows by name: put its text into the model's directory as "
            "LICENSE, so that the card can link to it, or check the spelling of its SPDX identifier"
        )
    return licence


def find_licence_file(folder: Path) -> Path | None:
    """The text of a licence that lies in a folder."""
    return next((folder / name for name in LICENCE_FILES if exists(folder / name)), None)


def hub_name(licence: str) -> str | None:
    """The Hub's name of a licence, whose text it then has; it does not tell "only" from "or later"."""
    name = licence.lower().removesuffix("-only").removesuffix("-or-later")
    return name if name in _OF_THE_HUB else None


def licence_fields(
    card: Mapping[str, Any], licence: str, *, licence_file: str, where: str
) -> dict[str, str]:
    """The fields of a card's metadata that say the licence; none if those that are there say the same."""
    name = hub_name(licence)
    slug = re.sub(r"[^a-z0-9.+]+", "-", licence.lower()).strip("-")
    other = {"license": "other", "license_name": slug, "license_link": licence_file}
    wanted = {"license": name} if name else other
    for key in ("license", "license_name"):
        if isinstance(card.get(key), list | dict):
            raise InputError(
                f"{where} names no single licence: write one line, {key}: {wanted.get(key, licence)}"
            )
    key = "license_name" if card.get("license") == "other" else "license"
    said = str(card.get(key) or "unknown").lower()
    if said in _NO_LICENCES:
        return wanted
    if said not in (licence.lower(), name or slug):
        raise InputError(
            f"{where} says that the licence is {card[key]!r:.80}, and the files say {licence}: correct the one "
            "that is wrong"
        )
    return {}
