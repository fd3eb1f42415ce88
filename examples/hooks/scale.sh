# Brings the number of replicas to GATEWAY_SIDECAR_DESIRED. A hook sources this file after it has defined:
#
#   running      prints the names of the replicas that run, or wait for a machine, one a line
#   start NAME   starts a replica; its socket on the gateway is to be NAME.sock
#   stop NAME    ends a replica
#
# A replica that is not wanted any more is drained first. That takes as long as its longest answer, so it happens in the
# background, and a replica that drains counts as gone: if more replicas are wanted meanwhile, another one starts.
set -eu
service=$GATEWAY_SIDECAR_SERVICE
base=$service-$GATEWAY_SIDECAR_ROLE
retiring=${SCALE_DIRECTORY:-/var/lib/gateway-sidecar/retiring}
drain_s=${SCALE_DRAIN_S:-1800}
mkdir -p "$retiring"
# Before anything else: one that is retired meanwhile may still be in the list of those that run.
marked=$(ls "$retiring")

is_in() { echo "$1" | grep -qxF "$2"; }

# Names that run and are to stay, by number.
living() {
    echo "$taken" | sed -n "s/^$base-\([0-9]\{1,\}\)\$/\1/p" | sort -n | while read -r number; do
        is_in "$marked" "$base-$number" || echo "$base-$number"
    done
}

# The first name that nobody has, whether it stays or drains.
free_name() {
    number=1
    while is_in "$taken" "$base-$number" || is_in "$marked" "$base-$number"; do number=$((number + 1)); done
    echo "$base-$number"
}

# A replica that is not known to the gateway, or not drained in time, is ended all the same. A daemon that is away (it is
# restarted, perhaps in the middle of the drain) is waited for and asked again: requests are in flight meanwhile.
drain() {
    end=$(($(date +%s) + drain_s))
    for _ in 1 2; do
        gateway-sidecar drain "$service" "$1" --timeout "$drain_s" && return
        until gateway-sidecar status || [ "$(date +%s)" -ge "$end" ]; do sleep 2; done
        [ "$(date +%s)" -lt "$end" ] || return 0
    done
}

# The lock ends with whoever has it, so that a replica is retired once, and again if that was cut short by a reboot.
retire() {
    : >> "$retiring/$1"
    (
        flock -n 9 || exit 0
        drain "$1" || :
        # What cannot be stopped is tried again by the next call, unless it does not run any more.
        stop "$1" || ! is_in "$(running)" "$1" || exit 1
        rm -f "$retiring/$1"
    ) 9>> "$retiring/$1" > /dev/null 2>&1 &
}

for name in $(echo "$marked" | sed -n "/^$base-[0-9]\{1,\}\$/p"); do retire "$name"; done

taken=$(running)
there=$(living)
count=$(echo "$there" | grep -c . || :)
while [ "$count" -lt "$GATEWAY_SIDECAR_DESIRED" ]; do
    name=$(free_name)
    start "$name"
    taken=$(printf '%s\n%s' "$taken" "$name")
    count=$((count + 1))
done
if [ "$count" -gt "$GATEWAY_SIDECAR_DESIRED" ]; then
    for name in $(echo "$there" | tail -n "$((count - GATEWAY_SIDECAR_DESIRED))"); do retire "$name"; done
fi
