"""The figures of docs/figures.md, floor and ours in the same run: `python -m bench --help`.

Each figure is a module of its own with `NAME` and `run`; its docstring says between which two instants it measures.
What they share: `engines` (simulated engines in another process), `bare` (the floors: SMG and nginx alone), `gateway`
(ours), `wire` and `chat` (the client), `load` (many clients), `processes` (CPU and memory), `report`.
"""
