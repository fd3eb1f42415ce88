"""The nginx that is installed is known by what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway_sidecar.errors import NginxError
from gateway_sidecar.nginx.server import find_nginx

OPENRESTY = """\
nginx version: openresty/1.27.1.2
built with OpenSSL 3.0.15
configure arguments: --prefix=/usr/local/openresty/nginx --add-module=../ngx_devel_kit-0.3.3
 --add-module=../ngx_lua-0.10.28 --with-stream --with-http_ssl_module"""


def program(directory: Path, says: str) -> str:
    path = directory / "nginx"
    path.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\n")
    path.chmod(0o755)
    return str(path)


async def test_openresty_is_an_nginx_with_lua_and_stream_in_it(tmp_path: Path) -> None:
    """Both are compiled in, so there is no module to load."""
    found = await find_nginx(program(tmp_path, OPENRESTY))
    assert (found.version, found.stream_module, found.lua_modules) == ("1.27.1.2", None, ())


@pytest.mark.parametrize("name", ["nginx/1.22.1", "freenginx/1.28.0", "nginx/1.24.0 (Ubuntu)"])
async def test_nginx_and_what_is_built_of_it(tmp_path: Path, name: str) -> None:
    """The version is the number alone."""
    found = await find_nginx(program(tmp_path, f"nginx version: {name}\nconfigure arguments: --with-stream"))
    assert found.version in name


async def test_another_program_is_refused_with_its_own_words(tmp_path: Path) -> None:
    """A wrong path in the settings is noticed before anything is started."""
    with pytest.raises(NginxError, match="is not nginx: `-V` says 'caddy v2'"):
        await find_nginx(program(tmp_path, "caddy v2"))
