"""Where the lines of the access log go, for all services; which of them log is said in their `frontend`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from gateway_sidecar.config.section import Section
from gateway_sidecar.config.values import parse_directory, parse_endpoint, show

_TO_TEXT = PlainSerializer(str, return_type=str)
_UNIX = "unix:"
_FILE = "access.log"


def parse_syslog(value: object) -> str:
    """`unix:/PATH` or `IP:PORT`, as nginx takes it."""
    cure = "use unix:/dev/log, or the IP address and port of a server, such as 127.0.0.1:514"
    if isinstance(value, str) and value.startswith(_UNIX):
        path = value.removeprefix(_UNIX)
        if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,106}", path):
            raise ValueError(f"{show(value)} names no socket that nginx's configuration can carry; {cure}")
        return value
    try:
        return str(parse_endpoint(value))
    except ValueError:
        raise ValueError(f"{show(value)} is not where a syslog server listens; {cure}") from None


DirectoryValue = Annotated[
    Path,
    PlainValidator(parse_directory),
    _TO_TEXT,
    WithJsonSchema({"type": "string", "pattern": r"""^/[^\s"'$;{}\\#%*?\[\]]+$"""}),
]
SyslogValue = Annotated[
    str,
    PlainValidator(parse_syslog),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(unix:/[A-Za-z0-9._/-]{1,106}"
            r"|(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})$",
        }
    ),
]


class AccessLogSettings(Section):
    """Where the lines of services with `frontend.access_log` go: one file for all of them, or syslog."""

    directory: DirectoryValue | None = Field(
        default=None,
        description="The directory of `access.log`; `null` is `log` in `state_dir`. It belongs to the daemon alone.",
        examples=["/var/log/gateway-sidecar"],
    )
    max_mb: int = Field(
        default=64,
        ge=1,
        le=1048576,
        description="A file that grows beyond this size is renamed to `access.log.1`, and a new file is begun.",
    )
    keep: int = Field(
        default=4, ge=0, le=1000, description="At most this many renamed files are kept, the newest ones."
    )
    syslog: SyslogValue | None = Field(
        default=None,
        description="Lines go to this syslog server instead of a file: `unix:/dev/log`, or an IP address and a UDP"
        " port.",
        examples=["unix:/dev/log"],
    )

    tokens: bool = Field(
        default=False,
        description="Whether nginx reads from answers how many tokens they took. That costs some 3 us of CPU for an"
        " answer in one piece, and for each event of a stream.",
    )

    @model_validator(mode="after")
    def _one(self) -> AccessLogSettings:
        if self.syslog is not None and self.directory is not None:
            raise ValueError("has syslog and directory; give one of them")
        return self

    def file(self, state_dir: Path) -> Path:
        """The file, where it is one."""
        return (self.directory or state_dir / "log") / _FILE

    @property
    def most_mb(self) -> int:
        """What all its files together may take."""
        return self.max_mb * (self.keep + 1)
