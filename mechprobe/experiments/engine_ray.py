"""Run cells on a Ray cluster, whole cells on one node, results in one run directory.

Prompts, summaries and tables run here, where the run directory is; cells run wherever there is
memory for their largest step. Keys and markers are those of the local engine, so that a run may
change engines between two starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import mechprobe
from mechprobe.errors import MechprobeError, require
from mechprobe.experiments.ray_schedule import Cluster, Schedule
from mechprobe.experiments.ray_worker import TOKEN, look
from mechprobe.experiments.rundir import RunDirectory, write_text
from mechprobe.experiments.steps import Display, Outcome, Step, check_graph

_TOKEN_HINT = (
    "is it up? A cluster with token authentication takes the token in RAY_AUTH_TOKEN or "
    "~/.ray/auth_token of this machine (`ray get-auth-token` on the head shows it)"
)


def _pass_token_on() -> None:
    """Send the token that this machine has, as Ray itself does for `auto` alone.

    Since 2.60 a head asks for one as soon as a token lies in its user's home, and a client that was
    given an address sends none unless `RAY_AUTH_MODE` says so. A cluster without authentication
    ignores it.
    """
    with contextlib.suppress(ImportError):  # an older Ray
        from ray._private.authentication import authentication_token_setup as setup

        setup.logger.setLevel(logging.ERROR)  # it warns of its being on
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


class RayEngine:
    """Spreads cells over a Ray cluster; starts one on this machine if no address is given."""

    name = "ray"

    def __init__(
        self,
        address: str | None = None,
        *,
        shared: bool | None = None,
        cpus: float | None = None,
        retries: int = 3,
    ) -> None:
        """Choose a cluster.

        Args:
            address: `HOST:PORT`, `auto`, or `ray://…`; `RAY_ADDRESS` counts too.
            shared: Whether all nodes see the run directory; found out by default.
            cpus: Cores that a cell gets; by default those of the smallest node, shared evenly
                between its GPUs where it has some.
            retries: How often a cell is given to another worker after its own was lost.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        self._ray: Any = require("ray", "ray")
        self._address = address
        self._shared = shared
        self._cpus = cpus
        self._retries = retries
        self.lost = 0
        """Workers that were lost in the last run."""

    def run(self, steps: Sequence[Step], run: RunDirectory, display: Display) -> Outcome:
        """Run what is not done yet; a failing step is recorded and the other cells go on.

        Raises:
            MechprobeError: The cluster cannot be used, or a disk is full.
        """
        check_graph(steps)
        self.lost = 0
        with self._cluster():
            token = uuid.uuid4().hex
            write_text(run / TOKEN, token)
            try:
                shared = self._look_around(run, token)
                where = Cluster(self._ray, self.nodes(), self.cores(), self._retries)
                schedule = Schedule(where, run, display, token, shared)
                outcome = schedule.run(steps)
                self.lost = schedule.lost
                return outcome
            finally:
                (run / TOKEN).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        ray = self._ray
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        address = self._address or os.environ.get("RAY_ADDRESS")
        if address is None:
            options |= {"include_dashboard": False}
        else:
            _pass_token_on()
        refused = getattr(ray.exceptions, "AuthenticationError", ConnectionError)
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError, refused) as error:
            line = str(error).strip().splitlines()[0].partition(". ")[0]
            hint = "" if address is None else f"; {_TOKEN_HINT}"
            raise MechprobeError(
                f"ray: no cluster at {address or 'this machine'}: {line}{hint}"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()

    def nodes(self) -> list[dict[str, Any]]:
        """Living nodes that have cores."""
        alive = (node for node in self._ray.nodes() if node["Alive"])
        return [node for node in alive if node["Resources"].get("CPU", 0) > 0]

    def _look_around(self, run: RunDirectory, token: str) -> bool:
        """Whether all nodes see the run directory; they must run this version.

        Raises:
            MechprobeError: There is no node, or one has other versions.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = self.nodes()
        if not nodes:
            raise MechprobeError("ray: the cluster has no node with a core; add one")
        remote = self._ray.remote(num_cpus=0)(look)
        asked = [
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(run.path))
            for node in nodes
        ]
        seen = self._ray.get(asked)
        for one in seen:
            if one["mechprobe"] != mechprobe.__version__:
                raise MechprobeError(
                    f"ray: {one['host']} has mechprobe {one['mechprobe']}, this machine "
                    f"{mechprobe.__version__}; install the same version everywhere"
                )
        if self._shared is not None:
            return self._shared
        return all(one["token"] == token for one in seen)

    def cores(self) -> float:
        """Cores that a cell gets."""
        if self._cpus is not None:
            return self._cpus
        shares = [
            node["Resources"]["CPU"] / max(1.0, node["Resources"].get("GPU", 0.0))
            for node in self.nodes()
        ]
        return max(1.0, float(int(min(shares))))
