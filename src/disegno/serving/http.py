"""uvicorn's protocol, with patience: a connection that does not finish its request's headers is closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0


class PatientH11(H11Protocol):
    """Closes connections on which no request's headers are complete within `HEADER_SECONDS`.

    uvicorn's own timer begins after the first answer only (uvicorn 0.54, h11_impl.py). Inheritance is its only seam.
    """

    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._impatience = self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.scope is None and not self.transport.is_closing():  # pyright: ignore[reportUnnecessaryComparison]
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
        super().connection_lost(exc)
