"""Where a frontend's keys and certificates lie for nginx to read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FrontendPlaces:
    """Where the daemon puts what nginx reads at run time."""

    directory: Path

    def services(self) -> set[str]:
        """Whose keys or certificate are there."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return {path.stem for path in found if path.suffix in (".pem", ".keys")}

    @property
    def challenges(self) -> Path:
        """The directory of what ACME servers ask for: a file for each token (RFC 8555, 8.3)."""
        return self.directory / "challenges"

    def pem(self, service: str) -> Path:
        """Certificate and key in one file, so that no handshake sees one without the other."""
        return self.directory / f"{service}.pem"

    def keys(self, service: str) -> Path:
        """The directory of keys: SHA-256 -> name, as symbolic links."""
        return self.directory / f"{service}.keys"
