#!/bin/sh
# Builds the Debian package for each release, into dist/: scripts/deb.sh [bookworm] [trixie]
#
# Each is built in a clean root of its release, made by mmdebstrap and thrown away, so a package for trixie can be built
# on bookworm. Nothing is downloaded in there but Debian's packages: wheels are fetched before, for that release's
# Python, and checked by the hashes of requirements.lock. `make deb` runs this, and has set up VENV and the tools.
#
#   MIRROR      where mmdebstrap finds the release (default: its own)
#   DEBFULLNAME, DEBEMAIL   who is named as the maintainer (default: the author of the newest commit)
set -eu
cd "$(dirname "$0")/.."
releases=${*:-bookworm trixie}
python=${VENV:-.venv}/bin/python
build=build/deb
version=$("$python" -c 'import gateway_sidecar; print(gateway_sidecar.__version__)')
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
maintainer="${DEBFULLNAME:-$(git log -1 --format=%an)} <${DEBEMAIL:-$(git log -1 --format=%ae)}>"
export SOURCE_DATE_EPOCH

fail() { printf 'deb: %s\n' "$*" >&2; exit 1; }

# fetch_wheels PYTHON DIRECTORY: for that Python and every glibc up to bookworm's
fetch_wheels() {
    stamp="$(cksum <requirements.lock)"
    [ "$(cat "$2/.made-of" 2>/dev/null)" != "$stamp" ] || return 0
    rm -rf "$2"
    platforms="--platform linux_$machine --platform manylinux2014_$machine"
    for glibc in 17 24 26 27 28 31 34 35 36; do platforms="$platforms --platform manylinux_2_${glibc}_$machine"; done
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --disable-pip-version-check --dest "$2" --require-hashes --no-deps \
        --only-binary :all: --implementation cp --python-version "$1" --abi "cp$(echo "$1" | tr -d .)" --abi abi3 \
        --abi none $platforms --requirement requirements.lock
    printf '%s\n' "$stamp" >"$2/.made-of"
}

machine=$(uname -m)
mkdir -p dist "$build"
"$python" scripts/manual.py "$build/manual"
for release in $releases; do
    case $release in
    bookworm) minor=3.11 debian=12 ;;
    trixie) minor=3.13 debian=13 ;;
    *) fail "$release: not a release that this builds for; use bookworm or trixie" ;;
    esac
    fetch_wheels "$minor" "$build/wheels-$minor"
    source="$build/$release"
    rm -rf "$source" dist/gateway-sidecar_*+deb${debian}_*.deb
    mkdir -p "$source/wheels"
    cp -a gateway_sidecar pyproject.toml requirements.lock README.md LICENSE CHANGELOG.md debian "$build/manual" "$source"
    find "$source" -name __pycache__ -type d -prune -exec rm -rf {} +
    cp "$build/wheels-$minor"/*.whl "$source/wheels"
    sed -i "s|@MAINTAINER@|$maintainer|" "$source/debian/control"
    cat >"$source/debian/changelog" <<END
gateway-sidecar ($version+deb$debian) $release; urgency=medium

  * /usr/share/doc/gateway-sidecar/CHANGELOG.md.gz says what is new.

 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
    # An archive for a root that nobody keeps; hooks run in it whether it is root's or made without root.
    # shellcheck disable=SC2016
    mmdebstrap --quiet --variant=apt --format=null --aptopt='Acquire::Languages "none"' \
        --include=debhelper,dh-sequence-installsysusers,python3-pip,python3-venv \
        --customize-hook='mkdir "$1/source"' \
        --customize-hook="sync-in $source /source" \
        --customize-hook="chroot \"\$1\" sh -c 'cd /source && SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH dpkg-buildpackage -b -d -uc -us'" \
        --customize-hook='mkdir "$1/made" && mv "$1"/*.deb "$1/made"' \
        --customize-hook="sync-out /made dist" \
        "$release" /dev/null ${MIRROR:+"$MIRROR"} || fail "the package for $release could not be built"
done
ls -l dist/*.deb
