"""Tuning: the fastest plan above a quality floor, found on this machine and checked on prompts it was not found on.

Files: `floors` (what must hold), `trials` (what was tried, on disk), `space` (what can be chosen), `search` (the way
there), `outcome` (best plan, Pareto set and report).
"""
