"""Where a frontend's keys and certificates lie for nginx to read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FrontendPlaces:
    """Where the daemon puts what nginx reads at run time. `kept`: where it keeps what has to outlast a reboot.

    used_elsewhere: the file of what keys have used at other gateways; None for a gateway that works alone.
    """

    directory: Path
    kept: Path | None = None
    used_elsewhere: Path | None = None

    @classmethod
    def of(cls, run_dir: Path, state_dir: Path) -> FrontendPlaces:
        """Those of the daemon that has these directories."""
        return cls(run_dir / "frontends", state_dir / "keys")

    def services(self) -> set[str]:
        """Whose keys or certificate are there."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return {path.stem for path in found if path.suffix in (".pem", ".ca", ".keys")}

    @property
    def challenges(self) -> Path:
        """The directory of what ACME servers ask for: a file for each token (RFC 8555, 8.3)."""
        return self.directory / "challenges"

    def pem(self, service: str) -> Path:
        """A link to certificate and key in one file, which is never written again: no handshake sees one without the
        other.
        """
        return self.directory / f"{service}.pem"

    def client_ca(self, service: str) -> Path:
        """The authorities of client certificates, in PEM; the first line is `# NUMBER`, which is made of the rest."""
        return self.directory / f"{service}.ca"

    def client_ca_number(self, service: str) -> str:
        """The number there; empty where there is none. nginx reads the file when it is told of another number."""
        with suppress(OSError), self.client_ca(service).open() as file:
            return file.readline().removeprefix("# ").strip()
        return ""

    def keys(self, service: str) -> Path:
        """The directory of keys, as symbolic links: SHA-256, or `@` and a plan's name -> name and bounds."""
        return self.directory / f"{service}.keys"

    @property
    def used(self) -> Path:
        """What keys had used up when nginx was started, or got another frontend."""
        return self.directory / "used"

    def last_used(self, service: str) -> Path | None:
        """The file of when each key was last used."""
        return None if self.kept is None else self.kept / f"{service}.json"
