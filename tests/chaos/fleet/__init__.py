"""Random faults of a whole fleet: gateways, etcd, networks, engines; and a checker that judges what happened.

    python -m tests.chaos.fleet --minutes 10 --seed 7

As in `tests.chaos`, which this shares its shapes with: `schedule` makes a seed into timed events (`events`), `stage`
does them under load and writes down a history (`history`), `check` and `blame` judge it and touch nothing.
"""
