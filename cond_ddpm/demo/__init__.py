"""The demo: a page in the browser on which diffusion can be watched, and the same functions as an API and an MCP server.

limits.py     what a visitor may ask for; every refusal in words; how an uploaded picture is read
studio.py     the models, and a call of a pipeline as an iterator over its steps, which can be left at any step
markup.py     arrays -> the HTML of pictures, slider and messages
controls.py   the fields that several panels have, and what all their events share
generate.py, watch.py, noise.py, compare.py, measured.py   one panel each
interface.py  the functions for programs: typed and documented
app.py        the page of all panels, and how it is served
style.css     how it looks

Its files are published with a demo Space, where the rest of the package is missing. So they may import the standard library,
torch, diffusers, gradio, what these need (numpy, Pillow), and each other. It is at the end of the data flow: `commands.py`
serves pipelines by it, and `hub/` uploads it.
"""

from cond_ddpm.demo.app import launch, make_demo
from cond_ddpm.demo.limits import Limits
from cond_ddpm.demo.studio import Model, Studio

__all__ = ["Limits", "Model", "Studio", "launch", "make_demo"]
