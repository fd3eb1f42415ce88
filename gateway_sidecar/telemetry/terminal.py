"""What commands print: a foreign name or reason moves no cursor, colours nothing and begins no line."""

from __future__ import annotations

from typing import TextIO

from gateway_sidecar.domain.printable import printable_lines


class PrintableStream:
    """A text stream that lets through what can be printed, and line feeds; the rest is escaped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes it all."""
        self._stream.write(printable_lines(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def coloured(stream: TextIO, text: str, code: str) -> None:
    """Writes the text in a colour (SGR `code`), which is ours; the text itself is made printable as all is."""
    control(stream, f"\x1b[{code}m{printable_lines(text)}\x1b[0m")


def control(stream: TextIO, text: str) -> None:
    """Writes what moves the cursor or colours text, which is ours alone, as it is."""
    plain = stream._stream if isinstance(stream, PrintableStream) else stream
    plain.write(text)
