"""Randomised churn against the real daemon, nginx and SMG, and a checker that judges what happened.

    python -m tests.chaos --minutes 10 --seed 7      churn with faults; the verdict is the checker's
    python -m tests.chaos.soak --minutes 10          an hour's scale events in minutes; does anything grow?

`schedule` makes a seed into timed events (`events`); `stage` does them to a real gateway under load (`load`) and writes
down a history (`history`); `check` judges the history and touches nothing.
"""
