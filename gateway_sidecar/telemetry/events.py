"""Every event that the daemon logs: how severe it is, what it means, and what to do.

The page of events in docs/ is made from this list, and a test holds each call of a logger to it: an event that is not
here, or that is logged at another level, fails the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event.

    levels: those that it is logged at, in words. meaning: a sentence, which may name keys of the event in backquotes.
    cure: what to do, as an imperative; empty where there is nothing to do.
    """

    levels: tuple[str, ...]
    meaning: str
    cure: str = ""


def _info(meaning: str) -> Event:
    return Event(("info",), meaning)


def _warning(meaning: str, cure: str = "") -> Event:
    return Event(("warning",), meaning, cure)


def _error(meaning: str, cure: str = "") -> Event:
    return Event(("error",), meaning, cure)


GROUPS: Mapping[str, Mapping[str, Event]] = {
    "The daemon": {
        "daemon.started": _info("The daemon runs: its `version` and its `services`."),
        "daemon.stopped": _info("The daemon ends; `left_running` says whether nginx and the routers go on."),
        "daemon.failed": Event(
            ("critical",),
            "The daemon cannot start or cannot go on: `reason`.",
            "Correct what the reason names, then start the daemon.",
        ),
        "daemon.cut_off": _warning(
            "`stop --all` cut `connections` connections that were not closed after `after_s` seconds.",
            "Give `stop --all` a longer `--timeout` if answers take longer.",
        ),
        "daemon.stalled": _warning(
            "No part of the daemon ran for `for_s` seconds: the daemon or the machine was stopped or starved.",
            "Give the machine more CPU or memory if it happens again.",
        ),
        "daemon.wedged": _error(
            "A `loop` has made no progress for `stale_s` seconds, so the daemon stops its pings to systemd's watchdog.",
            "Report the event with the log before it. systemd restarts the daemon; nginx and the routers go on.",
        ),
        "leave.begun": _info(
            "The gateway begins to leave: it tells load balancers to go elsewhere, and serves all requests."
        ),
        "leave.draining": _info(
            "The gateway takes no new requests: load balancers have gone, or `leave.balancer_s` is over."
        ),
        "leave.stopping": _info("No request is in flight any more, so the routers, nginx and the daemon stop."),
        "leave.cut": _warning(
            "The time to leave was over, so requests in flight on `connections` connections were cut.",
            "Raise `leave.timeout_s` if answers take longer.",
        ),
        "leave.goes_on": _warning("The daemon goes on with the leave that an earlier daemon began."),
        "leave.taken_back": _info("The gateway was taken back and serves as before."),
        "daemon.request_failed": _error(
            "The daemon failed while it answered a request to one of its own listeners.", "Report the traceback."
        ),
        "loop.failed": _error(
            "A task of the daemon failed. It is run again, and what it was working on is looked at anew.",
            "Report the traceback.",
        ),
        "library.said": Event(
            ("warning", "error"),
            "A library that the daemon uses warns of something, or failed.",
            "Report the event if it repeats.",
        ),
    },
    "Configuration and files": {
        "config.reloaded": _info("The configuration was read again, and its `changes` are in force."),
        "config.refused": _error(
            "The new configuration has errors (`problems`). The previous configuration stays in force.",
            "Correct the file, run `gateway-sidecar check`, then `gateway-sidecar reload`.",
        ),
        "config.tls_refused": _error(
            "The new certificates of `admin` cannot be used. The previous certificates stay in force.",
            "Correct the files, then run `gateway-sidecar reload`.",
        ),
        "config.not_in_force": _error(
            "The configuration was accepted, but nginx or a router does not serve all of it (`problems`).",
            "Correct what `problems` names. The daemon tries again by itself.",
        ),
        "run_dir.repaired": _warning(
            "Another program removed files from `run_dir` (`removed`). The daemon has restored them.",
            "Exclude `run_dir` from programs that clean directories.",
        ),
        "run_dir.not_repaired": _error(
            "Another program removed files from `run_dir`, and the daemon cannot restore them.",
            "Make `run_dir` writable for the daemon.",
        ),
        "state.not_written": _error(
            "The file at `path`, in `state_dir` or `run_dir`, cannot be written. Serving goes on.",
            "Free space on the disk, or make the directory writable for the daemon.",
        ),
        "state.written_again": _info("The file at `path` can be written again."),
        "state.ignored": _warning(
            "A record of an earlier daemon cannot be used, so the daemon looks at everything anew.",
            "Report the event if it repeats.",
        ),
        "state.unread": _error(
            "The record of replicas that were put over the API cannot be read. Replicas that serve go on serving.",
            "Make `state_dir` readable for the daemon.",
        ),
        "state.put_aside": _error(
            "The record of replicas that were put over the API is damaged and was moved to `path`.",
            "Put the missing replicas again.",
        ),
        "usage.not_kept": _error(
            "Usage cannot be written to disk: `reason`. nginx goes on counting.",
            "Free space in `state_dir`, or make it writable for the daemon.",
        ),
        "bounds.begin_anew": _error(
            "A new nginx does not know what keys have used of their day and month: `reason`. These quotas begin anew.",
            "Make `state_dir` readable for the daemon.",
        ),
        "lease.not_restored": _warning(
            "The bridge `port` that an earlier daemon gave a replica cannot be kept. The replica gets another one.",
            "Leave `bridges.ports` as it is while replicas serve.",
        ),
    },
    "Store of several gateways": {
        "store.up": _info("The store can be read."),
        "store.away": _error(
            "The store cannot be read: `reason`. Everything goes on as it was. Nothing that gateways share can be"
            " changed: `PUT`, `DELETE` and `key --store` are refused, and no drain is called safe.",
            "Make the store reachable; docs/guides/several-gateways.md lists the usual reasons.",
        ),
        "store.refused": _error(
            "The gateway does not believe the store: `reason`. Everything goes on as it was.",
            "Decide which counts: run `gateway-sidecar store refill` or `gateway-sidecar store accept`; or upgrade this"
            " gateway, if only a later version reads the store.",
        ),
        "store.begun": _info("This gateway is the first one of a new store."),
        "store.accepted": _warning("An operator has accepted a store that was refused, or `refilled` it."),
        "store.moved": _info("Replicas that were put at this gateway alone are in the store now."),
        "store.key_refused": _error(
            "An entry of the store is no key or plan (`key`) that can count: `reason`. The others count.",
            "Run `gateway-sidecar key revoke NAME --store`, and add the key again.",
        ),
        "store.settings_differ": _warning(
            "Another gateway of the fleet has other settings than this one: `reason`. Each serves by its own.",
            "Give all gateways of a fleet the same `bridges.ports`, `scaling` and `frontend.auth`.",
        ),
        "store.certificate_refused": _error(
            "A `certificate` of the store cannot be served: `reason`. The previous one stays in force.",
            "Run `gateway-sidecar certificate put`, or `certificate remove`.",
        ),
        "store.lease_lost": _warning(
            "This gateway's lease has ended, so the gateway takes a new lease. Serving goes on."
        ),
    },
    "Replicas": {
        "replica.seen": _info("A socket appeared, or another engine appeared behind a known socket."),
        "replica.loading": _info("The engine is not ready yet: `reason`."),
        "replica.registering": _info("The engine is ready, and the daemon registers it with the router."),
        "replica.serving": _info(
            "The router lists the worker as ready; `since_seen_s` is the time since the socket was first seen."
        ),
        "replica.draining": _info("The replica gets no new requests: `reason`."),
        "replica.unreachable": _warning(
            "The engine cannot be asked: `reason`.", "Look up the reason in docs/troubleshooting.md."
        ),
        "replica.foreign": _warning(
            "Something that is no LLM engine answers behind the socket: `reason`.", "Check where the socket leads."
        ),
        "replica.dead": _warning(
            "The engine served and does no work any more: `reason`. It gets no requests.", "Restart the engine."
        ),
        "replica.gone": _info(
            "The replica is gone: its last connection is closed and its `port` is free, or `drain.timeout_s` is over."
        ),
        "replica.drain_asked": _info("All gateways of the fleet were asked to drain the replica, at this `gateway`."),
        "replica.drained": _info("Nothing is in flight on the replica any more, so it is safe to stop the engine."),
        "replica.names": _info("The engine lists other names than before: some `came`, some `went`."),
        "replica.ejected": _warning(
            "The engine failed `failures` times within `over_s` seconds, so it gets no requests.",
            "Read the engine's log.",
        ),
        "replica.replaced": _info(
            "Another engine, or something that is no engine (`by`), answers behind the same socket."
        ),
        "replica.moved": _info(
            "The replica's `<replica>.yaml` advertises another address, so the replica becomes a new worker."
        ),
        "replica.sent_elsewhere": _info(
            "The replica's source names another place (`to`). The old engine serves until the new one does."
        ),
        "replica.refused": _warning(
            "A file matches the pattern and cannot be a replica: `reason`.", "Correct or remove the file."
        ),
        "replica.notes_refused": _error(
            "The replica's `<replica>.yaml` has errors (`problems`). The previous content counts.", "Correct the file."
        ),
        "replica.not_bridged": _error(
            "The replica has no bridge: no port is free for its service, or the symlink cannot be made.",
            "Widen `bridges.ports`, or make `run_dir` writable.",
        ),
        "endpoints.written": _info("The file at `path`, for other routers, has new content."),
        "endpoints.not_written": _error(
            "The file for other routers cannot be written. Until it can, no drain of the service ends.",
            "Make the file's directory writable for the daemon.",
        ),
        "source.blind": _error(
            "The replicas cannot be listed, so nothing changes: `reason`.", "Make the source readable for the daemon."
        ),
        "source.sighted": _info("The replicas can be listed again."),
        "source.hints_failed": _warning(
            "The kernel does not report changes of files, so the daemon sees changes at the next rescan.",
            "Raise `fs.inotify.max_user_watches` or `max_user_instances`.",
        ),
        "bridge.key_not_shown": _error(
            "The nginx that sends an engine its API key cannot be started, or refuses a changed key.",
            "Correct what the `reason` names; `state_dir/log/nginx.log` has more.",
        ),
        "peer.up": _info("An advertised address is on the gateway and leads to its replica."),
        "peer.adopted": _info("The daemon took over an advertised address from an earlier daemon."),
        "peer.closed": _info("An advertised address was removed from the gateway."),
        "peer.refused": _error(
            "The gateway needs the advertised address itself, so the replica cannot have it.",
            "Advertise another address.",
        ),
        "peer.not_up": _error(
            "The advertised address cannot be claimed, or nginx cannot listen there: `reason`.",
            "Correct what the reason names.",
        ),
        "peer.exited": _error("The nginx of an advertised address ended. It is started again."),
        "peer.given_back": _info("Addresses that an earlier daemon left and no replica needs were removed."),
        "peer.not_given_back": _error(
            "An address that no replica needs cannot be removed: `reason`.", "Remove the address with `ip address del`."
        ),
        "peer.interface_made": _info(
            "The network interface for advertised addresses was made; `kind` says of which kind."
        ),
    },
    "Services and signals": {
        "service.half_pair": _warning(
            "A `model` has prefill workers and no decode worker, or the other way round: `reason`.",
            "Start a replica of the missing half.",
        ),
        "service.whole": _info("A `model` that lacked half a pair is answered again."),
        "service.in_force": _info("nginx serves the service as its `listen` and `frontend` say."),
        "service.not_in_force": _error(
            "nginx cannot serve the service as it is configured. What was in force before, if anything, stays.",
            "Correct what the `reason` names. The daemon tries again by itself.",
        ),
        "service.not_added": _error(
            "A reload adds a service for which no ports are left.",
            "Widen `bridges.ports` or `router_ports`, then restart the daemon.",
        ),
        "service.ready": _info(
            "Load balancers are told to send the requests of this service, or shared address, here."
        ),
        "service.not_ready": _info("Load balancers are told to send the requests elsewhere: `reason`."),
        "gate.not_switched": _error(
            "The file that lets a service's requests through, or makes them wait, cannot be changed.",
            "Make `run_dir` writable for the daemon.",
        ),
        "hold.socket_not_held": _error(
            "The process that keeps waiting requests while the daemon is restarted cannot be started.",
            "Correct what the `reason` names. Until then requests that wait during a restart fail.",
        ),
        "scaling.recommended": _info("A `role` of a service should have `desired` replicas: `reason`."),
        "scaling.voice_taken": _info(
            "Of all gateways this one recommends and calls the hook for the `service` from now on; `before` is the one"
            " that did so last."
        ),
        "scaling.voice_lost": _warning(
            "This gateway does not recommend and call the hook for the `service` any more: it leaves, the store was not"
            " reached for most of a lease, or another gateway does so.",
            "See `status` for who does so now, and `fleet` for the gateways that are alive.",
        ),
        "scaling.hook_told": _info("The scaling hook accepted a recommendation."),
        "scaling.hook_failed": _error(
            "The scaling hook did not accept a recommendation: `reason`. The daemon calls the hook again.",
            "Run the hook by hand.",
        ),
        "signals.no_events": _error(
            "nginx's reports of requests do not arrive, so no recommendation is based on them.",
            "Correct what the `reason` names.",
        ),
    },
    "Routers": {
        "router.started": _info("A router is up."),
        "router.adopted": _info("The daemon took over a router from an earlier daemon."),
        "router.stopped": _info("The daemon stopped a router."),
        "router.not_started": _error(
            "A router cannot be started: `reason`.", "Correct what the reason names. The daemon tries again by itself."
        ),
        "router.exited": _error(
            "A router ended by itself; `last_lines` are the end of its output. Requests wait until it is up again.",
            "Read `state_dir/log/router-SERVICE.log`.",
        ),
        "router.not_answering": _warning(
            "A router's API fails: `reason`. Workers that are registered there stay.",
            "Read the router's log if it lasts.",
        ),
        "router.not_adopted": _warning(
            "A router of an earlier daemon cannot be taken over: `reason`. The daemon starts another."
        ),
        "router.silent": _warning(
            "A router's API has not answered for a second. Requests wait until the router answers."
        ),
        "router.refusing": _warning(
            "A router runs but accepts no connections. Requests wait; it is started again after `router.api_timeout_s`."
        ),
        "router.said": Event(
            ("debug", "info", "warning", "error"), "A line of a router's own output, at the level that it has there."
        ),
        "router.said_more": _info("The log at `path` has more of a router's output: `lines` lines."),
        "router.replaced": _info("Another router took the place of the old one, without failing a request."),
        "router.not_replaced": _error(
            "Another router could not take the old one's place: `reason`. The old one goes on.",
            "Correct the `router` settings, then run `gateway-sidecar reload` or `gateway-sidecar router restart`.",
        ),
        "mesh.joining": _info("A router is replaced by one that joins the mesh of its service: `reason`."),
        "mesh.joined": _info("The service's router is in the mesh, at `address`; it joined by the one at `peer`."),
        "mesh.not_joined": _warning(
            "No router could join the mesh of the service: `reason`. The one that is there goes on, and it is tried"
            " again.",
            "Correct what the `reason` names.",
        ),
        "mesh.no_place": _warning(
            "A router is started without a place in the mesh of its service: `reason`. It is tried again.",
            "Correct what the `reason` names.",
        ),
        "router.outgrown": _warning(
            "The router takes more than `router.memory_limit_mb`, so the daemon is about to replace it."
        ),
        "router.outdated": _warning(
            "An earlier daemon started the router from another program or with other arguments. It will be replaced."
        ),
        "router.leftover_stopped": _warning("The daemon asks a router to end that an earlier daemon left behind."),
        "router.key_visible": _warning(
            "`router.command` is no Python script, so the router's key stands on its command line.",
            "Let no other user log in, or use the script that pip installs.",
        ),
        "router.log_elsewhere": _error(
            "The router's log file cannot be opened. Its output goes to the daemon's log alone.",
            "Make `state_dir/log` writable, then run `gateway-sidecar router restart`.",
        ),
        "worker.operation_failed": _warning(
            "The router refused or failed a registration or a removal: `reason`. The next try is after `retry_in_s`."
        ),
        "worker.orphan": _warning(
            "The router has a worker without a replica. The daemon removes the worker.",
            "Register no workers there by hand; make the replica known to the daemon.",
        ),
    },
    "nginx and the frontend": {
        "nginx.started": _info("nginx is up."),
        "nginx.adopted": _info("The daemon took over nginx from an earlier daemon."),
        "nginx.exited": _error(
            "nginx ended by itself; `last_lines` are the end of its output. It is started again.",
            "Read `state_dir/log/nginx.log`.",
        ),
        "nginx.hung": _error("nginx answers nothing, so it is ended and started again."),
        "nginx.not_started": _error(
            "nginx cannot be started: `reason`.", "Correct what the reason names. The daemon tries again by itself."
        ),
        "nginx.orphans_stopped": _warning("Processes that a dead nginx left behind were ended."),
        "nginx.reloaded": _info(
            "nginx has a new configuration: an address, a frontend or a router's port changed. Scaling causes none."
        ),
        "nginx.not_reloaded": _error(
            "nginx refused its new configuration: `reason`. The previous configuration stays in force.",
            "Correct what the reason names.",
        ),
        "nginx.said": Event(("info", "error"), "A line of nginx's own error log."),
        "nginx.said_more": _info("The log at `path` has more of nginx's output: `lines` lines."),
        "nginx.log_elsewhere": _error(
            "nginx's log file cannot be opened. Its output goes to the daemon's log alone.",
            "Make `state_dir/log` writable.",
        ),
        "frontend.keys_taken_in": _info(
            "A keys file changed and is in force; `added` and `removed` say how many keys."
        ),
        "frontend.certificate_taken_in": _info("A certificate changed and is in force."),
        "frontend.client_ca_taken_in": _info(
            "The authorities of client certificates changed: nginx is about to be reloaded."
        ),
        "frontend.refused": _error(
            "A keys file, a certificate or a file of authorities cannot be used. The previous one stays in force.",
            "Correct the file. No reload is needed.",
        ),
        "frontend.repaired": _info("A file of the frontend that could not be used can be used again."),
        "frontend.certificate_expires": _warning(
            "The certificate expires within `tls.warn_days`, or has expired.", "Renew the certificate."
        ),
        "frontend.certificate_wrong_name": _warning(
            "The served certificate does not cover all of `server_names`.", "Get a certificate for all of these names."
        ),
        "acme.account": _info("An account was made at the ACME server: its `url`."),
        "acme.issued": _info("A certificate by ACME is there for these `names`; `renewal` says when it is renewed."),
        "acme.waits": _warning(
            "An order of a certificate is due, and cannot begin: `reason`. What is in force stays.",
            "Make the store reachable; docs/guides/several-gateways.md lists the usual reasons.",
        ),
        "acme.unanswered": _warning(
            "These `gateways` do not say that they answer what the ACME server asks for. The order goes on.",
            "If it fails, look why their daemons hang.",
        ),
        "acme.failed": Event(
            ("warning", "error"),
            "An order of a certificate failed: `reason`. The previous certificate stays; the next try is at `again`.",
            "Make the names lead to `frontend.redirect` at port 80, then run `gateway-sidecar reload`.",
        ),
    },
    "Tunnels": {
        "tunnel.up": _info("An SSH connection is up."),
        "tunnel.down": _warning(
            "An SSH connection is down (`state`, `reason`); `replicas` are behind it.",
            "Try `ssh` by hand with the same key.",
        ),
        "tunnel.ended": _info("No replica needs an SSH connection any more, so it was ended."),
        "tunnel.not_forwarded": _error(
            "The SSH connection is up, but ssh refuses to forward a replica's socket: `reason`.",
            "Allow the forward on the far side (`AllowTcpForwarding`, `AllowStreamLocalForwarding`, `PermitOpen`).",
        ),
        "tunnel.leftover_stopped": _warning(
            "The daemon ends an ssh process that an earlier daemon left and no replica needs."
        ),
    },
}
"""Event -> what it is, by what it is about."""

EVENTS: Mapping[str, Event] = {name: event for group in GROUPS.values() for name, event in group.items()}
