"""The daemon as a whole: its start, its reloads, its end, and what it watches over itself."""
