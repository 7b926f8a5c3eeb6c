"""Who is asking: HTTP Basic or a key, compared in constant time. Without accounts everybody here is `local`.

A browser that was opened with a key in its address is given a ticket: a cookie that names the account and until when it
holds, sealed with the account's secret. Nothing is kept of it here; a changed secret ends all of its tickets.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from disegno.core.errors import RequestError
from disegno.serving.faults import Refused
from disegno.serving.settings import Account, ServerSettings

LOCAL = "local"
TICKET = "disegno_ticket"
TICKET_SECONDS = 30 * 24 * 3600
MAX_COUNTS = 10_000  # of addresses and names
_LOOPBACK = ("127.", "::1", "localhost")
_NOBODY = Account("", "nobody has this secret")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach this address."""
    return host.startswith(_LOOPBACK[0]) or host in _LOOPBACK[1:]


def require_safe(settings: ServerSettings) -> None:
    """Refuse to listen to other machines without accounts. Raises RequestError."""
    if not settings.accounts and not is_loopback(settings.host):
        raise RequestError(
            f"--host {settings.host} lets other machines in, and nobody has to say who they are. Add --auth USER:PASS"
            " or --api-key KEY, or listen to 127.0.0.1."
        )
    for account in settings.accounts:
        if len(account.secret) < 8:
            raise RequestError(f"The secret of {account.name!r} is shorter than 8 characters. Choose a longer one.")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass
class Doorkeeper:
    """Checks credentials, and slows down whoever guesses.

    Wrong tries are counted by address and by the name that was claimed; keys claim none. Behind a proxy that is not
    named (`ServerSettings.proxies`) everybody has one address, and a count by address alone would lock everybody out.
    While a name has too many, nothing that claims it from there is compared at all: a try then tells nothing, not even
    whether it was right. So guessing stays slow for every account, and a guesser keeps out, at most, those who claim
    the same name from the same address. Tickets are not guessed, and hold meanwhile.
    """

    settings: ServerSettings
    _tries: OrderedDict[tuple[str, bytes], list[float]] = field(
        default_factory=OrderedDict[tuple[str, bytes], list[float]]
    )
    _strangers: OrderedDict[tuple[str, bytes], list[float]] = field(
        default_factory=OrderedDict[tuple[str, bytes], list[float]]
    )

    def owner(self, authorization: str | None, address: str) -> str:
        """Return the name of who is asking. Raises Refused (401, or 429 after too many tries)."""
        if not self.settings.accounts:
            return LOCAL
        user, secret = _said(authorization)
        if secret:
            self._require_patience(address, user)
            if (name := self._checked(user, secret)) is not None:
                return name
            self._count(address, user)
        challenge = {"WWW-Authenticate": 'Basic realm="disegno", charset="UTF-8"'}
        raise Refused(401, "unauthorized", "Say who you are: HTTP Basic, or a key as a Bearer.", headers=challenge)

    def ticket(self, owner: str) -> str:
        """Return a ticket for the account of this name; "" where there is none."""
        account = next((account for account in self.settings.accounts if account.name == owner), None)
        if account is None:
            return ""
        name = base64.urlsafe_b64encode(owner.encode()).decode().rstrip("=")
        said = f"{name}.{int(time.time()) + TICKET_SECONDS}"
        return f"{said}.{_seal(said, account)}"

    def holder(self, ticket: str) -> str | None:
        """Return the name of the account that a ticket is of; None where it is none, or holds no more."""
        said, _, seal = ticket.rpartition(".")
        until = said.rpartition(".")[2]
        if not until.isascii() or not until.isdigit() or len(until) > 12 or int(until) < time.time():
            return None
        found = None
        for account in self.settings.accounts:
            name = base64.urlsafe_b64encode(account.name.encode()).decode().rstrip("=")
            named = hmac.compare_digest(_digest(f"{name}.{until}"), _digest(said))
            if hmac.compare_digest(_digest(_seal(said, account)), _digest(seal)) and named:
                found = account.name
        return found

    def _counts(self, user: str) -> OrderedDict[tuple[str, bytes], list[float]]:
        """Return where tries of a name are counted: names that nobody has never push out those that are guarded."""
        known = user == "" or any(account.name == user for account in self.settings.accounts)
        return self._tries if known else self._strangers

    def _count(self, address: str, user: str) -> None:
        counts = self._counts(user)
        counts.setdefault((address, _digest(user)), []).append(time.monotonic())
        while len(counts) > MAX_COUNTS:
            counts.popitem(last=False)

    def _require_patience(self, address: str, user: str) -> None:
        counts, key = self._counts(user), (address, _digest(user))
        recent = [at for at in counts.get(key, ()) if time.monotonic() - at < 60]
        if recent:
            counts[key] = recent
        else:
            counts.pop(key, None)
        if len(recent) >= self.settings.limits.tries_per_minute:
            raise Refused(429, "too_many_tries", "Too many wrong passwords.", headers={"Retry-After": "60"})

    def _checked(self, user: str, secret: str) -> str | None:
        """Return the name of the account that these credentials belong to; every account is compared."""
        found = None
        for account in self.settings.accounts or (_NOBODY,):
            same = hmac.compare_digest(_digest(account.secret), _digest(secret))
            named = hmac.compare_digest(_digest(account.name), _digest(user)) or (account.key and not user)
            if same and named and secret:
                found = account.name
        return found


def _said(authorization: str | None) -> tuple[str, str]:
    """Return user and secret of an Authorization header."""
    scheme, _, value = (authorization or "").partition(" ")
    return _credentials(scheme.lower(), value.strip())


def _seal(said: str, account: Account) -> str:
    return hmac.new(account.secret.encode("utf-8", "surrogatepass"), said.encode(), hashlib.sha256).hexdigest()


def _credentials(scheme: str, value: str) -> tuple[str, str]:
    """Return user and secret; a key has no user. What cannot be read is nobody's."""
    if scheme == "bearer":
        return "", value
    if scheme != "basic":
        return "", ""
    try:
        user, _, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return user, secret
