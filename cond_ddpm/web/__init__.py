"""A page without a server: static files with the network, which draws in the browser.

May import: what its files say. `page.py` writes the folder, `schedule.py` is what the page knows of the samplers, `runtime.py`
is onnxruntime-web. `site/` is the page itself, which is copied as it is; `site/page.js` is where to read on.
"""

from cond_ddpm.web.page import export_page

__all__ = ["export_page"]
