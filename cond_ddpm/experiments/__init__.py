"""Train and measure several models: a comparison (`study.py`), or a search over settings (`tune.py`).

What would be refused after hours of training is refused by `rehearsal.py` before any.
"""
