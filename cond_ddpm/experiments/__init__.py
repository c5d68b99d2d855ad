"""Train and measure several models: a comparison (`study.py`), or a search over settings (`tune.py`)."""
