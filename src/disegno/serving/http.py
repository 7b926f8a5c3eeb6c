"""uvicorn's protocol, with patience: a connection that does not finish its request's headers is closed.

What was answered before its body had come (refused, that is) is read to the end, within bounds: who is still sending
when a connection is closed never sees the answer.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
REST_BYTES = 128 * 2**20  # of the body of what has been answered already
REST_SECONDS = 180.0


class PatientH11(H11Protocol):
    """Closes connections on which a request's headers are not complete within `HEADER_SECONDS` of its first byte.

    uvicorn's own timer begins after an answer, and ends with the next byte (uvicorn 0.54, h11_impl.py). Inheritance is
    its only seam.
    """

    _impatience: asyncio.TimerHandle | None = None
    _rest_bytes = 0
    _rest_until = 0.0  # of the loop's time

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            self._let_go(len(data))
            return
        self._rest_bytes = 0
        if self.conn.their_state is not h11.IDLE:  # the headers have come
            self._disarm()
        elif self._impatience is None:
            self._arm()

    def _let_go(self, num_bytes: int) -> None:
        """Count bytes of a body that nobody wants, and close the connection where there are too many, or too slow."""
        if not self._rest_bytes:
            self._rest_until = self.loop.time() + REST_SECONDS
        self._rest_bytes += num_bytes
        self._disarm()
        if self._rest_bytes > REST_BYTES or self.loop.time() > self._rest_until:
            self.transport.close()
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._impatience = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _disarm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
