"""The settings of `cond-ddpm demo`, which shows a model on a page in the browser.

May import: `config.{sampling, settings}`. Next in the data flow: `demo/` makes the page and serves it.
"""

import os

from cond_ddpm.config.sampling import RevisionConfig
from cond_ddpm.config.settings import setting

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD = "COND_DDPM_PASSWORD"


class DemoConfig(RevisionConfig):
    """Settings of `cond-ddpm demo`."""

    model: str | None = setting(
        default=None,
        help="Pipeline folder, run folder, Hub repository, or newest, for the newest run below this folder; if not given,"
        " the model that comes with the package, or the newest run.",
        is_path=True,
    )
    compare: list[str] | None = setting(
        default=None, help="Further models to compare with; of a run folder, also moments of its training.", is_path=True
    )
    dataset: str | None = setting(
        default=None, help="Data set of which a few real pictures are shown with noise.", is_path=True
    )
    host: str = setting(default="127.0.0.1", help="Address to serve at; 0.0.0.0 is every network that this machine is in.")
    port: int = setting(default=7860, help="Port to serve at; 0 for any free one.", at_least=0, at_most=65535)
    password: str | None = setting(
        default=None,
        help=f"Password that visitors must give; their user name is demo. {PASSWORD} in the environment does the same, and is"
        " not seen in a list of processes.",
    )
    no_password: bool = setting(default=False, help="Let anyone in who can reach the address.")
    open_browser: bool = setting(default=True, help="Open the page in this machine's browser.")

    def check(self) -> None:
        super().check()
        if self.password == "":
            raise ValueError("password: expected one that is not empty; leave it out, or give another.")
        if self.visitors_password and self.no_password:
            raise ValueError("no_password: expected no --password beside it; leave out one of the two.")
        if self.host not in LOOPBACK and not self.visitors_password and not self.no_password:
            raise ValueError(
                f"host: expected {LOOPBACK[0]}, or --password or --no_password beside it, because others can reach"
                f" {self.host}; give one of the two."
            )

    @property
    def visitors_password(self) -> str | None:
        return self.password or os.environ.get(PASSWORD) or None
